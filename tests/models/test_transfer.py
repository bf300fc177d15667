# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""How swapped models learn from the original."""

import copy

import pytest
import torch
from conversion.library_models import SUPPORTED
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    TrainingArguments,
)

from astroformer_hf import DistillationTrainer, keep_swapped, swap_attention, transfer_attention
from astroformer_hf.swapped_attention import attention_layers
from astroformer_hf.transfer import attention_errors, divergence, measure_attention_errors


BY_NAME = {model.name: model for model in SUPPORTED}
NAMES = ("BertModel", "ViTModel", "LlamaForCausalLM", "GPT2LMHeadModel")


def make(name, **swap):
    return BY_NAME[name].make("sdpa"), swap_attention(BY_NAME[name].make("sdpa"), **swap)


def examples(name, number=64, length=12):
    if name == "ViTModel":
        return Dataset.from_dict({"pixel_values": torch.randn(number, 3, 16, 16).tolist()}).with_format("torch")
    mask = torch.ones(number, length).long()
    mask[::2, 9:] = 0
    ids = torch.randint(3, 60, (number, length))
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})


def arguments(folder, **changes):
    return {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, **changes}


@pytest.mark.parametrize("name", NAMES)
def test_synapses_learn_and_nothing_else_does(name, tmp_path):
    teacher, model = make(name, window_size=2, sink_tokens=1)
    before = copy.deepcopy(model.state_dict())
    report = transfer_attention(
        model, teacher, examples(name), **arguments(tmp_path, num_train_epochs=6, per_device_train_batch_size=16)
    )
    assert report.layers == (0, 1) and report.steps == 24
    assert all(after < 0.9 * error for after, error in zip(report.after, report.before, strict=True))
    changed = {key for key, x in model.state_dict().items() if not torch.equal(x, before[key])}
    assert changed == {key for key in before if ".synapses." in key}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert report.easiest(1) == (min(report.layers, key=report.after.__getitem__),)
    with pytest.raises(ValueError, match="number must be from 0 to 2, got 3"):
        report.easiest(3)


def test_the_errors_are_those_of_the_outputs():
    """Of all real tokens, against softmax attention over the same queries, keys and values."""
    teacher, model = make("BertModel", window_size=2)
    inputs = BY_NAME["BertModel"].inputs()
    inputs["attention_mask"][0, 5:] = 0
    outputs = {}

    def keep(key):
        return lambda module, args, output: outputs.setdefault(key, []).append(output[0].detach())

    for key, whose in (("exact", teacher), ("synapses", model)):
        attention_layers(whose)[0].register_forward_hook(keep(key))
        with torch.no_grad():
            whose(**inputs)
    real = inputs["attention_mask"][..., None]
    exact, own = (outputs[key][0] * real for key in ("exact", "synapses"))
    with attention_errors() as errors, torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    torch.testing.assert_close(errors[0], (own - exact).square().sum() / exact.square().sum())
    # meanwhile the model answers as the original
    torch.testing.assert_close(hidden * real, teacher(**inputs).last_hidden_state * real, rtol=1e-4, atol=1e-5)
    assert len(errors) == 2


def test_a_transfer_goes_on_after_an_interruption(tmp_path):
    data, options = examples("BertModel"), {"num_train_epochs": 2, "save_strategy": "epoch", "seed": 3}
    teacher, whole = make("BertModel", window_size=2)
    expected = transfer_attention(whole, teacher, data, **arguments(tmp_path / "whole", **options))
    _, resumed = make("BertModel", window_size=2)
    checkpoint = str(tmp_path / "whole/checkpoint-4")
    found = transfer_attention(
        resumed, teacher, data, resume_from_checkpoint=checkpoint, **arguments(tmp_path / "resumed", **options)
    )
    assert found.after == pytest.approx(expected.after, rel=1e-5)


def test_layers_get_their_softmax_attention_back():
    teacher, model = make("LlamaForCausalLM", window_size=2)
    inputs = BY_NAME["LlamaForCausalLM"].inputs()
    errors = measure_attention_errors(model, examples("LlamaForCausalLM"))
    assert len(errors) == 2 and all(error > 0 for error in errors)
    keep_swapped(model, (1,))
    assert len(measure_attention_errors(model, examples("LlamaForCausalLM"))) == 1
    keep_swapped(model, ())
    torch.testing.assert_close(model(**inputs).logits, teacher(**inputs).logits)
    with pytest.raises(ValueError, match=r"layers \[1\] are not swapped; those that are: \(\)"):
        keep_swapped(model, (1,))


@pytest.mark.parametrize("name", NAMES)
def test_distillation_brings_the_answers_nearer(name, tmp_path):
    teacher, model = make(name, window_size=2)
    data = examples(name)

    def distance():
        batch = {key: x for key, x in data.with_format("torch")[:32].items()}
        with torch.no_grad():
            found, wanted = model.eval()(**batch)[0], teacher(**batch)[0]
        real = batch.get("attention_mask", torch.ones(1, 1))[..., None]
        return ((found - wanted) * real).square().mean().item()

    before = distance()
    options = arguments(tmp_path, num_train_epochs=10, learning_rate=2e-3, report_to="none", save_strategy="no")
    trainer = DistillationTrainer(model, TrainingArguments(**options), train_dataset=data, teacher=teacher)
    trainer.train()
    assert distance() < 0.8 * before
    labelled = [{**row, "labels": 0} for row in data]
    losses = [trainer.evaluate(rows)["eval_loss"] for rows in (data, labelled)]
    assert 0 < losses[0] == pytest.approx(losses[1])  # there is one without labels, and they make no difference
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_divergence_counts_real_tokens_only():
    found, wanted = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    real = torch.ones(2, 5).long()
    real[0, 3:] = 0
    p, q = wanted.softmax(-1), found.softmax(-1)
    per_token = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(divergence(found, wanted, real), per_token[real.bool()].mean())
    torch.testing.assert_close(divergence(found[:, 0], wanted[:, 0], real), per_token[:, 0].mean())


def test_what_cannot_be_transferred_is_named(tmp_path):
    teacher, model = make("BertModel", window_size=2)
    with pytest.raises(ValueError, match="the attention of this BertModel is not swapped: call swap_attention first"):
        transfer_attention(teacher, None, examples("BertModel"))
    with torch.no_grad():
        teacher.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(ValueError, match="teacher is not the original of swapped: 1 weights differ"):
        transfer_attention(model, teacher, examples("BertModel"))


def test_divergence_of_answers_that_are_no_classes():
    found, wanted = torch.randn(6, 3), torch.randn(6, 3)
    normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli
    kl = torch.distributions.kl_divergence
    expected = kl(normal(wanted, 1), normal(found, 1)).sum(-1).mean()
    torch.testing.assert_close(divergence(found, wanted, None, "regression"), expected)
    expected = kl(normal(wanted[:, :1], 1), normal(found[:, :1], 1)).mean()
    torch.testing.assert_close(divergence(found[:, :1], wanted[:, :1], None), expected)
    expected = kl(bernoulli(logits=wanted), bernoulli(logits=found)).sum(-1).mean()
    torch.testing.assert_close(divergence(found, wanted, None, "multi_label_classification"), expected)


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (BertForSequenceClassification, {"num_labels": 1}),
        (BertForSequenceClassification, {"num_labels": 3, "problem_type": "multi_label_classification"}),
        (BertForQuestionAnswering, {}),
        (BertForMultipleChoice, {}),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_every_kind_of_answer_is_distilled(model_class, fields, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    teacher = model_class(BertConfig(vocab_size=60, initializer_range=0.3, **sizes, **fields)).eval()
    model = swap_attention(copy.deepcopy(teacher), window_size=1)
    options = arguments(tmp_path, report_to="none", save_strategy="no")
    trainer = DistillationTrainer(model, TrainingArguments(**options), teacher=teacher)
    shape = (2, 3, 9) if model_class is BertForMultipleChoice else (2, 9)
    batch = {"input_ids": torch.randint(3, 60, shape), "attention_mask": torch.ones(shape).long()}
    batch["attention_mask"][0, ..., 5:] = 0
    losses = []
    for padding in (3, 40):  # what stands there makes no difference, neither in hidden states nor in answers
        batch["input_ids"].masked_fill_(batch["attention_mask"] == 0, padding)
        losses.append([])
        for trainer.hidden_weight, trainer.logits_weight in ((1, 0), (0, 1)):
            losses[-1].append(trainer.compute_loss(model, batch).item())
    assert min(losses[0]) > 1e-4 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_layers_that_stay_know_it():
    _, model = make("LlamaForCausalLM", window_size=2)
    keep_swapped(model, (1,))
    assert model.model.layers[1].self_attn.synapses.swap.layers == (1,) == tuple(model.config.attention_swap["layers"])
