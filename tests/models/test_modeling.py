# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The model around the operation: arms, padding, precision, scale at initialisation, losses, errors."""

import itertools
import re

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from variants import HEADS, SWITCHES_OFF, VARIANTS, make_model, some_each_time, tiny_config, whole_texts_only

from astroformer_hf import AstroformerConfig, AstroformerForSequenceClassification, AstroformerModel
from astroformer_hf.astrocyte_code import ASTROCYTE_CODES
from astroformer_hf.feature_maps import FEATURE_MAPS
from astroformer_hf.layers_astroformer import precompute_shared
from astroformer_hf.losses import pool
from astroformer_hf.token_layout import sequence_layout


def make_classifier(**changes):
    return AstroformerForSequenceClassification(tiny_config(**changes)).eval()


def tokens(batch, length):
    return torch.randint(1, 50, (batch, length))


def pad(ids, side, amount):
    """`ids` with junk tokens on one side (or in the middle), and the mask that hides them."""
    junk, none, all_ = tokens(len(ids), amount), torch.zeros(len(ids), amount).long(), torch.ones_like(ids)
    half = ids.shape[1] // 2
    parts = {
        "left": lambda x, y: [y, x],
        "right": lambda x, y: [x, y],
        "inner": lambda x, y: [x[:, :half], y, x[:, half:]],
    }[side]
    return torch.cat(parts(ids, junk), 1), torch.cat(parts(all_, none), 1)


@pytest.mark.parametrize("side", ["left", "right", "inner"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_nothing(variant, pooling, side):
    whole_texts_only(variant, "no hidden states of each layer")
    model = make_classifier(pooling=pooling, **variant)
    ids = tokens(3, 67)
    expected = model(ids, output_hidden_states=True)
    padded_ids, mask = pad(ids, side, 21)
    output = model(padded_ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    real = output.hidden_states[-1][mask.bool()].view(3, 67, -1)
    torch.testing.assert_close(real, expected.hidden_states[-1], rtol=0, atol=1e-5)


def test_padding_changes_no_gradient(variant):
    model = make_classifier(**variant)
    short, long = tokens(1, 40), tokens(1, 60)
    padded, mask = pad(short, "left", 20)
    labels = torch.tensor([0, 1])
    model(
        torch.cat([padded, long]), attention_mask=torch.cat([mask, torch.ones_like(long)]), labels=labels
    ).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = [model(ids, labels=labels[i : i + 1]).loss for i, ids in enumerate((short, long))]
    (sum(losses) / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_mask_is_heeded(variant):
    model = make_classifier(**variant)
    ids = tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[:, 10:] = 0
    assert (model(ids).logits - model(ids, attention_mask=mask).logits).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_sequence_of_padding_is_finite(variant, pooling):
    whole_texts_only(variant, "no attention maps")
    model = make_classifier(pooling=pooling, **variant)
    ids, mask = tokens(2, 9), torch.tensor([[1] * 9, [0] * 9])
    output = model(ids, attention_mask=mask, labels=torch.tensor([0, 1]), output_attentions=True)
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ["AstroformerForSequenceClassification", "AstroformerForImageClassification"])
def test_models_are_built_in_half_precision(variant, head, dtype):
    name, _, make_inputs = HEADS[head]
    auto_class, inputs = getattr(transformers, name), make_inputs()
    model = auto_class.from_config(make_model(head, **variant).config, dtype=dtype).eval()
    assert {p.dtype for p in (*model.parameters(), *model.buffers())} == {dtype}
    output = model(**inputs)
    output.loss.backward()
    assert output.logits.dtype == dtype and all(
        p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
    )
    exact = auto_class.from_config(model.config, dtype=torch.float32).eval()
    exact.load_state_dict({n: x.float() for n, x in model.state_dict().items()})
    torch.testing.assert_close(output.logits.float(), exact(**inputs).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close_over_thousands_of_tokens(variant, dtype):
    if variant.get("calcium_normalization") == "sum":
        variant = {**variant, "presynaptic_alpha": 1.0}  # sums grow with the length: that is what "mean" is for
    leaky_softmax = variant.get("attention_type") == "softmax" and variant.get("synaptic_decay", "none") != "none"
    length = 2048 if leaky_softmax else 8192  # a number for every pair of tokens takes its time
    model = make_classifier(num_hidden_layers=1, max_position_embeddings=length, initializer_range=0.02, **variant)
    ids = tokens(1, length)
    exact = model(ids).logits
    output = model.to(dtype)(ids).logits
    assert output.dtype == dtype and output.isfinite().all()
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.02)


def test_autocast_trains(variant):
    model = make_classifier(**variant)
    ids, mask = pad(tokens(2, 30), "left", 7)
    labels = torch.tensor([0, 1])
    exact = model(ids, attention_mask=mask, labels=labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    torch.testing.assert_close(output.logits.float(), exact.logits, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_ablations_off_is_the_linear_arm():
    off = make_classifier(use_astrocyte_hebbian=False, presynaptic_alpha=1.0, synaptic_decay="none")
    linear = make_classifier(attention_type="linear")
    linear.load_state_dict(off.state_dict())  # strict: the same names and shapes
    ids = tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    assert torch.equal(off(ids, attention_mask=mask).logits, linear(ids, attention_mask=mask).logits)


def test_the_arms_differ_in_the_astrocyte_alone():
    names = {
        arm: set(make_classifier(attention_type=arm).state_dict()) for arm in ("neuron_astrocyte", "linear", "softmax")
    }
    assert names["linear"] == names["softmax"] < names["neuron_astrocyte"]
    own = {name.split(".")[-2] for name in names["neuron_astrocyte"] - names["linear"]}
    assert own == {"astrocyte_code", "synaptic_decay"}


@pytest.mark.parametrize(
    "changes",
    [
        {"use_astrocyte_hebbian": False},
        {"presynaptic_alpha": 0.25},
        {"use_calcium_feedback": False},
        {"astrocyte_code": "learned"},
        {"feature_map": "elu"},
        {"synaptic_decay": "none"},
        {"synaptic_decay": "learned"},
        {"presynaptic_target": "response"},
        {"calcium_sources": "neurons"},
        {"hebbian_rule": "covariance"},
        {"astrocyte_scale": 0.1},
        {"attention_type": "linear"},
        {"attention_type": "softmax"},
    ],
    ids=str,
)
def test_every_field_has_its_effect(changes):
    base = make_classifier()
    other = make_classifier(**changes)
    other.load_state_dict(base.state_dict(), strict=False)
    ids = tokens(2, 30)
    assert (base(ids).logits - other(ids).logits).abs().max() > 1e-4


def attention_output(length, **changes):
    """What a freshly initialised attention layer adds to its input, `(2, length, 128)`."""
    settings = {
        "hidden_size": 128,
        "initializer_range": 0.02,
        "max_position_embeddings": length,
        "num_hidden_layers": 1,
    }
    torch.manual_seed(1)
    block = AstroformerModel(tiny_config(**settings, **changes)).layers[0]
    torch.manual_seed(2)
    # a part of their own and a part that the tokens share, which averaging leaves
    states = torch.randn(2, length, 128) + torch.randn(2, 1, 128)
    return block.attention(states, precompute_shared(sequence_layout(length, states.device), [block]))[0]


SCALES = list(itertools.product(FEATURE_MAPS, (1.0, 0.5, 0.25, None), (16, 64), (64, 1024)))


@pytest.mark.parametrize(
    ("feature_map", "alpha", "num_hidden_neurons", "length"),
    # of each map and alpha, the narrow head at one length and the wide one at the other
    some_each_time(SCALES, [case for i, case in enumerate(SCALES) if i % 4 in ((0, 3), (1, 2))[i // 4 % 2]]),
)
def test_attention_starts_at_the_scale_of_softmax_attention(feature_map, alpha, num_hidden_neurons, length):
    options = {
        "num_hidden_neurons": num_hidden_neurons,
        "feature_map": feature_map,
        "astrocyte_code": "learned",
        "astrocyte_resting_activity": 0.05,
        **SWITCHES_OFF,
        **({"use_calcium_feedback": False} if alpha is None else {"presynaptic_alpha": alpha}),
    }
    softmax = attention_output(length, num_hidden_neurons=num_hidden_neurons, attention_type="softmax").square().mean()
    relative = (attention_output(length, **options).square().mean() / softmax) ** 0.5
    # favor's astrocyte starts as loud as its neurons; relu's activity, of zeros and ones so to speak, varies most
    assert 0.7 < relative < {"elu": 1.3, "exp": 1.3, "favor": 2.2, "relu": 3.5}[feature_map]
    # the literal sums leave that scale with the length
    literal = (attention_output(length, calcium_normalization="sum", **options).square().mean() / softmax) ** 0.5
    exponent = 1 - options["presynaptic_alpha"] if "presynaptic_alpha" in options else 1
    torch.testing.assert_close(literal / relative, torch.tensor(float(length**exponent)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("length", [64, 1024])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("code", ASTROCYTE_CODES)
def test_the_default_form_starts_at_the_scale_of_softmax_attention(code, alpha, length):
    softmax = attention_output(length, attention_type="softmax")
    own = attention_output(length, astrocyte_code=code, presynaptic_alpha=alpha)
    assert 0.5 < own.norm() / softmax.norm() < 2


@pytest.mark.parametrize(
    "code, feature_map",
    [
        *((code, feature_map) for code in ("learned", "sinusoidal") for feature_map in ("elu", "relu", "exp")),
        ("activity", "elu"),
        ("activity", "exp"),
    ],
)
def test_the_astrocyte_starts_small(code, feature_map):
    options = {"feature_map": feature_map, "astrocyte_code": code, **SWITCHES_OFF}
    options.update(astrocyte_resting_activity=0.05, astrocyte_scale=1.0)
    with_astrocyte = attention_output(300, **options)
    without = attention_output(300, use_astrocyte_hebbian=False, **options)
    share = (with_astrocyte - without).norm() / without.norm()
    assert 0.01 < share < 0.15


def test_attention_maps_are_those_applied(variant):
    whole_texts_only(variant, "no attention maps")
    model = make_classifier(**variant)
    attention = model.astroformer.layers[0].attention
    seen = {}
    attention.v_proj.register_forward_hook(lambda module, args, output: seen.update(value=output))
    attention.o_proj.register_forward_hook(lambda module, args, output: seen.update(output=args[0]))
    ids, mask = pad(tokens(2, 20), "left", 7)
    attentions = model(ids, attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 2 and attentions[0].shape == (2, 4, 27, 27)
    assert (attentions[0].transpose(1, 3)[mask == 0] == 0).all()
    value = seen["value"].view(2, 27, 4, 8).transpose(1, 2)
    applied = (attentions[0] @ value).transpose(1, 2).reshape(2, 27, 32)
    torch.testing.assert_close(applied, seen["output"])
    assert model(ids, attention_mask=mask).attentions is None
    if model.config.attention_type == "softmax":
        model.set_attn_implementation("eager")  # the library's condition for the next line
    model.config.output_attentions = True
    torch.testing.assert_close(model(ids, attention_mask=mask).attentions, attentions)


def test_hidden_states_and_tuples(variant):
    whole_texts_only(variant, "no hidden states of each layer")
    model = make_classifier(**variant)
    ids = tokens(2, 10)
    output = model(ids, output_hidden_states=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 10, 32)] * 3
    assert torch.equal(model(ids, return_dict=False)[0], output.logits)


def test_embeddings_and_positions_as_arguments(variant):
    whole_texts_only(variant, "positions are counted")
    model = make_classifier(**variant)
    ids = tokens(2, 10)
    expected = model(ids).logits
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, expected)
    torch.testing.assert_close(model(ids, position_ids=torch.arange(10)[None]).logits, expected)
    torch.testing.assert_close(model(ids, position_ids=torch.arange(10).expand(2, 10)).logits, expected)
    assert (model(ids, position_ids=torch.arange(50, 60)[None]).logits - expected).abs().max() > 1e-4
    assert (model(ids, token_type_ids=torch.ones_like(ids)).logits - expected).abs().max() > 1e-4


def test_order_matters(variant):
    model = make_classifier(**variant)
    ids = tokens(1, 10)
    assert (model(ids).logits - model(ids.flip(1)).logits).abs().max() > 1e-4


def test_checkpointing_changes_nothing(variant):
    model = make_classifier(**variant).train()
    ids, mask = pad(tokens(2, 20), "left", 7)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, attention_mask=mask, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert gradients[0]
    torch.testing.assert_close(*gradients)


def test_dropout_is_random_in_training_only():
    for arm in ("neuron_astrocyte", "linear", "softmax"):
        model = make_classifier(attention_type=arm, attention_probs_dropout_prob=0.5)
        ids = tokens(2, 10)
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "name, with_mask",
    some_each_time(itertools.product(VARIANTS, (False, True)), [("activity", True)]),
)
def test_compiles_to_one_graph(name, with_mask):
    model = make_classifier(num_hidden_layers=1, **VARIANTS[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (20, 33):
        ids, mask = pad(tokens(2, length), "left", 7)
        arguments = {"input_ids": ids, "attention_mask": mask if with_mask else None}
        torch.testing.assert_close(compiled(**arguments).logits, model(**arguments).logits, rtol=1e-4, atol=1e-5)


LOSS_CASES = {
    "single": ({"num_labels": 3}, torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])),
    "multi": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        (torch.arange(24).view(8, 3) % 5 > 2).float(),
    ),
    "regression": ({"num_labels": 1}, torch.linspace(-2, 3, 8)),
    "regression of two": ({"num_labels": 2, "problem_type": "regression"}, torch.linspace(-2, 3, 16).view(8, 2)),
}


@pytest.mark.parametrize("case", LOSS_CASES)
def test_losses_are_the_library_s(case):
    changes, labels = LOSS_CASES[case]
    model = make_classifier(**changes)
    ids = tokens(8, 10)
    output = model(ids, labels=labels)
    reference = {
        "single": torch.nn.functional.cross_entropy,
        "multi": torch.nn.functional.binary_cross_entropy_with_logits,
    }.get(case, lambda logits, labels: torch.nn.functional.mse_loss(logits, labels.view_as(logits)))
    torch.testing.assert_close(output.loss, reference(output.logits, labels))
    parts = [
        model(ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=labels.numel()).loss for i in (0, 2, 4, 6)
    ]
    torch.testing.assert_close(sum(parts), output.loss)


def test_ignored_labels_do_not_count():
    model = make_classifier()
    ids = tokens(3, 10)
    loss = model(ids, labels=torch.tensor([1, -100, 0])).loss
    torch.testing.assert_close(loss, model(ids[[0, 2]], labels=torch.tensor([1, 0])).loss)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_type": "sparse"}, "attention_type must be one of .*'softmax', got 'sparse'"),
        ({"feature_map": "tanh"}, "feature_map .*'favor', got 'tanh'"),
        ({"astrocyte_code": "none"}, "astrocyte_code .*'activity', got 'none'"),
        ({"calcium_normalization": "max"}, "calcium_normalization .*'mean', 'sum', got 'max'"),
        ({"pooling": "max"}, "pooling .*'mean', 'cls', 'last', got 'max'"),
        ({"presynaptic_alpha": 0}, r"presynaptic_alpha .*\(0, 1\], got 0"),
        ({"presynaptic_alpha": 1.5}, r"presynaptic_alpha .*got 1.5"),
        ({"astrocyte_scale": -1.0}, "astrocyte_scale must be positive, got -1"),
        ({"num_hidden_neurons": 0}, "num_hidden_neurons must be positive, got 0"),
        ({"hidden_size": 30}, "hidden_size .* num_attention_heads, got .*30 .*4"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\), got 1"),
        ({"hidden_act": "gleu"}, "hidden_act .*gelu.*got 'gleu'"),
        ({"pad_token_id": 50}, "pad_token_id .*vocab_size=50.*got 50"),
        ({"hiden_size": 32}, "no field 'hiden_size'; did you mean 'hidden_size'"),
        ({"presynaptic_alfa": 1.0}, "did you mean 'presynaptic_alpha'"),
        ({"attention_dropout_prob": 0.1}, "did you mean 'attention_probs_dropout_prob'"),
        ({"hidden_size": "32"}, "hidden_size.*expected int, got str"),
        ({"use_astrocyte_hebbian": "no"}, "use_astrocyte_hebbian.*expected bool, got str"),
    ],
    ids=str,
)
def test_bad_configurations_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError)) as error:
        tiny_config(**changes)
    assert re.search(message, str(error.value).replace("\n", " ")), error.value


def test_the_library_s_own_keywords_are_welcome():
    config = AstroformerConfig(
        num_labels=3, sep_token_id=3, cls_token_id=2, torch_dtype="float32", name_or_path="x", my_own_field=1
    )
    assert config.num_labels == 3 and config.my_own_field == 1
    assert AstroformerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(5).long()}, r"input_ids .*\(5,\)"),
        ({"input_ids": torch.tensor([[3, 50]])}, "input_ids .*vocab_size=50.* 3 to 50"),
        ({"input_ids": torch.zeros(2, 0).long()}, r"input_ids must have at least one token, got shape \(2, 0\)"),
        ({"inputs_embeds": torch.zeros(1, 2, 31)}, r"inputs_embeds .*hidden_size=32.*\(1, 2, 31\)"),
        (
            {"input_ids": torch.ones(1, 5).long(), "attention_mask": torch.ones(1, 4)},
            r"attention_mask .*\(1, 5\).*\(1, 4\)",
        ),
        ({"input_ids": torch.ones(1, 5).long(), "attention_mask": torch.ones(1, 1, 5, 5)}, "attention_mask "),
        (
            {"input_ids": torch.ones(1, 2).long(), "token_type_ids": torch.tensor([[0, 2]])},
            "token_type_ids .*type_vocab_size=2",
        ),
        ({"input_ids": torch.ones(1, 2).long(), "position_ids": torch.zeros(1, 3).long()}, "position_ids .*"),
        (
            {"input_ids": torch.ones(1, 2).long(), "position_ids": torch.tensor([[0, 160]])},
            "position_ids .*max_position_embeddings=160",
        ),
        ({"input_ids": torch.ones(1, 161).long()}, "161 tokens .*max_position_embeddings=160"),
        ({"input_ids": torch.ones(1, 2).long(), "labels": torch.tensor([2])}, "labels .*num_labels=2.* 2"),
        ({"input_ids": torch.ones(1, 2).long(), "labels": torch.tensor([-1])}, "labels .*num_labels=2"),
        ({"input_ids": torch.ones(1, 2).long(), "labels": torch.tensor([0, 1])}, r"labels must have shape .*\(2,\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_inputs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(astrocyte_code="learned")(**arguments)


def test_codes_without_a_table_take_any_length():
    for kind in ("sinusoidal", "activity"):
        assert make_classifier(astrocyte_code=kind)(tokens(1, 1000)).logits.isfinite().all()


def test_pooling():
    hidden_states = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[0, 1, 1, 0]])
    assert pool(hidden_states, mask, "mean").tolist() == [[4.5, 5.5, 6.5]]
    assert pool(hidden_states, mask, "cls").tolist() == [[3, 4, 5]]
    assert pool(hidden_states, mask, "last").tolist() == [[6, 7, 8]]
    assert pool(hidden_states, None, "cls").tolist() == [[0, 1, 2]]
    assert pool(hidden_states, None, "last").tolist() == [[9, 10, 11]]
    padding = torch.zeros(1, 4)
    assert pool(hidden_states, padding, "mean").tolist() == [[0, 0, 0]]
    assert pool(hidden_states, padding, "cls").tolist() == [[0, 1, 2]]
    assert pool(hidden_states, padding, "last").tolist() == [[9, 10, 11]]
    after_a_prefix = torch.tensor([[1, 1, 0, 1, 1, 0]])
    assert pool(hidden_states, after_a_prefix, "last").tolist() == [[6, 7, 8]]


# --------------------------------------------------------------------------------------------------------------------
# Softmax attention by the library's functions
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", ["none", "gated"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_softmax_is_the_same_by_each_of_the_library_functions(is_decoder, leak):
    model = make_classifier(attention_type="softmax", is_decoder=is_decoder, synaptic_decay=leak).eval()
    assert model.config._attn_implementation == "sdpa"
    ids = tokens(3, 13)
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 9:] = 0
    found = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        model.zero_grad()
        logits = model(ids, attention_mask=mask).logits
        logits.square().sum().backward()
        found[name] = [logits, *(p.grad for p in model.parameters() if p.grad is not None)]
    torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-4, atol=1e-5)


def test_softmax_may_be_computed_by_flash_attention(monkeypatch):
    """Which cannot run here: a stand-in under its name computes what the function is documented to."""
    seen = []

    def stand_in(module, query, key, value, attention_mask, dropout, scaling, is_causal):
        seen.append((attention_mask, is_causal))
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        mask = (mask if is_causal else torch.ones_like(mask))[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None]
        scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~mask, -1e9)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", stand_in)
    model = make_classifier(attention_type="softmax", is_decoder=True).eval()
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = [model(ids, attention_mask=mask).logits, model(ids).logits]
    model.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close([model(ids, attention_mask=mask).logits, model(ids).logits], expected)
    assert all(is_causal for _, is_causal in seen)
    assert seen[0][0].dim() == 2 and seen[-1][0] is None
    for options in ({"synaptic_decay": "learned"}, {"num_hidden_neurons": 4}):
        model = make_classifier(attention_type="softmax", **options).eval()
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="'flash_attention_2' takes no synaptic_decay, no packed rows"):
            model(ids)


@pytest.mark.parametrize(
    ("arm", "name", "match"),
    [
        ("neuron_astrocyte", "sdpa", "not for attention_type 'neuron_astrocyte': it has its own"),
        ("linear", "flash_attention_2", "not for attention_type 'linear': it has its own"),
        ("softmax", "neuron_astrocyte", "choose 'sdpa', 'eager' or"),
        ("softmax", "flex_attention", "choose 'sdpa', 'eager' or"),
    ],
)
def test_other_implementations_are_refused_by_name(arm, name, match):
    model = make_classifier(attention_type=arm)
    with pytest.raises(ValueError, match=f"'{name}'.*{match}"):
        model.set_attn_implementation(name)
    with pytest.raises(ValueError, match=f"'{name}'.*{match}"):
        AutoModel.from_config(model.config, attn_implementation=name)
