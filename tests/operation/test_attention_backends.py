# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Every backend that the machine has, against the network token by token: values, gradients, choice and failure."""

import collections
import dataclasses
import inspect
import itertools
import logging
import os
import threading

import pytest
import torch
from variants import tiny_config

from astroformer_hf import (
    AstroformerForCausalLM,
    AstroformerModel,
    NeuronAstrocyteState,
    attention_backend,
    attention_backends,
    neuron_astrocyte_attention,
    neuron_astrocyte_cpu,
    neuron_astrocyte_network,
)
from astroformer_hf.attention_backends import choose_backend
from astroformer_hf.attention_contract import PASSES, Kernel, PlainForm
from astroformer_hf.attention_operation import attend
from astroformer_hf.feature_maps import FEATURE_MAPS
from astroformer_hf.token_layout import sequence_layout


BACKENDS = ["plain"]
if neuron_astrocyte_cpu.LIBRARY.is_available():
    BACKENDS.append("cpp")
DEVICES = {"plain": "cpu", "cpp": "cpu", "triton": "cuda"}
if torch.cuda.is_available():
    BACKENDS.append("triton")

# (hidden neurons, head size): smaller than a vector, no whole number of vectors, and whole
SIZES = [(3, 5), (24, 40), (64, 64), (16, 112)]
OPTIONS = [
    {"feature_map": feature_map, "alpha": alpha, "feedback": feedback}
    for feature_map, alpha, feedback in itertools.product(FEATURE_MAPS, (1.0, 0.5, 0.3), (True, False))
]
# From this length on, the options are divided over the cases with and without a state and padding.
LONG = 130 if os.environ.get("ASTROFORMER_TESTS") == "all" else 63


def make_inputs(length, sizes, code, has_state, feature_map, batch=2, heads=3):
    """Tensors in float64 by name; None for those that there are not."""
    hidden_neurons, head_dim = sizes
    features = FEATURE_MAPS[feature_map].num_features(hidden_neurons, 256)
    # (batch, length, heads, .) transposed, as a model's projections are
    query, key = torch.randn(2, batch, length, heads, hidden_neurons).transpose(2, 3).double().unbind(0)
    codes = {"none": None, "shared": (heads,), "batched": (batch, heads)}[code]
    return {
        "query": query,
        "key": key,
        "value": torch.randn(batch, heads, length, head_dim, dtype=torch.float64),
        "code": None if codes is None else torch.randn(*codes, length, hidden_neurons, dtype=torch.float64),
        "hebbian": torch.randn(batch, heads, features, head_dim).double() if has_state else None,
        "calcium": torch.rand(batch, heads, features).double() * 9 if has_state else None,
    }


def results(function, inputs, mask, dtype, device="cpu", **options):
    """Output, final state and the gradients of a function of all three, in float64, by name."""
    given = {name: x if x is None else x.to(device, dtype).requires_grad_() for name, x in inputs.items()}
    state = None if given["hebbian"] is None else NeuronAstrocyteState(given["hebbian"], given["calcium"])
    output, final = function(
        *(given[name] for name in ("query", "key", "value", "code")),
        None if mask is None else mask.to(device),
        initial_state=state,
        output_final_state=True,
        **options,
    )
    found = {"output": output, "final hebbian": final.hebbian, "final calcium": final.calcium}
    assert output.dtype == dtype
    loss = sum(
        (x.double() * torch.linspace(-1, 1, x.numel(), device=device).view(x.shape)).sum() * weight
        for x, weight in zip(found.values(), (1.0, 0.1, 0.1), strict=True)
    )
    wanted = [x for x in given.values() if x is not None]
    names = [f"gradient of {name}" for name, x in given.items() if x is not None]
    found.update(zip(names, torch.autograd.grad(loss, wanted), strict=True))
    return {name: x.double().cpu() for name, x in found.items()}


def assert_close(found, expected, tolerance):
    """Each tensor within `tolerance` of its own size."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        size = max(x.abs().max().item(), 1e-2) if x.numel() else 1  # where it is 0, rounding is left
        torch.testing.assert_close(
            found[name], x, rtol=tolerance, atol=tolerance * size, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("has_state", [False, True], ids=["", "state"])
@pytest.mark.parametrize("length", [1, 2, 63, 130])
def test_equals_the_network_in_values_and_gradients(length, has_state, padded, causal):
    codes = itertools.cycle(("none", "shared", "batched"))
    sizes = itertools.cycle(SIZES)
    for options in OPTIONS if length < LONG else OPTIONS[has_state + 2 * padded :: 4]:
        options = {**options, "causal": causal}
        inputs = make_inputs(length, next(sizes), next(codes), has_state, options["feature_map"])
        mask = torch.rand(2, length) > 0.3 if padded else None
        expected = results(neuron_astrocyte_network, inputs, mask, torch.float64, **options)
        for backend in BACKENDS:
            with attention_backend(backend):
                found = results(neuron_astrocyte_attention, inputs, mask, torch.float32, DEVICES[backend], **options)
            assert_close(found, expected, 2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, causal, backend):
    inputs = make_inputs(130, (24, 40), "shared", False, "elu")
    rounded = {name: x if x is None else x.to(dtype).double() for name, x in inputs.items()}
    options = {"alpha": 0.5, "causal": causal}
    expected = results(neuron_astrocyte_network, rounded, None, torch.float64, **options)
    with attention_backend(backend):
        found = results(neuron_astrocyte_attention, rounded, None, dtype, DEVICES[backend], **options)
    assert_close(found, expected, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("name", ["query", "key", "value", "code"])
def test_padding_that_is_nan_and_strides_of_any_kind(name, causal, backend):
    inputs = make_inputs(70, (24, 24), "batched", False, "elu")
    mask = torch.rand(2, 70) > 0.3
    odd = dict(inputs)
    odd[name] = inputs[name].transpose(-1, -2).contiguous().transpose(-1, -2)  # not contiguous in its last dimension
    if name != "query":  # a padded query is answered all the same, and nothing reads the answer
        odd[name] = odd[name].masked_fill(~mask[:, None, :, None], torch.nan)
    options = {"alpha": 0.5, "causal": causal}
    expected = results(neuron_astrocyte_network, inputs, mask, torch.float64, **options)
    with attention_backend(backend):
        found = results(neuron_astrocyte_attention, odd, mask, torch.float32, DEVICES[backend], **options)
    assert_close(found, expected, 2e-4)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_what_is_not_a_number_stays_so(causal, backend):
    for feature_map in ("elu", "relu", "exp"):
        for name in ("query", "key", "value", "code"):
            inputs = {
                k: x.float() for k, x in make_inputs(70, (24, 24), "shared", False, "elu").items() if x is not None
            }
            inputs[name][..., 60, 3] = torch.nan
            given = [inputs[k].to(DEVICES[backend]) for k in ("query", "key", "value", "code")]
            expected = neuron_astrocyte_network(*given, alpha=0.5, feature_map=feature_map, causal=causal).isnan()
            with attention_backend(backend):
                found = neuron_astrocyte_attention(*given, alpha=0.5, feature_map=feature_map, causal=causal).isnan()
            assert expected.any()
            assert (found | ~expected).all()  # none is lost; a few tokens before it may see one, as 0 times it
            assert causal or torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_large_and_small_activity(causal, backend):
    for feature_map, factor in (("exp", 20.0), ("elu", 200.0), ("relu", 1e-3), ("exp", -40.0)):
        inputs = make_inputs(70, (16, 16), "shared", False, "elu")
        inputs = {k: x * factor if x is not None and k != "value" else x for k, x in inputs.items()}
        options = {"alpha": 0.5, "feature_map": feature_map, "causal": causal}
        expected = results(neuron_astrocyte_network, inputs, None, torch.float64, **options)
        with attention_backend(backend):
            found = results(neuron_astrocyte_attention, inputs, None, torch.float32, DEVICES[backend], **options)
        assert_close(found, expected, 2e-3)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_second_derivative_is_that_of_the_plain_form(backend):
    def penalty(name, causal):
        torch.manual_seed(0)
        inputs = make_inputs(7, (3, 5), "shared", False, "elu")
        given = [inputs[k].float().to(DEVICES[backend]).requires_grad_() for k in ("query", "key", "value", "code")]
        with attention_backend(name):
            output = neuron_astrocyte_attention(*given, alpha=0.5, causal=causal)
        first = torch.autograd.grad(output.square().sum(), given, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), given)

    for causal in (False, True):
        torch.testing.assert_close(penalty(backend, causal), penalty("plain", causal), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_the_backward_pass_keeps_its_inputs_alone(causal, backend):
    inputs = make_inputs(130, (24, 24), "shared", False, "elu")
    given = [inputs[k].float().to(DEVICES[backend]).requires_grad_() for k in ("query", "key", "value", "code")]
    kept = {}
    with (
        attention_backend(backend),
        torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.update({x.untyped_storage().data_ptr(): x.numel()}) or x, lambda x: x
        ),
    ):
        neuron_astrocyte_attention(*given, alpha=0.5, causal=causal)
    states = 2 * 3 * 24 * (24 + 8)  # hebbian, and what becomes of the calcium
    assert sum(kept.values()) <= sum(x.numel() for x in given) + 2 * states


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_only_some_inputs_need_gradients(backend):
    inputs = make_inputs(9, (8, 8), "shared", False, "elu")
    given = [inputs[k].float().to(DEVICES[backend]) for k in ("query", "key", "value", "code")]
    given[2].requires_grad_()
    for causal in (False, True):
        with attention_backend(backend):
            neuron_astrocyte_attention(*given, causal=causal).sum().backward()
    assert given[2].grad.isfinite().all() and given[0].grad is None


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_expanded_inputs(causal, backend):
    """What a batch shares may be given as one tensor seen many times."""
    inputs = make_inputs(70, (16, 16), "batched", False, "elu")
    for name in ("key", "value", "code"):
        inputs[name] = inputs[name][:1]

    def gradients(dtype, backend):
        given = {k: x.to(dtype).requires_grad_() for k, x in inputs.items() if x is not None}
        views = [x if k == "query" else x.expand(2, -1, -1, -1) for k, x in given.items()]
        with attention_backend(backend):
            output = neuron_astrocyte_attention(*views, alpha=0.5, causal=causal)
        loss = (output * torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)).sum()
        found = dict(zip(given, torch.autograd.grad(loss, list(given.values())), strict=True))
        return {"output": output.double().detach(), **{k: x.double() for k, x in found.items()}}

    assert_close(gradients(torch.float32, backend), gradients(torch.float64, "plain"), 2e-4)


needs_cpp = pytest.mark.skipif("cpp" not in BACKENDS, reason="there is no C++ compiler on this machine")


@needs_cpp
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_threads_share_the_work_and_change_nothing(causal):
    # so long that the sequence itself is cut between the threads
    inputs = make_inputs(3000, (32, 32), "shared", False, "elu", batch=1, heads=1)
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with attention_backend("cpp"):
                found[threads] = results(
                    neuron_astrocyte_attention, inputs, None, torch.float32, alpha=0.5, causal=causal
                )
    finally:
        torch.set_num_threads(before)
    assert_close(found[2], found[1], 1e-4)
    assert_close(found[3], found[1], 1e-4)


@needs_cpp
def test_several_python_threads_at_once():
    inputs = make_inputs(200, (32, 32), "shared", False, "elu")
    given = [inputs[k].float() for k in ("query", "key", "value", "code")]
    expected = neuron_astrocyte_attention(*given, causal=True)
    found = [None] * 4

    def work(i):
        for _ in range(20):
            found[i] = neuron_astrocyte_attention(*given, causal=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(output, expected) for output in found)


@needs_cpp
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("padding", ["none", "left", "right", "inner", "all"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_the_activity_code_made_on_the_way(scale, padding, causal):
    """The attention that makes the code as it goes against one that is given it; causally, in pieces as well."""
    batch, heads, length, m = 2, 3, 150, 20
    mask = torch.ones(batch, length, dtype=torch.long)
    padded = {"left": slice(0, 40), "right": slice(90, 150), "inner": slice(7, 77, 2), "all": slice(0, 150)}
    if padding != "none":
        mask[1, padded[padding]] = 0
    mask = None if padding == "none" else mask
    real = torch.ones(batch, 1, length, 1).bool() if mask is None else mask.bool()[:, None, :, None]
    sources = {
        "query": torch.randn(batch, length, heads, m).transpose(1, 2),
        "key": torch.randn(batch, length, heads, m).transpose(1, 2),
        "value": torch.randn(batch, length, heads, m).transpose(1, 2),
        "weight": torch.randn(heads, m, m) / m**0.5,
        "bias": torch.randn(heads, 1, m),
    }
    ends = (length,)
    pieces = (50, 51, length) if causal else ends

    def outputs(backend, dtype, ends):
        given = {name: x.to(dtype).requires_grad_() for name, x in sources.items()}
        parts, state, sums, start = [], None, None, 0
        for end in ends:
            layout = sequence_layout(
                end - start, "cpu", None if mask is None else mask[:, :end], causal=causal, past_length=start
            )
            query, key, value = (given[name][:, :, start:end] for name in ("query", "key", "value"))
            code = layout.activity(key, scale, given["weight"], given["bias"], sums)
            with attention_backend(backend):
                options = {"alpha": 0.5, "feature_map": "elu", "feedback": True, "random_projection": None}
                tensors = {"query": query, "key": key, "value": value, "padding_mask": layout.padding_mask}
                part, state, sums = attend(
                    **tensors, astrocyte_code=code, **options, causal=causal, initial_state=state
                )
            parts.append(part)
            start = end
        found = {"output": torch.cat(parts, dim=2) * real, "hebbian": state.hebbian, "calcium": state.calcium}
        if causal:
            found.update(sums._asdict())
        loss = sum((x * torch.linspace(-1, 1, x.numel(), dtype=dtype).view(x.shape)).sum() for x in found.values())
        gradients = torch.autograd.grad(loss, list(given.values()))
        found.update({f"gradient of {name}": x for name, x in zip(given, gradients, strict=True)})
        return {name: x.double() for name, x in found.items()}

    expected = outputs("plain", torch.float64, ends)
    assert_close(outputs("cpp", torch.float32, ends), expected, 5e-4)
    assert_close(outputs("cpp", torch.float32, pieces), expected, 5e-4)
    assert_close(outputs("plain", torch.float64, pieces), expected, 1e-9)


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("code", ["learned", "sinusoidal", "activity"])
@needs_cpp
def test_a_model_is_the_same_in_every_backend(code, is_decoder):
    model = AstroformerModel(tiny_config(astrocyte_code=code, is_decoder=is_decoder, use_cache=False))
    input_ids = torch.randint(1, 50, (3, 70))
    mask = torch.ones_like(input_ids)
    mask[0, :9], mask[1, 50:], mask[2, 20:30] = 0, 0, 0
    found = {}
    for backend in ("plain", "cpp"):
        model.zero_grad()
        with attention_backend(backend):
            hidden = model(input_ids, attention_mask=mask).last_hidden_state * mask[..., None]
            (hidden * torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)).sum().backward()
        gradients = {f"gradient of {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
        found[backend] = {"hidden": hidden.detach(), **gradients}
    assert_close(found["cpp"], found["plain"], 1e-3)


def chosen(*tensors):
    """The name of the backend that is chosen for a call of no pass in particular."""
    backend = choose_backend([], {}, [x for x in tensors if x is not None])
    return "plain" if backend is None else backend.name


def test_the_choice_is_by_device_and_dtype():
    x = torch.zeros(1, 1, 2, 2)
    expected = "cpp" if "cpp" in BACKENDS else "plain"
    assert chosen(x) == chosen(x.half(), None) == chosen(torch.nn.Parameter(x)) == expected
    assert chosen(x.double()) == chosen(x, x.double()) == "plain"
    assert chosen(x.to("meta")) == "plain"
    with attention_backend("plain"):
        assert chosen(x) == "plain"
        with attention_backend("auto"):
            assert chosen(x) == expected
    assert chosen(x) == expected

    with pytest.raises(ValueError, match="'cuda'.*|attention_backend must be one of 'auto'"):
        with attention_backend("cuda"):
            pass
    with attention_backend("triton"), pytest.raises(RuntimeError, match="'triton' was asked for"):
        neuron_astrocyte_attention(x, x, x)
    if expected == "cpp":
        with attention_backend("cpp"), pytest.raises(RuntimeError, match="'cpp' was asked for.*float64"):
            neuron_astrocyte_attention(x.double(), x.double(), x.double())


def test_transforms_and_fake_tensors_take_the_plain_form():
    x = torch.randn(4, 1, 1, 5, 3)
    mapped = torch.func.vmap(lambda x: neuron_astrocyte_attention(x, x, x))(x)
    torch.testing.assert_close(mapped, torch.stack([neuron_astrocyte_attention(y, y, y) for y in x]))
    meta = torch.zeros(1, 1, 5, 3, device="meta")
    assert neuron_astrocyte_attention(meta, meta, meta).shape == meta.shape
    with torch._subclasses.FakeTensorMode():
        fake = torch.zeros(1, 1, 5, 3)
        assert neuron_astrocyte_attention(fake, fake, fake, causal=True).shape == fake.shape


def test_the_environment_names_the_default(monkeypatch):
    x = torch.zeros(1, 1, 2, 2)
    expected = "cpp" if "cpp" in BACKENDS else "plain"
    monkeypatch.setenv("ASTROFORMER_BACKEND", "plain")
    assert chosen(x) == "plain"
    with attention_backend("auto"):
        assert chosen(x) == expected
    monkeypatch.setenv("ASTROFORMER_BACKEND", "fast")
    with pytest.raises(
        ValueError, match="ASTROFORMER_BACKEND must be one of 'auto', 'plain', 'cpp', 'triton', got 'fast'"
    ):
        chosen(x)


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls of the kernels of "cpp", by the name of the pass."""
    calls = collections.Counter()
    backend = attention_backends.BACKENDS["cpp"]

    def counting(name, direction, function):
        def call(**inputs):
            calls[name, direction] += 1
            return function(**inputs)

        return call

    kernels = {
        name: Kernel(counting(name, "forward", kernel.forward), counting(name, "backward", kernel.backward))
        for name, kernel in backend.kernels.items()
        if isinstance(kernel, Kernel)
    }
    monkeypatch.setitem(attention_backends.BACKENDS, "cpp", dataclasses.replace(backend, kernels=kernels))
    return calls


@needs_cpp
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("code", ["learned", "activity"])
def test_every_layer_runs_its_kernels_once(counted, code, is_decoder):
    model = AstroformerModel(tiny_config(astrocyte_code=code, is_decoder=is_decoder, use_cache=False))
    model(torch.randint(1, 50, (2, 9))).last_hidden_state.sum().backward()
    suffix = "_with_activity" if code == "activity" else ""
    names = [f"write_and_read_{'causally' if is_decoder else 'both_ways'}{suffix}"]
    expected = {(name, direction): 2 for name in names for direction in ("forward", "backward")}
    assert dict(counted) == expected  # two layers; and nothing else


@needs_cpp
def test_a_named_backend_without_a_kernel_raises_and_auto_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("astroformer_hf"), "propagate", True)
    backend, x = attention_backends.BACKENDS["cpp"], torch.randn(1, 2, 5, 3)
    expected = {causal: neuron_astrocyte_attention(x, x, x, causal=causal) for causal in (False, True)}
    for missing, causal in (("read_mode", False), ("write_mode", False), ("write_and_read_causally", True)):
        kernels = {name: kernel for name, kernel in backend.kernels.items() if name != missing}
        monkeypatch.setitem(attention_backends.BACKENDS, "cpp", dataclasses.replace(backend, kernels=kernels))
        with (
            attention_backend("cpp"),
            pytest.raises(RuntimeError, match=f"'cpp' .*no kernel for {missing}"),
        ):
            neuron_astrocyte_attention(x, x, x, causal=causal)
        attention_backends.logger.warning_once.cache_clear()
        caplog.clear()
        for _ in range(2):
            found = neuron_astrocyte_attention(x, x, x, causal=causal)
            torch.testing.assert_close(found, expected[causal])
        assert [missing in record.getMessage() for record in caplog.records] == [True]


@needs_cpp
@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_named_backend_without_the_kernel_of_the_default_code_raises(monkeypatch, is_decoder):
    backend = attention_backends.BACKENDS["cpp"]
    missing = f"write_and_read_{'causally' if is_decoder else 'both_ways'}_with_activity"
    kernels = {name: kernel for name, kernel in backend.kernels.items() if name != missing}
    monkeypatch.setitem(attention_backends.BACKENDS, "cpp", dataclasses.replace(backend, kernels=kernels))
    model = AstroformerModel(tiny_config(is_decoder=is_decoder))
    with attention_backend("cpp"), pytest.raises(RuntimeError, match=missing):
        model(torch.ones(1, 4, dtype=torch.long))


@needs_cpp
def test_a_causal_call_that_only_writes_makes_a_causal_code():
    key, value = torch.randn(2, 2, 3, 9, 4).unbind(0)
    code = sequence_layout(9, "cpu", causal=True).activity(key, 0.5, torch.randn(3, 4, 4), torch.randn(3, 1, 4))
    options = {"alpha": 0.5, "feature_map": "elu", "feedback": True, "random_projection": None, "causal": True}
    inputs = {"key": key, "value": value, "astrocyte_code": code, "padding_mask": None, "initial_state": None}
    with attention_backend("cpp"):
        written = attend(query=key[:, :, :0], **inputs, **options)
        whole = attend(query=key, **inputs, **options)
    torch.testing.assert_close(written.state, whole.state)
    torch.testing.assert_close(written.code_state, whole.code_state)


@needs_cpp
def test_a_compiled_graph_does_not_run_another_backend_than_the_named_one(monkeypatch):
    def attention(x):
        return neuron_astrocyte_attention(x, x, x)

    x, backend = torch.randn(1, 2, 5, 3), attention_backends.BACKENDS["cpp"]
    with attention_backend("cpp"):
        compiled = torch.compile(attention, backend="eager")
        torch.testing.assert_close(compiled(x), attention(x))
        torch.compiler.reset()
        with pytest.raises(RuntimeError, match="'cpp' was asked for"):
            torch.compile(attention, backend="eager")(x.double())
        torch.compiler.reset()
        kernels = {name: kernel for name, kernel in backend.kernels.items() if name != "write_mode"}
        monkeypatch.setitem(attention_backends.BACKENDS, "cpp", dataclasses.replace(backend, kernels=kernels))
        with pytest.raises(RuntimeError, match="'cpp' was asked for"):
            torch.compile(attention, backend="eager")(x)


def test_every_backend_says_what_it_does_with_every_pass():
    """A pass that is declared and forgotten in a table would be found by a user; and the tables name no others."""
    of_triton = {"write_and_read_documents", "write_and_read_documents_with_activity"}
    known = {"triton": of_triton, "cpp": set()}
    for name, backend in attention_backends.BACKENDS.items():
        assert set(PASSES) - set(backend.kernels) == known[name]
        for kernel in backend.kernels.values():
            assert isinstance(kernel, Kernel | PlainForm) or isinstance(backend.kernels[kernel.then], Kernel)


def test_the_source_has_the_maps_that_say_so():
    in_kernels = {name for name, feature_map in FEATURE_MAPS.items() if feature_map.in_kernels}
    assert in_kernels | {"identity"} == set(neuron_astrocyte_cpu.FEATURE_MAPS)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_declares_what_its_function_takes(name):
    pass_ = PASSES[name]
    assert {*pass_.tensors, *pass_.options} == set(inspect.signature(pass_.plain).parameters)
    assert pass_.without_gradient <= set(pass_.tensors) and pass_.forward_only <= set(pass_.options)


def test_a_model_decodes_alike_in_every_backend():
    model = AstroformerForCausalLM(tiny_config(eos_token_id=None)).eval()
    input_ids = torch.randint(1, 50, (2, 20))
    mask = torch.ones_like(input_ids)
    mask[0, :7] = 0
    found = []
    for backend in [name for name in BACKENDS if DEVICES[name] == "cpu"]:
        with attention_backend(backend):
            found.append(model.generate(input_ids, attention_mask=mask, max_new_tokens=30, do_sample=False))
    assert all(torch.equal(output, found[0]) for output in found)
