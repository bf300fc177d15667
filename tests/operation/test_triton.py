# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The Triton kernels against the equations, in float64: on a GPU if there is one, else in Triton's interpreter."""

import inspect
import itertools
import subprocess
import sys

import pytest
import torch
from triton_kernels import DEVICE, load_kernels
from variants import some_each_time


# Of the largest entry; a GPU makes float32 products out of three of TF32.
TOLERANCE = 1e-4 if DEVICE == "cuda" else 2e-5

kernels = load_kernels()["neuron_astrocyte_triton"]
blocks = load_kernels()["triton_blocks"]


def run(name, *values):
    """A function of the module with its arguments in order; of a backward one, the gradients of the inputs in order."""
    function = getattr(kernels, name)
    names = list(inspect.signature(function).parameters)
    found = function(**dict(zip(names, values, strict=True)))
    if isinstance(found, dict):
        tensors = ("query", "key", "value", "astrocyte_code", "log_decay", "hebbian", "calcium", "plasticity")
        tensors += ("later_hebbian", "later_calcium")
        return [found.get(name) for name in names if name in tensors]
    return found


# --------------------------------------------------------------------------------------------------------------------
# The equations, as directly as they can be written, in float64
# --------------------------------------------------------------------------------------------------------------------

CALCIUM_FLOOR = 1e-18

FEATURE_MAPS = {
    "elu": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
    "exp": lambda x: torch.where(x > 30, torch.full_like(x, 30), x).exp(),
    "identity": lambda x: x,
}


def silence(x, padding_mask):
    return x if padding_mask is None else x.masked_fill(~padding_mask[:, None, :, None], 0)


def imprints(key, value, code, padding_mask, feature_map, sources):
    """What the calcium counts, `(B, H, N, F)`, and (phi(k_t) + phi(r_t)) v_t^T, `(B, H, N, F, d)`."""
    phi = FEATURE_MAPS[feature_map]
    presynaptic = silence(phi(silence(key, padding_mask)), padding_mask)
    imprint = presynaptic
    if code is not None:
        code = silence(code.expand_as(key), padding_mask)
        imprint = imprint + silence(phi(code), padding_mask)
    written = imprint[..., :, None] * silence(value, padding_mask)[..., None, :]
    return imprint if sources == "all" else presynaptic, written


def reference_write(key, value, code, padding_mask, feature_map, sources):
    source, written = imprints(key, value, code, padding_mask, feature_map, sources)
    return written.sum(2), source.sum(2)


def or_zero(x, function):
    return torch.where(x > CALCIUM_FLOOR, function(x.clamp(min=CALCIUM_FLOOR)), 0)


def reference_read(query, hebbian, plasticity, feature_map):
    """`hebbian` and `plasticity` of all tokens, or one for each."""
    activity = FEATURE_MAPS[feature_map](query)
    per_token = hebbian if hebbian.dim() == 5 else hebbian[:, :, None]
    output = (activity[..., None] * per_token).sum(-2)
    if plasticity is None:
        return output
    per_token = plasticity if plasticity.dim() == 4 else plasticity[:, :, None]
    return output * or_zero((activity * per_token).sum(-1, keepdim=True), torch.reciprocal)


def along(written, log_decay, state):
    """The sums up to each token, going on from a state; of both a share is left when the next token comes."""
    sums = []
    for t in range(written.shape[2]):
        if log_decay is not None:
            left = log_decay[:, :, t].exp()
            state = state * left.view(*left.shape, *[1] * (state.dim() - 2))
        state = state + written[:, :, t]
        sums.append(state)
    return torch.stack(sums, dim=2)


def along_from_end(written, log_decay, state):
    """The sums of all after each token, as it finds them, and the one before the first token."""
    sums = []
    for t in reversed(range(written.shape[2])):
        sums.append(state)
        left = log_decay[:, :, t].exp()
        state = (state + written[:, :, t]) * left.view(*left.shape, *[1] * (state.dim() - 2))
    return torch.stack(sums[::-1], dim=2), state


def reference_along(
    query,
    key,
    value,
    code,
    padding_mask,
    log_decay,
    hebbian,
    calcium,
    later,
    alpha,
    target,
    sources,
    feature_map,
    *rest,
):
    feedback, scale = rest
    source, written = imprints(key, value, code, padding_mask, feature_map, sources)
    hebbian, calcium = along(written, log_decay, hebbian), along(source, log_decay, calcium)
    states = [hebbian[:, :, -1], calcium[:, :, -1]]
    if later:
        later_hebbian, first_hebbian = along_from_end(written, log_decay, later[0])
        later_calcium, first_calcium = along_from_end(source, log_decay, later[1])
        hebbian, calcium = hebbian + later_hebbian, calcium + later_calcium
        states += [first_hebbian, first_calcium]
    plasticity = or_zero(calcium, lambda z: z**alpha) if feedback else None
    weights = hebbian
    if target == "synapse":
        weights = hebbian * or_zero(calcium, lambda z: z ** (alpha - 1))[..., None]
    return scale * reference_read(query, weights, plasticity, feature_map), *states


def reference_causal(*arguments):
    return reference_along(*arguments[:8], (), *arguments[8:])


def reference_both_ways(*arguments):
    return reference_along(*arguments[:8], arguments[8:10], *arguments[10:])


# --------------------------------------------------------------------------------------------------------------------
# Inputs and comparisons
# --------------------------------------------------------------------------------------------------------------------


def make_mask(kind, batch_size, length):
    if kind == "none":
        return None
    mask = torch.ones(batch_size, length, dtype=torch.bool, device=DEVICE)
    if kind == "mixed":  # left and inner padding of one sequence, right padding of the other
        mask[0, : length // 3] = False
        mask[0, length // 2 : length // 2 + 2] = False
        mask[-1, length - length // 4 :] = False
    else:
        mask[-1] = False
    return mask


class Inputs:
    """Tensors as a layer makes them, (B, N, H, size) transposed, the keys even a part of something larger."""

    def __init__(
        self, length, features=24, head_dim=20, code="shared", mask="mixed", dtype=torch.float32, heads=2, leaks=False
    ):
        batch_size = 2

        def tokens(size, batch_size=batch_size):
            return torch.randn(batch_size, length, heads, size, device=DEVICE).to(dtype).transpose(1, 2)

        self.query, self.value, self.d_output = tokens(features), tokens(head_dim), tokens(head_dim)
        self.key = tokens(3 * features)[..., features : 2 * features]
        self.code = {"none": None, "shared": tokens(features, 1)[0], "batched": tokens(features)}[code]
        self.mask = make_mask(mask, batch_size, length)
        if self.mask is not None:
            for x in (self.key, self.value, self.code):
                if x is not None and x.dim() == 4:
                    x.masked_fill_(~self.mask[:, None, :, None], float("nan"))
        self.log_decay = None
        if leaks:  # one head remembers a token or two, the next hundreds
            rates = torch.logspace(0, -2.5, heads, device=DEVICE)[:, None]
            self.log_decay = -rates * torch.rand(batch_size, heads, length, device=DEVICE)
            if self.mask is not None:
                self.log_decay.masked_fill_(~self.mask[:, None], 0)
        shape = batch_size, heads, features, head_dim
        self.hebbian, self.d_hebbian = torch.randn(2, *shape, device=DEVICE)
        self.calcium, self.d_calcium = torch.rand(2, *shape[:3], device=DEVICE) * 3

    @property
    def written(self):
        return self.key, self.value, self.code, self.mask

    @property
    def causal(self):
        return self.query, *self.written, self.log_decay, self.hebbian, self.calcium


def plain_options(feature_map="elu"):
    """From alpha to the scale, as the causal functions take them, with every switch as it was always."""
    return 0.5, "response", "neurons", feature_map, True, 1.0


def double(*tensors):
    """Leaves in float64, for the reference; what is no floating-point tensor stays."""
    return [
        x.detach().double().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in tensors
    ]


def gradients(outputs, d_outputs, inputs):
    """Of each input, None for those that are no leaves; of a padded token it is 0."""
    leaves = [x for x in inputs if torch.is_tensor(x) and x.requires_grad]
    d_outputs = [d_output.double() for d_output in d_outputs]
    found = iter(torch.autograd.grad(outputs, leaves, d_outputs, allow_unused=True, materialize_grads=True))
    return [next(found) if torch.is_tensor(x) and x.requires_grad else None for x in inputs]


def assert_close(names, found, expected, tolerance=TOLERANCE):
    """Up to a fraction of the largest entry, so that a small one is not asked for digits that its sum has lost."""
    for name, x, y in zip(names.split(), found, expected, strict=True):
        assert (x is None) == (y is None), name
        if y is not None:
            assert x.shape == y.shape, name
            y = y.double()
            error = (x.double() - y).abs().max() / y.abs().max().clamp(min=1e-30)
            assert error <= tolerance, f"{name} is off by {error:.1e} of its largest entry"


def check_bidirectional(
    inputs, alpha=0.5, feature_map="elu", feedback=True, tolerance=TOLERANCE, sources="neurons", target="response"
):
    written = double(*inputs.written)
    expected = reference_write(*written, feature_map, sources)
    found = run("write_forward", *inputs.written, feature_map, sources)
    assert_close("hebbian calcium", found, expected, tolerance)
    assert {x.dtype for x in found} == {torch.float32}

    d_states = inputs.d_hebbian, inputs.d_calcium
    d_written = run("write_backward", *inputs.written, feature_map, sources, *d_states)
    d_key, d_value, d_code, _ = gradients(expected, d_states, written)
    assert_close("d_key d_value d_code", d_written, (d_key, d_value, d_code), tolerance)
    assert all(x is None or x.dtype == inputs.key.dtype for x in d_written)

    plasticity = inputs.calcium**alpha if feedback else None
    read = double(inputs.query, inputs.hebbian, plasticity)
    expected = reference_read(*read, feature_map)
    read_inputs = inputs.query, inputs.hebbian, plasticity, feature_map
    (output,) = run("read_forward", *read_inputs, inputs.value.dtype)
    assert_close("output", [output], [expected], tolerance)
    assert output.dtype == inputs.value.dtype
    found = run("read_backward", *read_inputs, inputs.d_output)
    assert_close("d_query d_hebbian d_plasticity", found, gradients([expected], [inputs.d_output], read), tolerance)
    assert found[0].dtype == inputs.query.dtype and found[1].dtype == torch.float32


def check_causal(
    inputs, alpha=0.5, feature_map="elu", feedback=True, tolerance=TOLERANCE, sources="neurons", target="response"
):
    arguments = inputs.causal
    options = alpha, target, sources, feature_map, feedback, 0.3
    doubles = double(*arguments)
    expected = reference_causal(*doubles, *options)
    found = run("causal_forward", *arguments, *options, inputs.value.dtype)
    assert_close("output hebbian calcium", found, expected, tolerance)
    assert [x.dtype for x in found] == [inputs.value.dtype, torch.float32, torch.float32]

    d_outputs = inputs.d_output, inputs.d_hebbian, inputs.d_calcium
    found = run("causal_backward", *arguments, *options, *d_outputs)
    expected = gradients(expected, d_outputs, doubles)
    del expected[4]  # of the mask
    assert_close("d_query d_key d_value d_code d_log_decay d_hebbian d_calcium", found, expected, tolerance)
    assert all(x is None or x.dtype == inputs.key.dtype for x in found[:4])


def check_both_ways(
    inputs, alpha=0.5, feature_map="elu", feedback=True, tolerance=TOLERANCE, sources="neurons", target="response"
):
    later = torch.randn_like(inputs.hebbian), torch.rand_like(inputs.calcium)
    arguments = *inputs.causal, *later
    options = alpha, target, sources, feature_map, feedback, 0.3
    doubles = double(*arguments)
    expected = reference_both_ways(*doubles, *options)
    found = run("both_ways_forward", *arguments, *options, inputs.value.dtype)
    assert_close("output hebbian calcium later_hebbian later_calcium", found, expected, tolerance)

    d_outputs = inputs.d_output, inputs.d_hebbian, inputs.d_calcium, *(torch.randn_like(x) for x in later)
    found = run("both_ways_backward", *arguments, *options, *d_outputs)
    expected = gradients(expected, d_outputs, doubles)
    del expected[4]  # of the mask
    names = "d_query d_key d_value d_code d_log_decay d_hebbian d_calcium d_later_hebbian d_later_calcium"
    assert_close(names, found, expected, tolerance)
    assert all(x is None or x.dtype == inputs.key.dtype for x in found[:4])


# --------------------------------------------------------------------------------------------------------------------
# Tests
# --------------------------------------------------------------------------------------------------------------------

OPTIONS = [
    {"feature_map": "elu", "alpha": 1.0},
    {"feature_map": "elu", "alpha": 0.3, "feedback": False},
    {"feature_map": "relu", "alpha": 0.5},
    {"feature_map": "exp", "alpha": 0.3},
    {"feature_map": "exp", "alpha": 1.0, "feedback": False},
    {"feature_map": "identity", "alpha": 0.5},
]

SHAPES = [
    {"length": 1, "code": "batched", "mask": "none"},
    {"length": 63, "code": "none", "features": 16, "head_dim": 32},
    {"length": 63, "code": "batched"},
    {"length": 130, "code": "shared"},
]


def positive(inputs):
    """For the identity: activities that some other function made."""
    for x in (inputs.query, inputs.key, inputs.code):
        if x is not None:
            x.abs_()
    return inputs


@pytest.mark.parametrize("check", [check_bidirectional, check_causal])
@pytest.mark.parametrize(
    ("number", "shape"),
    # of the options and the shapes every other pair; on a GPU all of them
    some_each_time(
        itertools.product(range(len(OPTIONS)), range(len(SHAPES))),
        [
            pair
            for pair in itertools.product(range(len(OPTIONS)), range(len(SHAPES)))
            if DEVICE == "cuda" or sum(pair) % 2 == 0
        ],
    ),
)
def test_equals_the_equations(number, shape, check):
    options, inputs = OPTIONS[number], Inputs(**SHAPES[shape])
    check(positive(inputs) if options["feature_map"] == "identity" else inputs, **options)


SWITCHES = [
    {"check": check_bidirectional, "sources": "all"},
    {"check": check_causal, "sources": "all"},
    {"check": check_causal, "target": "synapse"},
    {"check": check_causal, "target": "synapse", "sources": "all", "feedback": False},
    {"check": check_causal, "target": "synapse", "sources": "all", "feature_map": "exp"},
    {"check": check_causal, "leaks": True},
    {"check": check_causal, "leaks": True, "alpha": 1.0},
    {"check": check_causal, "leaks": True, "target": "synapse", "sources": "all", "feedback": False},
    {"check": check_causal, "leaks": True, "target": "synapse", "sources": "all", "feature_map": "exp"},
    {"check": check_both_ways, "leaks": True},
    {"check": check_both_ways, "leaks": True, "feedback": False},
    {"check": check_both_ways, "leaks": True, "target": "synapse", "sources": "all", "feedback": False},
    {"check": check_both_ways, "leaks": True, "target": "synapse", "sources": "all", "feature_map": "exp"},
]


@pytest.mark.parametrize(
    ("number", "shape"),
    some_each_time(
        itertools.product(range(len(SWITCHES)), range(len(SHAPES))),
        [
            pair
            for pair in itertools.product(range(len(SWITCHES)), range(len(SHAPES)))
            if DEVICE == "cuda" or sum(pair) % len(SHAPES) == 0
        ],
    ),
)
def test_switches(number, shape):
    options = dict(SWITCHES[number])
    check, leaks = options.pop("check"), options.pop("leaks", False)
    check(Inputs(**SHAPES[shape], leaks=leaks), **options)


@pytest.mark.parametrize("leaks", [False, True])
def test_switches_with_features_and_head_size_of_several_blocks(leaks):
    inputs = Inputs(70, features=40, head_dim=40, code="batched", heads=1, leaks=leaks)
    check_causal(inputs, sources="all", target="synapse")


@pytest.mark.parametrize("size", [1e-6, 1, 1e6])
def test_all_stays_finite(size):
    """Keys from silence to saturation, and synapses that forget all from one token to the next or nothing at all."""
    inputs = Inputs(70, features=16, head_dim=16, mask="none", leaks=True)
    inputs.key.mul_(30).add_(float(torch.tensor(size).log()))
    inputs.log_decay.mul_(300)
    inputs.hebbian.zero_(), inputs.calcium.zero_()
    options = 0.25, "synapse", "all", "exp", True, 1.0
    found = run("causal_forward", *inputs.causal, *options, torch.float32)
    d_outputs = inputs.d_output, inputs.d_hebbian, inputs.d_calcium
    assert all(x.isfinite().all() for x in (*found, *run("causal_backward", *inputs.causal, *options, *d_outputs)))


def test_a_leak_of_sixteen_bits():
    check_causal(Inputs(70, dtype=torch.bfloat16, leaks=True), target="synapse", sources="all", tolerance=8e-3)


@pytest.mark.parametrize("check", [check_bidirectional, check_causal])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, check):
    check(Inputs(70, code="batched", dtype=dtype), tolerance={torch.bfloat16: 8e-3, torch.float16: 2e-3}[dtype])


@pytest.mark.parametrize("check", [check_bidirectional, check_causal])
def test_features_and_head_size_of_several_blocks(check):
    features, head_dim = (72, 136) if DEVICE == "cuda" else (40, 72)  # whose blocks may be larger
    check(Inputs(70, features=features, head_dim=head_dim, code="batched", heads=1))


@pytest.mark.parametrize(
    ("feature_map", "check"),
    some_each_time(
        itertools.product(["elu", "relu", "exp"], [check_bidirectional, check_causal]),
        [("elu", check_causal), ("relu", check_bidirectional), ("exp", check_causal)],
    ),
)
def test_nothing_but_padding(feature_map, check):
    inputs = Inputs(70, mask="all of one sequence")
    check(inputs, feature_map=feature_map)
    inputs.hebbian.zero_(), inputs.calcium.zero_()
    check(inputs, feature_map=feature_map)
    arguments = inputs.causal
    assert run("causal_forward", *arguments, *plain_options(feature_map), torch.float32)[0][-1].eq(0).all()


@pytest.mark.parametrize(
    ("check", "options"),
    [
        (check_bidirectional, {"alpha": 1.0}),
        (check_causal, {"alpha": 1.0}),
        (check_bidirectional, {"alpha": 0.3}),
        (check_causal, {"alpha": 0.3}),
        (check_causal, {"alpha": 0.3, "target": "synapse"}),
    ],
)
def test_silent_synapses(check, options):
    inputs = Inputs(70, code="batched", mask="none")
    inputs.calcium.zero_(), inputs.hebbian.zero_()
    inputs.key[..., ::2] = -1  # half of the synapses never see calcium,
    inputs.query[:, :, ::3, 1::2] = -1  # and some tokens ask those only,
    inputs.query[:, :, 1::3] = -1  # or none
    inputs.key[:, :, :5] = -1  # and at first there is none anywhere
    check(inputs, feature_map="relu", **options)


def test_exp_saturates():
    inputs = Inputs(20, code="batched", mask="none")
    for x in (inputs.query, inputs.key, inputs.code):
        x[..., ::3] = 31 + x[..., ::3].abs()
    check_bidirectional(inputs, feature_map="exp", alpha=1.0)
    check_causal(inputs, feature_map="exp", alpha=1.0)


def test_zero_has_one_slope():
    inputs = Inputs(20, mask="none")
    inputs.query.zero_(), inputs.key.zero_(), inputs.code.zero_()
    check_causal(inputs)


@pytest.mark.parametrize("programs", [1, 8, 1000])
def test_splits_of_a_long_sequence(monkeypatch, programs):
    monkeypatch.setattr(kernels, "WRITE_PROGRAMS", programs)
    check_bidirectional(Inputs(260, features=16, head_dim=16))


def test_any_strides():
    inputs = Inputs(70, features=5, head_dim=3, code="batched")
    inputs.value = inputs.value.mT.contiguous().mT  # no stride is 1 but that of the tokens
    inputs.d_output = torch.ones(()).to(inputs.d_output).expand_as(inputs.d_output)
    inputs.query = inputs.query[:1].expand_as(inputs.query)
    inputs.d_hebbian = inputs.d_hebbian.mT.contiguous().mT
    inputs.hebbian = inputs.hebbian[:, :1].expand_as(inputs.hebbian)
    check_bidirectional(inputs)
    check_causal(inputs)


@pytest.mark.parametrize("leaks", [False, True])
def test_nothing_to_write_and_nothing_to_read(leaks):
    inputs = Inputs(0, mask="none", leaks=leaks)
    hebbian, calcium = run("write_forward", *inputs.written, "elu", "neurons")
    assert hebbian.eq(0).all() and calcium.eq(0).all()
    arguments = inputs.causal
    output, hebbian, calcium = run("causal_forward", *arguments, *plain_options(), torch.float32)
    assert output.shape == inputs.value.shape
    assert hebbian.equal(inputs.hebbian) and calcium.equal(inputs.calcium)
    d_outputs = inputs.d_output, inputs.d_hebbian, inputs.d_calcium
    d_states = run("causal_backward", *arguments, *plain_options(), *d_outputs)[-2:]
    assert d_states[0].equal(inputs.d_hebbian) and d_states[1].equal(inputs.d_calcium)


def test_not_a_number_is_not_hidden():
    inputs = Inputs(20, mask="none")
    nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32, device=DEVICE).view(torch.float32)  # the one that GPUs make
    inputs.key[0, 0, 3, 2] = inputs.query[1, 1, 4, 5] = nan
    for feature_map, dtype in (("elu", torch.float32), ("exp", torch.bfloat16), ("identity", torch.bfloat16)):
        hebbian, calcium = run("write_forward", inputs.key, inputs.value.to(dtype), None, None, feature_map, "neurons")
        assert hebbian[0, 0, 2].isnan().all() and calcium[0, 0, 2].isnan() and hebbian.isnan().sum() == 20
        (output,) = run("read_forward", inputs.query, inputs.hebbian, None, feature_map, dtype)
        assert output[1, 1, 4].isnan().all() and output.isnan().sum() == 20


def test_the_gradients_of_a_long_sequence_are_the_same_each_time():
    inputs = Inputs(130, features=16, head_dim=16)
    arguments = *inputs.causal, *plain_options()
    d_outputs = inputs.d_output, inputs.d_hebbian, inputs.d_calcium
    first, second = (run("causal_backward", *arguments, *d_outputs) for _ in range(2))
    assert first[0] is not None
    for gradient, again in zip(first, second, strict=True):
        assert (gradient is None) == (again is None)  # those of what was not given
        assert gradient is None or gradient.equal(again)


def test_where_it_is_available(monkeypatch):
    assert blocks.unavailable(torch.device(DEVICE)) is None
    monkeypatch.setattr(blocks, "INTERPRETED", False)
    assert "cannot compute on cpu" in blocks.unavailable(torch.device("cpu"))
    monkeypatch.setattr(blocks, "triton", None)
    assert f"cannot compute on {DEVICE}" in blocks.unavailable(torch.device(DEVICE))


def test_imports_without_triton():
    code = """
import subprocess
import sys
sys.modules["triton"] = None
from astroformer_hf import hybrid_attention_triton_source, neuron_astrocyte_triton, triton_blocks
assert triton_blocks.triton is hybrid_attention_triton_source.triton is neuron_astrocyte_triton.triton is None
print(neuron_astrocyte_triton.BACKEND.unavailable(__import__("torch").device("cuda")))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "Triton cannot compute on cuda here\n"


def test_precision_follows_pytorch(monkeypatch):
    assert blocks.precision_of(torch.float32, torch.bfloat16) == "tf32"
    assert blocks.precision_of(torch.float32, torch.float32) == "tf32x3"
    matmul = torch.backends.cuda.matmul
    setting, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, setting)
    setattr(matmul, setting, value)
    try:
        assert blocks.precision_of(torch.float32, torch.float32) == "tf32"
    finally:
        setattr(matmul, setting, before)
