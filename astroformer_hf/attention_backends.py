# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Which code computes neuron-astrocyte attention. This is the one place that decides.

| backend | what it is | what it takes |
| --- | --- | --- |
| "plain" | the passes of `attention_passes.py`, in PyTorch's own operations | everything |
| "cpp" | `neuron_astrocyte_cpu.py`, built by the machine's C++ compiler | float32, bfloat16 and float16 on a CPU |
| "triton" | `neuron_astrocyte_triton.py`, built by Triton | the same on a GPU |

"auto", the default, takes for each call of the operation the one that is made for the tensors' device, if it takes
the call, and else the plain form; a kernel that is missing is logged once. `with attention_backend(name):` names
another for a while, the environment variable `ASTROFORMER_BACKEND` another default. One that is named and cannot run
is an error.

Under `torch.compile` a pass with a kernel is an operator of its own in the graph (`torch.ops.astroformer_hf`), which
chooses again when it runs. What `torch.export`, `torch.jit.trace` and the transforms of `torch.func` trace is the
plain form; so is what carries a tangent of `torch.autograd.forward_ad`.

Backward passes keep no more than the inputs. Where a second derivative is asked for, the plain form is differentiated
in their place.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .attention_contract import PASSES, Backend, CodeRecipe, Kernel, Pass, PlainForm
from .neuron_astrocyte_cpu import BACKEND as CPU_BACKEND
from .neuron_astrocyte_triton import BACKEND as TRITON_BACKEND
from .traced_values import is_exporting


logger = logging.get_logger(__name__)

# The backends that have kernels. "auto" takes the first that is made for the tensors' device.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CPU_BACKEND, TRITON_BACKEND)}

_named: ContextVar[str | None] = ContextVar("attention_backend", default=None)
# The same for graphs that are being traced, which cannot read a context variable; a compiled graph is guarded by it.
_named_for_graphs: str | None = None


def backend_names() -> tuple[str, ...]:
    """What `attention_backend` takes."""
    return ("auto", "plain", *BACKENDS)


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Names the backend that computes neuron-astrocyte attention inside a `with` block.

    Args:
        name (`str`): "auto", "plain", "cpp" or "triton"; see the module's docstring.

    Raises:
        ValueError: there is no such backend.
    """
    global _named_for_graphs
    token, before = _named.set(_checked(name, "attention_backend")), _named_for_graphs
    _named_for_graphs = name
    try:
        yield
    finally:
        _named.reset(token)
        _named_for_graphs = before


def choose_backend(passes: list[Pass], inputs: Mapping[str, Any], tensors: list[Tensor]) -> Backend | None:
    """The backend that computes a call of the operation; None for the plain form.

    Args:
        passes (list of `Pass`): those that the call needs.
        inputs (mapping): of their optional inputs and options, at least those that not every kernel takes.
        tensors (list of `torch.Tensor`): everything that the call computes with.

    Raises:
        RuntimeError: a backend was named that cannot take this call or cannot be built here.
    """
    if torch.jit.is_tracing():
        return None
    if torch.compiler.is_compiling():
        return _choose_for_graph(passes, inputs, tensors)
    name = _named.get() or _default_name()
    if name == "plain":
        return None
    device = tensors[0].device
    candidates = [x for x in BACKENDS.values() if x.device_type == device.type] if name == "auto" else [BACKENDS[name]]
    for backend in candidates:
        obstacle, missing = _obstacle(backend, passes, tensors), _missing(backend, passes, inputs)
        if not obstacle and not missing:
            return backend
        if name != "auto":
            raise RuntimeError(
                f"attention backend {name!r} was asked for, but {missing or obstacle}; 'auto' would take another"
            )
        if not obstacle:
            logger.warning_once(f"Neuron-astrocyte attention runs in its plain form: {backend.name!r}: {missing}")
    return None


def _choose_for_graph(passes: list[Pass], inputs: Mapping[str, Any], tensors: list[Tensor]) -> Backend | None:
    """The same while `torch.compile` traces. Where a graph is to run elsewhere, as after an export, it is plain."""
    name = _named_for_graphs or _default_name()
    if name == "plain" or _may_be_exporting() or torch._C._are_functorch_transforms_active():
        return None
    device = tensors[0].device
    for x in tensors:
        if x.device != device or x.dtype == torch.float64:
            _refuse_if_named(name)
            return None
    for backend in BACKENDS.values():
        if backend.device_type == device.type and name in ("auto", backend.name):
            names = tuple(pass_.name for pass_ in passes)
            if not _is_unavailable(backend.name, names, device.type) and not _missing(backend, passes, inputs):
                return backend
    _refuse_if_named(name)
    return None


def _refuse_if_named(name: str) -> None:
    if name != "auto":
        raise RuntimeError(
            f"attention backend {name!r} was asked for, but it cannot compute this call in a compiled graph; 'auto' "
            "would take another"
        )


def _may_be_exporting() -> bool:
    # torch 2.6 cannot tell an export from a compilation
    return not hasattr(torch.compiler, "is_exporting") or is_exporting()


@torch.compiler.assume_constant_result
def _is_unavailable(name: str, passes: tuple[str, ...], device_type: str) -> bool:
    device = torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")
    return BACKENDS[name].obstacle(device, set(), passes) is not None


def _default_name() -> str:
    return _checked(os.environ.get("ASTROFORMER_BACKEND") or "auto", "ASTROFORMER_BACKEND")


def _checked(name: str, source: str) -> str:
    if name not in backend_names():
        raise ValueError(f"{source} must be one of {', '.join(map(repr, backend_names()))}, got {name!r}")
    return name


def _missing(backend: Backend, passes: list[Pass], inputs: Mapping[str, Any]) -> str | None:
    """Which kernel a backend lacks for these passes, in words; None if it has all."""
    for pass_ in passes:
        missing = backend.lacks(pass_.name, inputs)
        if missing:
            return missing
    return None


def _obstacle(backend: Backend, passes: list[Pass], tensors: list[Tensor]) -> str | None:
    """Why a backend cannot compute passes with these tensors, or None if it can."""
    device = tensors[0].device
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors):  # fake or distributed, say
        return f"it takes plain tensors, not {', '.join(sorted({type(x).__name__ for x in tensors}))}"
    if any(x.device != device for x in tensors):
        return "the tensors are on several devices"
    if _is_transformed():
        return "torch.func does not transform it"
    if any(torch.autograd.forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        return "it has no forward-mode derivative, and a tensor has a tangent"
    return backend.obstacle(device, {x.dtype for x in tensors}, (pass_.name for pass_ in passes))


def _is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work.

    torch has no public name for that. A tensor that a transform wraps can be told by `data_ptr()`, which raises; but
    where none of a call's tensors is wrapped, `torch.autograd.Function.apply` asks for a rule for the transform all the
    same. A public name, or functions that have such rules (`setup_context`, `vmap`, `jvp`), would replace this.
    """
    return torch._C._are_functorch_transforms_active()


# --------------------------------------------------------------------------------------------------------------------
# Running a pass
# --------------------------------------------------------------------------------------------------------------------


def fused_pass(pass_: Pass, recipe: CodeRecipe | None) -> Pass:
    """The pass that makes a code on the way and then does what `pass_`, which takes R, does; without one, `pass_`."""
    return PASSES[pass_.name if recipe is None else recipe.fused.get(pass_.name, pass_.name)]


def resolve_code(
    recipe: CodeRecipe | None,
    pass_: Pass,
    backend: Backend | None,
    *,
    key: Tensor,
    padding_mask: Tensor | None,
    causal: bool,
    document_ids: Tensor | None = None,
) -> tuple[Pass, dict[str, Any], Any]:
    """Turns an astrocyte code into what a pass takes of it: R, or what the pass makes R of.

    R is made first in the plain form, and where the table of a backend says so.

    Args:
        recipe (`CodeRecipe`, *optional*): the code.
        pass_ (`Pass`): the pass that takes R, or the one of `fused_pass`.
        backend (`Backend`, *optional*): what computes the call; None for the plain form.
        key, padding_mask, causal, document_ids: what R is made from.

    Returns:
        The pass to run, its inputs that the code is in, and the state of the code after the last token, None where
        there is none or where it comes with the results of the pass.
    """
    if "astrocyte_code" not in pass_.tensors and recipe is not None:
        kernel = None if backend is None else backend.kernels[pass_.name]
        if isinstance(kernel, Kernel):
            return pass_, recipe.fused_inputs(causal), None
        pass_ = next(PASSES[name] for name, fused in recipe.fused.items() if fused == pass_.name)
    if recipe is None:
        return pass_, {"astrocyte_code": None}, None
    code, state = recipe.materialize(key, padding_mask, causal, document_ids)
    return pass_, {"astrocyte_code": code}, state


def run_pass(pass_: Pass, backend: Backend | None, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Computes one pass: its results by name.

    Args:
        pass_ (`Pass`): which.
        backend (`Backend`, *optional*): as `choose_backend` chose it; None for the plain form.
        inputs (mapping): what the pass takes, and perhaps more.
    """
    inputs = {name: inputs[name] for name in (*pass_.tensors, *pass_.options)}
    if backend is None or isinstance(backend.kernels[pass_.name], PlainForm):
        results = pass_.as_tuple(pass_(**inputs))
    elif torch.compiler.is_compiling():
        operator = _OPERATORS[pass_.name]
        results = pass_.as_tuple(operator(*(inputs[name] for name in (*pass_.tensors, *pass_.options))))
        if not pass_.has_states(inputs):  # the operator returns empty ones
            results = pass_.without_states(results)
    else:
        results = _run_kernel(pass_, backend, inputs)
    return dict(zip(pass_.outputs, results, strict=True))


def _run_kernel(pass_: Pass, backend: Backend, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    kernel = backend.kernels[pass_.name]
    assert isinstance(kernel, Kernel), f"{pass_.name} is not resolved"
    tensors = [inputs[name] for name in pass_.tensors]
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        options = {name: inputs[name] for name in pass_.options}
        return _FusedPass.apply(kernel, pass_, options, *tensors)
    return _kernel_results(pass_, kernel, inputs)


def _kernel_results(pass_: Pass, kernel: Kernel, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    if pass_.has_states(inputs) or not kernel.needs_states:
        return kernel.forward(**kernel.taken(inputs))
    return pass_.without_states(kernel.forward(**kernel.taken(pass_.with_states(inputs))))


class _FusedPass(torch.autograd.Function):
    """A pass by its kernels, as a node of the graph."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, pass_: Pass, options: dict[str, Any], *tensors: Tensor | None) -> Any:
        ctx.kernel, ctx.pass_, ctx.options = kernel, pass_, options
        ctx.save_for_backward(*tensors)
        return _kernel_results(pass_, kernel, {**dict(zip(pass_.tensors, tensors, strict=True)), **options})

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        pass_: Pass = ctx.pass_
        inputs = dict(zip(pass_.tensors, ctx.saved_tensors, strict=True))
        if torch.is_grad_enabled():  # a derivative of the gradients themselves will be asked for
            of_inputs = _plain_gradients(pass_, inputs, ctx.options, gradients)
        else:
            of_inputs = dict(_kernel_gradients(pass_, ctx.kernel, inputs, ctx.options, gradients))
        return None, None, None, *(of_inputs.get(name) for name in pass_.tensors)


def _kernel_gradients(
    pass_: Pass,
    kernel: Kernel,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    gradients: tuple[Tensor | None, ...],
) -> dict[str, Tensor]:
    options = {name: x for name, x in options.items() if name not in pass_.forward_only}
    named = {f"d_{name}": x for name, x in zip(pass_.outputs, gradients, strict=True)}
    if pass_.has_states(inputs) or not kernel.needs_states:
        return kernel.backward(**kernel.taken({**inputs, **options}), **named)
    filled = pass_.with_states(inputs)
    named.update({f"d_{name}": torch.zeros_like(filled[name]) for name in pass_.states})
    found = kernel.backward(**kernel.taken({**filled, **options}), **named)
    return {name: gradient for name, gradient in found.items() if name not in pass_.states}


def _plain_gradients(
    pass_: Pass, inputs: Mapping[str, Any], options: Mapping[str, Any], gradients: tuple[Tensor | None, ...]
) -> dict[str, Tensor | None]:
    outputs = pass_.as_tuple(pass_(**inputs, **options))
    pairs = [(y, d_y) for y, d_y in zip(outputs, gradients, strict=True) if y is not None and y.requires_grad]
    wanted = [name for name in pass_.differentiable if inputs[name] is not None and inputs[name].requires_grad]
    found = torch.autograd.grad(
        [y for y, _ in pairs],
        [inputs[name] for name in wanted],
        [gradient for _, gradient in pairs],
        create_graph=True,
        allow_unused=True,
    )
    return dict(zip(wanted, found, strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Passes as operators of torch, for compiled graphs
# --------------------------------------------------------------------------------------------------------------------

# Code that came with a checkpoint is another module, with operators of its own.
_NAMESPACE = re.sub(r"\W", "_", __name__.rpartition(".")[0])
_SCHEMA_TYPES = {float: "float", bool: "bool", str: "str", int: "int", torch.dtype: "ScalarType"}
_OPERATORS: dict[str, Any] = {}


def register_operators(pass_: Pass) -> None:
    """Registers a pass and its gradients, with their shapes and derivatives, as operators of torch.

    An operator has one layout of its results whatever computes them: see `Pass.empty_outputs`; a gradient lies in
    memory as its tensor does.
    """
    names = (*pass_.tensors, *pass_.options)
    of_tensors = [f"Tensor{'?' if name in pass_.optional else ''} {name}" for name in pass_.tensors]
    of_options = [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in pass_.options.items()]
    inputs_schema = ", ".join(of_tensors + of_options)
    d_outputs = [f"d_{name}" for name in pass_.outputs]

    def forward(*values: Any) -> Any:
        inputs = dict(zip(names, values, strict=True))
        backend = _choose_to_run(pass_, inputs)
        with torch.no_grad():
            results = pass_.as_tuple(pass_(**inputs)) if backend is None else _run_kernel(pass_, backend, inputs)
        expected = pass_.empty_outputs(inputs, device="meta")
        if not pass_.has_states(inputs):
            nothing = results[0].new_empty(0, dtype=torch.float32)
            results = tuple(nothing.clone() if x is None else x for x in results)
        return pass_.from_tuple(tuple(map(_laid_out, results, expected)))

    def backward(*values: Any) -> list[Tensor]:
        gradients, values = values[: len(d_outputs)], values[len(d_outputs) :]
        inputs = dict(zip(names, values, strict=True))
        tensors = {name: inputs[name] for name in pass_.tensors}
        options = {name: inputs[name] for name in pass_.options}
        if not pass_.has_states(inputs):
            gradients = pass_.without_states(gradients)
        backend = _choose_to_run(pass_, inputs)
        if backend is None:  # PyTorch does not differentiate inside of an operator: the gradients would be 0
            raise RuntimeError(
                f"a graph was compiled for a backend that computes {pass_.name}, and there is none now: compile it "
                "anew, after torch.compiler.reset()"
            )
        kernel = backend.kernels[pass_.name]
        assert isinstance(kernel, Kernel), f"{pass_.name} is not resolved"
        of_inputs = _kernel_gradients(pass_, kernel, tensors, options, gradients)
        found = []
        for name in pass_.differentiable:
            if (x := inputs[name]) is not None:
                gradient = of_inputs.get(name)
                expected = torch.empty_like(x, device="meta")
                found.append(_laid_out(torch.zeros_like(x) if gradient is None else gradient, expected))
        return found

    operator = torch.library.custom_op(
        f"{_NAMESPACE}::{pass_.name}",
        forward,
        mutates_args=(),
        schema=f"({inputs_schema}) -> ({', '.join(['Tensor'] * len(pass_.outputs))})",
    )
    backward_operator = torch.library.custom_op(
        f"{_NAMESPACE}::{pass_.name}_backward",
        backward,
        mutates_args=(),
        schema=f"({', '.join(f'Tensor {name}' for name in d_outputs)}, {inputs_schema}) -> Tensor[]",
    )

    @operator.register_fake
    def _(*values: Any) -> Any:
        return pass_.from_tuple(pass_.empty_outputs(dict(zip(names, values, strict=True))))

    @backward_operator.register_fake
    def _(*values: Any) -> list[Tensor]:
        inputs = dict(zip(names, values[len(d_outputs) :], strict=True))
        return [torch.empty_like(inputs[name]) for name in pass_.differentiable if inputs[name] is not None]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options = inputs[len(pass_.tensors) :]
        ctx.save_for_backward(*inputs[: len(pass_.tensors)])

    def differentiate(ctx: Any, *gradients: Tensor) -> Any:
        tensors = ctx.saved_tensors
        found = iter(backward_operator(*gradients, *tensors, *ctx.options))
        of_tensors = [
            next(found) if x is not None and name in pass_.differentiable else None
            for name, x in zip(pass_.tensors, tensors, strict=True)
        ]
        return *of_tensors, *[None] * len(pass_.options)

    operator.register_autograd(differentiate, setup_context=setup_context)
    _OPERATORS[pass_.name] = operator


def _choose_to_run(pass_: Pass, inputs: Mapping[str, Any]) -> Backend | None:
    backend = choose_backend([pass_], inputs, [inputs[name] for name in pass_.tensors if inputs[name] is not None])
    return backend if backend is not None and isinstance(backend.kernels[pass_.name], Kernel) else None


def _laid_out(x: Tensor, expected: Tensor) -> Tensor:
    """`x` in the strides of a tensor of its shape."""
    if x.stride() == expected.stride():
        return x
    return torch.empty_strided(x.shape, expected.stride(), dtype=x.dtype, device=x.device).copy_(x)


for _pass in PASSES.values():
    if any(isinstance(backend.kernels.get(_pass.name), Kernel) for backend in BACKENDS.values()):
        register_operators(_pass)
