# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Attention of which a part is exact, on the CPU: the passes of `hybrid_attention.py` fused in C++.

The plain form makes the map of all features, the windows of all blocks and their weights one after the other, each a
tensor in memory. Here a block of queries is taken through all of it while it lies in the cache: the features of its
keys, the scores of its window, what it reads of the synapses before it, and what it writes to them. Key heads, whose
features and synapses the heads of queries share, are computed side by side by threads. The backward pass keeps no more
than the inputs and computes everything again; a thread keeps the synapses as each block finds them, of the one head
that it is at.

The source, in float32 and float64, is a library of its own, which is compiled when it is first needed, as that of
`neuron_astrocyte_cpu.py` is. Without a compiler the plain form runs.

Letters in shape comments: B batch, H heads, K key heads, N tokens, d head size, F features.
"""

import ctypes
from typing import Any

import torch

from .attention_contract import Kernel, KernelLibrary
from .attention_passes import WEIGHT_FLOOR
from .cpu_source import WORK_OF_ONE_THREAD, View, rows_of
from .feature_maps import MOST_GAIN
from .hybrid_attention_cpu_source import generate_source
from .native_library import NativeLibrary


FUNCTIONS = ("hybrid_forward", "hybrid_backward")
SHORTEST_CHUNK = 128  # tokens; what a chunk writes is computed twice


class _Counts(ctypes.Structure):
    """`Counts` of the source: data of numbers of tokens `(B,)`."""

    _fields_ = [("data", ctypes.c_void_p)]


_SIZES = (
    *("threads", "batch", "key_heads", "groups", "length", "head_dim", "map_columns"),
    *("window_size", "sink_tokens", "causal", "is_double", "chunks"),
)
_VIEWS = ("query", "key", "value", "output", "d_output", "d_query", "d_key", "d_value")
_MAPS = ("query_map", "key_map", "key_loudness", "loudness")
_STATES = ("hebbian", "calcium", "window", "sinks")


class _Arguments(ctypes.Structure):
    """What every function of the library takes. `Arguments` of the source is generated from these fields."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scaling", ctypes.c_double),
        *((name, View) for name in _VIEWS),
        *((name, _Counts) for name in ("count", "counted")),
        *((f"{of}{name}", ctypes.c_void_p) for of in ("", "d_") for name in _MAPS),
        *((f"{of}{name}", ctypes.c_void_p) for of in ("", "end_", "d_", "d_end_") for name in _STATES),
    ]


LIBRARY = NativeLibrary(
    "hybrid_attention",
    generate_source(arguments=_Arguments, floor=WEIGHT_FLOOR, most_gain=MOST_GAIN),
    FUNCTIONS,
    _Arguments,
    "hybrid attention",
)


def causal_forward(**inputs: Any) -> tuple[torch.Tensor, ...]:
    """What `hybrid_attention.hybrid_causal` returns."""
    call = _Call(inputs, causal=True)
    call.split()
    output, ends = call.output(), {f"end_{name}": torch.empty_like(call.held[name]) for name in _STATES}
    call.run("hybrid_forward", ends)
    return output.to(inputs["output_dtype"]), *ends.values()


def causal_backward(**inputs: Any) -> dict[str, torch.Tensor]:
    """Gradients from those of `causal_forward`'s results."""
    call = _Call(inputs, causal=True)
    of_ends = {f"d_end_{name}": call.whole(inputs[f"d_{_renamed(name)}"]) for name in _STATES}
    of_states = {f"d_{name}": torch.empty_like(call.held[name]) for name in _STATES}
    return call.gradients({**of_ends, **of_states}, of_states)


def both_ways_forward(**inputs: Any) -> tuple[torch.Tensor]:
    """What `hybrid_attention.hybrid_both_ways` returns, in a tuple."""
    call = _Call(inputs, causal=False)
    output = call.output()
    call.run("hybrid_forward", {})
    return (output.to(inputs["output_dtype"]),)


def both_ways_backward(**inputs: Any) -> dict[str, torch.Tensor]:
    """Gradients from that of `both_ways_forward`'s result."""
    return _Call(inputs, causal=False).gradients({}, {})


class _Call:
    """The arguments of one call, filled in from the inputs of a pass.

    Args:
        inputs (mapping): of `hybrid_causal` or `hybrid_both_ways`, and `d_output`.
        causal (`bool`): of which of them.
    """

    def __init__(self, inputs: dict[str, Any], causal: bool) -> None:
        query, key = inputs["query"], inputs["grouped_key"]
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.views = {"query": query, "key": key, "value": inputs["grouped_value"]}
        if "d_output" in inputs:
            self.views["d_output"] = inputs["d_output"]
        self.views = {name: rows_of(x, self.dtype) for name, x in self.views.items()}
        states = _STATES if causal else ()
        self.held = {name: self.whole(inputs[_renamed(name)]) for name in (*_MAPS, *states)}
        (self.batch_size, self.num_heads, length, size), key_heads = query.shape, key.shape[1]
        columns = inputs["key_map"].shape[2]
        work = self.batch_size * self.num_heads * length * columns * size
        self.arguments = _Arguments(
            threads=torch.get_num_threads() if work > WORK_OF_ONE_THREAD else 1,
            batch=self.batch_size,
            key_heads=key_heads,
            groups=self.num_heads // key_heads,
            length=length,
            head_dim=size,
            map_columns=columns,
            window_size=self.held["window"].shape[2] if causal else inputs["window_size"],
            sink_tokens=self.held["sinks"].shape[2] if causal else inputs["sink_tokens"],
            causal=causal,
            is_double=self.dtype == torch.float64,
            chunks=1,
            scaling=inputs["scaling"],
        )
        self.counts = {"count": inputs["tokens"], "counted": inputs.get("counted")}
        for name, x in self.counts.items():
            if x is not None:
                self.counts[name] = x = x.contiguous()
                setattr(self.arguments, name, _Counts(x.data_ptr()))
        self.set_views(self.views)

    def split(self) -> None:
        """Cuts the sequences, so that every thread has something to do."""
        arguments = self.arguments
        tasks, threads = arguments.batch * arguments.key_heads, arguments.threads
        if tasks and tasks % threads:
            arguments.chunks = max(1, min(-(-4 * threads // tasks), arguments.length // SHORTEST_CHUNK))

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """`x` contiguous, in the dtype of the call."""
        return x.to(self.dtype).contiguous()

    def set_views(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, x in tensors.items():
            setattr(self.arguments, name, View.of(x))

    def output(self) -> torch.Tensor:
        """An uninitialised `(B, H, N, d)` that lies in memory as (B, N, H, d), from which merging the heads is free."""
        query = self.views["query"]
        output = query.new_empty(self.batch_size, query.shape[2], self.num_heads, query.shape[3]).transpose(1, 2)
        self.set_views({"output": output})
        return output

    def gradients(self, others: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs the backward function: gradients by the names of the inputs, those of `wanted` among them."""
        of_views = {f"d_{name}": torch.empty_like(self.views[name]) for name in ("query", "key", "value")}
        self.set_views(of_views)
        of_maps = {f"d_{x}": self.held[x].new_empty(self.batch_size, *self.held[x].shape) for x in _MAPS}
        self.run("hybrid_backward", {**others, **of_maps})
        found = {**of_views, **wanted, **{name: x.sum(0) for name, x in of_maps.items()}}
        return {_renamed(name.removeprefix("d_")): x for name, x in found.items()}

    def run(self, function: str, others: dict[str, torch.Tensor]) -> None:
        """Calls a function of the source, with pointers to what is held and to `others`."""
        for name, x in (*self.held.items(), *others.items()):
            setattr(self.arguments, name, x.data_ptr())
        amount = f"{self.batch_size} sequences of {self.arguments.length} tokens in {self.arguments.threads} threads"
        LIBRARY.call(function, self.arguments, amount)


def _renamed(name: str) -> str:
    """The name of a pass's input from that of the source, which has no others of the kind."""
    return f"grouped_{name}" if name in ("key", "value", "hebbian", "calcium") else name


_LIBRARY = KernelLibrary(frozenset({torch.float32, torch.float64}), LIBRARY.unavailable)
KERNELS = {
    "hybrid_causal": Kernel(causal_forward, causal_backward, library=_LIBRARY),
    "hybrid_both_ways": Kernel(both_ways_forward, both_ways_backward, library=_LIBRARY),
}
