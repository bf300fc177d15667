# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Neuron-astrocyte attention on the CPU: the operation's passes fused in C++, built by the machine's own compiler.

The plain form in `attention_operation.py` spends most of its time moving activities through memory. Here a block
of `BLOCK` tokens is taken through everything that happens to it while it lies in the nearest cache: its activity is
worked out, multiplied, and forgotten. Nothing of the size of the input is written but the result, forward and backward;
the backward pass works the activities out again. (Where synapses leak or alpha acts at them, a thread keeps a few rows
per token of the head that it is at.) Twelve functions, each the twin of a pass of the plain form, make up the interface
of a backend (see `attention_backends.py`):

    write_forward, write_backward      write mode: keys, values and the astrocyte code to the synapses
    read_forward, read_backward        read mode: queries to answers
    causal_forward, causal_backward    both at once, each token reading what was written up to itself
    documents_forward, documents_backward   write and read mode of one document of a row after the other
    both_ways_forward, both_ways_backward   synapses that leak, read in both directions
    distances_forward, distances_backward   synapses that leak, of tokens that do not lie on a line

The source is compiled when it is first needed, which takes a few seconds, or ahead by `python -m astroformer_hf.build`,
and kept in `~/.cache/astroformer_hf` (or in `ASTROFORMER_CACHE`); `native_library.py` sees to that. It is portable C++
with the vector extensions of GCC and Clang, and does not depend on lengths or sizes: nothing is ever compiled twice.
Without a compiler the plain form runs.

Letters in shape comments: B batch, H heads, N tokens, F features (phi of m hidden neurons), d head size.
"""

import ctypes
import math
from collections.abc import Mapping

import torch

from .attention_contract import Backend, Kernel
from .attention_passes import CALCIUM_FLOOR
from .cpu_source import WORK_OF_ONE_THREAD, View, rows_of
from .feature_maps import EXP_CEILING
from .hybrid_attention_cpu import KERNELS as HYBRID_KERNELS
from .native_library import NativeLibrary
from .neuron_astrocyte_cpu_source import generate_source


FEATURE_MAPS = ("elu", "relu", "exp", "identity")  # those that the source computes: `in_kernels`


# --------------------------------------------------------------------------------------------------------------------
# The library, and the arguments of its functions
# --------------------------------------------------------------------------------------------------------------------

FUNCTIONS = (
    *("write_forward", "write_backward", "read_forward", "read_backward"),
    *("causal_forward", "causal_backward", "documents_forward", "documents_backward"),
    *("both_ways_forward", "both_ways_backward", "distances_forward", "distances_backward"),
)


class _Mask(ctypes.Structure):
    """`Mask` of the source: data and strides of a padding mask `(B, N)`."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("row", ctypes.c_int64)]


class _Documents(ctypes.Structure):
    """`Documents` of the source: data and first stride of document numbers `(B, N)`."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64)]


_SIZES = (
    *("threads", "batch", "heads", "length", "features", "head_dim", "splits"),
    *("feature_map", "feedback", "causal", "at_synapse", "all_sources"),
)
_FACTORS = ("alpha", "scale", "decay")
_VIEWS = ("query", "key", "value", "code", "output", "d_query", "d_key", "d_value", "d_code", "d_output")
_STATES = (
    *("hebbian", "calcium", "plasticity", "d_hebbian", "d_calcium", "d_plasticity"),
    *("end_hebbian", "end_calcium"),
    *("log_decay", "d_log_decay", "later_hebbian", "later_calcium", "d_later_hebbian", "d_later_calcium"),
    *("end_later_hebbian", "end_later_calcium"),
    *("d_end_hebbian", "d_end_calcium", "d_end_later_hebbian", "d_end_later_calcium"),
    *("proximity", "d_proximity"),
    *("weight", "bias", "total", "count", "d_weight", "d_bias", "d_total", "end_total", "end_count"),
)


class _Arguments(ctypes.Structure):
    """What every function of the library takes. `Arguments` of the source is generated from these fields."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in _FACTORS),
        *((name, View) for name in _VIEWS),
        ("mask", _Mask),
        ("documents", _Documents),
        *((name, ctypes.c_void_p) for name in _STATES),
    ]


# The constants are those of the plain form.
LIBRARY = NativeLibrary(
    "neuron_astrocyte",
    generate_source(
        arguments=_Arguments, feature_maps=FEATURE_MAPS, calcium_floor=CALCIUM_FLOOR, exp_ceiling=EXP_CEILING
    ),
    FUNCTIONS,
    _Arguments,
    "neuron-astrocyte attention",
)


# --------------------------------------------------------------------------------------------------------------------
# The kernels. A pass "with activity" has W, b and the coupling's scale instead of a code, which is made on the way.
# --------------------------------------------------------------------------------------------------------------------


def write_forward(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    feature_map: str,
    calcium_sources: str,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(hebbian, calcium)`, `(B, H, F, d)` and `(B, H, F)`: the sums of (phi(k) + phi(r)) v^T and of the sources."""
    call = _Call(feature_map, padding_mask, key=key, value=value, code=astrocyte_code)
    call.set(all_sources=calcium_sources == "all")
    # the neighbourhoods of a sequence are made from its one end to the other
    splits = call.split() if weight is None else 1
    hebbian, calcium = call.new(splits, *call.state_shape), call.new(splits, *call.state_shape[:3])
    states = {"hebbian": hebbian, "calcium": calcium, "weight": weight, "bias": bias}
    call.run("write_forward", states, coupling_scale)
    return _total(hebbian), _total(calcium)


def write_backward(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    feature_map: str,
    calcium_sources: str,
    d_hebbian: torch.Tensor,
    d_calcium: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients from those of `write_forward`'s results."""
    call = _Call(feature_map, padding_mask, key=key, value=value, code=astrocyte_code)
    call.set(all_sources=calcium_sources == "all")
    if weight is None:
        call.split(1 if astrocyte_code is None or astrocyte_code.dim() == 4 else call.batch_size)
    gradients = call.gradients("key", "value", "code", weight=weight, bias=bias)
    states = {"weight": weight, "bias": bias, "d_hebbian": d_hebbian, "d_calcium": d_calcium}
    call.run("write_backward", {**states, **gradients.of_parameters}, coupling_scale)
    return gradients.found(key=key, value=value, astrocyte_code=astrocyte_code, weight=weight, bias=bias)


def read_forward(
    *,
    query: torch.Tensor,
    hebbian: torch.Tensor,
    plasticity: torch.Tensor | None,
    feature_map: str,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor]:
    """`(output,)`, `(B, H, N, d)`: phi(Q) H, divided by C = phi(Q) g unless there is no plasticity g."""
    call = _Call(feature_map, None, hebbian, query=query)
    call.split()
    output = call.output(query, hebbian.shape[-1])
    call.run("read_forward", {"hebbian": hebbian, "plasticity": plasticity})
    return (output.to(output_dtype),)


def read_backward(
    *,
    query: torch.Tensor,
    hebbian: torch.Tensor,
    plasticity: torch.Tensor | None,
    feature_map: str,
    d_output: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Gradients from that of `read_forward`'s result."""
    call = _Call(feature_map, None, hebbian, query=query, d_output=d_output)
    splits = call.split()
    of_states = {"d_hebbian": call.new(splits, *hebbian.shape)}
    if plasticity is not None:
        of_states["d_plasticity"] = call.new(splits, *plasticity.shape)
    gradients = call.gradients("query")
    call.run("read_backward", {"hebbian": hebbian, "plasticity": plasticity, **of_states})
    return {
        **gradients.found(query=query),
        **{name.removeprefix("d_"): _total(gradient) for name, gradient in of_states.items()},
    }


def causal_forward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    hebbian: torch.Tensor | None,
    calcium: torch.Tensor | None,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """`(output, hebbian, calcium)`: each token's scale P phi(q) H, with what was written up to it; the last state, None
    without a first one. With "activity" also the code's own state, `(total, count)`."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code)
    call.read(document_ids, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    states = {"hebbian": hebbian, "calcium": calcium, "total": total, "count": count}
    output = call.output(call.tensors["value"], call.state_shape[-1])
    ends = call.ends(states)
    states.update(log_decay=log_decay, weight=weight, bias=bias)
    call.run("causal_forward", {**states, **ends}, coupling_scale, causal=True)
    return output.to(output_dtype), *list(ends.values())[: 2 if weight is None else 4]


def causal_backward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    hebbian: torch.Tensor | None,
    calcium: torch.Tensor | None,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
    d_hebbian: torch.Tensor | None,
    d_calcium: torch.Tensor | None,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
    coupling_scale: float | None = None,
    d_total: torch.Tensor | None = None,
    d_count: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients from those of `causal_forward`'s results."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code, d_output=d_output)
    call.read(document_ids, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value", weight=weight, bias=bias)
    call.gradient_of_code(gradients, astrocyte_code)
    # overwritten: the gradients of the last state become those of the first
    d_states = {"d_hebbian": d_hebbian, "d_calcium": d_calcium, "d_total": d_total if weight is not None else None}
    of_states = {name: x.clone(memory_format=torch.contiguous_format) for name, x in d_states.items() if x is not None}
    if log_decay is not None:
        of_states["d_log_decay"] = call.new(*log_decay.shape)
    states = {"hebbian": hebbian, "calcium": calcium, "weight": weight, "bias": bias, "total": total, "count": count}
    states["log_decay"] = log_decay
    call.run("causal_backward", {**states, **of_states, **gradients.of_parameters}, coupling_scale, causal=True)
    inputs = {"query": query, "key": key, "value": value, "astrocyte_code": astrocyte_code}
    return {
        **gradients.found(**inputs, weight=weight, bias=bias),
        **{name.removeprefix("d_"): gradient for name, gradient in of_states.items()},
    }


def documents_forward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> tuple[torch.Tensor]:
    """`(output,)`, `(B, H, N, d)`: each token's scale P phi(q) H, with what is written in its own document."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code)
    call.read(document_ids, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    output = call.output(call.tensors["value"], call.state_shape[-1])
    call.run("documents_forward", {"weight": weight, "bias": bias}, coupling_scale)
    return (output.to(output_dtype),)


def documents_backward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients from that of `documents_forward`'s result."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code, d_output=d_output)
    call.read(document_ids, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value", weight=weight, bias=bias)
    call.gradient_of_code(gradients, astrocyte_code)
    call.run("documents_backward", {"weight": weight, "bias": bias, **gradients.of_parameters}, coupling_scale)
    inputs = {"query": query, "key": key, "value": value, "astrocyte_code": astrocyte_code}
    return gradients.found(**inputs, weight=weight, bias=bias)


def both_ways_forward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    log_decay: torch.Tensor,
    hebbian: torch.Tensor | None,
    calcium: torch.Tensor | None,
    later_hebbian: torch.Tensor | None,
    later_calcium: torch.Tensor | None,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """`(output, hebbian, calcium, later_hebbian, later_calcium)`: each token's scale u H, with what is left of all that
    is written on either side of it; the states after the last token and before the first, None without any to go on
    from."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code)
    call.read(document_ids, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    states = {"hebbian": hebbian, "calcium": calcium, "later_hebbian": later_hebbian, "later_calcium": later_calcium}
    output = call.output(call.tensors["value"], call.state_shape[-1])
    ends = call.ends(states)
    states.update(log_decay=log_decay)
    call.run("both_ways_forward", {"weight": weight, "bias": bias, **states, **ends}, coupling_scale)
    return output.to(output_dtype), *ends.values()


def both_ways_backward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    log_decay: torch.Tensor,
    hebbian: torch.Tensor | None,
    calcium: torch.Tensor | None,
    later_hebbian: torch.Tensor | None,
    later_calcium: torch.Tensor | None,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
    d_hebbian: torch.Tensor | None,
    d_calcium: torch.Tensor | None,
    d_later_hebbian: torch.Tensor | None,
    d_later_calcium: torch.Tensor | None,
    astrocyte_code: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    coupling_scale: float | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients from those of `both_ways_forward`'s results."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code, d_output=d_output)
    call.read(document_ids, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value", weight=weight, bias=bias)
    call.gradient_of_code(gradients, astrocyte_code)
    states = {"hebbian": hebbian, "calcium": calcium, "later_hebbian": later_hebbian, "later_calcium": later_calcium}
    states["log_decay"] = log_decay
    of_states = {f"d_{name}": call.new(*x.shape) for name, x in states.items() if x is not None}
    of_ends = {"d_end_hebbian": d_hebbian, "d_end_calcium": d_calcium}
    of_ends.update(d_end_later_hebbian=d_later_hebbian, d_end_later_calcium=d_later_calcium)
    of_parameters = {"weight": weight, "bias": bias, **gradients.of_parameters}
    call.run("both_ways_backward", {**states, **of_states, **of_ends, **of_parameters}, coupling_scale)
    inputs = {"query": query, "key": key, "value": value, "astrocyte_code": astrocyte_code}
    return {
        **gradients.found(**inputs, weight=weight, bias=bias),
        **{name.removeprefix("d_"): gradient for name, gradient in of_states.items()},
    }


def distances_forward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    proximity: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor]:
    """`(output,)`, `(B, H, N, d)`: each token's scale u H, with the share `proximity` of what each token writes."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code)
    call.read(None, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    output = call.output(call.tensors["value"], call.state_shape[-1])
    call.run("distances_forward", {"proximity": proximity})
    return (output.to(output_dtype),)


def distances_backward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    proximity: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Gradients from that of `distances_forward`'s result."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code, d_output=d_output)
    call.read(None, presynaptic_target, calcium_sources, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value")
    call.gradient_of_code(gradients, astrocyte_code)
    d_proximity = call.new(call.split_batch(), *proximity.shape).zero_()
    call.run("distances_backward", {"proximity": proximity, "d_proximity": d_proximity})
    found = gradients.found(query=query, key=key, value=value, astrocyte_code=astrocyte_code)
    return {**found, "proximity": _total(d_proximity).to(proximity.dtype)}


class _Gradients:
    """Gradients that a function of the source writes, `(B, H, N, .)` of tensors and `(B, H, .)` of parameters.

    Attributes:
        tensors: those of tensors, by name; that of the code as "code".
        of_parameters: those of W and b, as "d_weight" and "d_bias", one for each sequence of the batch.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], of_parameters: dict[str, torch.Tensor]) -> None:
        self.tensors, self.of_parameters = tensors, of_parameters

    def found(self, **inputs: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The gradients of those inputs that there are, by name, in their dtypes and shapes."""
        gradients = {
            **self.tensors,
            **{name.removeprefix("d_"): x.sum(0) for name, x in self.of_parameters.items()},
        }
        if "code" in gradients:
            gradients["astrocyte_code"] = code = gradients.pop("code")
            given = inputs["astrocyte_code"]
            if given is not None and code.dim() > given.dim():
                gradients["astrocyte_code"] = code.sum(0)
        return {name: gradients[name].to(x.dtype) for name, x in inputs.items() if x is not None}


class _Call:
    """The arguments of one call, filled in from tensors of any strides and of any floating-point dtype.

    Args:
        feature_map (`str`): phi.
        padding_mask (`torch.Tensor`, *optional*): `(B, N)`.
        hebbian (`torch.Tensor`, *optional*): `(B, H, F, d)`, where there is no value to take d from.
        tensors: `(B, H, N, .)` each, the code perhaps without its batch; by the names of the source.
    """

    def __init__(
        self,
        feature_map: str,
        padding_mask: torch.Tensor | None,
        hebbian: torch.Tensor | None = None,
        **tensors: torch.Tensor | None,
    ) -> None:
        self.tensors = {name: rows_of(x) for name, x in tensors.items() if x is not None}
        self.features = self.tensors["key" if "key" in tensors else "query"]
        self.batch_size, self.num_heads, self.length, self.num_features = self.features.shape
        head_dim = self.num_features
        if hebbian is not None or "value" in tensors:
            head_dim = (hebbian if hebbian is not None else self.tensors["value"]).shape[-1]
        self.state_shape = (self.batch_size, self.num_heads, self.num_features, head_dim)
        work = self.batch_size * self.num_heads * self.length * self.num_features * head_dim
        self.arguments = _Arguments(
            threads=torch.get_num_threads() if work > WORK_OF_ONE_THREAD else 1,
            batch=self.batch_size,
            heads=self.num_heads,
            length=self.length,
            features=self.num_features,
            head_dim=head_dim,
            splits=1,
            feature_map=FEATURE_MAPS.index(feature_map),
        )
        self.set_views(**self.tensors)
        if padding_mask is not None:
            self.arguments.mask = _Mask(padding_mask.data_ptr(), *padding_mask.stride())

    def set(self, **numbers: float) -> None:
        for name, number in numbers.items():
            setattr(self.arguments, name, number)

    def read(
        self, document_ids: torch.Tensor | None, presynaptic_target: str, calcium_sources: str, **numbers: float
    ) -> None:
        """Says how the synapses are read, and where in a row they start anew."""
        self.set(**numbers, at_synapse=presynaptic_target == "synapse", all_sources=calcium_sources == "all")
        if document_ids is not None:
            self.document_ids = document_ids.long().contiguous()  # kept as long as the call
            self.arguments.documents = _Documents(self.document_ids.data_ptr(), self.document_ids.stride(0))

    def set_views(self, **tensors: torch.Tensor) -> None:
        for name, x in tensors.items():
            setattr(self.arguments, name, View.of(x))

    def new(self, *shape: int) -> torch.Tensor:
        """Uninitialised memory for a result."""
        return self.features.new_empty(shape, dtype=torch.float32)

    def ends(self, states: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
        """Uninitialised memory for what becomes of the states that there are."""
        return {f"end_{name}": None if x is None else self.new(*x.shape) for name, x in states.items()}

    def split(self, batches_per_task: int = 1) -> int:
        """Cuts the sequence, so that every thread has something to do: the number of parts."""
        tasks = self.batch_size * self.num_heads // batches_per_task
        parts = min(-(-4 * self.arguments.threads // tasks), -(-self.length // 128)) if tasks else 1
        self.arguments.splits = max(parts, 1) if self.arguments.threads > 1 else 1
        return self.arguments.splits

    def split_batch(self) -> int:
        """Cuts the batch, so that every thread has something to do: the number of parts."""
        threads = self.arguments.threads
        parts = min(-(-4 * threads // max(self.num_heads, 1)), self.batch_size) if threads > 1 else 1
        self.arguments.splits = max(parts, 1)
        return self.arguments.splits

    def output(self, like: torch.Tensor, head_dim: int) -> torch.Tensor:
        """An uninitialised `(B, H, N, d)`, laid out as `like`, so that what follows in a model finds its strides."""
        if like.stride(1) < like.stride(2):  # made of (B, N, H, .)
            output = like.new_empty(self.batch_size, self.length, self.num_heads, head_dim, dtype=torch.float32)
            output = output.transpose(1, 2)
        else:
            output = like.new_empty(self.batch_size, self.num_heads, self.length, head_dim, dtype=torch.float32)
        self.set_views(output=output)
        return output

    def gradients(self, *names: str, **parameters: torch.Tensor | None) -> _Gradients:
        """Uninitialised `_Gradients` of those tensors and parameters that there are."""
        tensors = {name: torch.empty_like(self.tensors[name]) for name in names if name in self.tensors}
        self.set_views(**{f"d_{name}": x for name, x in tensors.items()})
        given = {name: x for name, x in parameters.items() if x is not None}
        return _Gradients(tensors, {f"d_{name}": self.new(self.batch_size, *x.shape) for name, x in given.items()})

    def gradient_of_code(self, gradients: _Gradients, astrocyte_code: torch.Tensor | None) -> None:
        """Adds that of the code, with a batch of its own where the batch shares it: heads run side by side."""
        if astrocyte_code is not None:
            gradients.tensors["code"] = torch.empty_like(self.tensors["key"])
            self.set_views(d_code=gradients.tensors["code"])

    def run(
        self,
        function: str,
        states: Mapping[str, torch.Tensor | None],
        coupling_scale: float | None = None,
        causal: bool = False,
    ) -> None:
        """Calls a function of the source. `states` are made float32 and contiguous; results are so already."""
        decay = 0.0 if coupling_scale is None else math.exp(-coupling_scale)
        given = {name: x.float().contiguous() for name, x in states.items() if x is not None}
        self.set(causal=causal, decay=decay, **{name: x.data_ptr() for name, x in given.items()})
        if "plasticity" in given:
            self.arguments.feedback = 1
        amount = f"{self.batch_size} sequences of {self.length} tokens in {self.arguments.threads} threads"
        LIBRARY.call(function, self.arguments, amount)


def _total(parts: torch.Tensor) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


_WRITE = Kernel(write_forward, write_backward)
_CAUSAL = Kernel(causal_forward, causal_backward, needs_states=False)
_DOCUMENTS = Kernel(documents_forward, documents_backward)
_BOTH_WAYS = Kernel(both_ways_forward, both_ways_backward, needs_states=False)

BACKEND = Backend(
    name="cpp",
    device_type="cpu",
    unavailable=LIBRARY.unavailable,
    kernels={
        "write_mode": _WRITE,
        "write_mode_with_activity": _WRITE,
        "read_mode": Kernel(read_forward, read_backward),
        "write_and_read_at_distances": Kernel(distances_forward, distances_backward),
        "write_and_read_causally": _CAUSAL,
        "write_and_read_causally_with_activity": _CAUSAL,
        "write_and_read_documents": _DOCUMENTS,
        "write_and_read_documents_with_activity": _DOCUMENTS,
        "write_and_read_both_ways": _BOTH_WAYS,
        "write_and_read_both_ways_with_activity": _BOTH_WAYS,
        **HYBRID_KERNELS,
    },
)
