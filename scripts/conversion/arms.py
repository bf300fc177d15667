# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The arms of scripts/compare_conversions.py: a pretrained model, and each part of its new attention on and off."""

from dataclasses import dataclass

from comparison.presets import FLAG


LINEAR = {"window_size": 0, "sink_tokens": 0}
ASTROCYTE = {"astrocyte_code": "activity"}


@dataclass(frozen=True)
class Conversion:
    """How a model is converted.

    Args:
        options (`dict`): of scripts/convert.py, shared by the arms.
        arms (`dict`): by name, the options in which each arm differs.
        has_probe (`bool`): whether a linear probe of its embeddings is of interest.
        finetuning (`dict`, *optional*): of scripts/train_text_classification.py, with which the original, the original
            under each `attn_implementation` of this package, and the arms in `finetuned` are compared at a task.
        finetuned (`tuple`): names of arms.
    """

    options: dict
    arms: dict
    has_probe: bool = False
    finetuning: dict | None = None
    finetuned: tuple = ()


CONVERSIONS = {
    "minilm": Conversion(
        options={
            "window_size": 8,
            "sink_tokens": 1,
            "num_transfer": 1600,
            "num_distillation": 6400,
            "bf16": FLAG,
        },
        arms={
            "window_and_sinks": {},
            "linear": LINEAR,
            "linear_astrocyte": {**LINEAR, **ASTROCYTE},
            "window": {"sink_tokens": 0},
            "sinks": {"window_size": 0},
            "window_and_sinks_astrocyte": ASTROCYTE,
            "fixed_map": {"feature_map": "exp"},
        },
        has_probe=True,
        finetuning={
            "max_steps": 300,
            "max_length": 128,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 32,
            "eval_strategy": "steps",
            "eval_steps": 0.5,
            "save_strategy": "steps",
            "save_steps": 0.5,
            "save_total_limit": 1,
            "load_best_model_at_end": False,
            "max_eval_samples": 2000,
            "bf16": True,
            "disable_tqdm": True,
        },
        finetuned=("window_and_sinks", "linear"),
    ),
    "smollm2": Conversion(
        options={
            "window_size": 16,
            "sink_tokens": 4,
            "max_length": 256,
            "batch_size": 8,
            "num_transfer": 512,
            "num_distillation": 768,
            "num_validation": 200,
            "bf16": FLAG,
        },
        arms={
            "window_and_sinks": {},
            "window_and_sinks_half": {"keep_layers": 15},
            "linear": LINEAR,
            "linear_astrocyte": {**LINEAR, **ASTROCYTE},
            "window": {"sink_tokens": 0},
            "sinks": {"window_size": 0},
            "window_and_sinks_astrocyte": ASTROCYTE,
        },
    ),
}
