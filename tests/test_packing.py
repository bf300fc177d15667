# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Several documents in one row: each is answered as if it stood alone, by every arm, code and head, there and back."""

import pytest
import torch
from test_attention_backends import BACKENDS

from astroformer_hf import (
    NeuronAstrocyteState,
    attention_backend,
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
    neuron_astrocyte_network,
)
from astroformer_hf.neuron_astrocyte_attention import attend
from astroformer_hf.token_layout import (
    decayed_sum,
    decayed_sum_token_by_token,
    number_documents,
    sequence_layout,
    starts_of_documents,
)


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
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_document_is_answered_as_if_alone(rows, causal, options, padded, backend):
    if backend == "triton":
        pytest.skip("Triton takes no documents")
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_document_goes_on_from_the_state_and_the_last_leaves_it(backend):
    if backend == "triton":
        pytest.skip("Triton takes no documents")
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
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_code_activity_is_made_of_the_own_document(rows, causal, padded, backend):
    if backend == "triton":
        pytest.skip("Triton takes no documents")
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
        return attend(
            *(query, key, value, code, layout.padding_mask, 0.5, "elu", True, None, causal, None, document_ids)
        )[0]

    numbers = number_documents(starts_of_documents(ids_of(rows), mask), mask)
    with attention_backend(backend):
        packed = where_real(attention(query, key, value, mask, numbers), mask)
        expected = where_real(separately(attention, tensors[:3], mask, rows), mask)
        tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(packed, expected, **tolerance)
        for found, wanted in zip(gradients(packed, sources), gradients(expected, sources), strict=True):
            torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.4, 3.0])
def test_decayed_sums_begin_anew(reverse, scale):
    ids = ids_of([[150, 3, 2, 4000, 45], [1, 4199]])
    x = torch.randn(2, 3, 4200, 4, dtype=torch.float64)
    torch.testing.assert_close(
        decayed_sum(x, scale, reverse, ids), decayed_sum_token_by_token(x, scale, reverse, ids), rtol=1e-9, atol=1e-9
    )


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
