# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Inputs of hybrid attention, for the tests of its forms."""

import torch

from astroformer_hf import attention_backend
from astroformer_hf.feature_maps import HedgehogMap
from astroformer_hf.hybrid_attention import ExactPart, Synapses, hybrid_attention, hybrid_attention_weights
from astroformer_hf.token_layout import for_each_query


HEADS, SIZE = 3, 6
PADDED = ("no", "left", "right", "inside")


def make_inputs(length, padded="no", dtype=torch.float64, requires_grad=True):
    tensors = [torch.randn(2, HEADS, length, SIZE, dtype=dtype, requires_grad=requires_grad) for _ in range(3)]
    real = torch.ones(2, length, dtype=torch.bool)
    third = length // 3
    hidden = {"no": slice(0, 0), "left": slice(0, third), "right": slice(-third, None), "inside": slice(third, -third)}
    real[0, hidden[padded]] = False
    return tensors, None if padded == "no" else real, real[:, None, :, None]


# heads, heads of keys, head size, columns of a map: less than a vector, no whole number of vectors, and whole ones
SHAPES = [(6, 2, 6, 5), (3, 1, 20, 18), (2, 2, 16, 32)]


class Case:
    """Tensors that require gradients, and what the form of a backend, or the map, makes of them."""

    def __init__(self, length, shape, dtype=torch.float64, scale=1.0):
        heads, key_heads, size, columns = shape

        def make(*shape, scale=1.0):
            return (scale * torch.randn(*shape, dtype=torch.float64)).to(dtype).requires_grad_()

        # (batch, length, heads, .) transposed, as a model's projections are
        self.query, self.key, self.value = (
            make(2, length, number, size, scale=factor).detach().transpose(1, 2).requires_grad_()
            for number, factor in ((heads, scale), (key_heads, scale), (key_heads, 1.0))
        )
        self.maps = [make(heads, size, columns), make(key_heads, size, columns), make(key_heads, size, 1, scale=0.3)]
        self.loudness = (torch.rand(heads, 1, 1, dtype=dtype) + 0.3).requires_grad_()

    @property
    def tensors(self):
        return [self.query, self.key, self.value, *self.maps, self.loudness]

    @property
    def synapses(self):
        query_map, key_map, key_loudness = self.maps
        return Synapses(HedgehogMap(query_map), HedgehogMap(key_map, key_loudness), self.loudness)

    def by_map(self, exact, mask, causal):
        weights = hybrid_attention_weights(
            self.query, self.key, self.synapses, ExactPart(*exact), mask, scaling=0.4, causal=causal
        )
        return weights @ for_each_query(self.query, self.value)

    def by(self, backend, exact, mask, causal, part=slice(None), state=None):
        tokens = (x[:, :, part] for x in (self.query, self.key, self.value))
        mask, options = None if mask is None else mask[:, part], {"scaling": 0.4, "causal": causal, "state": state}
        with attention_backend(backend):
            return hybrid_attention(*tokens, self.synapses, ExactPart(*exact), mask, **options)

    def gradients(self, output, upstream):
        return torch.autograd.grad(output, self.tensors, upstream, allow_unused=True, materialize_grads=True)


def make_mask(length, padded):
    """As of `make_inputs`, and 1 where a token is real."""
    return make_inputs(length, padded, requires_grad=False)[1:]
