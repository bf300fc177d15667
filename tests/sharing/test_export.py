# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Exported models say what PyTorch says, at other sizes than the one that was traced; and scripts/export.py."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from variants import VARIANTS, make_model, some_each_time, tiny_config, tiny_vision_config

import astroformer_hf


pytest.importorskip("datasets", reason="the scripts need the extra 'train'")
import export
from training import files
from training.images import make_image_processor
from training.tokenization import train_wordpiece_tokenizer


MISSING = [name for name in export.PACKAGES["onnx"] if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
try:
    export.require_packages("torch")
    OLD = ""
except ImportError as error:
    OLD = str(error)
needs_exporters = pytest.mark.skipif(bool(OLD), reason=OLD)
generator = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("name", "variant"),
    some_each_time(
        [
            *(
                ("AstroformerForSequenceClassification", variant)
                for variant in ("learned", "sinusoidal", "activity", "favor", "no feedback", "linear", "softmax")
            ),
            *(("AstroformerForCausalLM", variant) for variant in ("learned", "activity", "softmax")),
        ],
        [
            *(("AstroformerForSequenceClassification", variant) for variant in ("activity", "softmax")),
            ("AstroformerForCausalLM", "learned"),
        ],
    ),
)
def test_torch_export_takes_every_size(name, variant):
    model = make_model(name, num_hidden_layers=1, **VARIANTS[variant])
    flags = {"use_cache": False} if model.config.is_decoder else {}
    traced = export.example_inputs(model, 3, 100, generator)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"input_ids": dynamic, "attention_mask": dynamic, **dict.fromkeys(flags)}
    with torch.no_grad():
        program = torch.export.export(model, (), {**traced, **flags}, dynamic_shapes=shapes).module()
        longest = model.config.longest_input
        assert export.largest_difference(model, lambda **inputs: program(**inputs, **flags), generator, longest) < 1e-5


def test_difference_is_seen_and_padding_is_not():
    model = make_model("AstroformerForCausalLM", num_hidden_layers=1)

    def broken(offset, where):
        def run(input_ids, attention_mask):
            output = model(input_ids, attention_mask=attention_mask)
            output.logits[(attention_mask != 0) == where] += offset
            return output

        return run

    assert export.largest_difference(model, broken(1.0, where=True), generator) > 0.01
    assert export.largest_difference(model, broken(1.0, where=False), generator) < 1e-5
    assert not export.largest_difference(model, broken(float("nan"), where=True), generator) <= 1.0


TEXTS = {
    "good": ["a fine good film", "good and very fine", "so fine"],
    "bad": ["a bad dull film", "dull and bad", "so dull"],
}


@pytest.fixture
def classifier(tmp_path):
    """Folders of a tiny text classifier with its tokenizer, and of data for it."""
    rows = [{"text": text, "label": label} for label, texts in TEXTS.items() for text in 20 * texts]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        (tmp_path / f"data/{split}.json").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = train_wordpiece_tokenizer([row["text"] for row in rows], 60, 32)
    labels = {"id2label": {0: "bad", 1: "good"}}
    config = tiny_config(num_hidden_layers=1, vocab_size=len(tokenizer), astrocyte_code="sinusoidal", **labels)
    astroformer_hf.AstroformerForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model", tmp_path / "data"


@needs_onnx
@needs_exporters
def test_text_classifier_to_onnx_and_int8(classifier, tmp_path):
    model, data = classifier
    output = tmp_path / "out"
    options = ["--quantize", "int8", "--evaluate", "--dataset_dir", str(data), "--batch_size", "16"]
    export.main(["--model", str(model), "--output_dir", str(output), *options])

    record = files.read_json(output / "results.json")
    pytorch, float32, int8 = (record["models"][name] for name in ("pytorch", "float32", "int8"))
    assert record["eval_samples"] == 120 and record["split"] == "validation"
    assert float32["largest_difference"] < 1e-5 and 1e-5 < int8["largest_difference"] < 0.1
    assert float32["accuracy"] == pytorch["accuracy"] and float32["agreement"] == 1
    assert int8["agreement"] > 0.9 and int8["bytes"] < float32["bytes"]

    import onnxruntime  # and nothing of PyTorch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output)
    inputs = tokenizer([*TEXTS["good"], "film"], padding=True, return_tensors="np", return_token_type_ids=False)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    (logits,) = session.run(["logits"], dict(inputs))
    expected = AutoModelForSequenceClassification.from_pretrained(model)(
        **{name: torch.from_numpy(values) for name, values in inputs.items()}
    )
    torch.testing.assert_close(torch.from_numpy(logits), expected.logits, rtol=1e-4, atol=1e-5)


@needs_onnx
@needs_exporters
@pytest.mark.parametrize("kind", ["causal", "image"])
def test_other_models_to_onnx(kind, tmp_path, classifier):
    if kind == "causal":
        model = astroformer_hf.AstroformerForCausalLM(tiny_config(num_hidden_layers=1))
        processor = export.AutoTokenizer.from_pretrained(classifier[0])
    else:
        model = astroformer_hf.AstroformerForImageClassification(tiny_vision_config(num_hidden_layers=1))
        processor = make_image_processor(16)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "in")
    export.main(["--model", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")])
    record = files.read_json(tmp_path / "out/results.json")
    assert record["models"]["float32"]["largest_difference"] < 1e-5
    names = (
        "model.onnx",
        "config.json",
        "export.json",
        "tokenizer.json" if kind == "causal" else "preprocessor_config.json",
    )
    assert all((tmp_path / "out" / name).exists() for name in names)


@needs_exporters
def test_script_to_torch_export(classifier, tmp_path, monkeypatch):
    arguments = ["--model", str(classifier[0]), "--format", "torch", "--output_dir", str(tmp_path / "out")]
    exported = []
    make = export.export
    monkeypatch.setattr(export, "export", lambda *args: exported.append(make(*args)) or exported[0])
    export.main(arguments)
    assert files.read_json(tmp_path / "out/results.json")["models"]["float32"]["largest_difference"] < 1e-5
    assert (tmp_path / "out/model.pt2").exists()

    monkeypatch.setattr(export, "export", lambda *_: exported[0])
    monkeypatch.setattr(export, "load_exported", lambda *_: exported[0])
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(SystemExit, match="differs from PyTorch by nan .* --tolerance 0.0001"):
        export.main(arguments)
    assert not (tmp_path / "out/results.json").exists()


@needs_exporters
def test_an_export_replaces_an_earlier_one_and_nothing_else(classifier, tmp_path):
    model, _ = classifier
    output = tmp_path / "out"
    (output / "int8").mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data", "export.json", "results.json", "int8/model.onnx", "notes.txt"):
        (output / name).write_text("of an earlier export")
    export.main(["--model", str(model), "--format", "torch", "--output_dir", str(output)])
    assert not any((output / name).exists() for name in ("model.onnx", "model.onnx.data", "int8"))
    assert (output / "notes.txt").exists() and (output / "model.pt2").exists()
    record = files.read_json(output / "results.json")
    assert record["models"]["float32"]["bytes"] == (output / "model.pt2").stat().st_size

    run = tmp_path / "run"
    shutil.copytree(model, run / "checkpoint-10")
    shutil.copy(model / "config.json", run)
    (run / "results.json").write_text("of a run")
    for folder in (run, model.parent / "other"):
        if folder != run:  # a model that lies beside a graph of it
            shutil.copytree(model, folder)
            (folder / "model.onnx").write_text("a graph")
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with pytest.raises(ValueError, match="is not that of an export: its files would be overwritten"):
            export.main(["--model", str(run / "checkpoint-10"), "--format", "torch", "--output_dir", str(folder)])
        assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@needs_exporters
def test_a_model_of_the_library_is_exported(classifier, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path / "bert"
    tokenizer = export.AutoTokenizer.from_pretrained(classifier[0])
    tokenizer.save_pretrained(folder)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    export.main(["--model", str(folder), "--format", "torch", "--output_dir", str(tmp_path / "out")])
    assert files.read_json(tmp_path / "out/results.json")["models"]["float32"]["largest_difference"] < 1e-5


def test_the_evaluation_reads_all_that_the_model_takes(classifier):
    tokenizer = export.AutoTokenizer.from_pretrained(classifier[0])
    whole, table = tiny_config(), tiny_config(astrocyte_code="learned", max_position_embeddings=24)
    models = [astroformer_hf.AstroformerForSequenceClassification(config) for config in (whole, table)]
    given = export.DataArguments(max_length=20)
    assert [export.max_length_of(model, tokenizer, export.DataArguments()) for model in models] == [None, 24]
    assert [export.max_length_of(model, tokenizer, given) for model in models] == [20, 20]
    with pytest.raises(ValueError, match="--max_length must be at most 24, which is all that the model takes, got 25"):
        export.max_length_of(models[1], tokenizer, export.DataArguments(max_length=25))


@needs_exporters
def test_a_model_that_lacks_weights_is_not_exported(classifier, tmp_path):
    folder, _ = classifier
    state = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in state.items() if not name.startswith("classifier")}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="must be a trained AstroformerForSequenceClassification; .* classifier.bias"):
        export.main(["--model", str(folder), "--format", "torch", "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "tflite"], "--format must be one of onnx, torch, got 'tflite'"),
        (["--quantize", "int4"], "--quantize must be int8, got 'int4'"),
        (["--format", "torch", "--quantize", "int8"], "--quantize int8 needs --format onnx, got --format torch"),
        (["--tolerance", "0"], "--tolerance must be positive, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        export.main(["--model", "x", "--output_dir", "y", *options])


@needs_exporters
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("AstroformerForMultipleChoice", [], "is an AstroformerForMultipleChoice; exported are"),
        (
            "AstroformerForMaskedLM",
            ["--evaluate"],
            "measures classifiers of texts and images, not AstroformerForMaskedLM",
        ),
    ],
)
def test_models_that_do_not_fit_are_named(name, options, message, classifier, tmp_path):
    folder, _ = classifier
    make_model(name, num_hidden_layers=1).save_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        export.main(["--model", str(folder), "--format", "torch", "--output_dir", str(tmp_path / "out"), *options])


@needs_exporters
def test_a_model_is_not_exported_over_itself(classifier):
    folder, _ = classifier
    (folder / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="--output_dir must be another folder than that of --model"):
        export.main(["--model", str(folder), "--format", "torch", "--output_dir", f"{folder}/../{folder.name}"])
    assert (folder / "results.json").exists()


def test_evaluation_wants_the_labels_of_the_model(classifier, tmp_path):
    model, data = classifier
    lines = "\n".join(json.dumps({"text": "a film", "label": label}) for label in ("worse", "worst"))
    for split in ("train", "validation"):
        (data / f"{split}.json").write_text(lines)
    options = ["--format", "torch", "--evaluate", "--dataset_dir", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"one label each of \['bad', 'good'\], got \['worse', 'worst'\]"):
        export.main(["--model", str(model), *options])


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(export, "NEEDED", {"transformers": "99.0", "torch": "2.0"})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ImportError, match=r"(?s)needs transformers>=99.0, onnxruntime .*pip install .*'onnxruntime'"):
        export.require_packages("onnx")
