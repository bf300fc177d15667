# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The covariance rule against its definition, token by token."""

import itertools

import matrix
import pytest
import torch
from variants import make_model

from astroformer_hf import AstroformerConfig, attention_backend
from astroformer_hf.hebbian_covariance import covariance_read, covariance_weights


def by_definition(query, key, value, mask, causal, log_decay=None):
    """q H_cov with H_cov = (1/n) sum_s share_s (phi(k_s) - mean) v_s^T, where means are over what is left."""
    outputs = torch.zeros_like(value)
    batch, heads, length, _ = key.shape
    activity = torch.nn.functional.elu(key) + 1
    for b, h, t in itertools.product(range(batch), range(heads), range(length)):
        share = torch.zeros(length, dtype=key.dtype)
        for s in range(t + 1 if causal else length):
            if mask[b, s]:
                between = slice(min(s, t) + 1, max(s, t) + 1)
                share[s] = 1 if log_decay is None else (log_decay[b, h, between] * mask[b, between]).sum().exp()
        if share.sum() == 0:
            continue
        mean = (share[:, None] * activity[b, h]).sum(0) / share.sum()
        hebbian = ((activity[b, h] - mean) * share[:, None]).T @ value[b, h] / share.sum()
        outputs[b, h, t] = query[b, h, t] @ hebbian
    return outputs


@pytest.mark.parametrize("backend", matrix.BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("leaky", [False, True])
def test_it_is_the_covariance(leaky, causal, backend):
    exact = backend == "plain"
    query, key = torch.randn(2, 2, 2, 19, 6, dtype=torch.float64).unbind(0)
    value = torch.randn(2, 2, 19, 5, dtype=torch.float64)
    mask = torch.rand(2, 19) > 0.3
    mask[1, :4] = False
    log_decay = -torch.rand(2, 2, 19, dtype=torch.float64) if leaky else None
    results = []
    for is_definition in (True, False):
        dtype = torch.float64 if is_definition or exact else torch.float32
        given = [x.to(dtype).requires_grad_() for x in (query, key, value, *([log_decay] if leaky else []))]
        own_decay = given[3] if leaky else None
        if is_definition:
            output = by_definition(*given[:3], mask, causal, own_decay)
        else:
            options = {"feature_map": "elu", "causal": causal, "log_decay": own_decay}
            with attention_backend(backend):
                output, state = covariance_read(*given[:3], mask, **options)
                weights = covariance_weights(*given[:2], mask, **options)
            matrix.assert_close(weights @ given[2], output, 1e-9 if exact else 1e-3)
            assert (state is not None) == causal
        probe = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output) * mask[:, None, :, None]
        results.append((output * mask[:, None, :, None], *torch.autograd.grad((output * probe).sum(), given)))
    for found, expected in zip(*reversed(results), strict=True):
        matrix.assert_close(found, expected, 1e-9 if exact else 1e-3)


@pytest.mark.parametrize("pieces", [(1, 40), (10, 30, 1)])
def test_in_pieces(pieces):
    query, key, value = torch.randn(3, 2, 2, 41, 6, dtype=torch.float64).unbind(0)
    log_decay, mask = -torch.rand(1, 2, 41, dtype=torch.float64), torch.rand(2, 41) > 0.3
    whole, _ = covariance_read(query, key, value, mask, feature_map="exp", causal=True, log_decay=log_decay)
    state, outputs = None, []
    for part in zip(*(x.split(pieces, 2) for x in (query, key, value, log_decay)), mask.split(pieces, 1), strict=True):
        *own, of_decay, of_mask = part
        output, state = covariance_read(
            *own, of_mask, feature_map="exp", causal=True, log_decay=of_decay, initial_state=state
        )
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=2), whole)


@pytest.mark.parametrize("attention_type", ["neuron_astrocyte", "linear", "softmax"])
def test_it_adds_to_every_arm_and_starts_with_a_gain_of_one(attention_type):
    changes = {"attention_type": attention_type, "hebbian_rule": "covariance"}
    for name in ("AstroformerModel", "AstroformerVisionModel"):
        model = make_model(name, **changes)
        gains = [layer.attention.covariance_gain for layer in model.layers]
        assert all((gain == 1).all() for gain in gains)
        inputs = (
            {"pixel_values": torch.randn(2, 3, 16, 16)} if "Vision" in name else {"input_ids": torch.arange(9)[None]}
        )
        with_rule = model(**inputs).last_hidden_state
        for gain in gains:
            torch.nn.init.zeros_(gain)
        without = make_model(name, attention_type=attention_type)
        without.load_state_dict(
            {name: x for name, x in model.state_dict().items() if not name.endswith("covariance_gain")}
        )
        expected = without(**inputs).last_hidden_state
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected)
        assert (with_rule - expected).abs().max() > 1e-3


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="needs a feature_map with one feature for each hidden neuron, got 'favor'"):
        AstroformerConfig(hebbian_rule="covariance", feature_map="favor")
    with pytest.raises(ValueError, match="hebbian_rule must be 'correlation' for decoders of attention_type 'softmax'"):
        AstroformerConfig(hebbian_rule="covariance", attention_type="softmax", is_decoder=True)
