# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The demo as a page of gradio."""

import os
import warnings
from pathlib import Path

from PIL import Image

from looking.checkpoint import takes_images
from looking.colours import TEXT_STYLE
from looking.pictures import as_rgb
from looking.reading import MEAN, MOST_BYTES, MOST_CHARACTERS, check_picture, has_calcium, read_image, read_text


CLASSIFIERS = ("AstroformerForSequenceClassification", "AstroformerForImageClassification")
PAPER = "[arXiv 2312.10925](https://arxiv.org/abs/2312.10925)"
EXPLANATION = """
The calcium response *C* = φ(*q*) *g* tells how strongly the query *q* of a {token} meets the calcium *g* that
{sources} of {readable} have raised in the astrocyte's process{decay}. {feedback} {compare} within one {example} only.
It shows how the attention is computed, not which {tokens} decided the answer.
"""
FEEDBACK = "The feedback *P* = 1 / *C* of the astrocyte multiplies what the attention gives to that {token}."
LINEAR_FEEDBACK = "In linear attention, *P* = 1 / *C* is the usual normalisation of what is given to that {token}."
NO_FEEDBACK = "This checkpoint has no feedback: *C* does not act on the answer."
NO_CALCIUM = "This checkpoint has softmax attention, without an astrocyte and its calcium: only the answer is shown."
IN_SEGMENTS = "This checkpoint reads in segments, each with its own calcium, not shown: only the answer is."
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


def default_title(model):
    return f"Astroformer: {Path(model.name_or_path or type(model).__name__).name}"


def describe_attention(model):
    """The arm and its settings, in a few words."""
    config = model.config
    kind, facts = config.attention_type.replace("_", "-"), []
    if kind != "softmax":
        facts.append(f"φ {config.feature_map}")
    if kind == "neuron-astrocyte":
        at_synapse = config.presynaptic_target == "synapse" and config.presynaptic_alpha < 1
        facts.append(f"presynaptic α {config.presynaptic_alpha:g}{' at the synapse' * at_synapse}")
        facts.append(f"astrocyte code {config.astrocyte_code}" if config.use_astrocyte_hebbian else "without H_astro")
        if config.use_astrocyte_hebbian and config.calcium_sources == "all":
            facts.append("calcium of all sources")
    if config.synaptic_decay != "none":
        facts.append(f"{config.synaptic_decay} decay")
    return f"{kind} attention ({', '.join(facts)})" if facts else f"{kind} attention"


def describe_calcium(model):
    """What is shown of it, in Markdown."""
    config = model.config
    if not has_calcium(model):
        return NO_CALCIUM if config.attention_type == "softmax" else IN_SEGMENTS
    feedback = FEEDBACK if config.use_calcium_feedback else NO_FEEDBACK
    if config.attention_type == "linear":
        feedback = LINEAR_FEEDBACK
    words = WORDS[takes_images(model)]
    astrocyte_raises = config.attention_type != "linear" and config.use_astrocyte_hebbian
    keys_alone = not (astrocyte_raises and config.calcium_sources == "all")
    leaks = config.synaptic_decay != "none"
    return EXPLANATION.format(
        **words,
        sources="the keys" if keys_alone else "the keys and the astrocyte's code",
        readable="the {token} and those before it" if config.is_decoder else "all {tokens}",
        decay=", of which the less is left, the farther away it was raised" if leaks else "",
        compare="Compare *C*" if leaks else "*C* grows with the number of {tokens}: compare it",
        feedback=feedback,
    ).format(**words)


def build_demo(model, processor, title=None, examples=None):
    """The demo as a page of gradio, to be launched or put into another page. It loads nothing from other servers.

    Args:
        model: an `AstroformerForSequenceClassification` or `AstroformerForImageClassification`. Of the arms
            "neuron_astrocyte" and "linear" the calcium response is shown, but not of models that read in segments.
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
                return image and as_rgb(image)  # reads it to its end
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
