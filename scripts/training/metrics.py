# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Metrics as `evaluate` modules that are defined here, so that none is downloaded."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


class Classification(evaluate.Metric):
    """Accuracy, macro F1 and Matthews' correlation; an `evaluate` module that is defined here, not downloaded."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy, macro F1 and Matthews' correlation coefficient.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return {
            "accuracy": accuracy_score(references, predictions),
            "f1": f1_score(references, predictions, average="macro", zero_division=0),
            "matthews_correlation": matthews_corrcoef(references, predictions),
        }


class MultiLabelClassification(evaluate.Metric):
    """Accuracy over whole label sets and F1, micro and macro, of zeros and ones per label."""

    def _info(self):
        labels = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Subset accuracy, micro and macro F1.",
            citation="",
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def _compute(self, predictions, references):
        predictions, references = np.array(predictions), np.array(references)
        return {
            "accuracy": accuracy_score(references, predictions),
            "f1_micro": f1_score(references, predictions, average="micro", zero_division=0),
            "f1": f1_score(references, predictions, average="macro", zero_division=0),
        }


class Regression(evaluate.Metric):
    """Mean squared error and Pearson's correlation."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean squared error and Pearson's correlation coefficient.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("float"), "references": datasets.Value("float")}),
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {
            "mse": float(((predictions - references) ** 2).mean()),
            "pearson": float(np.corrcoef(predictions, references)[0, 1]),
        }
