# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: loading data, resuming, metrics that need no network, and the records of a run."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path

import datasets
import evaluate
import matplotlib
import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers.trainer_utils import get_last_checkpoint


matplotlib.use("Agg")
import matplotlib.pyplot as plt


ROOT = Path(__file__).resolve().parent.parent
FILE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
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
# Data
# --------------------------------------------------------------------------------------------------------------------


def load_splits(dataset_name=None, dataset_config_name=None, dataset_dir=None):
    """Loads a data set from the Hub or from a folder of files named by split.

    Args:
        dataset_name (`str`, *optional*): name on the Hub.
        dataset_config_name (`str`, *optional*): its configuration.
        dataset_dir (`str`, *optional*): folder with `train.parquet`, `validation.parquet` and so on, or the same in
            csv, json or jsonl.

    Returns:
        `datasets.DatasetDict`.

    Raises:
        ValueError: neither or both are given, or the folder has no such files.
    """
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
    return datasets.load_dataset(formats.pop(), data_files={path.stem: str(path) for path in files})


def pick_split(splits, wanted, fallbacks=()):
    """The split named `wanted`, or the first of `fallbacks` that exists; with its name."""
    for name in (wanted, *fallbacks):
        if name in splits:
            return name, splits[name]
    raise ValueError(f"the data has no split {wanted!r}; it has {sorted(splits)}")


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


def write_json(path, content):
    """Writes JSON to a temporary name beside `path`, then renames it: the file is whole or absent."""
    _write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def _write_whole(path, write):
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write(temporary)
    os.replace(temporary, path)


def versions():
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
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
    """The command line that was run, as a user would type it in the project's folder."""
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", str(script), *sys.argv[1:]])


def quality(metrics):
    """The metrics of an evaluation by `Trainer` under their plain names, without its timings."""
    timings = ("runtime", "per_second", "epoch")
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if not name.endswith(timings)}


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
    _write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))
    plt.close(figure)


def write_model_card(path, template, results, pipeline_tag, dataset_name, split, metrics, **texts):
    """Fills a model card from a run's results, with a model-index that the Hub can read.

    Args:
        path (`str`): where the card goes, `README.md` in the model's folder.
        template (`str`): file name of a Jinja template in `model_cards/`.
        results (`dict`): the run's record; the template sees it as `results`.
        pipeline_tag (`str`): task, by the Hub's name.
        dataset_name (`str`): name of the data, on the Hub or of its folder.
        split (`str`): the split that was measured.
        metrics (`dict`): metric names to values, for the model-index.
        texts: whatever else the template uses.
    """
    model_name = Path(path).resolve().parent.name
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["astroformer", "neuron-astrocyte-attention", "linear-attention"],
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type=pipeline_tag,
                dataset_type=dataset_name,
                dataset_name=dataset_name,
                dataset_split=split,
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in metrics.items()
        ],
        **({"datasets": [dataset_name]} if "/" in dataset_name else {}),
    )
    card = ModelCard.from_template(
        card_data, template_path=str(ROOT / "model_cards" / template), model_name=model_name, results=results, **texts
    )
    _write_whole(path, card.save)
