# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Tables and figures of the comparison, from the records of scripts/reproduce.py."""

import math
import statistics

import matplotlib
from comparison.arms import ALL_ARMS
from comparison.presets import PRESETS, arms_of, default_arms
from comparison.records import Records
from comparison.summaries import (
    FEWEST_FOR_TEST,
    chance,
    format_value,
    seconds_of,
    significance,
    summaries,
    with_spread,
)
from comparison.tasks import TASKS
from training.recall import chance_of_a_value, chance_of_the_commonest

from reporting.tables import command_today, origin, table


matplotlib.use("Agg")
import matplotlib.pyplot as plt


GOALS = (0.8, 0.95)  # shares of the gap between chance and the end of the softmax arm's mean validation curve
LINES = (".-", "^--", "s:", "v-.", "x-")
PANELS_IN_A_ROW = 4


class Comparison:
    """What is known about a preset: for each task the arms whose runs are complete.

    Args:
        folder (`str`): where the records are.
        preset (`str`): which of `comparison.presets.PRESETS`.
    """

    def __init__(self, folder, preset):
        self.preset = preset
        self.records = Records(folder, preset)
        self.tasks = {}
        for task in PRESETS[preset]:
            found = summaries(self.records, task, default_arms(preset, task))
            if found:
                self.tasks[task] = found

    @property
    def arms(self):
        """The arms that the preset has, by name."""
        return arms_of(self.preset)

    def goals(self, task):
        """The values of the metric that stand for `GOALS`; none without the softmax arm."""
        arms = self.tasks[task]
        if "softmax" not in arms:
            return []
        start = chance(TASKS[task], arms["softmax"].records[0])
        _, curves = arms["softmax"].curves()
        end = statistics.fmean(curve[-1] for curve in curves)
        return [start + share * (end - start) for share in GOALS]


def option(record, name):
    """The value of an option of a run."""
    return dict(zip(record["arguments"], record["arguments"][1:], strict=False))[name]


def split_of(record):
    """The split that a run's reported metric was measured on."""
    return record.get("test_split", record["split"])


def what_it_is(arm, record):
    """An arm in words, one that starts from a form with its code and alpha."""
    has_code = "--astrocyte_code" in record["arguments"] and arm.fields.get("use_astrocyte_hebbian", True)
    if not has_code or arm.base is None:
        return arm.title
    return f"{arm.title}: code {option(record, '--astrocyte_code')}, α = {option(record, '--presynaptic_alpha')}"


def over_seeds(values):
    """The steps or seconds to a goal over the seeds, for a table."""
    found = [value for value in values if value is not None]
    if not found:
        return "not reached"
    spread = f" ± {statistics.stdev(found):,.0f}" if len(found) > 1 else ""
    missing = f" ({len(found)} of {len(values)} seeds)" if len(found) < len(values) else ""
    return f"{statistics.fmean(found):,.0f}{spread}{missing}"


def speed_rows(known, task):
    """How fast each arm of a task learns, as rows of a table."""
    definition, goals = TASKS[task], known.goals(task)
    rows = []
    for arm, summary in known.tasks[task].items():
        areas = summary.areas()
        row = [f"`{arm}`"]
        for goal in goals:
            steps = summary.steps_to(goal)
            reached = sum(step is not None for step in steps)
            row += [f"{reached} of {len(steps)}", over_seeds(steps), over_seeds(summary.seconds_to(goal))]
        spread = statistics.stdev(areas) if len(areas) > 1 else None
        rows.append([*row, with_spread(definition, statistics.fmean(areas), spread)])
    return rows


def speed_lines(known, task):
    """The table of how fast each arm of a task learns, as Markdown lines."""
    definition, goals = TASKS[task], known.goals(task)
    example = next(iter(known.tasks[task].values())).records[0]
    header = ["arm"]
    for goal in goals:
        value = format_value(definition, goal)
        header += [f"reached {value}", f"steps to {value}", f"seconds to {value}"]
    header.append(f"mean {definition.metric} along training")
    number = example.get("curve_samples", example["eval_samples"])
    points = len(example["learning_curve"]["evaluation"])
    lines = [
        f"How fast they learn, by {points} evaluations on {number:,} {example['split']} examples along the way:",
        "",
        *table(header, speed_rows(known, task)),
    ]
    if goals:
        values = " and ".join(format_value(definition, goal) for goal in goals)
        shares = " and ".join(f"{share:.0%}" for share in GOALS)
        lines.append(
            f"- {values} are {shares} of the way from chance to the end of the softmax arm's mean validation curve; "
            "**steps** are read off each seed's curve, with linear interpolation between evaluations; **seconds** are "
            "the same share of the run's. Means are over the seeds that reached it."
        )
    lines.append(
        f"- **mean {definition.metric} along training**: the area under the validation curve, over its length."
    )
    return [*lines, ""]


def difference(definition, summary, other):
    """How much better an arm is than another on average, with the standard error of that, for a table."""
    if other is None or other is summary:
        return ""
    better = definition.sign * (summary.mean - other.mean)
    if summary.spread is None or other.spread is None:
        return f"{100 * better:+.1f}" if definition.metric == "accuracy" else f"{better:+.3f}"
    error = math.hypot(*(arm.spread / len(arm.values) ** 0.5 for arm in (summary, other)))
    if definition.metric == "accuracy":
        return f"{100 * better:+.1f} ± {100 * error:.1f}"
    return f"{better:+.3f} ± {error:.3f}"


def task_lines(known, task):
    """Everything known about a task, as Markdown lines."""
    definition, arms = TASKS[task], known.tasks[task]
    rivals = [arm for arm in ("softmax", "best") if arm in arms]
    example = next((arm for arm in ("best", "full") if arm in arms), next(iter(arms)))
    first = arms[example].records[0]
    metric = f"{split_of(first)} {definition.metric}"
    rows = []
    for arm, summary in arms.items():
        memory = summary.average("peak_memory_bytes")
        rows.append(
            [
                f"`{arm}`",
                what_it_is(known.arms[arm], summary.records[0]),
                with_spread(definition, summary.mean, summary.spread),
                *(difference(definition, summary, arms.get(other)) for other in ("linear", "softmax")),
                *(significance_cell(summary, arms.get(other)) for other in rivals),
                str(len(summary.values)),
                f"{known.records.chosen_rate(task, arm):g}",
                f"{summary.average('parameters'):,.0f}",
                f"{statistics.fmean(map(seconds_of, summary.records)):,.0f}",
                "" if memory is None else f"{memory / 2**20:,.0f}",
            ]
        )
    header = ["arm", "description", metric, "better than linear by", "than softmax by"]
    header += [f"against {other}" for other in rivals] + ["seeds", "rate"]
    header += ["parameters", "seconds", "peak MiB"]
    setting = PRESETS[known.preset][task]
    return [
        f"### {definition.title}",
        "",
        *table(header, rows),
        *explanation(definition, arms, rivals, first, metric),
        "",
        *speed_lines(known, task),
        f"Choice of the learning rate by {first['split']} {definition.metric} with seed "
        f"{setting.seeds[0]}, the best in bold{edge_note(known, task)}:",
        "",
        *table(["arm", *(f"{rate:g}" for rate in rates_tried(known, task))], sweep_rows(known, task)),
        *rates_taken(known, task),
        f"To repeat all of it: `{repeat(known, task, first)}`. One run, the first of `{example}`:",
        "",
        "```bash",
        command_today(first["command"], first["config"]),
        "```",
        "",
    ]


def significance_cell(summary, other):
    return "" if other is None or other is summary else significance(summary, other)


def explanation(definition, arms, rivals, first, metric):
    """What the columns mean, one line each."""
    samples = first.get("test_samples", first["eval_samples"])
    unit = f"blocks of {first['block_size']} tokens" if "block_size" in first else "examples"
    better = "higher is better" if definition.metric == "accuracy" else "in nats per token, lower is better"
    lines = [
        f"- **{metric}** ({better}): after the last of {first['steps']:,} steps, mean ± standard deviation over the "
        f"seeds. Trained on {first['train_samples']:,} {unit} of `{first['dataset']}` and measured on {samples:,}."
        + sampling_error(definition, arms, samples)
        + (
            ""
            if "test_split" in first
            else " Each arm's learning rate was chosen on the same examples with the first seed, which is included in "
            "the mean, so all figures are slightly optimistic."
        ),
        "- **better by**: the difference of the means ± its standard error, positive where the arm is better."
        + (" In percentage points." if definition.metric == "accuracy" else ""),
    ]
    if "majority" in first:
        lines.append(f"- A guess: {guesses(first)}.")
    if rivals:
        lines.append(
            f"- **against**: p is of Welch's t-test over the seeds, two-sided, not corrected for the number of arms; "
            f'with fewer than {FEWEST_FOR_TEST} seeds of either arm, "within seeds" says that the ranges of their '
            'seeds overlap, "apart" that they do not.'
        )
    is_gpu = bool(first["hardware"]["gpus"])
    memory = (
        "of tensors on the GPU"
        if is_gpu
        else "of the whole process, which may have done other runs before: a difference of a hundred MiB means "
        "nothing. `scripts/benchmark.py` measures both in isolation"
    )
    clock = "of the processor" if "processor_seconds" in first else "while other runs shared the machine"
    lines.append(f"- **seconds** of training and evaluation, {clock}, and **peak memory** {memory}. {origin(first)}.")
    return lines


def guesses(record):
    """The accuracies of a guess, in words."""
    majority = f"{record['majority']:.1%}"
    if "num_pairs" in record:
        rules = record["num_pairs"], record["vocab_size"]
        return (
            f"any value of the example {chance_of_a_value(*rules):.1%}, its commonest value "
            f"{chance_of_the_commonest(*rules):.1%}, the commonest value of the training examples {majority}"
        )
    return f"the commonest label of the training examples, on the {record['split']} split, {majority}"


def repeat(known, task, record):
    """The command that repeats a task."""
    words = record["command"].split()
    data = f" --data {task}={words[words.index('--dataset_dir') + 1]}" if "--dataset_dir" in words else ""
    return f"python scripts/reproduce.py --preset {known.preset} --tasks {task}{data} --results_dir outputs/mine"


def sampling_error(definition, arms, samples):
    if definition.metric != "accuracy":
        return ""
    accuracy = statistics.fmean(summary.mean for summary in arms.values())
    error = math.sqrt(accuracy * (1 - accuracy) / samples)
    guesses_of_seeds = {record.get("majority") for summary in arms.values() for record in summary.records}
    of_seeds = ", the same for all seeds" if len(guesses_of_seeds) == 1 else "; each seed has examples of its own"
    return f" The sampling error of an accuracy on that many examples is {error:.1%}{of_seeds}."


def swept(known, task):
    """The arms of a task that had a sweep of learning rates of their own."""
    return [arm for arm in known.tasks[task] if known.records.swept(arm) == arm]


def rates_tried(known, task):
    """All learning rates that any arm was tried with."""
    return sorted({cell.rate for arm in swept(known, task) for cell in known.records.sweep(task, arm)})


def sweep_rows(known, task):
    rows = []
    for arm in swept(known, task):
        chosen = known.records.chosen_rate(task, arm)
        found = {cell.rate: known.records.get(cell) for cell in known.records.sweep(task, arm)}
        cells = []
        for rate in rates_tried(known, task):
            record = found.get(rate)
            value = format_value(TASKS[task], record["metrics"][TASKS[task].metric]) if record else ""
            cells.append(f"**{value}**" if rate == chosen else value)
        rows.append([f"`{arm}`", *cells])
    return rows


def rates_taken(known, task):
    """A line about the arms that take another's learning rate."""
    others = {}
    for arm in known.tasks[task]:
        if known.records.swept(arm) != arm:
            others.setdefault(known.records.swept(arm), []).append(f"`{arm}`")
    if not others:
        return []
    words = "; ".join(f"{', '.join(arms)} that of `{of}`" for of, arms in others.items())
    return [f"The others have no sweep of their own and take a rate as it is: {words}.", ""]


def edge_note(known, task):
    """A remark where the best rate is the largest or smallest that was tried."""
    edges = []
    for arm in swept(known, task):
        rates = [cell.rate for cell in known.records.sweep(task, arm)]
        if known.records.chosen_rate(task, arm) in (min(rates), max(rates)):
            edges.append(f"`{arm}`")
    return f" (at the edge of the range tried for {', '.join(edges)})" if edges else ""


def results_lines(known):
    """The full tables of a preset for results/README.md."""
    lines = [f"## Preset `{known.preset}`", "", *overview_lines(known)]
    for name, title in FIGURES:
        lines += [f"![{title}](figures/{known.preset}_{name}.png)", ""]
    for task in known.tasks:
        lines += task_lines(known, task)
    return lines


def overview_lines(known):
    """One table of a preset, arms by tasks."""
    arms = [arm for arm in known.arms if any(arm in found for found in known.tasks.values())]
    header = ["arm"]
    for task in known.tasks:
        header.append(f"{TASKS[task].short_title}, {TASKS[task].metric}")
    rows = []
    for arm in arms:
        cells = []
        for task, found in known.tasks.items():
            summary = found.get(arm)
            cells.append(with_spread(TASKS[task], summary.mean, summary.spread) if summary else "")
        rows.append([known.arms[arm].title, *cells])
    return [
        *table(header, rows),
        f"Mean and standard deviation over the seeds. {sizes_of(known)} {choice_of_rates(known)} A higher accuracy or "
        "a lower loss is better.",
        "",
    ]


def choice_of_rates(known):
    """How the arms came to their learning rates, as a sentence."""
    if any(known.records.swept(arm) != arm for arm in known.arms):
        return (
            "Each main arm has the learning rate that suits it best, chosen on the first seed, and not at the edge of "
            "the rates tried unless it is said; the others take the rate of the arm that they vary."
        )
    return "Each arm has the learning rate that suits it best, chosen on the first seed from the same three or four."


def sizes_of(known):
    """How large the models of a preset are and how long they were trained, as a sentence."""
    sizes = []
    for task, found in known.tasks.items():
        record = next(iter(found.values())).records[0]
        config = record["config"]
        layers = config.get("num_hidden_layers", "")
        seeds = max(len(summary.values) for summary in found.values())
        sizes.append(
            f"{TASKS[task].short_title}: {layers} {'layer' if layers == 1 else 'layers'}, "
            f"{config.get('hidden_size', '')} wide, {record['steps']:,} steps, {seeds} seeds"
        )
    return "; ".join(sizes) + "."


HEADLINES = {
    "softmax": "softmax attention",
    "softmax_decay": "softmax attention with learned decay",
    "linear": "linear attention",
    "full": "neuron-astrocyte, all three effects",
    "paper": "neuron-astrocyte, the paper's form",
    "best": "neuron-astrocyte, best form",
}


def headline_lines(known):
    """The arms of `HEADLINES`, and where the preset has no best form the best arm with an astrocyte, arms by tasks, for
    the README."""
    header = ["attention"]
    headlines = {arm: title for arm, title in HEADLINES.items() if arm in known.arms}
    rows = [[title] for title in headlines.values()]
    pick_best = "best" not in headlines
    if pick_best:
        rows.append(["neuron-astrocyte, best arm of each task"])
    for task, found in known.tasks.items():
        definition = TASKS[task]
        header.append(f"{definition.short_title}, {definition.metric}")
        others = {arm: definition.sign * x.mean for arm, x in found.items() if arm not in ("softmax", "linear")}
        best = max(others, key=others.get, default=None)
        for row, arm in zip(rows, [*headlines, *([best] if pick_best else [])], strict=True):
            summary = found.get(arm)
            cell = with_spread(definition, summary.mean, summary.spread) if summary else ""
            row.append(f"{cell} (`{arm}`)" if summary and pick_best and row is rows[-1] else cell)
    seeds = sorted({len(summary.values) for found in known.tasks.values() for summary in found.values()})
    record = next(iter(next(iter(known.tasks.values())).values())).records[0]
    return [
        *table(header, rows),
        "Small models, trained from scratch, that differ in their attention and the learning rate that suits it best: "
        f"accuracy (higher is better) or loss in nats per token (lower is better) on {split_of(record)} data, mean ± "
        f"standard deviation over {' or '.join(map(str, seeds))} seeds. "
        + ("The best arm was picked afterwards on the same data. " if pick_best else "")
        + "Sizes, all arms, learning curves and commands are in [results/README.md](results/README.md).",
        "",
    ]


# --------------------------------------------------------------------------------------------------------------------
# Figures
# --------------------------------------------------------------------------------------------------------------------


def panels(number, height=3.6):
    """A figure with a number of panels, and these."""
    columns = min(number, PANELS_IN_A_ROW)
    rows = -(-number // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, height * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[number:]:
        axis.remove()
    return figure, axes.flat[:number]


def styles(known):
    """Line and colour of each arm: ten colours, beginning with the arms that have a learning rate of their own, and
    where there are more arms, the same colours with other lines."""
    main = {arm for task in known.tasks for arm in swept(known, task)}
    arms = [arm for arm in ALL_ARMS if any(arm in found for found in known.tasks.values())]
    arms.sort(key=lambda arm: arm not in main)
    return {arm: {"line": LINES[i // 10 % len(LINES)], "color": f"C{i % 10}"} for i, arm in enumerate(arms)}


def legend_below(figure, axes):
    """One legend for all panels, in which no arm is named twice."""
    handles = {}
    for axis in axes:
        handles.update(reversed(pair) for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    columns = max(1, round(figure.get_figwidth() / 2.6))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8)


def plot_learning(known):
    """Validation curves, mean and range over the seeds, a panel for each task."""
    figure, axes = panels(len(known.tasks))
    style_of = styles(known)
    for axis, (task, arms) in zip(axes, known.tasks.items(), strict=True):
        for arm in swept(known, task):
            summary = arms[arm]
            steps, curves = summary.curves()
            middle = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            style = style_of[arm]
            axis.plot(steps, middle, style["line"], color=style["color"], label=arm, linewidth=1.2, markersize=3)
            low, high = (list(map(pick, zip(*curves, strict=True))) for pick in (min, max))
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        for goal in known.goals(task):
            axis.axhline(goal, color="black", linewidth=0.6, linestyle=":")
        axis.set(title=TASKS[task].short_title, xlabel="step", ylabel=f"validation {TASKS[task].metric}")
        axis.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure


def plot_ablation(known):
    """The metric of each arm, mean and standard deviation, with its seeds as black dots; a panel for each task."""
    figure, axes = panels(len(known.tasks), 4)
    style_of = styles(known)
    for axis, (task, arms) in zip(axes, known.tasks.items(), strict=True):
        names = list(arms)[::-1]
        for i, arm in enumerate(names):
            summary = arms[arm]
            colour = style_of[arm]["color"]
            axis.errorbar(summary.mean, i, xerr=summary.spread or 0, fmt="o", color=colour, capsize=4, markersize=8)
            axis.plot(summary.values, [i] * len(summary.values), "k.", markersize=4)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        if "softmax" in arms:
            axis.axvline(arms["softmax"].mean, color="black", linewidth=0.6, linestyle=":")
        better = "higher is better" if TASKS[task].metric == "accuracy" else "lower is better"
        axis.set(title=TASKS[task].short_title, xlabel=f"{TASKS[task].metric}: {better}", ylim=(-0.6, len(names) - 0.4))
        axis.grid(alpha=0.3, axis="x")
    return figure


def alpha_of(summary):
    """The alpha of an arm's runs; linear attention has 1."""
    record = summary.records[0]
    return 1.0 if record["attention_type"] == "linear" else float(option(record, "--presynaptic_alpha"))


def draw_against_alpha(axis, arms, style, label):
    arms = sorted(arms, key=alpha_of)
    axis.errorbar(
        [alpha_of(summary) for summary in arms],
        [summary.mean for summary in arms],
        [summary.spread or 0 for summary in arms],
        fmt=style,
        capsize=3,
        label=label,
    )


def plot_alpha(known):
    """Linear attention with presynaptic plasticity, against alpha, a panel for each task."""
    figure, axes = panels(len(known.tasks))
    for axis, (task, arms) in zip(axes, known.tasks.items(), strict=True):
        without = [arm for arm in arms if arm == "linear" or arm.startswith(("presynaptic_", "response_"))]
        draw_against_alpha(axis, [arms[arm] for arm in without], "o-", "without an astrocyte Hebbian term")
        at_synapse = [arm for arm in arms if arm == "linear" or arm.startswith("synapse_")]
        if len(at_synapse) > 1:
            draw_against_alpha(axis, [arms[arm] for arm in at_synapse], "^-", "the same, at the synapse")
        if "full" in arms:  # with its code, and the same code at alpha = 1
            code = option(arms["full"].records[0], "--astrocyte_code")
            pair = [arm for arm in ("full", f"hebbian_{code}") if arm in arms]
            draw_against_alpha(axis, [arms[arm] for arm in pair], "s--", f"with it, code {code}")
        if "softmax" in arms:
            axis.axhline(arms["softmax"].mean, color="black", linewidth=0.8, linestyle="--", label="softmax")
        axis.set(title=TASKS[task].short_title, xlabel="α (1: no presynaptic plasticity)", ylabel=TASKS[task].metric)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


FIGURES = (
    ("learning", "Learning curves"),
    ("ablation", "What each effect contributes"),
    ("alpha", "Presynaptic plasticity"),
)
PLOTS = {"learning": plot_learning, "ablation": plot_ablation, "alpha": plot_alpha}


def write_figures(known, folder):
    """Writes the figures of a preset into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in FIGURES:
        figure = PLOTS[name](known)
        path = folder / f"{known.preset}_{name}.png"
        temporary = path.with_suffix(".tmp.png")
        figure.savefig(temporary, dpi=110)
        temporary.replace(path)
        plt.close(figure)
