# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The operation against the token-by-token network: values, gradients, padding, states, precision, errors."""

import itertools

import pytest
import torch
from variants import some_each_time

from astroformer_hf import (
    NeuronAstrocyteState,
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
    neuron_astrocyte_network,
)
from astroformer_hf.feature_maps import FEATURE_MAPS, draw_random_projection


OPTIONS = [
    {"feature_map": feature_map, "alpha": alpha, "feedback": feedback}
    for feature_map, alpha, feedback in itertools.product(FEATURE_MAPS, (1.0, 0.5, 0.25), (True, False))
]


def make_inputs(length, batch=2, heads=3, hidden_neurons=8, head_dim=5, code="batched", dtype=torch.float64):
    query, key = torch.randn(2, batch, heads, length, hidden_neurons, dtype=dtype).unbind(0)
    value = torch.randn(batch, heads, length, head_dim, dtype=dtype)
    shape = {"none": None, "shared": (heads,), "batched": (batch, heads)}[code]
    code = None if shape is None else torch.randn(*shape, length, hidden_neurons, dtype=dtype)
    tensors = [query, key, value] + ([] if code is None else [code])
    for tensor in tensors:
        tensor.requires_grad_()
    return query, key, value, code, tensors


def some_mask(batch, length):
    mask = torch.rand(batch, length) > 0.3
    mask[0, : length // 3] = False  # padding on the left of one sequence, on the right of the other
    mask[1, length - length // 4 :] = False
    return mask


def output_and_gradients(function, arguments, tensors, **options):
    output = function(*arguments, **options)
    probe = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, torch.autograd.grad((output * probe).sum(), tensors)


CODES = ("none", "shared", "batched")
LENGTHS = (1, 2, 63, 130)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("number", "length", "code"),
    # every option at every length, with one code after the other
    some_each_time(
        itertools.product(range(len(OPTIONS)), LENGTHS, CODES),
        [(i, length, CODES[(i + j) % 3]) for i in range(len(OPTIONS)) for j, length in enumerate(LENGTHS)],
    ),
)
def test_equals_the_network_in_values_and_gradients(number, length, code, causal):
    options = {**OPTIONS[number], "causal": causal}
    query, key, value, astrocyte_code, tensors = make_inputs(length, code=code)
    arguments = (query, key, value, astrocyte_code, some_mask(2, length))
    expected, expected_gradients = output_and_gradients(neuron_astrocyte_network, arguments, tensors, **options)
    output, gradients = output_and_gradients(neuron_astrocyte_attention, arguments, tensors, **options)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-9)


def test_network_is_the_paper_s_equation():
    query, key, value, code, _ = make_inputs(11, code="shared")
    phi = lambda x: torch.nn.functional.elu(x) + 1  # noqa: E731
    for b, h in itertools.product(range(2), range(3)):
        q, k, r, v = phi(query[b, h]), phi(key[b, h]), phi(code[h]), value[b, h]
        hebbian = k.T @ v / 8 + r.T @ v / 8
        response = q @ k.sum(0) ** 0.5
        expected = (q @ hebbian) / response[:, None]
        output = neuron_astrocyte_network(query, key, value, code, alpha=0.5)[b, h]
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_finite_differences(options, causal):
    _, _, _, _, tensors = make_inputs(3, batch=1, heads=1, hidden_neurons=2, head_dim=2)
    mask = torch.tensor([[True, True, False]])
    projection = torch.randn(4, 2, dtype=torch.float64) if options["feature_map"] == "favor" else None

    def function(*tensors):
        return neuron_astrocyte_attention(*tensors, mask, random_projection=projection, causal=causal, **options)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("side", ["left", "right", "inner"])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("function", [neuron_astrocyte_attention, neuron_astrocyte_network])
def test_padding_adds_nothing_even_where_it_is_nan(function, side, causal):
    real = {"left": slice(4, 17), "right": slice(0, 13), "inner": [*range(5), *range(9, 17)]}[side]
    query, key, value, code, _ = make_inputs(17)
    mask = torch.zeros(2, 17, dtype=torch.bool)
    mask[:, real] = True
    expected = function(*(x[:, :, real] for x in (query, key, value, code)), alpha=0.5, causal=causal)
    poisoned = [x.detach().masked_fill(~mask[:, None, :, None], torch.nan) for x in (query, key, value, code)]
    output = function(*poisoned, mask, alpha=0.5, causal=causal)
    torch.testing.assert_close(output[:, :, real], expected)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sequence_of_padding_gives_zero_and_finite_gradients(options, dtype, causal):
    query, key, value, code, tensors = make_inputs(9, dtype=dtype)
    mask = torch.tensor([[True] * 9, [False] * 9])
    output, gradients = output_and_gradients(
        neuron_astrocyte_attention, (query, key, value, code, mask), tensors, causal=causal, **options
    )
    assert output.isfinite().all()
    assert (output[1] == 0).all()
    assert (output[0] != 0).any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_linear_attention_up_to_one_over_m():
    query, key, value, _, _ = make_inputs(40, code="none")
    weights = (torch.nn.functional.elu(query) + 1) @ (torch.nn.functional.elu(key) + 1).transpose(-1, -2)
    expected = weights / weights.sum(-1, keepdim=True) @ value
    torch.testing.assert_close(8 * neuron_astrocyte_attention(query, key, value), expected)


def test_favor_converges_to_softmax_attention():
    query, key, value, _, _ = make_inputs(30, code="none")
    query, key = query / 2, key / 2  # the estimate's variance grows as exp(|q + k|^2)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    errors = []
    for num_features in (64, 2**16):
        projection = draw_random_projection(num_features, 8)
        output = 8 * neuron_astrocyte_attention(query, key, value, feature_map="favor", random_projection=projection)
        errors.append((output - expected).abs().mean().item())
    assert errors[1] < 0.02 and errors[1] < errors[0] / 8  # sqrt(1024) = 32 in expectation


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_weights_times_values_is_the_output(options, causal):
    options = {**options, "causal": causal}
    query, key, value, code, _ = make_inputs(21)
    mask = some_mask(2, 21)
    weights = neuron_astrocyte_attention_weights(query, key, code, mask, **options)
    output = neuron_astrocyte_attention(query, key, value, code, mask, **options)
    torch.testing.assert_close(weights @ value, output)


@pytest.mark.parametrize("function", [neuron_astrocyte_attention, neuron_astrocyte_network])
@pytest.mark.parametrize("split", [1, 10, 36])
def test_written_in_pieces_and_read_once(function, split):
    query, key, value, code, tensors = make_inputs(37)
    mask = some_mask(2, 37)
    options = {"alpha": 0.5, "feature_map": "exp"}
    expected, expected_gradients = output_and_gradients(
        neuron_astrocyte_attention, (query, key, value, code, mask), tensors, **options
    )

    def in_pieces(query, key, value, code, mask, **options):
        state = None
        for piece in (slice(0, split), slice(split, 37)):
            _, state = function(
                query[:, :, :0],
                key[:, :, piece],
                value[:, :, piece],
                code[:, :, piece],
                mask[:, piece],
                initial_state=state,
                output_final_state=True,
                **options,
            )
        assert isinstance(state, NeuronAstrocyteState)
        assert state.hebbian.shape == (2, 3, 8, 5) and state.calcium.shape == (2, 3, 8)
        return function(query, key[:, :, :0], value[:, :, :0], initial_state=state, **options)

    output, gradients = output_and_gradients(in_pieces, (query, key, value, code, mask), tensors, **options)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_half_precision_inputs_are_summed_in_float32(dtype, feature_map, alpha, causal):
    query, key, value, code, _ = make_inputs(8192, batch=1, heads=1, dtype=dtype, code="shared")
    options = {"alpha": alpha, "feature_map": feature_map, "causal": causal}
    output = neuron_astrocyte_attention(query, key, value, code, **options)
    exact = neuron_astrocyte_attention(query.double(), key.double(), value.double(), code.double(), **options)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_autocast_leaves_the_sums_alone():
    query, key, value, code, _ = make_inputs(300, dtype=torch.float32)
    expected = neuron_astrocyte_attention(query, key, value, code, alpha=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = neuron_astrocyte_attention(query, key, value, code, alpha=0.5)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_extreme_activity_stays_finite():
    for feature_map in FEATURE_MAPS:
        query, key, value, _, tensors = make_inputs(33, code="none", dtype=torch.float32)
        arguments = (query * 100, key * 100, value)
        output, gradients = output_and_gradients(
            neuron_astrocyte_attention, arguments, tensors, feature_map=feature_map, alpha=0.25
        )
        assert output.isfinite().all(), feature_map
        assert all(gradient.isfinite().all() for gradient in gradients), feature_map


def test_compiles_to_one_graph():
    query, key, value, code, tensors = make_inputs(33, dtype=torch.float32)
    mask = some_mask(2, 33)
    compiled = torch.compile(neuron_astrocyte_attention, fullgraph=True, backend="aot_eager")
    expected = output_and_gradients(neuron_astrocyte_attention, (query, key, value, code, mask), tensors, alpha=0.5)
    output = output_and_gradients(compiled, (query, key, value, code, mask), tensors, alpha=0.5)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"alpha": 0}, r"alpha .*\(0, 1\].* 0"),
        ({"alpha": 1.5}, "alpha .* 1.5"),
        ({"feature_map": "gelu"}, "feature_map .*'elu'.*'gelu'"),
        ({"query": torch.zeros(2, 3, 8)}, r"query must have 4 dimensions.*\(2, 3, 8\)"),
        ({"query": torch.zeros(2, 3, 7, 6)}, r"hidden neurons.*\(2, 3, 7, 6\)"),
        ({"query": torch.zeros(2, 3, 6, 8)}, r"same length.*\(2, 3, 6, 8\)"),
        ({"key": torch.zeros(2, 3, 7, 8, dtype=torch.long)}, "key .*floating-point.*int64"),
        ({"value": torch.zeros(2, 2, 7, 5)}, r"batch and heads.*\(2, 2, 7, 5\)"),
        ({"value": torch.zeros(2, 3, 6, 5)}, r"same length.*\(2, 3, 6, 5\)"),
        ({"astrocyte_code": torch.zeros(3, 6, 8)}, r"astrocyte_code .*\(3, 7, 8\).*\(3, 6, 8\)"),
        ({"padding_mask": torch.ones(2, 7)}, "padding_mask must be bool.*float32"),
        ({"padding_mask": torch.ones(2, 6, dtype=torch.bool)}, r"padding_mask .*\(2, 7\).*\(2, 6\)"),
        ({"random_projection": torch.zeros(4, 8)}, "random_projection .*'favor'.*'elu'"),
        ({"feature_map": "favor", "random_projection": torch.zeros(4, 7)}, r"random_projection .*\(4, 7\)"),
        ({"initial_state": (torch.zeros(2, 3, 8, 4), torch.zeros(2, 3, 8))}, r"initial_state .*\(2, 3, 8, 4\)"),
    ],
)
@pytest.mark.parametrize("function", [neuron_astrocyte_attention, neuron_astrocyte_network])
def test_bad_arguments_are_named(function, changes, message):
    query, key, value, _, _ = make_inputs(7, code="none")
    with pytest.raises(ValueError, match=message):
        function(**{"query": query, "key": key, "value": value, **changes})


@pytest.mark.parametrize("function", [neuron_astrocyte_attention, neuron_astrocyte_network])
@pytest.mark.parametrize("pieces", [(1, 136), (10, 127), (64, 73), (100, 36, 1), (1, 1, 1, 70, 64)], ids=str)
def test_causal_in_pieces_equals_the_whole(function, pieces):
    query, key, value, code, tensors = make_inputs(137)
    mask = some_mask(2, 137)
    options = {"alpha": 0.5, "feature_map": "exp", "causal": True}
    arguments = (query, key, value, code, mask)
    expected, expected_gradients = output_and_gradients(neuron_astrocyte_attention, arguments, tensors, **options)

    def in_pieces(query, key, value, code, mask, **options):
        state, outputs, start = None, [], 0
        for size in pieces:
            piece = slice(start, start + size)
            output, state = function(
                *(x[:, :, piece] for x in (query, key, value, code)),
                mask[:, piece],
                initial_state=state,
                output_final_state=True,
                **options,
            )
            outputs.append(output)
            start += size
        assert state.hebbian.shape == (2, 3, 8, 5) and state.calcium.shape == (2, 3, 8)
        return torch.cat(outputs, dim=2)

    output, gradients = output_and_gradients(in_pieces, arguments, tensors, **options)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_later_is_read(options):
    query, key, value, code, _ = make_inputs(130)
    output = neuron_astrocyte_attention(query, key, value, code, causal=True, **options)
    for t in (0, 63, 64, 128):
        other = [x.detach().clone() for x in (query, key, value, code)]
        for x in other:
            x[:, :, t + 1 :] = torch.randn_like(x[:, :, t + 1 :]) * 10
        changed = neuron_astrocyte_attention(*other, causal=True, **options)
        torch.testing.assert_close(changed[:, :, : t + 1], output[:, :, : t + 1])
        assert (changed[:, :, t + 1 :] != output[:, :, t + 1 :]).any()


def test_causal_memory_is_linear_in_the_length():
    def saved_bytes(length):
        query, key, value, code, _ = make_inputs(length, batch=1, heads=1, dtype=torch.float32)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x, lambda x: x
        ):
            output = neuron_astrocyte_attention(query, key, value, code, alpha=0.5, causal=True)
        assert output.requires_grad
        return sum(sizes.values())

    assert saved_bytes(16 * 1024) < 17 * saved_bytes(1024)


def test_a_silent_synapse_is_not_answered_with_infinity():
    query, key = torch.zeros(2, 1, 1, 2, 2).unbind(0)
    query[..., 0], key[..., 1] = 1, 1  # relu: the query reads a neuron that no key has excited
    code, value = torch.ones(1, 2, 2), torch.ones(1, 1, 2, 3)
    for causal in (False, True):
        output = neuron_astrocyte_attention(query, key, value, code, alpha=0.25, feature_map="relu", causal=causal)
        assert (output == 0).all()
