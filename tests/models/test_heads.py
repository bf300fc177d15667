# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Every class: outputs, losses, padding, errors."""

import itertools

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from variants import (
    HEADS,
    LABELS,
    VARIANTS,
    VISION,
    make_model,
    some_each_time,
    tiny_config,
    whole_texts_only,
    without_labels,
)

from astroformer_hf import AstroformerForCausalLM, AstroformerForMaskedLM, AstroformerModel
from astroformer_hf.library_compatibility import CACHE_NAME, CACHE_NAMES


TEXT = [name for name in HEADS if name not in VISION]


@pytest.mark.parametrize("head", TEXT)
def test_outputs_at_real_tokens_do_not_depend_on_padding(head, variant):
    model = make_model(head, **variant)
    inputs = without_labels(HEADS[head][2]())
    output = model(**inputs)
    mask = inputs["attention_mask"].bool()
    other = {**inputs, "input_ids": torch.where(mask, inputs["input_ids"], 7)}
    for key, expected in output.items():
        if key in CACHE_NAMES:
            continue
        changed = model(**other)[key]
        if expected.shape[: mask.dim()] == mask.shape:
            expected, changed = expected[mask], changed[mask]
        torch.testing.assert_close(changed, expected)
    unmasked = model(input_ids=inputs["input_ids"])
    assert (unmasked[0] - output[0]).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["AstroformerForCausalLM", "AstroformerModel"])
@pytest.mark.parametrize("side", ["left", "right", "inner"])
def test_causal_padding_changes_nothing(head, side, variant):
    model = make_model(head, is_decoder=True, **variant)
    ids = torch.randint(1, 50, (2, 70))
    expected = model(ids)[0]
    cut = {"left": 0, "right": 70, "inner": 31}[side]
    junk, hidden = torch.randint(1, 50, (2, 9)), torch.zeros(2, 9).long()
    mask = torch.cat((torch.ones(2, cut).long(), hidden, torch.ones(2, 70 - cut).long()), dim=1)
    output = model(torch.cat((ids[:, :cut], junk, ids[:, cut:]), dim=1), attention_mask=mask)[0]
    assert output.isfinite().all()
    torch.testing.assert_close(output[mask.bool()].view_as(expected), expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_sees_nothing_later(variant):
    model = make_model("AstroformerForCausalLM", **variant)
    ids = torch.randint(1, 50, (2, 70))
    changed = ids.clone()
    changed[:, 40:] = torch.randint(1, 50, (2, 30))
    output, other = model(ids).logits, model(changed).logits
    torch.testing.assert_close(other[:, :40], output[:, :40], rtol=1e-5, atol=1e-5)
    assert (other[:, 40:] - output[:, 40:]).abs().max() > 1e-3
    whole_texts_only(variant, "an encoder does not see the segments to come")
    encoder = make_model("AstroformerForMaskedLM", **variant)
    assert (encoder(ids).logits - encoder(changed).logits)[:, :40].abs().max() > 1e-4


def test_a_causal_model_makes_its_configuration_a_decoder_s():
    config = tiny_config()
    model = AstroformerForCausalLM(config)
    assert model.config.is_decoder and model.astroformer.config.is_decoder and not config.is_decoder


@pytest.mark.parametrize("head", ["AstroformerForCausalLM", "AstroformerForMaskedLM"])
def test_output_and_input_embeddings_are_tied(head):
    model = make_model(head)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert make_model(head, tie_word_embeddings=False).lm_head.weight is not model.get_input_embeddings().weight


REFERENCE_LOSS = {
    "AstroformerForCausalLM": lambda o, i: cross_entropy(o.logits[:, :-1].flatten(0, 1), i["labels"][:, 1:].flatten()),
    "AstroformerForMaskedLM": lambda o, i: cross_entropy(o.logits.flatten(0, 1), i["labels"].flatten()),
    "AstroformerForTokenClassification": lambda o, i: cross_entropy(o.logits.flatten(0, 1), i["labels"].flatten()),
    "AstroformerForSequenceClassification": lambda o, i: cross_entropy(o.logits, i["labels"]),
    "AstroformerForImageClassification": lambda o, i: cross_entropy(o.logits, i["labels"]),
    "AstroformerForMultipleChoice": lambda o, i: cross_entropy(o.logits, i["labels"]),
    "AstroformerForQuestionAnswering": lambda o, i: (
        (cross_entropy(o.start_logits, i["start_positions"]) + cross_entropy(o.end_logits, i["end_positions"])) / 2
    ),
}


@pytest.mark.parametrize("head", REFERENCE_LOSS)
def test_losses_are_means_also_in_parts(head):
    model, inputs = make_model(head), HEADS[head][2]()
    if inputs.get("labels", CLASSES_ONLY).dim() == 2:
        inputs["labels"][0, :4] = -100
    output = model(**inputs)
    torch.testing.assert_close(output.loss, REFERENCE_LOSS[head](output, inputs))
    labels = inputs.get("labels", inputs.get("start_positions"))
    counted = labels[:, 1:] if head == "AstroformerForCausalLM" else labels
    num_items = (counted != -100).sum()
    parts = [
        model(**{name: x[part] for name, x in inputs.items()}, num_items_in_batch=num_items).loss
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), output.loss)


CLASSES_ONLY = torch.zeros(1)


def test_answers_outside_the_input_do_not_count():
    model = make_model("AstroformerForQuestionAnswering")
    inputs = HEADS["AstroformerForQuestionAnswering"][2]()
    inputs["start_positions"][0] = inputs["end_positions"][0] = 9
    rest = {name: x[1:] for name, x in inputs.items()}
    torch.testing.assert_close(model(**inputs).loss, model(**rest).loss)


def test_logits_of_the_last_tokens_only():
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (2, 9))
    logits = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=2).logits, logits[:, -2:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


IDS = torch.ones(2, 3).long()


@pytest.mark.parametrize(
    "head, arguments, message",
    [
        (
            "AstroformerForCausalLM",
            {"input_ids": IDS, "labels": IDS[:, 1:]},
            r"labels must have shape \(2, 3\).*\(2, 2\)",
        ),
        ("AstroformerForCausalLM", {"input_ids": IDS, "labels": 60 * IDS}, "labels .*vocab_size=50.* 60"),
        ("AstroformerForMaskedLM", {"input_ids": IDS, "labels": -IDS}, "labels .*vocab_size=50.* -1"),
        ("AstroformerForTokenClassification", {"input_ids": IDS, "labels": 3 * IDS}, "labels .*num_labels=3.* 3"),
        (
            "AstroformerForQuestionAnswering",
            {"input_ids": IDS, "start_positions": IDS[:, 0]},
            "both of start_positions",
        ),
        (
            "AstroformerForQuestionAnswering",
            {"input_ids": IDS, "start_positions": IDS, "end_positions": IDS},
            r"start_positions must have shape \(2,\)",
        ),
        ("AstroformerForMultipleChoice", {"input_ids": IDS}, r"\(batch, choices, length\).*\(2, 3\)"),
        ("AstroformerForMultipleChoice", {"input_ids": IDS[None], "labels": IDS[0, :1] * 2}, "labels .*choices=2.* 2"),
        (
            "AstroformerForMaskedLM",
            {"input_ids": IDS, CACHE_NAME: object()},
            f"{CACHE_NAME} belongs to a decoder",
        ),
        (
            "AstroformerForImageClassification",
            {"pixel_values": torch.zeros(1, 1, 16, 16)},
            r"pixel_values .*num_channels=3.*\(1, 1, 16, 16\)",
        ),
        (
            "AstroformerForImageClassification",
            {"pixel_values": torch.zeros(1, 3, 20, 16)},
            r"image_size \(16, 16\), got \(20, 16\).*interpolate_pos_encoding",
        ),
        (
            "AstroformerForImageClassification",
            {"pixel_values": torch.zeros(1, 3, 18, 16), "interpolate_pos_encoding": True},
            r"multiple of \(4, 4\), got \(18, 16\)",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_inputs_are_named(head, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(head)(**arguments)


def test_a_masked_language_model_is_no_decoder():
    with pytest.raises(ValueError, match="is_decoder=True"):
        AstroformerForMaskedLM(tiny_config(is_decoder=True))


def test_a_causal_checkpoint_gives_its_bare_model(tmp_path):
    model = make_model("AstroformerForCausalLM")
    model.save_pretrained(tmp_path)
    bare = AstroformerModel.from_pretrained(tmp_path)
    assert bare.config.is_decoder
    ids = torch.randint(1, 50, (2, 9))
    assert torch.equal(bare(ids).last_hidden_state, model.astroformer(ids).last_hidden_state)


# --------------------------------------------------------------------------------------------------------------------
# Labels of every dtype, and what they are of
# --------------------------------------------------------------------------------------------------------------------

LABELLED = [name for name in HEADS if name not in ("AstroformerModel", "AstroformerVisionModel")]
CLASSIFIERS = ("AstroformerForSequenceClassification", "AstroformerForImageClassification")


def cast(inputs, change):
    return {name: change(x) if name in LABELS else x for name, x in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("head", LABELLED)
def test_whole_numbers_of_every_dtype_are_labels(head, dtype):
    model, inputs = make_model(head), HEADS[head][2]()
    expected = model(**inputs)
    output = model(**cast(inputs, lambda x: x.to(dtype)))
    assert torch.equal(output.loss, expected.loss)
    output.loss.backward()
    if dtype != torch.uint8 and "labels" in inputs:
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][0] = -100
        expected = model(**inputs).loss
        assert torch.equal(model(**cast(inputs, lambda x: x.to(dtype))).loss, expected)


@pytest.mark.parametrize("head", LABELLED)
def test_truth_values_are_labels_of_two_classes(head):
    model = make_model(head)
    inputs = cast(HEADS[head][2](), lambda x: x > 1) if head not in CLASSIFIERS else HEADS[head][2]()
    as_truth = cast(inputs, lambda x: x.bool())
    assert torch.equal(model(**as_truth).loss, model(**cast(inputs, lambda x: x.long())).loss)


@pytest.mark.parametrize("head", LABELLED)
@pytest.mark.parametrize("change", ["list", "float", "complex"])
def test_labels_of_another_kind_are_named(head, change):
    model, inputs = make_model(head, problem_type="single_label_classification"), HEADS[head][2]()
    changes = {"list": lambda x: x.tolist(), "float": lambda x: x.float(), "complex": lambda x: x.to(torch.complex64)}
    message = r"(labels|_positions) must be (a torch.Tensor, got list|whole numbers.*got torch.(float|complex))"
    with pytest.raises(ValueError, match=message):
        model(**cast(inputs, changes[change]))


def test_an_answer_has_no_negative_position():
    inputs = HEADS["AstroformerForQuestionAnswering"][2]()
    inputs["end_positions"][1] = -1
    with pytest.raises(ValueError, match="end_positions must be in .* got values from -1"):
        make_model("AstroformerForQuestionAnswering")(**inputs)


@pytest.mark.parametrize(
    "head", ["AstroformerForCausalLM", "AstroformerForMaskedLM", "AstroformerForTokenClassification"]
)
def test_another_number_may_be_ignored(head):
    model, inputs = make_model(head), HEADS[head][2]()
    inputs["labels"][:, :5] = -100
    expected = model(**inputs).loss
    other = cast(inputs, lambda x: x.masked_fill(x == -100, -1).int())
    torch.testing.assert_close(model(**other, ignore_index=-1).loss, expected)
    with pytest.raises(ValueError, match="labels must be in .* got values from -1"):
        model(**other)


PROBLEMS = {
    "regression": (1, torch.tensor([0.5, -1.0, 2.0, 7.0])),
    "regression, column": (1, torch.tensor([[0.5], [-1.0], [2.0], [7.0]])),
    "regression, double": (1, torch.tensor([0.5, -1.0, 2.0, 7.0], dtype=torch.float64)),
    "regression, whole numbers": (1, torch.tensor([1, 2, 3, 4])),
    "regression, small numbers": (1, torch.tensor([1, 2, 3, 4], dtype=torch.uint8)),
    "single_label_classification": (3, torch.tensor([0, 2, 1, 1])),
    "single_label_classification, int": (3, torch.tensor([0, 2, 1, 1], dtype=torch.int32)),
    "single_label_classification, bool": (2, torch.tensor([True, False, True, True])),
    "multi_label_classification": (3, torch.tensor([[0.0, 1, 1]] * 4)),
    "multi_label_classification, double": (3, torch.tensor([[0.0, 1, 1]] * 4, dtype=torch.float64)),
    "multi_label_classification, bool": (3, torch.tensor([[False, True, True]] * 4)),
}


def reference_loss(problem, logits, labels):
    functional = torch.nn.functional
    if problem == "regression":
        return functional.mse_loss(logits, labels.view(-1, 1).float())
    if problem == "single_label_classification":
        return functional.cross_entropy(logits, labels.long())
    return functional.binary_cross_entropy_with_logits(logits, labels.float())


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("head", CLASSIFIERS)
def test_the_inferred_problem_is_in_the_configuration(head, case, tmp_path):
    problem, (num_labels, labels) = case.partition(",")[0], PROBLEMS[case]
    model = make_model(head, num_labels=num_labels)
    inputs = {**HEADS[head][2](), "labels": labels}
    with torch.no_grad():
        assert model(**without_labels(inputs)).loss is None and model.config.problem_type is None
        output = model(**inputs)
    torch.testing.assert_close(output.loss, reference_loss(problem, output.logits, labels))
    assert model.config.problem_type == model.base_model.config.problem_type == problem
    assert torch.equal(model(**inputs).loss, output.loss)  # what was inferred fits, the next time as well
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.problem_type == problem


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_labels_that_do_not_fit_leave_the_configuration_alone(head):
    model = make_model(head, num_labels=3)
    inputs = without_labels(HEADS[head][2]())
    for labels, message in (
        (torch.zeros(4, 3).long(), r"\(4,\).* for single_label_classification .*set config.problem_type"),
        (torch.zeros(4), r"\(4, 3\) for multi_label_classification"),
        (torch.full((4, 3), 2.0), "labels must be from 0 to 1 for multi_label_classification, got .* 2.0"),
        (torch.tensor([0, 1, 2, 3]), "labels must be in .*num_labels=3"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs, labels=labels)
        assert model.config.problem_type is None
    model.config.problem_type = "classification"
    with pytest.raises(ValueError, match="config.problem_type must be one of 'single_label_.*, got 'classification'"):
        model(**inputs, labels=torch.tensor([0, 1, 2, 2]))
    model.config.problem_type = None
    model(**inputs, labels=torch.tensor([0, 1, 2, 2]))
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\).* for single_label_classification"):
        model(**inputs, labels=torch.zeros(4, 3))


@pytest.mark.parametrize(
    "head, case",
    some_each_time(
        itertools.product(CLASSIFIERS, ("regression", "multi_label_classification", "single_label_classification")),
        [
            ("AstroformerForSequenceClassification", "multi_label_classification"),
            ("AstroformerForImageClassification", "single_label_classification"),
        ],
    ),
)
def test_the_problem_is_inferred_in_a_compiled_graph(head, case):
    num_labels, labels = PROBLEMS[case]
    model = make_model(head, num_labels=num_labels, num_hidden_layers=1)
    inputs = {**HEADS[head][2](), "labels": labels}
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
    assert model.config.problem_type == case
    torch.testing.assert_close(loss, model(**inputs).loss)


# --------------------------------------------------------------------------------------------------------------------
# Pooling
# --------------------------------------------------------------------------------------------------------------------

POOLED = ("AstroformerForSequenceClassification", "AstroformerForMultipleChoice")


@pytest.mark.parametrize("head", POOLED)
@pytest.mark.parametrize("side", ["left", "right", "inner"])
def test_the_last_real_token_is_pooled_wherever_padding_stands(head, side, variant):
    model = make_model(head, is_decoder=True, pooling="last", **variant)
    ids = torch.randint(1, 50, (2, 3, 20))
    expected = model.classifier(model.base_model(ids.flatten(0, 1)).last_hidden_state[:, -1])
    cut = {"left": 0, "right": 20, "inner": 9}[side]
    junk, hidden = torch.randint(1, 50, (2, 3, 6)), torch.zeros(2, 3, 6).long()
    padded = torch.cat((ids[..., :cut], junk, ids[..., cut:]), dim=-1)
    mask = torch.cat((torch.ones(2, 3, cut), hidden, torch.ones(2, 3, 20 - cut)), dim=-1).long()
    if head == "AstroformerForSequenceClassification":
        ids, padded, mask = ids.flatten(0, 1), padded.flatten(0, 1), mask.flatten(0, 1)
    embeds = model.get_input_embeddings()(padded)
    for output in (
        model(ids),
        model(padded, attention_mask=mask),
        model(padded, attention_mask=mask.bool()),
        model(inputs_embeds=embeds, attention_mask=mask.float()),
    ):
        torch.testing.assert_close(output.logits.flatten(), expected.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", POOLED)
def test_a_causal_model_is_not_pooled_to_its_first_token(head, tmp_path):
    causal = make_model("AstroformerForCausalLM")
    causal.save_pretrained(tmp_path)
    auto_class = getattr(transformers, HEADS[head][0])
    with pytest.raises(ValueError, match="pooling 'cls' .*is_decoder=True.* pooling='last'"):
        auto_class.from_pretrained(tmp_path, pooling="cls")
    inputs = HEADS[head][2]()
    ids, mask = (inputs[name].flatten(0, -2) for name in ("input_ids", "attention_mask"))
    states = causal.base_model(ids, attention_mask=mask).last_hidden_state
    for pooling in ("last", "mean"):
        model = auto_class.from_pretrained(tmp_path, pooling=pooling).eval()
        rows = [
            (row[real.bool()][-1] if pooling == "last" else row[real.bool()].mean(0))
            for row, real in zip(states, mask, strict=True)
        ]
        expected = model.classifier(torch.stack(rows))
        logits = model(**without_labels(inputs)).logits
        torch.testing.assert_close(logits.flatten(), expected.flatten(), rtol=1e-4, atol=1e-5)
    # an encoder's first token has seen all
    make_model(head, pooling="cls")


# --------------------------------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", TEXT)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16], ids=str)
def test_a_mask_may_have_any_dtype(head, dtype):
    model, inputs = make_model(head), without_labels(HEADS[head][2]())
    output = model(**{**inputs, "attention_mask": inputs["attention_mask"].to(dtype)})[0]
    assert torch.equal(output, model(**inputs)[0])


BAD_MASKS = {
    "additive": (
        lambda mask: (1.0 - mask) * -1e9,
        r"1 where a token is real .* from -1000000000.0 to .*0.0.*\(mask == 0\)",
    ),
    "additive, infinite": (
        lambda mask: torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf),
        "from -inf to .*0.0",
    ),
    "of documents": (lambda mask: mask.cumsum(-1), "from 0 to 9"),
    "fractions": (lambda mask: mask * 0.5, "from 0.0 to 0.5"),
    "no tensor": (lambda mask: mask.tolist(), "attention_mask "),
}


@pytest.mark.parametrize("head", TEXT)
@pytest.mark.parametrize("kind", BAD_MASKS)
def test_other_masks_are_refused(head, kind):
    change, message = BAD_MASKS[kind]
    model, inputs = make_model(head), without_labels(HEADS[head][2]())
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, "attention_mask": change(inputs["attention_mask"])})


@pytest.mark.parametrize("head", TEXT)
@pytest.mark.parametrize("shape", [(4, 9, 9), (4, 1, 9, 9), (4, 1, 1, 9)], ids=str)
def test_masks_with_a_row_per_query_are_refused(head, shape):
    model, inputs = make_model(head), without_labels(HEADS[head][2]())
    with pytest.raises(ValueError, match="attention_mask must have .*shape"):
        model(**{**inputs, "attention_mask": torch.ones(shape, dtype=torch.bool)})


@pytest.mark.parametrize("name", some_each_time(["activity", "softmax"], ["activity"]))
def test_an_additive_mask_is_refused_in_a_compiled_graph(name):
    model = make_model("AstroformerForSequenceClassification", num_hidden_layers=1, **VARIANTS[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = without_labels(HEADS["AstroformerForSequenceClassification"][2]())
    mask = inputs.pop("attention_mask").float()
    expected = model(**inputs, attention_mask=mask).logits
    torch.testing.assert_close(compiled(**inputs, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="attention_mask must be 1 where a token is real"):
        compiled(**inputs, attention_mask=(1 - mask) * -1e9)


def test_tuples_where_the_configuration_or_the_call_asks_for_them(head):
    model, inputs = make_model(head), HEADS[head][2]()
    inputs = without_labels(inputs)
    expected = model(**inputs).to_tuple()
    asked = model(**inputs, return_dict=False)
    model.config.return_dict = False
    for found in (asked, model(**inputs)):
        assert isinstance(found, tuple)
        torch.testing.assert_close(found[0], expected[0])
