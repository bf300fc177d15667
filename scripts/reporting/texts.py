# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Every text that is written from the records under results/, by its path."""

import json

from comparison.presets import PRESETS
from training.files import ROOT

from reporting import benchmarks, comparisons, initialisation, model_cards, quantization, supported


RESULTS = ROOT / "results"
BEGIN, END = "<!-- written by scripts/report.py -->", "<!-- end -->"
RESULTS_HEAD = """# Results

What each biological effect buys: every arm in one skeleton, trained by `scripts/reproduce.py`. The README tells what
the effects are, `scripts/comparison/` what arms and presets are made of. Each file here is the full record of one
run. This text and the figures are written from them by `python scripts/report.py`.

Data in `outputs/data/NAME` are local folders with a file for each split. Those of IMDB and CIFAR-10 are the official
training halves, split anew: 20,000 and 5,000 reviews; 45,000 and 5,000 images, stored as JPEG of quality 75. The
official test halves were not touched. Of Shakespeare the first 90 % are for training, the last 10 % for validation.
"""


def known_comparisons():
    """What is known of each preset under results/, largest first."""
    known = [comparisons.Comparison(RESULTS, preset) for preset in reversed(PRESETS)]
    return [comparison for comparison in known if comparison.tasks]


def readme_lines(known, measured):
    lines = []
    for comparison in known:
        lines += [f"### Preset `{comparison.preset}`", "", *comparisons.overview_lines(comparison)]
    for record in measured:
        device = benchmarks.device_of(record)
        lines += [f"### Speed and memory on a {device.upper()}", "", *benchmarks.benchmark_text(record), ""]
        lines += [f"![Speed and memory](docs/benchmark_{device}.png)", ""]
    return lines


def between_markers(path, lines):
    """The text of a file with `lines` between its markers."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join(lines).strip()
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def texts():
    """Every text that is written from the records, by its path."""
    known = known_comparisons()
    measured, packed = (benchmarks.load_benchmarks(RESULTS / name) for name in ("benchmark", "packing"))
    tried, quantized = (
        [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / name).glob("*.json"))]
        for name in ("initialisation", "quantization")
    )
    results = [RESULTS_HEAD]
    for comparison in known:
        results += comparisons.results_lines(comparison)
    found = {
        ROOT / "README.md": between_markers(ROOT / "README.md", readme_lines(known, measured)),
        ROOT / "docs/initialisation.md": between_markers(
            ROOT / "docs/initialisation.md", initialisation.initialisation_lines(tried)
        ),
        ROOT / "docs/export.md": between_markers(ROOT / "docs/export.md", quantization.quantization_lines(quantized)),
        ROOT / "docs/supported.md": supported.page(),
        ROOT / "docs/training.md": between_markers(ROOT / "docs/training.md", benchmarks.packing_text(packed)),
        RESULTS / "README.md": "\n".join(results).rstrip() + "\n",
    }
    for comparison in known:
        found.update(model_cards.cards(comparison, ROOT / "model_cards"))
    return found
