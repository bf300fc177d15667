#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Makes a text classification data set that is on every machine: which package is a docstring from?

    python scripts/docstrings_dataset.py --output_dir outputs/data/docstrings

Reads the docstrings of Python's standard library, human-written English, and labels each with its package. The test
code of the packages is left out, as is every docstring that stands in more than one of them. Writes train.parquet and
validation.parquet; which docstring goes where depends on its text alone.
"""

import argparse
from pathlib import Path

from training.docstrings import write_labelled


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the two parquet files")
    args = parser.parse_args(arguments)
    try:
        written = write_labelled(args.output_dir)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    for path, number in written.items():
        print(f"{path}: {number} docstrings")


if __name__ == "__main__":
    main()
