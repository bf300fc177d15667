#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes the results of the README, tables and figures, from the JSON files under results/.

python scripts/report.py            rewrites README.md and the figures in docs/
python scripts/report.py --check    fails if README.md does not agree with the JSON files
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent))
from training_common import DEFAULT_TRAINING_ARGUMENTS

from astroformer_hf import AstroformerConfig


ROOT = Path(__file__).resolve().parent.parent
ARMS = ("neuron_astrocyte", "softmax", "linear")
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


def learning_rate(run):
    """The learning rate of a run, from its command."""
    words = shlex.split(run["command"])
    option = "--learning_rate"
    return float(words[words.index(option) + 1]) if option in words else DEFAULT_TRAINING_ARGUMENTS["learning_rate"]


def settings(run):
    """What a row of the table of language models stands for: all that was set, but for alpha."""
    is_full = run["arm"] == "neuron_astrocyte"
    return (
        run["arm"] if not is_full else f"neuron_astrocyte, {field(run, 'astrocyte_code')}",
        "" if run["arm"] == "softmax" else field(run, "feature_map"),
        f"{field(run, 'astrocyte_scale'):g}" if is_full else "",
        f"{field(run, 'astrocyte_resting_activity'):g}" if is_full else "",
        f"{field(run, 'initializer_range'):g}",
        f"{learning_rate(run):g}",
    )


def shakespeare_table(runs):
    """A Markdown table of character language models: a row for all that was set but alpha, a column for each alpha."""
    full = [run for run in runs if run["arm"] == "neuron_astrocyte"]
    alphas = sorted({field(run, "presynaptic_alpha") for run in full}, reverse=True)
    rows = {}
    for run in runs:
        alpha = field(run, "presynaptic_alpha") if run in full else alphas[0]
        rows.setdefault(settings(run), {}).setdefault(alpha, {})[run["seed"]] = run["metrics"]["loss"]
    names = ["arm, code", "φ", "scale", "resting", "init", "rate", *(f"α = {alpha:g}" for alpha in alphas)]
    lines = [f"| {' | '.join(names)} |", "| " + "--- | " * len(names)]
    for row in sorted(rows, key=lambda row: (row[4:], row[0] in ARMS[1:], row[0], *row[1:4])):
        losses = [", ".join(f"{loss:.3f}" for _, loss in sorted(rows[row].get(alpha, {}).items())) for alpha in alphas]
        lines.append(f"| {' | '.join((*row, *losses))} |")
    first = min(runs, key=lambda run: run["seed"])
    return [
        *(line.rstrip() for line in lines),
        "",
        "Validation loss in nats per character, lower is better, at the best of the evaluations along "
        f"{first['learning_curve']['evaluation'][-1]['step']:,} steps; "
        f"{first['train_samples']:,} blocks of {first['block_size']} characters, "
        f"{field(first, 'num_hidden_layers')} layers, {field(first, 'hidden_size')} wide, one run each or "
        f"one for each of several seeds in turn; {origin(first)}. `scale` is `astrocyte_scale`, `resting` "
        "`astrocyte_resting_activity`, `init` `initializer_range`, `rate` the learning rate; the softmax and linear "
        "arms have no α. The figure shows the best "
        "run of each arm and code.",
        "",
        *commands(runs),
    ]


SECTIONS = (
    ("imdb", "IMDB, sentiment of film reviews", lambda runs: classification_table(runs, "reviews")),
    ("cifar10", "CIFAR-10, small images", lambda runs: classification_table(runs, "images")),
    ("shakespeare", "Tiny Shakespeare, character by character", shakespeare_table),
)


# --------------------------------------------------------------------------------------------------------------------
# Speed and memory
# --------------------------------------------------------------------------------------------------------------------


def load_benchmarks():
    """The records of scripts/benchmark.py, one for each kind of device."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "results/benchmark").glob("*.json"))]


class Cases:
    """The rows of a benchmark, to be looked up."""

    def __init__(self, rows):
        self.rows = {
            (row["section"], row["causal"], row["backward"], row["length"], row["contestant"]): row for row in rows
        }

    def value(self, field, contestant, section, length, causal=False, backward=False):
        """A measured figure, None where there is none."""
        return self.rows.get((section, causal, backward, length, contestant), {}).get(field)

    def ratio(self, field, other, section, length, causal=False, backward=False):
        """The figure of `other` over that of "neuron_astrocyte": of times, how many times as fast this is."""
        own, others = (
            self.value(field, name, section, length, causal, backward) for name in ("neuron_astrocyte", other)
        )
        return others / own if own and others else None

    def lengths(self, section):
        return sorted({key[3] for key in self.rows if key[0] == section})


def times(ratio):
    """A ratio for a table."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def table(header, rows):
    line = ("| " + "--- | " * len(header)).rstrip()
    return [f"| {' | '.join(header)} |", line, *(f"| {' | '.join(row)} |" for row in rows), ""]


def benchmark_text(record):
    """The tables of one benchmark as Markdown lines."""
    cases, hardware, versions = Cases(record["rows"]), record["hardware"], record["versions"]
    machine = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['threads']} threads"
    ways = [(causal, backward) for causal in (False, True) for backward in (False, True)]
    names = ["forward", "and backward", "causal, forward", "and backward"]
    lines = [
        "Measured by one command, taken up again where it was stopped, on "
        f"{machine}, {record['dtype']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {record['heads']} heads of {record['head_dim']}, alpha 0.5, about 2,048 tokens "
        "per batch or one longer sequence. **How many times as fast as PyTorch's `scaled_dot_product_attention`** is "
        'the operation, with a code that is given ("learned" or "sinusoidal"):',
        "",
        *table(
            ["tokens", *names],
            [
                [f"{n:,}", *(times(cases.ratio("seconds", "sdpa", "operation", n, *way)) for way in ways)]
                for n in cases.lengths("operation")
            ],
        ),
        "Where a cell is empty, softmax attention would have taken too long. The same operation against the least that "
        "any linear attention must do, its two bare matrix products (1 would be the limit), and against its own plain "
        "form in PyTorch's operations:",
        "",
        *table(
            [
                "tokens",
                "of the products' time: forward",
                "and backward",
                "without an astrocyte: forward",
                "and backward",
            ]
            + ["times as fast as the plain form: forward", "and backward"],
            [
                [
                    f"{n:,}",
                    *(
                        times(inverse(cases.ratio("seconds", "products", "operation", n, False, b)))
                        for b in (False, True)
                    ),
                    *(times(over_products(cases, n, b)) for b in (False, True)),
                    *(times(cases.ratio("seconds", "plain", "operation", n, False, b)) for b in (False, True)),
                ]
                for n in cases.lengths("operation")
            ],
        ),
        f'**Whole models**, {record["layers"]} layers, {record["width"]} wide, with the default code "activity": a '
        "training step, how many times as fast as that of the softmax arm in the same skeleton and of other models of "
        "that size; and the peak of tensors' memory over that of the softmax arm (a batch of one).",
        "",
        *table(
            ["tokens", "encoder / softmax", "/ BERT", "/ astrohebbian", "decoder / softmax", "/ Mamba-2"]
            + ["memory: encoder", "decoder"],
            [
                [
                    f"{n:,}",
                    *(
                        times(cases.ratio("seconds", x, "training", n, False, True))
                        for x in ("softmax", "BERT", "astrohebbian")
                    ),
                    *(times(cases.ratio("seconds", x, "training", n, True, True)) for x in ("softmax", "Mamba-2")),
                    *(
                        times(
                            inverse(
                                cases.ratio("peak_bytes", "softmax", "memory of a training step", n, causal, True), 3
                            )
                        )
                        for causal in (False, True)
                    ),
                ]
                for n in cases.lengths("training")
            ],
        ),
        "**Decoding** after a context, one sequence:",
        "",
        *table(
            ["context", "ms per token", "softmax arm", "cache, MiB", "softmax arm"],
            [
                [
                    f"{n:,}",
                    *(
                        f"{cases.value(field, name, 'decoding', n, True) * factor:,.2f}"
                        for field, factor in (("seconds", 1e3), ("cache_bytes", 2**-20))
                        for name in ("neuron_astrocyte", "softmax")
                    ),
                ]
                for n in cases.lengths("decoding")
            ],
        ),
        f"`{record['command']}`",
    ]
    return lines


def inverse(ratio, digits=None):
    return None if ratio is None else round(1 / ratio, digits) if digits else 1 / ratio


def over_products(cases, length, backward):
    """Time of the operation without an astrocyte code over that of the bare products."""
    own, products = (
        cases.value("seconds", name, "operation", length, False, backward) for name in ("no astrocyte", "products")
    )
    return own / products if own and products else None


def plot_benchmark(record, path):
    """Draws speed, memory and decoding against the length, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = Cases(record["rows"])
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    (operation, model), (memory, decoding) = axes

    def draw(axis, lengths, function, label, style):
        points = [(n, function(n)) for n in lengths]
        points = [(n, y) for n, y in points if y]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label)

    for causal, name in ((False, "bidirectional"), (True, "causal")):
        for backward, way, style in ((False, "forward", ".--"), (True, "forward and backward", ".-")):
            draw(
                operation,
                cases.lengths("operation"),
                lambda n, c=causal, b=backward: cases.ratio("seconds", "sdpa", "operation", n, c, b),
                f"{name}, {way}",
                style,
            )
        draw(
            model,
            cases.lengths("training"),
            lambda n, c=causal: cases.ratio("seconds", "softmax", "training", n, c, True),
            f"training step, {'decoder' if causal else 'encoder'}",
            ".-",
        )
        draw(
            model,
            cases.lengths("inference"),
            lambda n, c=causal: cases.ratio("seconds", "softmax", "inference", n, c, False),
            f"inference, {'decoder' if causal else 'encoder'}",
            ".--",
        )
    for name, style in (("neuron_astrocyte", ".-"), ("softmax", ".--")):
        draw(
            memory,
            cases.lengths("memory of a training step"),
            lambda n, name=name: (
                (cases.value("peak_bytes", name, "memory of a training step", n, False, True) or 0) / 2**20
            ),
            f"{name}, training step of the encoder",
            style,
        )
        draw(
            decoding,
            cases.lengths("decoding"),
            lambda n, name=name: (cases.value("seconds", name, "decoding", n, True) or 0) * 1e3,
            name,
            style,
        )
    operation.set(title="the operation", ylabel="times as fast as SDPA", yscale="log")
    model.set(title="whole models", ylabel="times as fast as the softmax arm", yscale="log")
    memory.set(title="peak memory, a batch of one", ylabel="MiB of tensors", yscale="log")
    decoding.set(title="decoding, one sequence", ylabel="ms per token", ylim=(0, None))
    for axis in axes.flat:
        axis.set(xlabel="tokens", xscale="log")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    for axis in (operation, model):
        axis.axhline(1, color="black", linewidth=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def results_text():
    """The results as Markdown, from the records alone."""
    lines = []
    for record in load_benchmarks():
        device = "GPU" if record["hardware"]["gpus"] else "CPU"
        lines += [f"### Speed and memory on a {device}", "", *benchmark_text(record), ""]
        lines += [f"![Speed and memory](docs/benchmark_{device.lower()}.png)", ""]
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
    if len(runs) > len(ARMS):  # too many to be told apart: of each arm and code its best
        best = {}
        for run in sorted(runs, key=lambda run: -run["metrics"][metric]):
            best[settings(run)[0]] = run
        runs = list(best.values())
    for run in runs:
        label = run["arm"] if len(runs) <= len(ARMS) else settings(run)[0]
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
    for record in load_benchmarks():
        plot_benchmark(record, ROOT / f"docs/benchmark_{'gpu' if record['hardware']['gpus'] else 'cpu'}.png")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(readme)
    temporary.replace(path)
    print("wrote README.md and the figures in docs/")


if __name__ == "__main__":
    main()
