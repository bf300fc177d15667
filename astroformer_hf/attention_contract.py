# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the layers, the passes of the operation and the backends that compute them agree on, as data.

- A `Pass` is one step of the operation: a plain function of PyTorch, with the names of what it takes and gives. It is
  declared where that function stands (`attention_passes.py`), by `declares_pass`.
- A `Kernel` is a faster twin of a pass, forward and backward; a `Backend` is a table of kernels, with the devices and
  dtypes that it is made for. `attention_backends.py` lists the backends and chooses.
- A `CodeRecipe` is what attention takes of an astrocyte code: it can be turned into R, or handed to a pass that makes R
  as it goes.

All of them are called by keyword. A name means the same thing in every pass; `SHAPES` says what.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, get_type_hints

import torch


# The tensors of the passes, as letters: b batch, h heads, n tokens, m hidden neurons, f features (phi of m; m itself
# where a pass applies phi), d head size. Of the astrocyte code the batch may be missing, where all share it.
SHAPES = {
    "query": "bhnm",
    "key": "bhnm",
    "value": "bhnd",
    "astrocyte_code": "bhnm",
    "padding_mask": "bn",  # True where a token is real
    "document_ids": "bn",  # as of `token_layout.number_documents`
    "log_decay": "bhn",  # log f_t: f_t is the share of all that is left when token t comes
    "proximity": "hnn",  # the share of what token s wrote that token t finds
    "hebbian": "bhfd",  # sum of (phi(k) + phi(r)) v^T
    "calcium": "bhf",  # sum of phi(k), with calcium_sources "all" of phi(k) + phi(r)
    "later_hebbian": "bhfd",  # the same of the tokens after these
    "later_calcium": "bhf",
    "plasticity": "bhf",  # g
    "output": "bhnd",
    # of the code "activity", see `token_layout.activity_code`
    "weight": "hmm",
    "bias": "h1m",
    "total": "bhm",
    "count": "b11",
    # of `hybrid_attention.py`: k key heads, which several heads share; r columns of a map, of which f = 2 r features
    # come; w tokens of the window, s sinks, p = 2 d, a key and a value
    "grouped_key": "bknm",
    "grouped_value": "bknd",
    "tokens": "b1",  # how many come first in a row that are real
    "counted": "b1",  # how many there were before
    "query_map": "hmr",
    "key_map": "kmr",
    "key_loudness": "km1",
    "loudness": "h11",
    "grouped_hebbian": "bkfd",
    "grouped_calcium": "bkf",
    "window": "bkwp",
    "sinks": "bksp",
}


@dataclass(frozen=True)
class Pass:
    """One step of the operation.

    Attributes:
        name: of its plain function.
        plain: the plain function, whose arguments are all by keyword.
        tensors: the inputs that are tensors, in order.
        optional: those of them that may be None.
        options: the other inputs, and their types.
        outputs: the names of its results, in order. One result comes as it is, several as a tuple.
        without_gradient: the inputs that are not differentiable.
        forward_only: the options that the gradients do not depend on; a backward kernel does not take them.
        states: inputs that hold what came before, and results of the same names, what there is at the end. All of them
            may be None: nothing came before, and nobody asks for the end, so that these results are None as well.
    """

    name: str
    plain: Callable[..., Any]
    tensors: tuple[str, ...]
    optional: frozenset[str]
    options: Mapping[str, type] = field(compare=False)
    outputs: tuple[str, ...]
    without_gradient: frozenset[str]
    forward_only: frozenset[str]
    states: frozenset[str] = frozenset()

    def __call__(self, **inputs: Any) -> Any:
        """The results by the plain function."""
        if self.has_states(inputs):
            return self.plain(**inputs)
        return self.from_tuple(self.without_states(self.as_tuple(self.plain(**self.with_states(inputs)))))

    def has_states(self, inputs: Mapping[str, Any]) -> bool:
        """Whether it goes on from a state, or has none to go on from."""
        missing = sorted(name for name in self.states if inputs[name] is None)
        assert len(missing) in (0, len(self.states)), f"{self.name} takes all states or none, {missing} are None"
        return not missing

    def with_states(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs, with zeros in the place of missing states."""
        sizes, key = self._sizes(inputs), inputs["key"]
        working = torch.float64 if key.dtype == torch.float64 else torch.float32
        empty = {name: key.new_zeros([sizes[letter] for letter in SHAPES[name]], dtype=working) for name in self.states}
        return {**inputs, **empty}

    def without_states(self, results: Iterable[Any]) -> tuple[Any, ...]:
        """The results, or their gradients, without those of the states."""
        return tuple(None if name in self.states else x for name, x in zip(self.outputs, results, strict=True))

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The inputs that have gradients, in order."""
        return tuple(name for name in self.tensors if name not in self.without_gradient)

    def as_tuple(self, results: Any) -> tuple[torch.Tensor, ...]:
        """Results as a tuple, also if there is one only."""
        return (results,) if len(self.outputs) == 1 else tuple(results)

    def from_tuple(self, results: tuple[torch.Tensor, ...]) -> Any:
        """Results as the plain function returns them."""
        return results[0] if len(self.outputs) == 1 else results

    def empty_outputs(self, inputs: Mapping[str, Any], device: Any = None) -> tuple[torch.Tensor, ...]:
        """Uninitialised results in the shapes and strides that a custom operator promises, float32 or `output_dtype`.

        An "output" lies in memory as (b, n, h, d), the order in which merging the heads is free. States that are not
        asked for are empty: an operator has no None for a result.
        """
        sizes, has_states = self._sizes(inputs), self.has_states(inputs)
        like = next(inputs[name] for name in self.tensors if inputs[name] is not None)
        found = []
        for name in self.outputs:
            shape = [sizes[letter] for letter in SHAPES[name]] if has_states or name not in self.states else [0]
            if name == "output":
                b, h, n, d = shape
                output = like.new_empty(b, n, h, d, dtype=inputs["output_dtype"], device=device)
                found.append(output.transpose(1, 2))
            else:
                found.append(like.new_empty(shape, dtype=torch.float32, device=device))
        return tuple(found)

    def _sizes(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the letters of `SHAPES` stand for."""
        sizes: dict[str, Any] = {"1": 1}
        for name in self.tensors:
            if inputs[name] is not None:
                letters = SHAPES[name][-inputs[name].dim() :]
                sizes.update(zip(letters, inputs[name].shape, strict=True))
        sizes.setdefault("f", sizes.get("m"))  # as these passes see it, phi leaves the number of features
        return sizes


PASSES: dict[str, Pass] = {}


def declares_pass(
    *outputs: str,
    without_gradient: tuple[str, ...] = (),
    forward_only: tuple[str, ...] = (),
    states: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Pass]:
    """Declares the decorated function, whose arguments are keyword-only and annotated, as a `Pass`.

    Args:
        outputs (`str`): the names of its results.
        without_gradient, forward_only, states (tuple of `str`): as of `Pass`, which hands the function all states.
    """

    def declare(plain: Callable[..., Any]) -> Pass:
        hints = get_type_hints(plain)
        inputs = {name: hints[name] for name in inspect.signature(plain).parameters}
        tensors = tuple(name for name, hint in inputs.items() if hint in (torch.Tensor, torch.Tensor | None))
        declared = Pass(
            name=plain.__name__,
            plain=plain,
            tensors=tensors,
            optional=frozenset(name for name in tensors if inputs[name] != torch.Tensor or name in states),
            options={name: hint for name, hint in inputs.items() if name not in tensors},
            outputs=outputs,
            without_gradient=frozenset(without_gradient),
            forward_only=frozenset(forward_only),
            states=frozenset(states),
        )
        unknown = {*tensors, *outputs} - set(SHAPES) | {*without_gradient, *forward_only} - set(inputs)
        if unknown:
            raise ValueError(f"the pass {plain.__name__!r} names {', '.join(sorted(unknown))}, which nothing explains")
        declared.__dict__["__doc__"] = plain.__doc__
        PASSES[declared.name] = declared
        return declared

    return declare


class KernelLibrary(NamedTuple):
    """What kernels are built into: the dtypes that they take, and a function from a device to why they cannot compute
    there on this machine, or None."""

    dtypes: frozenset[torch.dtype]
    unavailable: Callable[[torch.device], str | None]


@dataclass(frozen=True)
class Kernel:
    """A faster twin of a pass.

    Args:
        forward (function): takes what the pass takes, by keyword; returns its results, always as a tuple.
        backward (function): takes that without the options that are `forward_only`, and the gradient of each result
            as `d_` and its name; returns a dict from the names of inputs to their gradients.
        takes_no (tuple of `str`): optional inputs that must be None; they are not handed to it.
        takes_only (mapping): from options to the one value that it is made for; likewise.
        library (`KernelLibrary`, *optional*): what it is in, if not in the one of its backend.
        needs_states (`bool`, defaults to `True`): whether it must be handed zeros where the states of the pass are
            missing. If not, it takes None for them and for their gradients, and returns None for them.
    """

    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., dict[str, torch.Tensor]]
    takes_no: tuple[str, ...] = ()
    takes_only: Mapping[str, Any] = field(default_factory=dict)
    library: KernelLibrary | None = None
    needs_states: bool = True

    def taken(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a pass's inputs that it is handed."""
        return {name: x for name, x in inputs.items() if name not in self.takes_no and name not in self.takes_only}


@dataclass(frozen=True)
class CodeFirst:
    """Stands in a backend's table for a pass that makes R on the way: PyTorch makes R, and another pass takes it.

    Args:
        then (`str`): the name of that pass.
    """

    then: str


@dataclass(frozen=True)
class PlainForm:
    """Stands in a backend's table for a pass that has nothing to fuse: PyTorch's own matrix products compute it."""


@dataclass(frozen=True)
class Backend:
    """One way to compute the passes.

    Args:
        name (`str`): as users call it.
        device_type (`str`): of the tensors that "auto" takes it for.
        kernels (mapping): from the names of passes to a `Kernel`, `CodeFirst` or `PlainForm`.
        unavailable (function): from a device to why it cannot compute there on this machine, or None.
        dtypes (set of `torch.dtype`): what it takes.
    """

    name: str
    device_type: str
    kernels: Mapping[str, Kernel | CodeFirst | PlainForm]
    unavailable: Callable[[torch.device], str | None]
    dtypes: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def obstacle(self, device: torch.device, dtypes: set[torch.dtype], names: Iterable[str] = ()) -> str | None:
        """Why it does not take tensors of these dtypes on this device for the passes `names`, or None if it does."""
        for library in self.libraries(names):
            for dtype in dtypes:
                if dtype.is_floating_point and dtype not in library.dtypes:
                    return f"it does not compute in {str(dtype).removeprefix('torch.')}"
            if obstacle := library.unavailable(device):
                return obstacle
        return None

    def libraries(self, names: Iterable[str] = ()) -> set[KernelLibrary]:
        """Those that its kernels for the passes `names` are in; without any, its own."""
        own = KernelLibrary(self.dtypes, self.unavailable)
        return {getattr(self.kernels.get(name), "library", None) or own for name in names} or {own}

    def lacks(self, name: str, inputs: Mapping[str, Any]) -> str | None:
        """Why it has no kernel for a pass with these inputs, or None if it has."""
        kernel = self.kernels.get(name)
        if kernel is None:
            return f"it has no kernel for {name}"
        if isinstance(kernel, CodeFirst):
            return self.lacks(kernel.then, inputs)
        if isinstance(kernel, PlainForm):
            return None
        refused = [x for x in kernel.takes_no if inputs.get(x) is not None]
        refused += [f"{x} {inputs[x]!r}" for x, value in kernel.takes_only.items() if inputs.get(x, value) != value]
        return f"its kernel for {name} does not take {', '.join(refused)} yet" if refused else None


class CodeRecipe(Protocol):
    """What attention takes of an astrocyte code. A tuple of tensors and numbers, so that hooks find its tensors."""

    @property
    def fused(self) -> Mapping[str, str]:
        """From the names of passes that take R to those that make it as they go; empty if there are none."""

    def __iter__(self) -> Iterator[Any]: ...

    def materialize(
        self,
        key: torch.Tensor,
        padding_mask: torch.Tensor | None,
        causal: bool,
        document_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """R, `(heads, length, m)` or with a leading batch, and the code's state after the last token (None: it has
        none), for keys `(batch, heads, length, m)`."""

    def fused_inputs(self, causal: bool) -> dict[str, Any]:
        """What the passes of `fused` take beside the others' inputs, by keyword."""

    def state_after(self, outputs: Mapping[str, torch.Tensor]) -> Any:
        """The code's state from the results of a pass of `fused`, by name."""


class MaterializedCode(NamedTuple):
    """The `CodeRecipe` of an R that is there already."""

    code: torch.Tensor
    state: Any = None

    @property
    def fused(self) -> Mapping[str, str]:
        return {}

    def materialize(
        self,
        key: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        causal: bool = False,
        document_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any]:
        return self.code, self.state

    def fused_inputs(self, causal: bool) -> dict[str, Any]:
        return {}

    def state_after(self, outputs: Mapping[str, torch.Tensor]) -> Any:
        return self.state
