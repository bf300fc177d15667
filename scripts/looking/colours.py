# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Texts as HTML, coloured by the calcium response."""

import html

import matplotlib
import numpy as np


TEXT_STYLE = """
.calcium-text { line-height: 2.1; overflow-wrap: anywhere; white-space: pre-wrap }
.calcium-text span { padding: 0.15em 0.1em; border-radius: 3px }
.calcium-text span.special { opacity: 0.55; font-size: 0.8em }
.calcium-scale { font-size: 0.85rem; margin: 0.5rem 0 }
.calcium-scale i { display: inline-block; width: 12em; height: 0.8em; vertical-align: middle; border-radius: 3px }
"""


def colour(share):
    """Background and text colour for a share from 0 to 1 of the calcium's range."""
    red, green, blue, _ = matplotlib.colormaps["inferno"](0.12 + 0.83 * share, bytes=True)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return f"rgb({red},{green},{blue})", "#fff" if dark else "#000"


def shares_of(response):
    """Where each calcium response lies between the lowest and the highest, from 0 to 1; 0.5 where all are equal."""
    low, high = response.min(), response.max()
    return ((response - low) / (high - low)).tolist() if high > low else [0.5] * len(response)


def colour_scale(response):
    """The scale of the colours as HTML, with the lowest and the highest response."""
    ends = ",".join(colour(share)[0] for share in np.linspace(0, 1, 8))
    low, high = spell_number(response.min().item()), spell_number(response.max().item())
    bar = f'<i style="background:linear-gradient(90deg,{ends})"></i>'
    return f'<p class="calcium-scale">C: {low} {bar} {high}</p>'


def spell_number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def tell(name, response, feedback=None):
    """The values of a token or patch in words, escaped for an attribute of HTML."""
    told = f"{name}: C = {spell_number(response)}" + ("" if feedback is None else f", P = {spell_number(feedback)}")
    return html.escape(told, quote=True)


def coloured_text(names, texts, response, feedback=None, is_special=None):
    """The tokens as HTML, coloured by C, which a tooltip tells with the token's name.

    Args:
        names, texts (lists of `str`): what each token is called in the vocabulary, and how it is spelt (see `spell`).
        response (`torch.Tensor`): C, `(tokens,)`.
        feedback (`torch.Tensor`, *optional*): P, `(tokens,)`, for the tooltip.
        is_special (list of `bool`, *optional*): tokens that the tokenizer added: without colour, and not counted in
            the scale.
    """
    is_special = is_special or [False] * len(names)
    feedback = [None] * len(names) if feedback is None else feedback.tolist()
    counted = response[[not special for special in is_special]]
    shares = iter(shares_of(counted))
    spans = []
    for name, text, value, back, special in zip(names, texts, response.tolist(), feedback, is_special, strict=True):
        look = 'class="special"' if special else 'style="background:{};color:{}"'.format(*colour(next(shares)))
        word = html.escape(text.strip(" ").replace("\n", "⏎\n") or "␣")
        joint = " " if text.startswith(" ") else ""
        spans.append(f'{joint}<span {look} title="{tell(name, value, back)}">{word}</span>')
    return f'<div class="calcium-text">{"".join(spans)}</div>{colour_scale(counted)}'
