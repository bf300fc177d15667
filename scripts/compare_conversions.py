#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Converts pretrained models with each part of the new attention on and off, at equal steps, and keeps the records.

    python scripts/compare_conversions.py --models minilm=sentence-transformers/all-MiniLM-L6-v2 --data my_reviews
    python scripts/compare_conversions.py --models smollm2=HuggingFaceTB/SmolLM2-135M-Instruct --data my_texts \\
        --arms linear window_and_sinks --results_dir outputs/mine

Each arm is a run of scripts/convert.py, of which an interrupted one is resumed and a finished one is not repeated; its
record goes to RESULTS_DIR/MODEL/ARM.json. Where the data have labels, a linear probe of the embeddings is compared with
the same probe of the original's. `python scripts/report.py` makes tables of the records.
"""

import argparse
from pathlib import Path

import convert
import torch
import train_text_classification
from comparison.cells import as_arguments
from conversion.arms import CONVERSIONS
from conversion.inputs import fallbacks_of, load_processor
from conversion.quality import probe_accuracies
from training.data import load_splits, pick_split
from training.files import read_json, write_json
from transformers import AutoModel


PROBE_SEEDS, PROBE_TRAIN, PROBE_TEST = (42, 43, 44), 4000, 2000


def parse_arguments(arguments=None):
    usage, details = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME=SOURCE",
        help=f"which of {', '.join(CONVERSIONS)}, and its folder or name on the Hub",
    )
    parser.add_argument("--data", required=True, help="texts: folder of files named by split, or a name on the Hub")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="(default: all of the model)")
    parser.add_argument(
        "--results_dir", type=Path, default=Path("results/pretrained"), help="of the records (default: %(default)s)"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/pretrained"), help="of the models (default: %(default)s)"
    )
    parser.add_argument(
        "--finetune",
        action="store_true",
        help="then also train for the labels of the data, converted models and others",
    )
    parser.add_argument("--list", action="store_true", help="convert nothing; list what is done and what is missing")
    args = parser.parse_args(arguments)
    named = {}
    for item in args.models:
        name, _, source = item.partition("=")
        if name not in CONVERSIONS or not source:
            parser.error(f"--models: expected NAME=SOURCE with one of {', '.join(CONVERSIONS)}, got {item!r}")
        named[name] = source
        unknown = set(args.arms or ()) - set(CONVERSIONS[name].arms)
        if unknown:
            known = ", ".join(CONVERSIONS[name].arms)
            parser.error(f"--arms: {name} has no arm {sorted(unknown)[0]!r}; it has {known}")
    args.models = named
    return args


def probe_examples(data, options):
    """What a linear probe learns from and is measured on; None where the data have no labels.

    It learns from texts of the training split that the conversion did not take, and is measured on the validation
    split: the converted model has learned from none of them.
    """
    splits = load_splits(**({"dataset_dir": data} if Path(data).is_dir() else {"dataset_name": data}))
    train_name, train = pick_split(splits, options["train_split"])
    _, validation = pick_split(splits, options["validation_split"], fallbacks=fallbacks_of(options["validation_split"]))
    if "label" not in train.column_names:
        return None
    train, validation = (rows.shuffle(seed=options["seed"]) for rows in (train, validation))
    used = options["num_transfer"] + options["num_distillation"]
    if used >= len(train):
        raise ValueError(
            f"the conversion takes all {len(train)} examples of split {train_name!r}; a probe needs others"
        )
    pools = train.select(range(used, len(train))), validation
    numbers = PROBE_TRAIN, PROBE_TEST
    # a quarter more than a seed draws
    return tuple(
        pool.select(range(min(len(pool), number * 5 // 4))) for pool, number in zip(pools, numbers, strict=True)
    )


def probe(source, folder, train, test):
    """Accuracy of a linear probe on embeddings of the original and of the converted model, for each seed."""
    original = convert.load_original(source)
    processor = load_processor(original, source)
    models = {"original": original, "converted": AutoModel.from_pretrained(folder).eval()}
    return {
        name: probe_accuracies(model, processor, train, test, PROBE_SEEDS, (PROBE_TRAIN, PROBE_TEST))
        for name, model in models.items()
    }


def finetune(name, source, args):
    """Trains the original, with softmax attention and with each of this package's, and converted models, for the same
    steps at the task that the labels of the data are; the records go to RESULTS_DIR/MODEL/finetuned/."""
    conversion = CONVERSIONS[name]
    contestants = {"softmax": ["--model_name_or_path", source]}
    contestants |= {
        form: ["--model_name_or_path", source, "--attn_implementation", form] for form in ("neuron_astrocyte", "linear")
    }
    for arm in conversion.finetuned:
        contestants[f"converted, {arm}"] = ["--model_name_or_path", str(args.output_dir / name / arm)]
    data = ["--dataset_dir" if Path(args.data).is_dir() else "--dataset_name", args.data]
    options = conversion.finetuning
    if options.get("bf16") and not torch.accelerator.is_available():
        options = {**options, "use_cpu": True}
    for contestant, model in contestants.items():
        file = contestant.replace(", ", "_")
        path, folder = (
            args.results_dir / name / "finetuned" / f"{file}.json",
            args.output_dir / name / "finetuned" / file,
        )
        if args.list or path.exists():
            print(f"{name}, fine-tuned, {contestant}: {'done' if path.exists() else 'missing'}")
            continue
        print(f"{name}, fine-tuned, {contestant}: training in {folder}", flush=True)
        train_text_classification.main([*model, *data, "--output_dir", str(folder), *as_arguments(options)])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"contestant": contestant, **read_json(folder / "results.json")})


def main(arguments=None):
    args = parse_arguments(arguments)
    for name, source in args.models.items():
        conversion = CONVERSIONS[name]
        for arm in args.arms or conversion.arms:
            path, folder = args.results_dir / name / f"{arm}.json", args.output_dir / name / arm
            if args.list or path.exists():
                print(f"{name}, {arm}: {'done' if path.exists() else 'missing'}")
                continue
            print(f"{name}, {arm}: converting to {folder}", flush=True)
            given = {"model": source, "text": args.data, "output_dir": folder}
            arguments = as_arguments({**given, **conversion.options, **conversion.arms[arm]})
            examples = None
            if conversion.has_probe:  # what is amiss with the data shows before the conversion
                examples = probe_examples(args.data, vars(convert.parse_arguments(arguments)))
            convert.main(arguments)
            record = {"arm": arm, **read_json(folder / convert.RESULTS)}
            if conversion.has_probe:
                record["probe"] = None if examples is None else probe(source, folder, *examples)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
        if args.finetune:
            finetune(name, source, args)


if __name__ == "__main__":
    main()
