# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Every text that is written from the records under results/, by its path."""

import json

from comparison.presets import PRESETS
from training.files import ROOT, read_json

from reporting import (
    benchmarks,
    comparisons,
    conversions,
    findings,
    initialisation,
    library_models,
    macro_model,
    model_cards,
    quantization,
    supported,
)


RESULTS = ROOT / "results"
README_PRESET = "switches"
MACRO_MODEL = RESULTS / "macro_model/simulation.json"
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


def known_comparisons():
    """What is known of each preset under results/, largest first."""
    known = [comparisons.Comparison(RESULTS, preset) for preset in reversed(PRESETS)]
    return [comparison for comparison in known if comparison.tasks]


def readme_lines(known, measured):
    lines = []
    for comparison in known:
        if comparison.preset != README_PRESET:  # the others are on the records' page
            continue
        lines += [
            f"The preset `{comparison.preset}` of the [comparison](docs/comparing.md), as far as it is trained:",
            "",
        ]
        lines += comparisons.headline_lines(comparison)
    for record in measured:
        lines += benchmarks.decoding_text(record)
    return lines


def speed_lines(measured):
    lines = []
    for record in measured:
        device = benchmarks.device_of(record)
        lines += [f"### Speed and memory on a {device.upper()}", "", *benchmarks.benchmark_text(record), ""]
        lines += [f"![Speed and memory](benchmark_{device}.png)", ""]
    return lines


def speed_of_converted_lines():
    """How fast a converted model is, under a heading of its own."""
    text = benchmarks.converted_text(benchmarks.load_benchmarks(RESULTS / "converted"))
    return ["## Speed", "", *text] if text else []


def long_lines(known):
    """What states recall and how long sequences are classified, from the comparison that measured it."""
    return [
        line
        for comparison in known
        if comparison.preset == "long"
        for line in (*findings.recall_lines(comparison), *findings.classification_lines(comparison))
    ]


def between_markers(path, lines):
    """The text of a file with `lines` between its markers."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join(lines).strip()
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def texts():
    """Every text that is written from the records, by its path."""
    known = known_comparisons()
    measured, packed, compiled = (
        benchmarks.load_benchmarks(RESULTS / name) for name in ("benchmark", "packing", "compiled")
    )
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
        ROOT / "docs/macro_model.md": between_markers(
            ROOT / "docs/macro_model.md", macro_model.macro_model_lines(read_json(MACRO_MODEL))
        ),
        ROOT / "docs/pretrained.md": between_markers(
            ROOT / "docs/pretrained.md", library_models.library_models_lines()
        ),
        ROOT / "docs/conversions.md": between_markers(
            ROOT / "docs/conversions.md",
            [*conversions.conversions_lines(RESULTS / "pretrained"), *speed_of_converted_lines()],
        ),
        ROOT / "docs/speed.md": between_markers(
            ROOT / "docs/speed.md", [*speed_lines(measured), *benchmarks.compiled_text(compiled)]
        ),
        ROOT / "docs/long_documents.md": between_markers(
            ROOT / "docs/long_documents.md",
            [
                *benchmarks.segments_text(benchmarks.load_benchmarks(RESULTS / "segments")),
                *benchmarks.documents_text(
                    [*map(read_json, (RESULTS / f"{name}/documents.json" for name in ("documents", "documents_2000")))]
                ),
                *long_lines(known),
            ],
        ),
        ROOT / "docs/supported.md": supported.page(),
        ROOT / "docs/training.md": between_markers(ROOT / "docs/training.md", benchmarks.packing_text(packed)),
        RESULTS / "README.md": "\n".join(results).rstrip() + "\n",
    }
    for comparison in known:
        if comparison.preset == "switches":
            page = ROOT / "docs/findings.md"
            found[page] = between_markers(page, findings.findings_lines(comparison))
        found.update(model_cards.cards(comparison, ROOT / "model_cards"))
    return found
