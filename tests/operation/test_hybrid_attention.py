# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Attention of which a part is exact: the fast form against the map, and the map against softmax and the synapses."""

import math

import pytest
import torch

from astroformer_hf import neuron_astrocyte_network
from astroformer_hf.hybrid_attention import ExactPart, Synapses, hybrid_attention, hybrid_attention_weights
from astroformer_hf.token_layout import sequence_layout


HEADS, SIZE, FEATURES = 3, 6, 10
EXACT = [(0, 0), (0, 2), (3, 0), (2, 1), (5, 2), (16, 4), (40, 0)]


def make_synapses(with_code, dtype=torch.float64):
    """Synapses with "hedgehog" maps, and perhaps the code "activity"."""
    query_map, key_map = (torch.randn(HEADS, SIZE, FEATURES // 2, dtype=dtype) for _ in range(2))
    weight, bias = torch.randn(HEADS, SIZE, SIZE, dtype=dtype), torch.randn(HEADS, 1, SIZE, dtype=dtype)

    def hedgehog(weight):
        def features(x):
            mapped = x @ weight.to(x.dtype)
            return torch.cat((mapped, -mapped), dim=-1).softmax(-1)

        return features

    def code(key, real, causal, state):
        layout = sequence_layout(key.shape[2], key.device, real, causal=causal)
        recipe = layout.activity(key, 0.7, weight.to(key.dtype), bias.to(key.dtype), state)
        return recipe.materialize(key, layout.padding_mask, layout.causal, None)

    loudness = torch.tensor([0.3, 1.0, 2.0], dtype=dtype)[:, None, None]
    return Synapses(hedgehog(query_map), hedgehog(key_map), loudness, code if with_code else None)


def make_inputs(length, padded="no", dtype=torch.float64, requires_grad=True):
    tensors = [torch.randn(2, HEADS, length, SIZE, dtype=dtype, requires_grad=requires_grad) for _ in range(3)]
    real = torch.ones(2, length, dtype=torch.bool)
    third = length // 3
    hidden = {"no": slice(0, 0), "left": slice(0, third), "right": slice(-third, None), "inside": slice(third, -third)}
    real[0, hidden[padded]] = False
    return tensors, None if padded == "no" else real, real[:, None, :, None]


@pytest.mark.parametrize("with_code", [False, True], ids=["H_neuron", "H_neuron + H_astro"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("exact", EXACT, ids=str)
@pytest.mark.parametrize("padded", ["no", "left", "right", "inside"])
def test_values_and_gradients_are_those_of_the_map(exact, causal, padded, with_code):
    (query, key, value), mask, shown = make_inputs(23, padded)
    synapses, exact = make_synapses(with_code), ExactPart(*exact)
    options = {"scaling": 0.4, "causal": causal}
    expected = hybrid_attention_weights(query, key, synapses, exact, mask, **options) @ value
    output, _ = hybrid_attention(query, key, value, synapses, exact, mask, **options)
    torch.testing.assert_close(output * shown, expected * shown, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(output) * shown
    for found, wanted in zip(
        torch.autograd.grad(output, (query, key, value), upstream),
        torch.autograd.grad(expected, (query, key, value), upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("with_code", [False, True], ids=["H_neuron", "H_neuron + H_astro"])
@pytest.mark.parametrize("exact", EXACT, ids=str)
@pytest.mark.parametrize("padded", ["no", "left", "right", "inside"])
def test_pieces_go_on_from_the_state(exact, padded, with_code):
    (query, key, value), mask, shown = make_inputs(23, padded, requires_grad=False)
    synapses, exact = make_synapses(with_code), ExactPart(*exact)
    expected = hybrid_attention_weights(query, key, synapses, exact, mask, scaling=0.4, causal=True) @ value
    outputs, state, sizes = [], None, set()
    for start, end in ((0, 1), (1, 9), (9, 10), (10, 22), (22, 23)):
        piece = (x[:, :, start:end] for x in (query, key, value))
        own_mask = None if mask is None else mask[:, start:end]
        output, state = hybrid_attention(*piece, synapses, exact, own_mask, scaling=0.4, causal=True, state=state)
        outputs.append(output)
        sizes.add((state.window.shape, state.sinks.shape, state.synapses.hebbian.shape))
    torch.testing.assert_close(torch.cat(outputs, dim=2) * shown, expected * shown, rtol=1e-10, atol=1e-10)
    assert len(sizes) == 1 and state.window.shape[2] == exact.window_size and state.sinks.shape[2] == exact.sink_tokens


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_a_window_as_long_as_the_text_is_softmax_attention(causal):
    (query, key, value), _, _ = make_inputs(23)
    output, _ = hybrid_attention(
        query, key, value, make_synapses(True), ExactPart(23), scaling=SIZE**-0.5, causal=causal
    )
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_without_an_exact_part_it_is_the_network(causal):
    (query, key, value), mask, shown = make_inputs(23, "left")
    synapses = make_synapses(True)
    output, _ = hybrid_attention(query, key, value, synapses, ExactPart(), mask, scaling=0.4, causal=causal)
    phi_query, phi_key = synapses.query_features(query), synapses.key_features(key)
    phi_r = synapses.key_features(synapses.code(key, mask, causal, None)[0])
    expected = neuron_astrocyte_network(  # of features that are positive, which "relu" leaves as they are
        *(phi_query, phi_key, value, phi_r, mask), feature_map="relu", calcium_sources="all", causal=causal
    )
    torch.testing.assert_close(output * shown, FEATURES * expected * shown, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("exact", [(0, 0), (3, 1)], ids=str)
def test_large_scores_and_rows_without_tokens_stay_finite(exact, causal):
    (query, key, value), _, _ = make_inputs(30, dtype=torch.float32, requires_grad=False)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1] = False
    inputs = [(30 * x - 60).requires_grad_() for x in (query, key)]
    synapses = make_synapses(False, torch.float32)
    output, _ = hybrid_attention(*inputs, value, synapses, ExactPart(*exact), mask, scaling=1.0, causal=causal)
    assert output.isfinite().all() and (output[1] == 0).all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(output.sum(), inputs))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=str)
@pytest.mark.parametrize("length", [1, 63, 65, 300])
def test_half_precision_and_awkward_lengths(length, dtype, tolerance):
    (query, key, value), _, _ = make_inputs(length, dtype=dtype, requires_grad=False)
    synapses, exact = make_synapses(True, torch.float32), ExactPart(16, 2)
    expected = hybrid_attention_weights(query, key, synapses, exact, scaling=0.4, causal=True) @ value.float()
    output, _ = hybrid_attention(query, key, value, synapses, exact, scaling=0.4, causal=True)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)


def test_loudness_moves_weight_between_the_parts():
    (query, key, _), _, _ = make_inputs(23)
    shares = []
    for loudness in (1e-6, 1.0, 1e6):
        synapses = make_synapses(False)._replace(loudness=torch.full((HEADS, 1, 1), loudness, dtype=torch.float64))
        weights = hybrid_attention_weights(query, key, synapses, ExactPart(4), scaling=0.4, causal=True)
        shares.append(weights[:, :, -1, -4:].sum(-1).mean().item())
    assert math.isclose(shares[0], 1, abs_tol=1e-4) and 0.1 < shares[1] < 0.95 and shares[2] < 1e-4
