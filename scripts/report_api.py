#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes docs/api.md, the reference of everything that `astroformer_hf` exports, from its signatures and docstrings.

python scripts/report_api.py            writes the page
python scripts/report_api.py --check    fails if it is not what the code says
"""

import argparse
import sys

from reporting.api_page import PAGE, page
from training.files import write_whole


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if docs/api.md is out of date")
    args = parser.parse_args(arguments)
    if not args.check:
        write_whole(PAGE, lambda temporary: temporary.write_text(page(), encoding="utf-8"))
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/api.md: not what the code says; run python scripts/report_api.py")


if __name__ == "__main__":
    main()
