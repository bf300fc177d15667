# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Which models of the library take neuron-astrocyte attention, for docs/pretrained.md."""

from conversion.library_models import REFUSED, SUPPORTED

from reporting.tables import table


def library_models_lines():
    """The models that are tested, as Markdown lines: those that work, and what refuses the others."""
    names = ", ".join(f"`{model.name}`" for model in SUPPORTED)
    rows = [[f"`{model.name}`", model.reason or model.refused] for model in REFUSED]
    return [f"These work: {names}.", "", "These are refused:", "", *table(["model", "because of"], rows)]
