# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/convert.py`, from a model of the library to one with swapped attention."""

import json
import math
import warnings
from pathlib import Path
from unittest import mock

import compare_conversions
import convert
import datasets
import peft
import publish
import pytest
import torch
import train_text_classification
import transformers
from comparison.presets import FLAG
from conversion.arms import Conversion
from conversion.inputs import Inputs
from conversion.library_models import SUPPORTED
from conversion.quality import compare_embeddings, perplexity, probe_accuracies, silenced_synapses
from filelock import FileLock
from PIL import Image
from reviews import write_reviews
from training import half_precision
from training.data import load_splits
from training.files import LOCK
from training.tokenization import train_bpe_tokenizer, train_wordpiece_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, ViTImageProcessorPil, pipeline
from transformers.trainer_callback import TrainerState

from astroformer_hf import swap_attention


BY_NAME = {model.name: model for model in SUPPORTED}
WORDS = ["awful lovely " + " ".join(f"w{i}" for i in range(30))] * 3


def save_original(name, folder):
    """A model of the library with random weights and its processor."""
    model = BY_NAME[name].make("sdpa")
    if name == "ViTModel":
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    else:
        make = train_bpe_tokenizer if name == "LlamaForCausalLM" else train_wordpiece_tokenizer
        tokenizer = make(WORDS, 300)
        tokenizer.save_pretrained(folder)
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return str(folder)


def options(folder, *more):
    numbers = ("--num_transfer", "48", "--num_distillation", "48", "--num_validation", "16")
    return [
        "--output_dir",
        str(folder),
        *numbers,
        "--max_length",
        "12",
        "--window_size",
        "2",
        "--batch_size",
        "8",
        *more,
    ]


def test_an_encoder_is_converted(tmp_path, scripts):
    original = save_original("BertModel", tmp_path / "original")
    data, output_dir = write_reviews(tmp_path / "reviews"), tmp_path / "converted"
    (tmp_path / "original/README.md").write_text("---\nlicense: mit\n---\n# original\n")
    scripts.run("scripts/convert.py", "--model", original, "--text", str(data), *options(output_dir))
    results = json.loads((output_dir / "results.json").read_text())
    stages = ("swapped", "transferred", "distilled", "synapses silenced")
    assert tuple(results["quality"]) == stages and not results["resumed"]
    assert all(-1 <= results["quality"][stage]["cosine"] <= 1 for stage in stages)
    assert all(a < b for a, b in zip(results["transfer"]["after"], results["transfer"]["before"], strict=True))
    assert sorted(path.name for path in output_dir.iterdir() if path.is_dir()) == []
    card = (output_dir / "README.md").read_text()
    assert "in 2 of its layers" in card and "the 2 nearest tokens on each side" in card and "{{" not in card
    assert f"| distilled | {results['quality']['distilled']['cosine']:.4f} |" in card
    staged = tmp_path / "staged"
    staged.mkdir()
    publish.stage(output_dir, staged, "user/name")  # complete, and its card is
    publish.check_answers(staged)
    assert '"user/name"' in (staged / "README.md").read_text() and "license: mit" in card
    model, tokenizer = AutoModel.from_pretrained(output_dir), AutoTokenizer.from_pretrained(output_dir)
    assert model.config.model_type == "astromorphic" and model.config.attention_swap["window_size"] == 2
    assert model(**tokenizer("a lovely w1", return_tensors="pt")).last_hidden_state.isfinite().all()
    again = scripts.run("scripts/convert.py", "--model", original, "--text", str(data), *options(output_dir))
    assert "holds this model, converted" in again.stdout
    message = r"--window_size is 5, but the conversion in .* was begun with 2; give the same"
    with pytest.raises(ValueError, match=message):
        convert.main(
            ["--model", original, "--text", str(data), *options(output_dir, "--sink_tokens", "1"), "--window_size", "5"]
        )


def test_a_decoder_goes_on_after_an_interruption(tmp_path, monkeypatch, capsys):
    original = save_original("LlamaForCausalLM", tmp_path / "original")
    data, output_dir = write_reviews(tmp_path / "reviews"), tmp_path / "converted"
    more = ["--keep_layers", "1", "--sink_tokens", "2"]
    arguments = ["--model", original, "--text", str(data), *options(output_dir, *more)]

    class Killed(convert.DistillationTrainer):
        def train(self, *args, **kwargs):
            raise KeyboardInterrupt

    saved = []

    def die(state, path):  # as one is that is killed while it writes its third checkpoint
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(state, path)

    save = TrainerState.save_to_json
    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", die)
        with pytest.raises(KeyboardInterrupt):
            convert.main(arguments)
    with monkeypatch.context() as patch:
        patch.setattr(convert, "DistillationTrainer", Killed)
        with pytest.raises(KeyboardInterrupt):
            convert.main(arguments)
    assert not (output_dir / "results.json").exists()
    capsys.readouterr()
    with pytest.raises(
        ValueError, match=r"--window_size is 5, but the conversion in .* was begun with 2; give the same"
    ):
        convert.main([*arguments, "--window_size", "5"])
    convert.main(arguments)
    assert not (output_dir / convert.OPTIONS).exists()
    assert f"going on from {output_dir}/transferred" in capsys.readouterr().out
    results = json.loads((output_dir / "results.json").read_text())
    assert set(results["quality"]) == {"original", "swapped", "transferred", "distilled", "synapses silenced"}
    assert results["resumed"]
    assert results["quality"]["distilled"]["tokens"] == results["quality"]["original"]["tokens"] > 0
    model = AutoModelForCausalLM.from_pretrained(output_dir)
    assert len(model.config.attention_swap["layers"]) == 1 == len(results["transfer"]["kept"])
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, pad_token_id=0).shape[1] <= 7
    # as a library model: fine-tuned by an adapter that is merged, and asked through a pipeline
    ids = torch.randint(3, 60, (2, 9))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    expected = adapted(ids).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits, merged(ids).logits)
    with mock.patch("transformers.pipelines.base.logger.error") as complained:
        write = pipeline("text-generation", model=str(output_dir))
    assert "awful" in write("awful", max_new_tokens=3)[0]["generated_text"] and not complained.called


def test_an_image_model_is_converted(tmp_path):
    original = save_original("ViTModel", tmp_path / "original")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        paths = [tmp_path / f"{split}{i}.png" for i in range(24)]
        for i, path in enumerate(paths):
            Image.effect_noise((16, 16), 60 + i).convert("RGB").save(path)
        data = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
        data.cast_column("image", datasets.Image()).to_parquet(folder / f"{split}.parquet")
    numbers = ("--num_transfer", "12", "--num_distillation", "12", "--window_size", "0")
    convert.main(["--model", original, "--images", str(folder), *options(tmp_path / "converted", *numbers)])
    results = json.loads((tmp_path / "converted/results.json").read_text())
    assert results["quality"]["distilled"]["cosine"] <= 1 + 1e-6
    loaded, info = AutoModel.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert loaded.config.attention_swap["sink_tokens"] == 1 and not any(info.values())


def test_silenced_synapses_leave_what_is_exact():
    model, inputs = swap_attention(BY_NAME["BertModel"].make("sdpa"), window_size=2), BY_NAME["BertModel"].inputs()
    before = model(**inputs)[0]
    with silenced_synapses(model):
        silent = model(**inputs, output_attentions=True)
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    assert (silent.attentions[0][..., distance > 2] == 0).all() and (silent.attentions[0][..., distance <= 2] > 0).all()
    assert torch.equal(model(**inputs)[0], before) and not torch.allclose(silent[0], before)


def test_what_quality_says():
    wanted = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1)
    same = compare_embeddings(wanted, wanted)
    assert same == pytest.approx({"cosine": 1, "cosine_fifth_percentile": 1, "spearman": 1}, abs=1e-6)
    turned = torch.nn.functional.normalize(wanted + 0.3 * torch.randn(40, 8), dim=-1)
    worse = compare_embeddings(turned, wanted)
    assert worse["cosine_fifth_percentile"] < worse["cosine"] < 1 and 0 < worse["spearman"] < 1
    model, ids = BY_NAME["LlamaForCausalLM"].make("sdpa"), torch.randint(3, 60, (2, 9))
    found = perplexity(model, [{"input_ids": ids}])
    assert found["tokens"] == 16
    assert found["perplexity"] == pytest.approx(math.exp(model(ids, labels=ids).loss.item()), rel=1e-4)


def test_bad_arguments_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert.main(["--model", "x", "--text", "y", "--output_dir", "z", "--num_validation", "0"])
    assert "--num_validation must be at least 1, got 0" in capsys.readouterr().err
    original = save_original("BertModel", tmp_path / "original")
    data = write_reviews(tmp_path / "reviews")
    with pytest.raises(ValueError, match="has no column 'review'"):
        convert.main(["--model", original, "--text", str(data), "--text_column", "review", *options(tmp_path / "o")])
    with pytest.raises(ValueError, match="split 'train' has 160 examples: none is left after the first 200"):
        convert.main(
            ["--model", original, "--text", str(data), *options(tmp_path / "o"), "--num_transfer", "200"],
        )


# --------------------------------------------------------------------------------------------------------------------
# Arms
# --------------------------------------------------------------------------------------------------------------------


def test_arms_are_compared_and_not_repeated(tmp_path, monkeypatch, capsys):
    original = save_original("BertModel", tmp_path / "original")
    shared = {"num_transfer": 16, "num_distillation": 8, "num_validation": 8, "max_length": 12, "batch_size": 8}
    arms = {
        "window": {"window_size": 2, "sink_tokens": 0},
        "linear": {"window_size": 0, "sink_tokens": 0, "bf16": FLAG},
    }
    training = {"max_steps": 2, "max_length": 12, "max_eval_samples": 8, "bf16": True, "disable_tqdm": True}
    conversion = Conversion(shared, arms, has_probe=True, finetuning=training, finetuned=("window",))
    monkeypatch.setitem(compare_conversions.CONVERSIONS, "minilm", conversion)
    folders = ("--results_dir", str(tmp_path / "results"), "--output_dir", str(tmp_path / "models"))
    arguments = ["--models", f"minilm={original}", "--data", str(write_reviews(tmp_path / "reviews")), *folders]
    compare_conversions.main([*arguments, "--arms", "window"])
    record = json.loads((tmp_path / "results/minilm/window.json").read_text())
    assert record["arm"] == "window" and record["attention_swap"]["window_size"] == 2
    assert all(len(record["probe"][model]) == 3 for model in ("original", "converted"))
    assert all(0 <= accuracy <= 1 for accuracies in record["probe"].values() for accuracy in accuracies)
    capsys.readouterr()
    compare_conversions.main([*arguments, "--list"])
    assert capsys.readouterr().out == "minilm, window: done\nminilm, linear: missing\n"
    compare_conversions.main(arguments)
    assert "minilm, window: done" in capsys.readouterr().out
    record = json.loads((tmp_path / "results/minilm/linear.json").read_text())
    assert "synapses silenced" not in record["quality"] and "--bf16" in record["command"].split()
    compare_conversions.main([*arguments, "--arms", "window", "--finetune"])
    finetuned = sorted((tmp_path / "results/minilm/finetuned").iterdir())
    assert [path.stem for path in finetuned] == ["converted_window", "linear", "neuron_astrocyte", "softmax"]
    records = [json.loads(path.read_text()) for path in finetuned]
    assert [record["arm"] for record in records] == ["neuron_astrocyte_swapped", "linear", "neuron_astrocyte", "sdpa"]
    assert all(record["steps"] == 2 and 0 <= record["metrics"]["accuracy"] <= 1 for record in records)


@pytest.mark.parametrize("slowdown", [1.5, 40])
def test_bfloat16_that_is_slower_here_is_a_warning(slowdown, tmp_path, monkeypatch):
    assert half_precision.bfloat16_slowdown(size=16, repeats=1) > 0
    monkeypatch.setattr(half_precision, "bfloat16_slowdown", lambda: slowdown)
    original, reviews = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    few = {"max_steps": "1", "max_length": "12", "max_eval_samples": "8", "disable_tqdm": "true", "use_cpu": "true"}
    training = ["--model_name_or_path", str(original), "--dataset_dir", str(reviews)]
    training += [text for name, value in few.items() for text in (f"--{name}", value)]
    runs = {
        convert.main: ["--text", str(reviews), *options(tmp_path / "converted", "--model", str(original))],
        train_text_classification.main: [*training, "--output_dir", str(tmp_path / "trained")],
    }
    for main, arguments in runs.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            main([*arguments, "--bf16"])
        said = [str(warning.message) for warning in caught if "bfloat16" in str(warning.message)]
        assert len(said) == (slowdown > 2)
        assert all("takes 40 times as long in bfloat16 as in float32" in message for message in said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "bert=x"], "expected NAME=SOURCE with one of minilm, smollm2, got 'bert=x'"),
        (["--models", "minilm"], "expected NAME=SOURCE"),
        (["--models", "minilm=x", "--arms", "softmax"], "minilm has no arm 'softmax'; it has window_and_sinks"),
    ],
)
def test_unknown_arms_are_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        compare_conversions.main([*arguments, "--data", "x"])
    assert message in capsys.readouterr().err


def test_a_probe_reads_what_embeddings_hold():
    """Of one-hot embeddings of the label, all; of embeddings of nothing, the more frequent class at best."""
    rows = datasets.Dataset.from_dict({"text": [f"w{i}" for i in range(60)], "label": [i % 2 for i in range(60)]})

    def processor(texts, **options):
        return transformers.BatchEncoding({"numbers": torch.tensor([int(text[1:]) for text in texts])})

    class Model:
        device = "cpu"

        def __init__(self, knows):
            self.knows = knows

        def __call__(self, numbers, output_hidden_states):
            place = numbers % 2 if self.knows else torch.zeros_like(numbers)
            return mock.Mock(hidden_states=[torch.nn.functional.one_hot(place, 2)[:, None].float()])

    assert probe_accuracies(Model(True), processor, rows, rows, [1, 2], (40, 20)) == [1, 1]
    assert probe_accuracies(Model(False), processor, rows, rows, [1], (60, 60)) == [0.5]


def test_a_probe_is_of_texts_that_the_conversion_has_not_seen(tmp_path, monkeypatch):
    original, data = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    shared = {"num_transfer": 10, "num_distillation": 8, "num_validation": 8, "max_length": 12, "batch_size": 8}
    conversion = Conversion(shared, {"linear": {"window_size": 0, "sink_tokens": 0}}, has_probe=True)
    monkeypatch.setitem(compare_conversions.CONVERSIONS, "minilm", conversion)
    seen, probed = [], []
    monkeypatch.setattr(
        Inputs, "_tokens", lambda self, rows, tokens=Inputs._tokens: seen.extend(rows["text"]) or tokens(self, rows)
    )

    def probe(model, processor, train, test, seeds, numbers):
        probed.append((train["text"][:], test["text"][:]))
        return [0.5] * len(seeds)

    monkeypatch.setattr(compare_conversions, "probe_accuracies", probe)
    folders = ("--results_dir", str(tmp_path / "results"), "--output_dir", str(tmp_path / "models"))
    compare_conversions.main(["--models", f"minilm={original}", "--data", str(data), *folders])
    splits = load_splits(dataset_dir=str(data))
    learned, (train, test) = set(seen) & set(splits["train"]["text"]), probed[0]
    assert len(learned) == 18 and len(train) > 0
    assert set(train) <= set(splits["train"]["text"]) - learned and set(test) <= set(splits["validation"]["text"])
    assert probed == [probed[0]] * 2  # of both models the same


def test_an_earlier_conversion_is_not_taken_for_another(tmp_path, monkeypatch):
    original, data = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    shared = {"num_transfer": 8, "num_distillation": 0, "num_validation": 8, "max_length": 12, "batch_size": 8}
    arguments = ["--models", f"minilm={original}", "--data", str(data), "--output_dir", str(tmp_path / "models")]
    for window_size in (1, 2):
        conversion = Conversion(shared, {"window": {"window_size": window_size}})
        monkeypatch.setitem(compare_conversions.CONVERSIONS, "minilm", conversion)
        run = [*arguments, "--results_dir", str(tmp_path / f"results{window_size}")]
        if window_size == 1:
            compare_conversions.main(run)
            continue
        with pytest.raises(ValueError, match="--window_size is 2, but the conversion in .* was begun with 1"):
            compare_conversions.main(run)


def test_data_of_train_and_test_have_a_probe(tmp_path, monkeypatch):
    original, data = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    (data / "validation.csv").rename(data / "test.csv")
    shared = {"num_transfer": 8, "num_distillation": 0, "num_validation": 8, "max_length": 12, "batch_size": 8}
    conversion = Conversion(shared, {"window": {"window_size": 2}}, has_probe=True)
    monkeypatch.setitem(compare_conversions.CONVERSIONS, "minilm", conversion)
    folders = ("--results_dir", str(tmp_path / "results"), "--output_dir", str(tmp_path / "models"))
    arguments = ["--models", f"minilm={original}", "--data", str(data), *folders]
    compare_conversions.main(arguments)
    assert len(json.loads((tmp_path / "results/minilm/window.json").read_text())["probe"]["original"]) == 3
    too_many = Conversion({**shared, "num_transfer": 10**6}, {"other": {"window_size": 2}}, has_probe=True)
    monkeypatch.setitem(compare_conversions.CONVERSIONS, "minilm", too_many)
    with pytest.raises(ValueError, match="the conversion takes all .* a probe needs others"):
        compare_conversions.main(arguments)
    assert not (tmp_path / "models/minilm/other").exists()  # which it says before the conversion


def test_the_original_is_not_overwritten(tmp_path):
    original, data = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    before = {path.name: path.read_bytes() for path in Path(original).iterdir()}
    with pytest.raises(ValueError, match="--output_dir must be another folder than that of --model, .*original, whose"):
        convert.main(["--model", original, "--text", str(data), *options(tmp_path / "converted/../original")])
    assert {path.name: path.read_bytes() for path in Path(original).iterdir()} == before


def test_two_processes_do_not_convert_into_one_folder(tmp_path):
    original, data = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    folder = tmp_path / "converted"
    folder.mkdir()
    with FileLock(folder / LOCK), pytest.raises(ValueError, match="converted: another process writes into it; wait"):
        convert.main(["--model", original, "--text", str(data), *options(folder)])
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_layers_to_keep(tmp_path, capsys):
    original, data = save_original("BertModel", tmp_path / "original"), write_reviews(tmp_path / "reviews")
    arguments = ["--model", original, "--text", str(data)]
    with pytest.raises(ValueError, match="--keep_layers is 5, but the model has 2 attention layers"):
        convert.main([*arguments, *options(tmp_path / "converted", "--keep_layers", "5")])
    assert not (tmp_path / "converted").exists()
    for more, message in (
        (["0"], "--keep_layers must be at least 1, got 0"),
        (["1", "--num_transfer", "0"], "it needs"),
    ):
        with pytest.raises(SystemExit):
            convert.main([*arguments, *options(tmp_path / "converted"), "--keep_layers", *more])
        assert message in capsys.readouterr().err
