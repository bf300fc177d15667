# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Several documents in one row: each is answered as if it stood alone, by every arm, code and head, there and back."""

import itertools

import pytest
import torch
from variants import CPU_BACKENDS, make_model, some_each_time, whole_texts_only

from astroformer_hf import (
    NeuronAstrocyteState,
    attention_backend,
    look_inside,
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
    neuron_astrocyte_network,
)
from astroformer_hf.attention_operation import attend
from astroformer_hf.decayed_sums import decayed_sum, decayed_sum_token_by_token
from astroformer_hf.library_compatibility import CACHE_NAME
from astroformer_hf.token_layout import (
    NeighbourhoodState,
    number_documents,
    sequence_layout,
    starts_of_documents,
)


PACKED_BACKENDS = CPU_BACKENDS  # Triton refuses them, see below

# Lengths of the documents in each row; a block of the kernels has 48 tokens, a chunk of the plain form 64.
ROWS = {
    "short": [[3, 1, 4], [8]],
    "ones": [[1] * 5, [2, 1, 1, 1]],
    "blocks": [[48, 96, 1, 55], [64, 64, 72]],
    "long": [[150, 3, 2, 45], [1, 199]],
}


@pytest.fixture(params=ROWS)
def rows(request):
    return ROWS[request.param]


def ids_of(rows):
    """Numbers that are neither sorted nor small: they only tell neighbours apart."""
    names = torch.tensor([7, 3, 12, 5, -2, 900, 1])
    return torch.stack([names[: len(row)].repeat_interleave(torch.tensor(row)) for row in rows])


def spans_of(rows):
    """(row, first, last) of every document."""
    for b, row in enumerate(rows):
        first = 0
        for size in row:
            yield b, first, first + size
            first += size


def inputs_of(rows, dtype, m=5, d=7, heads=2):
    batch, length = len(rows), sum(rows[0])
    query, key = torch.randn(2, batch, heads, length, m, dtype=dtype)
    value, code = torch.randn(batch, heads, length, d, dtype=dtype), torch.randn(batch, heads, length, m, dtype=dtype)
    return [x.requires_grad_() for x in (query, key, value, code)]


def mask_of(rows):
    """Padding on both sides of documents and between their tokens; one document is nothing else."""
    mask = torch.rand(len(rows), sum(rows[0])) > 0.3
    mask[0, : rows[0][0]] = False
    return mask


def separately(operation, tensors, mask, rows, **options):
    """The operation on each document alone, put together again."""
    pieces = [[] for _ in rows]
    for b, first, last in spans_of(rows):
        own = [x[b : b + 1, :, first:last] for x in tensors]
        own_mask = None if mask is None else mask[b : b + 1, first:last]
        pieces[b].append(operation(*own, own_mask, **options))
    return torch.cat([torch.cat(row, dim=2) for row in pieces])


def where_real(output, mask):
    """What a query that is padding reads, does not matter."""
    return output if mask is None else output.masked_fill(~mask[:, None, :, None], 0)


def gradients(output, tensors):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), tensors, allow_unused=True, retain_graph=True)


OPTIONS = [
    {"alpha": 0.5},
    {"alpha": 1.0, "feature_map": "exp"},
    {"feature_map": "relu", "feedback": False},
    {"feature_map": "favor", "alpha": 0.7},
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_a_document_is_answered_as_if_alone(rows, causal, options, padded, backend):
    dtype = torch.float64 if backend == "plain" else torch.float32
    tensors, mask = inputs_of(rows, dtype), mask_of(rows) if padded else None
    options = {**options, "causal": causal}
    with attention_backend(backend):
        packed = where_real(neuron_astrocyte_attention(*tensors, mask, document_ids=ids_of(rows), **options), mask)
        expected = where_real(separately(neuron_astrocyte_attention, tensors, mask, rows, **options), mask)
        tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(packed, expected, **tolerance)
        for found, wanted in zip(gradients(packed, tensors), gradients(expected, tensors), strict=True):
            torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_the_network_forgets_between_documents(causal, padded):
    rows = [[3, 1, 4, 5], [6, 7]]
    tensors, mask = inputs_of(rows, torch.float64), mask_of(rows) if padded else None
    expected = where_real(separately(neuron_astrocyte_network, tensors, mask, rows, alpha=0.5, causal=causal), mask)
    options = {"alpha": 0.5, "causal": causal, "document_ids": ids_of(rows)}
    for operation in (neuron_astrocyte_network, neuron_astrocyte_attention):
        torch.testing.assert_close(where_real(operation(*tensors, mask, **options), mask), expected)
    weights = neuron_astrocyte_attention_weights(tensors[0], tensors[1], tensors[3], mask, **options)
    torch.testing.assert_close(where_real(weights @ tensors[2], mask), expected)


@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_the_first_document_goes_on_from_the_state_and_the_last_leaves_it(backend):
    rows = [[50, 3, 47], [1, 99]]
    dtype = torch.float64 if backend == "plain" else torch.float32
    tensors = inputs_of(rows, dtype)
    state = NeuronAstrocyteState(
        torch.randn(2, 2, 5, 7, dtype=dtype).requires_grad_(), torch.rand(2, 2, 5, dtype=dtype).requires_grad_()
    )
    options = {"alpha": 0.5, "causal": True, "initial_state": state, "output_final_state": True}
    with attention_backend(backend):
        output, final = neuron_astrocyte_attention(*tensors, document_ids=ids_of(rows), **options)
        expected, _ = neuron_astrocyte_network(*tensors, document_ids=ids_of(rows), **options)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        for b, row in enumerate(rows):
            last = [x[b : b + 1, :, -row[-1] :] for x in tensors]
            _, alone = neuron_astrocyte_attention(*last, alpha=0.5, causal=True, output_final_state=True)
            for found, wanted in zip(final, alone, strict=True):
                torch.testing.assert_close(found[b : b + 1], wanted, rtol=1e-4, atol=1e-4)
        sources = [*tensors, *state]
        found = gradients(output, sources)
        for one, other in zip(found, gradients(expected, sources), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        # the last state depends on the last document alone
        of_final = torch.autograd.grad(final.hebbian.sum() + final.calcium.sum(), sources, allow_unused=True)
        assert all(x is None or not x.any() for x in (of_final[4], of_final[5]))
        assert not of_final[1][0, :, :53].any() and of_final[1][0, :, 53:].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_the_code_activity_is_made_of_the_own_document(rows, causal, padded, backend):
    dtype = torch.float64 if backend == "plain" else torch.float32
    query, key, value, _ = tensors = inputs_of(rows, dtype)
    mask = mask_of(rows) if padded else None
    weight, bias = (
        torch.randn(2, 5, 5, dtype=dtype).requires_grad_(),
        torch.randn(2, 1, 5, dtype=dtype).requires_grad_(),
    )
    sources = [*tensors[:3], weight, bias]

    def attention(query, key, value, mask, document_ids=None):
        layout = sequence_layout(key.shape[2], key.device, mask, causal=causal, document_ids=document_ids)
        code = layout.activity(key, 0.4, weight, bias)
        options = {"alpha": 0.5, "feature_map": "elu", "feedback": True, "random_projection": None, "causal": causal}
        tensors = {"query": query, "key": key, "value": value, "padding_mask": layout.padding_mask}
        return attend(**tensors, astrocyte_code=code, **options, initial_state=None, document_ids=document_ids).output

    numbers = number_documents(starts_of_documents(ids_of(rows), mask), mask)
    with attention_backend(backend):
        packed = where_real(attention(query, key, value, mask, numbers), mask)
        expected = where_real(separately(attention, tensors[:3], mask, rows), mask)
        tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(packed, expected, **tolerance)
        for found, wanted in zip(gradients(packed, sources), gradients(expected, sources), strict=True):
            torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_the_first_document_alone_hears_the_neighbours_of_the_state(backend):
    row = [50, 3, 47]
    dtype = torch.float64 if backend == "plain" else torch.float32
    query, key, value, _ = inputs_of([row], dtype)
    weight, bias = (torch.randn(2, size, 5, dtype=dtype).requires_grad_() for size in (5, 1))
    total, count = torch.randn(1, 2, 5, dtype=dtype).requires_grad_(), torch.full((1, 1, 1), 2.5, dtype=dtype)
    options = {"alpha": 0.5, "feature_map": "elu", "feedback": True, "random_projection": None, "causal": True}

    def attention(tensors, state, document_ids=None):
        layout = sequence_layout(tensors[0].shape[2], "cpu", causal=True, document_ids=document_ids)
        code = layout.activity(tensors[1], 0.1, weight, bias, state)
        inputs = dict(zip(("query", "key", "value"), tensors, strict=True), astrocyte_code=code, padding_mask=None)
        return attend(**inputs, **options, initial_state=None, document_ids=document_ids)

    numbers = torch.arange(3).repeat_interleave(torch.tensor(row))[None]
    with attention_backend(backend):
        packed, _, sums = attention((query, key, value), NeighbourhoodState(total, count), numbers)
        pieces, state = [], NeighbourhoodState(total, count)
        for _, first, last in spans_of([row]):
            piece, _, expected_sums = attention([x[:, :, first:last] for x in (query, key, value)], state)
            pieces.append(piece)
            state = None
        expected = torch.cat(pieces, dim=2)
        torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tuple(sums), tuple(expected_sums), rtol=1e-4, atol=1e-5)
        sources = [query, key, value, weight, bias, total]
        for found, wanted in zip(gradients(packed, sources), gradients(expected, sources), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.4, 3.0])
def test_decayed_sums_begin_anew(reverse, scale):
    ids = ids_of([[150, 3, 2, 4000, 45], [1, 4199]])
    x = torch.randn(2, 3, 4200, 4, dtype=torch.float64)
    torch.testing.assert_close(
        decayed_sum(x, scale, reverse, ids), decayed_sum_token_by_token(x, scale, reverse, ids), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("causal", [False, True])
def test_triton_named_refuses_them(causal):
    rows = [[3, 1, 4], [8]]
    tensors, ids = inputs_of(rows, torch.float32), ids_of(rows)
    reason = "does not take document_ids yet" if causal else "no kernel for write_and_read_documents"
    with attention_backend("triton"), pytest.raises(RuntimeError, match=reason):
        neuron_astrocyte_attention(*tensors, document_ids=ids, causal=causal)


def test_document_ids_that_do_not_fit_are_refused():
    rows = [[3, 1, 4], [8]]
    tensors, ids = inputs_of(rows, torch.float64), ids_of(rows)
    empty = [x[:, :, :0] for x in tensors]
    state = NeuronAstrocyteState(torch.zeros(2, 2, 5, 7), torch.zeros(2, 2, 5))
    for arguments, options, message in (
        (tensors, {"document_ids": ids[:, :5]}, r"document_ids must be whole numbers of shape \(2, 8\)"),
        (tensors, {"document_ids": ids.float()}, "document_ids must be whole numbers"),
        (tensors, {"document_ids": torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0]] * 2)}, "must not return to a document"),
        (tensors, {"document_ids": ids, "initial_state": state}, "unless causal=True"),
        (tensors, {"document_ids": ids, "output_final_state": True}, "unless causal=True"),
        ([empty[0], *tensors[1:]], {"document_ids": ids, "causal": True}, "queries and keys of the same length"),
    ):
        for operation in (neuron_astrocyte_attention, neuron_astrocyte_network):
            with pytest.raises(ValueError, match=message):
                operation(*arguments, **options)


# --------------------------------------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------------------------------------

MODEL_ROWS = [[5, 1, 70, 24], [100]]
TOKEN_HEADS = (
    "AstroformerModel",
    "AstroformerForMaskedLM",
    "AstroformerForTokenClassification",
    "AstroformerForCausalLM",
)


def positions_of(rows):
    return torch.stack([torch.cat([torch.arange(size) for size in row]) for row in rows])


def answer_of(output):
    return output.last_hidden_state if "last_hidden_state" in output else output.logits


def alone(model, ids, rows, mask=None, **options):
    """The answers to each document in a row of its own, put together again."""
    pieces = [[] for _ in rows]
    for b, first, last in spans_of(rows):
        own_mask = None if mask is None else mask[b : b + 1, first:last]
        pieces[b].append(answer_of(model(ids[b : b + 1, first:last], own_mask, **options)))
    return torch.cat([torch.cat(row, dim=1) for row in pieces])


def gradients_of(model, answer):
    model.zero_grad()
    (answer * torch.linspace(-1, 1, answer.numel()).view(answer.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_packed_model_answers_as_alone(variant, is_decoder, padded):
    whole_texts_only(variant, "no packed rows")
    name = "AstroformerForCausalLM" if is_decoder else "AstroformerForTokenClassification"
    model, ids = make_model(name, **variant), torch.randint(1, 50, (2, 100))
    mask = None
    positions = positions_of(MODEL_ROWS)
    if padded:
        mask = torch.ones(2, 100).long()
        mask[0, [0, 8, 9, 75, 99]] = 0
        mask[1, :4] = 0
        numbers = number_documents(positions == 0)
        for row in range(2):  # real tokens of each document counted; padding stands anywhere
            for document in numbers[row].unique():
                own = numbers[row] == document
                positions[row, own] = (mask[row, own].cumsum(0) - 1).clamp(min=0)
    real = torch.ones(2, 100).bool() if mask is None else mask.bool()
    packed = answer_of(model(ids, mask, position_ids=positions))
    expected = alone(model, ids, MODEL_ROWS, mask)
    torch.testing.assert_close(packed[real], expected[real], rtol=1e-4, atol=1e-4)
    found = gradients_of(model, packed * real[..., None])
    wanted = gradients_of(model, expected * real[..., None])
    assert found.keys() == wanted.keys()
    for parameter in wanted:
        torch.testing.assert_close(found[parameter], wanted[parameter], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TOKEN_HEADS)
def test_all_ways_to_say_it_say_the_same(name):
    model, ids = make_model(name), torch.randint(1, 50, (1, 100))
    positions, bounds = positions_of(MODEL_ROWS[:1]), torch.tensor([0, 5, 6, 76, 100], dtype=torch.int32)
    expected = answer_of(model(ids, position_ids=positions))
    seq_idx = torch.repeat_interleave(torch.arange(4), bounds.diff().long())[None]
    for keywords in (
        {"seq_idx": seq_idx},
        {"seq_idx": seq_idx.int(), "position_ids": positions},
        {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 70, "max_length_k": 70},
        {"cu_seq_lens_q": bounds, "seq_idx": seq_idx, "position_ids": positions},
        {"inputs_embeds": model.get_input_embeddings()(ids), "position_ids": positions},
    ):
        inputs = {} if "inputs_embeds" in keywords else {"input_ids": ids}
        torch.testing.assert_close(answer_of(model(**inputs, **keywords)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_packed_maps_and_hidden_states(variant, is_decoder):
    whole_texts_only(variant, "no packed rows")
    name = "AstroformerForCausalLM" if is_decoder else "AstroformerForTokenClassification"
    model, ids = make_model(name, **variant), torch.randint(1, 50, (1, 12))
    with attention_backend("plain"):
        packed = model(ids, position_ids=positions_of([[5, 7]]), output_attentions=True, output_hidden_states=True)
        pieces = [
            model(ids[:, first:last], output_attentions=True, output_hidden_states=True)
            for _, first, last in spans_of([[5, 7]])
        ]
    for i, attention_map in enumerate(packed.attentions):
        expected = torch.zeros_like(attention_map)
        expected[:, :, :5, :5], expected[:, :, 5:, 5:] = (piece.attentions[i] for piece in pieces)
        torch.testing.assert_close(attention_map, expected, rtol=1e-4, atol=1e-5)
    for i, hidden_state in enumerate(packed.hidden_states):
        expected = torch.cat([piece.hidden_states[i] for piece in pieces], dim=1)
        torch.testing.assert_close(hidden_state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, attention, how",
    some_each_time(
        itertools.product(
            ("AstroformerForTokenClassification", "AstroformerForCausalLM"),
            ("neuron_astrocyte", "softmax"),
            ("compile", "trace"),
        ),
        [
            ("AstroformerForCausalLM", "neuron_astrocyte", "compile"),
            ("AstroformerForTokenClassification", "softmax", "compile"),
            ("AstroformerForCausalLM", "softmax", "trace"),
            ("AstroformerForTokenClassification", "neuron_astrocyte", "trace"),
        ],
    ),
)
def test_what_a_graph_cannot_ask_is_right_all_the_same(name, attention, how):
    model, ids = make_model(name, attention_type=attention, use_cache=False), torch.randint(1, 50, (2, 100))
    packed, plain = positions_of(MODEL_ROWS), torch.arange(100).expand(2, -1)
    if how == "compile":
        graph = torch.compile(model, fullgraph=True, backend="eager")
    else:

        class Traced(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, input_ids, position_ids):
                return self.model(input_ids, position_ids=position_ids).logits

        traced = torch.jit.trace(Traced(), (ids, plain), check_trace=False)

        def graph(input_ids, position_ids):
            return {"logits": traced(input_ids, position_ids)}

    with torch.no_grad():
        for positions in (plain, packed):
            expected = model(ids, position_ids=positions).logits
            torch.testing.assert_close(graph(ids, position_ids=positions)["logits"], expected, rtol=1e-4, atol=1e-4)


def test_a_loss_is_that_of_the_documents_alone():
    from transformers import DataCollatorWithFlattening

    model = make_model("AstroformerForCausalLM")
    documents = [torch.randint(1, 50, (size,)) for size in (5, 1, 70, 24)]
    losses = [(model(d[None], labels=d[None]).loss, len(d) - 1) for d in documents if len(d) > 1]
    expected = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    ids = torch.cat(documents)[None]
    positions = positions_of([[5, 1, 70, 24]])
    torch.testing.assert_close(model(ids, position_ids=positions, labels=ids).loss, expected)
    bounds = torch.tensor([0, 5, 6, 76, 100])
    torch.testing.assert_close(model(ids, cu_seq_lens_q=bounds, labels=ids).loss, expected)
    torch.testing.assert_close(model(ids, cu_seq_lens_q=bounds, labels=ids, ignore_index=0).loss, expected)
    features = [{"input_ids": d.tolist()} for d in documents]
    for options in ({}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True, "return_flash_attn_kwargs": True}):
        batch = DataCollatorWithFlattening(**options)(features)
        torch.testing.assert_close(model(**batch).loss, expected)


@pytest.mark.parametrize("kept", [30, torch.arange(60, 100)], ids=["a number", "indices"])
def test_a_loss_of_some_logits_is_that_of_the_documents_alone(kept):
    model = make_model("AstroformerForCausalLM")
    ids, positions = torch.randint(1, 50, (1, 100)), positions_of([[5, 1, 70, 24]])
    own = slice(-kept, None) if isinstance(kept, int) else kept
    labels = ids.clone()
    labels[0, [5, 6, 76]] = -100  # by hand
    more = {"position_ids": positions, "logits_to_keep": kept}
    expected = model(ids, **more, labels=labels[:, own]).loss
    torch.testing.assert_close(model(ids, **more, labels=ids[:, own]).loss, expected)
    shifted = torch.nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
    given = {**more, "labels": ids[:, own], "shift_labels": shifted[:, own]}
    by_hand = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    logits = model(ids, **more).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), by_hand[:, own].flatten())
    torch.testing.assert_close(model(ids, **given).loss, expected)


@pytest.mark.parametrize(
    "name", ["AstroformerForSequenceClassification", "AstroformerForQuestionAnswering", "AstroformerForMultipleChoice"]
)
def test_a_head_with_one_answer_per_row_takes_no_packed_rows(name):
    model, ids, positions = make_model(name), torch.randint(1, 50, (1, 9)), positions_of([[4, 5]])
    if name == "AstroformerForMultipleChoice":
        ids, positions = ids[:, None], positions[:, None]
    model(ids, position_ids=torch.arange(9).view(positions.shape))
    with pytest.raises(ValueError, match="one document per row"):
        model(ids, position_ids=positions)
    with pytest.raises(ValueError, match="one document per row"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 4, 9]))


def test_packed_rows_have_no_cache(variant):
    whole_texts_only(variant, "no packed rows")
    model, ids = make_model("AstroformerForCausalLM", **variant), torch.randint(1, 50, (1, 9))
    positions = positions_of([[4, 5]])
    assert model(ids, position_ids=positions).get(CACHE_NAME) is None
    with pytest.raises(ValueError, match="not for packed rows"):
        model(ids, position_ids=positions, use_cache=True)
    with pytest.raises(ValueError, match="not for packed rows"):
        model.generate(ids, position_ids=positions, max_new_tokens=2)
    cache = model(ids, use_cache=True)[CACHE_NAME]
    for arguments in ({"position_ids": positions}, {"seq_idx": positions}, {"position_ids": torch.arange(9)[None]}):
        with pytest.raises(ValueError, match="holds what came before"):
            model(ids, cache=cache, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_idx": torch.zeros(2, 9).long()}, r"seq_idx must have shape \(1, 9\)"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 8])}, "must rise from 0 to the row's length 9, got"),
        ({"cu_seq_lens_q": torch.tensor([0, 7, 4, 9])}, "must rise from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 9]), "cu_seq_lens_k": torch.tensor([0, 8])}, "must be the same"),
        ({"cu_seq_lens_q": torch.tensor([[0, 9]])}, "must have shape"),
        ({"max_length_q": 9}, "do not say where documents begin"),
        ({"seq_idx": torch.zeros(1, 9).long(), "cu_seq_lens_q": torch.tensor([0, 4, 9])}, "say different things"),
        ({"seq_idx": torch.zeros(1, 9).long(), "position_ids": positions_of([[4, 5]])}, "begin again at 0 where no"),
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 4, 2, 3, 4, 5]])}, "must not go back within a document, got 4"),
        (
            {
                "position_ids": torch.tensor([[9, 1, 2, 7, 1, 3, 4, 5, 6]]),  # the first and the fifth are padding
                "attention_mask": torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 1]]),
            },
            "got 7 and then 3 in row 0",
        ),
    ],
    ids=str,
)
def test_packing_that_contradicts_itself_is_refused(arguments, message):
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (1, 9))
    with pytest.raises(ValueError, match=message):
        model(ids, **arguments)


def test_a_document_too_long_for_the_table_is_refused_and_a_row_is_not():
    model = make_model("AstroformerForTokenClassification", astrocyte_code="learned", max_position_embeddings=6)
    ids = torch.randint(1, 50, (1, 10))
    torch.testing.assert_close(
        model(ids, cu_seq_lens_q=torch.tensor([0, 6, 10])).logits, alone(model, ids, [[6, 4]]), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="position_ids must be in"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 7, 10]))


def test_positions_of_padding_begin_no_document(variant):
    model, ids = make_model("AstroformerForCausalLM", **variant), torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, 6:] = 0
    expected = model(ids, mask).logits
    for filler in (0, 1):  # as generate and others have them
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, filler)
        found = model(ids, mask, position_ids=positions).logits
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_look_inside_takes_no_packed_rows():
    model, ids = make_model("AstroformerForTokenClassification"), torch.randint(1, 50, (1, 9))
    with pytest.raises(ValueError, match="look_inside takes one document per row"):
        look_inside(model, input_ids=ids, position_ids=positions_of([[4, 5]]))
