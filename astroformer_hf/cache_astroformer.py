# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The cache of a decoder whose attention has a state of constant size: nothing in it grows with the length."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .neuron_astrocyte_attention import NeuronAstrocyteState
from .token_layout import NeighbourhoodState


class SynapseCacheLayer(CacheLayerMixin):
    """What one layer remembers of the tokens so far.

    Attributes:
        synapses: the `NeuronAstrocyteState` of the attention, or None before the first token.
        neighbourhood: the `NeighbourhoodState` of the "activity" astrocyte code, None for the others.
        counted: `(batch, 1)`, how many tokens so far are real, or None if all are.
        length: tokens so far, padding included.
    """

    synapses: NeuronAstrocyteState | None
    neighbourhood: NeighbourhoodState | None
    counted: torch.Tensor | None
    length: int

    def __init__(self):
        super().__init__()
        self.reset()

    def update(self, synapses, neighbourhood, counted, num_tokens):
        """Takes over the states after `num_tokens` more tokens."""
        self.synapses, self.neighbourhood, self.counted = synapses, neighbourhood, counted
        self.length += num_tokens
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to allocate: the first `update` brings the states."""

    def get_seq_length(self):
        return self.length

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_max_length(self):
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier releases of the library

    @property
    def num_bytes(self) -> int:
        """Memory that the states take."""
        return sum(x.numel() * x.element_size() for state in self._states() for x in state)

    def reset(self):
        self.synapses = self.neighbourhood = self.counted = None
        self.length = 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx):
        self._apply(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats):
        self._apply(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        self._apply(lambda x: x[indices.to(x.device)])

    def crop(self, tokens_to_remove):
        if tokens_to_remove != 0:
            raise ValueError(
                f"cannot take back {tokens_to_remove} tokens: the synapses hold sums over all tokens so far, not each "
                "one. Assisted generation works with attention_type 'softmax' only."
            )

    def offload(self):
        if self.is_initialized:
            self.device = self.synapses.calcium.device
        self._apply(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self):
        if self.is_initialized:
            self._apply(lambda x: x.to(self.device, non_blocking=True))

    def _states(self):
        return [state for state in (self.synapses, self.neighbourhood) if state is not None]

    def _apply(self, function):
        for name in ("synapses", "neighbourhood"):
            state = getattr(self, name)
            if state is not None:
                setattr(self, name, type(state)(*map(function, state)))
        if self.counted is not None:
            self.counted = function(self.counted)


class AstroformerCache(Cache):
    """The `past_key_values` of a decoder with neuron-astrocyte or linear attention, one `SynapseCacheLayer` per layer.

    Args:
        num_hidden_layers (`int`): layers of the model.
    """

    layers: list[SynapseCacheLayer]  # type: ignore[assignment]  # narrower than the library's

    def __init__(self, num_hidden_layers: int):
        super().__init__(layers=[SynapseCacheLayer() for _ in range(num_hidden_layers)])

    @property
    def num_bytes(self) -> int:
        """Memory that the states take; the same after every token."""
        return sum(layer.num_bytes for layer in self.layers)


__all__ = ["AstroformerCache"]
