# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Whether a processor multiplies in bfloat16 as fast as in float32. Without instructions for it, PyTorch's products
take many times as long, and a run that was to be faster seems to hang."""

import time
import warnings

import torch


NOTICEABLE = 2.0  # times as long as in float32


def bfloat16_slowdown(size: int = 256, repeats: int = 3) -> float:
    """How many times as long a matrix product takes on this processor in bfloat16 as in float32, both with what else
    is to be done the first time behind them."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype)
        matrix @ matrix
        taken = []
        for _ in range(repeats):
            begun = time.thread_time()
            matrix @ matrix
            taken.append(time.thread_time() - begun)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def warn_of_slow_bfloat16() -> None:
    """For a run on the processor with `--bf16`: a warning where that makes it slower."""
    slowdown = bfloat16_slowdown()
    if slowdown >= NOTICEABLE:
        warnings.warn(
            f"--bf16: on this processor, a matrix product takes {slowdown:.0f} times as long in bfloat16 as in "
            "float32; without --bf16, this is faster",
            stacklevel=2,
        )
