# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The cells of the comparison, and the arguments that train them."""

from dataclasses import dataclass

from comparison.presets import FLAG, PRESETS, SHARED, arms_of


def fields_of(arm, setting):
    """The fields of the configuration that an arm sets at a task.

    Args:
        arm (`Arm`): the variant.
        setting (`Setting`): the task in a preset.

    Returns:
        `dict`, in the order of the arguments of a cell.
    """
    fields = {}
    for name, value in {**setting.forms.get(arm.base, {}), **arm.fields}.items():
        fields[name] = value
        if name == "astrocyte_code":
            fields |= setting.start_of_code[value]
    return fields


def as_arguments(options):
    """Options as the arguments of a script: booleans as "true" and "false", numbers as short as they can be,
    the values of a tuple one after the other."""
    arguments = []
    for name, value in options.items():
        arguments.append(f"--{name}")
        for one in value if isinstance(value, tuple) else [value]:
            if isinstance(one, bool):
                arguments.append(str(one).lower())
            elif one is not FLAG:
                arguments.append(f"{one:g}" if isinstance(one, float) else str(one))
    return arguments


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
        own = setting.options
        return [
            *as_arguments(own),
            *as_arguments({name: value for name, value in SHARED.items() if name not in own}),
            *as_arguments(fields_of(arms_of(self.preset)[self.arm], setting)),
            *as_arguments({"learning_rate": self.rate, "seed": self.seed}),
        ]
