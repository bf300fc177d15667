# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Attention of which a part is exact: the fast forms against the map, and the map against softmax and the synapses."""

import itertools
import math

import pytest
import torch
from hybrid_cases import HEADS, PADDED, SHAPES, SIZE, Case, make_inputs, make_mask

from astroformer_hf import attention_backend, hybrid_attention_cpu, neuron_astrocyte_network
from astroformer_hf.feature_maps import MOST_GAIN, HedgehogMap
from astroformer_hf.hybrid_attention import ExactPart, Synapses, hybrid_attention, hybrid_attention_weights
from astroformer_hf.token_layout import sequence_layout


FEATURES = 10
EXACT = [(0, 0), (0, 2), (3, 0), (2, 1), (5, 2), (16, 4), (40, 0)]


# Without a code the whole is one pass, which has a plain form and a kernel.
FORMS = {
    "H_neuron, plain": (False, "plain"),
    "H_neuron": (False, "auto"),
    "H_neuron + H_astro": (True, "auto"),
}


@pytest.fixture(params=FORMS)
def with_code(request):
    """Whether there is H_astro, in a backend."""
    with_code, backend = FORMS[request.param]
    with attention_backend(backend):
        yield with_code


def make_synapses(with_code, dtype=torch.float64):
    """Synapses with "hedgehog" maps, and perhaps the code "activity"."""
    query_map, key_map = (torch.randn(HEADS, SIZE, FEATURES // 2, dtype=dtype) for _ in range(2))
    key_loudness = 0.3 * torch.randn(HEADS, SIZE, 1, dtype=dtype)
    weight, bias = torch.randn(HEADS, SIZE, SIZE, dtype=dtype), torch.randn(HEADS, 1, SIZE, dtype=dtype)

    def code(key, real, causal, state):
        layout = sequence_layout(key.shape[2], key.device, real, causal=causal)
        recipe = layout.activity(key, 0.7, weight.to(key.dtype), bias.to(key.dtype), state)
        return recipe.materialize(key, layout.padding_mask, layout.causal, None)

    loudness = torch.tensor([0.3, 1.0, 2.0], dtype=dtype)[:, None, None]
    maps = HedgehogMap(query_map), HedgehogMap(key_map, key_loudness)
    return Synapses(*maps, loudness, code if with_code else None)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("exact", EXACT, ids=str)
@pytest.mark.parametrize("padded", PADDED)
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


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("exact", [(0, 2), (1, 0), (3, 1)], ids=str)
@pytest.mark.parametrize("form", ["map", "plain", pytest.param("cpp", marks=pytest.mark.compiler)])
def test_gradients_are_those_of_finite_differences(form, exact, causal):
    """Of the greatest score, too, beside which the others count: it moves them, and the synapses' weights not."""
    case = Case(9, (4, 2, 3, 2))
    mask, shown = make_mask(9, "left")

    def attention(*tensors):
        case.query, case.key, case.value, *case.maps, case.loudness = tensors
        output = case.by_map(exact, mask, causal) if form == "map" else case.by(form, exact, mask, causal)[0]
        return output * shown

    assert torch.autograd.gradcheck(attention, case.tensors)


@pytest.mark.parametrize("exact", EXACT, ids=str)
@pytest.mark.parametrize("padded", PADDED)
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


# --------------------------------------------------------------------------------------------------------------------
# The kernel
# --------------------------------------------------------------------------------------------------------------------

needs_cpp = pytest.mark.compiler
LENGTHS = (1, 2, 7, 65, 130, 257)
WINDOWS, SINKS = (0, 1, 8, 64), (0, 1, 4)


@needs_cpp
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_kernel_is_the_map(length, causal):
    for i, exact in enumerate(itertools.product(WINDOWS, SINKS)):
        case, (mask, shown) = Case(length, SHAPES[i % 3]), make_mask(length, PADDED[(i + i // 4 + length) % 4])
        output, _ = case.by("cpp", exact, mask, causal)
        expected = case.by_map(exact, mask, causal)
        torch.testing.assert_close(output * shown, expected * shown, rtol=1e-10, atol=1e-10)
        upstream = torch.randn_like(output) * shown
        gradients = case.gradients(output, upstream), case.gradients(expected, upstream)
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@needs_cpp
@pytest.mark.parametrize("exact", [(0, 0), (0, 4), (1, 0), (8, 1), (64, 4)], ids=str)
def test_pieces_by_the_kernel_and_their_gradients(exact):
    """Values and gradients through the states of any splits, which the plain form goes on from and the other way."""
    length = 150
    for padded, splits in (
        ("no", (70, 75, 1, 4)),
        ("left", (3, 1, 97, 49)),
        ("inside", (140, 10)),
        ("right", (1, 149)),
    ):
        case, (mask, shown) = Case(length, SHAPES[0]), make_mask(length, padded)
        expected = case.by_map(exact, mask, True) * shown
        upstream = torch.randn_like(expected)
        wanted = case.gradients(expected, upstream)
        for backends in (("cpp",), ("cpp", "plain")):
            outputs, state, start = [], None, 0
            for size, backend in zip(splits, itertools.cycle(backends)):
                output, state = case.by(backend, exact, mask, True, slice(start, start + size), state)
                outputs.append(output)
                start += size
            found = torch.cat(outputs, dim=2) * shown
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(case.gradients(found, upstream), wanted, rtol=1e-9, atol=1e-9)


@needs_cpp
def test_the_state_is_that_of_the_plain_form():
    case, (mask, _) = Case(100, SHAPES[1]), make_mask(100, "left")
    (_, found), (_, expected) = (case.by(backend, (8, 4), mask, True) for backend in ("cpp", "plain"))
    tensors = [(*state.synapses, state.window, state.sinks, state.counted) for state in (found, expected)]
    torch.testing.assert_close(*tensors, rtol=1e-10, atol=1e-10)
    losses = (sum((x.double() * x).sum() for x in own[:-1]) for own in tensors)
    gradients = [torch.autograd.grad(loss, [case.key, case.value, *case.maps[1:]]) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-8)


@needs_cpp
@pytest.mark.parametrize("exact", [(0, 0), (8, 1), (16, 4)], ids=str)
def test_one_token_after_the_other(exact):
    case, (mask, shown) = Case(80, SHAPES[0]), make_mask(80, "inside")
    expected, state = case.by_map(exact, mask, True), None
    for t in range(80):
        output, state = case.by("cpp", exact, mask, True, slice(t, t + 1), state)
        here = slice(t, t + 1)
        torch.testing.assert_close(output * shown[:, :, here], (expected * shown)[:, :, here], rtol=1e-10, atol=1e-10)


@needs_cpp
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_single_precision_and_threads(causal, threads):
    """Causally, two heads of keys in a batch of two are four tasks, which three threads cut into chunks."""
    case, before = Case(400, (6, 2, 64, 64), torch.float32, scale=0.5), torch.get_num_threads()
    for padded in ("no", "right"):
        mask, shown = make_mask(400, padded)
        shown = shown.float()
        torch.set_num_threads(threads)
        try:
            output, state = case.by("cpp", (32, 2), mask, causal)
            upstream = torch.randn_like(output) * shown
            found = output * shown, *case.gradients(output, upstream)
        finally:
            torch.set_num_threads(before)
        expected = case.by_map((32, 2), mask, causal) * shown
        for x, y in zip(found, (expected, *case.gradients(expected, upstream)), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * y.abs().max().item())
        if causal:
            _, wanted = case.by("plain", (32, 2), mask, causal)
            for x, y in zip(state.synapses, wanted.synapses, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@needs_cpp
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("exact", [(0, 0), (8, 1)], ids=str)
def test_extreme_keys_stay_finite(exact, causal):
    case = Case(130, SHAPES[0], torch.float32, scale=30.0)
    output, _ = case.by("cpp", exact, None, causal)
    torch.testing.assert_close(output, case.by_map(exact, None, causal), rtol=1e-3, atol=1e-3)
    assert output.isfinite().all()
    assert all(x.isfinite().all() for x in case.gradients(output, torch.ones_like(output)))
    case = Case(130, SHAPES[0], torch.float64, scale=30.0)  # many keys are louder than the most
    assert ((case.key @ case.maps[2]).abs() > MOST_GAIN).any()
    output, expected = case.by("cpp", exact, None, causal)[0], case.by_map(exact, None, causal)
    upstream = torch.randn_like(output)
    for x, y in zip(case.gradients(output, upstream), case.gradients(expected, upstream), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-8 * y.abs().max().item() + 1e-10)


@needs_cpp
def test_nan_is_not_hidden():
    case = Case(60, SHAPES[0], torch.float32)
    with torch.no_grad():
        case.key[0, 0, 30] = math.nan
    output, _ = case.by("cpp", (8, 1), None, True)
    assert output[0, :3, 30:].isnan().all() and not output[0, :, :30].isnan().any() and not output[1].isnan().any()


@needs_cpp
def test_second_derivatives():
    case = Case(20, SHAPES[0])
    second = []
    for output in (case.by("cpp", (4, 1), None, True)[0], case.by_map((4, 1), None, True)):
        (first,) = torch.autograd.grad(output.square().sum(), case.key, create_graph=True)
        second.append(case.gradients(first.square().sum(), None))
    torch.testing.assert_close(*second, rtol=1e-8, atol=1e-8)


@needs_cpp
def test_which_form_is_taken(monkeypatch):
    functions, run = [], hybrid_attention_cpu._Call.run
    monkeypatch.setattr(hybrid_attention_cpu._Call, "run", lambda *given: [functions.append(given[1]), run(*given)])
    case = Case(20, SHAPES[0])
    for backend, causal in itertools.product(("auto", "plain"), (True, False)):
        case.by(backend, (4, 1), None, causal)[0].sum().backward()
    assert functions == ["hybrid_forward", "hybrid_backward"] * 2
    with pytest.raises(RuntimeError, match="'triton' was asked for, but .*cannot compute on cpu"):
        Case(20, SHAPES[0], torch.float32).by("triton", (4, 1), None, True)
    assert Case(20, SHAPES[0], torch.bfloat16).by("cpp", (4, 1), None, True)[0].dtype == torch.bfloat16
    # what has no kernel
    code = make_synapses(True)
    hybrid_attention(*make_inputs(20)[0], code, ExactPart(4), scaling=0.4, causal=True)
    maps = Synapses(torch.exp, torch.exp, code.loudness)
    hybrid_attention(*make_inputs(20)[0], maps, ExactPart(4), scaling=0.4, causal=True)
    assert functions[4:] == ["hybrid_forward"]


@needs_cpp
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_a_compiled_graph_has_it_as_one_operator(causal):
    graphs, case = [], Case(70, SHAPES[0], torch.float32)

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def attention(query, key, value):
        return hybrid_attention(query, key, value, case.synapses, ExactPart(8, 2), scaling=0.4, causal=causal)[0]

    output = torch.compile(attention, fullgraph=True, backend=backend)(case.query, case.key, case.value)
    expected = case.by_map((8, 2), None, causal)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(output)
    gradients = case.gradients(output, upstream), case.gradients(expected, upstream)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    called = [
        str(node.target) for graph in graphs for node in graph.graph.nodes if "astroformer_hf" in str(node.target)
    ]
    assert [name.split(".")[1] for name in called] == ["hybrid_causal" if causal else "hybrid_both_ways"]
    # elsewhere it is to run without the kernel
    exported = torch.export.export(Exported(attention), (case.query, case.key, case.value))
    assert "astroformer_hf" not in str(exported.graph)


class Exported(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)
