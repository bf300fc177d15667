#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Keeps small checkpoints of the release that is installed, with what they answer, so that later ones can be tested to
load them. Run once for each release, before its version is raised:

python tests/releases/make.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

import astroformer_hf
from astroformer_hf import AstroformerConfig, AstroformerVisionConfig


SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,
}
TEXT = {"vocab_size": 40, "max_position_embeddings": 24, **SHAPE}
IMAGE = {"image_size": 12, "patch_size": 4, **SHAPE}


def inputs_of_text():
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return {"input_ids": torch.randint(1, 40, (2, 9)), "attention_mask": mask}


def checkpoints():
    """Name, class, configuration and inputs of each checkpoint: one for each head's kind and each astrocyte code."""
    named = {"id2label": {0: "bad", 1: "good"}}
    yield "text_activity", "ForSequenceClassification", AstroformerConfig(**TEXT, **named), inputs_of_text()
    learned = AstroformerConfig(**TEXT, astrocyte_code="learned", presynaptic_alpha=0.75)
    yield "causal_learned", "ForCausalLM", learned, inputs_of_text()
    favor = AstroformerConfig(**TEXT, feature_map="favor", num_random_features=8, astrocyte_code="sinusoidal")
    yield "masked_favor", "ForMaskedLM", favor, inputs_of_text()
    image = AstroformerVisionConfig(**IMAGE, astrocyte_code="sinusoidal", pooling="cls")
    yield "image_sinusoidal", "ForImageClassification", image, {"pixel_values": torch.randn(2, 3, 12, 12)}


def main():
    release = Path(__file__).resolve().parent / astroformer_hf.__version__
    if release.exists():
        raise SystemExit(f"{release} exists already; the checkpoints of a release are made once")
    torch.manual_seed(0)
    for name, head, config, inputs in checkpoints():
        model = getattr(astroformer_hf, f"Astroformer{head}")(config).eval()
        folder = release / name
        model.save_pretrained(folder)
        for code in folder.glob("*.py"):  # the loading release brings its own
            code.unlink()
        with torch.no_grad():
            logits = model(**inputs).logits
        save_file({**inputs, "logits": logits}, folder / "expected.safetensors")
        print(folder)


if __name__ == "__main__":
    main()
