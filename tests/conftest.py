# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
import os
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from astroformer_hf import AstroformerConfig, AstroformerVisionConfig


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

# Every arm, and every variant of the neuron-astrocyte arm that takes a path of its own through the code.
VARIANTS = {
    "learned": {"astrocyte_code": "learned"},
    "sinusoidal": {"astrocyte_code": "sinusoidal"},
    "activity": {"astrocyte_code": "activity"},
    "exp, sum": {"feature_map": "exp", "calcium_normalization": "sum"},
    "relu": {"feature_map": "relu", "astrocyte_code": "learned"},
    "favor": {"feature_map": "favor", "num_random_features": 24},
    "no astrocyte": {"use_astrocyte_hebbian": False},
    "no feedback": {"use_calcium_feedback": False},
    "wide": {"num_hidden_neurons": 12, "astrocyte_code": "sinusoidal"},
    "linear": {"attention_type": "linear"},
    "softmax": {"attention_type": "softmax"},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.compiler.reset()  # graphs of one test do not count against the next


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


@pytest.fixture(params=VARIANTS, ids=[name.replace(", ", "_").replace(" ", "_") for name in VARIANTS])
def variant(request):
    """Configuration fields of one variant of the attention."""
    return VARIANTS[request.param]
