# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The codes against the N x N matrix that they never build."""

import math

import pytest
import torch
from variants import tiny_config, tiny_vision_config

from astroformer_hf.astrocyte_code import ASTROCYTE_CODES, coupling_row_sum
from astroformer_hf.decayed_sums import (
    couple_to_near,
    coupling_to_others,
    decayed_sum,
    decayed_sum_token_by_token,
    exponential_coupling,
    near_coupling,
)
from astroformer_hf.feature_maps import FEATURE_MAPS
from astroformer_hf.layers_astroformer import precompute_shared
from astroformer_hf.modeling_astroformer import AstroformerModel
from astroformer_hf.modeling_astroformer_vision import AstroformerVisionModel
from astroformer_hf.token_layout import (
    grid_layout,
    sequence_layout,
    sinusoidal_features,
)


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
        output, _ = code.make(key, sequence_layout(length, key.device))
        torch.testing.assert_close(output, expected[:, :length])
    position_ids = torch.tensor([[5, 0, 159], [1, 1, 30]])
    output, _ = code.make(torch.zeros(2, 4, 3, 8), sequence_layout(3, key.device, position_ids=position_ids))
    torch.testing.assert_close(output, expected[:, position_ids].transpose(0, 1))


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 30.0])
def test_sinusoidal_code_is_r_times_the_waves_of_the_whole_line(scale):
    config, code = initialised("sinusoidal", astrocyte_scale=scale)
    far = 1000  # exp(-0.05 * 1000) is below the rounding of float64
    waves = sinusoidal_features(torch.arange(-far, far + 21)[None], code.num_frequencies, torch.float64)[0]
    expected = (coupling_matrix(2 * far + 21, scale) @ waves)[far:-far] @ code.weight + code.resting_bias
    output, _ = code.make(torch.zeros(1, 4, 21, 8, dtype=torch.float64), sequence_layout(21, waves.device))
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("length", [1, 2, 70])
def test_activity_code_is_the_neighbourhood_of_the_keys(length, scale):
    config, code = initialised("activity", astrocyte_scale=scale)
    torch.nn.init.normal_(code.weight)
    key = torch.randn(2, 4, length, 8, dtype=torch.float64)
    mask = torch.rand(2, length) > 0.3
    mask[0] = True
    output, _ = code.make(key, sequence_layout(length, key.device, mask))
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
    assert torch.autograd.gradcheck(lambda key: code.make(key, layout)[0][:, :, [1, 2, 4]], key)


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


@pytest.mark.parametrize("resting", [0.05, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp"])
@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_an_untrained_code_is_as_loud_as_it_should_be_and_can_grow(kind, feature_map, scale, resting):
    changes = {"astrocyte_scale": scale, "initializer_range": 0.02, "astrocyte_resting_activity": resting}
    config, code = initialised(kind, feature_map=feature_map, **changes)
    loudness = FEATURE_MAPS[feature_map](code.make(torch.zeros(1, 4, 80, 8), sequence_layout(80, None))[0])
    relative = loudness.mean() / FEATURE_MAPS[feature_map].activity_before_training(8)
    assert 0.5 * resting < relative < 2.5 * resting
    gradients = torch.autograd.grad(loudness.sum(), list(code.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_row_sum():
    matrix = coupling_matrix(2001, 0.1)
    assert coupling_row_sum(0.1, 1) == pytest.approx(matrix[1000].sum().item())


# Causally ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_causal_learned_code_is_the_recurrence(scale):
    config, code = initialised("learned", astrocyte_scale=scale)
    expected = coupling_matrix(160, scale).tril() @ code.relative_embedding + code.resting_bias
    for length in (1, 64, 160):
        key = torch.zeros(2, 4, length, 8, dtype=torch.float64)
        output, _ = code.make(key, sequence_layout(length, key.device, causal=True))
        torch.testing.assert_close(output, expected[:, :length])
    output, _ = code.make(key[:, :, :7], sequence_layout(7, key.device, causal=True, past_length=90))
    torch.testing.assert_close(output, expected[:, 90:97])


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 30.0])
def test_causal_sinusoidal_code_is_the_recurrence_on_the_line(scale):
    config, code = initialised("sinusoidal", astrocyte_scale=scale)
    far = 1000
    waves = sinusoidal_features(torch.arange(-far, 21)[None], code.num_frequencies, torch.float64)[0]
    expected = (coupling_matrix(far + 21, scale).tril() @ waves)[far:] @ code.weight + code.resting_bias
    output, _ = code.make(torch.zeros(1, 4, 21, 8, dtype=torch.float64), sequence_layout(21, waves.device, causal=True))
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("pieces", [(70,), (1, 69), (30, 1, 1, 38), (64, 6)], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_causal_activity_code_is_the_mean_of_what_came_before(scale, pieces):
    config, code = initialised("activity", astrocyte_scale=scale)
    torch.nn.init.normal_(code.weight)
    key = torch.randn(3, 4, 70, 8, dtype=torch.float64)
    mask = torch.rand(3, 70) > 0.3
    mask[0] = True
    mask[1, :40] = False  # the first pieces are nothing but padding
    outputs, state, start = [], None, 0
    for size in pieces:
        layout = sequence_layout(size, key.device, mask[:, : start + size], causal=True, past_length=start)
        output, state = code.make(key[:, :, start : start + size], layout, None, state)
        outputs.append(output)
        start += size
    output = torch.cat(outputs, dim=2)
    for b in range(3):
        keys = key[b][:, mask[b]]
        position = torch.arange(keys.shape[1], dtype=torch.float64)
        r = torch.exp(-scale * ((position[:, None] - position).abs() - 1)).tril(-1)
        r = r / r.sum(-1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(output[b][:, mask[b]], r @ keys @ code.weight + code.resting_bias)


def test_causal_layouts():
    device = torch.device("cpu")
    mask = torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1]])
    layout = sequence_layout(2, device, mask, causal=True, past_length=2)
    assert layout.padding_mask is None and layout.full_mask.tolist() == (mask != 0).tolist()
    assert layout.position_ids.tolist() == [[1, 2], [1, 2]]
    assert layout.num_written.flatten().tolist() == [2, 3, 2, 3]
    assert sequence_layout(2, device, causal=True, past_length=2).num_written.flatten().tolist() == [3, 4]
    assert sequence_layout(4, device, mask, causal=True).num_written.flatten().tolist() == [1, 1, 2, 3, 1, 1, 2, 3]
    assert sequence_layout(4, device, mask).num_written.flatten().tolist() == [3, 3]


# On a grid -----------------------------------------------------------------------------------------------------------


def grid_code(kind, **changes):
    config = tiny_vision_config(astrocyte_code=kind, num_hidden_layers=1, **changes)
    return config, AstroformerVisionModel(config).double().layers[0].attention.astrocyte_code


def euclidean_coupling(rows, columns, scale):
    position = [(i, j) for i in range(rows) for j in range(columns)]
    return torch.tensor([[math.exp(-scale * math.dist(a, b)) for b in position] for a in position], dtype=torch.float64)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("kind", ASTROCYTE_CODES)
def test_codes_on_a_grid_are_the_coupling_at_euclidean_distance(kind, scale, class_token):
    size = {"image_size": (12, 20), "patch_size": 4, "pooling": "cls" if class_token else "mean"}
    config, code = grid_code(kind, astrocyte_scale=scale, **size)
    key = torch.randn(2, 4, 15 + class_token, 8, dtype=torch.float64)
    r = euclidean_coupling(3, 5, scale)
    output, _ = code.make(key, grid_layout((3, 5), config.grid, class_token, key.device))
    output = (output - code.resting_bias)[..., class_token:, :]
    if kind == "learned":
        expected = r @ code.relative_embedding[:, class_token:]
    elif kind == "sinusoidal":
        axes = [torch.arange(3).repeat_interleave(5)[None], torch.arange(5).repeat(3)[None]]
        waves = torch.cat([sinusoidal_features(a, code.num_frequencies, torch.float64) for a in axes], dim=-1)
        expected = r @ waves[0] @ code.weight
    else:
        r = (r * math.exp(scale)).fill_diagonal_(0)
        expected = (r / r.sum(-1, keepdim=True)) @ key[:, :, class_token:] @ code.weight
    torch.testing.assert_close(output, expected)


def test_the_class_token_lies_off_the_grid():
    for kind in ASTROCYTE_CODES:
        config, code = grid_code(kind, pooling="cls")
        key = torch.randn(2, 4, 17, 8, dtype=torch.float64)
        output, _ = code.make(key, grid_layout((4, 4), (4, 4), True, key.device))
        own = code.relative_embedding[:, 0] if kind == "learned" else 0
        expected = (own + code.resting_bias[:, 0]).expand_as(output[..., 0, :])
        torch.testing.assert_close(output[..., 0, :], expected)


@pytest.mark.parametrize("padded", [None, slice(0, 4), slice(30, 41), slice(3, 30, 2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ASTROCYTE_CODES)
def test_prefix_tokens_lie_off_the_line(kind, causal, padded):
    config, code = initialised(kind)
    table = code.relative_embedding if kind == "learned" else None
    key = torch.randn(2, 4, 43, 8, dtype=torch.float64)
    mask = torch.ones(2, 43, dtype=torch.long)
    if padded is not None:
        mask[1, 2:][padded] = 0
    layout = sequence_layout(43, key.device, mask, causal=causal, num_prefix_tokens=2)
    output, state = code.make(key, layout)
    output = output.expand(2, *output.shape[-3:])
    own = table[:, :2] if table is not None else 0
    torch.testing.assert_close(output[:, :, :2], (own + code.resting_bias).expand_as(output[:, :, :2]))

    if table is not None:
        code.relative_embedding = torch.nn.Parameter(table[:, 2:])
    line = sequence_layout(41, key.device, mask[:, 2:], causal=causal)
    expected, expected_state = code.make(key[:, :, 2:], line)
    real = mask[:, None, 2:, None] != 0
    torch.testing.assert_close(output[:, :, 2:] * real, expected * real)
    for found, of_line in zip(state or (), expected_state or (), strict=True):
        torch.testing.assert_close(found, of_line)
    counted = mask.cumsum(-1) if causal else mask.sum(-1, keepdim=True)
    written = torch.as_tensor(layout.num_written).expand(2, 1, 43, 1)
    assert torch.equal(written[:, 0, :, 0][mask != 0], counted.expand(2, 43)[mask != 0].float())


def test_prefix_tokens_come_first():
    with pytest.raises(ValueError, match="num_prefix_tokens must be 0 with past_length 5, got 2"):
        sequence_layout(4, None, causal=True, past_length=5, num_prefix_tokens=2)
    with pytest.raises(ValueError, match="num_prefix_tokens must be 0 with several documents in a row, got 2"):
        sequence_layout(4, None, document_ids=torch.zeros(1, 4, dtype=torch.long), num_prefix_tokens=2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ASTROCYTE_CODES)
def test_attention_with_prefix_tokens_is_that_of_their_code(kind, causal):
    """Whichever way a backend makes the code on a line, with prefix tokens it is the one above."""
    layers = AstroformerModel(tiny_config(astrocyte_code=kind, num_hidden_layers=1)).layers
    hidden = torch.randn(2, 40, 32)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, 5:11] = 0
    layout = sequence_layout(40, hidden.device, mask, causal=causal, num_prefix_tokens=3)
    shared = precompute_shared(layout, layers)
    output, _ = layers[0].attention(hidden, shared)
    of_map, _ = layers[0].attention(hidden, shared, output_attentions=True)
    torch.testing.assert_close(output, of_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ASTROCYTE_CODES)
def test_a_finer_grid_sees_the_same_astrocyte(kind):
    config, code = grid_code(kind, image_size=64, astrocyte_scale=0.2)  # 16 x 16 patches
    if kind == "learned":  # a table that is smooth, as a trained one is
        rows = torch.linspace(0, 2, 16, dtype=torch.float64)
        smooth = torch.cartesian_prod(rows.sin(), rows.cos()).repeat(1, 4)
        code.relative_embedding.data = smooth.expand_as(code.relative_embedding).contiguous()
    coarse = torch.randn(1, 4, 1, 8, dtype=torch.float64).expand(-1, -1, 256, -1)  # one key for all patches
    fine = coarse[:, :, :1].expand(-1, -1, 32 * 32, -1)
    near, _ = code.make(coarse, grid_layout((16, 16), config.grid, False, None))
    far, _ = code.make(fine, grid_layout((32, 32), config.grid, False, None))
    near, far = (x.expand(1, -1, -1, -1) if x.dim() == 3 else x for x in (near, far))
    pooled = torch.nn.functional.avg_pool2d(far[0].unflatten(1, (32, 32)).permute(0, 3, 1, 2), 2)
    inner = slice(4, 12)  # away from the border, whose patches reach to another place
    near = near[0].unflatten(1, (16, 16)).permute(0, 3, 1, 2)
    difference = (pooled - near)[..., inner, inner].abs().max()
    assert difference < 0.03 * near.abs().max()


def test_row_sum_of_the_grid():
    assert coupling_row_sum(1.0, 2) == pytest.approx(euclidean_coupling(41, 41, 1.0)[41 * 20 + 20].sum().item())


def test_every_code_of_the_configuration_exists():
    from astroformer_hf.configuration_astroformer import CHOICES

    assert tuple(ASTROCYTE_CODES) == tuple(CHOICES["astrocyte_code"])
    assert tuple(FEATURE_MAPS) == tuple(CHOICES["feature_map"])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1, 64, 200])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_near_coupling_equals_the_matrix(length, size, causal):
    x, scale, reach = torch.randn(2, length, 3, dtype=torch.float64), 0.3, min(size, 16)
    position = torch.arange(length)
    distance = (position[:, None] - position).abs()
    matrix = coupling_matrix(length, scale).masked_fill(distance > reach, 0)
    expected = (matrix.tril() if causal else matrix) @ x
    near = near_coupling(size, reach, scale, causal, None, x.dtype)
    for num_rows in {1, length // 2, length}:
        torch.testing.assert_close(couple_to_near(x, near, causal, num_rows), expected[:, :num_rows])


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_weights_that_are_written_in_place_are_read(kind, is_decoder):
    """As averages of weights and syncs to another process write them, which autograd does not notice."""
    model, other = (AstroformerModel(tiny_config(astrocyte_code=kind, is_decoder=is_decoder)).eval() for _ in range(2))
    input_ids = torch.randint(1, 50, (2, 9))
    with torch.no_grad():
        assert not torch.equal(model(input_ids)[0], other(input_ids)[0])
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.data.copy_(q)
        torch.testing.assert_close(model(input_ids)[0], other(input_ids)[0], rtol=0, atol=0)


def test_what_the_layers_share_is_worked_out_once(monkeypatch):
    model = AstroformerModel(tiny_config(astrocyte_code="sinusoidal", num_hidden_layers=3))
    calls = []
    layout_class = type(sequence_layout(3, "cpu"))
    waves = layout_class.coupled_waves
    monkeypatch.setattr(layout_class, "coupled_waves", lambda *args: calls.append(1) or waves(*args))
    model(torch.ones(1, 5).long())
    assert len(calls) == 1


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_a_step_of_decoding_reads_only_the_rows_that_it_feels(scale):
    config, code = initialised("learned", astrocyte_scale=scale, is_decoder=True)
    whole = code.make(None, sequence_layout(100, "cpu", causal=True))[0]
    mask = torch.ones(2, 100)
    mask[1, :30] = 0
    for t in (0, 1, 50, 99):
        step = code.make(None, sequence_layout(1, "cpu", mask[:, : t + 1], causal=True, past_length=t))[0]
        step = step.expand(2, *step.shape[-3:])
        torch.testing.assert_close(step[0, :, 0], whole[:, t])
        if t >= 30:
            torch.testing.assert_close(step[1, :, 0], whole[:, t - 30])
