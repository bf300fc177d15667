#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes the results of the README, tables and figures, from the JSON files under results/.

python scripts/report.py            rewrites README.md and the figures in docs/
python scripts/report.py --check    fails if README.md does not agree with the JSON files
"""

import argparse
import json
import math
import sys
from pathlib import Path

from astroformer_hf import AstroformerConfig


ROOT = Path(__file__).resolve().parent.parent
ARMS = ("neuron_astrocyte", "softmax", "linear")
CODES = ("activity", "sinusoidal", "learned")
BEGIN, END = "<!-- results: written by scripts/report.py -->", "<!-- end of results -->"


def load_results(task):
    """The runs of a task, in the order of `ARMS`."""
    runs = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / task).glob("*.json"))]
    return sorted(runs, key=lambda run: ARMS.index(run["arm"]))


def field(run, name):
    """A field of a run's configuration, which records only what differs from the defaults."""
    return run["config"].get(name, getattr(AstroformerConfig, name))


def command(run):
    """The command of a run, with the one option whose default follows from another option written out."""
    option = "--initializer_range"
    return run["command"] if option in run["command"] else f"{run['command']} {option} {field(run, option[2:])}"


def origin(run):
    """Where a run's figures come from."""
    hardware, versions = run["hardware"], run["versions"]
    return (
        f"seed {run['seed']}; {hardware['cpu']}, {hardware['threads']} "
        f"thread{'s' if hardware['threads'] > 1 else ''}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}"
    )


def commands(runs):
    """What it takes to repeat runs, folded away."""
    return ["<details><summary>Commands</summary>", "", "```bash", *map(command, runs), "```", "", "</details>"]


def classification_table(runs, what):
    """A Markdown table of classifiers; `what` says what they classify."""
    first = runs[0]
    lines = [
        "| arm | validation accuracy | after each epoch | parameters |",
        "| --- | --- | --- | --- |",
    ]
    for run in runs:
        accuracy = run["metrics"]["accuracy"]
        standard_error = math.sqrt(accuracy * (1 - accuracy) / run["eval_samples"])
        epochs = ", ".join(f"{entry['eval_accuracy']:.1%}" for entry in run["learning_curve"]["evaluation"])
        lines.append(f"| {run['arm']} | {accuracy:.1%} ± {standard_error:.1%} | {epochs} | {run['parameters']:,} |")
    return [
        *lines,
        "",
        f"{first['train_samples']:,} {what} to train and {first['eval_samples']:,} to measure, one run each, "
        f"{origin(first)}. The accuracy is that of the best epoch, chosen on the same {what}, ± the standard error of "
        "a measurement on so many. One run each does not rank arms that are closer than that.",
        "",
        *commands(runs),
    ]


def shakespeare_table(runs):
    """A Markdown table of character language models, alpha by code."""
    alphas = sorted({field(run, "presynaptic_alpha") for run in runs if run["arm"] == ARMS[0]}, reverse=True)
    lines = [
        "| arm | φ | " + " | ".join(f"α = {alpha:g}" for alpha in alphas) + " |",
        "| --- | --- |" + " --- |" * len(alphas),
    ]
    for run in runs:
        if run["arm"] != ARMS[0]:
            phi = "" if run["arm"] == "softmax" else field(run, "feature_map")
            lines.append(f"| {run['arm']} | {phi} | {run['metrics']['loss']:.3f} |" + " |" * (len(alphas) - 1))
    full = [run for run in runs if run["arm"] == ARMS[0]]
    kinds = {
        (field(run, "astrocyte_code"), field(run, "feature_map"), field(run, "astrocyte_scale"))
        + (field(run, "astrocyte_resting_activity"),)
        for run in full
    }
    for kind in sorted(kinds, key=lambda kind: (CODES.index(kind[0]), kind[1:])):
        code, phi, scale, resting = kind
        cells = []
        for alpha in alphas:
            losses = [
                run["metrics"]["loss"]
                for run in full
                if (field(run, "astrocyte_code"), field(run, "feature_map"), field(run, "astrocyte_scale")) == kind[:3]
                and field(run, "astrocyte_resting_activity") == resting
                and field(run, "presynaptic_alpha") == alpha
            ]
            cells.append(", ".join(f"{loss:.3f}" for loss in losses))
        name = f"neuron_astrocyte, {code} code, scale {scale:g}, resting {resting:g}"
        lines.append(f"| {name} | {phi} | " + " | ".join(cells) + " |")
    first = runs[0]
    return [
        *lines,
        "",
        "Validation loss in nats per character, lower is better, at the best of the evaluations along 2,000 steps; "
        f"{first['train_samples']:,} blocks of {first['block_size']} characters, one run each, {origin(first)}. "
        "`scale` is `astrocyte_scale`, `resting` `astrocyte_resting_activity`.",
        "",
        *commands(runs),
    ]


SECTIONS = (
    ("imdb", "IMDB, sentiment of film reviews", lambda runs: classification_table(runs, "reviews")),
    ("cifar10", "CIFAR-10, small images", lambda runs: classification_table(runs, "images")),
    ("shakespeare", "Tiny Shakespeare, character by character", shakespeare_table),
)


def results_text():
    """The results as Markdown, from the records alone."""
    lines = []
    for task, title, table in SECTIONS:
        lines += [f"### {title}", "", *table(load_results(task)), "", f"![Learning curves](docs/{task}.png)", ""]
    return "\n".join(lines).rstrip()


def plot_learning_curves(runs, path):
    """Draws the training loss of the runs and what is measured along them against the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = "accuracy" if "accuracy" in runs[0]["metrics"] else "loss"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for run in runs:
        label = run["arm"]
        if len(runs) > len(ARMS):
            label = {"neuron_astrocyte": f"{field(run, 'astrocyte_code')}, α={field(run, 'presynaptic_alpha'):g}"}.get(
                label, f"{label} ({field(run, 'feature_map')})" if label == "linear" else label
            )
        train, evaluation = run["learning_curve"]["train"], run["learning_curve"]["evaluation"]
        left.plot([e["step"] for e in train], [e["loss"] for e in train], label=label, alpha=0.8, linewidth=1)
        right.plot([e["step"] for e in evaluation], [e[f"eval_{metric}"] for e in evaluation], ".-", label=label)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel=f"validation {metric}")
    right.legend(fontsize=8 if len(runs) <= len(ARMS) else 6)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def with_results(readme, text):
    """`readme` with `text` between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README is out of date")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    readme = with_results(path.read_text(), results_text())
    if arguments.check:
        if readme != path.read_text():
            sys.exit("README.md does not agree with results/; run python scripts/report.py")
        return
    for task, _, _ in SECTIONS:
        plot_learning_curves(load_results(task), ROOT / f"docs/{task}.png")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(readme)
    temporary.replace(path)
    print("wrote README.md and the figures in docs/")


if __name__ == "__main__":
    main()
