# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading: through the Auto classes, in other processes, with and without the package installed."""

import importlib
import itertools
import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification
from variants import HEADS, HIDE_PACKAGE, VARIANTS, VISION, make_model, tiny_config, without_labels

import astroformer_hf
from astroformer_hf import AstroformerConfig, AstroformerForSequenceClassification, AstroformerModel


CODE_FILES = {
    "astrocyte_code.py",
    "cache_astroformer.py",
    "configuration_astroformer.py",
    "forward_keywords.py",
    "head_shards.py",
    "input_checks.py",
    "library_compatibility.py",
    "loading.py",
    "losses.py",
    "model_classes.py",
    "modeling_astroformer.py",
    "packed_rows.py",
    "attention_operation.py",
    "layers_astroformer.py",
    "token_layout.py",
    "traced_values.py",
}
# Every variant, in one class after the other; in all of these with --all.
SAVED = ("AstroformerForSequenceClassification", "AstroformerForCausalLM", *VISION)
SAVED_VARIANTS = list(zip(itertools.cycle(SAVED), VARIANTS, strict=False))
if os.environ.get("ASTROFORMER_TESTS") == "all":
    SAVED_VARIANTS = list(itertools.product(SAVED, VARIANTS))
VISION_CODE_FILES = {"configuration_astroformer_vision.py", "modeling_astroformer_vision.py"}
LOAD = """
import pathlib, sys, torch, transformers
root, trust = pathlib.Path(sys.argv[1]), sys.argv[2] == "trust"
if trust:
    assert "astroformer_hf" not in sys.modules
    try:
        import astroformer_hf
    except ImportError:
        pass
    else:
        raise SystemExit("the package must not be importable here")
else:
    import astroformer_hf
for folder in sorted(root.iterdir()):
    if not (folder / "expected.pt").exists():
        continue
    expected = torch.load(folder / "expected.pt", weights_only=True)
    # as what it is, and as the bare model inside
    for auto_name, prefix, outputs in (
        (expected["auto_class"], "", expected["outputs"]),
        ("AutoModel", expected["prefix"], expected["bare_outputs"]),
    ):
        auto_class = getattr(transformers, auto_name)
        model, info = auto_class.from_pretrained(folder, trust_remote_code=trust, output_loading_info=True)
        dropped = {name for name in expected["state"] if not name.startswith(prefix)} - {"lm_head.weight"}
        assert set(info["unexpected_keys"]) - {"lm_head.weight"} == dropped, (folder, info)
        assert not info["missing_keys"] and not info["mismatched_keys"], (folder, info)
        assert type(model).__module__.startswith("transformers_modules" if trust else "astroformer_hf"), type(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected["state"][prefix + name]), (folder, name)
        inputs = expected["inputs"]
        if prefix:
            inputs = {n: x.flatten(0, 1) if n != "pixel_values" and x.dim() == 3 else x for n, x in inputs.items()}
        with torch.no_grad():
            loaded = model.eval()(**inputs)
        for name, tensor in outputs.items():
            assert torch.equal(loaded[name], tensor), (folder, name)
    model.save_pretrained(folder / "again")
    print("equal", folder.name)
"""


def save_with_expected_outputs(model, inputs, folder):
    """Saves a model, and beside it what it answers."""
    name = type(model).__name__
    model.save_pretrained(folder)
    inputs = without_labels(inputs)
    bare_inputs = {key: x.flatten(0, 1) if key != "pixel_values" and x.dim() == 3 else x for key, x in inputs.items()}
    with torch.no_grad():
        outputs, bare_outputs = model.eval()(**inputs), model.base_model(**bare_inputs)
    expected = {
        "auto_class": HEADS[name][0],
        "prefix": "" if model.base_model is model else f"{model.base_model_prefix}.",
        "state": model.state_dict(),
        "inputs": inputs,
        "outputs": {key: x for key, x in outputs.items() if torch.is_tensor(x)},
        "bare_outputs": {"last_hidden_state": bare_outputs.last_hidden_state},
    }
    assert expected["outputs"]
    torch.save(expected, folder / "expected.pt")


def overfit(model, inputs, steps=20):
    """Trains on one batch; the losses."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=8e-3)
    losses = []
    for _ in range(steps):
        output = model(**inputs)
        loss = output.loss if "loss" in output else output.last_hidden_state[..., 0].sub(1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def check_elsewhere(folders, root, package, server):
    """Each folder's model answers the same in another process; what was loaded there can be saved and shared again."""
    program = root / "load.py"
    program.write_text(("" if package else HIDE_PACKAGE) + LOAD)
    result = server.run(program, root, "package" if package else "trust", cwd=root)
    assert result.stdout.split() == [word for folder in sorted(folders) for word in ("equal", folder.name)]
    for folder in folders:
        kind = AstroformerConfig
        expected = set(CODE_FILES)
        if "vision" in json.loads((folder / "config.json").read_text())["model_type"]:
            kind, expected = astroformer_hf.AstroformerVisionConfig, expected | VISION_CODE_FILES
        assert expected <= {path.name for path in folder.iterdir()}
        assert expected <= {path.name for path in (folder / "again").iterdir()}
        assert json.loads((folder / "again" / "config.json").read_text())["auto_map"] == kind.auto_map_of_class


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a trained model of every class, and with one of every variant; and the losses of the training."""
    torch.manual_seed(0)
    root, losses = tmp_path_factory.mktemp("saved"), {}
    for name, (_, _, make_inputs) in HEADS.items():
        model, inputs = make_model(name), make_inputs()
        losses[name] = overfit(model, inputs)
        save_with_expected_outputs(model, inputs, root / name)
    for name, variant in SAVED_VARIANTS:
        folder = root / f"{name}_{list(VARIANTS).index(variant):02}"
        save_with_expected_outputs(make_model(name, **VARIANTS[variant]), HEADS[name][2](), folder)
    return root, losses


def test_every_class_learns(saved, head):
    losses = saved[1][head]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("package", [True, False], ids=["installed", "remote_code"])
def test_every_class_and_variant_is_equal_in_another_process(package, saved, tmp_path, scripts, strangers):
    root = tmp_path / "models"
    shutil.copytree(saved[0], root)
    folders = list(root.iterdir())
    assert len(folders) == len(HEADS) + len(SAVED_VARIANTS)
    check_elsewhere(folders, root, package, scripts if package else strangers)


def test_loading_builds_every_buffer_and_parameter(variant, tmp_path):
    model = AstroformerForSequenceClassification(tiny_config(**variant))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    loaded = AstroformerForSequenceClassification.from_pretrained(tmp_path)
    assert {n: b.shape for n, b in loaded.named_buffers()} == {n: b.shape for n, b in model.named_buffers()}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_new_head_on_a_bare_encoder_is_initialised(variant, tmp_path):
    encoder = AstroformerModel(tiny_config(**variant))
    encoder.save_pretrained(tmp_path)
    model, info = AstroformerForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert 0.05 < model.classifier.weight.std() < 0.5 and (model.classifier.bias == 0).all()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.astroformer.state_dict()[name], tensor), name


def test_another_arm_takes_over_the_common_weights(tmp_path):
    AstroformerModel(tiny_config(attention_type="softmax")).save_pretrained(tmp_path)
    model, info = AstroformerModel.from_pretrained(
        tmp_path, attention_type="neuron_astrocyte", output_loading_info=True
    )
    assert info["missing_keys"] and all(".astrocyte_code." in name for name in info["missing_keys"])
    for name, parameter in model.named_parameters():
        if name.endswith("astrocyte_code.weight"):
            assert torch.equal(parameter, torch.eye(8).expand(4, 8, 8)), name
    assert model(torch.ones(1, 5).long()).last_hidden_state.isfinite().all()


def test_registered_with_the_auto_classes_also_twice(head):
    importlib.reload(astroformer_hf)
    assert type(AutoConfig.for_model("astroformer")) is AstroformerConfig
    model = make_model(head)
    auto_class = getattr(transformers, HEADS[head][0])
    assert type(auto_class.from_config(model.config)) is type(model)
    reference = model.config.auto_map_of_class[HEADS[head][0]]
    assert reference == f"{type(model).__module__.split('.')[1]}.{head}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_keep_their_dtype(dtype, tmp_path):
    model = AstroformerForSequenceClassification(tiny_config()).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    ids = torch.randint(1, 50, (2, 9))
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
