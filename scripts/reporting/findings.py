# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Tables across tasks: what each switch is worth (docs/findings.md), from the records of the preset "switches"; and
what states of a constant size recall and how long sequences are classified (docs/long_documents.md), from those of the
preset "long"."""

import math
import statistics

from comparison.summaries import chance, format_value, seconds_of, significance, with_spread
from comparison.tasks import TASKS
from training.recall import chance_of_a_value, chance_of_the_commonest

from reporting.comparisons import difference, split_of
from reporting.tables import origin, table


# What the best form is compared with, in words.
RIVALS = {
    "softmax": "softmax attention",
    "softmax_decay": "softmax attention with learned decay",
    "softmax_convolution": "softmax attention with a convolution of 4",
    "linear": "linear attention",
    "linear_convolution": "linear attention with a convolution of 4",
    "linear_decay_gated": "linear attention with gated decay",
    "paper": "the paper's form",
}
SWITCHES = {
    "best_without_decay": "leaky synapses (`synaptic_decay`)",
    "best_without_synapse_target": "α at the synapse (`presynaptic_target`)",
    "best_without_calcium_sources": "calcium of all sources (`calcium_sources`)",
    "best_without_astrocyte": "the astrocyte's Hebbian plasticity (`use_astrocyte_hebbian`)",
    "best_without_feedback": "the astrocyte's feedback (`use_calcium_feedback`)",
}
# What is added to linear attention, one at a time.
ALONE = {
    "linear_decay": "leaky synapses, learned (`synaptic_decay`)",
    "linear_decay_gated": "leaky synapses, gated (`synaptic_decay`)",
    **{f"response_{alpha}": f"α = {alpha} in the response" for alpha in (0.75, 0.5, 0.25)},
    **{f"synapse_{alpha}": f"α = {alpha} at the synapse (`presynaptic_target`)" for alpha in (0.75, 0.5, 0.25)},
    **{f"code_{code}": f"the astrocyte's Hebbian plasticity, code {code}" for code in ("learned", "sinusoidal")},
    "code_activity": "the astrocyte's Hebbian plasticity, code activity",
    "code_activity_all_sources": "the same with calcium of all sources (`calcium_sources`)",
}
COVARIANCE = {
    "softmax_covariance": ("softmax attention", "softmax"),
    "linear_covariance": ("linear attention", "linear"),
    "best_covariance": ("the best form", "best"),
}


def findings_lines(known):
    """Five tables, arms by tasks, as Markdown lines.

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
        *further_lines(
            "How much better linear attention, which has no astrocyte, gets by each effect alone:",
            known,
            "linear attention with",
            {arm: (title, "linear") for arm, title in ALONE.items()},
        ),
        *further_lines(
            "How much better an attention gets by the covariance rule (`hebbian_rule`), a term of its own that any "
            "attention can have:",
            known,
            "attention",
            COVARIANCE,
        ),
        "Steps to 95% of the way that softmax attention makes, over those of softmax attention (below 1 is faster); "
        '"-" where softmax attention learns nothing:',
        "",
        *table(["attention", *header], speed_rows(known, tasks)),
    ]


def rows_against(known, tasks, arms):
    """How much better the best form is than others, by their names and titles."""
    return [
        [title, *(comparison(known.tasks[task], task, "best", arm) for task in tasks)] for arm, title in arms.items()
    ]


def further_lines(caption, known, what, arms):
    """A table of how much better arms are than others, as Markdown lines; with the tasks and arms that were trained.

    Args:
        caption (`str`): what stands above it.
        known (`reporting.comparisons.Comparison`): of the preset "switches".
        what (`str`): the header of the first column.
        arms (`dict`): by name of the arm, its title and the name of the other.
    """
    cells = {
        (arm, task): comparison(found, task, arm, other)
        for task, found in known.tasks.items()
        for arm, (_, other) in arms.items()
    }
    tasks, names = ([x for x in xs if any(cells[key] for key in cells if x in key)] for xs in (known.tasks, arms))
    if not tasks:
        return []
    rows = [[arms[arm][0], *(cells[arm, task] for task in tasks)] for arm in names]
    return [caption, "", *table([what, *(TASKS[task].short_title for task in tasks)], rows)]


def comparison(found, task, arm, other):
    """How much better an arm is than another at a task, and how surely; "" where one was not trained."""
    if arm not in found or other not in found:
        return ""
    return f"{difference(TASKS[task], found[arm], found[other])}, {significance(found[arm], found[other])}"


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
    rules = [(first["num_pairs"], first["vocab_size"]) for first in firsts]
    guesses = ", ".join(f"{chance_of_a_value(*each):.1%}" for each in rules)
    commonest = ", ".join(f"{chance_of_the_commonest(*each):.1%}" for each in rules)
    return [
        "## What a state recalls",
        "",
        "Multi-query associative recall in one layer: how many of the values are found, and what a decoder keeps of "
        "the example, which for softmax attention grows with its length and for the others does not:",
        "",
        *table(header, rows),
        f"A guess at one of the example's values: {guesses}; at the commonest of them: {commonest}. An arm without a "
        "size has no cache. More in [the records](../results/README.md#preset-long).",
        "",
    ]


# What arms that classify long sequences are compared with, in words.
CLASSIFIERS = {"segments": "segments with a memory", "softmax": "softmax attention"}


def classification_lines(known):
    """How well each arm classifies long sequences, a table for each task, as Markdown lines; none without records.

    Args:
        known (`reporting.comparisons.Comparison`): of the preset "long".
    """
    tasks = {task: arms for task, arms in known.tasks.items() if not task.startswith("mqar")}
    if not tasks:
        return []
    lines = ["## Long sequences, classified", ""]
    for task, arms in tasks.items():
        lines += task_lines(known, task, arms)
    return [*lines, "More in [the records](../results/README.md#preset-long).", ""]


def task_lines(known, task, arms):
    """The arms of one task, with what they are compared with."""
    rivals = [arm for arm in CLASSIFIERS if arm in arms]
    first = next(iter(arms.values())).records[0]
    rows = []
    for arm, summary in arms.items():
        areas = summary.areas()
        rows.append(
            [
                known.arms[arm].title,
                with_spread(summary.task, summary.mean, summary.spread),
                above_majority(summary),
                *(comparison(arms, task, arm, rival) if rival != arm else "" for rival in rivals),
                with_spread(summary.task, statistics.fmean(areas), statistics.stdev(areas) if len(areas) > 1 else None),
                f"{statistics.fmean(map(seconds_of, summary.records)):,.0f}",
            ]
        )
    header = [
        "attention",
        f"accuracy on {split_of(first)}",
        f"above the commonest label on {first['split']}",
        *(f"better than {CLASSIFIERS[arm]} by" for arm in rivals),
    ]
    seeds = sorted({len(summary.values) for summary in arms.values()})
    samples = first.get("test_samples", first["eval_samples"])
    segmented = next((arms[arm].records[0] for arm in arms if arm.startswith("segments")), None)
    commonest = statistics.fmean(majority(TASKS[task], record) for record in next(iter(arms.values())).records)
    segments = f"; segments of {segmented['config']['segment_length']} tokens" if segmented else ""
    return [
        f"### {TASKS[task].title}",
        "",
        *table([*header, "mean along training", "seconds"], rows),
        f"{first['steps']:,} steps, {' or '.join(map(str, seeds))} seeds, {samples:,} examples of the "
        f"{split_of(first)} split{segments}. Always the commonest label, on the {first['split']} split: "
        f'{format_value(TASKS[task], commonest)}; "not learnt" is within two sampling errors of it. '
        f"{origin(first)}.",
        "",
    ]


def above_majority(summary):
    """How far an arm's mean accuracy is above always the commonest label, on the validation split, of which the latter
    is known, in percentage points; "not learnt" if that is within two sampling errors."""
    record = summary.records[0]
    guess = statistics.fmean(majority(summary.task, each) for each in summary.records)
    error = math.sqrt(guess * (1 - guess) / record["eval_samples"])
    above = statistics.fmean(record["metrics"]["accuracy"] for record in summary.records) - guess
    return f"{100 * above:+.1f}" if above > 2 * error else "not learnt"


def majority(task, record):
    """The accuracy of always the commonest label; of image classification, whose records lack it, the share of one
    class of as many."""
    return record["majority"] if "majority" in record else chance(task, record)
