# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The memory that a call takes at its peak, and that a cache takes."""

import contextlib
import ctypes
import gc
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(function, device, traced=True):
    """What a call takes at its peak beyond what was there before, in bytes.

    Args:
        function (function): without arguments; it is called two or three times.
        device (`str`): "cpu" or "cuda".
        traced (`bool`): whether to trace each tensor on a CPU, which takes memory of its own for each operation;
            without it there is no `peak_bytes`.

    Returns:
        `peak_bytes`, that of tensors, as PyTorch counts them; and on a CPU under Linux `resident_bytes`, that of the
        process: with the scratch memory of kernels, and with what the allocator leaves unused, which varies.
    """
    function()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before}
    measured = {}
    if traced:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
        current = peak = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                current += event.nbytes()
                peak = max(peak, current)
        measured["peak_bytes"] = peak
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept would hide what the call takes
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
        before = resident("VmRSS")
        function()
        measured["resident_bytes"] = max(resident("VmHWM") - before, 0)
    return measured


def resident(field):
    """A figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def cache_bytes(cache):
    """What a cache holds, in bytes: states of constant size, or keys and values."""
    if hasattr(cache, "num_bytes"):
        return cache.num_bytes
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
