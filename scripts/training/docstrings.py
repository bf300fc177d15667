# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The docstrings of Python's standard library as data that is on every machine."""

import ast
import functools
import hashlib
import os
import sysconfig
import warnings
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value


PACKAGES = ("asyncio", "email", "importlib", "logging", "multiprocessing", "tkinter", "unittest", "xml")
MIN_WORDS = 4
VALIDATION_PERCENT = 20


def docstrings(source):
    """The docstrings of a module and of all classes and functions in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parsed code's own, such as old escape sequences
        tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [text for text in found if text and len(text.split()) >= MIN_WORDS]


def collect(library, packages=PACKAGES):
    """A dict from docstring to package, over the packages in the folder `library` that this Python has."""
    found = {}
    for package in packages:
        for path in sorted((library / package).rglob("*.py")):
            if not {"test", "tests", "idle_test"} & set(path.relative_to(library).parts):
                for text in docstrings(path.read_text(encoding="utf-8")):
                    found.setdefault(text, set()).add(package)
    return {text: labels.pop() for text, labels in found.items() if len(labels) == 1}


def is_validation(text):
    """Whether a docstring belongs to the validation split, by a hash of its text."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100 < VALIDATION_PERCENT


@functools.cache  # a second or two, for every model of a comparison
def standard_library():
    """`collect` over the standard library of this Python.

    Raises:
        FileNotFoundError: it came without sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    labelled = collect(folder)
    if len(set(labelled.values())) < 2:
        raise FileNotFoundError(f"this Python comes without the sources of its standard library in {str(folder)!r}")
    return labelled


def texts():
    """The docstrings without their packages: a `DatasetDict` with the column `text`."""
    found = sorted(standard_library())
    return DatasetDict(
        train=Dataset.from_dict({"text": [text for text in found if not is_validation(text)]}),
        validation=Dataset.from_dict({"text": [text for text in found if is_validation(text)]}),
    )


def write_labelled(folder):
    """Writes train.parquet and validation.parquet, with the columns `text` and `label`, the package.

    Returns:
        `dict` from the path of each file to its number of rows.

    Raises:
        FileNotFoundError: this Python comes without the sources of its standard library.
    """
    labelled = standard_library()
    features = Features({"text": Value("string"), "label": ClassLabel(names=sorted(set(labelled.values())))})
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split in ("train", "validation"):
        rows = [
            (text, label) for text, label in sorted(labelled.items()) if is_validation(text) == (split == "validation")
        ]
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        path = folder / f"{split}.parquet"
        temporary = path.with_suffix(".tmp")
        Dataset.from_dict(columns, features=features).to_parquet(temporary)
        os.replace(temporary, path)
        written[path] = len(rows)
    return written
