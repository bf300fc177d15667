#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Trains a causal Astroformer on multi-query associative recall: which value came with this key?

    python scripts/train_associative_recall.py --output_dir outputs/recall
    python scripts/train_associative_recall.py --num_pairs 4 --num_hidden_layers 1 --output_dir outputs/recall4
    python scripts/train_associative_recall.py --attention_type softmax --output_dir outputs/recall_softmax

The task is in the style of Arora et al., "Zoology" (ICLR 2024), and differs in three rules: there the values are drawn
without return, the places of the queries by a power law, and tokens at random fill the rest. The data are made, so
there is nothing to load:

- Token 0 is the filler. The other tokens of the lower half of the vocabulary are keys, those of the upper half values.
- An example begins with --num_pairs pairs, a key and then its value. The keys are drawn without return, so that each
  has one value; the values are drawn with return.
- Then each key comes once more, as a query, in random order and at random places, no two the same and none the last.
  All other places hold the filler; the answers are never shown.
- What counts is the next token that the model predicts after a query: the value of its key. Nothing else has a label.
- Training, validation and test examples are drawn from three different seeds, which follow from --examples_seed and do
  not depend on the --seed of the training.

Without --length there are six tokens for each pair. The metric is the accuracy over all queries. Two guesses stand
beside it: "chance", one of the values of the example at random, and "majority", the commonest value of the training
examples always. A run that was killed continues when the same command is given again. In --output_dir it leaves the
model with its code, `results.json`, `learning_curve.png` and a model card.
"""

from dataclasses import dataclass, field

import torch
import transformers
from training import options, runs
from training.memory_use import cache_bytes
from training.provenance import command
from training.recall import SPLITS, RecallExamples, chance_of_a_value, recall_accuracy, share_of_the_commonest
from training.resuming import options_of_run, resume_from
from training.run_records import plot_learning_curve, title, write_model_card
from training.short_convolution import add_short_convolution
from transformers import AutoConfig, AutoModelForCausalLM, default_data_collator

from astroformer_hf import AstroformerConfig
from astroformer_hf.library_compatibility import CACHE_NAME


@dataclass
class ModelArguments(options.ModelArguments):
    """The model: a checkpoint, or the shape of a new one."""

    hidden_size: int = field(default=64, metadata={"help": "Width of a new model."})
    num_attention_heads: int = field(default=2, metadata={"help": "Heads of a new model."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of a new model, in attention and elsewhere."})


@dataclass
class DataArguments:
    """The data that are made."""

    vocab_size: int = field(default=256, metadata={"help": "Tokens: a filler, keys, and as many values."})
    num_pairs: int = field(default=8, metadata={"help": "Pairs of a key and a value in an example, and queries."})
    length: int | None = field(default=None, metadata={"help": "Tokens of an example. Default: six for each pair."})
    num_train_examples: int = field(default=50000, metadata={"help": "Examples to train on."})
    num_eval_examples: int = field(default=2000, metadata={"help": "Examples to measure on, in each of two splits."})
    examples_seed: int = field(default=0, metadata={"help": "Draws the examples."})
    max_curve_samples: int | None = field(
        default=None, metadata={"help": "Measure this many along the way, the same ones for every seed."}
    )

    @property
    def rules(self):
        """What the examples are like: arguments of `recall_examples`."""
        length = 6 * self.num_pairs if self.length is None else self.length
        return {"vocab_size": self.vocab_size, "num_pairs": self.num_pairs, "length": length}


def parse_arguments(arguments=None):
    """Command-line (or given) arguments as (ModelArguments, DataArguments, TrainingArguments)."""
    return options.parse_arguments(
        ModelArguments,
        DataArguments,
        __doc__,
        arguments,
        output_dir="outputs/associative_recall",
        num_train_epochs=4,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        metric_for_best_model="accuracy",
    )


def state_bytes(model, example):
    """What a decoder keeps of an example after its last token, in bytes; None for a model without a cache."""
    config = model.config
    in_segments = getattr(config, "segment_length", None) is not None
    if not config.use_cache or (in_segments and config.attention_type == "softmax"):  # as with a short convolution
        return None
    try:
        with torch.no_grad():
            outputs = model.eval()(example[None].to(model.device), use_cache=True)
    finally:
        model.train()
    return cache_bytes(outputs[CACHE_NAME])


class RecallTrainer(runs.ExactTrainer):
    """A `Trainer` of causal models."""

    is_causal = True


def likeliest(logits, labels):
    """The token that is predicted at each place: there is no room for all logits."""
    return logits.argmax(-1)


def main(arguments=None):
    model_args, data_args, training_args = parse_arguments(arguments)
    transformers.set_seed(training_args.seed)
    numbers = (data_args.num_train_examples, data_args.num_eval_examples, data_args.num_eval_examples)
    examples = {
        split: RecallExamples(split, number, data_args.examples_seed, **data_args.rules)
        for split, number in zip(SPLITS, numbers, strict=True)
    }
    if model_args.source:
        config = AutoConfig.from_pretrained(**model_args.source)
        if config.vocab_size < data_args.vocab_size:
            raise ValueError(
                f"--vocab_size must be at most the model's {config.vocab_size}, got {data_args.vocab_size}"
            )
        model = AutoModelForCausalLM.from_pretrained(**model_args.source, **model_args.attention, config=config)
    else:
        config = AstroformerConfig(
            **model_args.architecture,
            vocab_size=data_args.vocab_size,
            max_position_embeddings=data_args.rules["length"],
            pad_token_id=None,
            is_decoder=True,
        )
        model = AutoModelForCausalLM.from_config(config)
    add_short_convolution(model, model_args.short_convolution)
    kept = state_bytes(model, examples["train"].input_ids[0])  # before `Trainer`, which turns caches off
    guesses = {
        "chance": chance_of_a_value(data_args.num_pairs, data_args.vocab_size),
        "majority": share_of_the_commonest(examples["train"], examples["test"]),
    }
    if training_args.process_index == 0:
        print(
            f"Accuracy of a guess: chance {guesses['chance']:.4f} (a value of the example at random), majority "
            f"{guesses['majority']:.4f} (the commonest value of the training examples)"
        )
    trainer = RecallTrainer(
        model=model,
        args=training_args,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        data_collator=default_data_collator,
        preprocess_logits_for_metrics=likeliest,
        compute_metrics=lambda found: {"accuracy": recall_accuracy(found.predictions, found.label_ids)},
    )

    def record(results, output_dir):
        plot_learning_curve(results["learning_curve"], "accuracy", output_dir / "learning_curve.png", title(results))
        write_model_card(
            output_dir / "README.md",
            "associative_recall.md.jinja",
            results,
            metrics={"accuracy": results["metrics"]["accuracy"]},
            rules=data_args.rules,
            training_args=training_args,
        )

    return runs.train(
        trainer,
        resume_from(training_args, options_of_run(model_args, data_args, training_args)),
        {
            "task": "text-generation",
            "dataset": f"associative recall of {data_args.num_pairs} pairs",
            "split": "validation",
            **data_args.rules,
            **guesses,
            "state_bytes": kept,
        },
        record,
        command=command(__file__, arguments),
        test=("test", examples["test"]),
        max_curve_samples=data_args.max_curve_samples,
    )


if __name__ == "__main__":
    main()
