# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the parts of the report share."""

from comparison.records import EARLIER_DEFAULTS

from astroformer_hf.configuration_astroformer import BEFORE_IT_EXISTED


def table(header, rows):
    """A Markdown table as lines, an empty one at the end."""
    line = ("| " + "--- | " * len(header)).rstrip()
    return [f"| {' | '.join(header)} |", line, *(f"| {' | '.join(row)} |" for row in rows), ""]


def command_today(command, config):
    """The command of a training run as it repeats the run today: if an older release made it, with those options
    written out that have another default now.

    Args:
        command (`str`): as recorded.
        config (`dict`): the recorded configuration, with what differs from the defaults.
    """
    if BEFORE_IT_EXISTED.keys() <= config.keys():
        return command
    values = {name: config.get(name, default) for name, default in EARLIER_DEFAULTS.items()}
    values["feature_map"] = config["feature_map"]
    left = [f" --{name} {value}" for name, value in values.items() if f"--{name} " not in command]
    return command + "".join(left)


def origin(record):
    """Where a record's figures come from, in words."""
    hardware, versions = record["hardware"], record["versions"]
    machine = ", ".join(hardware["gpus"]) or (
        f"{hardware['cpu']}, {hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    )
    return f"{machine}; torch {versions['torch']}, transformers {versions['transformers']}"
