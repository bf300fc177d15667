#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Makes a text classification data set that is on every machine: which package is a docstring from?

    python scripts/docstrings_dataset.py --output_dir outputs/data/docstrings

Reads the docstrings of Python's standard library, human-written English, and labels each with its package. The test
code of the packages is left out, as is every docstring that stands in more than one of them. Writes train.parquet and
validation.parquet; which docstring goes where depends on its text alone.
"""

import argparse
import ast
import hashlib
import os
import sysconfig
import warnings
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the two parquet files")
    arguments = parser.parse_args()
    labelled = collect(Path(sysconfig.get_path("stdlib")))
    names = sorted(set(labelled.values()))
    if len(names) < 2:
        raise SystemExit("this Python comes without the sources of its standard library")
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        rows = [
            (text, label) for text, label in sorted(labelled.items()) if is_validation(text) == (split == "validation")
        ]
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        path = arguments.output_dir / f"{split}.parquet"
        temporary = path.with_suffix(".tmp")
        Dataset.from_dict(columns, features=features).to_parquet(temporary)
        os.replace(temporary, path)
        print(f"{path}: {len(rows)} docstrings of {len(names)} packages")


if __name__ == "__main__":
    main()
