# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the parts of the report share."""


def table(header, rows):
    """A Markdown table as lines, an empty one at the end."""
    line = ("| " + "--- | " * len(header)).rstrip()
    return [f"| {' | '.join(header)} |", line, *(f"| {' | '.join(row)} |" for row in rows), ""]


def origin(record):
    """Where a record's figures come from, in words."""
    hardware, versions = record["hardware"], record["versions"]
    machine = ", ".join(hardware["gpus"]) or (
        f"{hardware['cpu']}, {hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    )
    return f"{machine}; torch {versions['torch']}, transformers {versions['transformers']}"
