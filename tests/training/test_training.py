# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Training with the library's `Trainer`: accumulation, learning, and the scripts from the command line."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import datasets
import predict
import pytest
import torch
import train_associative_recall
import train_image_classification
import train_language_model
import train_text_classification
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from reviews import write_reviews
from training.data import load_splits, pick_split
from training.files import write_json
from training.labels import Labels
from training.metrics import Classification, MultiLabelClassification, Regression
from training.options import choices_of
from training.provenance import launcher
from training.recall import RecallExamples, recall_accuracy, recall_examples, share_of_the_commonest
from training.resuming import check_batch_size, checkpoint_to_resume
from training.runs import losses_of_examples
from training.short_convolution import ConvolvedProjection, add_short_convolution
from training.tokenization import in_blocks, train_character_tokenizer, train_word_tokenizer, train_wordpiece_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    pipeline,
)
from variants import ROOT, make_model, tiny_config

import astroformer_hf
from astroformer_hf import AstroformerForSequenceClassification, AstroformerModel
from astroformer_hf.configuration_astroformer import CHOICES


HEADS = {
    "single": ({"num_labels": 3}, lambda i: i % 3),
    "multi": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda i: [float(i % 2), 1.0, float(i % 3 == 0)],
    ),
    "regression": ({"num_labels": 1, "problem_type": "regression"}, lambda i: i / 10),
}


@pytest.mark.parametrize("head", HEADS)
def test_accumulated_batches_have_the_loss_and_gradient_of_the_whole(head, tmp_path):
    changes, label = HEADS[head]
    data = Dataset.from_list(
        [{"input_ids": torch.randint(1, 50, (12,)).tolist(), "labels": label(i)} for i in range(16)]
    )
    records = []
    for batch_size, steps in ((16, 1), (4, 4), (1, 16)):
        torch.manual_seed(0)
        trainer = Trainer(
            model=AstroformerForSequenceClassification(tiny_config(**changes)),
            args=TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=steps,
                max_steps=2,
                logging_steps=1,
                learning_rate=1e-3,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=data,
        )
        trainer.train()
        records.append([(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "grad_norm" in e])
    assert len(records[0]) == 2
    for record in records[1:]:
        torch.testing.assert_close(torch.tensor(record), torch.tensor(records[0]), rtol=1e-4, atol=1e-4)


def test_twenty_steps_overfit_a_batch(variant):
    model = AstroformerForSequenceClassification(tiny_config(num_labels=4, **variant)).train()
    ids, labels = torch.randint(1, 50, (8, 15)), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def script_command(data, output_dir, *more):
    return [
        str(ROOT / "scripts/train_text_classification.py"),
        *("--dataset_dir", str(data), "--output_dir", str(output_dir), "--hidden_size", "32"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-2", "--use_cpu", *more),
    ]


def test_script_trains_saves_and_is_loaded_again(tmp_path, scripts):
    data, output_dir = write_reviews(tmp_path / "reviews"), tmp_path / "model"
    command = script_command(data, output_dir, "--num_train_epochs", "6", "--dropout", "0")
    scripts.run(*command)

    results = json.loads((output_dir / "results.json").read_text())
    assert results["metrics"]["accuracy"] > 0.9
    assert results["seed"] == 42 and results["dataset"] == "reviews" and results["train_samples"] == 160
    assert {"torch", "transformers"} <= set(results["versions"]) and results["hardware"]["cores"]
    assert len(results["learning_curve"]["evaluation"]) == 6 and results["learning_curve"]["train"]
    assert "train_text_classification.py" in results["command"]
    assert (output_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    card = ModelCard.load(output_dir / "README.md")
    assert card.data.eval_results[0].metric_value == pytest.approx(results["metrics"]["accuracy"], abs=1e-4)
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "text-classification"
    assert "{{" not in card.content

    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    assert tokenizer.decode(tokenizer("A lovely<br />film").input_ids).startswith("[CLS]")
    assert tokenizer("x").keys() == {"input_ids", "token_type_ids", "attention_mask"}
    model = AutoModelForSequenceClassification.from_pretrained(output_dir)
    assert model.config.id2label == {0: "neg", 1: "pos"}
    classify = pipeline("text-classification", model=str(output_dir))
    answers = classify(["w1 w2 lovely w3", "w4 awful w1 w9 w9 w8"], batch_size=2)
    assert [answer["label"] for answer in answers] == ["pos", "neg"]


def test_predict_measures_a_model_again(tmp_path, capsys):
    data = write_reviews(tmp_path / "reviews", number=4)
    tokenizer = train_wordpiece_tokenizer(["awful lovely"], 60)
    tokenizer.save_pretrained(tmp_path / "model")
    config = tiny_config(vocab_size=len(tokenizer), id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    model = AstroformerForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([-50.0, 50.0]))  # says "pos" of half of the texts rightly
    model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--dataset_dir", str(data)]
    predict.main(arguments)
    said = capsys.readouterr().out
    assert "accuracy 0.5000 on 40 texts of split validation" in said and "(is neg)" in said

    predict.main([*arguments, "--examples", "0"])
    assert capsys.readouterr().out.startswith("accuracy 0.5000")
    with pytest.raises(SystemExit):
        predict.main([*arguments, "--examples", "-1"])
    assert "--examples must be at least 0, got -1" in capsys.readouterr().err
    for length in (-5, 0, 2):
        with pytest.raises(ValueError, match=f"--max_length must be at least 3, 2 of which are special.* got {length}"):
            predict.main([*arguments, "--max_length", str(length)])
    for rows, message in (
        ("text\nlovely\n", r"must have the columns text and label, \['label'\] is missing"),
        ("text,label\nlovely,pos\n,neg\n", "row 1 of split 'validation' has 'None' and 'neg'"),
        ("text,label\nlovely,\nawful,neg\n", "row 0 of split 'validation' has 'lovely' and 'None'"),
    ):
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd/validation.csv").write_text(rows)
        with pytest.raises(ValueError, match=message):
            predict.main([*arguments[:2], "--dataset_dir", str(tmp_path / "odd")])

    AstroformerModel(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="must be a trained text classifier; .* no weights for classifier.bias, cl"):
        predict.main(arguments)

    model.config.id2label, model.config.label2id = {0: "bad", 1: "pos"}, {"bad": 0, "pos": 1}
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"labels \['neg'\] of the data are not among the model's, \['bad', 'pos'\]"):
        predict.main(arguments)
    model.config.problem_type = "regression"
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="needs a model with one label per text; problem_type of .* is 'regression'"):
        predict.main(arguments)


def test_script_continues_after_being_killed(tmp_path, scripts):
    data, output_dir = write_reviews(tmp_path / "reviews", 200), tmp_path / "model"
    command = script_command(data, output_dir, "--num_train_epochs", "4")
    process = scripts.start(*command)
    deadline = time.time() + 240
    while not (output_dir / "checkpoint-25/trainer_state.json").exists() and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.05)
    process.kill()
    assert not (output_dir / "results.json").exists()
    (output_dir / "checkpoint-9999").mkdir()  # what a run leaves that is killed while it writes a checkpoint

    result = scripts.run(*command)
    resumed_from = int(re.search(r"Continuing from .*checkpoint-(\d+)", result.stdout).group(1))
    results = json.loads((output_dir / "results.json").read_text())
    assert resumed_from in range(25, 100, 25) and results["resumed"]
    assert [entry["step"] for entry in results["learning_curve"]["evaluation"]] == list(range(25, 101, 25))

    uninterrupted = tmp_path / "uninterrupted"
    scripts.run(*script_command(data, uninterrupted, "--num_train_epochs", "4"))
    expected = json.loads((uninterrupted / "results.json").read_text())
    assert results["metrics"]["loss"] == pytest.approx(expected["metrics"]["loss"], rel=1e-3, abs=1e-5)


def test_a_run_goes_on_in_the_middle_of_an_epoch_as_it_would_have(tmp_path):
    data = write_reviews(tmp_path / "reviews", 64)  # 8 steps an epoch, of batches with texts of like length
    options = ["--max_steps", "24", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "30"]
    options += ["--load_best_model_at_end", "false", "--disable_tqdm", "true", "--logging_steps", "1"]
    options += ["--dropout", "0.2", "--eval_strategy", "steps", "--eval_steps", "4"]
    train_text_classification.main(script_command(data, tmp_path / "whole", *options)[1:])
    expected = json.loads((tmp_path / "whole/results.json").read_text())
    for step in (5, 8, 11, 21):
        folder = tmp_path / f"from_{step}"
        checkpoint = ["--resume_from_checkpoint", str(tmp_path / f"whole/checkpoint-{step}")]
        train_text_classification.main(script_command(data, folder, *options, *checkpoint)[1:])
        resumed = json.loads((folder / "results.json").read_text())
        assert resumed["resumed"] and len(resumed["learning_curve"]["train"]) == 24
        assert resumed["learning_curve"]["train"] == expected["learning_curve"]["train"], step
        assert resumed["metrics"] == expected["metrics"]


def test_script_trains_the_same_over_two_processes(tmp_path, environment, scripts):
    data, one, two = write_reviews(tmp_path / "reviews", 64), tmp_path / "one", tmp_path / "two"
    validation = data / "validation.csv"
    validation.write_text("\n".join(validation.read_text().splitlines()[:38]) + "\n")  # 37, in batches of 8
    options = ("--num_train_epochs", "2", "--dropout", "0", "--per_device_eval_batch_size")
    options = (*options, "4", "--train_sampling_strategy", "random", "--logging_steps", "1", "--disable_tqdm", "true")
    scripts.run(*script_command(data, one, *options))
    command = script_command(data, two, *options)
    command[command.index("--per_device_train_batch_size") + 1] = "4"
    printed = scripts.run_in_two(*command)

    alone, shared = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-5)
    losses = [[entry["loss"] for entry in results["learning_curve"]["train"]] for results in (alone, shared)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)
    assert (alone["world_size"], shared["world_size"]) == (1, 2)
    assert alone["effective_batch_size"] == shared["effective_batch_size"] == 8
    assert "8 over 2 processes" in (two / "README.md").read_text()
    assert "processes" not in (one / "README.md").read_text()
    assert printed.count("results.json, learning_curve.png") == 1  # one process speaks for all

    again = shlex.split(shared["command"])
    assert again[:3] == ["torchrun", "--nproc-per-node", "2"]
    again[again.index("--output_dir") + 1] = str(tmp_path / "again")
    # the recorded command, in the project's folder; torchrun itself with --all
    if os.environ.get("ASTROFORMER_TESTS") == "all":
        search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(again, cwd=ROOT, env={**environment, "PATH": search_path}, check=True, capture_output=True)
    else:
        scripts.run_in_two(*again[3:], cwd=ROOT)
    repeated = json.loads((tmp_path / "again/results.json").read_text())
    assert repeated["metrics"] == pytest.approx(shared["metrics"], rel=1e-4, abs=1e-6)


def test_another_number_of_processes_does_not_go_on_with_a_run(tmp_path):
    state = {"global_step": 5, "max_steps": 10, "stateful_callbacks": {"Stopwatch": {"attributes": {"batch_size": 8}}}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    check_batch_size(tmp_path, 8, 2)
    with pytest.raises(ValueError, match="8 examples per step, this one has 4 over 1 processes.*--gradient_accum"):
        check_batch_size(tmp_path, 4, 1)
    state["stateful_callbacks"] = {}  # of an earlier release
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    check_batch_size(tmp_path, 4, 1)


@pytest.mark.parametrize(
    "variables, words",
    [
        ({}, "python"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}, "torchrun --nproc-per-node 4"),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4},
            "torchrun --nproc-per-node 4 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500",
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16", "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2},
            "accelerate launch --multi_gpu --num_processes 2 --mixed_precision bf16",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch --num_processes 1 --mixed_precision no"),
        (
            {
                "ACCELERATE_MIXED_PRECISION": "no",
                "ACCELERATE_USE_FSDP": "true",
                "WORLD_SIZE": 2,
                "LOCAL_WORLD_SIZE": 1,
                "GROUP_RANK": 1,
                "FSDP_VERSION": 2,
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            },
            "accelerate launch --use_fsdp --num_processes 2 --mixed_precision no --num_machines 2 --machine_rank 1 "
            "--main_process_ip HOST --main_process_port 29500 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
            "--fsdp_version 2",
        ),
    ],
)
def test_the_recorded_command_has_its_launcher(variables, words):
    assert launcher({name: str(value) for name, value in variables.items()}) == words.split()
    if words.startswith("accelerate"):  # an option that the launcher does not know would end it
        launch_command_parser().parse_args([*words.split()[2:], "script.py"])


@pytest.mark.parametrize("head", [*HEADS, "causal", "masked"])
def test_the_exact_loss_is_that_of_the_model(head):
    if head in HEADS:
        changes, label = HEADS[head]
        model = AstroformerForSequenceClassification(tiny_config(**changes))
        model.config.problem_type = model.config.problem_type or "single_label_classification"
        labels, ids = torch.tensor([label(i) for i in range(6)]), torch.randint(1, 50, (6, 5))
    else:
        kind = astroformer_hf.AstroformerForCausalLM if head == "causal" else astroformer_hf.AstroformerForMaskedLM
        model, ids = kind(tiny_config()), torch.randint(1, 50, (6, 5))
        labels = ids.masked_fill(torch.rand(6, 5) < 0.5, -100)
    output = model.eval()(input_ids=ids, labels=labels)
    losses = losses_of_examples(output.logits, labels, model.config, model.config.is_decoder)
    total, number = losses.sum(0)
    torch.testing.assert_close(total / number, output.loss)
    assert losses.shape == (6, 2)


def test_script_fine_tunes_a_checkpoint(tmp_path, scripts):
    data, first, second = write_reviews(tmp_path / "reviews"), tmp_path / "first", tmp_path / "second"
    command = script_command(data, first, "--num_train_epochs", "1", "--astrocyte_code", "sinusoidal")
    scripts.run(*command)
    command[command.index("--output_dir") + 1] = str(second)
    shape = command.index("--hidden_size")
    command = command[:shape] + command[shape + 2 :]
    code = command.index("--astrocyte_code")
    command[code : code + 2] = ["--model_name_or_path", str(first)]
    scripts.run(*command)
    tuned, start = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in (second, first))
    assert tuned.config.astrocyte_code == "sinusoidal" and tuned.config.hidden_size == 32
    assert json.loads((second / "results.json").read_text())["config"]["hidden_size"] == 32
    assert tuned.num_parameters() == start.num_parameters()
    assert not torch.equal(tuned.classifier.weight, start.classifier.weight)


def test_script_fine_tunes_a_model_of_the_library_with_another_attention(tmp_path, scripts):
    data, first, second = write_reviews(tmp_path / "reviews"), tmp_path / "bert", tmp_path / "tuned"
    tokenizer = train_wordpiece_tokenizer(["awful lovely " + " ".join(f"w{i}" for i in range(30))] * 3, 80)
    tokenizer.save_pretrained(first)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(first)
    command = ["scripts/train_text_classification.py", "--dataset_dir", str(data), "--output_dir", str(second)]
    command += ["--model_name_or_path", str(first), "--attn_implementation", "neuron_astrocyte"]
    scripts.run(*command, "--num_train_epochs", "6", "--learning_rate", "3e-3", "--per_device_train_batch_size", "8")
    results = json.loads((second / "results.json").read_text())
    assert results["arm"] == results["attn_implementation"] == "neuron_astrocyte"
    assert results["metrics"]["accuracy"] > 0.9
    card = (second / "README.md").read_text()
    assert 'model_kwargs={"attn_implementation": "neuron_astrocyte"}' in card and "import astroformer_hf" in card
    assert "trust_remote_code" not in card
    texts, accuracy = load_splits(dataset_dir=str(data))["validation"], {}
    for name in ("neuron_astrocyte", "sdpa"):
        classify = pipeline("text-classification", model=str(second), model_kwargs={"attn_implementation": name})
        answers = classify(list(texts["text"]))
        accuracy[name] = sum(a["label"] == b for a, b in zip(answers, texts["label"], strict=True)) / len(texts)
    assert accuracy["neuron_astrocyte"] == pytest.approx(results["metrics"]["accuracy"])
    with pytest.raises(ValueError, match="--attn_implementation 'linear' is for a checkpoint of the library"):
        train_text_classification.main(["--dataset_dir", str(data), "--attn_implementation", "linear"])


@pytest.mark.parametrize("option", [name for name in CHOICES if name != "pooling"])
def test_choices_are_those_of_the_configuration_at_the_time(option, monkeypatch, capsys):
    given = ["--segment_length", "4", f"--{option}", "new"]
    with pytest.raises(SystemExit):
        train_text_classification.parse_arguments(given)
    known, message = choices_of(option), capsys.readouterr().err
    assert f"--{option}" in message and "'new'" in message and all(choice in message for choice in known)
    monkeypatch.setitem(CHOICES, option, (*known, "new"))
    model_args, *_ = train_text_classification.parse_arguments(given)
    assert getattr(model_args, option) == "new"


def test_memory_spans_are_numbers():
    model_args, *_ = train_text_classification.parse_arguments(["--initial_memory_spans", "1", "8.5", "32"])
    assert model_args.architecture["initial_memory_spans"] == [1.0, 8.5, 32.0]
    model_args, *_ = train_text_classification.parse_arguments(["--model_name_or_path", "some/model"])
    assert tuple(model_args.initial_memory_spans) == astroformer_hf.AstroformerConfig.initial_memory_spans
    with pytest.raises(ValueError, match="--initial_memory_spans shape a new model"):
        train_text_classification.parse_arguments(["--model_name_or_path", "x", "--initial_memory_spans", "4"])


def test_a_checkpoint_brings_its_shape():
    with pytest.raises(ValueError, match="--attention_type, --hidden_size shape a new model.*'some/model'"):
        train_text_classification.parse_arguments(
            ["--model_name_or_path", "some/model", "--hidden_size", "64", "--attention_type", "softmax"]
        )


@pytest.mark.parametrize(
    "labels, problem_type, encoded",
    [
        (["b", "a", "b"], "single_label_classification", [1, 0, 1]),
        ([5, 3, 5], "single_label_classification", [1, 0, 1]),
        ([0.5, -1.0, 2.0], "regression", [0.5, -1.0, 2.0]),
        ([["x"], [], ["y", "x"]], "multi_label_classification", [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
    ],
)
def test_kinds_of_labels(labels, problem_type, encoded):
    kind = Labels(Dataset.from_dict({"label": labels}), "label")
    assert kind.problem_type == problem_type
    assert [kind.encode(label) for label in labels] == encoded


def test_a_label_that_was_never_trained_is_named():
    kind = Labels(Dataset.from_dict({"label": ["a", "b"]}), "label")
    with pytest.raises(ValueError, match=r"label 'c' does not occur .* \['a', 'b'\]"):
        kind.encode("c")
    classes = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    kind = Labels(Dataset.from_dict({"label": [0, 1]}, features=classes), "label")
    assert kind.encode_all("train", "label", [1, 0]) == [1, 0]
    with pytest.raises(ValueError, match=r"row 1 of split 'test', column 'label': label -1 does not occur"):
        kind.encode_all("test", "label", [0, -1])  # as of those that a competition hides


@pytest.mark.parametrize("labels", [["a", None, "b"], [0.5, None, 1.5], [[1], None, [2, 3]], [1, 2, None]], ids=str)
def test_a_label_that_is_missing_is_named(labels):
    kind = Labels(Dataset.from_dict({"label": labels}), "label")
    row = labels.index(None)
    with pytest.raises(ValueError, match=f"row {row} of split 'train', column 'label': there is no label"):
        kind.encode_all("train", "label", labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a"], r"label column 'label' must have two classes or more, got \['a'\]"),
        (
            [[0, 1, 1], [1, 0, 0]],
            r"a 0 or 1 for each of 3 classes in every row, got \[0, 1, 1\]; expected lists of the",
        ),
    ],
)
def test_labels_of_no_use_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Labels(Dataset.from_dict({"label": labels}), "label")


def test_metrics_work_without_a_network():
    assert Classification().compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1]) == {
        "accuracy": 0.75,
        "f1": pytest.approx((2 / 3 + 0.8) / 2),
        "matthews_correlation": pytest.approx(3**-0.5),
    }
    multi = MultiLabelClassification("multilabel")
    assert multi.compute(predictions=[[1, 0], [1, 1]], references=[[1, 0], [0, 1]])["accuracy"] == 0.5
    assert Regression().compute(predictions=[1.0, 2.0], references=[1.0, 4.0])["mse"] == 2.0


def test_bad_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="exactly one of --dataset_name and --dataset_dir"):
        load_splits()
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ValueError, match=r"--dataset_dir must be a folder .*train.parquet"):
        load_splits(dataset_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"no split 'train'; it has \['other'\]"):
        pick_split({"other": None}, "train")
    (tmp_path / "twice").mkdir()
    for name in ("train.json", "train.jsonl", "validation.json"):
        (tmp_path / "twice" / name).write_text('{"text": "a", "label": "b"}')
    with pytest.raises(ValueError, match="one file for each split, .* has train.json and train.jsonl"):
        load_splits(dataset_dir=str(tmp_path / "twice"))


def test_the_name_of_a_folder_is_no_pattern(tmp_path):
    for name in ("data[1]", "data1", "*"):
        write_reviews(tmp_path / name, 20 if name == "data1" else 10)
    for name in ("data[1]", "*"):
        assert len(load_splits(dataset_dir=str(tmp_path / name))["train"]) == 10


def test_data_without_a_text_or_a_label_are_named_before_the_training(tmp_path):
    data = write_reviews(tmp_path / "reviews", 20)
    whole = (data / "validation.csv").read_text()
    for line, message in {
        "lovely,": "row 40 of split 'validation', column 'label': there is no label",
        ",pos": "row 40 of split 'validation', column 'text': there is no text",
        "lovely,good": "row 40 of split 'validation', column 'label': label 'good' does not occur in the training",
    }.items():
        (data / "validation.csv").write_text(f"{whole}{line}\n")
        with pytest.raises(ValueError, match=message):
            train_text_classification.main(script_command(data, tmp_path / "model")[1:])
    assert not (tmp_path / "model").exists()


def test_images_of_an_unknown_label_are_named_before_the_training(tmp_path):
    images = {name: [Image.new("RGB", (8, 8))] * 4 for name in ("train", "validation")}
    (tmp_path / "data").mkdir()
    for name, labels in {"train": ["cat", "dog"] * 2, "validation": ["cat", "dog", "cat", "owl"]}.items():
        rows = Dataset.from_dict({"image": images[name], "label": labels})
        rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / f"data/{name}.parquet")
    arguments = ["--dataset_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "model"), "--use_cpu"]
    with pytest.raises(ValueError, match="row 3 of split 'validation', column 'label': label 'owl' does not occur"):
        train_image_classification.main(arguments)


def test_a_row_without_an_image_is_named_before_the_training(tmp_path):
    (tmp_path / "data").mkdir()
    for name, label in (("a", 0), ("b", 1)):
        Image.new("L", (8, 8), 99 * label).save(tmp_path / f"{name}.png")
    rows = [f"{tmp_path}/{name}.png,{name}" for name in "abab"]
    for split, last in (("train", rows[0]), ("validation", ",a")):
        (tmp_path / f"data/{split}.csv").write_text("\n".join(["image,label", *rows, last]) + "\n")
    arguments = ["--dataset_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "model"), "--use_cpu"]
    with pytest.raises(ValueError, match="row 4 of split 'validation', column 'image': there is no image"):
        train_image_classification.main(arguments)
    assert not (tmp_path / "model").exists()


CHANGED = {
    "presynaptic_alpha": ["--presynaptic_alpha", "0.9"],
    "learning_rate": ["--learning_rate", "0.5"],
    "max_steps": ["--max_steps", "2"],
    "seed": ["--seed", "7"],
}


def test_a_folder_that_holds_another_run_is_not_gone_on_with(tmp_path, capsys):
    data, other = write_reviews(tmp_path / "reviews", 20), write_reviews(tmp_path / "other", 24)
    command = script_command(data, tmp_path / "model", "--max_steps", "1", "--save_strategy", "steps")[1:]
    command += ["--save_steps", "1", "--load_best_model_at_end", "false", "--disable_tqdm", "true"]
    train_text_classification.main(command)
    before = (tmp_path / "model/model.safetensors").read_bytes()
    for name, more in CHANGED.items():
        with pytest.raises(ValueError, match=f"--{name} is .*, but the run in .* was begun with .*; give the same"):
            train_text_classification.main([*command, *more])
    changed = [str(other) if argument == str(data) else argument for argument in command]
    with pytest.raises(ValueError, match="split 'train' of the data is not what the run in .* was begun with"):
        train_text_classification.main(changed)
    capsys.readouterr()
    data.rename(tmp_path / "moved")  # which is the same data
    moved = [str(tmp_path / "moved") if argument == str(data) else argument for argument in command]
    train_text_classification.main([*moved, "--logging_steps", "7"])
    assert "Continuing from" in capsys.readouterr().out
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    checkpoint = str(tmp_path / "model/checkpoint-1")  # by its name, a checkpoint may begin another run
    train_text_classification.main([*moved, "--resume_from_checkpoint", checkpoint, "--max_steps", "2"])
    assert json.loads((tmp_path / "model/results.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    "more, message",
    [
        *(
            ([f"--{name}", value], f"--{name} must be at least 1, got {value}")
            for name in ("max_train_samples", "max_eval_samples", "max_curve_samples", "vocab_size", "hidden_size")
            for value in ("0", "-2")
        ),
        (["--max_length", "-1"], "--max_length must be at least 1, got -1"),
        (
            ["--memory_retention", "ltp", "--memory_backprop", "2"],
            "--memory_retention, --memory_backprop change nothing",
        ),
        (["--max_length", "2"], "--max_length must be at least 3, 2 of which are special tokens, got 2"),
    ],
    ids=str,
)
def test_options_that_no_run_can_have(tmp_path, more, message):
    data = write_reviews(tmp_path / "reviews", 20)
    with pytest.raises(ValueError, match=message):
        train_text_classification.main([*script_command(data, tmp_path / "model")[1:], *more])
    assert not (tmp_path / "model").exists()


def test_a_run_leaves_its_data_and_the_model_it_begins_with(tmp_path):
    data = write_reviews(tmp_path / "reviews", 20)
    command = script_command(data, data)[1:]
    with pytest.raises(ValueError, match="--output_dir must be another folder than that of --dataset_dir, .*reviews, "):
        train_text_classification.main(command)
    command = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_dir", str(data)]
    with pytest.raises(ValueError, match="--output_dir must be another folder than that of --model_name_or_path, .*mo"):
        train_text_classification.main([*command, "--output_dir", f"{data}/../model"])


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    data, folder = write_reviews(tmp_path / "reviews", 20), tmp_path / "model"
    command = [*script_command(data, folder)[1:], "--max_steps", "1"]
    holder = "import sys, training.files as files; files.hold(sys.argv[1]); print('held', flush=True); input()"
    there = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=there
    )
    with other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"--output_dir .*model: another process writes into it; wait for it"):
            train_text_classification.main(command)
        assert not list(folder.glob("*.json"))
        other.kill()
    train_text_classification.main(command)  # however the other ended
    train_text_classification.main(command)  # this process has it
    assert (folder / "results.json").exists()


def test_a_run_that_is_killed_twice_at_the_same_checkpoint(tmp_path):
    for _ in range(2):
        (tmp_path / "checkpoint-9/inside").mkdir(parents=True)
        assert checkpoint_to_resume(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["incomplete-checkpoint-9"]


def test_the_best_checkpoint_by_perplexity_is_the_lowest(tmp_path, scripts, novel):
    options = ("--dataset_dir", str(novel), "--max_steps", "12", "--metric_for_best_model", "perplexity")
    options += ("--num_sample_tokens", "0", "--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps")
    results = run_language_model(tmp_path, scripts.run, *options, "--save_steps", "4")
    curve = [entry["eval_perplexity"] for entry in results["learning_curve"]["evaluation"]]
    assert len(curve) == 3 and results["metrics"]["perplexity"] == pytest.approx(min(curve), rel=1e-4)
    assert "sample" not in results  # no tokens were asked for


def test_a_tokenizer_without_a_token_to_begin_with_writes_no_sample():
    model = make_model("AstroformerForCausalLM")
    tokenizer = train_word_tokenizer(["a b c"])
    tokenizer.eos_token = None
    assert train_language_model.sample(model, tokenizer, 5) is None


@pytest.mark.parametrize("attention", ["neuron_astrocyte", "sdpa"])
def test_language_models_of_the_library_are_measured(attention, tmp_path, novel):
    """Whose configurations do not say whether they are causal."""
    tokenizer = train_character_tokenizer([(novel / "train.txt").read_text()])
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    arguments = ["--model_name_or_path", str(tmp_path / "llama"), "--dataset_dir", str(novel), "--block_size", "16"]
    arguments += ["--max_steps", "2", "--eval_strategy", "steps", "--save_strategy", "no", "--use_cpu"]
    arguments += ["--load_best_model_at_end", "false", "--disable_tqdm", "true", "--num_sample_tokens", "3"]
    more = ["--attn_implementation", attention, "--output_dir", str(tmp_path / "model")]
    train_language_model.main([*arguments, *more])
    results = json.loads((tmp_path / "model/results.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=attention).eval()
    texts = Dataset.from_text(str(novel / "validation.txt"), sample_by="document")
    blocks = in_blocks(texts, tokenizer, "text", 16)
    with torch.no_grad():
        assert results["metrics"]["loss"] == pytest.approx(model(blocks, labels=blocks).loss.item(), rel=1e-3)


def test_predict_reads_with_the_attention_of_the_training(tmp_path, capsys):
    tokenizer = train_wordpiece_tokenizer(["lovely awful"] * 9, 60)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, max_position_embeddings=16, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_json(tmp_path / "results.json", {"attn_implementation": "neuron_astrocyte"})
    text = "lovely awful " * 20  # longer than the model takes
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=16)
    for attention, more in {"neuron_astrocyte": [], "sdpa": ["--attn_implementation", "sdpa"]}.items():
        predict.main(["--model", str(tmp_path), "--text", text, *more])
        model = BertForSequenceClassification.from_pretrained(tmp_path, attn_implementation=attention).eval()
        with torch.no_grad():
            expected = model(**inputs).logits.softmax(-1).max().item()
        assert f"{expected:.0%}" in capsys.readouterr().out


def test_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def run_language_model(output_dir, run, *more):
    command = [
        *(str(ROOT / "scripts/train_language_model.py"), "--output_dir", str(output_dir)),
        *("--hidden_size", "32", "--num_hidden_layers", "1", "--block_size", "32", "--dropout", "0", "--use_cpu"),
        *("--learning_rate", "1e-2", "--disable_tqdm", "true", *more),
    ]
    run(*command)
    return json.loads((output_dir / "results.json").read_text())


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    """A folder with two text files of few words."""
    folder = tmp_path_factory.mktemp("novel")
    for split, lines in (("train", 400), ("validation", 60)):
        text = "\n".join(
            f"the {('calm', 'grey')[i % 2]} sea carries the {('ship', 'boat')[i % 2]}" for i in range(lines)
        )
        (folder / f"{split}.txt").write_text(text)
    return folder


def test_language_model_script_causal_by_character(tmp_path, scripts, novel):
    results = run_language_model(tmp_path, scripts.run, "--dataset_dir", str(novel), "--num_train_epochs", "8")
    assert results["metrics"]["loss"] < 0.5 and results["task"] == "text-generation"
    assert results["metrics"]["perplexity"] == pytest.approx(math.exp(results["metrics"]["loss"]))
    assert len(results["learning_curve"]["evaluation"]) == 8
    words = set(results["sample"].split())
    assert len(words & {"the", "calm", "grey", "sea", "carries", "ship", "boat"}) >= 5
    write = pipeline("text-generation", model=str(tmp_path))
    text = write("the calm sea", max_new_tokens=30, do_sample=False)[0]["generated_text"]
    assert text.startswith("the calm sea carries the")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "text-generation" and "{{" not in card.content
    again = run_language_model_again(tmp_path, scripts, novel)
    assert again["metrics"]["loss"] < results["metrics"]["loss"] + 0.05


def run_language_model_again(folder, scripts, novel):
    """Fine-tunes what a run left."""
    output_dir = folder / "again"
    command = [
        *(str(ROOT / "scripts/train_language_model.py"), "--output_dir", str(output_dir)),
        *("--model_name_or_path", str(folder), "--dataset_dir", str(novel), "--num_train_epochs", "1"),
        *("--block_size", "32", "--use_cpu", "--disable_tqdm", "true"),
    ]
    scripts.run(*command)
    return json.loads((output_dir / "results.json").read_text())


def test_language_model_script_with_softmax_attention_in_segments(tmp_path, scripts, novel):
    """Which generates without a cache."""
    options = ("--attention_type", "softmax", "--segment_length", "16", "--num_memory_tokens", "2", "--max_steps", "1")
    results = run_language_model(tmp_path, scripts.run, "--dataset_dir", str(novel), *options)
    assert results["sample"] and results["config"]["segment_length"] == 16


def test_language_model_script_masked_with_byte_pairs(tmp_path, scripts, novel):
    options = ("--objective", "masked", "--tokenizer", "bpe", "--vocab_size", "300", "--num_train_epochs", "12")
    results = run_language_model(tmp_path, scripts.run, "--dataset_dir", str(novel), *options)
    losses = [entry["eval_loss"] for entry in results["learning_curve"]["evaluation"]]
    assert results["task"] == "fill-mask" and losses[-1] < 0.5 * losses[0]
    fill = pipeline("fill-mask", model=str(tmp_path))
    assert len(fill("the calm[MASK] carries the ship")) == 5


def test_language_model_script_evaluates_behind_the_same_mask(tmp_path, scripts, novel):
    options = ("--objective", "masked", "--num_train_epochs", "2", "--learning_rate", "0")
    results = run_language_model(tmp_path, scripts.run, "--dataset_dir", str(novel), *options)
    first, second = (entry["eval_loss"] for entry in results["learning_curve"]["evaluation"])
    assert first == second == results["metrics"]["loss"]


def test_language_model_script_over_two_processes(tmp_path, scripts, novel):
    options = ("--dataset_dir", str(novel), "--max_steps", "4", "--num_sample_tokens", "5")
    results = run_language_model(tmp_path, scripts.run_in_two, *options)
    assert results["world_size"] == 2 and results["effective_batch_size"] == 64
    assert results["sample"] and results["metrics"]["perplexity"] == pytest.approx(math.exp(results["metrics"]["loss"]))


def test_what_is_hidden_at_evaluation_does_not_depend_on_who_evaluates():
    tokenizer = train_character_tokenizer(["abcdef"], 8)
    blocks = torch.randint(5, 10, (12, 8))
    first, second = (
        train_language_model.hide_once(blocks, DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=0))
        for _ in range(2)
    )
    labels, inputs = first.columns["labels"], first.columns["input_ids"]
    assert torch.equal(labels, second.columns["labels"]) and torch.equal(inputs, second.columns["input_ids"])
    hidden = labels != -100
    assert 0.1 < hidden.float().mean() < 0.5
    assert torch.equal(torch.where(hidden, labels, inputs), blocks)
    assert not torch.equal(inputs, blocks)


def test_padding_in_a_block_is_not_to_be_predicted():
    blocks = train_language_model.with_labels(torch.tensor([[5, 0, 6], [7, 8, 9]]), 0)
    assert len(blocks) == 2 and blocks[0]["labels"].tolist() == [5, -100, 6]
    assert blocks[0]["input_ids"].tolist() == [5, 0, 6] and blocks[1]["labels"].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--objective", "prefix"], "--objective must be one of causal, masked, got 'prefix'"),
        (["--model_name_or_path", "x", "--tokenizer", "bpe"], "--tokenizer shape a new model"),
    ],
)
def test_language_model_script_names_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_language_model.parse_arguments(arguments)


def test_texts_are_joined_and_cut_into_blocks():
    tokenizer = train_character_tokenizer(["abcdef"], 8)
    data = Dataset.from_dict({"text": ["abc", "", "def", "ab"]})
    blocks = in_blocks(data, tokenizer, "text", 4)
    assert [tokenizer.decode(block) for block in blocks] == ["abc[EOS]", "def[EOS]"]
    with pytest.raises(ValueError, match="11 tokens do not fill a block; choose a --block_size below 64"):
        in_blocks(data, tokenizer, "text", 64)


def test_the_same_texts_give_the_same_vocabulary():
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]  # many ties between merges
    vocabularies = [train_wordpiece_tokenizer(words * 2, 60, 16).get_vocab() for _ in range(6)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert train_wordpiece_tokenizer(iter(words * 2), 60, 16).get_vocab() == vocabularies[0]  # read once


# --------------------------------------------------------------------------------------------------------------------
# Associative recall
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size, num_pairs, length", [(256, 8, 48), (16, 7, 22), (20, 1, 4)])
def test_recall_examples_obey_their_rules(vocab_size, num_pairs, length):
    rules = {"vocab_size": vocab_size, "num_pairs": num_pairs, "length": length}
    input_ids, labels = recall_examples(300, **rules, seed=3)
    assert input_ids.shape == labels.shape == (300, length)
    answers, places, orders = torch.zeros_like(input_ids), set(), set()
    for i, (tokens, asked) in enumerate(zip(input_ids.tolist(), labels.tolist(), strict=True)):
        keys, values = tokens[0 : 2 * num_pairs : 2], tokens[1 : 2 * num_pairs : 2]
        assert len(set(keys)) == num_pairs and all(0 < key < vocab_size // 2 for key in keys)
        assert all(vocab_size // 2 <= value < vocab_size for value in values)
        rest = tokens[2 * num_pairs :]
        assert sorted(token for token in rest if token != 0) == sorted(keys) and tokens[-1] == 0
        value_of = dict(zip(keys, values, strict=True))
        for p, token in enumerate(tokens):
            is_query = p >= 2 * num_pairs and token != 0
            assert p + 1 == length or asked[p + 1] == (value_of[token] if is_query else -100)
            answers[i, p] = value_of.get(token, 0)
            places |= {p} if is_query else set()
        assert asked[0] == -100
        orders.add(tuple(keys.index(token) for token in rest if token != 0))
    assert places == set(range(2 * num_pairs, length - 1))
    assert len(orders) > 100 or num_pairs == 1
    assert recall_accuracy(answers.numpy(), labels.numpy()) == 1
    assert recall_accuracy(answers.numpy() + (answers.numpy() > 0), labels.numpy()) == 0


def test_recall_examples_are_of_their_seed():
    rules = {"vocab_size": 64, "num_pairs": 4, "length": 24}
    drawn = {
        (split, seed): RecallExamples(split, 200, seed, **rules).input_ids
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    }
    again = RecallExamples("train", 200, 0, **rules)
    assert torch.equal(again.input_ids, drawn["train", 0])
    rows = [tuple(row) for ids in drawn.values() for row in ids.tolist()]
    assert len(rows) == len(set(rows)) == 1200
    assert again[3]["input_ids"].tolist() == again.input_ids[3].tolist() and len(again) == 200
    share = share_of_the_commonest(again, again)
    counts = again.labels[again.labels != -100].bincount()
    assert share == pytest.approx(counts.max().item() / 800) and share < 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_pairs": 8}, r"--num_pairs must be in \[1, 7\] for --vocab_size 16, got 8"),
        ({"length": 12}, "--length must be at least 13 for --num_pairs 4, got 12"),
    ],
)
def test_recall_examples_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        recall_examples(1, **{"vocab_size": 16, "num_pairs": 4, "length": 24, "seed": 0, **changes})


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_what_is_kept_of_an_example(attention):
    sizes = []
    for length in (12, 24):
        model = make_model("AstroformerForCausalLM", attention_type=attention, synaptic_decay="none")
        sizes.append(train_associative_recall.state_bytes(model, torch.randint(1, 50, (length,))))
    keys_and_values = 2 * 2 * 32 * 4  # layers, keys and values, width, bytes
    states = 2 * 4 * (8 * 8 + 8) * 4  # layers, heads, synapses and calcium, bytes
    assert sizes == ([12 * keys_and_values, 24 * keys_and_values] if attention == "softmax" else [states] * 2)
    softmax = {"attention_type": "softmax", "synaptic_decay": "none"}
    in_segments = make_model("AstroformerForCausalLM", segment_length=4, **softmax)
    assert train_associative_recall.state_bytes(in_segments, torch.randint(1, 50, (12,))) is None


def test_recall_script_learns_and_its_model_is_loaded_again(tmp_path, scripts):
    command = [
        *(str(ROOT / "scripts/train_associative_recall.py"), "--output_dir", str(tmp_path), "--use_cpu"),
        *("--vocab_size", "16", "--num_pairs", "2", "--length", "8", "--num_hidden_layers", "1", "--hidden_size", "32"),
        *("--max_steps", "300", "--eval_strategy", "steps", "--eval_steps", "100", "--save_strategy", "no"),
        *("--load_best_model_at_end", "false", "--num_train_examples", "4096", "--num_eval_examples", "200"),
        *("--learning_rate", "1e-2", "--feature_map", "exp", "--presynaptic_alpha", "1", "--disable_tqdm", "true"),
        *("--astrocyte_resting_activity", "3", "--astrocyte_scale", "3", "--max_curve_samples", "50"),
    ]
    printed = scripts.run(*command).stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert "chance 0.5625" in printed and results["chance"] == 0.5 + 0.5 / 8 and results["majority"] < 0.3
    assert results["state_bytes"] > 0
    assert results["metrics"]["accuracy"] > 0.8 and results["test_metrics"]["accuracy"] > 0.8
    assert len(results["learning_curve"]["evaluation"]) == 3
    assert (results["curve_samples"], results["eval_samples"], results["test_samples"]) == (50, 200, 200)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for split, metrics in (("validation", results["metrics"]), ("test", results["test_metrics"])):
        examples = RecallExamples(split, 200, 0, vocab_size=16, num_pairs=2, length=8)
        output = model(input_ids=examples.input_ids, labels=examples.labels)
        found = recall_accuracy(output.logits.argmax(-1).numpy(), examples.labels.numpy())
        assert metrics == pytest.approx({"accuracy": found, "loss": output.loss.item()}, rel=1e-3)
    card = ModelCard.load(tmp_path / "README.md")
    assert "{{" not in card.content and "1 to 7 are keys" in card.content


# --------------------------------------------------------------------------------------------------------------------
# The short convolution, a control
# --------------------------------------------------------------------------------------------------------------------


def test_a_short_convolution_is_pytorchs_and_looks_back_only():
    convolved = ConvolvedProjection(torch.nn.Linear(6, 4), 3)
    x = torch.randn(2, 7, 6)
    expected = torch.nn.functional.conv1d(
        convolved.projection(x).transpose(1, 2), convolved.taps.T[:, None], padding=2, groups=4
    )[..., :7].transpose(1, 2)
    torch.testing.assert_close(convolved(x), expected)
    changed = x.clone()
    changed[:, 3] += 1
    differs = (convolved(changed) != convolved(x)).any(-1).any(0)
    assert differs.tolist() == [False, False, False, True, True, True, False]


@pytest.mark.parametrize("attention_type", ["softmax", "linear"])
def test_a_model_with_a_short_convolution(attention_type, tmp_path):
    model = astroformer_hf.AstroformerForCausalLM(tiny_config(attention_type=attention_type))
    add_short_convolution(model, 4)
    model.eval()
    ids = torch.randint(1, 50, (2, 9))
    logits = model(ids).logits
    changed = ids.clone()
    changed[:, 5] = changed[:, 5] % 49 + 1
    torch.testing.assert_close(model(changed).logits[:, :5], logits[:, :5])
    assert not torch.allclose(model(changed).logits[:, 5:], logits[:, 5:])
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[0, :6], logits[0, :6])
    with pytest.raises(ValueError, match="padded on the right, not on the left"):
        model(ids, attention_mask=mask.flip(1))
    with pytest.raises(ValueError, match="one a row, not position_ids"):
        model(ids, position_ids=torch.arange(9)[None])
    with pytest.raises(ValueError, match="takes whole texts"):
        model.generate(ids, max_new_tokens=3, use_cache=True, pad_token_id=0)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has short_convolution=4: it is a control in the comparison"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--short_convolution must be at least 1, got 0"):
        add_short_convolution(model, 0)
    with pytest.raises(ValueError, match="--short_convolution is for causal models"):
        add_short_convolution(AstroformerForSequenceClassification(tiny_config()), 4)
    with pytest.raises(ValueError, match="--short_convolution does not go with --segment_length"):
        add_short_convolution(make_model("AstroformerForCausalLM", segment_length=4), 4)


def test_script_goes_on_with_a_short_convolution(tmp_path, scripts, novel):
    options = ("--dataset_dir", str(novel), "--max_steps", "8", "--short_convolution", "4")
    options += ("--attention_type", "linear", "--load_best_model_at_end", "false", "--save_steps", "8")
    options += ("--save_strategy", "steps")
    first = run_language_model(tmp_path, scripts.run, *options)
    assert first["config"]["short_convolution"] == 4 and "sample" not in first
    assert "convolved over 4 tokens" in (tmp_path / "README.md").read_text()
    (tmp_path / "results.json").unlink()
    again = run_language_model(tmp_path, scripts.run, *options)  # which finds a run with its last step done
    assert again["resumed"] and again["metrics"] == first["metrics"] and again["parameters"] == first["parameters"]
