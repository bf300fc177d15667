# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Fixtures that several folders share, and which tests a run leaves to `--all`."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from variants import HEADS, ROOT, VARIANTS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.compiler.reset()  # graphs of one test do not count against the next


@pytest.fixture(params=HEADS)
def head(request):
    """The name of a class."""
    return request.param


@pytest.fixture(params=VARIANTS, ids=[name.replace(", ", "_").replace(" ", "_") for name in VARIANTS])
def variant(request):
    """Configuration fields of one variant of the attention."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of scripts that run in a process of their own."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # sums in the same order whatever else the machine does
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
