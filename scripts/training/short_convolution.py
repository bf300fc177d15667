# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A short convolution over queries, keys and values: a control of the comparison, not a part of the package.

Many recent linear attentions have one (Fu et al., "Hungry Hungry Hippos", ICLR 2023; Arora et al., "Zoology", ICLR
2024): it lets a token see the few before it, which is what recall in one layer takes. Here it is depthwise and causal,
without a bias or an activation, and starts as PyTorch starts a convolution.
"""

import torch
from safetensors.torch import load_model
from torch import nn

from astroformer_hf.forward_keywords import PACKING_KEYWORDS


PROJECTIONS = ("q_proj", "k_proj", "v_proj")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")  # in their order
FORBIDDEN = ("position_ids", "cache", "past_key_values", *PACKING_KEYWORDS)


class ConvolvedProjection(nn.Module):
    """A projection whose output is convolved over the tokens: `(batch, length, in)` to `(batch, length, out)`.

    Args:
        projection (`nn.Linear`): the projection.
        taps (`int`): how many tokens an output sees, its own the last of them.
    """

    def __init__(self, projection, taps):
        super().__init__()
        self.projection = projection
        bound = taps**-0.5
        self.taps = nn.Parameter(torch.empty(taps, projection.out_features).uniform_(-bound, bound))

    @property
    def weight(self):
        return self.projection.weight

    def forward(self, hidden_states):
        projected = self.projection(hidden_states)
        number, length = len(self.taps), projected.shape[1]
        padded = nn.functional.pad(projected, (0, 0, number - 1, 0))
        return sum(tap * padded[:, i : i + length] for i, tap in enumerate(self.taps))


def add_short_convolution(model, taps):
    """Puts a convolution of `taps` tokens behind the projections of every layer; none if `taps` is None.

    The model then takes whole texts, unpadded or padded on the right. `config.short_convolution` tells that it has one:
    its saved weights are loaded by `load_weights`, not by `from_pretrained`.

    Raises:
        ValueError: the model is not causal, or reads in segments, or `taps` is below 1.
    """
    if taps is None:
        return
    if taps < 1:
        raise ValueError(f"--short_convolution must be at least 1, got {taps}")
    if not model.config.is_decoder:
        raise ValueError("--short_convolution is for causal models: it looks back only")
    if getattr(model.config, "segment_length", None) is not None:
        raise ValueError("--short_convolution does not go with --segment_length: it would look across memory tokens")
    for layer in model.base_model.layers:
        for name in PROJECTIONS:
            setattr(layer.attention, name, ConvolvedProjection(getattr(layer.attention, name), taps))
    model.config.short_convolution = taps
    model.config.use_cache = False
    model.base_model.register_forward_pre_hook(refuse_what_it_cannot, with_kwargs=True)


def refuse_what_it_cannot(model, args, kwargs):
    """Raises a ValueError where the token before another in a row is not the one before it in the text."""
    given = {**dict(zip(TEXT_INPUTS, args, strict=False)), **kwargs}
    forbidden = [name for name in FORBIDDEN if given.get(name) is not None]
    if forbidden:
        raise ValueError(f"a model with a short convolution takes whole texts, one a row, not {', '.join(forbidden)}")
    mask = given.get("attention_mask")
    if mask is not None and (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError("a model with a short convolution takes texts padded on the right, not on the left")


def load_weights(model, folder):
    """Loads the weights that such a model, or any, left in a folder as one file."""
    load_model(model, f"{folder}/model.safetensors")
