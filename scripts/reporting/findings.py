# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Tables across tasks: what each switch is worth (docs/findings.md), from the records of the preset "switches"; and
what states of a constant size recall (docs/long_documents.md), from those of the preset "long"."""

import statistics

from comparison.summaries import chance, significance, with_spread
from comparison.tasks import TASKS

from reporting.comparisons import difference
from reporting.tables import table


# What the best form is compared with, in words.
RIVALS = {
    "softmax": "softmax attention",
    "softmax_decay": "softmax attention with learned decay",
    "softmax_convolution": "softmax attention with a convolution of 4",
    "linear": "linear attention",
    "paper": "the paper's form",
}
SWITCHES = {
    "best_without_decay": "leaky synapses (`synaptic_decay`)",
    "best_without_synapse_target": "α at the synapse (`presynaptic_target`)",
    "best_without_calcium_sources": "calcium of all sources (`calcium_sources`)",
    "best_without_astrocyte": "the astrocyte's Hebbian plasticity (`use_astrocyte_hebbian`)",
    "best_without_feedback": "the astrocyte's feedback (`use_calcium_feedback`)",
}


def findings_lines(known):
    """Three tables, arms by tasks, as Markdown lines.

    Args:
        known (`reporting.comparisons.Comparison`): of the preset "switches".
    """
    tasks = [task for task, arms in known.tasks.items() if "best" in arms]
    header = [TASKS[task].short_title for task in tasks]
    return [
        "How much better the best form is than others (accuracy in percentage points, or loss in nats per token; "
        "positive is better), with the standard error and the p of Welch's t-test over the seeds:",
        "",
        *table(["best form against", *header], rows_against(known, tasks, RIVALS)),
        "How much better it is with a switch than without, that is, what the switch contributes:",
        "",
        *table(["switch", *header], rows_against(known, tasks, SWITCHES)),
        "Steps to 95% of the way that softmax attention makes, over those of softmax attention (below 1 is faster); "
        '"-" where softmax attention learns nothing:',
        "",
        *table(["attention", *header], speed_rows(known, tasks)),
    ]


def rows_against(known, tasks, arms):
    rows = []
    for arm, title in arms.items():
        cells = []
        for task in tasks:
            found = known.tasks[task]
            if arm in found:
                better = difference(TASKS[task], found["best"], found[arm])
                cells.append(f"{better}, {significance(found['best'], found[arm])}")
            else:
                cells.append("")
        rows.append([title, *cells])
    return rows


def speed_rows(known, tasks):
    rows = []
    for arm, title in {"best": "the best form", **RIVALS, **without_titles()}.items():
        if arm == "softmax":
            continue
        rows.append([title, *(relative_steps(known, task, arm) for task in tasks)])
    return rows


def without_titles():
    return {arm: f"the best form without {title}" for arm, title in SWITCHES.items()}


def relative_steps(known, task, arm):
    """The mean steps of an arm to the second of `comparisons.GOALS`, over those of the softmax arm, for a table."""
    found = known.tasks[task]
    if arm not in found or "softmax" not in found:
        return ""
    if not learns(found["softmax"]):
        return "-"
    goal = known.goals(task)[1]
    own, softmax = ([step for step in found[name].steps_to(goal) if step is not None] for name in (arm, "softmax"))
    if not own or not softmax:
        return "not reached"
    missing = len(found[arm].values) - len(own)
    note = f" ({len(own)} of {len(found[arm].values)} seeds)" if missing else ""
    return f"{statistics.fmean(own) / statistics.fmean(softmax):.2f}{note}"


def learns(summary):
    """Whether an arm does clearly better than a guess: its mean is above chance by more than a quarter of the way to
    the best that there is."""
    if summary.task.metric != "accuracy":
        return True
    guess = chance(summary.task, summary.records[0])
    return summary.mean > guess + 0.25 * (1 - guess)


def recall_lines(known):
    """Accuracy against the bytes of the state, arms by numbers of pairs, as Markdown lines; none without records.

    Args:
        known (`reporting.comparisons.Comparison`): of the preset "long".
    """
    tasks = {task: arms for task, arms in known.tasks.items() if task.startswith("mqar")}
    if not tasks:
        return []
    firsts = [next(iter(arms.values())).records[0] for arms in tasks.values()]
    header = ["attention"]
    for first in firsts:
        header += [f"{first['num_pairs']} pairs", "state, bytes"]
    rows = []
    for arm in dict.fromkeys(arm for arms in tasks.values() for arm in arms):
        row = [known.arms[arm].title]
        for arms in tasks.values():
            if arm in arms:
                state = arms[arm].average("state_bytes")
                accuracy = with_spread(arms[arm].task, arms[arm].mean, arms[arm].spread)
                row += [accuracy, "" if state is None else f"{state:,.0f}"]
            else:
                row += ["", ""]
        rows.append(row)
    guesses = ", ".join(f"{first['chance']:.1%}" for first in firsts)
    return [
        "## What a state recalls",
        "",
        "Multi-query associative recall in one layer: how many of the values are found, and what a decoder keeps of "
        "the example, which for softmax attention grows with its length and for the others does not:",
        "",
        *table(header, rows),
        f"A guess at one of the example's values: {guesses}. An arm without a size has no cache. More in "
        "[the records](../results/README.md#preset-long).",
        "",
    ]
