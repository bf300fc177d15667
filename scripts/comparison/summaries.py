# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the records of an arm say together."""

import math
import statistics
import warnings
from functools import cached_property

from scipy.stats import ttest_ind
from training.recall import chance_of_a_value

from comparison.tasks import TASKS


FEWEST_FOR_TEST = 3  # seeds of each arm for a test of significance


class Summary:
    """The runs of an arm at its chosen learning rate, over the seeds.

    Args:
        task (`Task`): what was learned.
        records (list of `dict`): one for each seed.
    """

    def __init__(self, task, records):
        self.task, self.records = task, records
        same = ("dataset", "split", "test_split", "steps")
        for name in same:
            values = {record.get(name) for record in records}
            if len(values) > 1:
                arm = records[0]["arm"]
                raise ValueError(f"the records of {arm!r} on {task.title} differ in {name}: {sorted(map(str, values))}")

    @cached_property
    def values(self):
        """The metric of each seed: on the test split where there is one, otherwise on the validation split."""
        return [record.get("test_metrics", record["metrics"])[self.task.metric] for record in self.records]

    @property
    def mean(self):
        return statistics.fmean(self.values)

    @property
    def spread(self):
        """The standard deviation between the seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def average(self, name):
        """The mean of a field of the records, None where one lacks it."""
        values = [record.get(name) for record in self.records]
        return None if None in values else statistics.fmean(values)

    def curves(self):
        """The metric on the validation split along training: a list of steps, and for each seed a list of values."""
        evaluations = [record["learning_curve"]["evaluation"] for record in self.records]
        steps = [entry["step"] for entry in evaluations[0]]
        if any([entry["step"] for entry in evaluation] != steps for evaluation in evaluations):
            raise ValueError(f"the records of {self.records[0]['arm']!r} were not evaluated after the same steps")
        return steps, [[entry[f"eval_{self.task.metric}"] for entry in evaluation] for evaluation in evaluations]

    def steps_to(self, goal):
        """The steps that each seed took until its curve first reached `goal`, interpolated; None where it never did."""
        steps, curves = self.curves()
        return [first_crossing(steps, curve, goal, self.task.sign) for curve in curves]

    def seconds_to(self, goal):
        """The seconds of training, evaluations included, that each seed took to `goal`; None where it never did."""
        taken = zip(self.steps_to(goal), self.records, strict=True)
        return [None if steps is None else steps / record["steps"] * seconds_of(record) for steps, record in taken]

    def areas(self):
        """The area under each seed's curve, over its length: the mean of the metric along training."""
        steps, curves = self.curves()
        return [mean_along(steps, curve) for curve in curves]


def seconds_of(record):
    """How long a run took: the processor's time, where that was measured, which other work on the machine leaves
    alone."""
    return record.get("processor_seconds", record["seconds"])


def mean_along(steps, curve):
    """The mean of a curve between its first and its last point, with straight lines between them; a single point's
    value."""
    if len(steps) == 1:
        return float(curve[0])
    pairs = zip(steps, steps[1:], curve, curve[1:], strict=False)
    return sum((right - left) * (a + b) / 2 for left, right, a, b in pairs) / (steps[-1] - steps[0])


def significance(summary, other):
    """Whether two arms differ by more than their seeds do, in words.

    With at least `FEWEST_FOR_TEST` seeds of each arm, the two-sided p of Welch's t-test over the seeds. With fewer a
    test would say little: "within seeds" where the ranges of the two arms' seeds overlap, "apart" where they do not,
    and the smaller number of seeds.
    """
    a, b = summary.values, other.values
    number = min(len(a), len(b))
    if number < FEWEST_FOR_TEST:
        overlap = min(a) <= max(b) and min(b) <= max(a)
        return f"{'within seeds' if overlap else 'apart'} (n = {number})"
    if summary.spread == other.spread == 0:  # of which Welch's t makes 0 / 0
        return "p = 1" if a[0] == b[0] else "p < 0.001"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that an arm's seeds hardly differ
        p = float(ttest_ind(a, b, equal_var=False).pvalue)
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def first_crossing(steps, curve, goal, sign):
    """Where a curve first reaches a goal, between its points on a straight line.

    Args:
        steps, curve (list): the points of the curve.
        goal (`float`): the value to reach.
        sign (`int`): 1 if the curve should rise to it, -1 if it should fall to it.

    Returns:
        The step, None if the curve never reaches the goal; the first point's where that is past the goal already.
    """
    for i, value in enumerate(curve):
        if sign * value >= sign * goal:
            if i == 0:
                return float(steps[0])
            share = (goal - curve[i - 1]) / (value - curve[i - 1])
            return steps[i - 1] + share * (steps[i] - steps[i - 1])
    return None


def chance(task, record):
    """The metric of a guess: any value of the example, the share of one class, or the loss of a uniform distribution
    over the vocabulary."""
    if "num_pairs" in record:  # not of the record: early ones have 1 / num_pairs
        return chance_of_a_value(record["num_pairs"], record["vocab_size"])
    if task.metric == "loss":
        return math.log(record["config"]["vocab_size"])
    return 1 / len(record["config"]["id2label"])


def summaries(records, task, arms, seeds=None):
    """A `Summary` for each arm of a task whose rate is chosen and of which every seed is there."""
    found = {}
    for arm in arms:
        cells = [records.get(cell) for cell in records.final(task, arm, seeds)]
        if cells and None not in cells:
            found[arm] = Summary(TASKS[task], cells)
    return found


def format_value(task, value):
    """A value of a task's metric, for a table."""
    return f"{value:.1%}" if task.metric == "accuracy" else f"{value:.3f}"


def with_spread(task, mean, spread):
    """Mean and standard deviation, for a table."""
    if spread is None:
        return format_value(task, mean)
    return (
        f"{format_value(task, mean)} ± {100 * spread:.1f}"
        if task.metric == "accuracy"
        else f"{mean:.3f} ± {spread:.3f}"
    )


def summary_lines(records, task, arms, seeds=None):
    """What is known of a task, in lines of text for a terminal."""
    found = summaries(records, task, arms, seeds)
    lines = []
    for arm in arms:
        if arm in found:
            summary = found[arm]
            value = with_spread(summary.task, summary.mean, summary.spread)
            lines.append(
                f"  {arm:24} {summary.task.metric} {value:16} rate {records.chosen_rate(task, arm):<8g} "
                f"{len(summary.values)} seeds, {summary.average('parameters'):,.0f} parameters"
            )
        else:
            lines.append(f"  {arm:24} not complete")
    return lines
