#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Writes tables, figures and model cards from the JSON files under results/.

    python scripts/report.py            rewrites README.md, results/README.md, docs/speed.md, docs/training.md,
                                        docs/initialisation.md, docs/export.md, docs/supported.md, figures and cards
    python scripts/report.py --check    fails if a text disagrees with the JSON files

results/README.md and docs/supported.md are written as a whole; in the other pages only what stands between two markers.
"""

import argparse
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent))
import matplotlib
import report_benchmark
import report_cards
import report_comparison
import report_initialisation
import report_quantization
import report_supported
from comparison import PRESETS, ROOT


matplotlib.use("Agg")
import matplotlib.pyplot as plt


RESULTS = ROOT / "results"
BEGIN, END = "<!-- written by scripts/report.py -->", "<!-- end -->"
RESULTS_HEAD = """# Results

What each biological effect contributes: every arm in the same skeleton, trained by `scripts/reproduce.py`.
[Concepts](../docs/concepts.md) explains the effects; `python scripts/reproduce.py --help` the presets. Each JSON file
here is the full record of one run. `python scripts/report.py` writes this page and the figures from the records.

`outputs/data/NAME` stands for a local folder with one file per split. For IMDB and CIFAR-10 these are the official
training sets, split again: 20,000 and 5,000 reviews; 45,000 and 5,000 images, stored as JPEG of quality 75. The
official test sets were not touched. For Shakespeare, the first 90 % of the text is for training and the last 10 % for
validation.
"""


def comparisons():
    """What is known of each preset under results/, largest first."""
    known = [report_comparison.Comparison(RESULTS, preset) for preset in reversed(PRESETS)]
    return [comparison for comparison in known if comparison.tasks]


def readme_lines(known, benchmarks):
    lines = report_comparison.headline_lines(known[0]) if known else []
    for record in benchmarks:
        lines += report_benchmark.decoding_text(record)
    return lines


def speed_lines(benchmarks):
    lines = []
    for record in benchmarks:
        device = report_benchmark.device_of(record)
        lines += [f"### Speed and memory on a {device.upper()}", "", *report_benchmark.benchmark_text(record), ""]
        lines += [f"![Speed and memory](benchmark_{device}.png)", ""]
    return lines


def between_markers(path, lines):
    """The text of a file with `lines` between its markers."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join(lines).strip()
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def texts():
    """Every text that is written from the records, by its path."""
    known = comparisons()
    benchmarks, packed = (report_benchmark.load_benchmarks(RESULTS / name) for name in ("benchmark", "packing"))
    tried, quantized = (
        [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / name).glob("*.json"))]
        for name in ("initialisation", "quantization")
    )
    results = [RESULTS_HEAD]
    for comparison in known:
        results += report_comparison.results_lines(comparison)
    found = {
        ROOT / "README.md": between_markers(ROOT / "README.md", readme_lines(known, benchmarks)),
        ROOT / "docs/initialisation.md": between_markers(
            ROOT / "docs/initialisation.md", report_initialisation.initialisation_lines(tried)
        ),
        ROOT / "docs/export.md": between_markers(
            ROOT / "docs/export.md", report_quantization.quantization_lines(quantized)
        ),
        ROOT / "docs/speed.md": between_markers(ROOT / "docs/speed.md", speed_lines(benchmarks)),
        ROOT / "docs/supported.md": report_supported.page(),
        ROOT / "docs/training.md": between_markers(ROOT / "docs/training.md", report_benchmark.packing_text(packed)),
        RESULTS / "README.md": "\n".join(results).rstrip() + "\n",
    }
    for comparison in known:
        found.update(report_cards.cards(comparison, ROOT / "model_cards"))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a text is out of date")
    arguments = parser.parse_args()
    wanted = texts()
    if arguments.check:
        outdated = [
            str(path.relative_to(ROOT))
            for path, text in wanted.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        if outdated:
            sys.exit(f"{', '.join(outdated)}: not what results/ says; run python scripts/report.py")
        return
    for comparison in comparisons():
        report_comparison.write_figures(comparison, RESULTS / "figures")
    for record in report_benchmark.load_benchmarks(RESULTS / "benchmark"):
        report_benchmark.plot_benchmark(record, ROOT / f"docs/benchmark_{report_benchmark.device_of(record)}.png")
    plt.close("all")
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    print(f"wrote {len(wanted)} texts and the figures in results/figures/ and docs/")


if __name__ == "__main__":
    main()
