#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Makes the folders of the trained models under model_cards/ from what scripts/reproduce.py left in outputs/.

    python scripts/release_models.py
    python scripts/release_models.py --models astroformer-imdb --data imdb=my_imdb --trained_dir outputs/mine

Weights are stored in float16; `dtype` in config.json makes `from_pretrained` compute in float32. Where rounding changes
a figure of the card, measured on the whole validation split, they stay in float32. Each folder holds the weights, the
configuration, the tokenizer or image processor, `results.json` and the card; scripts/publish.py adds the code that a
repository on the Hub needs. A few validation examples go to tests/samples/, with the figures on them.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from comparison.cells import Cell
from comparison.presets import PRESETS
from datasets import ClassLabel, Dataset
from looking.pictures import as_rgb
from reporting import model_cards
from reporting.comparisons import Comparison
from safetensors.torch import load_file, save_file
from training.data import load_splits
from training.files import ROOT, read_json, write_json
from training.metrics import Classification
from training.provenance import command, hardware, versions
from training.runs import losses_of_examples
from transformers import AutoImageProcessor, AutoTokenizer

import astroformer_hf


CARDS, SAMPLES = ROOT / "model_cards", ROOT / "tests/samples"
PRESET = "switches"
BATCH_SIZE = 64


@dataclass(frozen=True)
class Release:
    """Which arm of which task a released model is: `comparison.tasks.TASKS`, `comparison.arms.ARMS`."""

    task: str
    arm: str


# Of each task the default form of the attention.
RELEASES = {
    "astroformer-imdb": Release("imdb", "best"),
    "astroformer-cifar10": Release("cifar10", "best"),
    "astroformer-shakespeare": Release("shakespeare", "best"),
}
PROCESSOR_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
TRAINING_FIELDS = (
    *("command", "steps", "learning_rate", "seed", "train_samples", "block_size", "checkpoint", "seconds"),
    *("metrics", "versions", "hardware"),
)
SAMPLE_SIZE = {"imdb": 32, "cifar10": 64, "shakespeare": 64 * 64}  # reviews, images, characters
LONGEST_REVIEW = 400  # characters of a review in the sample

TEXTS = ("A wonderful film, I loved every minute of it.", "Dull from beginning to end, a waste of two hours.")
EXAMPLE_IMAGE, EXAMPLE_ROW = "example.png", 16  # of the sample: a car that people recognise at 32 x 32 pixels, too
PROMPT, NEW_TOKENS = "ROMEO:\n", 57  # together a block, as in training


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------


def load(folder):
    """Model and processor of a folder, with the classes of the package."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = getattr(astroformer_hf, config["architectures"][0]).from_pretrained(folder)
    is_image = model.main_input_name == "pixel_values"
    return model, (AutoImageProcessor if is_image else AutoTokenizer).from_pretrained(folder)


def batches(model, processor, examples, max_length):
    """The inputs of a model with their labels, as the training scripts make them."""
    if model.config.is_decoder:
        ids = torch.tensor(processor(examples[0]["text"], add_special_tokens=False, verbose=False).input_ids)
        for rows in ids[: len(ids) // max_length * max_length].view(-1, max_length).split(BATCH_SIZE):
            yield {"input_ids": rows, "labels": rows}
        return
    feature = examples.features["label"]
    for start in range(0, len(examples), BATCH_SIZE):
        rows = examples[start : start + BATCH_SIZE]
        names = [feature.int2str(x) if isinstance(feature, ClassLabel) else x for x in rows["label"]]
        labels = torch.tensor([model.config.label2id[name] for name in names])
        if "img" in rows:
            inputs = processor([as_rgb(image) for image in rows["img"]], return_tensors="pt")
        else:
            options = {"truncation": max_length is not None, "max_length": max_length, "padding": True}
            inputs = processor(rows["text"], return_tensors="pt", verbose=False, **options)
        yield {**inputs, "labels": labels}


def evaluate(model, processor, examples, max_length=None):
    """Measures a model as the training scripts do.

    Args:
        model: one of the library's heads.
        processor: its tokenizer or image processor.
        examples (`datasets.Dataset`): with the columns `text` and `label`, or `img` and `label`, or, for a language
            model, `text` in one row.
        max_length (`int`, *optional*): tokens that are read of each text, or of which the blocks of a language model
            are made. By default whole texts are read.

    Returns:
        The metrics by their names, and the loss of each example, or of each block.
    """
    losses, predictions, references = [], [], []
    for batch in batches(model, processor, examples, max_length):
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        losses.append(
            losses_of_examples(logits, labels, model.config, logits.dim() == 3 and model.config.is_decoder).double()
        )
        predictions.append(logits.argmax(-1))
        references.append(labels)
    sums, counts = torch.cat(losses).unbind(-1)
    loss = (sums.sum() / counts.sum()).item()
    metrics = {"loss": loss}
    if model.config.is_decoder:
        metrics["perplexity"] = torch.tensor(loss).double().exp().item()
    else:
        metrics |= Classification().compute(predictions=torch.cat(predictions), references=torch.cat(references))
    return metrics, (sums / counts).tolist()


def load_validation(folder):
    """The validation split of a folder of files named by split."""
    return load_splits(dataset_dir=str(folder))["validation"]


def sample_of(task, examples):
    """A few of the validation examples of a task: short reviews, half of them positive; the first images; the first
    characters of a text."""
    size = SAMPLE_SIZE[task]
    if task == "shakespeare":
        return Dataset.from_dict({"text": [examples[0]["text"][:size]]})
    if task == "cifar10":
        return examples.select(range(size))
    short = examples.filter(lambda row: len(row["text"]) <= LONGEST_REVIEW)
    chosen = sorted(i for label in (0, 1) for i in [i for i, x in enumerate(short["label"]) if x == label][: size // 2])
    return short.select(chosen)


def write_sample(task, sample, folder):
    """Writes a sample so that `load_validation` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "shakespeare":
        (folder / "validation.txt").write_text(sample[0]["text"], encoding="utf-8", newline="")
    elif task == "cifar10":
        sample.to_parquet(folder / "validation.parquet")
    else:
        name = sample.features["label"].int2str
        lines = [json.dumps({"text": row["text"], "label": name(row["label"])}, ensure_ascii=False) for row in sample]
        (folder / "validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------------
# Making the folders
# --------------------------------------------------------------------------------------------------------------------


def example_code(name, task):
    """How a model is used after a clone of the repository, as Python for its card."""
    start = f'import astroformer_hf\nfrom transformers import pipeline{{more}}\n\n{{verb}} = pipeline("{task}", '
    start += f'model="model_cards/{name}")\n'
    if task == "text-generation":
        return start.format(more=", set_seed", verb="write") + (
            "set_seed(0)\n"
            f'print(write({json.dumps(PROMPT)}, max_new_tokens={NEW_TOKENS}, do_sample=True)[0]["generated_text"])\n'
        )
    more = "" if task == "image-classification" else f"texts = {json.dumps(TEXTS)}\n"
    given = "texts" if more else f'"model_cards/{name}/{EXAMPLE_IMAGE}", top_k=3'
    return start.format(more="", verb="classify") + (
        f'{more}for answer in classify({given}):\n    print(answer["label"], f"{{answer[\'score\']:.2f}}")\n'
    )


def run_example(code):
    """What the code of a card prints, run in the repository."""
    printed = io.StringIO()
    folder = os.getcwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "model card", "exec"), {})
    finally:
        os.chdir(folder)
    return printed.getvalue()


def to_float16(folder):
    """Rounds the weights of a folder; `dtype` in its config.json stays float32, in which the model computes."""
    path = folder / "model.safetensors"
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
    }
    save_file(weights, path, {"format": "pt"})


def rounded(metrics):
    """The metrics of a card as it prints them."""
    return {name: model_cards.in_words(name, value) for name, value in metrics.items() if name in model_cards.SHOWN}


def release(name, trained, validation, folder, sample):
    """Makes the folder of a model.

    Args:
        name (`str`): which of `RELEASES`.
        trained (`Path`): the folder that training left.
        validation (`datasets.Dataset`): the whole split.
        folder (`Path`): of which nothing is left over, see `replacing`.
        sample (`datasets.Dataset`): a few examples, see `sample_of`.

    Returns:
        The figures on the sample, for the tests.
    """
    record = read_json(trained / "results.json")
    max_length = max_length_of(record)
    model, processor = load(trained)
    model.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    for file in PROCESSOR_FILES:
        if (trained / file).exists():
            shutil.copyfile(trained / file, folder / file)
    evaluations = {"float32": evaluate(model, processor, validation, max_length)[0]}
    in_float32 = folder / "float32.safetensors"
    shutil.copyfile(folder / "model.safetensors", in_float32)
    to_float16(folder)
    model, processor = load(folder)
    evaluations["float16"] = evaluate(model, processor, validation, max_length)[0]
    weights = "float16" if rounded(evaluations["float16"]) == rounded(evaluations["float32"]) else "float32"
    if weights == "float32":
        in_float32.replace(folder / "model.safetensors")
        model, processor = load(folder)
    in_float32.unlink(missing_ok=True)
    reads_on = record["task"] == "text-classification" and model.config.longest_input is None
    if record["task"] == "image-classification":
        sample[EXAMPLE_ROW]["img"].save(folder / EXAMPLE_IMAGE)
    code = example_code(name, record["task"])
    content = {
        "name": name,
        "preset": PRESET,
        **asdict(RELEASES[name]),
        "pipeline_tag": record["task"],
        "attention_type": record["arm"],
        **{field: record[field] for field in ("dataset", "split", "eval_samples", "parameters")},
        "max_length": max_length,
        "weights": weights,
        "metrics": evaluations[weights],
        "evaluations": evaluations,
        **({"metrics_of_whole_texts": evaluate(model, processor, validation)[0]} if reads_on else {}),
        "example": {"code": code, "printed": run_example(code)},
        "command": command(__file__),
        "versions": versions(),
        "hardware": hardware(),
        "training": {field: record[field] for field in TRAINING_FIELDS if field in record},
    }
    write_json(folder / "results.json", content)
    metrics, losses = evaluate(model, processor, sample, max_length)
    return {**metrics, "losses": losses}


@contextlib.contextmanager
def replacing(folder):
    """Sets a folder aside. It comes back unless its successor is finished: at once after an error, and by the next call
    if the process was killed."""
    aside = folder.with_name(f".{folder.name}.before")
    if not aside.exists() and folder.exists():
        folder.rename(aside)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def max_length_of(record):
    """The tokens of a text that a run read, None for images."""
    words = record["command"].split()
    options = dict(zip(words, words[1:], strict=False))
    return int(options.get("--max_length") or options.get("--block_size") or 0) or None


def trained_folder(name, trained_dir):
    """Where training left a model: the first seed at the learning rate that was chosen for its arm."""
    released = RELEASES[name]
    rate = Comparison(ROOT / "results", PRESET).records.chosen_rate(released.task, released.arm)
    cell = Cell(PRESET, released.task, released.arm, rate, PRESETS[PRESET][released.task].seeds[0])
    return trained_dir / cell.name.partition("/")[2]


def parse_arguments(arguments=None):
    usage, details = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=RELEASES, default=list(RELEASES), help="which (default: all)")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="TASK=FOLDER",
        help="folders of files named by split (default: where the training command found them)",
    )
    parser.add_argument(
        "--trained_dir",
        type=Path,
        default=Path("outputs/reproduce") / PRESET,
        help=f"where the models of the preset {PRESET!r} were trained (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    folders = {}
    for item in args.data:
        task, _, folder = item.partition("=")
        if task not in SAMPLE_SIZE or not Path(folder).is_dir() or not folder:
            parser.error(
                f"--data: expected TASK=FOLDER with one of {', '.join(SAMPLE_SIZE)} and a folder, got {item!r}"
            )
        folders[task] = folder
    args.data = folders
    for name in args.models:
        if not (trained_folder(name, args.trained_dir) / "results.json").is_file():
            parser.error(
                f"--trained_dir: {name} needs {trained_folder(name, args.trained_dir)}, which has no results.json"
            )
    return args


def main():
    args = parse_arguments()
    expected_path = SAMPLES / "expected.json"
    expected = read_json(expected_path) if expected_path.exists() else {}
    for name in args.models:
        task, trained = RELEASES[name].task, trained_folder(name, args.trained_dir)
        words = read_json(trained / "results.json")["command"].split()
        validation = load_validation(args.data.get(task) or words[words.index("--dataset_dir") + 1])
        sample = sample_of(task, validation)
        write_sample(task, sample, SAMPLES / task)
        with replacing(CARDS / name):
            expected[name] = release(name, trained, validation, CARDS / name, load_validation(SAMPLES / task))
            for path, text in model_cards.cards(Comparison(ROOT / "results", PRESET), CARDS).items():
                path.write_text(text, encoding="utf-8")
        write_json(expected_path, {name: expected[name] for name in RELEASES if name in expected})
        print(f"{name}: {json.dumps(rounded(expected[name]))} on the sample")


if __name__ == "__main__":
    main()
