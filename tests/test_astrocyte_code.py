# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The codes against the N x N matrix that they never build."""

import pytest
import torch
from conftest import tiny_config

from astroformer_hf.astrocyte_code import (
    ASTROCYTE_CODES,
    RESTING_ACTIVITY,
    coupling_row_sum,
    coupling_to_others,
    decayed_sum,
    decayed_sum_token_by_token,
    exponential_coupling,
    sequence_layout,
    sinusoidal_features,
    untrained_activity,
)
from astroformer_hf.modeling_astroformer import AstroformerModel
from astroformer_hf.neuron_astrocyte_attention import FEATURE_MAPS


LENGTHS = [1, 2, 63, 64, 65, 128, 500]
SCALES = [0.003, 0.5, 1.0, 30.0]


def coupling_matrix(length, scale):
    position = torch.arange(length, dtype=torch.float64)
    return torch.exp(-scale * (position[:, None] - position).abs())


def initialised(kind, **changes):
    config = tiny_config(astrocyte_code=kind, num_hidden_layers=1, **changes)
    return config, AstroformerModel(config).double().layers[0].attention.astrocyte_code


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("length", [*LENGTHS, 64 * 64 + 1])
def test_decayed_sum_equals_the_recurrence(length, scale, reverse):
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    output, expected = decayed_sum(x, scale, reverse), decayed_sum_token_by_token(x, scale, reverse)
    torch.testing.assert_close(output, expected)
    probe = torch.randn_like(output)
    gradients = [torch.autograd.grad((y * probe).sum(), x)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("length", LENGTHS)
def test_couplings_equal_the_matrix(length, scale):
    x = torch.randn(2, length, 3, dtype=torch.float64)
    matrix = coupling_matrix(length, scale)
    torch.testing.assert_close(exponential_coupling(x, scale), matrix @ x)
    # without the own position, and in units of the next neighbour
    position = torch.arange(length, dtype=torch.float64)
    to_others = torch.exp(-scale * ((position[:, None] - position).abs() - 1)).fill_diagonal_(0)
    torch.testing.assert_close(coupling_to_others(x, scale), to_others @ x)


def test_the_coupling_takes_memory_linear_in_the_length():
    x = torch.randn(1, 2**18, 1)  # its matrix would take 256 GiB
    assert exponential_coupling(x, 0.01).isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
def test_learned_code_is_r_times_the_table(scale):
    config, code = initialised("learned", astrocyte_scale=scale)
    expected = coupling_matrix(160, scale) @ code.relative_embedding + code.resting_bias
    for length in (1, 64, 100, 160):
        key = torch.zeros(2, 4, length, 8, dtype=torch.float64)
        output = code(key, sequence_layout(length, key.device))
        torch.testing.assert_close(output, expected[:, :length])
    position_ids = torch.tensor([[5, 0, 159], [1, 1, 30]])
    output = code(torch.zeros(2, 4, 3, 8), sequence_layout(3, key.device, position_ids=position_ids))
    torch.testing.assert_close(output, expected[:, position_ids].transpose(0, 1))


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 30.0])
def test_sinusoidal_code_is_r_times_the_waves_of_the_whole_line(scale):
    config, code = initialised("sinusoidal", astrocyte_scale=scale)
    far = 1000  # exp(-0.05 * 1000) is below the rounding of float64
    waves = sinusoidal_features(torch.arange(-far, far + 21)[None], code.num_frequencies, torch.float64)[0]
    expected = (coupling_matrix(2 * far + 21, scale) @ waves)[far:-far] @ code.weight + code.resting_bias
    output = code(torch.zeros(1, 4, 21, 8, dtype=torch.float64), sequence_layout(21, waves.device))
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("length", [1, 2, 70])
def test_activity_code_is_the_neighbourhood_of_the_keys(length, scale):
    config, code = initialised("activity", astrocyte_scale=scale)
    torch.nn.init.normal_(code.weight)
    key = torch.randn(2, 4, length, 8, dtype=torch.float64)
    mask = torch.rand(2, length) > 0.3
    mask[0] = True
    output = code(key, sequence_layout(length, key.device, mask))
    for b in range(2):
        keys = key[b][:, mask[b]]  # the real tokens, as if the others were not there
        position = torch.arange(keys.shape[1], dtype=torch.float64)
        r = torch.exp(-scale * ((position[:, None] - position).abs() - 1)).fill_diagonal_(0)
        r = r / r.sum(-1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(output[b][:, mask[b]], r @ keys @ code.weight + code.resting_bias)


def test_activity_code_passes_gradients_of_the_plain_form():
    config, code = initialised("activity")
    key = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    layout = sequence_layout(5, key.device, torch.tensor([[0, 1, 1, 0, 1]]))
    assert torch.autograd.gradcheck(lambda key: code(key, layout)[:, :, [1, 2, 4]], key)


def test_layouts():
    device = torch.device("cpu")
    assert sequence_layout(3, device).is_contiguous
    assert sequence_layout(3, device, torch.ones(2, 3)).padding_mask is None
    right = sequence_layout(3, device, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert right.is_contiguous and right.order is None
    assert right.position_ids.tolist() == [[0, 1, 2]]
    left = sequence_layout(3, device, torch.tensor([[0, 1, 1], [1, 0, 1]]))
    assert not left.is_contiguous
    assert left.position_ids.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert left.order.tolist() == [[1, 2, 0], [0, 2, 1]]


@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp"])
@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_an_untrained_code_is_quiet_and_can_grow(kind, feature_map, scale):
    config, code = initialised(kind, feature_map=feature_map, astrocyte_scale=scale, initializer_range=0.02)
    loudness = FEATURE_MAPS[feature_map](code(torch.zeros(1, 4, 80, 8), sequence_layout(80, None)), None)
    relative = loudness.mean() / untrained_activity(feature_map, 8)
    assert 0.5 * RESTING_ACTIVITY < relative < 2.5 * RESTING_ACTIVITY
    gradients = torch.autograd.grad(loudness.sum(), list(code.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_row_sum():
    matrix = coupling_matrix(2001, 0.1)
    assert coupling_row_sum(0.1) == pytest.approx(matrix[1000].sum().item())


def test_every_code_of_the_configuration_exists():
    from astroformer_hf.configuration_astroformer import CHOICES

    assert tuple(ASTROCYTE_CODES) == CHOICES["astrocyte_code"]
    assert tuple(FEATURE_MAPS) == CHOICES["feature_map"]
