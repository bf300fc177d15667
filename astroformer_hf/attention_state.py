# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the synapses remember between two calls of the operation."""

from typing import NamedTuple

import torch

from .attention_passes import working_dtype


class NeuronAstrocyteState(NamedTuple):
    """What the tripartite synapses remember of everything written so far; its size does not depend on the length.

    Attributes:
        hebbian: `(batch, heads, features, head_dim)`, the sum over tokens of (phi(k) + phi(r)) v^T; the 1/m is applied
            when it is read.
        calcium: `(batch, heads, features)`, the sum over tokens of phi(k), with `calcium_sources` "all" of phi(k) +
            phi(r); alpha is applied when it is read.
    """

    hebbian: torch.Tensor
    calcium: torch.Tensor


class BidirectionalState(NamedTuple):
    """What leaky synapses remember on either side of a piece of a sequence that is read in both directions.

    A call returns what the pieces beside its own need of it: `before` for the one that follows, `after` for the one
    that comes first. It is given the `before` of the piece before it and the `after` of the piece after it.

    Attributes:
        before: of all tokens before a place in the sequence.
        after: of all tokens after it, as the token before the place finds them.
    """

    before: NeuronAstrocyteState
    after: NeuronAstrocyteState


State = NeuronAstrocyteState | BidirectionalState


def empty_state(key: torch.Tensor, value: torch.Tensor) -> NeuronAstrocyteState:
    """The state of synapses to which nothing was written; the last dimension of `key` is the features'."""
    shape, working = (*key.shape[:2], key.shape[3], value.shape[3]), working_dtype(key, value)
    return NeuronAstrocyteState(value.new_zeros(shape, dtype=working), value.new_zeros(shape[:3], dtype=working))


def state_or_empty(state: NeuronAstrocyteState | None, key: torch.Tensor, value: torch.Tensor) -> NeuronAstrocyteState:
    return empty_state(key, value) if state is None else checked_state(state, key, value)


def checked_state(state: NeuronAstrocyteState, key: torch.Tensor, value: torch.Tensor) -> NeuronAstrocyteState:
    """`state` in the working dtype, after a check of its shapes; the last dimension of `key` is the features'."""
    hebbian, calcium = state
    hebbian_shape = (*key.shape[:2], key.shape[3], value.shape[3])
    if hebbian.shape != hebbian_shape or calcium.shape != hebbian_shape[:3]:
        raise ValueError(
            f"initial_state must hold hebbian of shape {hebbian_shape} and calcium of shape {hebbian_shape[:3]}, "
            f"got {tuple(hebbian.shape)} and {tuple(calcium.shape)}"
        )
    working = working_dtype(key, value, hebbian)
    return NeuronAstrocyteState(hebbian.to(working), calcium.to(working))


def sides_of(state: State | None) -> tuple[NeuronAstrocyteState | None, NeuronAstrocyteState | None]:
    """What was written before, and what after."""
    return (state.before, state.after) if isinstance(state, BidirectionalState) else (state, None)


def tensors_of_state(state: State | None) -> list[torch.Tensor]:
    if isinstance(state, BidirectionalState):
        return [*state.before, *state.after]
    return [] if state is None else list(state)
