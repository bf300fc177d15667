# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The modules of Triton kernels as tests run them: on a GPU if there is one, else in Triton's interpreter."""

import functools
import importlib
import os
import sys
from unittest import mock

import pytest
import torch

import astroformer_hf


pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULES = ("triton_blocks", "hybrid_attention_triton_source", "hybrid_attention_triton", "neuron_astrocyte_triton")


@functools.cache
def load_kernels():
    """The modules by name. Triton interprets what is imported while a variable is set, itself included: without a GPU
    they are imported once more, and everything else keeps the Triton that it has."""

    def names():  # a compiled module cannot be loaded twice
        return [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C.")]

    own = [f"{astroformer_hf.__name__}.{name}" for name in MODULES]
    before = [importlib.import_module(name) for name in own]
    if DEVICE == "cuda":
        return dict(zip(MODULES, before, strict=True))
    kept = {name: sys.modules.pop(name) for name in (*names(), *own)}
    try:
        with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
            found = {name: importlib.import_module(path) for name, path in zip(MODULES, own, strict=True)}
        patch_once(sys.modules["triton.runtime.interpreter"])
    finally:
        for name in names():
            del sys.modules[name]
        sys.modules.update(kept)
        for name, module in zip(MODULES, before, strict=True):
            setattr(astroformer_hf, name, module)
    return found


def patch_once(interpreter):
    """Has the interpreter exchange the functions of Triton's language once for each module that uses them, for good: it
    does so at every call of a kernel, and of a function in one, and takes a third of the time for it."""
    patch_language, done = interpreter._patch_lang, set()

    def patched(function):
        if function.__module__ not in done:
            done.add(function.__module__)
            patch_language(function)
        return mock.Mock()  # for the scope, whose end would restore them

    interpreter._patch_lang = patched
