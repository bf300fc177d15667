# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The libraries around: pipelines without warnings, Trainer, peft, sentence-transformers, torch.compile."""

import itertools
import logging
import string
import warnings

import pytest
import torch
import transformers
from conversion.library_models import SUPPORTED
from datasets import Dataset, Value
from PIL import Image
from training.tokenization import train_bpe_tokenizer, train_character_tokenizer, train_wordpiece_tokenizer
from transformers import (
    AutoConfig,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    pipeline,
)
from variants import HEADS, VARIANTS, VISION, make_model, some_each_time, tiny_config

from astroformer_hf import AstroformerForCausalLM, AstroformerModel, swap_attention
from astroformer_hf.model_classes import IMAGE_MODELS, TEXT_MODELS


LIBRARY = {model.name: model for model in SUPPORTED}
SWAPPED = ("LlamaForCausalLM", "GPT2LMHeadModel")
TEXTS = ["a calm sea and a grey sky", "the ship sails over the calm sea", "who sails? the captain sails the ship"] * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def save(head, tokenizer, folder, **changes):
    """A folder with a model of a class, and a tokenizer that fits it."""
    path = folder / f"{head}{len(list(folder.iterdir()))}"
    make_model(
        head,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def no_warnings():
    """Fails the test for whatever Python or the library warns of."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    logger.removeHandler(handler)
    assert not messages


TASKS = {
    "text-classification": ("AstroformerForSequenceClassification", ["the calm sea", "who sails?"]),
    "token-classification": ("AstroformerForTokenClassification", ["the calm sea", "who sails?"]),
    "fill-mask": ("AstroformerForMaskedLM", ["the [MASK] sea", "who [MASK]?"]),
}


@pytest.mark.parametrize("task", TASKS)
def test_encoder_pipelines(task, folder, no_warnings):
    head, texts = TASKS[task]
    run = pipeline(task, model=save(head, train_wordpiece_tokenizer(TEXTS, 200, 64), folder))
    alone = [run(text) for text in texts]
    together = run(texts, batch_size=2)  # padded
    for one, other in zip(alone, together, strict=True):
        first, second = (x[0] if isinstance(x, list) else x for x in (one, other))
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)
        assert {k: v for k, v in first.items() if k != "score"} == {k: v for k, v in second.items() if k != "score"}


def test_question_answering_pipeline(folder, no_warnings):
    tokenizer = train_wordpiece_tokenizer(TEXTS, 200, 64)
    if "question-answering" not in transformers.pipelines.SUPPORTED_TASKS:
        pytest.skip("transformers 5 has no question-answering pipeline any more")
    run = pipeline("question-answering", model=save("AstroformerForQuestionAnswering", tokenizer, folder))
    context = "the captain sails the ship over the calm sea"
    answer = run(question="who sails?", context=context)
    assert answer["answer"] == context[answer["start"] : answer["end"]].strip()


@pytest.mark.parametrize("arm", ["neuron_astrocyte", "linear", "softmax"])
def test_text_generation_pipeline(arm, folder, no_warnings):
    tokenizer = train_bpe_tokenizer(TEXTS, 400, 64)
    run = pipeline("text-generation", model=save("AstroformerForCausalLM", tokenizer, folder, attention_type=arm))
    options = {"max_new_tokens": 8, "do_sample": False}
    prompts = ["the calm", "who sails the ship over the"]
    alone = [run(text, **options)[0]["generated_text"] for text in prompts]
    together = [answer[0]["generated_text"] for answer in run(prompts, batch_size=2, **options)]
    assert alone == together and all(text.startswith(prompt) for text, prompt in zip(alone, prompts, strict=True))


def own(attention_type):
    return make_model("AstroformerForCausalLM", attention_type=attention_type)


STOPPED = {
    "best": lambda: own("neuron_astrocyte"),
    "softmax": lambda: own("softmax"),
    "attn_implementation": lambda: LIBRARY["LlamaForCausalLM"].make("neuron_astrocyte"),
    **{f"swapped {name}": lambda name=name: swap_attention(LIBRARY[name].make("sdpa")) for name in SWAPPED},
}


@pytest.mark.parametrize("name", STOPPED)
def test_generation_stops_at_a_string(name):
    """The library hands the tokenizer that it needs for it to the model, too."""
    tokenizer = train_character_tokenizer([*TEXTS, string.ascii_lowercase], 64)  # the library writes "abcdef" with it
    model = STOPPED[name]().eval()
    length = len(tokenizer)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    # what the tokenizer does not know comes in no text
    options["suppress_tokens"] = [0, 1, 2, 3, *range(length, model.config.vocab_size)]
    prompt = tokenizer("the calm sea", return_tensors="pt").input_ids
    whole = model.generate(prompt, **options)
    text = tokenizer.decode(whole[0])
    sought = text[prompt.shape[1] + 3 : prompt.shape[1] + 5]
    end = next(end for end in range(prompt.shape[1] + 1, len(text)) if text[:end].endswith(sought))
    for use_cache in (True, False):
        stopped = model.generate(prompt, stop_strings=[sought], tokenizer=tokenizer, use_cache=use_cache, **options)
        assert torch.equal(stopped, whole[:, :end])


def test_tokenizers_give_back_their_texts():
    for tokenizer in (train_character_tokenizer(TEXTS, 64), train_bpe_tokenizer(TEXTS, 400, 64)):
        text = "who sails?\n the  ship" if tokenizer.vocab_size > 300 else "who sails?  the ship"
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.mask_token_id is not None and tokenizer.pad_token_id == 0


def causal_trainer(folder, smoothing, batch_size, steps):
    tokenizer = train_character_tokenizer(TEXTS, 64)
    torch.manual_seed(0)
    data = Dataset.from_list([{"input_ids": torch.randint(4, 12, (n,)).tolist()} for n in (12, 7, 3, 12, 5, 9, 12, 4)])
    return Trainer(
        model=AstroformerForCausalLM(tiny_config()),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            label_smoothing_factor=smoothing,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_causal_loss_in_accumulated_batches_and_with_label_smoothing(smoothing, tmp_path):
    records = []
    for batch_size, steps in ((8, 1), (2, 4), (1, 8)):
        trainer = causal_trainer(tmp_path, smoothing, batch_size, steps)
        torch.manual_seed(1)
        trainer.train()
        records.append([(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "grad_norm" in e])
    for record in records[1:]:
        torch.testing.assert_close(torch.tensor(record), torch.tensor(records[0]), rtol=1e-4, atol=1e-4)


def test_label_smoothing_shifts_the_labels_of_a_causal_model(tmp_path):
    trainer = causal_trainer(tmp_path, 0.1, 8, 1)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.eval()
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)


def test_peft_trains_and_merges(tmp_path):
    peft = pytest.importorskip("peft")
    head = "AstroformerForSequenceClassification"
    model, inputs = make_model(head), HEADS[head][2]()
    before = model(**inputs).logits
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], r=4, modules_to_save=["classifier"]
    )
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=2e-2)
    losses = []
    for _ in range(20):
        loss = adapted(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    adapted.eval().save_pretrained(tmp_path)
    after = adapted(**inputs).logits
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(adapted.merge_and_unload()(**inputs).logits, after, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(make_same(head, model, before, inputs), tmp_path)
    torch.testing.assert_close(again.eval()(**inputs).logits, after, rtol=1e-4, atol=1e-4)


def make_same(head, model, before, inputs):
    """The model as it was before an adapter was merged into it: from the same seed."""
    torch.manual_seed(0)
    fresh = make_model(head)
    torch.testing.assert_close(fresh(**inputs).logits, before)
    return fresh


def test_sentence_transformers_wraps_the_encoder(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = train_wordpiece_tokenizer(TEXTS, 200, 64)
    path = save("AstroformerModel", tokenizer, folder)
    model = sentence_transformers.SentenceTransformer(path, device="cpu")
    texts = ["the calm sea", "who sails the ship over the calm sea?"]
    together = model.encode(texts)
    assert together.shape == (2, 32)
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(torch.tensor(model.encode(text)), torch.tensor(vector), rtol=1e-4, atol=1e-5)
    encoder = AstroformerModel.from_pretrained(path).eval()
    expected = encoder(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(torch.tensor(together[0]), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, head",
    some_each_time(
        itertools.product(("learned", "activity", "softmax"), ("AstroformerForCausalLM", "AstroformerForMaskedLM")),
        [("softmax", "AstroformerForCausalLM")],
    ),
)
def test_compiles_to_one_graph_at_three_lengths(head, name):
    model = make_model(head, num_hidden_layers=1, **VARIANTS[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (20, 33, 100):
        mask = torch.ones(2, length, dtype=torch.long)
        mask[0, :5] = 0
        inputs = {"input_ids": torch.randint(1, 50, (2, length)), "attention_mask": mask, "use_cache": False}
        if head == "AstroformerForMaskedLM":
            inputs.pop("use_cache")
        real = mask.bool()
        output, expected = compiled(**inputs).logits[real], model(**inputs).logits[real]
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Classifiers that infer what they are trained on, from Trainer to pipeline
# --------------------------------------------------------------------------------------------------------------------

TARGETS = {
    "regression": (1, [float(i % 5) - 8 for i in range(30)], "float64"),
    "multi_label_classification": (3, [[float(i % 2), 1.0, float(i % 3 == 0)] for i in range(30)], None),
    "single_label_classification": (3, [i % 3 for i in range(30)], "int32"),
}


def train_classifier(auto_class, folder, problem, features, processor):
    """Trains a classifier without `problem_type`, evaluates it first, and saves it; the logits of its first inputs."""
    num_labels, labels, dtype = TARGETS[problem]
    data = Dataset.from_list([{**x, "labels": y} for x, y in zip(features, labels, strict=True)])
    if dtype is not None:
        data = data.cast_column("labels", Value(dtype))
    head = (TEXT_MODELS | IMAGE_MODELS)[auto_class]
    fields = {} if head in VISION else {"vocab_size": 200, "pad_token_id": 0}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=10,
        gradient_accumulation_steps=2,
        max_steps=2,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=make_model(head, num_labels=num_labels, **fields),
        args=arguments,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=processor,
        data_collator=None if head in VISION else DataCollatorWithPadding(processor),
    )
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.train()
    logits = trainer.predict(data.select(range(4))).predictions
    trainer.save_model(str(folder))
    return torch.as_tensor(logits)


@pytest.mark.parametrize("problem", TARGETS)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_trained_classifier_s_pipeline_knows_its_problem(kind, problem, tmp_path):
    if kind == "text":
        processor = train_wordpiece_tokenizer(TEXTS, 200)
        features, inputs, auto_class = [dict(processor(text)) for text in TEXTS], TEXTS[:4], "Sequence"
    else:
        processor = ViTImageProcessor(size={"height": 16, "width": 16})
        inputs = [Image.effect_noise((16, 16), 60 + i).convert("RGB") for i in range(30)]
        features = [{"pixel_values": processor(image)["pixel_values"][0]} for image in inputs]
        inputs, auto_class = inputs[:4], "Image"
    logits = train_classifier(f"AutoModelFor{auto_class}Classification", tmp_path, problem, features, processor)
    processor.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).problem_type == problem
    options = {"image_processor": processor} if kind == "image" else {}
    run = pipeline(f"{kind}-classification", model=str(tmp_path), top_k=None, **options)
    answers = [sorted(answer, key=lambda x: x["label"]) for answer in run(inputs)]
    scores = torch.tensor([[x["score"] for x in answer] for answer in answers])
    expected = {"regression": lambda x: x, "multi_label_classification": torch.sigmoid}.get(
        problem, lambda x: x.softmax(-1)
    )
    torch.testing.assert_close(scores, expected(logits), rtol=1e-4, atol=1e-5)
    if problem == "regression":
        assert scores.min() < -0.1  # not squeezed between 0 and 1
