# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Loading data, from the Hub or a local folder, and choosing splits."""

import glob
from pathlib import Path

import datasets
import torch


FILE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
RULES_FILE = "rules.json"  # which lies beside data that are made, and says how


def load_splits(dataset_name=None, dataset_config_name=None, dataset_dir=None, offline=None):
    """Loads a data set from the Hub or from a folder of files named by split.

    Args:
        dataset_name (`str`, *optional*): name on the Hub.
        dataset_config_name (`str`, *optional*): its configuration.
        dataset_dir (`str`, *optional*): folder with `train.parquet`, `validation.parquet` and so on, or the same in
            csv, json, jsonl, or, a text each, in txt. A `rules.json` beside them is not read.
        offline (function, *optional*): makes the splits where neither is given, from what is on every machine.

    Returns:
        `datasets.DatasetDict`.

    Raises:
        ValueError: both are given, or neither though there is no `offline`, or the folder has no such files.
    """
    if dataset_name is None and dataset_dir is None and offline is not None:
        return offline()
    if (dataset_name is None) == (dataset_dir is None):
        raise ValueError("give exactly one of --dataset_name and --dataset_dir")
    if dataset_name is not None:
        return datasets.load_dataset(dataset_name, dataset_config_name)
    folder = Path(dataset_dir)
    found = sorted(folder.glob("*")) if folder.is_dir() else []
    files = [path for path in found if path.suffix in FILE_FORMATS and path.name != RULES_FILE]
    formats = {FILE_FORMATS[path.suffix] for path in files}
    if len(formats) != 1:
        raise ValueError(
            f"--dataset_dir must be a folder with files named by split, in one format of {sorted(FILE_FORMATS)}, like "
            f"train.parquet and validation.parquet; {str(folder)!r} has {[path.name for path in files]}"
        )
    stems = [path.stem for path in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        names = [path.name for path in files if path.stem == twice[0]]
        raise ValueError(f"--dataset_dir must have one file for each split, {str(folder)!r} has {' and '.join(names)}")
    file_format = formats.pop()
    more = {"sample_by": "document"} if file_format == "text" else {}
    return datasets.load_dataset(file_format, data_files={path.stem: glob.escape(str(path)) for path in files}, **more)


HELD_OUT_SEED = 0  # the same examples are held out, whatever the seed of the run


def load_examples(data_args, seed, columns, offline=None):
    """The splits to train on and to measure on, cut to the numbers of samples asked for.

    Args:
        data_args (`DataArguments`): what the user asked for.
        seed (`int`): draws the samples.
        columns (list of `str`): columns that must be there.
        offline (function, *optional*): see `load_splits`.

    Returns:
        `dict` of `datasets.Dataset` by their names in the data, in this order: train, validation and, where
        --test_split was given, test. What --validation_share held out is named "held out".
    """
    splits = load_splits(data_args.dataset_name, data_args.dataset_config_name, data_args.dataset_dir, offline)
    train_name, train = pick_split(splits, data_args.train_split)
    share = data_args.validation_share
    if share is not None and not 0 < share < 1:
        raise ValueError(f"--validation_share must be between 0 and 1, got {share}")
    if share is not None and data_args.validation_split not in splits:
        validation_name = "held out"
        parts = train.train_test_split(test_size=share, seed=HELD_OUT_SEED)
        train, validation = parts["train"], parts["test"]
    else:
        validation_name, validation = pick_split(splits, data_args.validation_split, fallbacks=("test",))
    names = [train_name, validation_name, *([data_args.test_split] if data_args.test_split else [])]
    if len(set(names)) < len(names):
        raise ValueError(
            f"the splits to train on and to measure on must differ, got {', '.join(names)}; where the data have no "
            "validation split, --validation_share holds out a part of train"
        )
    for column in columns:
        if column not in train.column_names:
            raise ValueError(f"the data has no column {column!r}; it has {train.column_names}")
    examples = {
        train_name: draw(train, data_args.max_train_samples, seed),
        validation_name: draw(validation, data_args.max_eval_samples, seed),
    }
    if data_args.test_split is not None:
        _, test = pick_split(splits, data_args.test_split)
        examples[data_args.test_split] = draw(test, data_args.max_eval_samples, seed)
    return examples


def test_of(data_args, splits):
    """Name and examples of the split that --test_split asked for, or None."""
    return (data_args.test_split, splits[data_args.test_split]) if data_args.test_split else None


def draw(dataset, max_samples, seed):
    """At most `max_samples` rows, drawn with the seed."""
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_samples))


def some_of(examples, number):
    """At most `number` of the examples, in their order: the same ones whatever the seed of the run, so that what is
    measured on them can be compared."""
    if number is None or number >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    chosen = order[:number].sort().values.tolist()
    if isinstance(examples, datasets.Dataset):
        return examples.select(chosen)
    return torch.utils.data.Subset(examples, chosen)


def pick_split(splits, wanted, fallbacks=()):
    """The split named `wanted`, or the first of `fallbacks` that exists; with its name."""
    for name in (wanted, *fallbacks):
        if name in splits:
            return name, splits[name]
    raise ValueError(f"the data has no split {wanted!r}; it has {sorted(splits)}")


def labelled_texts(dataset_dir, split, model):
    """The texts of a split and the names of their labels, one each, to measure a classifier on: two lists.

    Args:
        dataset_dir (`str`): folder of files named by split, with the columns text and label.
        split (`str`): name of the split.
        model (`PreTrainedModel`): the classifier.

    Raises:
        ValueError: there is no such data, a row lacks one of the two, or the model has no such label.
    """
    _, data = pick_split(load_splits(dataset_dir=dataset_dir), split)
    if missing := {"text", "label"} - set(data.column_names):
        raise ValueError(f"--dataset_dir must have the columns text and label, {sorted(missing)} is missing")
    texts, labels = list(data["text"]), list(data["label"])
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise ValueError(
                f"--dataset_dir must have a text and one label in each row; row {row} of split {split!r} has "
                f"{str(text)[:40]!r} and {str(label)[:40]!r}"
            )
    feature = data.features["label"]
    name = feature.int2str if isinstance(feature, datasets.ClassLabel) else str  # as `labels.Labels` names them
    names = [name(label) for label in labels]
    if unknown := set(names) - set(model.config.label2id):
        raise ValueError(
            f"labels {sorted(unknown)} of the data are not among the model's, {list(model.config.label2id)}"
        )
    return texts, names


def dataset_title(data_args, offline_name):
    """The name of the data for a record: on the Hub, of its folder, or of the offline default."""
    if data_args.dataset_name:
        return data_args.dataset_name
    return Path(data_args.dataset_dir).resolve().name if data_args.dataset_dir else offline_name
