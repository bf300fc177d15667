# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The table of docs/export.md: what int8 costs and saves."""

from reporting.tables import origin, table


def quantization_lines(records):
    """A Markdown table with a row for each record of `scripts/export.py --quantize int8 --evaluate`, as lines."""
    rows = []
    for record in records:
        pytorch, float32, int8 = (record["models"][name] for name in ("pytorch", "float32", "int8"))
        rows.append(
            [
                f"{record['dataset']}, {record['arm']}",
                f"{pytorch['accuracy']:.2%}",
                f"{float32['accuracy']:.2%}",
                f"{int8['accuracy']:.2%}",
                f"{int8['agreement']:.2%}",
                f"{float32['bytes'] / 2**20:.2f}",
                f"{int8['bytes'] / 2**20:.2f}",
                f"{pytorch['seconds'] / float32['seconds']:.2f}",
                f"{pytorch['seconds'] / int8['seconds']:.2f}",
                f"{float32['largest_difference']:.0e}",
            ]
        )
    header = [
        *("data, arm", "accuracy: PyTorch", "ONNX", "ONNX int8", "int8 agrees"),
        *("MiB: ONNX", "int8", "speed over PyTorch: ONNX", "int8", "ONNX differs by"),
    ]
    examples = ", ".join(f"{record['eval_samples']:,} of {record['dataset']}" for record in records)
    first = records[0]
    return [
        *table(header, rows),
        f"Validation split, in this order: {examples}; batches of {first['batch_size']}, each run by the models in "
        f"turn, PyTorch with its C++ attention; onnxruntime {first['versions']['onnxruntime']} on {origin(first)}. "
        "The last column is the largest difference from PyTorch's logits over batches of several sizes, relative to "
        "the largest logit.",
        "",
        *["<details><summary>Commands</summary>", "", "```console", *map(repeating, records)],
        *["```", "", "</details>"],
    ]


def repeating(record):
    """The command of a record. Those without a `max_length` are of a time when 256 tokens of a text were read."""
    is_older = "max_length" not in record and "ForImage" not in record["architecture"]
    return record["command"] + " --max_length 256" * is_older
