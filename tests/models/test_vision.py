# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Images: sizes, the class token, the image processor, pipelines, and the training script."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from training.images import augment, digits, make_image_processor
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from variants import ROOT, VARIANTS, make_model, some_each_time, tiny_vision_config, whole_texts_only

from astroformer_hf import AstroformerForImageClassification, AstroformerVisionConfig


def images(*size, number=2):
    return torch.randn(number, 3, *size)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_patch_counts_where_it_is(variant, pooling):
    if pooling == "cls":
        whole_texts_only(variant, "no class token")
    model = make_model("AstroformerForImageClassification", pooling=pooling, **variant)
    pixels = images(16, 16)
    logits = model(pixels).logits
    for row, column in ((0, 0), (2, 1), (3, 3)):
        changed = pixels.clone()
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        assert (model(changed).logits - logits).abs().max() > 1e-5
    assert (model(pixels.flip(-1)).logits - logits).abs().max() > 1e-5
    assert (model(pixels.transpose(2, 3)).logits - logits).abs().max() > 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_sizes(variant, pooling):
    if pooling == "cls":
        whole_texts_only(variant, "no class token")
    model = make_model("AstroformerForImageClassification", pooling=pooling, **variant)
    pixels = images(16, 16)
    torch.testing.assert_close(model(pixels, interpolate_pos_encoding=True).logits, model(pixels).logits)
    for size in ((32, 32), (24, 8)):
        hidden_states = model.base_model(images(*size), interpolate_pos_encoding=True).last_hidden_state
        assert hidden_states.shape == (2, size[0] * size[1] // 16 + (pooling == "cls"), 32)
        assert hidden_states.isfinite().all()


def test_a_larger_image_of_the_same_scene_is_alike():
    # what interpolation is for: a model of small images sees a scene in a larger image of it
    torch.manual_seed(0)
    for code in ("learned", "sinusoidal", "activity"):
        model = make_model("AstroformerForImageClassification", astrocyte_code=code)
        scene = torch.nn.functional.interpolate(images(2, 2, number=8), size=(64, 64), mode="nearest")
        small = torch.nn.functional.interpolate(scene, size=(16, 16), mode="nearest")
        logits, larger = model(small).logits, model(scene, interpolate_pos_encoding=True).logits
        unrelated = (logits - logits.roll(1, 0)).norm()
        assert (logits - larger).norm() < 0.5 * unrelated, code


def test_sizes_as_pairs():
    config = tiny_vision_config(image_size=(8, 24), patch_size=[4, 8])
    assert config.grid == (2, 3)
    assert AstroformerForImageClassification(config)(images(8, 24)).logits.shape == (2, 2)


@pytest.mark.parametrize("name", some_each_time(["learned", "sinusoidal", "activity", "softmax"], ["sinusoidal"]))
def test_compiles_to_one_graph(name):
    model = make_model("AstroformerForImageClassification", num_hidden_layers=1, **VARIANTS[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in (16, 24, 32):
        pixels = images(size, size)
        output = compiled(pixels, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(output, model(pixels, interpolate_pos_encoding=True).logits, rtol=1e-4, atol=1e-5)


def test_one_graph_takes_labels_of_any_batch():
    model = make_model("AstroformerForImageClassification", num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch in (3, 2):  # from here on the graph is for any
        compiled(images(16, 16)[:1].expand(batch, -1, -1, -1))
    pixels, labels = images(16, 16)[:1].expand(4, -1, -1, -1), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(compiled(pixels, labels=labels).loss, model(pixels, labels=labels).loss)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 18}, "image_size must be a multiple of patch_size, got image_size 18 and patch_size 4"),
        ({"patch_size": 0}, "patch_size must be one or two numbers .* got 0"),
        ({"image_size": [16, 16, 16]}, "image_size must be one or two numbers from 1 to 100,000 pixels"),
        ({"num_channels": 0}, "num_channels must be positive, got 0"),
        ({"is_decoder": True}, "is_decoder must be False"),
        ({"image_sise": 16}, "did you mean 'image_size'"),
        ({"pooling": "max"}, "pooling .*'mean', 'cls', got 'max'"),
        ({"pooling": "last"}, "pooling .*'mean', 'cls', got 'last'"),
    ],
    ids=str,
)
def test_bad_configurations_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_vision_config(**changes)


def test_image_processor_travels_with_the_model(tmp_path):
    model = make_model("AstroformerForImageClassification", id2label={0: "dark", 1: "light"})
    with torch.no_grad():
        model.classifier.weight.zero_()
    model.save_pretrained(tmp_path)
    make_image_processor(16).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(Image.new("L", (40, 30), 128), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16)
    classify = pipeline("image-classification", model=str(tmp_path))
    answers = classify([Image.new("RGB", (50, 20)), Image.new("L", (16, 16))])
    assert [{a["label"] for a in answer} for answer in answers] == [{"dark", "light"}] * 2


def test_augmentation_shifts_and_mirrors():
    pixels = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).float()
    seen, mirrored = set(), 0
    for _ in range(200):
        output = augment(pixels, mirror=True)
        assert output.shape == pixels.shape
        centre = output[0, 0, 8, 7:10]
        step = (centre[1] - centre[0]).item()
        assert step in (1, -1) and torch.equal(output[0, 1] - output[0, 0], torch.full((16, 16), 256.0))
        mirrored += step == -1
        original = output[0, 0].flip(1) if step == -1 else output[0, 0]
        shift = int(original[8, 8].item()) - (8 * 16 + 8)
        seen.add((round(shift / 16), shift - 16 * round(shift / 16)))
    assert 60 < mirrored < 140
    assert seen == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    upright = augment(pixels, mirror=False)
    assert (upright[..., 8, 8] - upright[..., 8, 7]).min() > 0


def run_script(output_dir, scripts, *more):
    command = [
        *(str(ROOT / "scripts/train_image_classification.py"), "--output_dir", str(output_dir)),
        *("--use_cpu", "--disable_tqdm", "true", *more),
    ]
    return scripts.run(*command)


def test_script_learns_the_digits_that_are_on_every_machine(tmp_path, scripts):
    shape = ("--hidden_size", "32", "--num_hidden_layers", "2", "--patch_size", "2", "--learning_rate", "5e-3")
    run_script(tmp_path, scripts, *shape, "--num_train_epochs", "6", "--per_device_train_batch_size", "32")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metrics"]["accuracy"] > 0.6 and results["train_samples"] == 1437
    assert results["task"] == "image-classification" and results["dataset"] == "scikit-learn digits"
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.image_size == 8 and model.config.id2label[3] == "3"
    data = digits()["validation"][:200]
    answers = pipeline("image-classification", model=str(tmp_path), top_k=1)(data["image"])
    accuracy = np.mean([int(answer[0]["label"]) == label for answer, label in zip(answers, data["label"], strict=True)])
    assert accuracy > 0.6
    assert "scikit-learn digits" in (tmp_path / "README.md").read_text()
    again = tmp_path / "again"
    run_script(again, scripts, "--model_name_or_path", str(tmp_path), "--num_train_epochs", "1")
    tuned = json.loads((again / "results.json").read_text())
    assert tuned["metrics"]["accuracy"] > results["metrics"]["accuracy"] - 0.1
    assert tuned["config"]["patch_size"] == 2


def test_variants_are_those_of_text():
    for variant in VARIANTS.values():
        assert AstroformerVisionConfig(**variant).attention_type == variant.get("attention_type", "neuron_astrocyte")
