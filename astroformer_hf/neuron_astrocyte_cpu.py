# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Neuron-astrocyte attention on the CPU: the operation's passes fused in C++, built by the machine's own compiler.

The plain form in `attention_operation.py` spends most of its time moving activities through memory. Here a block
of `BLOCK` tokens is taken through everything that happens to it while it lies in the nearest cache: its activity is
worked out, multiplied, and forgotten. Nothing of the size of the input is written but the result, forward and backward;
the backward pass works the activities out again. Eight functions, each the twin of a pass of the plain form, make up
the interface of a backend (see `attention_backends.py`):

    write_forward, write_backward      write mode: keys, values and the astrocyte code to the synapses
    read_forward, read_backward        read mode: queries to answers
    causal_forward, causal_backward    both at once, each token reading what was written up to itself
    documents_forward, documents_backward   write and read mode of one document of a row after the other

The source is compiled when it is first needed, which takes a few seconds, or ahead by `python -m astroformer_hf.build`,
and kept in `~/.cache/astroformer_hf` (or in `ASTROFORMER_CACHE`); `native_library.py` sees to that. It is portable C++
with the vector extensions of GCC and Clang, and does not depend on lengths or sizes: nothing is ever compiled twice.
Without a compiler `is_available` is False, and the plain form runs.

Letters in shape comments: B batch, H heads, N tokens, F features (phi of m hidden neurons), d head size.
"""

import ctypes
import functools
import logging
import math
from pathlib import Path

import torch

from .native_library import UnsupportedPlatform, build_library, load_library
from .neuron_astrocyte_cpu_source import generate_source


FEATURE_MAPS = ("elu", "relu", "exp", "identity")  # those that the source computes


# --------------------------------------------------------------------------------------------------------------------
# The library, and the arguments of its functions
# --------------------------------------------------------------------------------------------------------------------

# Multiplications below which a second thread costs more than it brings.
WORK_OF_ONE_THREAD = 2**19
FUNCTIONS = (
    *("write_forward", "write_backward", "read_forward", "read_backward"),
    *("causal_forward", "causal_backward", "documents_forward", "documents_backward"),
)

LIBRARY_NAME = "neuron_astrocyte"

logger = logging.getLogger(__name__)


class _View(ctypes.Structure):
    """`View` of the source: data and strides of a tensor `(B, H, N, .)`."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64)]


class _Mask(ctypes.Structure):
    """`Mask` of the source: data and strides of a padding mask `(B, N)`."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("row", ctypes.c_int64)]


class _Documents(ctypes.Structure):
    """`Documents` of the source: data and first stride of document numbers `(B, N)`."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64)]


_SIZES = (
    *("threads", "batch", "heads", "length", "features", "head_dim", "splits"),
    *("feature_map", "feedback", "causal"),
)
_FACTORS = ("alpha", "scale", "decay")
_VIEWS = ("query", "key", "value", "code", "output", "d_query", "d_key", "d_value", "d_code", "d_output")
_STATES = (
    *("hebbian", "calcium", "plasticity", "d_hebbian", "d_calcium", "d_plasticity"),
    *("end_hebbian", "end_calcium"),
    *("weight", "bias", "total", "count", "d_weight", "d_bias", "d_total", "end_total", "end_count"),
)


class _Arguments(ctypes.Structure):
    """What every function of the library takes. `Arguments` of the source is generated from these fields."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in _FACTORS),
        *((name, _View) for name in _VIEWS),
        ("mask", _Mask),
        ("documents", _Documents),
        *((name, ctypes.c_void_p) for name in _STATES),
    ]


# The constants are those of the plain form.
SOURCE = generate_source(arguments=_Arguments, feature_maps=FEATURE_MAPS, calcium_floor=1e-20, exp_ceiling=30.0)


def is_available() -> bool:
    """Whether the functions of this module can be called on this machine; the first call compiles them."""
    return obstacle() is None


def obstacle() -> str | None:
    """Why they cannot be called on this machine, or None if they can."""
    return _library_or_obstacle()[1]


def build(rebuild: bool = False) -> Path:
    """Builds the library ahead: see `native_library.build_library`."""
    return build_library(LIBRARY_NAME, SOURCE, rebuild)


@functools.cache
def _library_or_obstacle() -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled source and None, or None and why it is not to be had, which the log says once."""
    try:
        library = load_library(LIBRARY_NAME, SOURCE)
        _check_arguments(library)
    except (OSError, RuntimeError) as error:
        # where nobody could do anything about it, it is no warning
        level = logging.INFO if isinstance(error, UnsupportedPlatform) else logging.WARNING
        logger.log(
            level,
            "Neuron-astrocyte attention runs in its plain form on this CPU, which is slower: %s. "
            "ASTROFORMER_BACKEND=plain asks for no other.",
            error,
        )
        return None, str(error)
    for name in FUNCTIONS:
        getattr(library, name).argtypes = [ctypes.POINTER(_Arguments)]
        getattr(library, name).restype = ctypes.c_int
    return library, None


def _check_arguments(library: ctypes.CDLL) -> None:
    """Raises a RuntimeError if the functions of the library take other arguments than this module passes."""
    size_of_arguments = library.size_of_arguments
    size_of_arguments.argtypes = []
    size_of_arguments.restype = ctypes.c_int64
    size, expected = size_of_arguments(), ctypes.sizeof(_Arguments)
    if size != expected:
        raise RuntimeError(
            f"the C++ library takes a structure of {size} bytes as arguments where this version of astroformer_hf "
            f"passes one of {expected} bytes"
        )


def _library() -> ctypes.CDLL | None:
    return _library_or_obstacle()[0]


# --------------------------------------------------------------------------------------------------------------------
# The functions of a backend. Those "with activity" make the astrocyte code "activity" as they go and never store it.
# --------------------------------------------------------------------------------------------------------------------


def write_forward(key, value, astrocyte_code, padding_mask, *, feature_map):
    """`(hebbian, calcium)`, `(B, H, F, d)` and `(B, H, F)`: the sums of (phi(k) + phi(r)) v^T and of phi(k)."""
    return _write(_Call(feature_map, padding_mask, key=key, value=value, code=astrocyte_code))


def write_with_activity_forward(key, value, padding_mask, order, rank, weight, bias, *, feature_map, coupling_scale):
    """The same with R = r' K W + b."""
    call = _Call(feature_map, padding_mask, key=key, value=value)
    return _write(call, weight=weight, bias=bias, decay=math.exp(-coupling_scale))


def _write(call, **states):
    splits = 1 if states else call.split()  # the neighbourhoods of a sequence are made from its one end to the other
    hebbian, calcium = call.new(splits, *call.state_shape), call.new(splits, *call.state_shape[:3])
    call.run("write_forward", hebbian=hebbian, calcium=calcium, **states)
    return _total(hebbian), _total(calcium)


def write_backward(key, value, astrocyte_code, padding_mask, *, feature_map, d_hebbian, d_calcium):
    """Gradients of key, value and astrocyte code from those of `write_forward`'s results."""
    call = _Call(feature_map, padding_mask, key=key, value=value, code=astrocyte_code)
    call.split(1 if astrocyte_code is None or astrocyte_code.dim() == 4 else key.shape[0])
    gradients = call.gradients("key", "value", "code")
    call.run("write_backward", d_hebbian=d_hebbian, d_calcium=d_calcium)
    return _like(gradients, (key, value, astrocyte_code))


def write_with_activity_backward(
    key, value, padding_mask, order, rank, weight, bias, *, feature_map, coupling_scale, d_hebbian, d_calcium
):
    """Gradients of all tensors of `write_with_activity_forward` but the padding mask, in their order."""
    call = _Call(feature_map, padding_mask, key=key, value=value)
    gradients = call.gradients("key", "value")
    d_weight, d_bias = (call.new(len(key), *x.shape) for x in (weight, bias))
    states = {
        "weight": weight,
        "bias": bias,
        "d_weight": d_weight,
        "d_bias": d_bias,
        "decay": math.exp(-coupling_scale),
    }
    call.run("write_backward", d_hebbian=d_hebbian, d_calcium=d_calcium, **states)
    d_key, d_value = _like(gradients[:2], (key, value))
    return d_key, d_value, None, None, *_like((d_weight.sum(0), d_bias.sum(0)), (weight, bias))


def read_forward(query, hebbian, plasticity, *, feature_map, output_dtype):
    """`(B, H, N, d)`: phi(Q) H, divided by C = phi(Q) g unless there is no plasticity g."""
    call = _Call(feature_map, None, hebbian, query=query)
    call.split()
    output = call.output(query, hebbian.shape[-1])
    call.run("read_forward", hebbian=hebbian, plasticity=plasticity)
    return output.to(output_dtype)


def read_backward(query, hebbian, plasticity, *, feature_map, d_output):
    """Gradients of query, hebbian and plasticity from that of `read_forward`'s result."""
    call = _Call(feature_map, None, hebbian, query=query, d_output=d_output)
    splits = call.split()
    d_hebbian = call.new(splits, *hebbian.shape)
    d_plasticity = None if plasticity is None else call.new(splits, *plasticity.shape)
    gradients = call.gradients("query")
    call.run("read_backward", hebbian=hebbian, plasticity=plasticity, d_hebbian=d_hebbian, d_plasticity=d_plasticity)
    return *_like(gradients, (query,)), _total(d_hebbian), None if plasticity is None else _total(d_plasticity)


def causal_forward(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    document_ids,
    hebbian,
    calcium,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    output_dtype,
):
    """`(output, hebbian, calcium)`: each token's scale P phi(q) H, with what was written up to it; the last state."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code)
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    return _write_and_read(call, output_dtype, hebbian=hebbian, calcium=calcium)


def causal_with_activity_forward(
    query,
    key,
    value,
    padding_mask,
    document_ids,
    hebbian,
    calcium,
    order,
    rank,
    weight,
    bias,
    total,
    count,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    output_dtype,
    coupling_scale,
):
    """The same with R = r' K W + b, whose sums of the tokens before, total and count, come last in the results too."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value)
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    states = {"weight": weight, "bias": bias, "total": total, "count": count, "decay": math.exp(-coupling_scale)}
    return _write_and_read(call, output_dtype, hebbian=hebbian, calcium=calcium, **states)


def _write_and_read(call, output_dtype, **states):
    output = call.output(call.tensors["value"], call.state_shape[-1])
    ends = {f"end_{name}": call.new(*x.shape) for name, x in states.items() if name not in ("weight", "bias", "decay")}
    call.run("causal_forward", causal=True, **states, **ends)
    return output.to(output_dtype), *ends.values()


def causal_backward(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    document_ids,
    hebbian,
    calcium,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    d_output,
    d_hebbian,
    d_calcium,
):
    """Gradients of query, key, value, astrocyte code and initial state from those of `causal_forward`'s results."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code, d_output=d_output)
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value")
    d_code = call.gradient_of_code(astrocyte_code)
    d_hebbian, d_calcium = _copies(d_hebbian, d_calcium)
    call.run("causal_backward", hebbian=hebbian, calcium=calcium, d_hebbian=d_hebbian, d_calcium=d_calcium)
    if astrocyte_code is not None and astrocyte_code.dim() == 3:
        d_code = d_code.sum(0)
    return *_like((*gradients, d_code), (query, key, value, astrocyte_code)), d_hebbian, d_calcium


def causal_with_activity_backward(
    query,
    key,
    value,
    padding_mask,
    document_ids,
    hebbian,
    calcium,
    order,
    rank,
    weight,
    bias,
    total,
    count,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    coupling_scale,
    d_output,
    d_hebbian,
    d_calcium,
    d_total,
    d_count,
):
    """Gradients of all tensors of `causal_with_activity_forward` but the padding mask, in their order."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, d_output=d_output)
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value")
    d_weight, d_bias = (call.new(len(key), *x.shape) for x in (weight, bias))
    d_hebbian, d_calcium, d_total = _copies(d_hebbian, d_calcium, d_total)
    call.run(
        "causal_backward",
        causal=True,
        **{"hebbian": hebbian, "calcium": calcium, "d_hebbian": d_hebbian, "d_calcium": d_calcium},
        **{"weight": weight, "bias": bias, "d_weight": d_weight, "d_bias": d_bias},
        **{"total": total, "count": count, "d_total": d_total, "decay": math.exp(-coupling_scale)},
    )
    of_parameters = _like((d_weight.sum(0), d_bias.sum(0)), (weight, bias))
    of_inputs = _like(gradients, (query, key, value))
    return *of_inputs, d_hebbian, d_calcium, None, None, *of_parameters, d_total, None


def documents_forward(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    document_ids,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    output_dtype,
):
    """`(B, H, N, d)`: each token's scale P phi(q) H, with what is written in its own document."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code)
    return _documents_forward(call, document_ids, alpha, feedback, scale, output_dtype)


def documents_with_activity_forward(
    query,
    key,
    value,
    padding_mask,
    document_ids,
    order,
    rank,
    weight,
    bias,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    output_dtype,
    coupling_scale,
):
    """The same with R = r' K W + b."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value)
    recipe = {"weight": weight, "bias": bias, "decay": math.exp(-coupling_scale)}
    return _documents_forward(call, document_ids, alpha, feedback, scale, output_dtype, **recipe)


def _documents_forward(call, document_ids, alpha, feedback, scale, output_dtype, **recipe):
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    output = call.output(call.tensors["value"], call.state_shape[-1])
    call.run("documents_forward", **recipe)
    return output.to(output_dtype)


def documents_backward(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    document_ids,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    d_output,
):
    """Gradients of query, key, value and astrocyte code from that of `documents_forward`'s result."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, code=astrocyte_code, d_output=d_output)
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value")
    d_code = call.gradient_of_code(astrocyte_code)
    call.run("documents_backward")
    if astrocyte_code is not None and astrocyte_code.dim() == 3:
        d_code = d_code.sum(0)
    return _like((*gradients, d_code), (query, key, value, astrocyte_code))


def documents_with_activity_backward(
    query,
    key,
    value,
    padding_mask,
    document_ids,
    order,
    rank,
    weight,
    bias,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    coupling_scale,
    d_output,
):
    """Gradients of all tensors of `documents_with_activity_forward` but mask and documents, in their order."""
    call = _Call(feature_map, padding_mask, query=query, key=key, value=value, d_output=d_output)
    call.read(document_ids, alpha=alpha, scale=scale, feedback=feedback)
    gradients = call.gradients("query", "key", "value")
    d_weight, d_bias = (call.new(len(key), *x.shape) for x in (weight, bias))
    recipe = {"weight": weight, "bias": bias, "decay": math.exp(-coupling_scale)}
    call.run("documents_backward", **recipe, d_weight=d_weight, d_bias=d_bias)
    of_parameters = _like((d_weight.sum(0), d_bias.sum(0)), (weight, bias))
    return *_like(gradients, (query, key, value)), None, None, *of_parameters


class _Call:
    """The arguments of one call, filled in from tensors of any strides and of any floating-point dtype.

    Args:
        feature_map (`str`): phi.
        padding_mask (`torch.Tensor`, *optional*): `(B, N)`.
        hebbian (`torch.Tensor`, *optional*): `(B, H, F, d)`, where there is no value to take d from.
        tensors: `(B, H, N, .)` each, the code perhaps without its batch; by the names of the source.
    """

    def __init__(self, feature_map, padding_mask, hebbian=None, **tensors):
        self.tensors = {name: _rows(x) for name, x in tensors.items() if x is not None}
        self.features = self.tensors["key" if "key" in tensors else "query"]
        self.batch_size, self.num_heads, self.length, self.num_features = self.features.shape
        head_dim = self.num_features
        if hebbian is not None or "value" in tensors:
            head_dim = (hebbian if hebbian is not None else tensors["value"]).shape[-1]
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

    def set(self, **numbers):
        for name, number in numbers.items():
            setattr(self.arguments, name, number)

    def read(self, document_ids, **numbers):
        """Says how the synapses are read, and where in a row they start anew."""
        self.set(**numbers)
        if document_ids is not None:
            self.document_ids = document_ids.long().contiguous()  # kept as long as the call
            self.arguments.documents = _Documents(self.document_ids.data_ptr(), self.document_ids.stride(0))

    def set_views(self, **tensors):
        for name, x in tensors.items():
            strides = x.stride()[:-1]
            setattr(self.arguments, name, _View(x.data_ptr(), *(strides if len(strides) == 3 else (0, *strides))))

    def new(self, *shape):
        """Uninitialised memory for a result."""
        return self.features.new_empty(shape, dtype=torch.float32)

    def split(self, batches_per_task=1):
        """Cuts the sequence, so that every thread has something to do: the number of parts."""
        tasks = self.batch_size * self.num_heads // batches_per_task
        parts = min(-(-4 * self.arguments.threads // tasks), -(-self.length // 128)) if tasks else 1
        self.arguments.splits = max(parts, 1) if self.arguments.threads > 1 else 1
        return self.arguments.splits

    def output(self, like, head_dim):
        """An uninitialised `(B, H, N, d)`, laid out as `like`, so that what follows in a model finds its strides."""
        if like.stride(1) < like.stride(2):  # made of (B, N, H, .)
            output = like.new_empty(self.batch_size, self.length, self.num_heads, head_dim, dtype=torch.float32)
            output = output.transpose(1, 2)
        else:
            output = like.new_empty(self.batch_size, self.num_heads, self.length, head_dim, dtype=torch.float32)
        self.set_views(output=output)
        return output

    def gradients(self, *names):
        """Uninitialised gradients of those tensors that there are, None for the others."""
        gradients = {name: torch.empty_like(self.tensors[name]) for name in names if name in self.tensors}
        self.set_views(**{f"d_{name}": x for name, x in gradients.items()})
        return tuple(gradients.get(name) for name in names)

    def gradient_of_code(self, astrocyte_code):
        """The same of the code, with a batch of its own where the batch shares it: heads run side by side."""
        if astrocyte_code is None:
            return None
        d_code = torch.empty_like(self.tensors["key"])
        self.set_views(d_code=d_code)
        return d_code

    def run(self, function, causal=False, decay=0.0, **states):
        """Calls a function of the source. `states` are made float32 and contiguous; results are so already."""
        states = {name: x.float().contiguous() for name, x in states.items() if x is not None}
        self.set(causal=causal, decay=decay, **{name: x.data_ptr() for name, x in states.items()})
        if "plasticity" in states:
            self.arguments.feedback = 1
        if getattr(_library(), function)(self.arguments):
            raise MemoryError(
                f"the machine has too little memory for neuron-astrocyte attention ({function} on "
                f"{self.batch_size} sequences of {self.length} tokens in {self.arguments.threads} threads)"
            )


def _copies(*tensors):
    """Of gradients that a function of the source overwrites."""
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in tensors)


def _rows(x):
    """`x` in float32 and contiguous in its last dimension."""
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _total(parts):
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _like(gradients, tensors):
    """The gradients in the dtypes of their tensors."""
    return tuple(None if x is None else gradient.to(x.dtype) for gradient, x in zip(gradients, tensors, strict=True))


# Each pass forward and backward, under the name of its plain form.
KERNELS = {
    "write_mode": (write_forward, write_backward),
    "read_mode": (read_forward, read_backward),
    "write_and_read_causally": (causal_forward, causal_backward),
    "write_and_read_documents": (documents_forward, documents_backward),
    "write_and_read_documents_with_activity": (documents_with_activity_forward, documents_with_activity_backward),
    "write_mode_with_activity": (write_with_activity_forward, write_with_activity_backward),
    "write_and_read_causally_with_activity": (causal_with_activity_forward, causal_with_activity_backward),
}
