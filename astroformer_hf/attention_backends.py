# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Which code computes neuron-astrocyte attention. This is the one place that decides.

| backend | what it is | what it takes |
| --- | --- | --- |
| "plain" | the form in `attention_operation.py`, in PyTorch's own operations | everything |
| "cpp" | `neuron_astrocyte_cpu.py`, built by the machine's C++ compiler | float32, bfloat16 and float16 on a CPU |
| "triton" | `neuron_astrocyte_triton.py`, built by Triton | the same on a GPU |

"auto", the default, takes for each call the one that is made for the tensors' device and dtype, if the machine can
build it, and else the plain form. `with attention_backend(name):` names another for a while, the environment variable
`ASTROFORMER_BACKEND` another default; one that is named and cannot run is an error. What `torch.compile`,
`torch.export` and the transforms of `torch.func` trace is always the plain form, which they compile themselves; so is
what carries a tangent of `torch.autograd.forward_ad`.

A backend computes passes, each the twin of a plain function of `attention_operation.py`: `write_mode`,
`read_mode` and `write_and_read_causally`; "cpp" also has `write_and_read_documents`, for rows of several documents, and
three of them "with activity", which make the astrocyte code of that name as they go. Their backward passes keep no more
than the inputs. Where a second derivative is asked for, the plain form is differentiated in their place.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from .neuron_astrocyte_cpu import KERNELS as CPU_KERNELS
from .neuron_astrocyte_cpu import obstacle as cpu_obstacle
from .neuron_astrocyte_triton import KERNELS as TRITON_KERNELS
from .neuron_astrocyte_triton import is_available as triton_is_available


BACKENDS = ("auto", "plain", "cpp", "triton")

_chosen: ContextVar[str | None] = ContextVar("attention_backend", default=None)


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Names the backend that computes neuron-astrocyte attention inside a `with` block.

    Args:
        name (`str`): "auto", "plain", "cpp" or "triton"; see the module's docstring.

    Raises:
        ValueError: there is no such backend.
    """
    token = _chosen.set(_checked(name, "attention_backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def choose_backend(*tensors, packed=False):
    """The backend that computes a call on `tensors`, of which some may be None: "plain", "cpp" or "triton".

    `packed` says whether there are several documents in a row.

    Raises:
        RuntimeError: a backend was named that cannot take these tensors or cannot be built here.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "plain"
    name = _chosen.get() or _checked(os.environ.get("ASTROFORMER_BACKEND") or "auto", "ASTROFORMER_BACKEND")
    if name == "plain":
        return name
    tensors = [x for x in tensors if x is not None]
    device = tensors[0].device
    backend = name
    if name == "auto":
        backend = "cpp" if device.type == "cpu" else "triton"
    obstacle = _obstacle(backend, device, tensors, packed)
    if obstacle is None:
        return backend
    if name == "auto":
        return "plain"
    raise RuntimeError(f"attention backend {name!r} was asked for, but {obstacle}; 'auto' would take another")


def kernels_of(plain, *tensors, packed=False):
    """The kernels, forward and backward, that compute a pass on `tensors`, or None where its plain form does."""
    return _KERNELS[choose_backend(*tensors, packed=packed)].get(plain.__name__)


def run_pass(plain, *tensors, **options):
    """Computes one pass by the backend that is made for its tensors.

    Args:
        plain (function): the pass in its plain form; kernels are found under its name.
        tensors (`torch.Tensor`, *optional*): its arguments by position, of which some may be None.
        options: its arguments by name.
    """
    packed = any(tensors[i] is not None for i in _WITHOUT_GRADIENT.get(plain.__name__, ())[1:])
    kernels = kernels_of(plain, *tensors, packed=packed)
    if kernels is None:
        return plain(*tensors, **options)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _FusedPass.apply(kernels, plain, options, *tensors)
    return kernels[0](*tensors, **options)


def _checked(name, source):
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name


def _obstacle(backend, device, tensors, packed):
    """Why a backend cannot compute a call, or None if it can."""
    if any(type(x) not in (torch.Tensor, torch.nn.Parameter) for x in tensors):  # fake or distributed, say
        return f"it takes plain tensors, not {', '.join(sorted({type(x).__name__ for x in tensors}))}"
    if any(x.dtype == torch.float64 for x in tensors):
        return "it does not compute in float64"
    if any(x.device != device for x in tensors):
        return "the tensors are on several devices"
    if _is_transformed():
        return "torch.func does not transform it"
    if any(torch.autograd.forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        return "it has no forward-mode derivative, and a tensor has a tangent"
    if backend == "cpp":
        if device.type != "cpu":
            return f"the tensors are on {device}"
        return cpu_obstacle() and f"it could not be built here: {cpu_obstacle()}"
    if packed:
        return "it does not take several documents in a row yet"
    return None if triton_is_available(tensors[0]) else f"Triton cannot compute on {device} here"


def _is_transformed():
    """Whether a transform of `torch.func` is at work.

    torch has no public name for that. A tensor that a transform wraps can be told by `data_ptr()`, which raises; but
    where none of a call's tensors is wrapped, `torch.autograd.Function.apply` asks for a rule for the transform all the
    same. A public name, or functions that have such rules (`setup_context`, `vmap`, `jvp`), would replace this.
    """
    return torch._C._are_functorch_transforms_active()


_KERNELS = {"plain": {}, "cpp": CPU_KERNELS, "triton": TRITON_KERNELS}

# Where a pass takes the padding mask and after it, if it takes them, the documents, which have no gradient; and the
# names of the gradients of its results.
_WITHOUT_GRADIENT = {
    "write_mode": (3,),
    "write_mode_with_activity": (2,),
    "write_and_read_causally": (4, 5),
    "write_and_read_causally_with_activity": (3, 4),
    "write_and_read_documents": (4, 5),
    "write_and_read_documents_with_activity": (3, 4),
}
_GRADIENTS = {
    "write_mode": ("d_hebbian", "d_calcium"),
    "write_mode_with_activity": ("d_hebbian", "d_calcium"),
    "read_mode": ("d_output",),
    "write_and_read_documents": ("d_output",),
    "write_and_read_documents_with_activity": ("d_output",),
    "write_and_read_causally": ("d_output", "d_hebbian", "d_calcium"),
    "write_and_read_causally_with_activity": ("d_output", "d_hebbian", "d_calcium", "d_total", "d_count"),
}


class _FusedPass(torch.autograd.Function):
    """A pass by its kernels, as a node of the graph."""

    @staticmethod
    def forward(ctx, kernels, plain, options, *tensors):
        ctx.backward_kernel, ctx.plain, ctx.options = kernels[1], plain, options
        ctx.save_for_backward(*tensors)
        return kernels[0](*tensors, **options)

    @staticmethod
    def backward(ctx, *gradients):
        tensors, name = ctx.saved_tensors, ctx.plain.__name__
        if torch.is_grad_enabled():  # a derivative of the gradients themselves will be asked for
            outputs = ctx.plain(*tensors, **ctx.options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(y, d_y) for y, d_y in zip(outputs, gradients, strict=True) if y is not None and y.requires_grad]
            wanted = [i for i, x in enumerate(tensors) if x is not None and x.requires_grad]
            found = torch.autograd.grad(
                [y for y, _ in pairs],
                [tensors[i] for i in wanted],
                [gradient for _, gradient in pairs],
                create_graph=True,
                allow_unused=True,
            )
            of_tensors = dict(zip(wanted, found, strict=True))
            return None, None, None, *(of_tensors.get(i) for i in range(len(tensors)))
        options = {option: value for option, value in ctx.options.items() if option != "output_dtype"}
        named = dict(zip(_GRADIENTS[name], gradients, strict=True))
        of_tensors = list(ctx.backward_kernel(*tensors, **options, **named))
        for i in _WITHOUT_GRADIENT.get(name, ()):
            of_tensors.insert(i, None)
        return None, None, None, *of_tensors
