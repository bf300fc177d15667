# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The records of the cells: what has been trained, and what can be trained next."""

import json
import math
from pathlib import Path

from astroformer_hf.configuration_astroformer import BEFORE_IT_EXISTED
from comparison.cells import Cell, as_arguments
from comparison.presets import PRESETS, arms_of, default_seeds
from comparison.tasks import TASKS


# What options were by default in the releases that had not all switches: so it was where a record lacks them.
EARLIER_DEFAULTS = {"astrocyte_scale": 1.0, "astrocyte_resting_activity": 0.05, **BEFORE_IT_EXISTED}


def as_options(arguments):
    """The arguments of a run by name, each a list of words, whatever their order."""
    found = {}
    for word in [*as_arguments(EARLIER_DEFAULTS), *arguments]:
        if word.startswith("--"):
            values = found[word] = []
        else:
            values.append(word)
    return found


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
            if as_options(record["arguments"]) != as_options(cell.arguments):
                raise ValueError(
                    f"{path} was made with {' '.join(record['arguments'])}\nbut the preset {self.preset!r} now says "
                    f"{' '.join(cell.arguments)}\nMove the file away to train this cell anew."
                )
            self._read[cell] = record
        return self._read[cell]

    def rates(self, task, arm):
        """The learning rates that an arm is tried with, ascending, as far as is known: those of the preset, and further
        ones while the best of all is at an edge, see `Setting.most_wider_rates`."""
        setting = PRESETS[self.preset][task]
        rates, most = sorted(setting.rates), setting.most_wider_rates
        smaller = larger = 0
        while smaller < most or larger < most:
            best = self._best_rate(task, arm, rates)
            if best == rates[0] and smaller < most:
                rates, smaller = [best / 2, *rates], smaller + 1
            elif best == rates[-1] and larger < most:
                rates, larger = [*rates, best * 2], larger + 1
            else:
                break
        return rates

    def _best_rate(self, task, arm, rates):
        """The best of these learning rates on the validation split, None before all were tried."""
        records = {rate: self.get(self._first(task, arm, rate)) for rate in rates}
        if None in records.values():
            return None

        def merit(rate):
            metrics, metric = records[rate]["metrics"], TASKS[task].metric
            # of two that name the same examples right, the one with the lower loss
            values = (TASKS[task].sign * metrics[metric], -metrics["loss"])
            return values if all(map(math.isfinite, values)) else (-math.inf, -math.inf)  # a run that diverged

        return max(records, key=merit)

    def _first(self, task, arm, rate):
        return Cell(self.preset, task, arm, rate, PRESETS[self.preset][task].seeds[0])

    def swept(self, arm):
        """The arm whose learning rate an arm takes: mostly itself."""
        return arms_of(self.preset)[arm].rate_of or arm

    def sweep(self, task, arm):
        """The cells among which the learning rate of an arm is chosen, as far as is known: every rate, the first
        seed. For an arm that takes another's rate, the cells of that."""
        arm = self.swept(arm)
        return [self._first(task, arm, rate) for rate in self.rates(task, arm)]

    def chosen_rate(self, task, arm):
        """The learning rate that was best on the validation split, None before all were tried."""
        arm = self.swept(arm)
        return self._best_rate(task, arm, self.rates(task, arm))

    def final(self, task, arm, seeds=None):
        """The cells of an arm at its chosen rate, one for each seed; none before that is known."""
        rate = self.chosen_rate(task, arm)
        seeds = default_seeds(self.preset, task, arm) if seeds is None else seeds
        return [] if rate is None else [Cell(self.preset, task, arm, rate, seed) for seed in seeds]

    def missing(self, tasks, arms, seeds=None):
        """The cells that can be trained now, the most wanted first."""
        cells = {}  # keys alone: in order, and each once
        for task in tasks:
            for arm in self._trained(task, arms):
                wanted = self.final(task, arm, seeds) or self.sweep(task, arm)
                cells |= {cell: None for cell in wanted if self.get(cell) is None}
        return list(cells)

    def count(self, tasks, arms, seeds=None):
        """How many cells there are in the end, as far as is known, and how many of them have been trained."""
        total, cells = 0, set()
        for task in tasks:
            first, swept = PRESETS[self.preset][task].seeds[0], set()
            for arm in self._trained(task, arms):
                number = default_seeds(self.preset, task, arm) if seeds is None else seeds
                own = self.swept(arm) == arm
                swept |= set(self.sweep(task, arm))
                total += len([seed for seed in number if not own or seed != first])
                cells |= {*self.sweep(task, arm), *self.final(task, arm, seeds)}
            total += len(swept)
        return total, sum(self.get(cell) is not None for cell in cells)

    def _trained(self, task, arms):
        """Those of the arms that are trained at a task."""
        setting, known = PRESETS[self.preset][task], arms_of(self.preset)
        return [arm for arm in arms if setting.trains(arm, known[arm])]
