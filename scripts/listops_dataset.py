#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Makes a data set of ListOps: what is the value of this nested expression?

    python scripts/listops_dataset.py --preset short --output_dir outputs/data/listops
    python scripts/listops_dataset.py --preset full --output_dir outputs/data/listops_full

The task is that of Nangia and Bowman, "ListOps" (2018), at the lengths of Long Range Arena (Tay et al., 2021). The data
are LRA-style: made anew by the rules below, they are not LRA's own examples.

- An expression is a tree. A node is a digit, 0 to 9, with probability 0.75, else an operator with 2 to 10 arguments,
  each number as likely as the others. The root, at depth 1, is always an operator, a node at depth 10 always a digit.
- The operators are equally likely: MIN, MAX, MED, the whole part of the median, and SM, the sum modulo 10. So the
  value of every node is a digit. That of the root is the label, one of ten classes.
- The text has its tokens between spaces, like `[MAX 2 9 [MIN 4 7 ] 0 ]`. Its length is the number of these tokens: each
  operator with its opening bracket, each closing bracket and each digit is one.
- A tree is kept if its length lies strictly between --min_length and --max_length: 50 and 200 with the preset "short",
  500 and 2,000 with "full". No expression comes twice, in whatever split.
- Test, validation and training examples are drawn from three different seeds, which follow from --seed, and in this
  order: the test split is the same however many examples the others have.

Writes test.parquet, validation.parquet and train.parquet, with the columns `text` and `label`, and rules.json. The same
arguments give the same data on every machine. What is already there by the same rules is not made again; a folder with
data by other rules is refused.
"""

import argparse
from pathlib import Path

from training.listops import rules_of, summary, write_listops


PRESETS = {
    "short": {"min_length": 50, "max_length": 200, "num_train": 20000, "num_validation": 2000, "num_test": 2000},
    "full": {"min_length": 500, "max_length": 2000, "num_train": 96000, "num_validation": 2000, "num_test": 2000},
}
HELP = {
    "min_length": "an expression has more tokens than this",
    "max_length": "and fewer than this",
    "num_train": "examples to train on",
    "num_validation": "examples to measure on along the way",
    "num_test": "examples to measure on at the end",
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the three parquet files")
    parser.add_argument("--preset", choices=PRESETS, default="short", help="lengths and numbers; default: short")
    for name, text in HELP.items():
        parser.add_argument(f"--{name}", type=int, help=f"{text}; default: that of the preset")
    parser.add_argument("--seed", type=int, default=0, help="draws the examples; default: 0")
    args = parser.parse_args(arguments)
    given = {name: value for name in HELP if (value := getattr(args, name)) is not None}
    try:
        written = write_listops(args.output_dir, rules_of(**{**PRESETS[args.preset], **given}, seed=args.seed))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for path, is_new in written.items():
        found = summary(path)
        print(
            f"{path}: {found['examples']} expressions{'' if is_new else ', already there'}; {found['mean_length']:.1f} "
            f"tokens on average; share of the commonest class {found['commonest_share']:.4f}, "
            f"of that of each outermost operator {found['operator_share']:.4f}"
        )


if __name__ == "__main__":
    main()
