# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Cards of the trained models under model_cards/, from what scripts/release_models.py measured and the comparison."""

import json

import jinja2
from comparison.summaries import with_spread
from comparison.tasks import TASKS
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from reporting import comparisons
from reporting.tables import command_today, origin, table


LICENSE = "apache-2.0"
TAGS = ["astroformer", "custom_code", "neuron-astrocyte-attention", "linear-attention"]
SHOWN = {"accuracy": ".4f", "f1": ".4f", "loss": ".4f", "perplexity": ".2f"}  # the metrics of a card, and how they look
INDEX = """# Trained models

They work right after a clone. Each folder has a card with figures, a comparison, limits and the training command.

"""
INDEX_END = """
Figures are of the validation split; the loss is in nats per character. The weights are licensed under Apache-2.0.

The folders hold no code. Where `astroformer_hf` is imported, none is needed, and `scripts/publish.py` adds it to what
it uploads. `scripts/release_models.py` makes the folders; `scripts/report.py` rewrites the cards and this page. The
templates here are of these cards and of those that the training scripts and the demo write.
"""


def in_words(metric, value):
    """The value of a metric as a card prints it."""
    return format(value, SHOWN[metric])


def cards(known, folder):
    """The card of each released model of a `comparisons.Comparison`, and an index of them, by their paths."""
    paths = sorted(folder.glob("*/results.json"))
    records = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    records = {path: record for path, record in records.items() if record["preset"] == known.preset}
    if not records:
        return {}
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    template = templates.get_template("released.md.jinja")
    found = {path / "README.md": card(template, known, record) for path, record in records.items()}
    return {**found, folder / "README.md": index(known, records.values())}


def index(known, records):
    rows = []
    for record in records:
        metric = TASKS[record["task"]].metric
        rows.append(
            [
                f"[{record['name']}]({record['name']}/README.md)",
                TASKS[record["task"]].title,
                what_it_is(known, record),
                f"{record['parameters']:,}",
                f"{metric} {in_words(metric, record['metrics'][metric])}",
            ]
        )
    lines = table(["model", "task", "attention", "parameters", "figure"], rows)
    return INDEX + "\n".join(lines).strip() + "\n" + INDEX_END


def what_it_is(known, record):
    return comparisons.what_it_is(known.arms[record["arm"]], known.tasks[record["task"]][record["arm"]].records[0])


def dataset_on_hub(task):
    """The name of a task's data on the Hub."""
    return TASKS[task].hub["dataset_name"]


def card_data(record):
    """The metadata of a card."""
    dataset, task = dataset_on_hub(record["task"]), record["pipeline_tag"]
    metrics = {name: record["metrics"][name] for name in SHOWN if name in record["metrics"]}
    return ModelCardData(
        license=LICENSE,
        library_name="transformers",
        pipeline_tag=task,
        tags=TAGS,
        metrics=[name for name in metrics if name != "loss"],
        model_name=record["name"],
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=f"{TASKS[record['task']].title} (a local copy, split anew)",
                dataset_split=record["split"],
                metric_type=name,
                metric_value=float(in_words(name, value)),
            )
            for name, value in metrics.items()
        ],
        datasets=[dataset],
        **({} if task == "image-classification" else {"language": "en"}),
    )


def card(template, known, record):
    """A card as text, after a check that it can be read back."""
    definition, arms = TASKS[record["task"]], known.tasks[record["task"]]
    rows, others = [], [other for other in ("softmax", "linear") if other in arms]
    for arm, summary in arms.items():
        name = known.arms[arm].title
        rows.append(
            [
                f"**{name}**" if arm == record["arm"] else name,
                with_spread(definition, summary.mean, summary.spread),
                *(comparisons.difference(definition, summary, arms[other]) for other in others),
                str(len(summary.values)),
            ]
        )
    better = [f"better than {other} by" for other in others]
    header = ["attention", definition.metric, *better, "seeds"]
    training = record["training"]
    text = template.render(
        card_data=card_data(record).to_yaml(),
        record=record,
        training_command=command_today(training["command"], arms[record["arm"]].records[0]["config"]),
        training=training,
        task=definition,
        config=arms[record["arm"]].records[0]["config"],
        what_it_is=what_it_is(known, record),
        dataset=dataset_on_hub(record["task"]),
        metrics={name: in_words(name, value) for name, value in record["metrics"].items() if name in SHOWN},
        whole={
            name: in_words(name, value)
            for name, value in record.get("metrics_of_whole_texts", {}).items()
            if name in SHOWN
        },
        comparison="\n".join(table(header, rows)).strip(),
        is_compared=len(rows) > 1,
        measured_on=origin(record),
        trained_on=origin(training),
    )
    return ModelCard(text).content
