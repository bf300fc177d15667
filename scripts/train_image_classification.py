#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Trains an Astroformer image classifier on a data set of the Hub, of a local folder, or on scikit-learn's digits.

    python scripts/train_image_classification.py --output_dir outputs/digits
    python scripts/train_image_classification.py --dataset_name uoft-cs/cifar10 --output_dir outputs/cifar10
    python scripts/train_image_classification.py --dataset_dir my_data --output_dir outputs/mine --pooling cls

Columns are `image` (or `img`) and `label`. Without --dataset_name and --dataset_dir the 1,797 handwritten digits that
come with scikit-learn are taken. Without --model_name_or_path a model is trained from scratch, by default on a grid of
8 x 8 patches, or nearly so. A run that was killed continues when the same command is given again. In --output_dir it
leaves the best checkpoint with its image processor and code, `results.json`, `learning_curve.png` and a model card.
"""

from dataclasses import dataclass, field

import transformers
from datasets import Image
from training import options, runs
from training.data import dataset_title, load_examples, test_of
from training.images import (
    Collator,
    augment,
    check_images,
    common_size,
    digits,
    make_image_processor,
    patch_size_for,
)
from training.labels import Labels
from training.provenance import command
from training.resuming import options_of_run, resume_from
from training.run_records import classification_record
from training.short_convolution import add_short_convolution
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from astroformer_hf import AstroformerVisionConfig


@dataclass
class ModelArguments(options.ModelArguments):
    """The model: a checkpoint, or the shape of a new one."""

    num_hidden_layers: int = options.with_default("num_hidden_layers", 4)
    dropout: float = options.with_default("dropout", 0.0)
    astrocyte_code: str = options.with_default("astrocyte_code", AstroformerVisionConfig.astrocyte_code)
    astrocyte_scale: float = options.with_default("astrocyte_scale", AstroformerVisionConfig.astrocyte_scale)
    astrocyte_resting_activity: float = options.with_default(
        "astrocyte_resting_activity", AstroformerVisionConfig.astrocyte_resting_activity
    )
    initial_memory_spans: list[float] = options.with_default(
        "initial_memory_spans", list(AstroformerVisionConfig.initial_memory_spans)
    )
    pooling: str = field(default=AstroformerVisionConfig.pooling, metadata={"help": "mean or cls."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Pixels that images are resized to. Default: that of the data if it has one, else 224."},
    )
    patch_size: int | None = field(
        default=None, metadata={"help": "Pixels of a patch. Default: an eighth of the image, or nearly so."}
    )


@dataclass
class DataArguments(options.DataArguments):
    """The data."""

    image_column: str | None = field(default=None, metadata={"help": "Column of the image. Default: image, or img."})
    label_column: str = field(default="label", metadata={"help": "Column of the label."})
    augment: bool = field(
        default=True,
        metadata={"help": "Shift training images by up to an eighth of their size, and mirror half of them."},
    )
    mirror: bool | None = field(
        default=None, metadata={"help": "Whether augmentation mirrors. Default: yes, but not the offline digits."}
    )


class ImageTrainer(runs.ExactTrainer):
    """A `Trainer` that augments its training batches, where they already are tensors and it costs little."""

    mirror = None  # True or False; None turns augmentation off

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training and self.mirror is not None:
            inputs = {**inputs, "pixel_values": augment(inputs["pixel_values"], self.mirror)}
        return super().compute_loss(model, inputs, *args, **kwargs)


def parse_arguments(arguments=None):
    """Command-line (or given) arguments as (ModelArguments, DataArguments, TrainingArguments)."""
    return options.parse_arguments(
        ModelArguments,
        DataArguments,
        __doc__,
        arguments,
        output_dir="outputs/image_classification",
        num_train_epochs=10,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        weight_decay=0.05,
        remove_unused_columns=False,
        metric_for_best_model="auto",  # accuracy, F1 or squared error, as the labels are
    )


def main(arguments=None):
    model_args, data_args, training_args = parse_arguments(arguments)
    transformers.set_seed(training_args.seed)
    is_offline = data_args.dataset_name is None and data_args.dataset_dir is None
    examples = load_examples(data_args, training_args.seed, (data_args.label_column,), offline=digits)
    train_name, validation_name, *_ = examples
    train = examples[train_name]
    columns = [data_args.image_column] if data_args.image_column else ["image", "img"]
    image_column = next((column for column in columns if column in train.column_names), None)
    if image_column is None:
        raise ValueError(f"the data has no column {' or '.join(map(repr, columns))}; it has {train.column_names}")
    examples = {name: split.cast_column(image_column, Image()) for name, split in examples.items()}
    for name, split in examples.items():
        check_images(name, split, image_column)
    labels = Labels(train, data_args.label_column)
    contents = {  # the labels of all splits, before anything is trained
        name: (labels.encode_all(name, data_args.label_column, split[data_args.label_column]),)
        for name, split in examples.items()
    }

    if model_args.source:
        image_processor = AutoImageProcessor.from_pretrained(**model_args.source)
        config = AutoConfig.from_pretrained(**model_args.source)
    else:
        image_size = model_args.image_size or common_size(examples[train_name][:100][image_column])
        config = AstroformerVisionConfig(
            **model_args.architecture,
            pooling=model_args.pooling,
            image_size=image_size,
            patch_size=model_args.patch_size or patch_size_for(image_size),
        )
        image_processor = make_image_processor(image_size)
    labels.describe(config)
    if model_args.source:
        model = AutoModelForImageClassification.from_pretrained(
            **model_args.source, **model_args.attention, config=config, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForImageClassification.from_config(config)
    add_short_convolution(model, model_args.short_convolution)

    if training_args.metric_for_best_model == "auto":
        training_args.metric_for_best_model = labels.best
    trainer = ImageTrainer(
        model=model,
        args=training_args,
        train_dataset=examples[train_name],
        eval_dataset=examples[validation_name],
        processing_class=image_processor,
        data_collator=Collator(image_processor, image_column, data_args.label_column, labels.encode),
        compute_metrics=labels.compute_metrics,
    )
    if data_args.augment:
        trainer.mirror = not is_offline if data_args.mirror is None else data_args.mirror
    known = {
        "task": "image-classification",
        "dataset": dataset_title(data_args, "scikit-learn digits"),
        "split": validation_name,
    }
    unit = f"images, resized to {config.image_size} pixels"
    return runs.train(
        trainer,
        resume_from(training_args, options_of_run(model_args, data_args, training_args, contents)),
        known,
        classification_record(labels, training_args, unit),
        command=command(__file__, arguments),
        test=test_of(data_args, examples),
        max_curve_samples=data_args.max_curve_samples,
    )


if __name__ == "__main__":
    main()
