# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The table of docs/initialisation.md: settings that were tried before the comparison."""

import shlex

from comparison.records import EARLIER_DEFAULTS
from training.options import DEFAULT_TRAINING_ARGUMENTS

from astroformer_hf import AstroformerConfig
from reporting.tables import command_today, origin, table


ARMS = ("neuron_astrocyte", "softmax", "linear")


def field(run, name):
    """A field of a run's configuration, which records only what differs from the defaults of its release."""
    return run["config"].get(name, EARLIER_DEFAULTS.get(name, getattr(AstroformerConfig, name)))


def command(run):
    """The command of a run, with the one option whose default follows from another option written out."""
    option, repeated = "--initializer_range", command_today(run["command"], run["config"])
    return repeated if option in repeated else f"{repeated} {option} {field(run, option[2:])}"


def commands(runs):
    """What it takes to repeat runs, folded away."""
    return ["<details><summary>Commands</summary>", "", "```bash", *map(command, runs), "```", "", "</details>"]


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


def initialisation_lines(runs):
    """A Markdown table of character language models: a row for all that was set but alpha, a column for each alpha."""
    full = [run for run in runs if run["arm"] == "neuron_astrocyte"]
    alphas = sorted({field(run, "presynaptic_alpha") for run in full}, reverse=True)
    rows = {}
    for run in runs:
        alpha = field(run, "presynaptic_alpha") if run in full else alphas[0]
        rows.setdefault(settings(run), {}).setdefault(alpha, {})[run["seed"]] = run["metrics"]["loss"]
    names = ["arm, code", "φ", "scale", "resting", "init", "rate", *(f"α = {alpha:g}" for alpha in alphas)]
    ordered = []
    for row in sorted(rows, key=lambda row: (row[4:], row[0] in ARMS[1:], row[0], *row[1:4])):
        losses = [", ".join(f"{loss:.3f}" for _, loss in sorted(rows[row].get(alpha, {}).items())) for alpha in alphas]
        ordered.append([*row, *losses])
    first = min(runs, key=lambda run: run["seed"])
    return [
        *table(names, ordered),
        "Validation loss in nats per character, lower is better, at the best of the evaluations during "
        f"{first['learning_curve']['evaluation'][-1]['step']:,} steps; "
        f"{first['train_samples']:,} blocks of {first['block_size']} characters, "
        f"{field(first, 'num_hidden_layers')} layers, {field(first, 'hidden_size')} wide, one run each, "
        f"or one per seed in order, starting with {first['seed']}; {origin(first)}. `scale` is "
        "`astrocyte_scale`, `resting` `astrocyte_resting_activity`, `init` `initializer_range`, `rate` the learning "
        "rate; the softmax and linear arms have no α.",
        "",
        *commands(runs),
    ]
