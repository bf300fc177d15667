# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What is compared: tasks, arms and presets, the cells that they make, and what the records of the cells say.

A cell is one training run: a task, an arm, a learning rate and a seed, at the size of a preset. Its record is a JSON
file, `results/PRESET/TASK/ARM_rateRATE_seedSEED.json`. Every arm is trained with the same learning rates from the first
seed, and with the rate that was best on the validation split from the other seeds.
"""

import json
import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """What is learned: the script that trains, where the data are, and what is measured."""

    title: str
    script: str
    metric: str  # "accuracy", or "loss" in nats per token
    hub: tuple = ()  # arguments that take the data from the Hub; without any, the data come with Python

    @property
    def sign(self):
        """1 where more of the metric is better, -1 where less is."""
        return -1 if self.metric == "loss" else 1


TEXT, IMAGE, LANGUAGE = "train_text_classification", "train_image_classification", "train_language_model"
HELD_OUT = ("--validation_share", "0.1", "--test_split", "test")  # choose on a part of train, measure on test

TASKS = {
    "imdb": Task(
        "IMDB, sentiment of film reviews", TEXT, "accuracy", ("--dataset_name", "stanfordnlp/imdb", *HELD_OUT)
    ),
    "cifar10": Task("CIFAR-10, small images", IMAGE, "accuracy", ("--dataset_name", "uoft-cs/cifar10", *HELD_OUT)),
    "shakespeare": Task(
        "Tiny Shakespeare, character by character",
        LANGUAGE,
        "loss",
        ("--dataset_name", "Trelis/tiny-shakespeare", "--text_column", "Text", *HELD_OUT),
    ),
    "wikitext2": Task(
        "WikiText-2, in byte pairs",
        LANGUAGE,
        "loss",
        ("--dataset_name", "Salesforce/wikitext", "--dataset_config_name", "wikitext-2-raw-v1", "--test_split", "test"),
    ),
    "docstrings": Task("Docstrings of Python, by package", TEXT, "accuracy"),
    "digits": Task("Digits of scikit-learn", IMAGE, "accuracy"),
    "characters": Task("Docstrings of Python, character by character", LANGUAGE, "loss"),
}


@dataclass(frozen=True)
class Arm:
    """A variant of attention in the common skeleton.

    Args:
        title (`str`): what it is, for tables.
        arguments (`tuple`): of the training script. "ACTIVITY", "POSITIONAL" and "FULL" stand for what the setting of
            a task says of them.
    """

    title: str
    arguments: tuple


def _arm(title, arguments):
    return Arm(title, tuple(arguments.split()))


NO_ALPHA = "--presynaptic_alpha 1"
NO_HEBBIAN = "--use_astrocyte_hebbian false"
ARMS = {
    "softmax": _arm("softmax attention", "--attention_type softmax"),
    "linear": _arm("linear attention: no astrocyte, α = 1", "--attention_type linear"),
    "full": _arm("all three effects", "FULL"),
    "hebbian_activity": _arm("linear + astrocyte Hebbian, code activity", f"ACTIVITY {NO_ALPHA}"),
    "presynaptic_0.75": _arm("linear + presynaptic α = 0.75", f"{NO_HEBBIAN} --presynaptic_alpha 0.75"),
    "hebbian_learned": _arm(
        "linear + astrocyte Hebbian, code learned", f"--astrocyte_code learned POSITIONAL {NO_ALPHA}"
    ),
    "full_without_feedback": _arm("all three effects, without feedback", "FULL --use_calcium_feedback false"),
    "hebbian_sinusoidal": _arm(
        "linear + astrocyte Hebbian, code sinusoidal", f"--astrocyte_code sinusoidal POSITIONAL {NO_ALPHA}"
    ),
    "presynaptic_0.25": _arm("linear + presynaptic α = 0.25", f"{NO_HEBBIAN} --presynaptic_alpha 0.25"),
    "presynaptic_0.5": _arm("linear + presynaptic α = 0.5", f"{NO_HEBBIAN} --presynaptic_alpha 0.5"),
    "random_features": _arm("fixed random features, the predecessor", f"--feature_map favor {NO_HEBBIAN} {NO_ALPHA}"),
}


@dataclass(frozen=True)
class Setting:
    """A task in a preset.

    Args:
        arguments (`tuple`): the skeleton and the training that all arms share.
        rates (`tuple`): the learning rates that every arm is tried with.
        seeds (`tuple`): of the final runs; the rates are tried with the first.
        activity (`tuple`): how the code "activity" is set.
        positional (`tuple`): how the codes "learned" and "sinusoidal" are set.
        full (`tuple`): code and alpha of the full arm.
    """

    arguments: tuple
    rates: tuple
    seeds: tuple
    activity: tuple
    positional: tuple
    full: tuple


def _setting(arguments, rates, seeds=(42, 43, 44), **astrocyte):
    words = {name: tuple(text.split()) for name, text in {**OF_TEXT, **astrocyte}.items()}
    return Setting(tuple(arguments.split()), rates, seeds, **words)


# How the astrocyte starts was chosen in trial runs on the training and validation splits: on a line of tokens the code
# "activity" may start loud and positional codes may not; on a grid of patches it is the other way round.
ACTIVITY_ON_LINE = "--astrocyte_code activity --astrocyte_scale 3 --astrocyte_resting_activity 3"
OF_TEXT = {
    "activity": ACTIVITY_ON_LINE,
    "positional": "--astrocyte_resting_activity 0.05",
    "full": f"{ACTIVITY_ON_LINE} --presynaptic_alpha 0.75",
}
OF_IMAGES = {
    "activity": "--astrocyte_code activity --astrocyte_scale 3 --astrocyte_resting_activity 0.3",
    "positional": "--astrocyte_resting_activity 1",
    "full": "--astrocyte_code sinusoidal --astrocyte_resting_activity 1 --presynaptic_alpha 0.75",
}

# "exp" is the feature map that serves linear attention best. The model of the last step is measured, not the best along
# the way.
COMMON = (
    "--feature_map exp --eval_strategy steps --eval_steps 0.125 --save_strategy steps --save_steps 0.25 "
    "--save_total_limit 1 --load_best_model_at_end false --logging_steps 0.02 --disable_tqdm true"
)
PRESETS = {
    "smoke": {
        "docstrings": _setting(
            f"--hidden_size 32 --num_attention_heads 2 --num_hidden_layers 1 --max_length 48 --vocab_size 1000 "
            f"--max_steps 16 {COMMON}",
            (1e-3, 4e-3),
            (42, 43),
        ),
        "digits": _setting(
            f"--hidden_size 32 --num_attention_heads 2 --num_hidden_layers 1 --max_steps 16 {COMMON}",
            (1e-3, 4e-3),
            (42, 43),
            **OF_IMAGES,
        ),
        "characters": _setting(
            f"--hidden_size 32 --num_attention_heads 2 --num_hidden_layers 1 --block_size 64 --max_train_samples 300 "
            f"--max_eval_samples 40 --max_steps 16 --num_sample_tokens 20 {COMMON}",
            (1e-3, 4e-3),
            (42, 43),
        ),
    },
    "cpu": {
        "imdb": _setting(
            f"--hidden_size 64 --num_attention_heads 2 --num_hidden_layers 2 --max_length 256 --num_train_epochs 2 "
            f"--attention_dropout 0 {COMMON}",
            (5e-4, 1e-3, 2e-3),
        ),
        "cifar10": _setting(
            f"--hidden_size 64 --num_attention_heads 2 --num_hidden_layers 4 --num_train_epochs 3 {COMMON}",
            (1e-3, 2e-3, 4e-3),
            (42, 43),
            **OF_IMAGES,
        ),
        "shakespeare": _setting(
            f"--hidden_size 128 --num_attention_heads 4 --num_hidden_layers 4 --block_size 64 "
            f"--per_device_train_batch_size 12 --per_device_eval_batch_size 256 --max_steps 2000 "
            f"--dropout 0 {COMMON}",
            (1.5e-3, 3e-3, 6e-3),
        ),
        "wikitext2": _setting(
            f"--hidden_size 128 --num_attention_heads 4 --num_hidden_layers 2 --tokenizer bpe --block_size 128 "
            f"--num_train_epochs 2 --attention_dropout 0 {COMMON}",
            (1e-3, 2e-3, 4e-3),
        ),
    },
    "paper": {
        "imdb": _setting(
            f"--hidden_size 256 --num_attention_heads 8 --num_hidden_layers 4 --max_length 512 --vocab_size 16000 "
            f"--num_train_epochs 6 --bf16 --dataloader_num_workers 4 --attention_dropout 0 {COMMON}",
            (2.5e-4, 5e-4, 1e-3, 2e-3),
            (42, 43, 44, 45, 46),
        ),
        "cifar10": _setting(
            f"--hidden_size 384 --num_attention_heads 6 --num_hidden_layers 6 --num_train_epochs 60 "
            f"--per_device_train_batch_size 128 --dropout 0.1 --bf16 --dataloader_num_workers 8 "
            f"--attention_dropout 0 {COMMON}",
            (2.5e-4, 5e-4, 1e-3, 2e-3),
            (42, 43, 44, 45, 46),
            **OF_IMAGES,
        ),
        "shakespeare": _setting(
            f"--hidden_size 384 --num_attention_heads 6 --num_hidden_layers 6 --block_size 256 "
            f"--per_device_train_batch_size 64 --max_steps 5000 --dropout 0.2 --bf16 --attention_dropout 0 {COMMON}",
            (5e-4, 1e-3, 2e-3, 4e-3),
            (42, 43, 44, 45, 46),
        ),
        "wikitext2": _setting(
            f"--hidden_size 384 --num_attention_heads 6 --num_hidden_layers 6 --tokenizer bpe --vocab_size 16000 "
            f"--block_size 512 --per_device_train_batch_size 16 --num_train_epochs 10 --dropout 0.2 --bf16 "
            f"--attention_dropout 0 {COMMON}",
            (2.5e-4, 5e-4, 1e-3, 2e-3),
            (42, 43, 44, 45, 46),
        ),
    },
}
SMOKE_ARMS = ("softmax", "linear", "full")


def default_arms(preset):
    """The arms of a preset, in the order in which they are trained."""
    return SMOKE_ARMS if preset == "smoke" else tuple(ARMS)


# --------------------------------------------------------------------------------------------------------------------
# Cells
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One training run."""

    preset: str
    task: str
    arm: str
    rate: float
    seed: int

    @property
    def name(self):
        return f"{self.preset}/{self.task}/{self.arm}_rate{self.rate:g}_seed{self.seed}"

    def __str__(self):
        return f"{self.task}, {self.arm}, rate {self.rate:g}, seed {self.seed}"

    @property
    def arguments(self):
        """The arguments of the training script, without those that name data and folders."""
        setting = PRESETS[self.preset][self.task]
        stands_for = {"ACTIVITY": setting.activity, "POSITIONAL": setting.positional, "FULL": setting.full}
        of_arm = [part for word in ARMS[self.arm].arguments for part in stands_for.get(word, (word,))]
        return [
            *setting.arguments,
            *of_arm,
            *("--learning_rate", f"{self.rate:g}", "--seed", str(self.seed)),
        ]


class Records:
    """The records of a preset's cells under a folder, read when they are asked for.

    Args:
        folder (`str`): `results`, or where else records are kept.
        preset (`str`): which of `PRESETS`.
    """

    def __init__(self, folder, preset):
        self.folder, self.preset = Path(folder), preset
        self._read = {}

    def path(self, cell):
        return self.folder / f"{cell.name}.json"

    def get(self, cell):
        """The record of a cell, None if it has not been trained.

        Raises:
            ValueError: it was trained with other arguments than those that the preset has now.
        """
        if cell not in self._read:
            path = self.path(cell)
            if not path.exists():
                return None
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["arguments"] != cell.arguments:
                raise ValueError(
                    f"{path} was made with {' '.join(record['arguments'])}\nbut the preset {self.preset!r} now says "
                    f"{' '.join(cell.arguments)}\nMove the file away to train this cell anew."
                )
            self._read[cell] = record
        return self._read[cell]

    def sweep(self, task, arm):
        """The cells among which the learning rate of an arm is chosen: every rate, the first seed."""
        setting = PRESETS[self.preset][task]
        return [Cell(self.preset, task, arm, rate, setting.seeds[0]) for rate in setting.rates]

    def chosen_rate(self, task, arm):
        """The learning rate that was best on the validation split, None before all were tried."""
        records = {cell.rate: self.get(cell) for cell in self.sweep(task, arm)}
        if None in records.values():
            return None

        def merit(rate):
            value = TASKS[task].sign * records[rate]["metrics"][TASKS[task].metric]
            return value if math.isfinite(value) else -math.inf  # a run that diverged

        return max(records, key=merit)

    def final(self, task, arm, seeds=None):
        """The cells of an arm at its chosen rate, one for each seed; none before that is known."""
        rate = self.chosen_rate(task, arm)
        seeds = PRESETS[self.preset][task].seeds if seeds is None else seeds
        return [] if rate is None else [Cell(self.preset, task, arm, rate, seed) for seed in seeds]

    def missing(self, tasks, arms, seeds=None):
        """The cells that can be trained now, the most wanted first."""
        cells = []
        for task in tasks:
            for arm in arms:
                wanted = self.final(task, arm, seeds) or self.sweep(task, arm)
                cells += [cell for cell in wanted if self.get(cell) is None]
        return cells

    def count(self, tasks, arms, seeds=None):
        """How many cells there are in the end, and how many of them have been trained."""
        total = done = 0
        for task in tasks:
            setting = PRESETS[self.preset][task]
            first, number = setting.seeds[0], seeds or setting.seeds
            total += len(arms) * (len(setting.rates) + len([seed for seed in number if seed != first]))
            for arm in arms:
                cells = {*self.sweep(task, arm), *self.final(task, arm, seeds)}
                done += sum(self.get(cell) is not None for cell in cells)
        return total, done


# --------------------------------------------------------------------------------------------------------------------
# What the records say
# --------------------------------------------------------------------------------------------------------------------


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
    """The metric of a guess: the share of one class, or the loss of a uniform distribution over the vocabulary."""
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
