# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The tasks: what is learned, and from which data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What is learned.

    Args:
        title (`str`): what it is, for tables.
        script (`str`): name of the script that trains.
        metric (`str`): "accuracy", or "loss" in nats per token.
        hub (`dict`): options of the script, without their dashes, that take the data from the Hub; None if the data
            come with Python, or are made.
    """

    title: str
    script: str
    metric: str
    hub: dict | None = None

    @property
    def short_title(self):
        """The name of the data, where there is no room for what they are."""
        return self.title.split(", ")[0]

    @property
    def sign(self):
        """1 where more of the metric is better, -1 where less is."""
        return -1 if self.metric == "loss" else 1


TEXT, IMAGE, LANGUAGE = "train_text_classification", "train_image_classification", "train_language_model"
RECALL = "train_associative_recall"
HELD_OUT = {"validation_share": 0.1, "test_split": "test"}  # choose on a part of train, measure on test
IMDB = {"dataset_name": "stanfordnlp/imdb", **HELD_OUT}
CIFAR10 = {"dataset_name": "uoft-cs/cifar10", **HELD_OUT}
SHAKESPEARE = {"dataset_name": "Trelis/tiny-shakespeare", "text_column": "Text", **HELD_OUT}
WIKITEXT = {"dataset_name": "Salesforce/wikitext", "dataset_config_name": "wikitext-2-raw-v1"}

TASKS = {
    "imdb": Task(
        title="IMDB, sentiment of film reviews",
        script=TEXT,
        metric="accuracy",
        hub=IMDB,
    ),
    "cifar10": Task(
        title="CIFAR-10, small images",
        script=IMAGE,
        metric="accuracy",
        hub=CIFAR10,
    ),
    "shakespeare": Task(
        title="Tiny Shakespeare, character by character",
        script=LANGUAGE,
        metric="loss",
        hub=SHAKESPEARE,
    ),
    "shakespeare256": Task(
        title="Tiny Shakespeare at 256, character by character",
        script=LANGUAGE,
        metric="loss",
        hub=SHAKESPEARE,
    ),
    "wikitext2": Task(
        title="WikiText-2, in byte pairs", script=LANGUAGE, metric="loss", hub={**WIKITEXT, "test_split": "test"}
    ),
    **{
        f"mqar{pairs}_{layers}layer{'s' * (layers > 1)}": Task(
            title=f"Recall of {pairs} pairs in {layers} layer{'s' * (layers > 1)}, multi-query",
            script=RECALL,
            metric="accuracy",
        )
        for pairs, layers in ((4, 1), (4, 2), (8, 1), (8, 2), (16, 1), (32, 1))
    },
    **{
        f"bytes{length}": Task(
            title=f"IMDB in {length:,} bytes",
            script=TEXT,
            metric="accuracy",
            hub=IMDB,
        )
        for length in (1024, 4096)
    },
    "pixels": Task(
        title="CIFAR-10, pixel by pixel",
        script=IMAGE,
        metric="accuracy",
        hub=CIFAR10,
    ),
    "listops_short": Task(title="ListOps, 50 to 200 tokens (LRA-style)", script=TEXT, metric="accuracy"),
    "listops": Task(title="ListOps, 500 to 2,000 tokens (LRA-style)", script=TEXT, metric="accuracy"),
    "docstrings": Task(title="Docstrings of Python, by package", script=TEXT, metric="accuracy"),
    "digits": Task(title="Digits of scikit-learn", script=IMAGE, metric="accuracy"),
    "characters": Task(title="Docstrings of Python, character by character", script=LANGUAGE, metric="loss"),
}
