# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The records of the cells: what has been trained, and what can be trained next."""

import json
import math
from pathlib import Path

from comparison.cells import Cell
from comparison.presets import PRESETS
from comparison.tasks import TASKS


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
