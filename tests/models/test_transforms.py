# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Models and the operation under torch's own transforms: what they answer without them, or an error in words."""

import copy
import itertools
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from variants import EACH_TIME, HEADS, VARIANTS, VISION, make_model, some_each_time, tiny_config, without_labels

from astroformer_hf import (
    AstroformerForCausalLM,
    AstroformerModel,
    attention_backend,
    attention_backends,
    neuron_astrocyte_attention,
    neuron_astrocyte_cpu,  # noqa: F401 (asked by `needs_cpp`)
)
from astroformer_hf.attention_backends import choose_backend
from astroformer_hf.attention_contract import PASSES, SHAPES


is_decoder = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])


def make(variant, is_decoder):
    config = tiny_config(**variant, is_decoder=is_decoder, use_cache=False, return_dict=False, num_hidden_layers=1)
    return AstroformerModel(config).eval()


def batch(size, length, padding):
    """Token ids and a mask, of which some rows are padded on a side or between."""
    mask = torch.ones(size, length, dtype=torch.long)
    place = {"none": slice(0, 0), "left": slice(0, 3), "right": slice(length - 4, length), "inner": slice(2, 5)}[
        padding
    ]
    mask[-1, place] = 0
    return torch.randint(1, 50, (size, length)), mask


def assert_same(found, expected, mask):
    torch.testing.assert_close(found * mask[..., None], expected * mask[..., None], rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# torch.jit.trace
# --------------------------------------------------------------------------------------------------------------------


class Tuples(torch.nn.Module):
    """A model whose inputs come in the order of `names`."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)


def trace(model, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, example_kwarg_inputs=inputs, check_trace=False, strict=False)


def every_variant(others):
    """Parameters for some variants, encoder and decoder, with each of `others` in turn; on demand for all of both."""
    each_time = [
        (name, is_decoder, others[(i + is_decoder) % len(others)])
        for i, name in enumerate(EACH_TIME)
        for is_decoder in (False, True)
    ]
    return some_each_time(itertools.product(VARIANTS, (False, True), others), each_time)


@pytest.mark.parametrize(
    ("name", "is_decoder", "traced_with"), every_variant(["none 1", "right 2", "left 1", "none 2", "right 1", "left 2"])
)
def test_a_traced_graph_is_right_for_every_mask_and_batch(name, is_decoder, traced_with):
    model = make(VARIANTS[name], is_decoder)
    padding, size = traced_with.split()
    input_ids, mask = batch(int(size), 9, padding)
    graph = trace(model, {"input_ids": input_ids, "attention_mask": mask})
    for called_with, other in (("none", 2), ("right", 1), ("left", 3), ("inner", 2)):
        input_ids, mask = batch(other, 9, called_with)
        with attention_backend("plain"):
            expected = model(input_ids, attention_mask=mask)[0]
        assert_same(graph(input_ids=input_ids, attention_mask=mask)[0], expected, mask)


@pytest.mark.parametrize(("name", "is_decoder", "length"), every_variant([1, 9, 80]))
def test_a_traced_graph_refuses_other_lengths(name, is_decoder, length):
    model = make(VARIANTS[name], is_decoder)
    input_ids, mask = batch(2, max(length, 9), "none")
    input_ids, mask = input_ids[:, :length], mask[:, :length]
    graph = trace(model, {"input_ids": input_ids})
    with attention_backend("plain"):
        assert_same(graph(input_ids=input_ids)[0], model(input_ids)[0], mask)
    masked = trace(model, {"input_ids": input_ids, "attention_mask": mask})
    for other in (2, 130):
        input_ids = torch.ones(2, other, dtype=torch.long)
        expected = rf"torch.jit.trace takes input_ids of shape \[-1, {length}\].*got \[2, {other}\]"
        with pytest.raises(torch.jit.Error, match=expected):
            graph(input_ids=input_ids)
        with pytest.raises(torch.jit.Error, match=expected):
            masked(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))


def test_a_traced_graph_of_every_class_is_right_for_every_mask(head):
    model = make_model(head, **({"use_cache": False} if head == "AstroformerForCausalLM" else {}))
    traced_with, inputs = (without_labels(HEADS[head][2]()) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(Tuples(model, list(traced_with)).eval(), tuple(traced_with.values()), check_trace=False)
    if "attention_mask" in inputs:
        inputs["attention_mask"] = inputs["attention_mask"].flip(-1)
    with attention_backend("plain"):
        expected = model(**inputs)[0]
    found = graph(*inputs.values())[0]
    if expected.shape[:2] == inputs.get("attention_mask", expected).shape and expected.dim() == 3:
        assert_same(found, expected, inputs["attention_mask"])
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    if head in VISION:
        with pytest.raises(torch.jit.Error, match=r"takes pixel_values of shape \[-1, 3, 16, 16\]"):
            graph(torch.zeros(1, 3, 16, 20))


def test_a_traced_graph_carries_no_cache():
    model = AstroformerForCausalLM(tiny_config()).eval()
    input_ids, _ = batch(2, 9, "none")
    with pytest.raises(ValueError, match="torch.jit.trace carries no cache; trace with use_cache=False"):
        trace(model, {"input_ids": input_ids})


# --------------------------------------------------------------------------------------------------------------------
# torch.func, and forward mode
# --------------------------------------------------------------------------------------------------------------------


@is_decoder
def test_an_ensemble_answers_as_its_members(variant, is_decoder):
    members = [make(variant, is_decoder) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")

    def answer(parameters, buffers, input_ids, mask):
        return torch.func.functional_call(skeleton, (parameters, buffers), (input_ids, mask))[0]

    for padding in ("none", "left", "right", "inner"):
        input_ids, mask = batch(2, 9, padding)
        with torch.no_grad():  # as of old, when a member's code was remembered
            expected = torch.stack([member(input_ids, mask)[0] for member in members])
            found = torch.vmap(answer, (0, 0, None, None))(parameters, buffers, input_ids, mask)
            assert_same(found, expected, mask)
            # and each with inputs of its own
            each = [batch(2, 9, name) for name in ("left", padding, "none")]
            input_ids, mask = (torch.stack(x) for x in zip(*each, strict=True))
            found = torch.vmap(answer)(parameters, buffers, input_ids, mask)
            for x, member, ids, own_mask in zip(found, members, input_ids, mask, strict=True):
                assert_same(x, member(ids, own_mask)[0], own_mask)


def central_difference(function, x, tangent):
    step = 1e-6
    return (function(x + step * tangent) - function(x - step * tangent)) / (2 * step)


@is_decoder
def test_forward_mode_derivatives(variant, is_decoder):
    model = make(variant, is_decoder)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    embeds, tangent = torch.randn(2, 2, 9, 32)

    def function(x):
        return model(inputs_embeds=x, attention_mask=mask)[0] * mask[..., None]

    exact = copy.deepcopy(model).double()
    expected = central_difference(
        lambda x: exact(inputs_embeds=x, attention_mask=mask)[0] * mask[..., None], embeds.double(), tangent.double()
    ).float()
    if variant.get("attention_type") == "softmax":  # torch's own attention has none on the CPU, and says so
        with pytest.raises(NotImplementedError, match="forward AD"):
            torch.func.jvp(function, (embeds,), (tangent,))
        return
    for grad in (torch.enable_grad, torch.no_grad):
        with grad(), forward_ad.dual_level():
            found = forward_ad.unpack_dual(function(forward_ad.make_dual(embeds, tangent))).tangent
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3 * expected.abs().max().item())
        with grad():
            found = torch.func.jvp(function, (embeds,), (tangent,))[1]
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("causal", [False, True])
def test_nested_transforms_of_the_operation(causal):
    inputs = torch.randn(3, 1, 2, 5, 4)

    def loss(x):
        query, key, value = x
        return neuron_astrocyte_attention(query, key, value, alpha=0.5, causal=causal).square().sum()

    jacobians = [torch.func.jacfwd(loss), torch.func.jacrev(loss), torch.func.grad(loss)]
    plain = torch.autograd.functional.jacobian(loss, inputs)
    for jacobian in jacobians:
        torch.testing.assert_close(jacobian(inputs), plain, rtol=1e-4, atol=1e-5)
    hessian = torch.autograd.functional.hessian(loss, inputs)
    torch.testing.assert_close(torch.func.hessian(loss)(inputs), hessian, rtol=1e-3, atol=1e-4)
    with forward_ad.dual_level():  # forward mode over reverse mode, by hand
        dual = forward_ad.make_dual(inputs.clone().requires_grad_(), torch.ones_like(inputs))
        (gradient,) = torch.autograd.grad(loss(dual), dual, create_graph=True)
        tangent = forward_ad.unpack_dual(gradient).tangent
    expected = hessian.sum(dim=(5, 6, 7, 8, 9))
    torch.testing.assert_close(tangent, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.compiler
def test_a_backend_that_is_named_refuses_a_tangent():
    x = torch.ones(1, 1, 3, 2)
    with forward_ad.dual_level(), attention_backend("cpp"):
        dual = forward_ad.make_dual(x, x)
        neuron_astrocyte_attention(x, x, x)
        with pytest.raises(RuntimeError, match="'cpp' was asked for, but it has no forward-mode derivative"):
            neuron_astrocyte_attention(x, dual, x)
    assert choose_backend([], {}, [x]).name == "cpp"


# --------------------------------------------------------------------------------------------------------------------
# Tensors without values
# --------------------------------------------------------------------------------------------------------------------


@is_decoder
def test_fake_tensors_with_a_mask(variant, is_decoder):
    with FakeTensorMode():
        model = make(variant, is_decoder)
        hidden = model(torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.long))[0]
    assert hidden.shape == (2, 9, 32)


def test_tensors_on_meta_with_a_mask():
    for variant in VARIANTS.values():
        model = make(variant, False).to("meta")
        ids = torch.ones(2, 9, dtype=torch.long, device="meta")
        assert model(ids, ids)[0].shape == (2, 9, 32)


@pytest.mark.compiler
@pytest.mark.parametrize(
    "variant, is_decoder, passes",
    [
        ("activity", True, ["write_and_read_causally_with_activity"]),
        ("activity", False, ["write_and_read_both_ways_with_activity"]),
        ("activity, switches off", False, ["read_mode", "write_mode_with_activity"]),
    ],
)
def test_a_compiled_model_keeps_the_kernels_in_few_graphs(variant, is_decoder, passes):
    """Thirteen lengths take at most three graphs, in which the passes are operators that run the C++ kernels."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model = make(VARIANTS[variant], is_decoder)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for length in (9, 17, 33, 40, 63, 64, 65, 100, 128, 129, 150, 200, 257):
        ids = torch.randint(1, 50, (2, length))
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        found, expected = (x(ids, attention_mask=mask, use_cache=False)[0] for x in (compiled, model))
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
    assert 1 <= len(graphs) <= 3
    for graph in graphs:
        called = [str(node.target) for node in graph.graph.nodes if "astroformer_hf" in str(node.target)]
        assert sorted({name.split(".")[1] for name in called}) == passes


@pytest.mark.compiler
@pytest.mark.parametrize("name", sorted(attention_backends._OPERATORS))
def test_an_operator_is_what_it_promises(name):
    """Shapes, strides and derivatives of the operators of torch, as torch itself checks them."""
    batch, heads, length, m, d = 2, 3, 21, 4, 5
    sizes = {"b": batch, "h": heads, "n": length, "m": m, "f": m, "d": d, "1": 1}
    if name.startswith("hybrid"):
        sizes.update(k=1, d=m, r=m // 2, w=5, s=2, p=2 * m)
    pass_, inputs = PASSES[name], {}
    for tensor in pass_.tensors:
        shape = [sizes[letter] for letter in SHAPES[tensor]]
        inputs[tensor] = torch.rand(shape).requires_grad_(tensor in pass_.differentiable)
    if "padding_mask" in inputs:
        inputs["padding_mask"] = torch.rand(batch, length) > 0.2
    if "document_ids" in inputs:
        inputs["document_ids"] = torch.arange(length).div(9, rounding_mode="floor").expand(batch, -1).contiguous()
    if "log_decay" in inputs:
        inputs["log_decay"] = (-torch.rand(batch, heads, length)).requires_grad_()
    if "tokens" in inputs:
        inputs["tokens"] = torch.full((batch, 1), length)
    if "counted" in inputs:
        inputs["counted"] = torch.tensor([[3], [9]])
    options = {"feature_map": "elu", "alpha": 0.5, "feedback": True, "scale": 0.25, "coupling_scale": 0.7}
    options.update(output_dtype=torch.float32, presynaptic_target="synapse", calcium_sources="all")
    options.update(scaling=0.4, window_size=3, sink_tokens=1)
    values = [inputs[tensor] for tensor in pass_.tensors] + [options[option] for option in pass_.options]
    torch.library.opcheck(
        attention_backends._OPERATORS[name],
        tuple(values),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    results = pass_.as_tuple(attention_backends._OPERATORS[name](*values))
    with attention_backend("plain"):
        expected = pass_.as_tuple(pass_(**dict(zip((*pass_.tensors, *pass_.options), values, strict=True))))
    wanted = [inputs[tensor] for tensor in pass_.differentiable]
    gradients = []
    for found in (results, expected):
        loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in found)
        gradients.append(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
