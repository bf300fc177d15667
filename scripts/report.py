#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes tables, figures and model cards from the JSON files under results/.

    python scripts/report.py            rewrites README.md, results/README.md, docs/speed.md, docs/training.md,
                                        docs/initialisation.md, docs/findings.md, docs/pretrained.md,
                                        docs/conversions.md, docs/export.md, docs/macro_model.md, docs/supported.md,
                                        figures and cards
    python scripts/report.py --check    fails if a text disagrees with the JSON files
    python scripts/report.py --record lowest --junit FILE
                                        writes results/supported/lowest.json, for scripts/test_supported.sh

results/README.md and docs/supported.md are written as a whole; in the other pages only what stands between two markers.
"""

import argparse
import sys

import matplotlib
from reporting import benchmarks, comparisons, supported
from reporting.texts import MACRO_MODEL, RESULTS, known_comparisons, texts
from simulation.figures import plot_record
from training.files import ROOT, read_json, write_whole


matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a text is out of date")
    parser.add_argument(
        "--record",
        choices=(*supported.ENDS, supported.NEWEST),
        help="only record the tests at that end of the supported range",
    )
    parser.add_argument("--junit", help="JUnit XML file that pytest wrote, with --record")
    args = parser.parse_args(arguments)
    if (args.record is None) != (args.junit is None) or (args.record and args.check):
        parser.error("--record goes with --junit, and without --check")
    if args.record:
        print(f"wrote {supported.record(args.record, args.junit)}")
        return
    wanted = texts()
    if args.check:
        outdated = [
            str(path.relative_to(ROOT))
            for path, text in wanted.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        if outdated:
            sys.exit(f"{', '.join(outdated)}: not what results/ says; run python scripts/report.py")
        return
    for known in known_comparisons():
        comparisons.write_figures(known, RESULTS / "figures")
    for record in benchmarks.load_benchmarks(RESULTS / "benchmark"):
        benchmarks.plot_benchmark(record, ROOT / f"docs/benchmark_{benchmarks.device_of(record)}.png")
    plot_record(read_json(MACRO_MODEL)).savefig(ROOT / "docs/macro_model.png", dpi=75)
    plt.close("all")
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    print(f"wrote {len(wanted)} texts and the figures in results/figures/ and docs/")


if __name__ == "__main__":
    main()
