# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves beside its weights: metrics by name, the figure of its learning curve, and a model card."""

from pathlib import Path

import jinja2
import matplotlib
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from training.files import ROOT, write_whole


matplotlib.use("Agg")
import matplotlib.pyplot as plt


def title(results):
    """A run in a few words."""
    return f"{results['arm']} on {results['dataset']}"


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
    loading = "trust_remote_code=True"
    if "attn_implementation" in results:
        loading = f'model_kwargs={{"attn_implementation": "{results["attn_implementation"]}"}}'
    content = templates.get_template(template).render(
        card_data=card_data.to_yaml(), model_name=model_name, results=results, loading=loading, **texts
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
