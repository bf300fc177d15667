# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The tables of docs/conversions.md, from records that are made up."""

import json

from conversion.arms import CONVERSIONS
from reporting.conversions import NAMES, conversions_lines


MACHINE = {"cpu": "abacus", "threads": 2, "gpus": []}


def record(arm, quality, **more):
    options = {"num_transfer": 8, "num_distillation": 9, "num_validation": 7, "max_length": 5}
    return {
        "arm": arm,
        "model": "outputs/models/tiny",
        "data": "outputs/data/texts",
        "options": options,
        "quality": quality,
        "attention_swap": {"layers": [0, 1]},
        "seconds": 120,
        "resumed": arm == "linear",
        "command": "python scripts/convert.py",
        "hardware": MACHINE,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        **more,
    }


def write(folder, name, records):
    (folder / name).mkdir()
    for content in records:
        (folder / name / f"{content['arm']}.json").write_text(json.dumps(content))


def test_every_arm_has_a_name():
    assert {arm for conversion in CONVERSIONS.values() for arm in conversion.arms} == set(NAMES)


def test_perplexities_are_told_beside_the_original(tmp_path):
    known = {"original": 20.0, "swapped": 90.0, "transferred": 24.0, "distilled": 21.0, "synapses silenced": 25.0}
    quality = {stage: {"perplexity": value, "tokens": 1234} for stage, value in known.items()}
    linear = {stage: quality[stage] for stage in ("original", "swapped", "transferred")}
    write(tmp_path, "decoder", [record("linear", linear), record("window_and_sinks", quality)])
    lines = conversions_lines(tmp_path)
    assert "| window and sinks | 2 | 90.0 | 24.0 | 21.0 | 1.050 | 1.250 | 2 |" in lines
    assert "| synapses alone | 2 | 90.0 | 24.0 |  | 1.200 |  |  |" in lines
    assert lines.index("| window and sinks | 2 | 90.0 | 24.0 | 21.0 | 1.050 | 1.250 | 2 |") == 4
    assert "Perplexity on 1,234 tokens; the original's is 20.0." in lines


def test_embeddings_are_compared_and_probed(tmp_path):
    near = {"cosine": 0.9, "cosine_fifth_percentile": 0.8, "spearman": 0.7}
    quality = {stage: near for stage in ("swapped", "transferred", "distilled", "synapses silenced")}
    probe = {"original": [0.80, 0.81, 0.82], "converted": [0.79, 0.81, 0.80]}
    write(tmp_path, "encoder", [record("window", quality, probe=probe)])
    lines = conversions_lines(tmp_path)
    assert "| window, no sinks | 0.900 | 0.900 | 0.9000 | 0.8000 | 0.7000 | 0.900 | -1.0 ± 1.0 | 2 |" in lines
    assert lines[-3].endswith("over 3 draws of examples; that of the original reaches 81.0 %.")
    assert "abacus, 2 threads" in lines[-2]


def test_fine_tuned_models_are_compared_with_softmax(tmp_path):
    near = {"cosine": 0.9, "cosine_fifth_percentile": 0.8, "spearman": 0.7}
    write(tmp_path, "encoder", [record("linear", {"swapped": near})])
    (tmp_path / "encoder/finetuned").mkdir()
    for contestant, accuracy in (("softmax", 0.9), ("neuron_astrocyte", 0.85), ("converted, linear", 0.91)):
        content = {"contestant": contestant, "metrics": {"accuracy": accuracy}, "steps": 7, "eval_samples": 1800}
        content |= {"dataset": "outputs/data/texts", "command": "python scripts/train_text_classification.py"}
        (tmp_path / "encoder/finetuned" / f"{contestant}.json").write_text(json.dumps(content))
    lines = conversions_lines(tmp_path)
    assert "| softmax attention, as it is | 90.0 |  |" in lines
    assert '| `attn_implementation="neuron_astrocyte"` | 85.0 | -5.0 |' in lines
    assert "| converted: synapses alone | 91.0 | +1.0 |" in lines
    assert any("7 steps" in line and "1,800 texts" in line for line in lines)
    assert any("up to 1.0 points" in line for line in lines)


def test_no_records_no_tables(tmp_path):
    assert conversions_lines(tmp_path) == []
