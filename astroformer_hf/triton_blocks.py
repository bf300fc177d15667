# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the modules of Triton kernels have in common: where they can run, loads, matrix products, and tensors as their
launches take them.

Matrix products of float32 run on the tensor cores: in TF32, whose 10 bits are no fewer than theirs, where a tensor has
16 bits or PyTorch is set to it; else in three such products, close to float32 ("tf32x3"; true float32 products would
spill kilobytes of registers here). All else is float32.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# Triton asks when kernels are made, and only then.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Tokens per block, and per chunk of the causal form.
BLOCK_LENGTH = 64

# With these, and blocks no larger than `block_of` makes them, the kernels fit the registers, and the shared memory of
# smaller GPUs, 99 KiB.
NUM_WARPS = 8

MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)  # None gives None


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot compute on a device, or None if they can."""
    if triton is not None and INTERPRETED:
        return None
    is_here = triton is not None and device.type == "cuda" and torch.version.hip is None and _is_supported(device)
    return None if is_here else f"Triton cannot compute on {device} here"


@cache
def _is_supported(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)  # the first that has TF32, and Triton's own minimum


if triton is not None:
    # Lengths change from call to call and must not make new kernels. Strides are left alone: whether 16 divides them
    # decides how wide loads are, and that hangs on the sizes of the model.
    VARYING = ["length", "num_blocks", "block_length", "num_slots", "first_slot", "num_keys"]

    @triton.jit
    def at(pointer, sequence, start, num_heads, stride_b, stride_h, stride_n):
        """Where token `start` of a sequence, batch * num_heads + head, lies in a (B, H, N, .) of any strides."""
        return pointer + sequence // num_heads * stride_b + sequence % num_heads * stride_h + start * stride_n

    @triton.jit
    def load(pointer, stride, rows, columns, mask):
        return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)

    @triton.jit
    def to_tf32(x):
        """The nearest of TF32. Tensor cores cut off the bits: sums of activities, all positive, would come out low."""
        nearest = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return tl.where(x == x, nearest, x)  # the bits of NaN might run over

    @triton.jit
    def dot(x, y, sums, PRECISION: tl.constexpr):
        """sums + x y"""
        if PRECISION == "tf32":
            x = to_tf32(x)
            y = to_tf32(y)
        return tl.dot(x, y, sums, input_precision=PRECISION)


def block_of(size: int, precision: str, largest: int = 64) -> int:
    """The power of two that holds `size`, from the least that a matrix product takes to what fits the registers."""
    return min(max(16, triton.next_power_of_2(size)), largest if precision == "tf32" else 32)


def rows_of(x: MaybeTensor) -> MaybeTensor:
    """`x` with its last dimension in one piece; the other strides stay."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def contiguous(x: MaybeTensor) -> MaybeTensor:
    return None if x is None else x.contiguous()


def strides(x: torch.Tensor | None) -> tuple[int, ...]:
    """Strides of batch, head and token; a code that the batch shares does not move with it."""
    if x is None:
        return 0, 0, 0
    return x.stride()[:3] if x.dim() == 4 else (0, *x.stride()[:2])


def by_token(x: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    batch_size, num_heads, length = x.shape[:3]
    return x.new_empty(batch_size, length, num_heads, size, dtype=dtype)


def on_device(x: torch.Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def precision_of(*dtypes: torch.dtype) -> str:
    """How the tensor cores multiply float32: see the docstring of this file."""
    if torch.bfloat16 in dtypes or torch.float16 in dtypes:
        return "tf32"
    matmul = torch.backends.cuda.matmul
    # The newer of PyTorch's two settings, where there is one: once it was used, reading the older is an error.
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "tf32x3"
