# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What a classifier does with a text or an image: its answer, and the calcium response of every token or patch."""

import base64
import io
from dataclasses import dataclass

import torch

from astroformer_hf import look_inside
from looking.checkpoint import class_probabilities, spell
from looking.colours import colour, colour_scale, coloured_text, shares_of, tell
from looking.pictures import as_rgb, check_mode


MEAN = "mean"  # of the heads
# What is read of anybody: checked before it is decoded, which could take the memory of the machine.
MOST_BYTES, MOST_PIXELS, MOST_CHARACTERS = 20 * 2**20, 30_000_000, 100_000
MOST_TOKENS = 1024  # of a text whose calcium is shown: `look_inside` takes memory quadratic in the length
LONGEST_SIDE = 512  # in pixels, of a picture that is shown under its calcium


@dataclass
class Reading:
    """What the synapses did with a text or an image: kept, to be drawn layer by layer and head by head.

    Attributes:
        response, feedback: C and P, `(layers, heads, tokens)` each; for an image, of its patches.
    """

    response: torch.Tensor
    feedback: torch.Tensor

    def of(self, layer, head):
        """C and P, `(tokens,)` each, of a head of a layer, or of `MEAN`, their means over the heads."""
        return (x[layer].mean(0) if head == MEAN else x[layer, head] for x in (self.response, self.feedback))


@dataclass
class TextReading(Reading):
    """... of a text; `names`, `texts` and `is_special` as of `coloured_text`, `note` tells how much of it was read."""

    names: list
    texts: list
    is_special: list
    note: str

    def html(self, layer, head):
        """The text, coloured by C."""
        drawn = coloured_text(self.names, self.texts, *self.of(layer, head), self.is_special)
        return f'{drawn}<p class="calcium-note">{self.note}</p>'


@dataclass
class ImageReading(Reading):
    """... of an image: `picture` is it as PNG, `grid` the rows and columns of its patches."""

    picture: bytes
    grid: tuple

    def html(self, layer, head):
        """The image, and beside it in grey under its patches, coloured by C."""
        response, feedback = self.of(layer, head)
        rows, columns = self.grid
        squares = []
        for i, (share, value, back) in enumerate(
            zip(shares_of(response), response.tolist(), feedback.tolist(), strict=True)
        ):
            row, column = divmod(i, columns)
            hint = tell(f"row {row}, column {column}", value, back)
            place = f'x="{column}" y="{row}" width="1" height="1"'
            squares.append(f'<rect {place} fill="{colour(share)[0]}"><title>{hint}</title></rect>')
        image = f'<img alt="" src="data:image/png;base64,{base64.b64encode(self.picture).decode()}">'
        canvas = f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" shape-rendering="crispEdges">'
        overlaid = f"{image}{canvas}{''.join(squares)}</svg>"
        return f'<div class="calcium-pictures"><div>{image}</div><div>{overlaid}</div></div>{colour_scale(response)}'


def has_calcium(model):
    """Whether there is a calcium response to show: not in softmax attention, nor where a text is read in segments."""
    return model.config.attention_type != "softmax" and model.config.segment_length is None


def run(model, inputs):
    """Gives one example to a classifier.

    Returns:
        The answer, a `dict` from label to probability or, of a regression, its values as text; and C and P, a tensor
        `(layers, heads, tokens)` each, None without calcium.
    """
    inputs = inputs.to(model.device)
    synapses = None
    if has_calcium(model):
        output, records = look_inside(model, **inputs)
        synapses = [torch.cat([getattr(r, name) for r in records]) for name in ("calcium_response", "feedback")]
    else:
        with torch.no_grad():
            output = model(**inputs)
    logits = output.logits[0].float().cpu()
    probabilities = class_probabilities(model.config, logits)
    return probabilities or ", ".join(f"{value:.4g}" for value in logits.tolist()), synapses


def read_text(model, tokenizer, text):
    """Classifies a text, of which as many tokens are read as the model takes, and at most `MOST_TOKENS` if there is
    calcium to show.

    Returns:
        The answer (see `run`), and a `TextReading`, None without calcium.

    Raises:
        ValueError: there is no word in the text, or it is longer than `MOST_CHARACTERS`.
    """
    text = text or ""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters; please enter at most {MOST_CHARACTERS:,}.")
    longest, reader = model.config.longest_input, "the model takes"
    if has_calcium(model) and (longest is None or longest > MOST_TOKENS):
        longest, reader = MOST_TOKENS, "this page reads"
    length = len(tokenizer(text, verbose=False)["input_ids"])
    options = {"max_length": longest, "return_special_tokens_mask": True, "verbose": False}
    inputs = tokenizer(text, truncation=longest is not None, **options, return_tensors="pt")
    is_special = inputs.pop("special_tokens_mask")[0].bool().tolist()
    if all(is_special):
        raise ValueError("There is nothing to read. Please enter a text.")
    input_ids = inputs["input_ids"][0]
    answer, synapses = run(model, inputs)
    if synapses is None:
        return answer, None
    note = f"{length:,} tokens were read."
    if longest is not None and length > longest:
        note = f"The text has {length:,} tokens; the first {longest:,} were read, which is all that {reader}."
    names = tokenizer.convert_ids_to_tokens(input_ids)
    return answer, TextReading(*synapses, names, spell(tokenizer, input_ids), is_special, note)


def check_picture(image, num_bytes=0):
    """Refuses a picture by the size of its file and of itself and by its mode, which its first bytes tell.

    Raises:
        ValueError: it has more than `MOST_BYTES` or `MOST_PIXELS`, or more than 8 bits a channel.
    """
    if num_bytes > MOST_BYTES:
        raise ValueError(f"The file has {num_bytes:,} bytes; please choose one of at most {MOST_BYTES:,}.")
    if image is None:
        return
    check_mode(image)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"The picture has {image.width:,} x {image.height:,} pixels; please choose one of at most {MOST_PIXELS:,}."
        )


def read_image(model, processor, image):
    """Classifies a `PIL.Image`.

    Returns:
        The answer (see `run`), and an `ImageReading`, None without calcium.

    Raises:
        ValueError: there is no image, or it has more than `MOST_PIXELS`, or more than 8 bits a channel.
    """
    if image is None:
        raise ValueError("There is nothing to look at. Please choose an image.")
    check_picture(image)
    image = as_rgb(image)
    answer, synapses = run(model, processor([image], return_tensors="pt"))
    if synapses is None:
        return answer, None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture = io.BytesIO()
    image.save(picture, format="PNG")
    rows, columns = model.config.grid
    synapses = (x[..., -rows * columns :] for x in synapses)  # a class token may come before the patches
    return answer, ImageReading(*synapses, picture.getvalue(), (rows, columns))
