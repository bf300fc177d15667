# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Values and shapes in graphs that are compiled, exported or traced: what may be asked, and what is held fast."""

import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

import torch


MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)

# Whether `torch.export` is at work; torch 2.6 does not tell, and takes the form for eager mode.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def known_value(question: Callable[[], torch.Tensor]) -> bool | int | float | None:
    """The number or bool that `question`, a function, gives as a tensor, or None where no value may be relied on.

    It may not in a graph that is compiled, exported or traced for other inputs as well. And there are tensors without
    values to ask: fake ones, those on the device "meta", and what `torch.func.vmap` maps over.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    try:
        value = question().item()
    except RuntimeError:  # the one kind of error that they have in common
        return None
    return value if isinstance(value, bool | int | float) else None  # and not a symbol


def hold_shape(x: MaybeTensor, name: str) -> MaybeTensor:
    """`x`, in a graph that `torch.jit.trace` makes with a check that it is of this shape, but for the batch.

    Such a graph keeps the branches that were taken for one length. At another it would go wrong without a word.

    Args:
        x (`torch.Tensor`, *optional*): an input.
        name (`str`): what the error calls it.
    """
    if x is None or not torch.jit.is_tracing():
        return x
    sizes = [-1, *held_sizes(x.shape[1:])]
    if torch.onnx.is_in_onnx_export() and x.dim() == 4:
        return x.expand(sizes)  # from images, that exporter leaves the check out; this fails at any size but 1
    return _shape_check()(x, sizes, name)


def held_sizes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Sizes that `hold_shape` has fixed as numbers: while `torch.jit.trace` is at work, they come as tensors."""
    if not torch.jit.is_tracing():
        return tuple(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that they become constants is the intention
        return tuple(int(size) for size in sizes)


@lru_cache
def _shape_check() -> Callable[[torch.Tensor, list[int], str], torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_checked_shape)  # compiled, a check is part of the graph


def _checked_shape(x: torch.Tensor, sizes: list[int], name: str) -> torch.Tensor:
    for i in range(1, len(sizes)):
        if x.size(i) != sizes[i]:
            raise ValueError(
                "this graph of torch.jit.trace takes " + name + " of shape " + str(sizes) + " (-1: any) only, got "
                + str(x.size()) + "; trace anew, or pad, or, for texts of any length, use torch.export"
            )  # fmt: skip
    return x
