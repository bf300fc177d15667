# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The benchmark measures what it says, on small inputs, and goes on where it was stopped."""

import json

import benchmark
import pytest
import torch
from reporting.benchmarks import converted_text, segments_text


SMALL = ["--lengths", "16", "32", "--contexts", "40", "--tokens", "32", "--budget", "0.01", "--rounds", "3"]


@pytest.fixture
def small_models(monkeypatch):
    for name, value in {"LAYERS": 2, "WIDTH": 32, "HEADS": 2, "HEAD_DIM": 16, "VOCABULARY": 50}.items():
        monkeypatch.setattr(benchmark, name, value)


def test_all_sections(tmp_path, small_models, capsys):
    arguments = [*SMALL, "--no_peers", "--device", "cpu", "--output_dir", str(tmp_path)]
    benchmark.main(arguments)
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert record["hardware"]["cpu"] and record["versions"]["torch"] == torch.__version__
    rows = record["rows"]
    sections = {row["section"] for row in rows}
    assert sections == {*benchmark.SECTIONS, "memory of a training step"}
    for row in rows:
        assert row.get("seconds", 1) > 0 and row.get("peak_bytes", 1) > 0, row
    operation = [row for row in rows if row["section"] == "operation"]
    assert {row["contestant"] for row in operation} == {
        *("neuron_astrocyte", "all switches", "no astrocyte", "plain", "sdpa", "products")
    }
    assert {(row["causal"], row["backward"], row["length"], row["batch"]) for row in operation} == {
        (causal, backward, length, batch)
        for causal in (False, True)
        for backward in (False, True)
        for length, batch in ((16, 2), (32, 1))
    }
    softmax, own = (
        next(row["cache_bytes"] for row in rows if row["section"] == "decoding" and row["contestant"] == name)
        for name in ("softmax", "neuron_astrocyte")
    )
    assert softmax >= 40 * 2 * 2 * 32 * 4  # tokens, keys and values, layers, width, float32
    assert own < 2 * (2 * 16 * 16 + 4 * 2 * 16) * 4  # layers, two heads' Hebbian weights and sums
    assert "softmax / neuron_astrocyte" in capsys.readouterr().out

    # a run that was stopped goes on with what is missing
    kept = [row for row in rows if row["section"] != "inference"]
    (tmp_path / "cpu.json").write_text(json.dumps({**record, "rows": kept}))
    benchmark.main(arguments)
    again = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert again[: len(kept)] == kept and len(again) == len(rows)
    assert {row["section"] for row in again[len(kept) :]} == {"inference"}


WAYS = ("full", "replay", "at once")


def test_a_converted_model(tmp_path, monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
    monkeypatch.setattr(benchmark, "CONVERTED_SHAPE", {**small, "num_attention_heads": 4, "num_key_value_heads": 2})
    monkeypatch.setattr(benchmark, "PROMPTS", (24,))
    monkeypatch.setattr(benchmark, "CONVERTED_CONTEXTS", (30, 90))
    benchmark.main([*SMALL, "--device", "cpu", "--output_dir", str(tmp_path), "--sections", "converted"])
    record = json.loads((tmp_path / "cpu.json").read_text())
    rows = {(row["section"], row["length"], row["contestant"]): row for row in record["rows"]}
    lengths = [("prefill, converted", 24), ("decoding, converted", 30), ("decoding, converted", 90)]
    assert set(rows) == {(*length, name) for length in lengths for name in ("softmax", "swapped")}
    cache = {
        name: [rows["decoding, converted", n, name]["cache_bytes"] for n in (30, 90)] for name in ("softmax", "swapped")
    }
    assert cache["softmax"] == [2 * 2 * 2 * 8 * 4 * n for n in (30, 90)]  # layers, keys and values, heads, size, bytes
    assert len(set(cache["swapped"])) == 1
    for row in record["rows"]:
        row["seconds"] = {"softmax": 3.0, "swapped": 2.0}[row["contestant"]]
    text = "\n".join(converted_text([record]))
    assert "| 24 | 1.50 |" in text and "| 90 | 1.50 | 3000.0 | 2000.0 | 0.0 | 0.0 |" in text


def test_segments(tmp_path, small_models, monkeypatch):
    small = {"SEGMENT": 8, "SEGMENTS": (1, 3), "LONG_SEGMENT": 8, "LONG_TEXTS": (40,), "DOCUMENTS_TO_READ": (50,)}
    for name, value in small.items():
        monkeypatch.setattr(benchmark, name, value)
    arguments = [*SMALL, "--device", "cpu", "--output_dir", str(tmp_path), "--sections", "segments"]
    benchmark.main(arguments)
    record = json.loads((tmp_path / "cpu.json").read_text())
    rows = record["rows"]
    found = {(row["section"], row["causal"], row["length"], row["contestant"]) for row in rows}
    steps = {("segments", causal, n, way) for causal in (False, True) for n in (8, 24) for way in WAYS}
    read = {("reading a document", False, 50, way) for way in ("at once", "in pieces")}
    assert found == {*steps, *read, ("a long text", False, 40, "replay")}
    assert all(row["difference"] < 1e-4 for row in rows if row["section"] == "reading a document")
    for row in rows:
        row |= {"seconds": {"full": 1.0, "replay": 1.3}.get(row["contestant"], 2.0)}
        row |= {"peak_bytes": {"full": 3 * 2**20, "replay": 2**20}.get(row["contestant"], 2**21)}
    text = "\n".join(segments_text([record]))
    assert text.count("| 24 | 3 | 1.30 | 2.00 | 3 | 1 | 2 | 0.33 |") == 2 and "| 50 | 2.00 | 2.00 | 2.0 | 2.0 |" in text
    kept = len(rows)
    benchmark.main(arguments)
    assert len(json.loads((tmp_path / "cpu.json").read_text())["rows"]) == kept


def test_what_takes_too_long_is_left_out():
    limit = benchmark.Limit(10)
    assert limit.allows("sdpa", 1024)
    limit.took("sdpa", 1024, 2.0)
    assert limit.allows("sdpa", 2048)  # four times as long
    limit.took("sdpa", 2048, 8.0)
    assert not limit.allows("sdpa", 4096)
    assert limit.allows("ours", 4096)


def test_memory_is_that_of_the_tensors_that_live_at_once():
    def function():
        for _ in range(3):
            torch.ones(2**20)  # 4 MiB, freed at once

    measured = benchmark.peak_memory(function, "cpu")
    assert 4 * 2**20 <= measured["peak_bytes"] < 5 * 2**20
    assert measured.get("resident_bytes", 0) < 64 * 2**20


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lengths", "1"], "--lengths must be at least 2, got 1"),
        (["--sections", "speed"], "invalid choice: 'speed'"),
        (["--contexts", "-3"], "--contexts must be at least 2"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(arguments)
    assert message in capsys.readouterr().err
