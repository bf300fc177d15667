# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Tables and figures of speed and memory, from the records of scripts/benchmark.py."""

import json

import matplotlib

from reporting.tables import origin, table


matplotlib.use("Agg")
import matplotlib.pyplot as plt


def load_benchmarks(folder):
    """The records of scripts/benchmark.py, one for each kind of device."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def device_of(record):
    return "gpu" if record["hardware"]["gpus"] else "cpu"


class Cases:
    """The rows of a benchmark, to be looked up."""

    def __init__(self, rows):
        self.rows = {
            (row["section"], row["causal"], row["backward"], row["length"], row["contestant"]): row for row in rows
        }

    def value(self, field, contestant, section, length, causal=False, backward=False):
        """A measured figure, None where there is none."""
        return self.rows.get((section, causal, backward, length, contestant), {}).get(field)

    def ratio(self, field, other, section, length, causal=False, backward=False):
        """The figure of `other` over that of "neuron_astrocyte": of times, how many times as fast this is."""
        own, others = (
            self.value(field, name, section, length, causal, backward) for name in ("neuron_astrocyte", other)
        )
        return others / own if own and others else None

    def lengths(self, section):
        return sorted({key[3] for key in self.rows if key[0] == section})


def times(ratio):
    """A ratio for a table."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def benchmark_text(record):
    """The tables of one benchmark as Markdown lines."""
    cases, hardware, versions = Cases(record["rows"]), record["hardware"], record["versions"]
    machine = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['threads']} threads"
    ways = [(causal, backward) for causal in (False, True) for backward in (False, True)]
    names = ["forward", "forward + backward", "causal, forward", "forward + backward"]
    lines = [
        "Measured with one command, resumed where it was interrupted, on "
        f"{machine}, {record['dtype']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {record['heads']} heads of size {record['head_dim']}, alpha 0.5, about 2,048 "
        "tokens per batch, or one longer sequence. **Speed of the operation relative to PyTorch's "
        "`scaled_dot_product_attention`** (2 means twice as fast), with an astrocyte code that is computed beforehand "
        '("learned" or "sinusoidal"):',
        "",
        *table(
            ["tokens", *names],
            [
                [f"{n:,}", *(times(cases.ratio("seconds", "sdpa", "operation", n, *way)) for way in ways)]
                for n in cases.lengths("operation")
            ],
        ),
        "Where a cell is empty, softmax attention would have taken too long. The next table has the operation's time "
        "over that of its two bare matrix products, the least that any linear attention must do (1 would be the "
        "limit), and its speed relative to its own plain form in PyTorch operations:",
        "",
        *table(
            [
                "tokens",
                "time over products: forward",
                "forward + backward",
                "without an astrocyte: forward",
                "forward + backward",
            ]
            + ["speed over plain form: forward", "forward + backward"],
            [
                [
                    f"{n:,}",
                    *(
                        times(inverse(cases.ratio("seconds", "products", "operation", n, False, b)))
                        for b in (False, True)
                    ),
                    *(times(over_products(cases, n, b)) for b in (False, True)),
                    *(times(cases.ratio("seconds", "plain", "operation", n, False, b)) for b in (False, True)),
                ]
                for n in cases.lengths("operation")
            ],
        ),
        f'**Whole models**, {record["layers"]} layers, {record["width"]} wide, with the default code "activity": speed '
        "of a training step relative to the softmax arm in the same skeleton and to other models of the same size, and "
        "peak tensor memory relative to the softmax arm (batch size 1).",
        "",
        *table(
            ["tokens", "encoder / softmax", "/ BERT", "/ astrohebbian", "decoder / softmax", "/ Mamba-2"]
            + ["memory: encoder", "decoder"],
            [
                [
                    f"{n:,}",
                    *(
                        times(cases.ratio("seconds", x, "training", n, False, True))
                        for x in ("softmax", "BERT", "astrohebbian")
                    ),
                    *(times(cases.ratio("seconds", x, "training", n, True, True)) for x in ("softmax", "Mamba-2")),
                    *(
                        times(
                            inverse(
                                cases.ratio("peak_bytes", "softmax", "memory of a training step", n, causal, True), 3
                            )
                        )
                        for causal in (False, True)
                    ),
                ]
                for n in cases.lengths("training")
            ],
        ),
        *switches_lines(cases),
        "**Decoding** after a context, one sequence:",
        "",
        *decoding_table(cases),
        f"`{record['command']}`",
    ]
    return lines


def switches_lines(cases):
    """What the switches cost, as Markdown lines; none where it was not measured."""

    def cost(section, on, off, length, *way):
        times_of = [cases.value("seconds", name, section, length, *way) for name in (on, off)]
        return times(times_of[0] / times_of[1] if None not in times_of else None)

    ways = [(causal, backward) for causal in (False, True) for backward in (False, True)]
    rows = [
        [
            f"{n:,}",
            *(cost("operation", "all switches", "neuron_astrocyte", n, *way) for way in ways),
            *(cost("training", "neuron_astrocyte", "no switches", n, causal, True) for causal in (False, True)),
        ]
        for n in cases.lengths("operation")
    ]
    if not any(cell for row in rows for cell in row[1:]):
        return []
    names = ["operation, forward", "forward + backward", "causal, forward", "forward + backward"]
    return [
        "**What the switches cost**: the time with synapses that leak through a gate, alpha at the synapse and calcium "
        "of all sources, over the time without, for the operation and for a training step of whole models:",
        "",
        *table(["tokens", *names, "encoder", "decoder"], rows),
    ]


def decoding_table(cases):
    return table(
        ["context", "ms per token", "with softmax attention", "cache, MiB", "with softmax attention"],
        [
            [
                f"{n:,}",
                *(
                    f"{cases.value(field, name, 'decoding', n, True) * factor:,.2f}"
                    for field, factor in (("seconds", 1e3), ("cache_bytes", 2**-20))
                    for name in ("neuron_astrocyte", "softmax")
                ),
            ]
            for n in cases.lengths("decoding")
        ],
    )


def decoding_text(record):
    """What the next token costs after ever longer contexts, as Markdown lines, for the README."""
    return [
        "**The next token takes about the same time, and exactly the same memory, after any context:**",
        "",
        *decoding_table(Cases(record["rows"])),
        f"One sequence, {record['layers']} layers, {record['width']} wide, {record['dtype']}, on {origin(record)}. "
        "[More on speed](docs/speed.md#measurements).",
        "",
    ]


def packing_text(records):
    """The tables of packed rows, one for each device, as Markdown lines."""
    lines = []
    for record in records:
        lines += [*packing_lines(Cases(record["rows"])), f"{origin(record)}. `{record['command']}`", ""]
    return lines


def packing_lines(cases):
    ways = [(causal, backward) for causal in (False, True) for backward in (False, True)]
    rows = []
    for row in cases.lengths("packing"):
        names = sorted({key[4] for key in cases.rows if key[0] == "packing" and ", " in key[4]}, key=by_arm_and_size)
        for name in names:
            arm, documents = name.split(", ")
            found = [
                (cases.value("seconds", name, "packing", row, *way), cases.value("seconds", arm, "packing", row, *way))
                for way in ways
            ]
            rows.append([arm, documents.split()[-1], *(times(a / b if a and b else None) for a, b in found)])
    return [
        f"**Packed rows** of {cases.lengths('packing')[0]:,} tokens: the time for a row of several documents over that "
        "for the same tokens as one document, in whole models:",
        "",
        *table(
            ["arm", "tokens per document"]
            + [f"{kind}, {way}" for kind in ("encoder", "decoder") for way in ("forward", "forward + backward")],
            rows,
        ),
    ]


def compiled_text(records):
    """The table of compiled models, one for each device, as Markdown lines."""
    lines = []
    for record in records:
        cases = Cases(record["rows"])
        ways = [(causal, backward) for causal in (False, True) for backward in (False, True)]
        rows = []
        for length in cases.lengths("compiled"):
            pairs = [
                [cases.value("seconds", name, "compiled", length, *way) for name in ("eager", "compiled")]
                for way in ways
            ]
            rows.append([f"{length:,}", *(times(a / b if a and b else None) for a, b in pairs)])
        lines += [
            "**Speed under `torch.compile`** relative to the same model without it, 2 meaning twice as fast:",
            "",
            *table(["tokens", "encoder, forward", "training step", "decoder, forward", "training step"], rows),
            f"{origin(record)}. `{record['command']}`",
            "",
        ]
    return lines


def converted_text(records):
    """The tables of a converted model's speed, one for each device, as Markdown lines."""
    lines = []
    for record in records:
        cases = Cases(record["rows"])

        def ratio(section, length, cases=cases):
            softmax, swapped = (cases.value("seconds", name, section, length, True) for name in ("softmax", "swapped"))
            return times(softmax / swapped if softmax and swapped else None)

        prompts = [[f"{n:,}", ratio("prefill, converted", n)] for n in cases.lengths("prefill, converted")]
        contexts = []
        for n in cases.lengths("decoding, converted"):
            measured = [
                cases.value(field, name, "decoding, converted", n, True)
                for field in ("seconds", "cache_bytes")
                for name in ("softmax", "swapped")
            ]
            milliseconds, mebibytes = (
                [f"{1e3 * x:.1f}" for x in measured[:2]],
                [f"{x / 2**20:.1f}" for x in measured[2:]],
            )
            contexts.append([f"{n:,}", ratio("decoding, converted", n), *milliseconds, *mebibytes])
        swapped = record["rows"][0]
        lines += [
            "A Llama of the shape of SmolLM2-135M, each layer swapped: the nearest "
            f"{swapped['window_size']} tokens and {swapped['sink_tokens']} sinks are exact, the rest is synapses.",
            "",
            "Reading a prompt, relative to softmax attention by SDPA, 2 meaning twice as fast:",
            "",
            *table(["tokens", "speed"], prompts),
            "Decoding a token after a context:",
            "",
            *table(["context", "speed", "softmax, ms", "swapped, ms", "its cache, MiB", "swapped, MiB"], contexts),
            f"{origin(record)}. `{record['command']}`",
            "",
        ]
    return lines


def segments_text(records):
    """The tables of models that read in segments, one set for each device, as Markdown lines."""
    lines = []
    for record in records:
        cases = Cases(record["rows"])
        segments = {row["length"]: row["segments"] for row in record["rows"] if row["section"] == "segments"}
        for causal, name in ((False, "An encoder"), (True, "A decoder")):
            rows = []
            for n, number in sorted(segments.items()):
                seconds, peaks = (
                    {way: cases.value(field, way, "segments", n, causal, True) for way in ("full", "replay", "at once")}
                    for field in ("seconds", "peak_bytes")
                )
                if not all(seconds.values()):
                    continue
                rows.append(
                    [f"{n:,}", str(number)]
                    + [f"{seconds[way] / seconds['full']:.2f}" for way in ("replay", "at once")]
                    + [f"{peaks[way] / 2**20:.0f}" for way in ("full", "replay", "at once")]
                    + [f"{peaks['replay'] / peaks['full']:.2f}"]
                )
            columns = ["tokens", "segments", "time, replay / full", "at once / full"]
            columns += ["full, MiB", "replay, MiB", "at once, MiB", "replay / full"]
            lines += [f"{name}, a training step:", "", *table(columns, rows)]
        rows = []
        for n in cases.lengths("a long text"):
            seconds, resident = (
                cases.value(field, "replay", "a long text", n, False, True) for field in ("seconds", "resident_bytes")
            )
            rows.append([f"{n:,}", f"{seconds:.0f}", f"{resident / 2**20:.0f}" if resident else ""])
        lines += ["A training step over one text, by a model 64 wide with 2 layers:", ""]
        lines += table(["tokens", "seconds", "peak of the process, MiB"], rows)
        rows = []
        for n in cases.lengths("reading a document"):
            seconds, peaks = (
                [cases.value(field, way, "reading a document", n) for way in ("at once", "in pieces")]
                for field in ("seconds", "peak_bytes")
            )
            difference = cases.value("difference", "in pieces", "reading a document", n)
            row = [f"{n:,}", *(f"{x:.2f}" for x in seconds), *(f"{x / 2**20:.1f}" for x in peaks), f"{difference:.0e}"]
            rows.append(row)
        columns = ["tokens", "at once, s", "in pieces, s", "at once, MiB", "in pieces, MiB", "difference of the logits"]
        lines += ["Reading a document at once, and in pieces with the memory handed on, by the same model:", ""]
        lines += [*table(columns, rows), f"{origin(record)}. `{record['command']}`", ""]
    return lines


def documents_text(records):
    """The tables of long documents that trained models read (scripts/read_documents.py), as Markdown lines."""
    lines = []
    for record in records:
        ways = ("in pieces", "at once", "last segment alone")
        peaks = {(row["length"], row["way"]): row["peak_bytes"] for row in record["reading"]}
        rows = [
            [f"{n:,}", *(f"{peaks[n, way] / 2**20:.1f}" for way in ("at once", "in pieces"))]
            for n in sorted({n for n, _ in peaks})
        ]
        lines += [
            f"{record['documents']} documents of {record['length']:,} tokens, each of texts of one label from the "
            f"validation split of `{record['dataset']}`, read by a model with segments of {record['segment_length']} "
            f"tokens, in pieces of {record['piece']:,}; the share that is classified as its texts are:",
            "",
            *table(list(ways), [[f"{record['accuracy'][way]:.1%}" for way in ways]]),
            f"At once and in pieces, logits differ by {record['largest_difference']:.0e} at most. Memory of tensors:",
            "",
            *table(["tokens", "at once, MiB", "in pieces, MiB"], rows),
            f"{origin(record)}. `{record['command']}`",
            "",
        ]
    commands = dict.fromkeys(record["training_command"] for record in records if record.get("training_command"))
    return [*lines, *(line for command in commands for line in (f"The model: `{command}`", ""))]


def by_arm_and_size(name):
    arm, documents = name.split(", ")
    return ("neuron_astrocyte", "linear", "softmax").index(arm), int(documents.split()[-1])


def inverse(ratio, digits=None):
    return None if ratio is None else round(1 / ratio, digits) if digits else 1 / ratio


def over_products(cases, length, backward):
    """Time of the operation without an astrocyte code over that of the bare products."""
    own, products = (
        cases.value("seconds", name, "operation", length, False, backward) for name in ("no astrocyte", "products")
    )
    return own / products if own and products else None


def plot_benchmark(record, path):
    """Draws speed, memory and decoding against the length, as a PNG."""
    cases = Cases(record["rows"])
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    (operation, model), (memory, decoding) = axes

    def draw(axis, lengths, function, label, style):
        points = [(n, function(n)) for n in lengths]
        points = [(n, y) for n, y in points if y]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label)

    for causal, name in ((False, "bidirectional"), (True, "causal")):
        for backward, way, style in ((False, "forward", ".--"), (True, "forward and backward", ".-")):
            draw(
                operation,
                cases.lengths("operation"),
                lambda n, c=causal, b=backward: cases.ratio("seconds", "sdpa", "operation", n, c, b),
                f"{name}, {way}",
                style,
            )
        draw(
            model,
            cases.lengths("training"),
            lambda n, c=causal: cases.ratio("seconds", "softmax", "training", n, c, True),
            f"training step, {'decoder' if causal else 'encoder'}",
            ".-",
        )
        draw(
            model,
            cases.lengths("inference"),
            lambda n, c=causal: cases.ratio("seconds", "softmax", "inference", n, c, False),
            f"inference, {'decoder' if causal else 'encoder'}",
            ".--",
        )
    for name, style in (("neuron_astrocyte", ".-"), ("softmax", ".--")):
        draw(
            memory,
            cases.lengths("memory of a training step"),
            lambda n, name=name: (
                (cases.value("peak_bytes", name, "memory of a training step", n, False, True) or 0) / 2**20
            ),
            f"{name}, training step of the encoder",
            style,
        )
        draw(
            decoding,
            cases.lengths("decoding"),
            lambda n, name=name: (cases.value("seconds", name, "decoding", n, True) or 0) * 1e3,
            name,
            style,
        )
    operation.set(title="the operation", ylabel="times as fast as SDPA", yscale="log")
    model.set(title="whole models", ylabel="times as fast as the softmax arm", yscale="log")
    memory.set(title="peak memory, a batch of one", ylabel="MiB of tensors", yscale="log")
    decoding.set(title="decoding, one sequence", ylabel="ms per token", ylim=(0, None))
    for axis in axes.flat:
        axis.set(xlabel="tokens", xscale="log")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    for axis in (operation, model):
        axis.axhline(1, color="black", linewidth=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
