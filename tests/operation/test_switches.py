# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Leaky synapses, plasticity at the synapse and the sources of calcium: every combination, in both directions and on
every backend, against the token-by-token network."""

import dataclasses
import itertools
import math

import matrix
import pytest
import torch
from variants import some_each_time

from astroformer_hf import (
    BidirectionalState,
    NeuronAstrocyteState,
    attention_backend,
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
    neuron_astrocyte_network,
)
from astroformer_hf.attention_backends import BACKENDS as BACKENDS_OF_PACKAGE
from astroformer_hf.attention_contract import PASSES, Kernel, MaterializedCode
from astroformer_hf.attention_operation import attend
from astroformer_hf.decayed_sums import leaky_sum, leaky_sum_token_by_token
from astroformer_hf.feature_maps import FEATURE_MAPS
from astroformer_hf.token_layout import NeighbourhoodState, number_documents, sequence_layout


BACKENDS = matrix.BACKENDS
DECAYS = ("none", "shared", "batched")
SWITCHES = [
    {"alpha": alpha, "presynaptic_target": target, "calcium_sources": sources}
    for alpha, target, sources in itertools.product((1.0, 0.5), ("response", "synapse"), ("neurons", "all"))
    if alpha != 1 or target == "response"
]
LENGTHS = (1, 2, 47, 48, 49, 63, 64, 65, 130)


def make_inputs(length, decay="batched", batch=2, heads=3, hidden_neurons=8, head_dim=5, code=True, spans=(1, 50)):
    """Query, key, value, code and log decay, in float64; heads remember from `spans[0]` to `spans[1]` tokens."""
    query, key, code_ = torch.randn(3, batch, heads, length, hidden_neurons, dtype=torch.float64).unbind(0)
    value = torch.randn(batch, heads, length, head_dim, dtype=torch.float64)
    rates = 1 / torch.logspace(*torch.tensor(spans).log10().tolist(), heads, dtype=torch.float64)
    log_decay = None
    if decay != "none":
        size = batch if decay == "batched" else 1
        log_decay = -rates[:, None] * (torch.rand(size, heads, length, dtype=torch.float64) * 2)
    return query, key, value, code_ if code else None, log_decay


def some_mask(batch, length):
    mask = torch.rand(batch, length) > 0.3
    mask[0, : length // 3] = False
    mask[1, length - length // 4 :] = False
    return mask


def run(function, inputs, mask, backend="plain", dtype=torch.float64, **options):
    """Every result of a call, and the gradients of all inputs through a sum that weighs all of it."""
    device = matrix.device_of(backend)
    given = [None if x is None else x.to(device, dtype).requires_grad_() for x in inputs]
    query, key, value, code, log_decay = given
    with attention_backend(backend):
        found = function(
            query, key, value, code, None if mask is None else mask.to(device), log_decay=log_decay, **options
        )
        results = [found] if torch.is_tensor(found) else [found[0], *flat(found[1])]
        loss = sum((x * torch.linspace(-1, 1, x.numel()).to(x).view(x.shape)).sum() for x in results)
        gradients = torch.autograd.grad(loss, [x for x in given if x is not None])
    return results, gradients


def flat(state):
    return [*state.before, *state.after] if isinstance(state, BidirectionalState) else list(state)


def assert_equal_runs(found, expected, tolerance):
    for of_found, of_expected in zip(found, expected, strict=True):
        for x, y in zip(of_found, of_expected, strict=True):
            assert x.isfinite().all()
            matrix.assert_close(x, y, tolerance)


@pytest.mark.parametrize("length", some_each_time(LENGTHS, (1, 2, 49, 65)))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_equals_the_network(switches, decay, causal, length):
    for code in (True, False):
        inputs = make_inputs(length, decay, code=code)
        mask = some_mask(2, length)
        options = {**switches, "causal": causal, "feature_map": "exp", "output_final_state": True}
        expected = run(neuron_astrocyte_network, inputs, mask, **options)
        for backend in BACKENDS:
            exact = backend == "plain"
            dtype = torch.float64 if exact else torch.float32
            found = run(neuron_astrocyte_attention, inputs, mask, backend, dtype, **options)
            assert_equal_runs(found, expected, 1e-10 if exact else 5e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_with_every_feature_map(feature_map, feedback, causal, backend):
    exact = backend == "plain"
    inputs, mask = make_inputs(70), some_mask(2, 70)
    options = {"alpha": 0.4, "presynaptic_target": "synapse", "calcium_sources": "all", "feedback": feedback}
    options.update(causal=causal, feature_map=feature_map)
    expected = run(neuron_astrocyte_network, inputs, mask, **options)
    found = run(neuron_astrocyte_attention, inputs, mask, backend, torch.float64 if exact else torch.float32, **options)
    assert_equal_runs(found, expected, 1e-10 if exact else 1e-3)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_gradients_are_those_of_finite_differences(switches, causal):
    inputs = make_inputs(4, batch=1, heads=1, hidden_neurons=2, head_dim=2, spans=(2, 2))
    mask = torch.tensor([[True, False, True, True]])

    def function(query, key, value, code, log_decay):
        return neuron_astrocyte_attention(
            query, key, value, code, mask, log_decay=log_decay, causal=causal, feature_map="exp", **switches
        )

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["left", "right", "inner"])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_padding_neither_writes_nor_lets_time_pass(causal, side, backend):
    dtype = torch.float64 if backend == "plain" else torch.float32
    real = {"left": slice(24, 117), "right": slice(0, 93), "inner": [*range(25), *range(49, 117)]}[side]
    inputs = [x.to(dtype).to(matrix.device_of(backend)) for x in make_inputs(117)]
    mask = torch.zeros(2, 117, dtype=torch.bool, device=inputs[0].device)
    mask[:, real] = True
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all", "causal": causal}
    with attention_backend(backend):
        *alone, log_decay = (x[:, :, real] for x in inputs)
        expected, states = neuron_astrocyte_attention(*alone, log_decay=log_decay, output_final_state=True, **options)
        *poisoned, log_decay = (
            x.masked_fill(~(mask[:, None, :, None] if x.dim() == 4 else mask[:, None]), torch.nan) for x in inputs
        )
        output, found = neuron_astrocyte_attention(
            *poisoned, mask, log_decay=log_decay, output_final_state=True, **options
        )
    matrix.assert_close(output[:, :, real], expected, 1e-10 if backend == "plain" else 1e-4)
    for x, y in zip(flat(found), flat(states), strict=True):
        matrix.assert_close(x, y, 1e-10 if backend == "plain" else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pieces", [(1, 136), (48, 89), (100, 36, 1), (1, 1, 1, 70, 64)], ids=str)
def test_causal_in_pieces(pieces, backend):
    dtype = torch.float64 if backend == "plain" else torch.float32
    inputs, mask = make_inputs(137), some_mask(2, 137)
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all", "causal": True}

    def in_pieces(*tensors, log_decay, **options):
        *tensors, mask = tensors
        outputs, state = [], None
        for part in zip(*(x.split(pieces, 2) for x in (*tensors, log_decay)), mask.split(pieces, 1), strict=True):
            *piece, of_decay, of_mask = part
            output, state = neuron_astrocyte_attention(
                *piece, of_mask, log_decay=of_decay, initial_state=state, output_final_state=True, **options
            )
            outputs.append(output)
        return torch.cat(outputs, dim=2), state

    expected = run(neuron_astrocyte_attention, inputs, mask, output_final_state=True, **options)
    found = run(in_pieces, inputs, mask, backend, dtype, **options)
    assert_equal_runs(found, expected, 1e-10 if backend == "plain" else 5e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pieces", [(1, 136), (48, 89), (100, 36, 1), (3, 70, 64)], ids=str)
def test_bidirectional_in_pieces(pieces, backend):
    """Each is written from both ends by itself; then it is read between the states of the others."""
    dtype = torch.float64 if backend == "plain" else torch.float32
    inputs, mask = make_inputs(137), some_mask(2, 137)
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all"}
    expected = run(neuron_astrocyte_attention, inputs, mask, output_final_state=True, **options)

    def in_pieces(*tensors, log_decay, **options):
        *tensors, mask = tensors
        parts = list(zip(*(x.split(pieces, 2) for x in (*tensors, log_decay)), mask.split(pieces, 1), strict=True))

        def call(part, state, only_writes=False):
            query, key, value, code, of_decay, of_mask = part
            query = query[:, :, :0] if only_writes else query
            return neuron_astrocyte_attention(
                *(query, key, value, code, of_mask),
                log_decay=of_decay,
                initial_state=state,
                output_final_state=True,
                **options,
            )

        nothing = BidirectionalState(*[tuple_of_zeros(tensors)] * 2)
        befores, afters = [nothing.before], [nothing.after]
        for part in parts:
            befores.append(call(part, nothing._replace(before=befores[-1]), only_writes=True)[1].before)
        for part in reversed(parts):
            afters.append(call(part, nothing._replace(after=afters[-1]), only_writes=True)[1].after)
        afters.reverse()  # of the piece and all after it
        outputs = [
            call(part, BidirectionalState(before, after))[0]
            for part, before, after in zip(parts, befores[:-1], afters[1:], strict=True)
        ]
        return torch.cat(outputs, dim=2), BidirectionalState(befores[-1], afters[0])

    found = run(in_pieces, inputs, mask, backend, dtype, **options)
    assert_equal_runs(found, expected, 1e-10 if backend == "plain" else 5e-4)


def tuple_of_zeros(tensors):
    query, _, value, _ = tensors
    hebbian = query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1])
    return NeuronAstrocyteState(hebbian, hebbian[..., 0].clone())


@pytest.mark.parametrize("function", [neuron_astrocyte_attention, neuron_astrocyte_network])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", DECAYS)
def test_documents_are_as_alone(decay, causal, function, backend):
    if function is neuron_astrocyte_network and backend != "plain":
        pytest.skip("the network has one form")
    dtype = torch.float64 if backend == "plain" else torch.float32
    sizes = (3, 70, 1, 56)
    inputs = [x if x is None else x.to(dtype) for x in make_inputs(130, decay)]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes)).expand(2, -1)
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all", "causal": causal}
    *tensors, log_decay = inputs
    with attention_backend(backend):
        output = function(*tensors, log_decay=log_decay, document_ids=ids, **options)
        for part in zip(*(x.split(sizes, 2) for x in (*inputs, output) if x is not None), strict=True):
            *own, of_output = part
            of_decay = own.pop() if log_decay is not None else None
            expected = neuron_astrocyte_network(*own, log_decay=of_decay, **options)
            matrix.assert_close(of_output, expected, 1e-10 if backend == "plain" else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_the_activity_code_made_on_the_way(causal, decay, documents, backend):
    """Results and the gradients of every input: of the kernels that make the code, and of the plain form given it."""
    feedback = itertools.cycle((True, True, False))
    for length, switches in itertools.product((1, 48, 130), SWITCHES):
        check_activity_code(length, decay, causal, documents, backend, {**switches, "feedback": next(feedback)})


def attend_along(length, decay, causal, code, documents=False):
    """A function from `output_final_state` to the state, and to the output and the gradients of all inputs."""
    query, key, value, r, log_decay = make_inputs(length, decay)
    weight = torch.randn(3, 8, 8, dtype=torch.float64)
    given = [x if x is None else x.float().requires_grad_() for x in (query, key, value, r, weight, log_decay)]
    query, key, value, r, weight, log_decay = given
    mask = some_mask(2, length)
    starts = (torch.arange(length) % 37 == 0).expand(2, -1)
    layout = sequence_layout(length, "cpu", mask, causal=causal)
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all", "feature_map": "exp"}
    options.update(feedback=True, random_projection=None, causal=causal, initial_state=None)

    def run_once(output_final_state):
        recipe = MaterializedCode(r) if code == "tensor" else layout.activity(key, 2.0, weight, weight[:, :1])
        inputs = {"query": query, "key": key, "value": value, "astrocyte_code": recipe, "log_decay": log_decay}
        inputs.update(padding_mask=mask, document_ids=number_documents(starts, mask) if documents else None)
        output, state, _ = attend(**inputs, **options, output_final_state=output_final_state)
        weighed = (output * torch.linspace(-1, 1, output.numel()).view(output.shape) * mask[:, None, :, None]).sum()
        wanted = [x for x in given if x is not None]
        return state, (output, *torch.autograd.grad(weighed, wanted, allow_unused=True))

    return run_once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("code", ["tensor", "activity"])
@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_a_state_that_nobody_asks_for_changes_nothing(causal, decay, documents, code, backend, monkeypatch):
    if documents and backend == "triton":
        pytest.skip("Triton has no kernels for documents that leak")
    for length in (1, 48, 49, 130):
        with attention_backend(backend):
            run_once = attend_along(length, decay, causal, code, documents)
            state, found = run_once(False)
            assert state is None or decay == "none" and not causal
            torch.testing.assert_close(found, run_once(True)[1])
            kernels = {} if backend == "plain" else BACKENDS_OF_PACKAGE[backend].kernels
            for name, kernel in kernels.items():  # one that must be handed zeros
                if isinstance(kernel, Kernel) and not kernel.needs_states:
                    monkeypatch.setitem(kernels, name, dataclasses.replace(kernel, needs_states=True))
            torch.testing.assert_close(run_once(False)[1], found)
            monkeypatch.undo()


@pytest.mark.parametrize("name", [name for name, pass_ in PASSES.items() if pass_.states])
def test_some_states_without_the_others_are_refused(name):
    inputs = {**dict.fromkeys(PASSES[name].tensors), "hebbian": torch.zeros(1, 1, 1, 1)}
    with pytest.raises(AssertionError, match="calcium"):
        PASSES[name](**inputs)


@pytest.mark.parametrize("code", ["tensor", "activity"])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("output_final_state", [False, True])
def test_compiles_to_one_graph(output_final_state, causal, code):
    run_once = attend_along(49, "batched", causal, code)
    expected = run_once(output_final_state)
    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "attend", compiled)
        state, found = run_once(output_final_state)
    torch.testing.assert_close(found, expected[1])
    assert (state is None) == (expected[0] is None)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_in_two_threads(causal, backend):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for documents in (False, True):
            check_activity_code(150, "batched", causal, documents, backend, {**SWITCHES[-1], "feedback": True})
    finally:
        torch.set_num_threads(before)


def check_activity_code(length, decay, causal, documents, backend, options):
    batch, heads, m, d = 2, 3, 20, 40  # enough work for a second thread at the greatest length
    query, key, value, _, log_decay = make_inputs(length, decay, hidden_neurons=m, head_dim=d)
    tensors = {"query": query, "key": key, "value": value, "log_decay": log_decay}
    tensors["weight"] = torch.randn(heads, m, m, dtype=torch.float64) / m**0.5
    tensors["bias"] = torch.randn(heads, 1, m, dtype=torch.float64)
    mask, ids = some_mask(batch, length), None
    if documents:
        starts = torch.rand(batch, length) < 0.03
        ids = number_documents(starts, mask)
    if causal or decay != "none":
        names = ["hebbian", "calcium"] + (["later_hebbian", "later_calcium"] if not causal else [])
        for name in names:
            state = torch.rand(batch, heads, m, d, dtype=torch.float64) * 9
            tensors[name] = state if name.endswith("hebbian") else state[..., 0].contiguous()
    if causal:
        tensors["total"] = torch.randn(batch, heads, m, dtype=torch.float64)

    def results(name, dtype):
        to = {"device": matrix.device_of(name), "dtype": dtype}
        given = {name: x.to(**to).requires_grad_() for name, x in tensors.items() if x is not None}
        layout = sequence_layout(length, to["device"], mask.long().to(to["device"]), causal=causal)
        sums = None
        if causal:
            sums = NeighbourhoodState(given["total"], torch.full((batch, 1, 1), 1.5, **to))
        recipe = layout.activity(given["key"], 0.4, given["weight"], given["bias"], sums)
        documents = None if ids is None else ids.to(to["device"])
        if name == "plain":
            recipe = MaterializedCode(*recipe.materialize(given["key"], layout.padding_mask, causal, documents))
        state = NeuronAstrocyteState(given["hebbian"], given["calcium"]) if "hebbian" in given else None
        if "later_hebbian" in given:
            state = BidirectionalState(state, NeuronAstrocyteState(given["later_hebbian"], given["later_calcium"]))
        with attention_backend(name):
            found = attend(
                **{name: given.get(name) for name in ("query", "key", "value", "log_decay")},
                astrocyte_code=recipe,
                padding_mask=layout.padding_mask,
                causal=causal,
                initial_state=state,
                document_ids=documents,
                feature_map="elu",
                random_projection=None,
                **options,
            )
        values = [found.output, *(() if found.state is None else flat(found.state)), *(found.code_state or ())]
        loss = sum((x * torch.linspace(-1, 1, x.numel()).to(x).view(x.shape)).sum() for x in values)
        return values, torch.autograd.grad(loss, list(given.values()))

    assert_equal_runs(results(backend, torch.float32), results("plain", torch.float64), 1e-3)


def at_distances(function, inputs, mask, proximity, backend="plain", dtype=torch.float64, **options):
    """As `run`, for tokens at given distances."""
    device = matrix.device_of(backend)
    given = [None if x is None else x.detach().to(device, dtype).requires_grad_() for x in (*inputs[:4], proximity)]
    with attention_backend(backend):
        output = function(*given[:4], mask.to(device), proximity=given[4], **options)
        probe = torch.linspace(-1, 1, output.numel()).to(output).view_as(output)
        return [output], torch.autograd.grad((output * probe).sum(), [x for x in given if x is not None])


def some_proximity(length, heads=3):
    """Of places in a plane; not symmetric, so that rows and columns cannot change places unseen."""
    places = torch.rand(length, 2, dtype=torch.float64)
    distances = torch.cdist(places, places) * (1 + torch.rand(length, length, dtype=torch.float64))
    return (-torch.tensor([0.3, 1.0, 5.0], dtype=torch.float64)[:heads, None, None] * distances).exp()


@pytest.mark.parametrize("length", some_each_time(LENGTHS, (2, 49)))
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_at_given_distances(switches, length):
    mask, proximity = some_mask(2, length), some_proximity(length)
    for code, feedback in ((True, True), (False, False)):
        inputs, options = make_inputs(length, "none", code=code), {**switches, "feedback": feedback}
        expected = at_distances(neuron_astrocyte_network, inputs, mask, proximity, **options)
        for backend in BACKENDS:
            exact = backend == "plain"
            dtype = torch.float64 if exact else torch.float32
            found = at_distances(neuron_astrocyte_attention, inputs, mask, proximity, backend, dtype, **options)
            assert_equal_runs(found, expected, 1e-10 if exact else 5e-4)
    everywhere = torch.ones(3, length, length, dtype=torch.float64)
    torch.testing.assert_close(
        neuron_astrocyte_attention(*inputs[:4], mask, proximity=everywhere, **switches),
        neuron_astrocyte_attention(*inputs[:4], mask, **switches),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_at_given_distances_with_every_feature_map(feature_map, backend):
    """Also with one code for the whole batch, and a batch that several threads share."""
    query, key, value, code, _ = make_inputs(70, batch=9)
    mask, proximity = some_mask(9, 70), some_proximity(70)
    options = {"alpha": 0.4, "presynaptic_target": "synapse", "calcium_sources": "all", "feature_map": feature_map}
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for given in (code, code[0]):
            inputs = query, key, value, given
            call = (neuron_astrocyte_attention, inputs, mask, proximity)  # in float64 as the network: see above
            found = at_distances(*call, backend, torch.float32, **options)
            assert_equal_runs(found, at_distances(*call, **options), 1e-3)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_a_padded_token_is_found_at_any_distance(backend):
    """What a padded token holds, be it NaN, changes no output and no gradient, and its own are 0."""
    mask, proximity = some_mask(2, 50), some_proximity(50)
    inputs = make_inputs(50, "none")
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all", "feature_map": "exp"}
    call = (mask, proximity, backend, torch.float32)
    results, gradients = at_distances(neuron_astrocyte_attention, inputs, *call, **options)
    query, *written = inputs[:4]
    spoiled = [x.masked_fill(~mask[:, None, :, None], torch.nan) for x in written]
    found, of_found = at_distances(neuron_astrocyte_attention, (query, *spoiled), *call, **options)
    assert_equal_runs((found, of_found), (results, gradients), 1e-6)
    for gradient in of_found[1:4]:
        assert (gradient[~mask[:, None, :, None].expand_as(gradient)] == 0).all()


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_attention_weights_times_values_is_the_output(switches, decay, causal):
    *tensors, log_decay = make_inputs(33, decay)
    mask, options = some_mask(2, 33), {**switches, "causal": causal, "log_decay": log_decay}
    ids = torch.tensor([[0] * 12 + [1] * 21, [0] * 33])
    for documents in (None, ids):
        weights = neuron_astrocyte_attention_weights(*tensors[:2], tensors[3], mask, document_ids=documents, **options)
        output = neuron_astrocyte_attention(*tensors, mask, document_ids=documents, **options)
        torch.testing.assert_close(weights @ tensors[2], output)
    if switches["calcium_sources"] == "all" and (switches["presynaptic_target"] == "synapse" or switches["alpha"] == 1):
        weights = neuron_astrocyte_attention_weights(*tensors[:2], tensors[3], mask, **options)
        reads = weights.sum(-1) > 0  # not so where nothing is written yet
        torch.testing.assert_close(weights.sum(-1)[reads], torch.full_like(weights.sum(-1)[reads], 1 / 8))


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("decay", DECAYS)
def test_alpha_in_the_response_only_changes_the_loudness(decay, causal):
    """Y_alpha = M Y_1 with M_t = (phi(q_t) c_t) / (phi(q_t) c_t^alpha); at the synapse it does not."""
    query, key, value, code, log_decay = make_inputs(40, decay)
    options = {"log_decay": log_decay, "causal": causal, "feature_map": "exp"}
    at_one = neuron_astrocyte_attention(query, key, value, code, **options)
    for target in ("response", "synapse"):
        output = neuron_astrocyte_attention(query, key, value, code, alpha=0.5, presynaptic_target=target, **options)
        loudness = output / at_one
        spread = (loudness / loudness[..., :1] - 1).abs().max()
        assert (spread < 1e-9) == (target == "response")
        if target == "response":
            elapsed = torch.zeros(1, 3, 40) if log_decay is None else log_decay.cumsum(-1)
            share = (-(elapsed[..., :, None] - elapsed[..., None, :]).abs()).exp()
            calcium = (share.tril() if causal else share).double() @ key.exp()
            expected = (query.exp() * calcium).sum(-1) / (query.exp() * calcium.sqrt()).sum(-1)
            torch.testing.assert_close(loudness[..., 0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("scale, shift", [(30, -60), (30, 0), (100, 0), (1, -60), (1, -100)])
def test_extreme_keys_stay_finite(scale, shift, alpha, causal, backend):
    query, key, value, code, log_decay = make_inputs(150, spans=(0.02, 1000))
    for target, sources in itertools.product(("response", "synapse"), ("neurons", "all")):
        # a code that the calcium does not count has no bound: the answer of a silent neuron is as loud as it likes
        own_code = code * scale if sources == "all" else None
        options = {"alpha": alpha, "presynaptic_target": target, "calcium_sources": sources, "causal": causal}
        for feature_map in ("exp", "elu", "relu"):
            inputs = (query, key * scale + shift, value, own_code, log_decay)
            results, gradients = run(
                neuron_astrocyte_attention, inputs, None, backend, torch.float32, feature_map=feature_map, **options
            )
            assert all(x.isfinite().all() for x in (*results, *gradients)), (options, feature_map)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_half_precision_is_summed_in_float32(causal, backend, dtype):
    inputs = [x.to(matrix.device_of(backend), dtype) for x in make_inputs(2000, batch=1, heads=2)]
    options = {"alpha": 0.5, "presynaptic_target": "synapse", "calcium_sources": "all", "causal": causal}
    with attention_backend(backend):
        output = neuron_astrocyte_attention(*inputs[:4], log_decay=inputs[4].float(), **options)
    exact = neuron_astrocyte_attention(
        *(x.double().cpu() for x in inputs[:4]), log_decay=inputs[4].double().cpu(), **options
    )
    assert output.dtype == dtype
    torch.testing.assert_close(output.double().cpu(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("length", some_each_time([1, 63, 64, 65, 64 * 64 + 1, 9000], [1, 65, 64 * 64 + 1]))
def test_leaky_sums_equal_the_recurrence(length, with_documents):
    x = torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True)
    log_decay = (-torch.rand(2, 3, length, dtype=torch.float64).pow(4)).requires_grad_()
    ids = None
    if with_documents:
        ids = (torch.rand(2, length) < 0.003).long().cumsum(-1)
    results = []
    for function in (leaky_sum, leaky_sum_token_by_token):
        y = function(x, log_decay, ids)
        probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append((y, *torch.autograd.grad((y * probe).sum(), (x, log_decay))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_gradients_where_the_square_of_the_feedback_is_none(causal, documents, backend):
    """P^2 is below what float32 has, in whose derivative it stands; the gradients are not."""
    query, key, value, *_ = make_inputs(49, "none", code=False)
    ids = (torch.arange(49) // 20).expand(2, -1) if documents else None
    inputs = (query + 24, key + 24, value, None, None)
    options = {"feature_map": "exp", "causal": causal, "document_ids": ids}
    expected = run(neuron_astrocyte_network, inputs, None, **options)
    found = run(neuron_astrocyte_attention, inputs, None, backend, torch.float32, **options)
    assert_equal_runs(found, expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("left", [-1e4, -1e30, -math.inf])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_a_token_that_leaves_nothing_blurs_no_other(causal, left, backend):
    query, key, value, code, log_decay = make_inputs(130)
    log_decay[..., 60] = left
    inputs, options = (query, key, value, code, log_decay), {"feature_map": "exp", "causal": causal}
    expected = run(neuron_astrocyte_network, [*inputs[:4], log_decay.clamp(min=-1e3)], None, **options)
    found = run(neuron_astrocyte_attention, inputs, None, backend, torch.float32, **options)
    assert_equal_runs(found, expected, 1e-5)
    weights = neuron_astrocyte_attention_weights(
        *(x.float() for x in (query, key, code)), log_decay=log_decay.float(), **options
    )
    matrix.assert_close(weights @ value.float(), expected[0][0], 1e-5)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_the_map_of_a_long_text_whose_tokens_leave_little(causal):
    query, key, value, code, log_decay = make_inputs(1500, heads=1)
    log_decay[..., torch.randperm(1500)[:750]] = -80
    options = {"feature_map": "exp", "causal": causal}
    expected = neuron_astrocyte_attention(query, key, value, code, log_decay=log_decay, **options)
    query, key, value, code, log_decay = (x.float() for x in (query, key, value, code, log_decay))
    weights = neuron_astrocyte_attention_weights(query, key, code, log_decay=log_decay, **options)
    matrix.assert_close(weights @ value, expected, 2e-6)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_calcium_of_a_long_text_is_not_rounded_off(backend, causal):
    length = 500 if backend == "triton" else 2**16
    query, key, value, *_ = make_inputs(length, "none", batch=1, heads=1, code=False)
    options = {"causal": causal, "output_final_state": True}
    expected = run(neuron_astrocyte_attention, (query, key, value, None, None), None, **options)[0][2]
    with attention_backend(backend), torch.no_grad():
        query, key, value = (x.to(matrix.device_of(backend), torch.float32) for x in (query, key, value))
        calcium = neuron_astrocyte_attention(query, key, value, **options)[1].calcium
    matrix.assert_close(calcium, expected, 1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"presynaptic_target": "both"}, "presynaptic_target must be 'response' or 'synapse', got 'both'"),
        ({"calcium_sources": "none"}, "calcium_sources must be 'neurons' or 'all', got 'none'"),
        ({"log_decay": torch.zeros(2, 7)}, r"log_decay must have shape \(2, 3, 7\).*got \(2, 7\)"),
        ({"proximity": torch.ones(3, 7, 6)}, r"proximity must have shape \(3, 7, 7\).*got \(3, 7, 6\)"),
        ({"proximity": torch.ones(3, 7, 7), "causal": True}, "proximity is for whole inputs"),
        ({"proximity": torch.ones(3, 7, 7), "log_decay": torch.zeros(2, 3, 7)}, "give one of them"),
        (
            {"initial_state": (torch.zeros(2, 3, 8, 5), torch.zeros(2, 3, 8)), "log_decay": torch.zeros(2, 3, 7)},
            "initial_state must be a BidirectionalState .* got tuple",
        ),
        ({"initial_state": BidirectionalState(None, None)}, "must be a NeuronAstrocyteState, got BidirectionalState"),
    ],
)
@pytest.mark.parametrize("function", [neuron_astrocyte_attention, neuron_astrocyte_network])
def test_bad_arguments_are_named(function, changes, message):
    query, key, value, *_ = make_inputs(7, "none")
    with pytest.raises(ValueError, match=message):
        function(query, key, value, **changes)
