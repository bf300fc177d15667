# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Every class: outputs, losses, padding, errors."""

import pytest
import torch
from conftest import HEADS, LABELS, VISION, make_model, tiny_config
from torch.nn.functional import cross_entropy

from astroformer_hf import AstroformerForCausalLM, AstroformerForMaskedLM, AstroformerModel
from astroformer_hf.library_compatibility import CACHE_NAME, CACHE_NAMES


TEXT = [name for name in HEADS if name not in VISION]


def without_labels(inputs):
    return {name: x for name, x in inputs.items() if name not in LABELS}


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
