# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The model card of a converted model: what was swapped, and what it costs."""

from pathlib import Path

import jinja2
from huggingface_hub import ModelCard, ModelCardData
from training.files import ROOT, write_whole


def write_card(path, results, is_causal):
    """Fills `model_cards/converted.md.jinja` from the record of a conversion."""
    name = Path(path).resolve().parent.name
    data = ModelCardData(
        library_name="transformers",
        tags=["astroformer", "neuron-astrocyte-attention", "linear-attention"],
        model_name=name,
        **({"base_model": results["model"]} if "/" in results["model"] and not Path(results["model"]).exists() else {}),
    )
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "model_cards"), keep_trailing_newline=True, trim_blocks=True
    )
    templates.globals["zip"] = zip
    content = templates.get_template("converted.md.jinja").render(
        card_data=data.to_yaml(),
        model_name=name,
        results=results,
        swap=results["attention_swap"],
        original=Path(results["model"]).name,
        is_causal=is_causal,
    )
    write_whole(path, ModelCard(content).save)
