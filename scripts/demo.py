#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A page in the browser that classifies a text or an image, and colours it by the calcium response of the astrocyte.

    python scripts/demo.py --model outputs/imdb --examples "A film of rare beauty." "Two hours of my life, gone."
    python scripts/demo.py --model outputs/cifar10 --examples cat.png ship.png
    python scripts/demo.py --model outputs/imdb --title "Film reviews" --space outputs/space

With --space DIR, the folder of a Hugging Face Space with this demo is written instead of serving it.

In Python, `build_demo(model, processor)` is the page as `gradio.Blocks`, to be launched or put into another page.
"""

import argparse
import base64
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from inspection_common import (
    TEXT_STYLE,
    class_probabilities,
    colour,
    colour_scale,
    coloured_text,
    load,
    shares_of,
    spell,
    takes_images,
    tell,
)
from PIL import Image

from astroformer_hf import look_inside


CLASSIFIERS = ("AstroformerForSequenceClassification", "AstroformerForImageClassification")
MEAN = "mean"  # of the heads
# What is read of anybody: checked before it is decoded, which could take the memory of the machine.
MOST_BYTES, MOST_PIXELS, MOST_CHARACTERS = 20 * 2**20, 30_000_000, 100_000
LONGEST_SIDE = 512  # in pixels, of a picture that is shown under its calcium

PAPER = "[arXiv 2312.10925](https://arxiv.org/abs/2312.10925)"
EXPLANATION = """
The calcium response *C* = φ(*q*) *g* tells how strongly the query *q* of a {token} meets the calcium *g* that the
keys of all {tokens} have raised in the astrocyte's process. {feedback} *C* grows with the number of {tokens}: compare
it within one {example} only. It shows how the attention is computed, not which {tokens} decided the answer.
"""
FEEDBACK = "The feedback *P* = 1 / *C* of the astrocyte multiplies what the attention gives to that {token}."
LINEAR_FEEDBACK = "In linear attention, *P* = 1 / *C* is the usual normalisation of what is given to that {token}."
NO_FEEDBACK = "This checkpoint has no feedback: *C* does not act on the answer."
NO_CALCIUM = "This checkpoint has softmax attention, without an astrocyte and its calcium: only the answer is shown."
WORDS = {
    False: {"token": "token", "tokens": "tokens", "example": "text"},
    True: {"token": "patch", "tokens": "patches", "example": "image"},
}
STYLE = (
    TEXT_STYLE
    + """
.calcium-pictures { display: flex; flex-wrap: wrap; gap: 1rem }
.calcium-pictures div { position: relative; flex: 1 1 200px; max-width: 420px }
.calcium-pictures img { display: block; width: 100%; margin: 0 }
.calcium-pictures svg { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0.65 }
.calcium-pictures div:has(svg) img { filter: grayscale(1) }
.calcium-note { font-size: 0.85rem; opacity: 0.8 }
"""
)


# --------------------------------------------------------------------------------------------------------------------
# Reading: what the model does with a text or an image
# --------------------------------------------------------------------------------------------------------------------


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
    return model.config.attention_type != "softmax"


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
    """Classifies a text, of which as many tokens are read as the model takes.

    Returns:
        The answer (see `run`), and a `TextReading`, None without calcium.

    Raises:
        ValueError: there is no word in the text, or it is longer than `MOST_CHARACTERS`.
    """
    text = text or ""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters; please enter at most {MOST_CHARACTERS:,}.")
    longest = model.config.longest_input
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
        note = f"The text has {length:,} tokens; the first {longest:,} were read, which is all that the model takes."
    names = tokenizer.convert_ids_to_tokens(input_ids)
    return answer, TextReading(*synapses, names, spell(tokenizer, input_ids), is_special, note)


def check_picture(image, num_bytes=0):
    """Refuses a picture by the size of its file and of itself, which its first bytes tell.

    Raises:
        ValueError: it has more than `MOST_BYTES` or `MOST_PIXELS`.
    """
    if num_bytes > MOST_BYTES:
        raise ValueError(f"The file has {num_bytes:,} bytes; please choose one of at most {MOST_BYTES:,}.")
    if image is not None and image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"The picture has {image.width:,} x {image.height:,} pixels; please choose one of at most {MOST_PIXELS:,}."
        )


def read_image(model, processor, image):
    """Classifies a `PIL.Image`.

    Returns:
        The answer (see `run`), and an `ImageReading`, None without calcium.

    Raises:
        ValueError: there is no image, or it has more than `MOST_PIXELS`.
    """
    if image is None:
        raise ValueError("There is nothing to look at. Please choose an image.")
    check_picture(image)
    image = image.convert("RGB")
    answer, synapses = run(model, processor([image], return_tensors="pt"))
    if synapses is None:
        return answer, None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture = io.BytesIO()
    image.save(picture, format="PNG")
    rows, columns = model.config.grid
    synapses = (x[..., -rows * columns :] for x in synapses)  # a class token may come before the patches
    return answer, ImageReading(*synapses, picture.getvalue(), (rows, columns))


# --------------------------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------------------------


def default_title(model):
    return f"Astroformer: {Path(model.name_or_path or type(model).__name__).name}"


def describe_attention(model):
    """The arm and its settings, in a few words."""
    config = model.config
    if not has_calcium(model):
        return "softmax attention"
    if config.attention_type == "linear":
        return f"linear attention (φ {config.feature_map})"
    code = f"astrocyte code {config.astrocyte_code}" if config.use_astrocyte_hebbian else "without H_astro"
    return f"neuron-astrocyte attention (φ {config.feature_map}, presynaptic α {config.presynaptic_alpha:g}, {code})"


def describe_calcium(model):
    """What is shown of it, in Markdown."""
    if not has_calcium(model):
        return NO_CALCIUM
    feedback = FEEDBACK if model.config.use_calcium_feedback else NO_FEEDBACK
    if model.config.attention_type == "linear":
        feedback = LINEAR_FEEDBACK
    words = WORDS[takes_images(model)]
    return EXPLANATION.format(**words, feedback=feedback.format(**words))


def build_demo(model, processor, title=None, examples=None):
    """The demo as a page of gradio, to be launched or put into another page. It loads nothing from other servers.

    Args:
        model: an `AstroformerForSequenceClassification` or `AstroformerForImageClassification`, also one whose code
            came with its checkpoint. Of the arms "neuron_astrocyte" and "linear" the calcium response is shown.
        processor: its tokenizer or image processor.
        title (`str`, *optional*): heading of the page.
        examples (list, *optional*): texts, or paths of images, to choose from.

    Returns:
        `gradio.Blocks`.

    Raises:
        ValueError: the model is another one, or an example of an image is not a file.
        ImportError: gradio is not installed.
    """
    if type(model).__name__ not in CLASSIFIERS:
        raise ValueError(f"model must be an {' or '.join(CLASSIFIERS)}, got {type(model).__name__}")
    missing = [path for path in examples or () if takes_images(model) and not Path(path).is_file()]
    if missing:
        raise ValueError(f"examples must be files of images, {str(missing[0])!r} is none")
    try:
        import gradio as gr  # here, so that what reads and draws needs no gradio
    except ImportError as error:
        raise ImportError("the demo needs gradio: pip install 'gradio>=6,<7'") from error

    def explaining(preprocess):
        """The `preprocess` of a `gr.Image`, which tells a file that is no image to the user in words."""

        def open_image(payload):
            try:
                if payload is not None and payload.path is not None:
                    check_picture(None, os.path.getsize(payload.path))
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # told below, in words
                        with Image.open(payload.path) as header:
                            check_picture(header)
            except (ValueError, Image.DecompressionBombError) as error:
                words = str(error) if isinstance(error, ValueError) else "The picture has too many pixels."
                raise gr.Error(words, print_exception=False) from error
            except (OSError, SyntaxError):
                pass  # told below
            try:
                image = preprocess(payload)
                return image and image.convert("RGB")  # reads it to its end
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                message = "This file cannot be opened as an image. Please choose a JPEG, PNG or WebP file."
                raise gr.Error(message, print_exception=False) from error

        return open_image

    read = read_image if takes_images(model) else read_text

    def classify(example, layer=None, head=None):
        try:
            answer, reading = read(model, processor, example)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return answer if reading is None else (answer, reading, reading.html(layer, head))

    def draw(reading, layer, head):
        return reading and reading.html(layer, head)

    title = title or default_title(model)
    config = model.config
    facts = (
        f"{model.num_parameters():,} parameters in {config.num_hidden_layers} layers of {config.num_attention_heads} "
        f"heads, with {describe_attention(model)}. Paper: {PAPER}."
    )
    with gr.Blocks(title=title, analytics_enabled=False) as demo:
        gr.Markdown(f"# {title}\n{facts}")
        with gr.Row():
            with gr.Column(scale=3):
                if takes_images(model):
                    given = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"], height=300)
                    # not by a subclass, for which gradio would write a file beside this one
                    given.preprocess = explaining(given.preprocess)
                else:
                    given = gr.Textbox(
                        label="Text",
                        lines=5,
                        max_lines=12,
                        max_length=MOST_CHARACTERS,
                        placeholder="Enter a text in plain words.",
                    )
                button = gr.Button("Classify", variant="primary")
            with gr.Column(scale=2):
                answer = gr.Label(label="Answer", num_top_classes=5)
        if examples:
            gr.Examples([[str(example)] for example in examples], given)
        triggers = [button.click, given.upload if takes_images(model) else given.submit]
        inputs, outputs = [given], [answer]
        if has_calcium(model):
            gr.Markdown("### Calcium response")
            with gr.Row():
                layers = [(str(i), i) for i in range(config.num_hidden_layers)]
                heads = [("mean of all", MEAN), *((str(i), i) for i in range(config.num_attention_heads))]
                layer, head = gr.Radio(layers, value=0, label="Layer"), gr.Radio(heads, value=MEAN, label="Head")
            reading = gr.State(time_to_live=3600)  # in seconds
            drawing = gr.HTML(css_template=STYLE, container=True, padding=True)
            inputs, outputs = [given, layer, head], [answer, reading, drawing]
            gr.on([layer.change, head.change], draw, [reading, layer, head], drawing, api_visibility="private")
        gr.Markdown(describe_calcium(model))
        # one at a time: `look_inside` listens to the layers while they run
        gr.on(triggers, classify, inputs, outputs, concurrency_limit=1, api_name="classify")
    return demo


def launch(demo, **options):
    """Serves a page of `build_demo`; `options` are of its method `launch`."""
    import gradio as gr

    # gradio's own weight 600 of this font has no Latin letters
    font = [gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"]
    options = {"max_file_size": MOST_BYTES, **options}
    return demo.launch(theme=gr.themes.Default(font=font), **options)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained classifier, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: main)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the checkpoint")
    parser.add_argument("--title", help="heading of the page (default: the name of the model)")
    parser.add_argument("--examples", nargs="+", default=[], help="texts, or image files, to choose from")
    parser.add_argument(
        "--server_name", default="127.0.0.1", help="address to serve at; 0.0.0.0 for all of the machine"
    )
    parser.add_argument("--server_port", type=int, help="port to serve at (default: the first free one from 7860)")
    parser.add_argument(
        "--share", action="store_true", help="make a public link for three days, through gradio's servers"
    )
    parser.add_argument("--space", type=Path, help="write the folder of a Hugging Face Space there instead of serving")
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if args.space is not None:
        from demo_space import write_space  # which a Space has not

        write_space(args.space, args.model, args.revision, args.trust_remote_code, args.title, args.examples)
        return
    demo = build_demo(*load(args.model, args.revision, args.trust_remote_code), args.title, args.examples)
    launch(demo, server_name=args.server_name, server_port=args.server_port, share=args.share)


if __name__ == "__main__":
    main()
