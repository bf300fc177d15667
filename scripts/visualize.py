#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Shows what the synapses of a trained model do with a text or an image, as PNG figures and one HTML page.

    python scripts/visualize.py --model outputs/imdb --text "A film of rare beauty, if a little long."
    python scripts/visualize.py --model outputs/imdb --dataset_dir my_data --index 3
    python scripts/visualize.py --model outputs/cifar10 --image photo.jpg --output_dir outputs/look

In --output_dir it leaves

    calcium.png     the calcium response C of the astrocyte's process at each token, layer by layer and head by head;
                    for an image, over the image
    attention.png   the effective attention, token by token
    hebbian.png     H_neuron against H_astro
    memory.png      where synapses leak or alpha acts on them: how long each head remembers, the share f of everything
                    that is left at each token, and in which proportion to its weight each synapse answers
    code.png        the astrocyte code R over the tokens, and the kernel r of the coupling that it is made with (where
                    the model has an astrocyte Hebbian term)
    index.html      the text coloured by C, and all the figures: one file, to be opened in a browser
"""

import argparse
import base64
import html
import io
from pathlib import Path

import datasets
import matplotlib
import numpy as np
from looking.checkpoint import class_probabilities, load, patches, spell, takes_images
from looking.colours import TEXT_STYLE, coloured_text
from looking.pictures import as_rgb
from PIL import Image
from training.data import load_splits, pick_split
from training.files import write_whole

from astroformer_hf.inspection import look_inside


matplotlib.use("Agg")
import matplotlib.pyplot as plt


LABELLED_TOKENS = 48  # up to so many tokens, axes carry their words


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model, or its name on the Hub")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code of a tokenizer or image processor that comes with the checkpoint, never of a model",
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="a text to look at")
    given.add_argument("--image", help="file of an image to look at")
    given.add_argument("--dataset_dir", help="folder of files named by split, of which an example is looked at")
    parser.add_argument("--split", default="validation", help="split of --dataset_dir (default: validation)")
    parser.add_argument("--index", type=int, default=0, help="which example of --dataset_dir (default: 0)")
    parser.add_argument(
        "--max_length", type=int, default=256, help="tokens of a text that are looked at (default: 256)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/look"), help="where the figures go")
    return parser.parse_args(arguments)


def example_of(args, is_image):
    """The text or image that was asked for.

    Raises:
        ValueError: the model takes the other kind, or there is no such example.
    """
    if args.dataset_dir is not None:
        _, split = pick_split(load_splits(dataset_dir=args.dataset_dir), args.split)
        if not 0 <= args.index < len(split):
            raise ValueError(f"--index must be from 0 to {len(split) - 1}, got {args.index}")
        columns = ("image", "img") if is_image else ("text",)
        column = next((name for name in columns if name in split.column_names), None)
        if column is None:
            raise ValueError(f"the data has no column {' or '.join(columns)}; it has {split.column_names}")
        return (split.cast_column(column, datasets.Image()) if is_image else split)[args.index][column]
    if is_image != (args.image is not None):
        raise ValueError(f"--model {args.model!r} takes {'an --image' if is_image else 'a --text'}")
    return Image.open(args.image) if is_image else args.text


# --------------------------------------------------------------------------------------------------------------------
# Figures. Each takes the records of `look_inside` for one example; `names` are the tokens.
# --------------------------------------------------------------------------------------------------------------------


def grid_of_axes(rows, columns, width, height):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    return figure, axes


def name_tokens(axis, names):
    if len(names) <= LABELLED_TOKENS:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    else:
        axis.set_xlabel("token")


def plot_calcium(records, names, image=None, grid=None):
    """C of each token: a line for each head and their mean; or, over an image, a map for each layer."""
    if image is None:
        figure, axes = grid_of_axes(len(records), 1, max(8, min(0.22 * len(names), 24)), 2.6)
        for layer, (axis, record) in enumerate(zip(axes[:, 0], records, strict=True)):
            response = record.calcium_response[0].numpy()
            for head, line in enumerate(response):
                axis.plot(line, linewidth=0.9, alpha=0.6, label=f"head {head}")
            axis.plot(response.mean(0), color="black", linewidth=1.4, label="mean")
            axis.set(ylabel="C", title=f"layer {layer}: calcium response", xlim=(-0.5, len(names) - 0.5))
            axis.grid(alpha=0.3)
        axes[0, 0].legend(fontsize=7, ncols=5)
        name_tokens(axes[-1, 0], names)
        return figure
    figure, axes = grid_of_axes(1, len(records) + 1, 3, 3.2)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image")
    for layer, (axis, record) in enumerate(zip(axes[0, 1:], records, strict=True)):
        response = patches(record.calcium_response[0].mean(0), grid)
        axis.imshow(image.convert("L"), cmap="gray", extent=(0, grid[1], grid[0], 0))
        drawn = axis.imshow(response, cmap="inferno", alpha=0.65, extent=(0, grid[1], grid[0], 0))
        axis.set_title(f"layer {layer}: C, mean of heads")
        figure.colorbar(drawn, ax=axis, shrink=0.7)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def plot_attention(records, names):
    """The effective attention: a row of panels for each layer, a panel for each head."""
    heads = records[0].attention.shape[1]
    figure, axes = grid_of_axes(len(records), heads, 3.4, 3.4)
    for layer, record in enumerate(records):
        for head in range(heads):
            axis, weights = axes[layer, head], record.attention[0, head].numpy()
            limit = np.quantile(np.abs(weights), 0.995) or 1
            axis.imshow(weights, cmap="viridis", vmin=min(0, weights.min()), vmax=limit, aspect="auto")
            axis.set_title(f"layer {layer}, head {head}", fontsize=9)
            axis.tick_params(labelsize=6)
            if len(names) <= LABELLED_TOKENS:
                axis.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
                axis.set_yticks(range(len(names)), names, fontsize=5)
    figure.supxlabel("token that is read")
    figure.supylabel("token that reads")
    return figure


def plot_hebbian(records):
    """H_neuron against H_astro: how large they are in each layer, and the weights of one head."""
    figure, axes = grid_of_axes(1, 3, 4.6, 3.8)
    sizes = {
        "H_neuron": [record.hebbian_neuron[0].norm(dim=(-2, -1)).numpy() for record in records],
        "H_astro": [record.hebbian_astro[0].norm(dim=(-2, -1)).numpy() for record in records],
    }
    axis = axes[0, 0]
    for shift, (name, norms) in zip((-0.2, 0.2), sizes.items(), strict=True):
        places = np.arange(len(records)) + shift
        axis.bar(places, [norm.mean() for norm in norms], 0.38, label=name, alpha=0.7)
        for place, norm in zip(places, norms, strict=True):
            axis.plot([place] * len(norm), norm, "k.", markersize=3)
    axis.set(title="Frobenius norm, mean and each head", xlabel="layer")
    axis.set_xticks(range(len(records)))
    axis.legend()
    axis.grid(alpha=0.3, axis="y")
    last = records[-1]
    limit = max(last.hebbian_neuron[0, 0].abs().max().item(), last.hebbian_astro[0, 0].abs().max().item()) or 1
    for axis, (name, weights) in zip(
        axes[0, 1:], (("H_neuron", last.hebbian_neuron), ("H_astro", last.hebbian_astro)), strict=True
    ):
        drawn = axis.imshow(weights[0, 0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set(title=f"{name}, layer {len(records) - 1}, head 0", xlabel="value", ylabel="hidden neuron")
    figure.colorbar(drawn, ax=axes[0, 1:], shrink=0.8)
    return figure


def plot_memory(records, names):
    """How long each head remembers, f at each token, and how each synapse answers the last, by the plasticity on it."""
    figure, axes = grid_of_axes(len(records), 3, 4.8, 2.8)
    for layer, record in enumerate(records):
        spans, along, synapses = axes[layer]
        span = record.memory_span[0].numpy()
        spans.bar(range(len(span)), np.where(np.isfinite(span), span, 0))
        spans.set(title=f"layer {layer}: memory span", xlabel="head", ylabel="tokens")
        spans.set_yscale("log") if np.isfinite(span).all() else spans.text(0.3, 0.5, "unbounded")
        if record.retention is not None:
            for head, line in enumerate(record.retention[0].numpy()):
                along.plot(line, linewidth=0.9, label=f"head {head}")
            along.legend(fontsize=7, ncols=4)
        along.set(title="share that is left when a token comes", ylabel="f", ylim=(0, 1.05))
        along.grid(alpha=0.3)
        if record.release is not None:
            drawn = synapses.imshow(record.release[0, :, -1].numpy(), cmap="viridis", aspect="auto")
            figure.colorbar(drawn, ax=synapses)
        synapses.set(title="release of each synapse at the last token", xlabel="hidden neuron", ylabel="head")
    name_tokens(axes[-1, 1], names)
    return figure


def plot_code(records, names, grid=None):
    """The astrocyte code R of each layer (head 0), and the kernel r of its coupling."""
    figure, axes = grid_of_axes(len(records), 2, 6, 2.9)
    middle_token = len(names) // 2
    if grid is not None:  # of the grid; a class token may come before it
        middle_token = len(names) - grid[0] * grid[1] + grid[0] // 2 * grid[1] + grid[1] // 2
    for layer, record in enumerate(records):
        left, right = axes[layer]
        code = record.astrocyte_code[0, 0].numpy()
        middle = code.mean()
        limit = np.abs(code - middle).max() or 1
        drawn = left.imshow(code.T, cmap="PuOr", vmin=middle - limit, vmax=middle + limit, aspect="auto")
        left.set(title=f"layer {layer}, head 0: astrocyte code R", ylabel="hidden neuron")
        figure.colorbar(drawn, ax=left)
        kernel = record.coupling[0, middle_token]
        if grid is None:
            near = slice(max(0, middle_token - 12), middle_token + 13)
            right.bar(range(len(names))[near], kernel[near].numpy())
            right.set(title=f"r: coupling of the process at token {middle_token}", ylim=(0, 1.05), xlabel="token")
            right.grid(alpha=0.3)
        else:
            drawn = right.imshow(patches(kernel, grid), cmap="magma", vmin=0, vmax=1)
            right.set(title=f"r: coupling of the process at token {middle_token}")
            figure.colorbar(drawn, ax=right)
    if grid is None:
        name_tokens(axes[-1, 0], names)
    return figure


# --------------------------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
img { max-width: 100%; border: 1px solid #ddd }
"""


def page(title, answer, records, names, texts, figures):
    """The whole page as HTML that needs no other file."""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(answer)}</p>" if answer else ""]
    if texts is not None:
        for layer, record in enumerate(records):
            parts.append(f"<h2>Layer {layer}: calcium response C, mean of the heads</h2>")
            parts.append(coloured_text(names, texts, record.calcium_response[0].mean(0)))
    for name, (caption, png) in figures.items():
        data = base64.b64encode(png).decode()
        parts.append(f'<h2>{html.escape(caption)}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}{TEXT_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def as_png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def answer_of(model, output):
    """What the model says, in words; nothing for a model that is not a classifier."""
    is_classifier = type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification"))
    shares = class_probabilities(model.config, output.logits[0]) if is_classifier else None
    if shares is None:
        return ""
    if model.config.problem_type == "multi_label_classification":
        return "The model's answer: " + ", ".join(f"{label} ({share:.1%})" for label, share in shares.items())
    best = max(shares, key=shares.get)
    return f"The model's answer: {best} ({shares[best]:.1%})"


def main(arguments=None):
    args = parse_arguments(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)  # before what takes time
    model, processor = load(args.model, trust_remote_code=args.trust_remote_code)
    is_image = takes_images(model)
    example = example_of(args, is_image)
    image = grid = None
    if is_image:
        image = as_rgb(example)
        inputs = {"pixel_values": processor([image], return_tensors="pt")["pixel_values"]}
        grid = model.config.grid
    else:
        longest = min(args.max_length, getattr(model.config, "longest_input", None) or args.max_length)
        inputs = processor(example, truncation=True, max_length=longest, return_tensors="pt")
    output, records = look_inside(model, **inputs)
    length = records[0].padding_mask.shape[1]
    names, texts = [str(i) for i in range(length)], None
    if not is_image:
        names = processor.convert_ids_to_tokens(inputs["input_ids"][0])
        texts = spell(processor, inputs["input_ids"][0])

    plots = {
        "calcium": ("Calcium response C", plot_calcium(records, names, image, grid)),
        "attention": ("Effective attention", plot_attention(records, names)),
        "hebbian": ("Hebbian weights: neurons against astrocyte", plot_hebbian(records)),
    }
    if records[0].memory_span.isfinite().any() or records[0].release is not None:
        plots["memory"] = ("How long the synapses remember, and how they answer", plot_memory(records, names))
    if records[0].astrocyte_code is not None:
        plots["code"] = ("Astrocyte code R, and the kernel r of the coupling", plot_code(records, names, grid))
    figures = {name: (caption, as_png(figure)) for name, (caption, figure) in plots.items()}
    for name, (_, png) in figures.items():
        write_whole(args.output_dir / f"{name}.png", lambda path, png=png: path.write_bytes(png))
    answer = answer_of(model, output)
    title = f"Inside {Path(args.model).name}"
    content = page(title, answer, records, names, texts, figures)
    write_whole(args.output_dir / "index.html", lambda path: path.write_text(content, encoding="utf-8"))
    if answer:
        print(answer)
    print(f"{', '.join(f'{name}.png' for name in figures)} and index.html are in {args.output_dir}")


if __name__ == "__main__":
    main()
