#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Gives a pretrained model of the library neuron-astrocyte attention, and has it learn from the original.

    python scripts/convert.py --model sentence-transformers/all-MiniLM-L6-v2 --text my_texts --output_dir outputs/minilm
    python scripts/convert.py --model HuggingFaceTB/SmolLM2-135M --text my_texts --output_dir outputs/smollm \\
        --window_size 64 --sink_tokens 4
    python scripts/convert.py --model google/vit-base-patch16-224 --images my_images --output_dir outputs/vit

The data need no labels: a folder of files named by split, or a name on the Hub, with a column `text` or `image`. First
the synapses of each layer learn to give what softmax attention gives (`--num_transfer` examples); then the whole model
learns to give what the original gives (`--num_distillation` others). Repeat a command to go on after an interruption.
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path

import torch
import transformers
from conversion.card import license_of, write_card
from conversion.inputs import Inputs, load_processor
from conversion.quality import compare_embeddings, embeddings, perplexity, silenced_synapses
from training.files import hold, read_json, refuse_same_folder, write_json
from training.half_precision import warn_of_slow_bfloat16
from training.provenance import command, hardware, versions
from training.resuming import check_same_options, checkpoint_to_resume
from transformers import AutoConfig, TrainingArguments

from astroformer_hf import DistillationTrainer, keep_swapped, swap_attention, transfer_attention


STAGES = ("transfer", "transferred", "distillation")  # folders that are there while a conversion is under way
OPTIONS = "options.json"  # what a conversion was begun with, which is there as long
RESULTS = "results.json"  # which is there when it is finished
SWAP_OPTIONS = ("feature_map", "num_features", "window_size", "sink_tokens", "astrocyte_code")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a model of the library, or its name on the Hub")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--text", help="folder of files named by split, or a name on the Hub")
    data.add_argument("--images", help="the same with images")
    parser.add_argument("--text_column", default="text", help="column of the texts")
    parser.add_argument("--train_split", default="train", help="split to learn from")
    parser.add_argument("--validation_split", default="validation", help="split to measure on")
    parser.add_argument("--license", help="of the original, where its card does not tell it")
    parser.add_argument("--output_dir", required=True, help="folder of the new model")
    swap = parser.add_argument_group("the attention")
    swap.add_argument("--feature_map", default="hedgehog", help="hedgehog, or a fixed map")
    swap.add_argument("--num_features", type=int, help="of hedgehog; twice the head size without it")
    swap.add_argument("--window_size", type=int, default=8, help="nearest tokens that are read exactly; 0: none")
    swap.add_argument("--sink_tokens", type=int, default=1, help="first tokens that are read exactly; 0: none")
    swap.add_argument("--astrocyte_code", choices=["activity"], help="adds H_astro")
    swap.add_argument("--keep_layers", type=int, help="keep so many layers swapped, those with the smallest error")
    steps = parser.add_argument_group("learning")
    steps.add_argument("--max_length", type=int, default=128, help="tokens of a text, or of a block of a causal model")
    steps.add_argument("--batch_size", type=int, default=16, help="examples of a batch")
    steps.add_argument("--num_transfer", type=int, default=1600, help="examples of the transfer")
    steps.add_argument("--transfer_learning_rate", type=float, default=3e-2, help="of the synapses")
    steps.add_argument("--num_distillation", type=int, default=8000, help="examples of the distillation; 0: none")
    steps.add_argument("--learning_rate", type=float, default=1e-4, help="of the distillation")
    steps.add_argument("--synapses_learning_rate", type=float, default=2e-3, help="of the synapses in it")
    steps.add_argument(
        "--bf16",
        action="store_true",
        help="learn in bfloat16 where that is faster (autocast); weights and measurements stay in float32",
    )
    steps.add_argument("--num_validation", type=int, default=500, help="examples that quality is measured on")
    steps.add_argument("--seed", type=int, default=42, help="draws the examples")
    args = parser.parse_args(arguments)
    for name in ("num_transfer", "num_distillation", "num_validation"):
        least = 1 if name == "num_validation" else 0
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.keep_layers is not None:
        if args.keep_layers < 1:
            parser.error(f"--keep_layers must be at least 1, got {args.keep_layers}")
        if args.num_transfer == 0:
            parser.error("--keep_layers goes by the errors that the transfer leaves: it needs --num_transfer above 0")
    return args


def load_original(name):
    """A model of the library with softmax attention, of the class that its configuration names."""
    config = AutoConfig.from_pretrained(name)
    (architecture,) = config.architectures or [None]
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(f"--model {name!r} is of class {architecture!r}, which transformers does not have")
    return model_class.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa").eval()


def quality(model, original, inputs, examples, batch_size):
    """How good a model is: of a causal one its perplexity, of others how near embeddings are to the original's."""
    if inputs.is_causal:
        return perplexity(model.eval(), inputs.batches(examples, batch_size))
    found, wanted = (embeddings(m.eval(), inputs.batches(examples, batch_size)) for m in (model, original))
    return compare_embeddings(found, wanted)


def learning_arguments(args, stage, learning_rate):
    """What the two stages share, as fields of `TrainingArguments`."""
    return {
        "output_dir": str(Path(args.output_dir) / stage),
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "logging_steps": 0.05,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 1,
        "remove_unused_columns": False,
        "report_to": "none",
        "bf16": args.bf16,
        "use_cpu": args.bf16 and not torch.accelerator.is_available(),  # the library wants to be told, with bf16
        "seed": args.seed,
    }


def options_of(args, output_dir):
    """What a conversion is begun with, to be written down as long as it goes on.

    Raises:
        ValueError: the folder holds one that was begun otherwise.
    """
    options = json.loads(json.dumps({name: value for name, value in vars(args).items() if name != "output_dir"}))
    if (output_dir / RESULTS).exists():
        begun_with = read_json(output_dir / RESULTS)["options"]
    elif (output_dir / OPTIONS).exists():
        begun_with = read_json(output_dir / OPTIONS)
    else:
        return options
    check_same_options(f"conversion in {output_dir}", begun_with, options)
    return options


def last_checkpoint(args, stage):
    return checkpoint_to_resume(str(Path(args.output_dir) / stage))


def transfer(args, model, original, inputs, output_dir):
    """The first stage, or what an interrupted run left of it: the model and its `TransferReport` as a `dict`."""
    done = output_dir / "transferred"
    if (done / "transfer.json").exists():
        print(f"going on from {done}")
        return type(model).from_pretrained(done).eval(), read_json(done / "transfer.json")
    report = transfer_attention(
        model,
        original,
        inputs.of(args.train_split, 0, args.num_transfer),
        validation_inputs=inputs.of(args.validation_split, 0, min(64, args.num_validation)),
        data_collator=inputs.collator,
        resume_from_checkpoint=last_checkpoint(args, "transfer"),
        **learning_arguments(args, "transfer", args.transfer_learning_rate),
    )
    if args.keep_layers is not None:
        keep_swapped(model, report.easiest(args.keep_layers))
    model.save_pretrained(done)
    report = {**dataclasses.asdict(report), "kept": model.config.attention_swap["layers"]}
    write_json(done / "transfer.json", report)
    return model, report


def main(arguments=None):
    args = parse_arguments(arguments)
    stopwatch, output_dir = time.perf_counter(), Path(args.output_dir)
    refuse_same_folder(output_dir, "model", args.model)
    options = options_of(args, output_dir)
    if (output_dir / RESULTS).exists():
        print(f"{output_dir} holds this model, converted; name another folder, or remove it")
        return
    resumed = any((output_dir / stage).is_dir() for stage in STAGES)
    if args.bf16 and not torch.accelerator.is_available():
        warn_of_slow_bfloat16()
    original = load_original(args.model)
    processor = load_processor(original, args.model)
    inputs = Inputs(
        args.text or args.images, original, processor, args.max_length, args.seed, text_column=args.text_column
    )
    validation = inputs.of(args.validation_split, 0, args.num_validation)
    swap = {name: getattr(args, name) for name in SWAP_OPTIONS}
    model = swap_attention(load_original(args.model), **swap)
    num_layers = len(model.config.attention_swap["layers"])
    if args.keep_layers is not None and args.keep_layers > num_layers:
        raise ValueError(f"--keep_layers is {args.keep_layers}, but the model has {num_layers} attention layers")
    measured = {}

    def measure(stage, of=None):
        measured[stage] = quality(model if of is None else of, original, inputs, validation, args.batch_size)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in measured[stage].items() if name != "tokens")
        print(f"{stage}: {shown}", flush=True)

    hold(output_dir)  # before what takes long
    if inputs.is_causal:
        measure("original", of=original)
    measure("swapped")
    write_json(output_dir / OPTIONS, options)
    report = None
    if args.num_transfer:
        model, report = transfer(args, model, original, inputs, output_dir)
        for layer, before, after in zip(report["layers"], report["before"], report["after"], strict=True):
            print(f"  layer {layer:>2}: error {before:.4f} before, {after:.4f} after")
        measure("transferred")
    if args.num_distillation:
        arguments_of_trainer = learning_arguments(args, "distillation", args.learning_rate)
        trainer = DistillationTrainer(
            model,
            TrainingArguments(**arguments_of_trainer, warmup_steps=0.05),
            train_dataset=inputs.of(args.train_split, args.num_transfer, args.num_distillation),
            data_collator=inputs.collator,
            teacher=original,
            synapses_learning_rate=args.synapses_learning_rate,
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(args, "distillation"))
        measure("distilled")
    if args.window_size or args.sink_tokens:
        with silenced_synapses(model):
            measure("synapses silenced")
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    results = {
        "model": args.model,
        "license": args.license or license_of(args.model),
        "data": args.text or args.images,
        "attention_swap": model.config.attention_swap,
        "transfer": report,
        "quality": measured,
        "parameters": model.num_parameters(),
        "original_parameters": original.num_parameters(),
        "options": vars(args),
        "seconds": round(time.perf_counter() - stopwatch, 1),
        "resumed": resumed,  # then the seconds are those since
        "command": command(__file__, arguments),
        "versions": versions(),
        "hardware": hardware(),
    }
    write_card(output_dir / "README.md", results, original)
    write_json(output_dir / RESULTS, results)
    for stage in STAGES:
        shutil.rmtree(output_dir / stage, ignore_errors=True)
    (output_dir / OPTIONS).unlink()
    print(f"The model, results.json and README.md are in {output_dir}")


if __name__ == "__main__":
    main()
