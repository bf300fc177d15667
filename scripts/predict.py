#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Loads a trained text classifier through the Auto classes, measures it again, and shows a few of its predictions.

python scripts/predict.py --model outputs/imdb --dataset_dir my_data
python scripts/predict.py --model outputs/imdb --text "What a lovely film." --text "Two hours of my life, gone."
"""

import argparse
from pathlib import Path

from training.data import labelled_texts
from training.files import read_json
from training.tokenization import check_max_length, longest_input
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import astroformer_hf  # noqa: F401 (registers the classes)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model, or its name on the Hub")
    parser.add_argument("--text", action="append", default=[], help="a text to classify; may be given several times")
    parser.add_argument("--dataset_dir", help="folder of files named by split: measure the accuracy and show examples")
    parser.add_argument("--split", default="validation", help="split to measure on")
    parser.add_argument("--max_length", type=int, help="tokens read of each text; all that the model takes by default")
    parser.add_argument(
        "--attn_implementation",
        help="attention of a model of the library; by default that which it was trained with, if results.json says so",
    )
    parser.add_argument("--examples", type=int, default=4, help="how many of its texts to show")
    args = parser.parse_args(arguments)
    if not args.text and args.dataset_dir is None:
        parser.error("give --text or --dataset_dir")
    if args.examples < 0:
        parser.error(f"--examples must be at least 0, got {args.examples}")

    attention = args.attn_implementation or attention_in_training(args.model)
    more = {"attn_implementation": attention} if attention else {}
    model, loading = AutoModelForSequenceClassification.from_pretrained(args.model, output_loading_info=True, **more)
    if loading["missing_keys"]:
        raise ValueError(
            f"--model must be a trained text classifier; {args.model} has no weights for "
            f"{', '.join(sorted(loading['missing_keys']))}"
        )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    longest = longest_input(model.config, tokenizer) if args.max_length is None else args.max_length
    check_max_length(longest, tokenizer)
    options = {"truncation": longest is not None, "max_length": longest}
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=32, **options)
    for text in args.text:
        show(text, classify(text)[0], is_number=model.config.problem_type == "regression")
    if args.dataset_dir is None:
        return
    kind = model.config.problem_type
    if kind not in (None, "single_label_classification"):
        raise ValueError(
            f"--dataset_dir needs a model with one label per text; problem_type of {args.model} is {kind!r}"
        )
    texts, references = labelled_texts(args.dataset_dir, args.split, model)
    answers = classify(texts)
    hits = sum(answer["label"] == reference for answer, reference in zip(answers, references, strict=True))
    for i in range(0, len(texts), max(1, len(texts) // max(1, args.examples)))[: args.examples]:
        show(texts[i], answers[i], references[i])
    print(f"accuracy {hits / len(texts):.4f} on {len(texts)} texts of split {args.split}")


def attention_in_training(model):
    """The `attn_implementation` with which a model of the library was trained, if its folder tells; else None."""
    record = Path(model) / "results.json"
    return read_json(record).get("attn_implementation") if record.exists() else None


def show(text, answer, reference=None, is_number=False):
    """One line: the answer, its probability (or the answer itself where it is a number), the right answer if known, and
    the text's beginning."""
    text = " ".join(text.split())
    text = text if len(text) <= 70 else text[:67] + "..."
    truth = "" if reference is None else f" (is {reference})"
    score = f"{answer['score']:.3g}" if is_number else f"{answer['score']:4.0%}"
    print(f"  {answer['label']:>15} {score}{truth}  {text}")


if __name__ == "__main__":
    main()
