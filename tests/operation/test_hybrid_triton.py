# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The Triton kernels of hybrid attention against the map: on a GPU if there is one, else in Triton's interpreter."""

import itertools
import math

import pytest
import torch
from hybrid_cases import SHAPES, Case, make_mask
from triton_kernels import DEVICE, load_kernels
from variants import some_each_time

from astroformer_hf import attention_backends


# Of the largest entry; a GPU makes float32 products out of three of TF32.
TOLERANCE = 1e-4 if DEVICE == "cuda" else 5e-6


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    backend = load_kernels()["neuron_astrocyte_triton"].BACKEND
    monkeypatch.setitem(attention_backends.BACKENDS, "triton", backend)


def check(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=TOLERANCE * max(y.abs().max().item(), 10))  # some are 0


def cases(length, shape, padded):
    """The same in float32, on the device of the kernels, and in float64; a mask, and 1 where a token is real."""
    single, double = Case(length, SHAPES[shape], torch.float32), Case(length, SHAPES[shape])
    with torch.no_grad():
        for x, y in zip(double.tensors, single.tensors, strict=True):
            x.copy_(y)
    mask, shown = make_mask(length, padded)
    return single, double, mask, shown


# length, shape, window and sinks, padding: windows within a block, as long as one, and of several
EXACT = [
    (7, 0, (1, 4), "right"),
    (2, 0, (8, 1), "no"),
    (70, 0, (8, 1), "left"),
    (65, 2, (64, 4), "inside"),
    (130, 1, (0, 0), "no"),
    (130, 2, (70, 0), "no"),
    (150, 0, (0, 20), "left"),
    (33, 1, (32, 2), "inside"),
    (96, 2, (31, 1), "right"),
]
EACH_TIME = [EXACT[0], EXACT[2], EXACT[3], EXACT[5]]


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize(
    ("length", "shape", "exact", "padded"), some_each_time(EXACT, EXACT if DEVICE == "cuda" else EACH_TIME)
)
def test_values_and_gradients_are_those_of_the_map(length, shape, exact, padded, causal):
    single, double, mask, shown = cases(length, shape, padded)
    output, _ = single.by("triton", exact, mask, causal)
    expected = double.by_map(exact, mask, causal)
    check([output * shown], [expected * shown])
    upstream = torch.randn_like(expected) * shown
    check(single.gradients(output, upstream.float()), double.gradients(expected, upstream))


@pytest.mark.parametrize("padded, splits", [("left", (3, 70, 1)), ("inside", (40, 34))])
def test_pieces_and_their_gradients(padded, splits):
    """Values and gradients through the states, which the plain form goes on from and the other way."""
    exact = (8, 2)
    single, double, mask, shown = cases(74, 0, padded)
    expected = double.by_map(exact, mask, True) * shown
    upstream = torch.randn_like(expected)
    outputs, state, start = [], None, 0
    for size, backend in zip(splits, itertools.cycle(("triton", "plain", "triton"))):
        output, state = single.by(backend, exact, mask, True, slice(start, start + size), state)
        outputs.append(output)
        start += size
    found = torch.cat(outputs, dim=2) * shown
    check([found], [expected])
    check(single.gradients(found, upstream.float()), double.gradients(expected, upstream))


def test_the_state_is_that_of_the_plain_form():
    single, double, mask, _ = cases(40, 1, "left")
    found, wanted = (case.by(name, (8, 4), mask, True)[1] for case, name in ((single, "triton"), (double, "plain")))
    states = [(*state.synapses, state.window, state.sinks, state.counted.double()) for state in (found, wanted)]
    check(*states)
    losses = [sum(x.square().sum() for x in own[:-1]) for own in states]
    gradients = [
        torch.autograd.grad(loss, [case.key, case.value, *case.maps[1:]])
        for loss, case in zip(losses, (single, double), strict=True)
    ]
    check(*gradients)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("num_real", [2, 30])
def test_extreme_keys_and_padding_that_is_no_number(num_real, causal):
    case = Case(40, SHAPES[0], torch.float32, scale=30.0)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, num_real:] = False
    shown = mask[:, None, :, None]
    with torch.no_grad():
        hidden = (~mask)[:, None, :, None]
        for x in (case.key, case.value):
            x.masked_fill_(hidden, math.nan)
    output, _ = case.by("triton", (8, 2), mask, causal)
    output = torch.where(shown, output, 0)
    assert output.isfinite().all()
    d_query, d_key, d_value, *others = case.gradients(output, torch.ones_like(output))
    assert all(torch.where(shown, x, 0).isfinite().all() for x in (d_query, d_key, d_value))
    assert all(x.isfinite().all() for x in others[2:])


def test_rows_without_tokens_are_0():
    case, mask = Case(20, SHAPES[0], torch.float32), torch.ones(2, 20, dtype=torch.bool)
    mask[1] = False
    output, state = case.by("triton", (4, 1), mask, True)
    assert (output[1] == 0).all() and (state.synapses.hebbian[1] == 0).all() and output[0].abs().min() > 0
    assert all(x.isfinite().all() for x in case.gradients(output, torch.ones_like(output)))
