# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading: through the Auto classes, in other processes, with and without the package installed."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, tiny_config
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import astroformer_hf
from astroformer_hf import AstroformerConfig, AstroformerForSequenceClassification, AstroformerModel
from astroformer_hf.configuration_astroformer import AUTO_MAP


CODE_FILES = {
    "astrocyte_code.py",
    "cache_astroformer.py",
    "configuration_astroformer.py",
    "modeling_astroformer.py",
    "neuron_astrocyte_attention.py",
    "token_layout.py",
}
LOAD = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
folder, trust = sys.argv[1], sys.argv[2] == "trust"
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
for auto_class in (AutoModelForSequenceClassification, AutoModel):
    model, info = auto_class.from_pretrained(folder, trust_remote_code=trust, output_loading_info=True)
    dropped = {"classifier.weight", "classifier.bias"} if auto_class is AutoModel else set()
    assert set(info["unexpected_keys"]) == dropped and not info["missing_keys"] and not info["mismatched_keys"], info
    assert type(model).__module__.startswith("transformers_modules" if trust else "astroformer_hf"), type(model)
    expected = torch.load(f"{folder}/expected.pt", weights_only=True)
    for name, tensor in model.state_dict().items():
        prefix = "" if auto_class is not AutoModel else "astroformer."
        assert torch.equal(tensor, expected["state"][prefix + name]), name
    with torch.no_grad():
        output = model.eval()(expected["input_ids"], attention_mask=expected["attention_mask"])
    kind = "logits" if auto_class is not AutoModel else "last_hidden_state"
    assert torch.equal(output[kind], expected[kind]), kind
model.save_pretrained(f"{folder}/again")
print("equal")
"""


def save_with_expected_outputs(model, folder):
    model.save_pretrained(folder)
    inputs = {"input_ids": torch.randint(1, 50, (2, 9)), "attention_mask": torch.tensor([[1] * 9, [0] * 3 + [1] * 6])}
    with torch.no_grad():
        expected = {
            "state": model.state_dict(),
            "logits": model(**inputs).logits,
            "last_hidden_state": model.astroformer(**inputs).last_hidden_state,
            **inputs,
        }
    torch.save(expected, folder / "expected.pt")


def run_elsewhere(arguments, folder, package):
    """Runs Python in a fresh process that can import the package, or cannot."""
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "modules"),
        "PYTHONPATH": str(ROOT) if package else "",
        "HF_HUB_OFFLINE": "1",
    }
    blocker = ""
    if not package:  # also where it is installed
        blocker = (
            "import importlib.abc, sys\n"
            "class Absent(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] == 'astroformer_hf':\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Absent())\n"
        )
    script, *rest = arguments
    return subprocess.run(
        [sys.executable, "-c", blocker + script, *rest], env=environment, cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("package", [True, False], ids=["installed", "remote_code"])
def test_equal_bit_for_bit_in_another_process(variant, package, tmp_path):
    model = AstroformerForSequenceClassification(tiny_config(**variant)).eval()
    save_with_expected_outputs(model, tmp_path)
    assert CODE_FILES <= {path.name for path in tmp_path.iterdir()}
    trust = "package" if package else "trust"
    result = run_elsewhere([LOAD, str(tmp_path), trust], tmp_path, package)
    assert result.returncode == 0 and result.stdout.strip().endswith("equal"), result.stdout + result.stderr
    # what was loaded from remote code can be saved and shared again
    assert CODE_FILES <= {path.name for path in (tmp_path / "again").iterdir()}
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP


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


def test_registered_with_the_auto_classes_also_twice():
    importlib.reload(astroformer_hf)
    assert type(AutoConfig.for_model("astroformer")) is AstroformerConfig
    config = tiny_config()
    assert type(AutoModel.from_config(config)) is AstroformerModel
    assert type(AutoModelForSequenceClassification.from_config(config)) is AstroformerForSequenceClassification


def test_the_map_of_classes_names_what_exists():
    for auto_class, reference in AUTO_MAP.items():
        module, name = reference.split(".")
        assert hasattr(importlib.import_module(f"astroformer_hf.{module}"), name), auto_class
        assert CODE_FILES >= {f"{module}.py"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_keep_their_dtype(dtype, tmp_path):
    model = AstroformerForSequenceClassification(tiny_config()).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    ids = torch.randint(1, 50, (2, 9))
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
