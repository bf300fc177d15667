#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Trains an Astroformer text classifier on a data set of the Hub or of a local folder.

    python scripts/train_text_classification.py --dataset_name stanfordnlp/imdb --output_dir outputs/imdb
    python scripts/train_text_classification.py --dataset_dir my_data --output_dir outputs/mine --attention_type softmax

Columns are `text` and `label`. Labels are class names or whole numbers (single label), lists of them (several labels
per text) or real numbers (regression). Without --model_name_or_path a model and a WordPiece tokenizer are trained from
scratch. A run that was killed continues when the same command is given again. In --output_dir it leaves the best
checkpoint with its tokenizer and code, `results.json`, `learning_curve.png` and a model card.
"""

import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import transformers
from datasets import ClassLabel
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)


sys.path.insert(0, str(Path(__file__).resolve().parent))
import training_common as common

from astroformer_hf import AstroformerConfig


@dataclass
class ModelArguments:
    """The model: a checkpoint, or the shape of a new one."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune, with its tokenizer. Without it, train from scratch."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
    attention_type: str = field(
        default="neuron_astrocyte", metadata={"help": "The arm: neuron_astrocyte, linear or softmax."}
    )
    astrocyte_code: str = field(
        default=AstroformerConfig.astrocyte_code, metadata={"help": "R: learned, sinusoidal or activity."}
    )
    feature_map: str = field(default=AstroformerConfig.feature_map, metadata={"help": "phi: elu, relu, exp or favor."})
    presynaptic_alpha: float = field(
        default=AstroformerConfig.presynaptic_alpha, metadata={"help": "Exponent of the calcium, in (0, 1]."}
    )
    use_astrocyte_hebbian: bool = field(default=True, metadata={"help": "Add H_astro."})
    use_calcium_feedback: bool = field(default=True, metadata={"help": "Divide by the calcium response."})
    calcium_normalization: str = field(
        default=AstroformerConfig.calcium_normalization, metadata={"help": "mean or sum over the tokens."}
    )
    astrocyte_scale: float = field(
        default=AstroformerConfig.astrocyte_scale, metadata={"help": "Scale of the coupling between processes."}
    )
    pooling: str = field(default=AstroformerConfig.pooling, metadata={"help": "mean or cls."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Blocks of a new model."})
    hidden_size: int = field(default=128, metadata={"help": "Width of a new model."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of a new model."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Default: four times the hidden size."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of a new model, in attention and elsewhere."})
    vocab_size: int = field(default=8000, metadata={"help": "Size of a new WordPiece vocabulary."})

    def __post_init__(self):
        given = [
            f"--{option.name}"
            for option in fields(self)
            if option.name not in ("model_name_or_path", "trust_remote_code")
            and getattr(self, option.name) != option.default
        ]
        if self.model_name_or_path and given:
            source = f"--model_name_or_path {self.model_name_or_path!r}"
            raise ValueError(f"{', '.join(given)} shape a new model, but {source} has its shape")


@dataclass
class DataArguments:
    """The data."""

    dataset_name: str | None = field(default=None, metadata={"help": "Name on the Hub, such as stanfordnlp/imdb."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_dir: str | None = field(
        default=None, metadata={"help": "Folder of parquet, csv or json files named by split, instead of a name."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    label_column: str = field(default="label", metadata={"help": "Column of the label."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="validation", metadata={"help": "Split to measure on; where it does not exist, test is taken."}
    )
    max_length: int = field(default=256, metadata={"help": "Tokens per text; longer ones are cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many, drawn with the seed."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Measure on this many, drawn with the seed."})


DEFAULT_TRAINING_ARGUMENTS = {
    "output_dir": "outputs/text_classification",
    "num_train_epochs": 4,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "logging_steps": 25,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "auto",  # accuracy, F1 or squared error, as the labels are
    "train_sampling_strategy": "group_by_length",
    "report_to": "none",
    "dataloader_pin_memory": torch.cuda.is_available(),
}


class Labels:
    """What kind of labels a column has, and how they become the numbers that a model takes."""

    def __init__(self, dataset, column):
        feature, values = dataset.features[column], dataset[column]
        several = getattr(feature, "feature", None)  # of a column of lists
        kind = several or feature
        self.names = None
        if isinstance(kind, ClassLabel):
            self.names = list(kind.names)
            self._number = int
        elif kind.dtype.startswith("float"):
            if several is not None:
                raise ValueError(f"label column {column!r}: lists of real numbers are not supported")
        elif kind.dtype.startswith(("int", "uint", "bool", "string", "large_string")):
            flat = {value for row in values for value in row} if several else set(values)
            self.names = [str(value) for value in sorted(flat)]
            numbers = {name: i for i, name in enumerate(sorted(flat))}
            self._number = lambda value: self._look_up(numbers, value)
        else:
            raise ValueError(f"label column {column!r} has type {kind.dtype!r}; expected classes or numbers")
        if self.names is None:
            self.problem_type, self.metric, self.best = "regression", common.Regression(), "mse"
        elif several is not None:
            self.problem_type, self.best = "multi_label_classification", "f1"
            self.metric = common.MultiLabelClassification("multilabel")
        else:
            self.problem_type, self.best = "single_label_classification", "accuracy"
            self.metric = common.Classification()

    @staticmethod
    def _look_up(numbers, value):
        if value not in numbers:
            raise ValueError(
                f"label {value!r} does not occur in the training split, whose labels are {sorted(numbers)}"
            )
        return numbers[value]

    def encode(self, value):
        """A label of the data set as the model takes it."""
        if self.problem_type == "regression":
            return float(value)
        if self.problem_type == "single_label_classification":
            return self._number(value)
        present = {self._number(item) for item in value}
        return [float(i in present) for i in range(len(self.names))]

    def compute_metrics(self, prediction):
        """Metrics of an evaluation, through `evaluate`."""
        logits, references = prediction.predictions, prediction.label_ids
        if self.problem_type == "regression":
            predictions = logits.squeeze(-1)
        elif self.problem_type == "single_label_classification":
            predictions = logits.argmax(-1)
        else:
            predictions, references = (logits > 0).astype(int), references.astype(int)
        return self.metric.compute(predictions=predictions, references=references)


def train_tokenizer(texts, vocab_size, max_length):
    """Trains a lower-casing WordPiece tokenizer with BERT's special tokens.

    Args:
        texts (iterable of `str`): training texts.
        vocab_size (`int`): upper bound of the vocabulary.
        max_length (`int`): length at which the tokenizer truncates when asked to.

    Returns:
        `PreTrainedTokenizerFast`, which `AutoTokenizer` loads again from where it is saved.
    """
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    line_break = normalizers.Replace(Regex(r"<br\s*/?>"), " ")
    tokenizer.normalizer = normalizers.Sequence([line_break, normalizers.BertNormalizer(lowercase=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special_tokens, min_frequency=2)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def new_config(model_args, data_args, tokenizer):
    """The configuration of a model from scratch."""
    return AstroformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=model_args.hidden_size,
        num_hidden_layers=model_args.num_hidden_layers,
        num_attention_heads=model_args.num_attention_heads,
        intermediate_size=model_args.intermediate_size or 4 * model_args.hidden_size,
        max_position_embeddings=data_args.max_length,
        hidden_dropout_prob=model_args.dropout,
        attention_probs_dropout_prob=model_args.dropout,
        pad_token_id=tokenizer.pad_token_id,
        attention_type=model_args.attention_type,
        astrocyte_code=model_args.astrocyte_code,
        feature_map=model_args.feature_map,
        presynaptic_alpha=model_args.presynaptic_alpha,
        use_astrocyte_hebbian=model_args.use_astrocyte_hebbian,
        use_calcium_feedback=model_args.use_calcium_feedback,
        calcium_normalization=model_args.calcium_normalization,
        astrocyte_scale=model_args.astrocyte_scale,
        pooling=model_args.pooling,
    )


def parse_arguments(arguments=None):
    """Command-line (or given) arguments as (ModelArguments, DataArguments, TrainingArguments)."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments),
        description=__doc__.split("\n\n")[0],
    )
    parser.set_defaults(**DEFAULT_TRAINING_ARGUMENTS)
    return parser.parse_args_into_dataclasses(arguments)


def draw(dataset, max_samples, seed):
    """At most `max_samples` rows, drawn with the seed."""
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_samples))


def main(arguments=None):
    model_args, data_args, training_args = parse_arguments(arguments)
    started = time.time()
    transformers.set_seed(training_args.seed)
    resume_from = training_args.resume_from_checkpoint or common.checkpoint_to_resume(training_args.output_dir)
    if resume_from:
        print(f"Continuing from {resume_from}")

    splits = common.load_splits(data_args.dataset_name, data_args.dataset_config_name, data_args.dataset_dir)
    _, train = common.pick_split(splits, data_args.train_split)
    validation_name, validation = common.pick_split(splits, data_args.validation_split, fallbacks=("test",))
    for column in (data_args.text_column, data_args.label_column):
        if column not in train.column_names:
            raise ValueError(f"the data has no column {column!r}; it has {train.column_names}")
    labels = Labels(train, data_args.label_column)
    train = draw(train, data_args.max_train_samples, training_args.seed)
    validation = draw(validation, data_args.max_eval_samples, training_args.seed)

    if model_args.model_name_or_path:
        source = {
            "pretrained_model_name_or_path": model_args.model_name_or_path,
            "trust_remote_code": model_args.trust_remote_code,
        }
        tokenizer, config = AutoTokenizer.from_pretrained(**source), AutoConfig.from_pretrained(**source)
    else:
        tokenizer = train_tokenizer(train[data_args.text_column], model_args.vocab_size, data_args.max_length)
        config = new_config(model_args, data_args, tokenizer)
    config.problem_type = labels.problem_type
    if labels.names is None:
        config.num_labels = 1
    else:
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: i for i, name in enumerate(labels.names)}
    if model_args.model_name_or_path:
        model = AutoModelForSequenceClassification.from_pretrained(
            **source, config=config, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForSequenceClassification.from_config(config)

    def encode(batch):
        encoded = tokenizer(batch[data_args.text_column], truncation=True, max_length=data_args.max_length)
        encoded["labels"] = [labels.encode(label) for label in batch[data_args.label_column]]
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return encoded

    train = train.map(encode, batched=True, remove_columns=train.column_names, desc="Tokenizing train")
    validation = validation.map(
        encode, batched=True, remove_columns=validation.column_names, desc=f"Tokenizing {validation_name}"
    )

    if training_args.metric_for_best_model == "auto":
        training_args.metric_for_best_model = labels.best
    training_args.greater_is_better = training_args.metric_for_best_model.removeprefix("eval_") not in ("loss", "mse")
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=labels.compute_metrics,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    training_seconds = time.time() - started
    learning_curve = common.learning_curve(trainer.state.log_history)
    metrics = trainer.evaluate()  # of the best checkpoint, which is loaded now
    trainer.save_model()

    if trainer.is_world_process_zero():
        dataset = data_args.dataset_name or Path(data_args.dataset_dir).resolve().name
        results = {
            "task": "text-classification",
            "dataset": dataset,
            "split": validation_name,
            "arm": config.attention_type,
            "seed": training_args.seed,
            "metrics": common.quality(metrics),
            "learning_curve": learning_curve,
            "parameters": model.num_parameters(),
            "train_samples": len(train),
            "eval_samples": len(validation),
            "seconds": round(training_seconds, 1),
            "resumed": bool(resume_from),
            "command": common.command(),
            "versions": common.versions(),
            "hardware": common.hardware(),
            "config": config.to_diff_dict(),
        }
        record(results, labels, Path(training_args.output_dir), training_args, data_args)
    return metrics


def record(results, labels, output_dir, training_args, data_args):
    """Writes what a run leaves beside its weights: figure, model card, and last, as the mark of its end, the JSON."""
    best = training_args.metric_for_best_model.removeprefix("eval_")
    title = f"{results['arm']} on {results['dataset']}"
    common.plot_learning_curve(results["learning_curve"], best, output_dir / "learning_curve.png", title)
    reported = {name: results["metrics"][name] for name in (best, "f1", "loss") if name in results["metrics"]}
    common.write_model_card(
        output_dir / "README.md",
        "text_classification.md.jinja",
        results,
        pipeline_tag="text-classification",
        dataset_name=results["dataset"],
        split=results["split"],
        metrics=reported,
        labels=labels.names,
        max_length=data_args.max_length,
        training_args=training_args,
    )
    common.write_json(output_dir / "results.json", results)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in results["metrics"].items())
    print(f"{title}: {shown}\nModel, results.json, learning_curve.png and README.md are in {output_dir}")


if __name__ == "__main__":
    main()
