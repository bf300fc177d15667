#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Classifies documents far longer than any text a model was trained on, as they would come in: piece by piece.

    python scripts/read_documents.py --model outputs/long --dataset_dir my_data --output_dir outputs/documents
    python scripts/read_documents.py --model outputs/long --text_file book.txt

For a classifier with `segment_length` and `pooling="last"`. Of a data set, documents are made by putting texts of the
same label one after the other, as many as `--length` tokens take. Each document is read at once, in pieces with the
memory handed on, and by its last segment alone, which says what the memory is worth. Files are read in pieces.
"""

import argparse
import statistics
from pathlib import Path

import torch
from training.data import labelled_texts
from training.files import read_json, write_json
from training.memory_use import peak_memory
from training.provenance import command, hardware, versions
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import astroformer_hf  # noqa: F401 (registers the classes)


RECORD = "documents.json"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model, or its name on the Hub")
    parser.add_argument("--text_file", action="append", default=[], help="a document; may be given several times")
    parser.add_argument("--dataset_dir", help="folder of files named by split, with the columns text and label")
    parser.add_argument("--split", default="validation", help="split to make documents of")
    parser.add_argument("--length", type=int, default=100_000, help="tokens of such a document")
    parser.add_argument("--documents", type=int, default=10, help="how many documents of each label")
    parser.add_argument("--piece", type=int, default=8, help="segments that are read at a time")
    parser.add_argument("--output_dir", help=f"folder for {RECORD}, what was found in the documents of a data set")
    args = parser.parse_args(arguments)
    if not args.text_file and args.dataset_dir is None:
        parser.error("give --text_file or --dataset_dir")
    if args.output_dir and args.dataset_dir is None:
        parser.error("--output_dir records the documents of --dataset_dir, which is not given")
    for name, least in {"length": 10, "documents": 1, "piece": 1}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    texts = {path: read_text(path) for path in args.text_file}
    if args.output_dir:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)

    model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    segment_length, pooling = getattr(model.config, "segment_length", None), getattr(model.config, "pooling", None)
    if segment_length is None or pooling != "last":
        raise ValueError(
            '--model must read in segments and answer at the end, with segment_length and pooling="last"; '
            f"{args.model} has segment_length {segment_length} and pooling {pooling!r}"
        )
    if model.config.memory_retention == "ltp":
        raise ValueError(
            f"--model must read in pieces, and {args.model} has memory_retention 'ltp', which goes by the number "
            "of segments in the whole text. Train one with 'streaming' or 'none'"
        )
    if (kind := model.config.problem_type) not in (None, "single_label_classification") or model.config.num_labels < 2:
        raise ValueError(
            f"--model must give one label of several to a text; {args.model} has problem_type {kind!r} and "
            f"{model.config.num_labels} labels"
        )
    for path, text in texts.items():
        tokens = token_ids(text, tokenizer)
        if not tokens:
            raise ValueError(f"--text_file {path} is empty")
        input_ids = document_of(tokens, tokenizer)
        logits = read(model, input_ids, args.piece * segment_length)
        probability, label = logits.softmax(-1).max(-1)
        name = model.config.id2label[label.item()]
        print(f"{path}: {name} ({probability.item():.0%}), {input_ids.shape[1]:,} tokens", flush=True)
    if args.dataset_dir is not None:
        record = read_data(model, tokenizer, args)
        origin = {"command": command(__file__, arguments), "versions": versions(), "hardware": hardware()}
        training = Path(args.model) / "results.json"
        if training.exists():  # how the model came about
            origin["training_command"] = read_json(training).get("command")
        record = {**origin, **record}
        if args.output_dir:
            write_json(Path(args.output_dir) / RECORD, record)
            print(f"wrote {Path(args.output_dir) / RECORD}")


def read_text(path):
    """The text in a file.

    Raises:
        ValueError: there is none, or it is not in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # perhaps with a mark that it is
    except OSError as error:
        raise ValueError(f"--text_file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--text_file {path} must be text in UTF-8; byte {error.start} is not") from error


@torch.no_grad()
def read(model, input_ids, size):
    """The logits of a document, `(1, labels)`, that is read `size` tokens at a time; each piece is then forgotten."""
    outputs = memory = None
    for piece in input_ids.split(size, dim=1):
        outputs = model(piece, memory=memory)
        memory = outputs.memory
    return outputs.logits


def token_ids(text, tokenizer):
    """The tokens of a text as a list, without special ones."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def document_of(tokens, tokenizer, length=None):
    """Tokens as one row, `(1, length)`, between the special tokens that the tokenizer puts around a text.

    Args:
        tokens (list of `int`): without special ones; what is too much for the length is left out at the end.
        length (`int`, *optional*): with special ones.
    """
    sample = tokenizer(tokenizer.decode(tokens[:8]), return_special_tokens_mask=True)
    is_text = [not is_special for is_special in sample.special_tokens_mask]
    start, end = is_text.index(True), len(is_text) - is_text[::-1].index(True)
    before, after = sample.input_ids[:start], sample.input_ids[end:]
    if length is not None:
        tokens = tokens[: length - len(before) - len(after)]
    return torch.tensor([[*before, *tokens, *after]], dtype=torch.long)


def make_documents(texts, labels, tokenizer, length, number):
    """At most `number` documents of each label, as pairs of the label's name and token ids, `(1, length)`."""
    documents = []
    for label in sorted(set(labels)):
        own = iter([text for text, of_text in zip(texts, labels, strict=True) if of_text == label])
        for _ in range(number):
            tokens = []
            while len(tokens) < length and (text := next(own, None)) is not None:
                tokens += token_ids(text, tokenizer)
            if len(tokens) < length:
                break
            documents.append((label, document_of(tokens, tokenizer, length)))
    return documents


def read_data(model, tokenizer, args):
    """What is found in the documents of a data set, and the memory it takes to read one."""
    texts, labels = labelled_texts(args.dataset_dir, args.split, model)
    documents = make_documents(texts, labels, tokenizer, args.length, args.documents)
    if not documents:
        raise ValueError(f"--length {args.length}: no label of split {args.split} has texts of so many tokens together")
    segment_length = model.config.segment_length
    size = args.piece * segment_length
    last = (args.length - 1) // segment_length * segment_length
    hits = {"at once": [], "in pieces": [], "last segment alone": []}
    differences = []
    for number, (name, input_ids) in enumerate(documents, 1):
        found = {"at once": read(model, input_ids, args.length), "in pieces": read(model, input_ids, size)}
        found["last segment alone"] = read(model, input_ids[:, last:], size)
        for way, logits in found.items():
            hits[way].append(model.config.id2label[logits.argmax(-1).item()] == name)
        differences.append((found["at once"] - found["in pieces"]).abs().max().item())
        answer = model.config.id2label[found["in pieces"].argmax(-1).item()]
        print(f"document {number} of {len(documents)}: {answer} (is {name})", flush=True)
    record = {
        "model": args.model,
        "dataset": Path(args.dataset_dir).resolve().name,
        "documents": len(documents),
        "length": args.length,
        "segment_length": segment_length,
        "piece": size,
        "accuracy": {way: statistics.mean(right) for way, right in hits.items()},
        "largest_difference": max(differences),
        "reading": [],
    }
    input_ids = documents[0][1]
    for length in (args.length // 10, args.length):
        for way, pieces in (("at once", length), ("in pieces", size)):
            measured = peak_memory(lambda n=length, k=pieces: read(model, input_ids[:, :n], k), "cpu")
            record["reading"].append({"length": length, "way": way, **measured})
    accuracy = ", ".join(f"{way} {share:.1%}" for way, share in record["accuracy"].items())
    print(f"accuracy on {len(documents)} documents of {args.length:,} tokens: {accuracy}")
    print(f"largest difference of the logits, at once and in pieces: {record['largest_difference']:.1e}")
    return record


if __name__ == "__main__":
    main()
