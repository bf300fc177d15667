# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Arguments that the training scripts share: model, data, and defaults of the training."""

import math
from dataclasses import MISSING, dataclass, field, fields

import datasets
import torch
import transformers
from transformers import HfArgumentParser, TrainingArguments

from astroformer_hf import AstroformerConfig
from astroformer_hf.configuration_astroformer import CHOICES
from training.files import refuse_same_folder


def choices_of(name):
    """The values that a field of the configuration may have now; a registry may grow while a program runs."""
    return tuple(CHOICES[name])


def default_of(option):
    """The value of a dataclass's field that was not given."""
    return option.default if option.default_factory is MISSING else option.default_factory()


class Choices:
    """The `choices` of an option, looked up whenever an argument is checked or help is shown.

    Args:
        name (`str`): the field of the configuration that the option sets.
    """

    def __init__(self, name):
        self.name = name

    def __iter__(self):
        return iter(choices_of(self.name))


def with_default(option, default):
    """An option of `ModelArguments` with another default, for a class that is derived from it."""
    (known,) = (known for known in fields(ModelArguments) if known.name == option)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=known.metadata)
    return field(default=default, metadata=known.metadata)


MEMORY_OPTIONS = ("num_memory_tokens", "memory_retention", "memory_backprop")


@dataclass
class ModelArguments:
    """The model: a checkpoint, or the shape of a new one."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune, with its processor. Without it, train from scratch."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention of a checkpoint of the library: neuron_astrocyte, linear, or one of its own."},
    )
    attention_type: str = field(
        default=AstroformerConfig.attention_type,
        metadata={"help": "The arm of the comparison.", "choices": Choices("attention_type")},
    )
    astrocyte_code: str = field(
        default=AstroformerConfig.astrocyte_code,
        metadata={"help": "R, the astrocyte code.", "choices": Choices("astrocyte_code")},
    )
    feature_map: str = field(
        default=AstroformerConfig.feature_map,
        metadata={"help": "phi, the feature map.", "choices": Choices("feature_map")},
    )
    presynaptic_alpha: float = field(
        default=AstroformerConfig.presynaptic_alpha, metadata={"help": "Exponent of the calcium, in (0, 1]."}
    )
    use_astrocyte_hebbian: bool = field(default=True, metadata={"help": "Add H_astro."})
    use_calcium_feedback: bool = field(default=True, metadata={"help": "Divide by the calcium response."})
    calcium_normalization: str = field(
        default=AstroformerConfig.calcium_normalization,
        metadata={"help": "Over the tokens.", "choices": Choices("calcium_normalization")},
    )
    astrocyte_scale: float = field(
        default=AstroformerConfig.astrocyte_scale, metadata={"help": "Scale of the coupling between processes."}
    )
    astrocyte_resting_activity: float = field(
        default=AstroformerConfig.astrocyte_resting_activity,
        metadata={"help": "How loud the astrocyte is before training, in units of an untrained neuron."},
    )
    synaptic_decay: str | None = field(
        default=AstroformerConfig.synaptic_decay,
        metadata={
            "help": "Whether and how synapses leak. Default: gated for texts, learned for images, none in other arms.",
            "choices": Choices("synaptic_decay"),
        },
    )
    initial_memory_spans: list[float] = field(
        default_factory=lambda: list(AstroformerConfig.initial_memory_spans),
        metadata={"help": "Tokens that the first and the last head, or more, remember at first, where synapses leak."},
    )
    presynaptic_target: str = field(
        default=AstroformerConfig.presynaptic_target,
        metadata={"help": "Where --presynaptic_alpha acts.", "choices": Choices("presynaptic_target")},
    )
    calcium_sources: str = field(
        default=AstroformerConfig.calcium_sources,
        metadata={"help": "What raises the calcium.", "choices": Choices("calcium_sources")},
    )
    hebbian_rule: str = field(
        default=AstroformerConfig.hebbian_rule,
        metadata={"help": "What plasticity follows.", "choices": Choices("hebbian_rule")},
    )
    segment_length: int | None = field(
        default=None, metadata={"help": "Read texts (or patches, as a sequence) in segments of so many tokens."}
    )
    num_memory_tokens: int = field(
        default=AstroformerConfig.num_memory_tokens, metadata={"help": "Memory tokens before each segment."}
    )
    memory_retention: str = field(
        default=AstroformerConfig.memory_retention,
        metadata={"help": "How strong the memory is.", "choices": Choices("memory_retention")},
    )
    memory_backprop: str = field(
        default=AstroformerConfig.memory_backprop,
        metadata={"help": "Gradients through the memory: replay, full, or through how many memories."},
    )
    short_convolution: int | None = field(
        default=None,
        metadata={"help": "Convolve queries, keys and values over this many tokens, as a control; causal models only."},
    )
    num_hidden_layers: int = field(default=2, metadata={"help": "Blocks of a new model."})
    hidden_size: int = field(default=128, metadata={"help": "Width of a new model."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of a new model."})
    num_hidden_neurons: int | None = field(
        default=None, metadata={"help": "m, the size of queries and keys per head. Default: the head size."}
    )
    intermediate_size: int | None = field(default=None, metadata={"help": "Default: four times the hidden size."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of a new model, in attention and elsewhere."})
    attention_dropout: float | None = field(
        default=None, metadata={"help": "Dropout in attention. Default: as elsewhere."}
    )
    initializer_range: float | None = field(
        default=None,
        metadata={"help": "Standard deviation of initial weights. Default: 0.02 as for 768 wide, in 1 / sqrt(width)."},
    )

    def __post_init__(self):
        given = [
            f"--{option.name}"
            for option in fields(self)
            if option.name not in ("model_name_or_path", "trust_remote_code", "attn_implementation")
            and getattr(self, option.name) != default_of(option)
        ]
        if self.model_name_or_path and given:
            source = f"--model_name_or_path {self.model_name_or_path!r}"
            raise ValueError(f"{', '.join(given)} shape a new model, but {source} has its shape")
        lost = [f"--{name}" for name in MEMORY_OPTIONS if f"--{name}" in given]
        if lost and self.segment_length is None:
            raise ValueError(f"{', '.join(lost)} change nothing without --segment_length, which reads in segments")
        if self.attn_implementation and not self.model_name_or_path:
            raise ValueError(
                f"--attn_implementation {self.attn_implementation!r} is for a checkpoint of the library, given by "
                "--model_name_or_path; of a new model --attention_type says the attention"
            )

    @property
    def source(self):
        """Arguments for `from_pretrained`, None for a new model."""
        if not self.model_name_or_path:
            return None
        return {
            "pretrained_model_name_or_path": self.model_name_or_path,
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def attention(self):
        """Further arguments for `from_pretrained` of a model."""
        return {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}

    @property
    def architecture(self):
        """The configuration fields of a new model that text and images share."""
        same = (
            *("attention_type", "astrocyte_code", "feature_map", "presynaptic_alpha", "use_astrocyte_hebbian"),
            *("use_calcium_feedback", "calcium_normalization", "astrocyte_scale", "astrocyte_resting_activity"),
            *("synaptic_decay", "initial_memory_spans", "presynaptic_target", "calcium_sources", "hebbian_rule"),
            *("num_hidden_layers", "hidden_size", "num_attention_heads"),
            *("segment_length", "num_memory_tokens", "memory_retention"),
        )
        backprop = self.memory_backprop
        return {
            **{name: getattr(self, name) for name in same},
            "memory_backprop": int(backprop) if backprop.isdecimal() else backprop,
            "num_hidden_neurons": self.num_hidden_neurons,
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size,
            "initializer_range": self.initializer_range or round(0.02 * math.sqrt(768 / self.hidden_size), 4),
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout if self.attention_dropout is None else self.attention_dropout,
        }


@dataclass
class DataArguments:
    """The data."""

    dataset_name: str | None = field(default=None, metadata={"help": "Name on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_dir: str | None = field(
        default=None, metadata={"help": "Folder of parquet, csv, json or txt files named by split, instead of a name."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="validation", metadata={"help": "Split to measure on; where it does not exist, test is taken."}
    )
    validation_share: float | None = field(
        default=None,
        metadata={"help": "Where --validation_split does not exist, hold out this share of --train_split instead."},
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split to measure the model on that the run ends with, besides validation."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many, drawn with the seed."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Measure on this many, drawn with the seed."})
    max_curve_samples: int | None = field(
        default=None, metadata={"help": "Of those, measure this many along the way, the same ones for every seed."}
    )


DEFAULT_TRAINING_ARGUMENTS = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "logging_steps": 25,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "report_to": "none",
    "dataloader_pin_memory": torch.cuda.is_available(),
}


# Options that are at least 1 where they are given.
COUNTS = (
    *("max_train_samples", "max_eval_samples", "max_curve_samples", "max_length", "block_size", "vocab_size"),
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"),
)


def check_options(parsed):
    """Raises a ValueError for options that no run can have; `parsed` are the dataclasses that they were read into."""
    options = {name: value for part in parsed for name, value in vars(part).items()}
    for name in COUNTS:
        if options.get(name) is not None and options[name] < 1:
            raise ValueError(f"--{name} must be at least 1, got {options[name]}")
    for name in ("dataset_dir", "model_name_or_path"):
        refuse_same_folder(options["output_dir"], name, options.get(name))


def parse_arguments(model_arguments, data_arguments, description, arguments=None, **defaults):
    """Command-line (or given) arguments as instances of the two classes and `TrainingArguments`.

    `defaults` change `DEFAULT_TRAINING_ARGUMENTS`; `description` is a module's docstring, of which the first paragraph
    is shown.
    """
    parser = HfArgumentParser(
        (model_arguments, data_arguments, TrainingArguments), description=description.split("\n\n")[0]
    )
    parser.set_defaults(**{**DEFAULT_TRAINING_ARGUMENTS, **defaults})
    parsed = parser.parse_args_into_dataclasses(arguments)
    check_options(parsed)
    if parsed[-1].process_index > 0:  # one process shows what all do
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    return parsed
