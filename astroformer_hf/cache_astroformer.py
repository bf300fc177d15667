# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The cache of a decoder whose attention has a state of constant size: nothing in it grows with the length."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from .attention_state import NeuronAstrocyteState
from .forward_keywords import may_look_at, may_wait_for
from .library_compatibility import CACHE_NAME


Place = TypeVar("Place", int, torch.Tensor)


class SynapseCacheLayer(CacheLayerMixin):
    """What one layer remembers of the tokens so far.

    Attributes:
        synapses: the `NeuronAstrocyteState` of the attention, or None before the first token.
        code_state: the state of the astrocyte code, a tuple of tensors with the batch first; None if it has none.
        covariance: the state of the covariance rule, a tuple of tensors with the batch first; None without that rule.
        counted: `(batch, 1)`, how many tokens so far are real, or None if all are.
        length: tokens so far, padding included.
        places: `(batch, 1)`, which of them are real, as a sum of numbers that stand for their places, or None if all
            are; the first layer's is that of the cache.
        memory: `(batch, num_memory_tokens, hidden_size)`, what the open segment began with, where a model reads in
            segments, of `segment_length` tokens; else None. The first layer's is that of the cache. The states above
            are then those of the open segment, but for the numbers of tokens, which are those of the text.
    """

    synapses: NeuronAstrocyteState | None
    code_state: Any
    covariance: tuple[torch.Tensor, ...] | None
    counted: torch.Tensor | None
    length: int
    places: torch.Tensor | None
    memory: torch.Tensor | None
    segment_length: int | None

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def update(  # type: ignore[override]  # not keys and values
        self, synapses: NeuronAstrocyteState, code_state: Any, counted: torch.Tensor | None, num_tokens: int
    ) -> None:
        """Takes over the states after `num_tokens` more tokens."""
        self.synapses, self.code_state, self.counted = synapses, code_state, counted
        self.length += num_tokens
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to allocate: the first `update` brings the states."""

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier releases of the library

    @property
    def num_bytes(self) -> int:
        """Memory that the states take."""
        return sum(x.numel() * x.element_size() for state in self._states() for x in state)

    def reset(self) -> None:
        self.forget_segment()
        self.counted = self.places = self.memory = self.segment_length = None
        self.length = 0
        self.is_initialized = False

    def forget_segment(self) -> None:
        """Empties the synapses, for another segment of the same text."""
        self.synapses = self.code_state = self.covariance = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._apply(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._apply(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._apply(lambda x: x[indices.to(x.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Does nothing for 0; the library gives minus the number of tokens to take back.

        Raises:
            ValueError: for any other number.
        """
        if tokens_to_remove != 0:
            asked = f"take back {-tokens_to_remove} of" if tokens_to_remove < 0 else f"keep {tokens_to_remove} of"
            raise ValueError(
                f"crop({tokens_to_remove}): cannot {asked} the {self.length} tokens in the cache, because the synapses "
                "hold sums over all of them, not each one. Copy the cache (copy.deepcopy) before the tokens that are "
                "to be taken back. Assisted generation works with attention_type 'softmax' only."
            )

    def offload(self) -> None:
        for state in self._states():
            self.device = state[0].device
        self._apply(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized:
            self._apply(lambda x: x.to(self.device, non_blocking=True))

    def _states(self) -> list[tuple[torch.Tensor, ...]]:
        memory = None if self.memory is None else (self.memory,)
        return [state for state in (self.synapses, self.code_state, self.covariance, memory) if state is not None]

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for name in ("synapses", "code_state", "covariance"):
            state = getattr(self, name)
            if state is not None:
                # a named tuple takes its fields one by one
                setattr(self, name, getattr(type(state), "_make", type(state))(map(function, state)))
        for name in ("counted", "places", "memory"):
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))


class AstroformerCache(Cache):
    """The cache of a decoder with neuron-astrocyte or linear attention, one `SynapseCacheLayer` per layer.

    Args:
        num_hidden_layers (`int`, *optional*): layers of the model; without it, a model makes them as it first writes.
        config (`AstroformerConfig`, *optional*): the model's configuration, instead of their number.

    Raises:
        ValueError: the configuration is of a model that takes another cache.
    """

    layers: list[SynapseCacheLayer]  # type: ignore[assignment]  # narrower than the library's

    def __init__(self, num_hidden_layers: int | None = None, config: PreTrainedConfig | None = None) -> None:
        if config is not None:
            if getattr(config, "attention_type", None) not in ("neuron_astrocyte", "linear"):
                raise ValueError(
                    "AstroformerCache is for attention_type 'neuron_astrocyte' and 'linear', got the configuration of "
                    f"{config.model_type} with {getattr(config, 'attention_type', None)!r}; DynamicCache is for "
                    "'softmax'"
                )
            if num_hidden_layers not in (None, config.num_hidden_layers):
                raise ValueError(
                    f"num_hidden_layers must be the configuration's {config.num_hidden_layers}, or be left out, got "
                    f"{num_hidden_layers}"
                )
            num_hidden_layers = config.num_hidden_layers
        super().__init__(layers=[])
        self.make_layers(num_hidden_layers or 0)

    def make_layers(self, num_hidden_layers: int) -> None:
        """Makes the layers, if there are none yet."""
        if not self.layers:
            self.layers.extend(SynapseCacheLayer() for _ in range(num_hidden_layers))

    @property
    def num_bytes(self) -> int:
        """Memory that the states take; the same after every token."""
        return sum(layer.num_bytes for layer in self.layers)

    def copy_rows(self, rows: torch.Tensor | None = None) -> "AstroformerCache":
        """A cache with the states of some sequences, by their indices, or of all. What is written there is not here."""
        copied = type(self)(len(self.layers))
        for layer, own in zip(copied.layers, self.layers, strict=True):
            vars(layer).update(vars(own))
        if rows is not None:
            copied.batch_select_indices(rows)
        return copied

    def put_rows(self, rows: torch.Tensor, other: "AstroformerCache") -> None:
        """Takes over the states of another cache's sequences, but for the numbers of tokens, as those at `rows`."""
        for own, layer in zip(self.layers, other.layers, strict=True):
            for name in ("synapses", "code_state", "covariance"):
                state, new = getattr(own, name), getattr(layer, name)
                if state is not None:  # where nothing was written yet, states are 0
                    new = [0.0] * len(state) if new is None else new
                    put = [_put(x, rows, y) for x, y in zip(state, new, strict=True)]
                    setattr(own, name, getattr(type(state), "_make", type(state))(put))
            if own.memory is not None:
                own.memory = _put(own.memory, rows, layer.memory)

    def places_after(self, attention_mask: torch.Tensor | None, batch_size: int, length: int) -> torch.Tensor | None:
        """Checks a mask against what was written; returns `places` after the tokens that come now, to be taken down
        when nothing is refused any more.

        Looked at is only what costs nothing: on a GPU, a mask of more than one new token, of which the layout asks
        whether it is all real anyway; in a graph, none.

        Args:
            attention_mask (`torch.Tensor`, *optional*): `(batch, tokens so far + length)`, nonzero where one is real.
            batch_size, length (`int`): sequences, and new tokens of each.

        Raises:
            ValueError: the mask says of tokens in the cache what was not said when they were written.
        """
        first = self.layers[0]
        return places_after(first.places, attention_mask, batch_size, length, first.length)


def check_first_position(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, counted: torch.Tensor | None, past: int
) -> None:
    """Raises a ValueError for positions that, without a mask, go on from all tokens in a cache of which some are
    padding: `generate` makes such of a mask of ones, which it then drops.

    Args:
        position_ids (`torch.Tensor`, *optional*): `(1 or batch, length)`, of the tokens that come now.
        attention_mask (`torch.Tensor`, *optional*): what comes with them.
        counted (`torch.Tensor`, *optional*): `(batch, 1)`, how many tokens in the cache are real, None if all are.
        past (`int`): how many tokens there are in the cache.
    """
    if position_ids is None or attention_mask is not None or counted is None:
        return
    if not (may_look_at(position_ids) or (position_ids.shape[-1] > 1 and may_wait_for(position_ids))):
        return
    first = position_ids[:, :1].to(counted.device)
    differing = ((first == past) & (counted != past)).squeeze(1).nonzero().squeeze(1).tolist()
    if differing:
        raise ValueError(
            f"position_ids go on from {past} tokens, but some of those in the cache are padding in row "
            f"{', '.join(map(str, differing))} of the batch, which an attention_mask of ones would say, too: give the "
            "attention_mask that they were written with, and ones for the new tokens"
        )


def check_rows(rows_in_cache: int, batch_size: int) -> None:
    """Raises a ValueError if a cache is not of as many sequences as go on from it."""
    if rows_in_cache != batch_size:
        raise ValueError(
            f"{CACHE_NAME} holds {rows_in_cache} sequences and the input has {batch_size}. For beams and "
            "num_return_sequences, give each sequence its copies first: cache.batch_repeat_interleave(copies)"
        )


def places_after(
    before: torch.Tensor | None, attention_mask: torch.Tensor | None, batch_size: int, length: int, past_length: int
) -> torch.Tensor | None:
    """Which tokens were real, as a cache takes it down: after new ones, from what it was `before` them.

    Arguments and errors as of `AstroformerCache.places_after`; there were `past_length` tokens.
    """
    if attention_mask is None:
        if before is None:
            return None
        new = torch.ones(batch_size, length, dtype=torch.bool, device=before.device)
        return before + _sum_of_places(new, past_length)
    if before is None and past_length:
        everything = attention_mask.new_ones(batch_size, past_length, dtype=torch.bool)
        before = _sum_of_places(everything, 0)
    if (
        before is not None
        and past_length
        and (may_look_at(attention_mask) or (length > 1 and may_wait_for(attention_mask)))
    ):
        said = _sum_of_places(attention_mask[:, :past_length] != 0, 0)
        differing = (said != before.to(said.device)).squeeze(1).nonzero().squeeze(1).tolist()
        if differing:
            raise ValueError(
                f"attention_mask says otherwise of the {past_length} tokens in the cache than when they were "
                f"written, in row {', '.join(map(str, differing))} of the batch: padding that was written as real, "
                "as that behind a text that ended before the others, cannot be taken back, nor can a token be "
                "added. Leave the cache out and give the whole texts with their mask, or go on only with rows that "
                "agree (cache.batch_select_indices)"
            )
    now = _sum_of_places(attention_mask[:, past_length:] != 0, past_length)
    return now if before is None else before.to(now.device) + now


def _put(x: torch.Tensor, rows: torch.Tensor, y: Any) -> torch.Tensor:
    y = y if torch.is_tensor(y) else x.new_full((len(rows), *x.shape[1:]), y)
    return x.index_copy(0, rows, y.to(x.dtype))


def _sum_of_places(real: torch.Tensor, past_length: int) -> torch.Tensor:
    """Which of the tokens from `past_length` on are real, `(batch, length)` bool, in a number, `(batch, 1)`.

    It is the sum of the real tokens' places, of which each is mixed into a number of 31 bits, so that sums over
    different places differ but by chance, about once in 2^31. The size of a cache does not grow with the text.
    """
    length = real.shape[1]
    if length == 1:  # a step of decoding: no more operations than needed
        return real.long() * _mixed(past_length + 1)
    places = torch.arange(past_length + 1, past_length + length + 1, device=real.device)
    return torch.where(real, _mixed(places), 0).sum(-1, keepdim=True)


def _mixed(place: Place) -> Place:
    place = place * 48271 % 2147483647
    return (place ^ (place >> 13)) * 48271 % 2147483647


__all__ = ["AstroformerCache"]
