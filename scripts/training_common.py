# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: arguments, loading data, labels, metrics that need no network, running `Trainer`
so that a killed run continues, and the records of a run."""

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets
import evaluate
import jinja2
import matplotlib
import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import SaveStrategy, SchedulerType, get_last_checkpoint

from astroformer_hf import AstroformerConfig


matplotlib.use("Agg")
import matplotlib.pyplot as plt


ROOT = Path(__file__).resolve().parent.parent
FILE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
LAUNCHED_WITH = dict(os.environ)  # before `TrainingArguments` adds to it
PACKAGES = (
    "astroformer-hf",
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "evaluate",
    "safetensors",
)


# --------------------------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class ModelArguments:
    """The model: a checkpoint, or the shape of a new one."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune, with its processor. Without it, train from scratch."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
    attention_type: str = field(
        default="neuron_astrocyte", metadata={"help": "The arm: neuron_astrocyte, linear or softmax."}
    )
    astrocyte_code: str = field(
        default=AstroformerConfig.astrocyte_code, metadata={"help": "R: learned, sinusoidal or activity."}
    )
    feature_map: str = field(default=AstroformerConfig.feature_map, metadata={"help": "phi: elu, relu, exp or favor."})
    presynaptic_alpha: float = field(
        default=AstroformerConfig.presynaptic_alpha, metadata={"help": "Exponent of the calcium, in (0, 1]."}
    )
    use_astrocyte_hebbian: bool = field(default=True, metadata={"help": "Add H_astro."})
    use_calcium_feedback: bool = field(default=True, metadata={"help": "Divide by the calcium response."})
    calcium_normalization: str = field(
        default=AstroformerConfig.calcium_normalization, metadata={"help": "mean or sum over the tokens."}
    )
    astrocyte_scale: float = field(
        default=AstroformerConfig.astrocyte_scale, metadata={"help": "Scale of the coupling between processes."}
    )
    astrocyte_resting_activity: float = field(
        default=AstroformerConfig.astrocyte_resting_activity,
        metadata={"help": "How loud the astrocyte is before training, in units of an untrained neuron."},
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
            if option.name not in ("model_name_or_path", "trust_remote_code")
            and getattr(self, option.name) != option.default
        ]
        if self.model_name_or_path and given:
            source = f"--model_name_or_path {self.model_name_or_path!r}"
            raise ValueError(f"{', '.join(given)} shape a new model, but {source} has its shape")

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
    def architecture(self):
        """The configuration fields of a new model that text and images share."""
        same = (
            *("attention_type", "astrocyte_code", "feature_map", "presynaptic_alpha", "use_astrocyte_hebbian"),
            *("use_calcium_feedback", "calcium_normalization", "astrocyte_scale", "astrocyte_resting_activity"),
            *("num_hidden_layers", "hidden_size", "num_attention_heads"),
        )
        return {
            **{name: getattr(self, name) for name in same},
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
    if parsed[-1].process_index > 0:  # one process shows what all do
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    return parsed


# --------------------------------------------------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------------------------------------------------


def load_splits(dataset_name=None, dataset_config_name=None, dataset_dir=None, offline=None):
    """Loads a data set from the Hub or from a folder of files named by split.

    Args:
        dataset_name (`str`, *optional*): name on the Hub.
        dataset_config_name (`str`, *optional*): its configuration.
        dataset_dir (`str`, *optional*): folder with `train.parquet`, `validation.parquet` and so on, or the same in
            csv, json, jsonl, or, a text each, in txt.
        offline (function, *optional*): makes the splits where neither is given, from what is on every machine.

    Returns:
        `datasets.DatasetDict`.

    Raises:
        ValueError: both are given, or neither though there is no `offline`, or the folder has no such files.
    """
    if dataset_name is None and dataset_dir is None and offline is not None:
        return offline()
    if (dataset_name is None) == (dataset_dir is None):
        raise ValueError("give exactly one of --dataset_name and --dataset_dir")
    if dataset_name is not None:
        return datasets.load_dataset(dataset_name, dataset_config_name)
    folder = Path(dataset_dir)
    files = [path for path in sorted(folder.glob("*")) if path.suffix in FILE_FORMATS] if folder.is_dir() else []
    formats = {FILE_FORMATS[path.suffix] for path in files}
    if len(formats) != 1:
        raise ValueError(
            f"--dataset_dir must be a folder with files named by split, in one format of {sorted(FILE_FORMATS)}, like "
            f"train.parquet and validation.parquet; {str(folder)!r} has {[path.name for path in files]}"
        )
    file_format = formats.pop()
    more = {"sample_by": "document"} if file_format == "text" else {}
    return datasets.load_dataset(file_format, data_files={path.stem: str(path) for path in files}, **more)


HELD_OUT_SEED = 0  # the same examples are held out, whatever the seed of the run


def load_examples(data_args, seed, columns, offline=None):
    """The splits to train on and to measure on, cut to the numbers of samples asked for.

    Args:
        data_args (`DataArguments`): what the user asked for.
        seed (`int`): draws the samples.
        columns (list of `str`): columns that must be there.
        offline (function, *optional*): see `load_splits`.

    Returns:
        `dict` of `datasets.Dataset` by their names in the data, in this order: train, validation and, where
        --test_split was given, test. What --validation_share held out is named "held out".
    """
    splits = load_splits(data_args.dataset_name, data_args.dataset_config_name, data_args.dataset_dir, offline)
    train_name, train = pick_split(splits, data_args.train_split)
    share = data_args.validation_share
    if share is not None and not 0 < share < 1:
        raise ValueError(f"--validation_share must be between 0 and 1, got {share}")
    if share is not None and data_args.validation_split not in splits:
        validation_name = "held out"
        parts = train.train_test_split(test_size=share, seed=HELD_OUT_SEED)
        train, validation = parts["train"], parts["test"]
    else:
        validation_name, validation = pick_split(splits, data_args.validation_split, fallbacks=("test",))
    names = [train_name, validation_name, *([data_args.test_split] if data_args.test_split else [])]
    if len(set(names)) < len(names):
        raise ValueError(
            f"the splits to train on and to measure on must differ, got {', '.join(names)}; where the data have no "
            "validation split, --validation_share holds out a part of train"
        )
    for column in columns:
        if column not in train.column_names:
            raise ValueError(f"the data has no column {column!r}; it has {train.column_names}")
    examples = {
        train_name: draw(train, data_args.max_train_samples, seed),
        validation_name: draw(validation, data_args.max_eval_samples, seed),
    }
    if data_args.test_split is not None:
        _, test = pick_split(splits, data_args.test_split)
        examples[data_args.test_split] = draw(test, data_args.max_eval_samples, seed)
    return examples


def test_of(data_args, splits):
    """Name and examples of the split that --test_split asked for, or None."""
    return (data_args.test_split, splits[data_args.test_split]) if data_args.test_split else None


def draw(dataset, max_samples, seed):
    """At most `max_samples` rows, drawn with the seed."""
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_samples))


def pick_split(splits, wanted, fallbacks=()):
    """The split named `wanted`, or the first of `fallbacks` that exists; with its name."""
    for name in (wanted, *fallbacks):
        if name in splits:
            return name, splits[name]
    raise ValueError(f"the data has no split {wanted!r}; it has {sorted(splits)}")


def once(training_args, make):
    """What `make()` returns, made by one process and given to the others, so that all have the same.

    Args:
        training_args (`TrainingArguments`): of the run.
        make (function): returns what can be pickled.
    """
    if training_args.world_size == 1:
        return make()
    made = [make() if training_args.process_index == 0 else None]
    return broadcast_object_list(made)[0]


# --------------------------------------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------------------------------------


class Labels:
    """What kind of labels a column has, and how they become the numbers that a model takes."""

    def __init__(self, dataset, column):
        feature, values = dataset.features[column], dataset[column]
        several = getattr(feature, "feature", None)  # of a column of lists
        kind = several or feature
        self.names = None
        if isinstance(kind, ClassLabel):
            self.names = list(kind.names)
            self._number = int
        elif kind.dtype.startswith("float"):
            if several is not None:
                raise ValueError(f"label column {column!r}: lists of real numbers are not supported")
        elif kind.dtype.startswith(("int", "uint", "bool", "string", "large_string")):
            flat = {value for row in values for value in row} if several else set(values)
            self.names = [str(value) for value in sorted(flat)]
            numbers = {name: i for i, name in enumerate(sorted(flat))}
            self._number = functools.partial(self._look_up, numbers)
        else:
            raise ValueError(f"label column {column!r} has type {kind.dtype!r}; expected classes or numbers")
        if self.names is None:
            self.problem_type, self.metric, self.best = "regression", Regression(), "mse"
        elif several is not None:
            self.problem_type, self.best = "multi_label_classification", "f1"
            self.metric = MultiLabelClassification("multilabel")
        else:
            self.problem_type, self.best = "single_label_classification", "accuracy"
            self.metric = Classification()

    @staticmethod
    def _look_up(numbers, value):
        if value not in numbers:
            raise ValueError(
                f"label {value!r} does not occur in the training split, whose labels are {sorted(numbers)}"
            )
        return numbers[value]

    def encode(self, value):
        """A label of the data set as the model takes it."""
        if self.problem_type == "regression":
            return float(value)
        if self.problem_type == "single_label_classification":
            return self._number(value)
        present = {self._number(item) for item in value}
        return [float(i in present) for i in range(len(self.names))]

    def describe(self, config):
        """Writes into a model's configuration what its head must know of the labels."""
        config.problem_type = self.problem_type
        if self.names is None:
            config.num_labels = 1
        else:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: i for i, name in enumerate(self.names)}

    def compute_metrics(self, prediction):
        """Metrics of an evaluation, through `evaluate`."""
        logits, references = prediction.predictions, prediction.label_ids
        if self.problem_type == "regression":
            predictions = logits.squeeze(-1)
        elif self.problem_type == "single_label_classification":
            predictions = logits.argmax(-1)
        else:
            predictions, references = (logits > 0).astype(int), references.astype(int)
        return self.metric.compute(predictions=predictions, references=references)


def tell_longest_input(tokenizer, config):
    """Writes into a tokenizer how long an input its model takes, by which tools cut; library models keep theirs."""
    if hasattr(config, "longest_input"):
        tokenizer.model_max_length = config.longest_input or VERY_LARGE_INTEGER


# --------------------------------------------------------------------------------------------------------------------
# Metrics
# --------------------------------------------------------------------------------------------------------------------


class Classification(evaluate.Metric):
    """Accuracy, macro F1 and Matthews' correlation; an `evaluate` module that is defined here, not downloaded."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy, macro F1 and Matthews' correlation coefficient.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return {
            "accuracy": accuracy_score(references, predictions),
            "f1": f1_score(references, predictions, average="macro", zero_division=0),
            "matthews_correlation": matthews_corrcoef(references, predictions),
        }


class MultiLabelClassification(evaluate.Metric):
    """Accuracy over whole label sets and F1, micro and macro, of zeros and ones per label."""

    def _info(self):
        labels = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Subset accuracy, micro and macro F1.",
            citation="",
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def _compute(self, predictions, references):
        predictions, references = np.array(predictions), np.array(references)
        return {
            "accuracy": accuracy_score(references, predictions),
            "f1_micro": f1_score(references, predictions, average="micro", zero_division=0),
            "f1": f1_score(references, predictions, average="macro", zero_division=0),
        }


class Regression(evaluate.Metric):
    """Mean squared error and Pearson's correlation."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean squared error and Pearson's correlation coefficient.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("float"), "references": datasets.Value("float")}),
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {
            "mse": float(((predictions - references) ** 2).mean()),
            "pearson": float(np.corrcoef(predictions, references)[0, 1]),
        }


class ExactTrainer(Trainer):
    """A `Trainer` whose evaluation loss is the mean over all labels.

    The library's is a mean of the means of batches, some of which hold more labels than others; and where several
    processes evaluate, the last batches are filled up with examples that were counted before.
    """

    _losses: list

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        if loss is not None:
            losses = losses_of_examples(logits, labels, self.model.config)
            self._losses.append(self.accelerator.gather_for_metrics(losses))  # which leaves out what was filled up
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def evaluation_loop(self, *args, **kwargs):
        self._losses = []
        output = super().evaluation_loop(*args, **kwargs)
        if self._losses:
            loss, number = torch.cat([losses.double().cpu() for losses in self._losses]).sum(0).tolist()
            (name,) = [name for name in output.metrics if name.endswith("_loss")]
            output.metrics[name] = loss / number
        return output


def losses_of_examples(logits, labels, config):
    """The summed loss of each example and the number of its labels: `(batch, 2)`."""
    logits = logits.float()
    if config.problem_type == "regression":
        each = (logits - labels.float().view_as(logits)).square()
        counted = torch.ones_like(each)
    elif config.problem_type == "multi_label_classification":
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        counted = torch.ones_like(each)
    else:
        if logits.dim() == 3 and config.is_decoder:  # a token's label is the next token
            logits, labels = logits[:, :-1], labels[:, 1:]
        each = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        each, counted = each.view(labels.shape), (labels != -100).float()
    return torch.stack((each.reshape(len(each), -1).sum(-1), counted.reshape(len(each), -1).sum(-1)), dim=-1)


# --------------------------------------------------------------------------------------------------------------------
# Resuming, and the records of a run
# --------------------------------------------------------------------------------------------------------------------


def checkpoint_to_resume(output_dir):
    """The newest checkpoint in `output_dir` that was written to its end, or None."""
    if not os.path.isdir(output_dir):
        return None
    for path in Path(output_dir).glob("checkpoint-*"):
        if not (path / "trainer_state.json").exists():  # the file that Trainer writes last; a killed run may lack it
            path.rename(path.with_name(f"incomplete-{path.name}"))
    return get_last_checkpoint(output_dir)


def resume_from(training_args):
    """The checkpoint that a run goes on from: the one asked for, or the newest in its output folder, or None."""
    if training_args.resume_from_checkpoint:
        return training_args.resume_from_checkpoint
    return once(training_args, lambda: checkpoint_to_resume(training_args.output_dir))


class Stopwatch(TrainerCallback, ExportableState):
    """Counts the seconds of training, evaluations on the way included, over all the times that a run was resumed; and
    keeps in its checkpoints how large its batches are."""

    def __init__(self, resumes=False, batch_size=None):
        self.resumes, self.before, self.began, self.batch_size = resumes, 0.0, time.monotonic(), batch_size

    @property
    def seconds(self):
        return self.before + time.monotonic() - self.began

    def state(self):
        return {"args": {}, "attributes": {"before": self.seconds, "batch_size": self.batch_size}}

    def on_train_begin(self, args, state, control, **kwargs):
        earlier = state.stateful_callbacks.get(type(self).__name__) if self.resumes else None
        self.before = earlier["attributes"]["before"] if earlier else 0.0
        self.began = time.monotonic()


def train(trainer, resume_from, results, record, test=None):
    """Trains, evaluates the best checkpoint (or the last, without --load_best_model_at_end), saves it, and lets
    `record` write what a run leaves beside its weights.

    Args:
        trainer (`Trainer`): ready to train.
        resume_from (`str`, *optional*): a checkpoint to go on from.
        results (`dict`): what is known of the run beforehand; metrics, times, versions and so on are added to it.
        record (function): takes the results and the output folder; runs on the main process only, before
            `results.json`, the mark of a run's end, is written.
        test (`tuple`, *optional*): name and examples of a further split to measure the model on at the end.

    Returns:
        The metrics on the validation split, by their plain names.
    """
    args, parameters = trainer.args, trainer.model.num_parameters()
    batch_size = trainer.get_total_train_batch_size(args)
    stopwatch = Stopwatch(bool(resume_from), batch_size)
    if resume_from:
        check_batch_size(resume_from, batch_size, args.world_size)
        if trainer.is_world_process_zero():
            print(f"Continuing from {resume_from}")
    best_by = args.metric_for_best_model
    args.greater_is_better = best_by.removeprefix("eval_") not in ("loss", "mse")
    trainer.add_callback(stopwatch)
    finished = finished_state(resume_from)
    if finished is None:
        needs_best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
        if not needs_best and args.lr_scheduler_type != SchedulerType.REDUCE_ON_PLATEAU:
            args.metric_for_best_model = (
                None  # or the best checkpoint is kept, at --save_total_limit 1 instead of the last
            )
        trainer.train(resume_from_checkpoint=resume_from)
        args.metric_for_best_model = best_by
        training_seconds = stopwatch.seconds
    else:  # killed after its last step: `Trainer` would take one step more
        best = finished.best_model_checkpoint if args.load_best_model_at_end else None
        weights = type(trainer.model).from_pretrained(best or resume_from)
        trainer.model.load_state_dict(weights.state_dict())
        trainer.state = finished
        training_seconds = finished.stateful_callbacks["Stopwatch"]["attributes"]["before"]
    curve = learning_curve(trainer.state.log_history)
    metrics = quality(trainer.evaluate())
    if test is not None:
        test_name, examples = test
        results = {
            **results,
            "test_split": test_name,
            "test_metrics": quality(trainer.evaluate(examples, metric_key_prefix="test"), "test_"),
            "test_samples": len(examples),
        }
    if trainer.is_fsdp_enabled:  # one file, as of a single process
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    if trainer.is_world_process_zero():
        config = trainer.model.config
        results = {
            "task": results["task"],
            "dataset": results["dataset"],
            "split": results["split"],
            "arm": config.attention_type,
            "seed": args.seed,
            "metrics": metrics,
            "learning_curve": curve,
            "parameters": parameters,
            **results,
            "checkpoint": "best" if args.load_best_model_at_end else "last",
            "learning_rate": args.learning_rate,
            "world_size": args.world_size,
            "effective_batch_size": batch_size,
            "steps": trainer.state.max_steps,
            "train_samples": len(trainer.train_dataset),
            "eval_samples": len(trainer.eval_dataset),
            "seconds": round(training_seconds, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "resumed": bool(resume_from),
            "command": command(),
            "versions": versions(),
            "hardware": hardware(),
            "config": config.to_diff_dict(),
        }
        output_dir = Path(args.output_dir)
        record(results, output_dir)
        write_json(output_dir / "results.json", results)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{title(results)}: {shown}\nModel, results.json, learning_curve.png and README.md are in {output_dir}")
    return metrics


def forget_peak_memory():
    """Lets `peak_memory_bytes` count anew, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")


PEAK_OF_PROCESS = Path("/proc/self/status")


def finished_state(checkpoint):
    """The state of a run whose last step is in a checkpoint, None if there are steps left or there is no checkpoint."""
    if not checkpoint:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    return state if state.global_step >= state.max_steps and "Stopwatch" in state.stateful_callbacks else None


def check_batch_size(checkpoint, batch_size, world_size):
    """Raises a ValueError if the run that left a checkpoint had batches of another size, and so other steps."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    earlier = state.stateful_callbacks.get("Stopwatch", {"attributes": {}})["attributes"].get("batch_size")
    if earlier not in (None, batch_size):
        raise ValueError(
            f"{checkpoint} is of a run with {earlier} examples per step, this one has {batch_size} over {world_size} "
            "processes: start as many processes as then, or change --gradient_accumulation_steps or "
            "--per_device_train_batch_size so that the product is the same"
        )


def peak_memory_bytes():
    """The most memory that this process has held at once: of tensors on a GPU, otherwise resident; None where the
    system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        peak = next(line for line in PEAK_OF_PROCESS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return None


def title(results):
    """A run in a few words."""
    return f"{results['arm']} on {results['dataset']}"


def dataset_title(data_args, offline_name):
    """The name of the data for a record: on the Hub, of its folder, or of the offline default."""
    if data_args.dataset_name:
        return data_args.dataset_name
    return Path(data_args.dataset_dir).resolve().name if data_args.dataset_dir else offline_name


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path, content):
    """Writes JSON to a temporary name beside `path`, then renames it: the file is whole or absent."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def write_whole(path, write):
    """Lets `write` write to a temporary name beside `path`, then renames it: the file is whole or absent."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write(temporary)
    os.replace(temporary, path)


def versions(packages=PACKAGES):
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware():
    """The machine that a result comes from."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def command():
    """The command line that was run, as a user would type it in the project's folder, with what started the processes.

    Several machines are started by the same command on each, with the name of one of them for HOST.
    """
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join([*launcher(LAUNCHED_WITH), str(script), *sys.argv[1:]])


def launcher(environment):
    """The words of a command before the script: `python`, `torchrun` or `accelerate launch`, with their options.

    Args:
        environment (`dict`): the environment variables of the process, as the launcher set them.
    """
    world_size = int(environment.get("WORLD_SIZE", 1))
    machines = world_size // int(environment.get("LOCAL_WORLD_SIZE", world_size))
    if "ACCELERATE_MIXED_PRECISION" not in environment:  # which `accelerate launch` always sets
        if "TORCHELASTIC_RUN_ID" not in environment and world_size == 1:
            return ["python"]
        several = ["--nnodes", str(machines), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
        return ["torchrun", "--nproc-per-node", str(world_size // machines), *(several if machines > 1 else ())]

    def is_set(name):
        return environment.get(name, "").lower() in ("1", "true", "yes")

    options = {"num_processes": world_size, "mixed_precision": environment["ACCELERATE_MIXED_PRECISION"]}
    if machines > 1:
        options |= {"num_machines": machines, "machine_rank": environment.get("GROUP_RANK", 0)}
        options |= {"main_process_ip": "HOST", "main_process_port": 29500}
    flags = []
    if is_set("ACCELERATE_USE_FSDP"):
        flags.append("--use_fsdp")
        # the launcher hands its options on as variables of the same names
        options |= {name.lower(): value for name, value in sorted(environment.items()) if name.startswith("FSDP_")}
    elif is_set("ACCELERATE_USE_CPU"):
        flags.append("--cpu")
    elif world_size > 1:
        flags.append("--multi_gpu")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["accelerate", "launch", *flags, *words]


def quality(metrics, prefix="eval_"):
    """The metrics of an evaluation by `Trainer` under their plain names, without its timings."""
    timings = ("runtime", "per_second", "preparation_time", "epoch")
    return {name.removeprefix(prefix): value for name, value in metrics.items() if not name.endswith(timings)}


def learning_curve(log_history):
    """The training and evaluation records of `Trainer`, each with `step` and `epoch`, without its closing summary."""
    return {
        "train": [entry for entry in log_history if "loss" in entry],
        "evaluation": [entry for entry in log_history if "eval_loss" in entry],
    }


def plot_learning_curve(curve, metric, path, title):
    """Draws the losses, and `metric` over the evaluations, against the steps, as a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = [entry["step"] for entry in curve["evaluation"]]
    left.plot([e["step"] for e in curve["train"]], [e["loss"] for e in curve["train"]], label="training", alpha=0.7)
    left.plot(steps, [e["eval_loss"] for e in curve["evaluation"]], "o-", label="validation")
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    right.plot(steps, [e[f"eval_{metric}"] for e in curve["evaluation"]], "o-")
    right.set(xlabel="step", ylabel=f"validation {metric}")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))
    plt.close(figure)


def write_model_card(path, template, results, metrics, **texts):
    """Fills a model card from a run's results, with a model-index that the Hub can read.

    Args:
        path (`str`): where the card goes, `README.md` in the model's folder.
        template (`str`): file name of a Jinja template in `model_cards/`.
        results (`dict`): the run's record; the template sees it as `results`.
        metrics (`dict`): metric names to values, for the model-index.
        texts: whatever else the template uses.
    """
    model_name = Path(path).resolve().parent.name
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=results["task"],
        tags=["astroformer", "neuron-astrocyte-attention", "linear-attention"],
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type=results["task"],
                dataset_type=results["dataset"],
                dataset_name=results["dataset"],
                dataset_split=results["split"],
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in metrics.items()
        ],
        **({"datasets": [results["dataset"]]} if "/" in results["dataset"] else {}),
    )
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(ROOT / "model_cards"), keep_trailing_newline=True)
    content = templates.get_template(template).render(
        card_data=card_data.to_yaml(), model_name=model_name, results=results, **texts
    )
    card = ModelCard(content)
    write_whole(path, card.save)


def classification_record(labels, training_args, unit):
    """The `record` of `train` for classifiers: figure and model card.

    Args:
        labels (`Labels`): of the data.
        training_args (`TrainingArguments`): of the run.
        unit (`str`): what an example is, and what happens to it, in words.
    """

    def record(results, output_dir):
        best = training_args.metric_for_best_model.removeprefix("eval_")
        plot_learning_curve(results["learning_curve"], best, output_dir / "learning_curve.png", title(results))
        write_model_card(
            output_dir / "README.md",
            "classification.md.jinja",
            results,
            metrics={name: results["metrics"][name] for name in (best, "f1", "loss") if name in results["metrics"]},
            labels=labels.names,
            unit=unit,
            training_args=training_args,
        )

    return record
