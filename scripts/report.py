#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes the results table and figure of the README from the JSON files under results/.

python scripts/report.py            rewrites README.md and docs/imdb_learning_curves.png
python scripts/report.py --check    fails if README.md does not agree with the JSON files
"""

import argparse
import json
import math
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
ARMS = ("neuron_astrocyte", "softmax", "linear")
BEGIN, END = "<!-- results: written by scripts/report.py -->", "<!-- end of results -->"


def load_results(folder):
    """The runs in a folder of result files, in the order of `ARMS`."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(runs, key=lambda run: ARMS.index(run["arm"]))


def results_table(runs):
    """A Markdown table of the runs, with what it takes to repeat them."""
    first = runs[0]
    config, hardware, versions = first["config"], first["hardware"], first["versions"]
    lines = [
        "| arm | validation accuracy | after each epoch | parameters |",
        "| --- | --- | --- | --- |",
    ]
    for run in runs:
        accuracy = run["metrics"]["accuracy"]
        standard_error = math.sqrt(accuracy * (1 - accuracy) / run["eval_samples"])
        epochs = ", ".join(f"{entry['eval_accuracy']:.1%}" for entry in run["learning_curve"]["evaluation"])
        lines.append(f"| {run['arm']} | {accuracy:.1%} ± {standard_error:.1%} | {epochs} | {run['parameters']:,} |")
    lines += [
        "",
        f"IMDB, {first['train_samples']:,} reviews to train and {first['eval_samples']:,} to measure, one run each, "
        f"seed {first['seed']}; {config['num_hidden_layers']} layers, {config['hidden_size']} wide, "
        f"{config['max_position_embeddings']} tokens; {hardware['cpu']}, {hardware['threads']} threads; torch "
        f"{versions['torch']}, transformers {versions['transformers']}. The accuracy is that of the best epoch, chosen "
        "on the same reviews, ± the standard error of a measurement on so many. One run each does not rank the arms. "
        "Commands, with the data in `outputs/data/imdb`:",
        "",
        "```bash",
        *(run["command"] for run in runs),
        "```",
    ]
    return "\n".join(lines)


def plot_learning_curves(runs, path):
    """Draws validation accuracy and training loss of the arms against the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for run in runs:
        train, evaluation = run["learning_curve"]["train"], run["learning_curve"]["evaluation"]
        left.plot([e["step"] for e in train], [e["loss"] for e in train], label=run["arm"], alpha=0.8, linewidth=1)
        right.plot([e["step"] for e in evaluation], [e["eval_accuracy"] for e in evaluation], "o-", label=run["arm"])
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="validation accuracy")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def with_results(readme, table):
    """`readme` with `table` between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README is out of date")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    runs = load_results(ROOT / "results/imdb")
    readme = with_results(path.read_text(), results_table(runs))
    if arguments.check:
        if readme != path.read_text():
            sys.exit("README.md does not agree with results/; run python scripts/report.py")
        return
    plot_learning_curves(runs, ROOT / "docs/imdb_learning_curves.png")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(readme)
    temporary.replace(path)
    print("wrote README.md and docs/imdb_learning_curves.png")


if __name__ == "__main__":
    main()
