# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Model cards for the checkpoints of the comparison, from the records of scripts/reproduce.py.

The checkpoint of an arm is that of the first seed at its chosen learning rate.
"""

import jinja2
from comparison.arms import ARMS
from comparison.summaries import with_spread
from comparison.tasks import TASKS
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from reporting.comparisons import repeat


LICENSE = "apache-2.0"
TAGS = {
    "neuron_astrocyte": ["neuron-astrocyte-attention", "linear-attention"],
    "linear": ["linear-attention"],
    "softmax": ["softmax-attention"],
}


def model_name(preset, task, arm):
    return f"astroformer-{preset}-{task}-{arm}"


def cards(known, folder):
    """The text of the card of each arm and task of a `comparisons.Comparison`, by its path in `folder`."""
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), keep_trailing_newline=True)
    template = templates.get_template("comparison.md.jinja")
    found = {}
    for task, arms in known.tasks.items():
        for arm, summary in arms.items():
            name = model_name(known.preset, task, arm)
            found[folder / f"{name}.md"] = card(template, name, known, task, arm, summary)
    return found


def dataset_on_hub(task):
    """The name of a task's data on the Hub, None if they come with Python."""
    return (TASKS[task].hub or {}).get("dataset_name")


def card(template, name, known, task, arm, summary):
    """A card as text, after a check that it can be read back."""
    record, definition = summary.records[0], TASKS[task]
    dataset = dataset_on_hub(task) or record["dataset"]
    is_from_hub = record["dataset"] == dataset
    split = record.get("test_split", record["split"])
    metrics = record.get("test_metrics", record["metrics"])
    shown = [metric for metric in ("accuracy", "f1", "loss", "perplexity") if metric in metrics]
    data = ModelCardData(
        license=LICENSE,
        library_name="transformers",
        pipeline_tag=record["pipeline_tag"],
        tags=["astroformer", "custom_code", *TAGS[record["attention_type"]]],
        metrics=[metric for metric in shown if metric != "loss"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=record["pipeline_tag"],
                dataset_type=dataset,
                dataset_name=definition.title if is_from_hub else f"{definition.title} (a local copy, split anew)",
                dataset_split=split,
                metric_type=metric,
                metric_value=round(metrics[metric], 4),
            )
            for metric in shown
        ],
        **({} if record["pipeline_tag"] == "image-classification" else {"language": "en"}),
        **({"datasets": [dataset]} if "/" in dataset else {}),
    )
    others = {other: with_spread(definition, found.mean, found.spread) for other, found in known.tasks[task].items()}
    text = template.render(
        card_data=data.to_yaml(),
        name=name,
        task=definition,
        task_name=task,
        preset=known.preset,
        arm=arm,
        arms=ARMS,
        others=others,
        record=record,
        summary=summary,
        dataset=dataset,
        is_from_hub=is_from_hub,
        repeat=repeat(known, task, record),
        split=split,
        samples=record.get("test_samples", record["eval_samples"]),
        metrics={metric: metrics[metric] for metric in shown},
        labels=list((record["config"].get("id2label") or {}).values()),
        seeds=[run["seed"] for run in summary.records],
    )
    return ModelCard(text).content
