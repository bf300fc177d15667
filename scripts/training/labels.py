# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Kinds of labels, and how they become what a model takes."""

import functools
import math
from collections import Counter

from datasets import ClassLabel

from training.metrics import Classification, MultiLabelClassification, Regression


class Labels:
    """What kind of labels a column has, and how they become the numbers that a model takes."""

    def __init__(self, dataset, column):
        feature, values = dataset.features[column], dataset[column]
        several = getattr(feature, "feature", None)  # of a column of lists
        kind = several or feature
        self.names = None
        if isinstance(kind, ClassLabel):
            self.names = list(kind.names)
            self._number = functools.partial(self._look_up, {i: i for i in range(len(self.names))})
        elif kind.dtype.startswith("float"):
            if several is not None:
                raise ValueError(f"label column {column!r}: lists of real numbers are not supported")
        elif kind.dtype.startswith(("int", "uint", "bool", "string", "large_string")):
            if several is not None:
                refuse_zeros_and_ones(column, values)
            flat = {value for row in values for value in row or ()} if several else set(values)
            flat -= {None}  # which `encode_all` refuses, with its row
            self.names = [str(value) for value in sorted(flat)]
            numbers = {name: i for i, name in enumerate(sorted(flat))}
            self._number = functools.partial(self._look_up, numbers)
        else:
            raise ValueError(f"label column {column!r} has type {kind.dtype!r}; expected classes or numbers")
        if self.names is None:
            self.problem_type, self.metric, self.best = "regression", Regression(), "mse"
        elif several is not None:
            self.problem_type, self.best = "multi_label_classification", "f1"
            self.metric = MultiLabelClassification("multilabel")
        else:
            self.problem_type, self.best = "single_label_classification", "accuracy"
            self.metric = Classification()
            if len(self.names) < 2:
                raise ValueError(f"label column {column!r} must have two classes or more, got {self.names}")

    @staticmethod
    def _look_up(numbers, value):
        if value not in numbers:
            raise ValueError(
                f"label {value!r} does not occur in the training split, whose labels are {sorted(numbers)}"
            )
        return numbers[value]

    def encode_all(self, split, column, values):
        """The labels of a split as the model takes them.

        Raises:
            ValueError: one is missing, or is none of the training split; it names the row.
        """
        encoded = []
        for row, value in enumerate(values):
            where = f"row {row} of split {split!r}, column {column!r}"
            if value is None or (isinstance(value, float) and math.isnan(value)):
                raise ValueError(f"{where}: there is no label")
            try:
                encoded.append(self.encode(value))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return encoded

    def encode(self, value):
        """A label of the data set as the model takes it."""
        if self.problem_type == "regression":
            return float(value)
        if self.problem_type == "single_label_classification":
            return self._number(value)
        present = {self._number(item) for item in value}
        return [float(i in present) for i in range(len(self.names))]

    def describe(self, config):
        """Writes into a model's configuration what its head must know of the labels."""
        config.problem_type = self.problem_type
        if self.names is None:
            config.num_labels = 1
        else:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: i for i, name in enumerate(self.names)}

    def majority(self, train, measured):
        """How good it is to answer with the commonest label always.

        Args:
            train (list of `int`): encoded labels of the training split, which say what is commonest; of several that
                are equally common, the first of `names`.
            measured (list of `int`): encoded labels of the split that is measured on.

        Returns:
            The accuracy there; None unless each example has a single label.
        """
        if self.problem_type != "single_label_classification":
            return None
        counts = Counter(train)
        commonest = min(counts, key=lambda label: (-counts[label], label))
        return Counter(measured)[commonest] / len(measured)

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


def refuse_zeros_and_ones(column, values):
    """Raises a ValueError if lists of labels say of every class whether it applies, instead of naming those that do."""
    lengths = {len(row) for row in values if row is not None}
    if len(lengths) == 1 and lengths != {1} and all(set(row) <= {0, 1} for row in values if row is not None):
        raise ValueError(
            f"label column {column!r} has a 0 or 1 for each of {lengths.pop()} classes in every row, got "
            f"{values[0]}; expected lists of the labels that apply, of names or numbers"
        )
