# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What tests run over: every variant of the attention, every class with its inputs, and small models of them."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

import astroformer_hf
from astroformer_hf import AstroformerConfig, AstroformerVisionConfig, native_library
from astroformer_hf.astrocyte_code import ASTROCYTE_CODES
from astroformer_hf.model_classes import IMAGE_MODELS, TEXT_MODELS


ROOT = Path(__file__).resolve().parent.parent

# Where there is one, the C++ backend has to be built: an error in its source must not look like a machine without it.
COMPILER = next(filter(None, map(shutil.which, native_library.COMPILERS)), None) if sys.platform == "linux" else None
CPU_BACKENDS = ["plain", *(["cpp"] if COMPILER else [])]

# What the paper does not have, off.
SWITCHES_OFF = {
    "synaptic_decay": "none",
    "presynaptic_target": "response",
    "calcium_sources": "neurons",
    "hebbian_rule": "correlation",
}
# Every arm, and every variant of the neuron-astrocyte arm that takes a path of its own through the code.
VARIANTS = {
    **{code: {"astrocyte_code": code} for code in ASTROCYTE_CODES},
    **{f"{code}, switches off": {"astrocyte_code": code, **SWITCHES_OFF} for code in ("learned", "activity")},
    "elu, sum": {"feature_map": "elu", "calcium_normalization": "sum", "presynaptic_target": "response"},
    "relu": {"feature_map": "relu", "astrocyte_code": "learned"},
    "favor": {"feature_map": "favor", "num_random_features": 24, **SWITCHES_OFF},
    "no astrocyte": {"use_astrocyte_hebbian": False},
    "no feedback": {"use_calcium_feedback": False, "synaptic_decay": "none"},
    "leaky": {"synaptic_decay": "learned"},
    "covariance": {"hebbian_rule": "covariance", "synaptic_decay": "learned"},
    "segments": {"segment_length": 4, "num_memory_tokens": 2},
    "wide": {"num_hidden_neurons": 12, "astrocyte_code": "sinusoidal"},
    "linear": {"attention_type": "linear"},
    "softmax": {"attention_type": "softmax"},
    "softmax, leaky": {"attention_type": "softmax", "synaptic_decay": "learned"},
}

# Of these, the ones that tests over variants take each time: one of every kind. The others run with --all.
EACH_TIME = (
    *("activity", "learned, switches off", "elu, sum", "favor", "no feedback", "covariance"),
    *("linear", "softmax, leaky"),
)


def whole_texts_only(variant, reason):
    """Skips a test of what models that read in segments do not have."""
    if "segment_length" in variant:
        pytest.skip(f"in segments: {reason}")


# What a process runs first that is not to have the package, where it is installed.
HIDE_PACKAGE = f"""
import sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
from sharing.compare_loading import HidePackage
sys.meta_path.insert(0, HidePackage())
"""


def some_each_time(cases, each_time):
    """`cases` as parameters of a test, of which a run without `--all` leaves out those that are not in `each_time`."""
    cases = list(cases)
    assert set(each_time) <= set(cases), each_time
    left = [case if isinstance(case, tuple) else (case,) for case in cases if case not in each_time]
    return [*each_time, *(pytest.param(*case, marks=pytest.mark.on_demand) for case in left)]


def tiny_config(**changes):
    """A configuration for tests: small, and with initial weights large enough for every term to matter."""
    settings = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return AstroformerConfig(**{**settings, **changes})


def tiny_vision_config(**changes):
    """The same for images."""
    settings = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.2,
    }
    return AstroformerVisionConfig(**{**settings, **changes})


def _text(batch=4, length=9, **labels):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, :3] = 0
    mask[2, 6:] = 0
    return {"input_ids": torch.randint(1, 50, (batch, length)), "attention_mask": mask, **labels}


def _choices():
    inputs = _text(batch=12)
    return {name: x.view(4, 3, 9) for name, x in inputs.items()} | {"labels": torch.tensor([0, 2, 1, 1])}


CLASSES = torch.tensor([0, 1, 1, 0])

# Of every class, fields of its configuration, and inputs with labels.
EXAMPLES = {
    "AstroformerModel": ({}, _text),
    "AstroformerForCausalLM": ({}, lambda: _text(labels=torch.randint(1, 50, (4, 9)))),
    "AstroformerForMaskedLM": ({}, lambda: _text(labels=torch.randint(1, 50, (4, 9)))),
    "AstroformerForSequenceClassification": ({}, lambda: _text(labels=CLASSES)),
    "AstroformerForTokenClassification": ({"num_labels": 3}, lambda: _text(labels=torch.randint(0, 3, (4, 9)))),
    "AstroformerForQuestionAnswering": (
        {},
        lambda: _text(start_positions=torch.tensor([0, 3, 2, 5]), end_positions=torch.tensor([1, 5, 2, 8])),
    ),
    "AstroformerForMultipleChoice": ({}, _choices),
    "AstroformerVisionModel": ({}, lambda: {"pixel_values": torch.randn(4, 3, 16, 16)}),
    "AstroformerForImageClassification": (
        {},
        lambda: {"pixel_values": torch.randn(4, 3, 16, 16), "labels": CLASSES},
    ),
}
# The same with the class's Auto class before them.
AUTO_CLASSES = {name: auto_name for models in (TEXT_MODELS, IMAGE_MODELS) for auto_name, name in models.items()}
HEADS = {name: (AUTO_CLASSES[name], *example) for name, example in EXAMPLES.items()}
VISION = tuple(IMAGE_MODELS.values())
LABELS = ("labels", "start_positions", "end_positions")


def without_labels(inputs):
    return {name: x for name, x in inputs.items() if name not in LABELS}


def make_model(name, **changes):
    """A small model of a class of `HEADS`, not in training mode."""
    config = (tiny_vision_config if name in VISION else tiny_config)(**HEADS[name][1], **changes)
    return getattr(astroformer_hf, name)(config).eval()
