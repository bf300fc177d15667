#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Trains an Astroformer text classifier on a data set of the Hub or of a local folder.

    python scripts/train_text_classification.py --dataset_name stanfordnlp/imdb --output_dir outputs/imdb
    python scripts/train_text_classification.py --dataset_dir my_data --output_dir outputs/mine --attention_type softmax

Columns are `text` and `label`. Labels are class names or whole numbers (single label), lists of them (several labels
per text) or real numbers (regression). Without --model_name_or_path a model and a tokenizer are trained from scratch:
WordPiece, or one of the words between white space; or every byte is a token. Where each text has a single label,
"majority" stands beside the accuracy: that of always answering with the commonest label of the training texts. A run
that was killed continues when the same command is given again. In --output_dir it leaves the best checkpoint with its
tokenizer and code, `results.json`, `learning_curve.png` and a model card.
"""

from dataclasses import dataclass, field

import transformers
from training import options, runs
from training.data import dataset_title, load_examples, test_of
from training.labels import Labels
from training.provenance import command
from training.resuming import once, options_of_run, resume_from
from training.run_records import classification_record
from training.short_convolution import add_short_convolution
from training.tokenization import (
    check_max_length,
    make_byte_tokenizer,
    tell_longest_input,
    train_word_tokenizer,
    train_wordpiece_tokenizer,
)
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from astroformer_hf import AstroformerConfig


WORDPIECES = 8000


@dataclass
class ModelArguments(options.ModelArguments):
    """The model: a checkpoint, or the shape of a new one."""

    pooling: str = field(default=AstroformerConfig.pooling, metadata={"help": "mean, cls or last."})
    tokenizer: str = field(
        default="wordpiece",
        metadata={
            "help": "wordpiece or words (trained), or bytes. A checkpoint brings its own.",
            "choices": ("wordpiece", "bytes", "words"),
        },
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": f"Size of a new WordPiece vocabulary. Default: {WORDPIECES}."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.vocab_size is not None and self.tokenizer != "wordpiece":
            raise ValueError(
                f"--vocab_size {self.vocab_size} is for --tokenizer wordpiece; the vocabulary of --tokenizer "
                f"{self.tokenizer} has no size to choose"
            )


@dataclass
class DataArguments(options.DataArguments):
    """The data."""

    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    label_column: str = field(default="label", metadata={"help": "Column of the label."})
    max_length: int = field(default=256, metadata={"help": "Tokens per text in training and evaluation."})


def parse_arguments(arguments=None):
    """Command-line (or given) arguments as (ModelArguments, DataArguments, TrainingArguments)."""
    return options.parse_arguments(
        ModelArguments,
        DataArguments,
        __doc__,
        arguments,
        output_dir="outputs/text_classification",
        num_train_epochs=4,
        train_sampling_strategy="group_by_length",
        metric_for_best_model="auto",  # accuracy, F1 or squared error, as the labels are
    )


def make_tokenizer(model_args, texts):
    """The tokenizer of a new model, trained on `texts` if it must be."""
    if model_args.tokenizer == "bytes":
        return make_byte_tokenizer()
    if model_args.tokenizer == "words":
        return train_word_tokenizer(texts)
    return train_wordpiece_tokenizer(texts, WORDPIECES if model_args.vocab_size is None else model_args.vocab_size)


def check_texts(texts, column):
    """Raises a ValueError for a row without a text; `texts` are lists by the names of the splits."""
    for name, rows in texts.items():
        missing = [row for row, text in enumerate(rows) if text is None]
        if missing:
            raise ValueError(f"row {missing[0]} of split {name!r}, column {column!r}: there is no text")


def main(arguments=None):
    model_args, data_args, training_args = parse_arguments(arguments)
    transformers.set_seed(training_args.seed)
    examples = load_examples(data_args, training_args.seed, (data_args.text_column, data_args.label_column))
    train_name, validation_name, *_ = examples
    train = examples[train_name]
    labels = Labels(train, data_args.label_column)
    texts = {name: split[data_args.text_column] for name, split in examples.items()}
    check_texts(texts, data_args.text_column)
    encoded_labels = {  # of all splits, before anything is trained
        name: labels.encode_all(name, data_args.label_column, split[data_args.label_column])
        for name, split in examples.items()
    }

    if model_args.source:
        tokenizer = AutoTokenizer.from_pretrained(**model_args.source)
        config = AutoConfig.from_pretrained(**model_args.source)
    else:
        tokenizer = once(training_args, lambda: make_tokenizer(model_args, texts[train_name]))
        config = AstroformerConfig(
            **model_args.architecture,
            pooling=model_args.pooling,
            vocab_size=len(tokenizer),
            max_position_embeddings=data_args.max_length,
            pad_token_id=tokenizer.pad_token_id,
        )
    check_max_length(data_args.max_length, tokenizer)
    tell_longest_input(tokenizer, config)
    labels.describe(config)
    if model_args.source:
        model = AutoModelForSequenceClassification.from_pretrained(
            **model_args.source, **model_args.attention, config=config, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForSequenceClassification.from_config(config)
    add_short_convolution(model, model_args.short_convolution)

    def encode(batch):
        encoded = tokenizer(batch[data_args.text_column], truncation=True, max_length=data_args.max_length)
        encoded["labels"] = [labels.encode(label) for label in batch[data_args.label_column]]
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return encoded

    encoded = {
        name: split.map(encode, batched=True, remove_columns=train.column_names, desc=f"Tokenizing {name}")
        for name, split in examples.items()
    }
    majority = labels.majority(encoded_labels[train_name], encoded_labels[validation_name])
    if majority is not None and training_args.process_index == 0:
        print(f"Accuracy of a guess: majority {majority:.4f} (the commonest label of the training texts)")
    if training_args.metric_for_best_model == "auto":
        training_args.metric_for_best_model = labels.best
    trainer = runs.ExactTrainer(
        model=model,
        args=training_args,
        train_dataset=encoded[train_name],
        eval_dataset=encoded[validation_name],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=labels.compute_metrics,
    )
    known = {
        "task": "text-classification",
        "dataset": dataset_title(data_args, None),
        "split": validation_name,
        **({} if majority is None else {"majority": majority}),
    }
    contents = {name: (texts[name], encoded_labels[name]) for name in examples}
    unit = f"texts, cut at {data_args.max_length} tokens"
    return runs.train(
        trainer,
        resume_from(training_args, options_of_run(model_args, data_args, training_args, contents)),
        known,
        classification_record(labels, training_args, unit),
        command=command(__file__, arguments),
        test=test_of(data_args, encoded),
        max_curve_samples=data_args.max_curve_samples,
    )


if __name__ == "__main__":
    main()
