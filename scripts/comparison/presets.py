# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The presets: how large each task is trained, and with which learning rates and seeds."""

from dataclasses import dataclass

from comparison.arms import (
    ARMS,
    COVARIANCE_ARMS,
    FURTHER_SWITCH_ARMS,
    LONG_ARMS,
    OFF,
    SEGMENT_ARMS,
    SWITCH_ARMS,
)


@dataclass(frozen=True)
class Setting:
    """A task in a preset.

    Args:
        options (`dict`): of the training script, without their dashes: the skeleton and the training that all arms
            share, besides `SHARED`.
        rates (`tuple`): the learning rates that every arm is tried with.
        seeds (`tuple`): of the final runs; the rates are tried with the first.
        start_of_code (`dict`): for each astrocyte code, the fields of the configuration that say how it starts.
        forms (`dict`): by name, the fields of the configuration that arms start from, see `arms.Arm.base`.
        most_wider_rates (`int`): while the best learning rate of an arm is the largest or the smallest that was tried,
            twice or half of it is tried next; at most so many times on each side.
        further_arms (`tuple`): names of the arms that take another's learning rate and are trained at this task.
        main_arms (`tuple`): names of those with a learning rate of their own; all of the preset if there are none.
        further_seeds (`int`): how many of the seeds `further_arms` are trained with.
    """

    options: dict
    rates: tuple
    seeds: tuple
    start_of_code: dict
    forms: dict
    most_wider_rates: int = 0
    further_arms: tuple = ()
    main_arms: tuple = ()
    further_seeds: int = 2

    def trains(self, name, arm):
        """Whether an `Arm` of a name is trained at this task."""
        if arm.rate_of is not None:
            return name in self.further_arms
        return not self.main_arms or name in self.main_arms


# How the astrocyte starts was chosen in trial runs on the training and validation splits: on a line of tokens the code
# "activity" may start loud and positional codes may not; on a grid of patches it is the other way round.
ON_LINE = {
    "start_of_code": {
        "activity": {"astrocyte_scale": 3, "astrocyte_resting_activity": 3},
        "learned": {"astrocyte_scale": 1, "astrocyte_resting_activity": 0.05},
        "sinusoidal": {"astrocyte_scale": 1, "astrocyte_resting_activity": 0.05},
    },
    "forms": {
        "full": {"astrocyte_code": "activity", "presynaptic_alpha": 0.75},
        "paper": {**OFF, "use_astrocyte_hebbian": True, "astrocyte_code": "activity", "presynaptic_alpha": 0.75},
        "leaky": {"initial_memory_spans": (1, 32)},
        "best": {
            **OFF,
            "use_astrocyte_hebbian": True,
            "astrocyte_code": "activity",
            "presynaptic_alpha": 0.5,
            "presynaptic_target": "synapse",
            "calcium_sources": "all",
            "synaptic_decay": "gated",
            "initial_memory_spans": (1, 16, 128, 1024),
        },
    },
}
ON_GRID = {
    "start_of_code": {
        "activity": {"astrocyte_scale": 3, "astrocyte_resting_activity": 0.3},
        "learned": {"astrocyte_scale": 1, "astrocyte_resting_activity": 1},
        "sinusoidal": {"astrocyte_scale": 1, "astrocyte_resting_activity": 1},
    },
    "forms": {
        "full": {"astrocyte_code": "sinusoidal", "presynaptic_alpha": 0.75},
        "paper": {**OFF, "use_astrocyte_hebbian": True, "astrocyte_code": "sinusoidal", "presynaptic_alpha": 0.75},
        "leaky": {"initial_memory_spans": (1, 32)},
        "best": {
            **OFF,
            "use_astrocyte_hebbian": True,
            "astrocyte_code": "sinusoidal",
            "presynaptic_alpha": 0.5,
            "presynaptic_target": "synapse",
            "calcium_sources": "all",
            "synaptic_decay": "learned",
            "initial_memory_spans": (1, 32),
        },
    },
}

CAUSAL_FURTHER_ARMS = (*FURTHER_SWITCH_ARMS, "linear_covariance", "best_covariance")
GRID_FURTHER_ARMS = (
    *(name for name in FURTHER_SWITCH_ARMS if name.startswith(("code_", "response_", "synapse_"))),
    *COVARIANCE_ARMS,
)

FLAG = object()  # the value of an option that is given without one

# "exp" is the feature map that serves linear attention best. The model of the last step is measured, not the best along
# the way.
SHARED = {
    "feature_map": "exp",
    "eval_strategy": "steps",
    "eval_steps": 0.125,
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 1,
    "load_best_model_at_end": False,
    "logging_steps": 0.02,
    "disable_tqdm": True,
}
# A curve of 40 points on a part of the validation split costs less than one of eight on all of it.
CURVE = {"eval_steps": 0.025, "max_curve_samples": 500}
# Of the preset "smoke": the least that leaves a curve and a checkpoint half way.
SMOKE = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_steps": 8,
    "eval_steps": 0.25,
    "save_steps": 0.5,
}


def recall(num_pairs, num_layers, further_arms=(), main_arms=()):
    """Associative recall in the presets "switches" and "long"."""
    return Setting(
        options={
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": num_layers,
            "num_pairs": num_pairs,
            "num_train_examples": 51200,
            "num_eval_examples": 1000,
            "per_device_train_batch_size": 64,
            "max_steps": 800,
            "weight_decay": 0.1,  # chosen in trial runs, for softmax attention with decay
            **CURVE,
            "max_curve_samples": 200,
        },
        rates=(2e-3, 4e-3, 8e-3),
        seeds=(42, 43, 44),
        most_wider_rates=3,
        further_arms=further_arms,
        main_arms=main_arms,
        **ON_LINE,
    )


WHOLE_TEXT_ARMS = ("softmax", "linear", "softmax_decay", "paper", "best")
RECALL_ARMS = (
    "softmax",
    "softmax_convolution",
    "linear",
    "linear_convolution",
    "code_activity",
    "paper",
    "best_without_decay",
    "best",
)


def long_text(task_options, segment_length=None, further_arms=(), whole_text_arms=WHOLE_TEXT_ARMS):
    """A task of the preset "long", which `segment_length` also reads in segments."""
    in_segments = {**ON_LINE["forms"]["best"], "segment_length": segment_length}
    return Setting(
        options={
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "attention_dropout": 0,
            **task_options,
            **CURVE,
            "max_curve_samples": 200,
        },
        rates=(1e-3, 2e-3, 4e-3),
        seeds=(42, 43, 44),
        most_wider_rates=3,
        main_arms=(*whole_text_arms, *(["segments"] if segment_length else [])),
        further_arms=further_arms,
        further_seeds=3,
        start_of_code=ON_LINE["start_of_code"],
        forms={**ON_LINE["forms"], "segments": in_segments},
    )


PRESETS = {
    "smoke": {
        "docstrings": Setting(
            options={
                **SMOKE,
                "max_length": 48,
                "vocab_size": 1000,
            },
            rates=(1e-3, 4e-3),
            seeds=(42, 43),
            **ON_LINE,
        ),
        "digits": Setting(
            options={
                **SMOKE,
                "max_train_samples": 256,
                "max_eval_samples": 80,
            },
            rates=(1e-3, 4e-3),
            seeds=(42, 43),
            **ON_GRID,
        ),
        "characters": Setting(
            options={
                **SMOKE,
                "block_size": 64,
                "max_train_samples": 300,
                "max_eval_samples": 40,
                "num_sample_tokens": 20,
            },
            rates=(1e-3, 4e-3),
            seeds=(42, 43),
            **ON_LINE,
        ),
        "mqar4_1layer": Setting(
            options={
                **SMOKE,
                "num_pairs": 4,
                "num_train_examples": 1024,
                "num_eval_examples": 60,
                "max_curve_samples": 20,
            },
            rates=(4e-3,),
            seeds=(42,),
            **ON_LINE,
        ),
    },
    "cpu": {
        "imdb": Setting(
            options={
                "hidden_size": 64,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "max_length": 256,
                "num_train_epochs": 2,
                "attention_dropout": 0,
            },
            rates=(5e-4, 1e-3, 2e-3),
            seeds=(42, 43, 44),
            **ON_LINE,
        ),
        "cifar10": Setting(
            options={
                "hidden_size": 64,
                "num_attention_heads": 2,
                "num_hidden_layers": 4,
                "num_train_epochs": 3,
            },
            rates=(1e-3, 2e-3, 4e-3),
            seeds=(42, 43),
            **ON_GRID,
        ),
        "shakespeare": Setting(
            options={
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "block_size": 64,
                "per_device_train_batch_size": 12,
                "per_device_eval_batch_size": 256,
                "max_steps": 2000,
                "dropout": 0,
            },
            rates=(1.5e-3, 3e-3, 6e-3),
            seeds=(42, 43, 44),
            **ON_LINE,
        ),
        "wikitext2": Setting(
            options={
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "tokenizer": "bpe",
                "block_size": 128,
                "num_train_epochs": 2,
                "attention_dropout": 0,
            },
            rates=(1e-3, 2e-3, 4e-3),
            seeds=(42, 43, 44),
            **ON_LINE,
        ),
    },
    "switches": {
        "shakespeare": Setting(
            options={
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "block_size": 64,
                "per_device_train_batch_size": 12,
                "per_device_eval_batch_size": 32,
                "max_steps": 2000,
                "dropout": 0,
                **CURVE,
                "max_curve_samples": 200,
            },
            rates=(1.5e-3, 3e-3, 6e-3),
            seeds=(42, 43, 44),
            most_wider_rates=3,
            further_arms=CAUSAL_FURTHER_ARMS,
            **ON_LINE,
        ),
        "mqar8_2layers": recall(8, 2, CAUSAL_FURTHER_ARMS),
        "mqar8_1layer": recall(8, 1),
        "mqar4_2layers": recall(4, 2),
        "mqar4_1layer": recall(4, 1),
        "shakespeare256": Setting(
            options={
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 4,
                "block_size": 256,
                "per_device_train_batch_size": 6,
                "per_device_eval_batch_size": 16,
                "max_steps": 1000,
                "dropout": 0,
                **CURVE,
                "max_curve_samples": 50,
            },
            rates=(1.5e-3, 3e-3, 6e-3),
            seeds=(42, 43, 44),
            most_wider_rates=3,
            **ON_LINE,
        ),
        "imdb": Setting(
            options={
                "hidden_size": 64,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "max_length": 256,
                "num_train_epochs": 2,
                "attention_dropout": 0,
                **CURVE,
            },
            rates=(5e-4, 1e-3, 2e-3),
            seeds=(42, 43, 44),
            most_wider_rates=3,
            further_arms=tuple(COVARIANCE_ARMS),
            **ON_LINE,
        ),
        "cifar10": Setting(
            options={
                "hidden_size": 64,
                "num_attention_heads": 2,
                "num_hidden_layers": 4,
                "num_train_epochs": 3,
                **CURVE,
            },
            rates=(1e-3, 2e-3, 4e-3),
            seeds=(42, 43, 44),
            most_wider_rates=3,
            further_arms=GRID_FURTHER_ARMS,
            **ON_GRID,
        ),
    },
    "long": {
        "bytes1024": long_text(
            {
                "tokenizer": "bytes",
                "max_length": 1024,
                "max_train_samples": 10000,
                "max_eval_samples": 2500,
                "num_train_epochs": 2,
            },
            segment_length=128,
            further_arms=tuple(SEGMENT_ARMS),
        ),
        "listops_short": long_text({"tokenizer": "words", "max_length": 256, "num_train_epochs": 4}),
        **{f"mqar{pairs}_1layer": recall(pairs, 1, main_arms=RECALL_ARMS) for pairs in (8, 16, 32)},
        "bytes4096": long_text(
            {
                "tokenizer": "bytes",
                "max_length": 4096,
                "max_train_samples": 5000,
                "max_eval_samples": 2500,
                "num_train_epochs": 2,
            },
            segment_length=512,
            whole_text_arms=("softmax", "linear", "best"),
        ),
        # one segment without a memory: a sequence of pixels
        "pixels": long_text(
            {
                "patch_size": 1,
                "segment_length": 1024,
                "num_memory_tokens": 0,
                "max_train_samples": 10000,
                "max_eval_samples": 2500,
                "num_train_epochs": 2,
            },
            whole_text_arms=("softmax", "linear", "best"),
        ),
        "listops": long_text(
            {"tokenizer": "words", "max_length": 2048, "num_train_epochs": 1},
            segment_length=256,
            whole_text_arms=("softmax", "linear", "best"),
        ),
    },
    "paper": {
        "imdb": Setting(
            options={
                "hidden_size": 256,
                "num_attention_heads": 8,
                "num_hidden_layers": 4,
                "max_length": 512,
                "vocab_size": 16000,
                "num_train_epochs": 6,
                "bf16": FLAG,
                "dataloader_num_workers": 4,
                "attention_dropout": 0,
            },
            rates=(2.5e-4, 5e-4, 1e-3, 2e-3),
            seeds=(42, 43, 44, 45, 46),
            **ON_LINE,
        ),
        "cifar10": Setting(
            options={
                "hidden_size": 384,
                "num_attention_heads": 6,
                "num_hidden_layers": 6,
                "num_train_epochs": 60,
                "per_device_train_batch_size": 128,
                "dropout": 0.1,
                "bf16": FLAG,
                "dataloader_num_workers": 8,
                "attention_dropout": 0,
            },
            rates=(2.5e-4, 5e-4, 1e-3, 2e-3),
            seeds=(42, 43, 44, 45, 46),
            **ON_GRID,
        ),
        "shakespeare": Setting(
            options={
                "hidden_size": 384,
                "num_attention_heads": 6,
                "num_hidden_layers": 6,
                "block_size": 256,
                "per_device_train_batch_size": 64,
                "max_steps": 5000,
                "dropout": 0.2,
                "bf16": FLAG,
                "attention_dropout": 0,
            },
            rates=(5e-4, 1e-3, 2e-3, 4e-3),
            seeds=(42, 43, 44, 45, 46),
            **ON_LINE,
        ),
        "wikitext2": Setting(
            options={
                "hidden_size": 384,
                "num_attention_heads": 6,
                "num_hidden_layers": 6,
                "tokenizer": "bpe",
                "vocab_size": 16000,
                "block_size": 512,
                "per_device_train_batch_size": 16,
                "num_train_epochs": 10,
                "dropout": 0.2,
                "bf16": FLAG,
                "attention_dropout": 0,
            },
            rates=(2.5e-4, 5e-4, 1e-3, 2e-3),
            seeds=(42, 43, 44, 45, 46),
            **ON_LINE,
        ),
    },
}
SMOKE_ARMS = ("softmax", "linear", "full")


def arms_of(preset):
    """The arms that a preset may train, by name."""
    return {"switches": SWITCH_ARMS, "long": LONG_ARMS}.get(preset, ARMS)


def default_arms(preset, task=None):
    """The arms of a preset, or of a task in it, in the order in which they are trained."""
    if preset == "smoke":
        return SMOKE_ARMS
    settings = PRESETS[preset].values() if task is None else [PRESETS[preset][task]]
    return tuple(name for name, arm in arms_of(preset).items() if any(own.trains(name, arm) for own in settings))


def default_seeds(preset, task, arm):
    """The seeds that an arm is trained with at a task."""
    setting = PRESETS[preset][task]
    return setting.seeds if arms_of(preset)[arm].rate_of is None else setting.seeds[: setting.further_seeds]
