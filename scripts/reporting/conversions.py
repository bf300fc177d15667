# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What each part of the new attention is worth in a converted model: the records of scripts/compare_conversions.py."""

import math
from pathlib import Path
from statistics import mean, stdev

from conversion.card import FINAL_STAGES
from training.files import read_json

from reporting.tables import origin, table


NAMES = {
    "window_and_sinks": "window and sinks",
    "window_and_sinks_half": "window and sinks, the easier half of the layers",
    "window_and_sinks_astrocyte": "window, sinks and astrocyte code",
    "linear": "synapses alone",
    "linear_astrocyte": "synapses alone, with the astrocyte code",
    "window": "window, no sinks",
    "sinks": "sinks, no window",
    "fixed_map": "window and sinks, a fixed feature map",
}


CONTESTANTS = {
    "softmax": "softmax attention, as it is",
    "neuron_astrocyte": '`attn_implementation="neuron_astrocyte"`',
    "linear": '`attn_implementation="linear"`',
    **{f"converted, {arm}": f"converted: {name}" for arm, name in NAMES.items()},
}


def load_conversions(folder):
    """The records by the name of the model, in the order of `NAMES`."""
    found = {}
    for path in Path(folder).glob("*/*.json"):
        found.setdefault(path.parent.name, []).append(read_json(path))
    order = list(NAMES)
    return {name: sorted(found[name], key=lambda record: order.index(record["arm"])) for name in sorted(found)}


def final(record):
    """The quality of the model that came out."""
    return next(record["quality"][stage] for stage in FINAL_STAGES if stage in record["quality"])


def conversions_lines(folder):
    """Tables of the arms, as Markdown lines, one of each model; none where there are no records."""
    lines = []
    for name, records in load_conversions(folder).items():
        model, options = Path(records[0]["model"]).name, records[0]["options"]
        is_causal = "perplexity" in final(records[0])
        lines += [
            f"`{model}`, {options['num_transfer']} examples of at most {options['max_length']} tokens for the transfer "
            f"and {options['num_distillation']} for the distillation, measured on {options['num_validation']} held-out "
            f"ones of `{Path(records[0]['data']).name}`:",
            "",
            *(perplexities(records) if is_causal else nearness(records)),
            f"{origin(records[0])}. One seed. To repeat: `{records[0]['command']}`",
            "",
            *finetuned_lines(Path(folder) / name / "finetuned"),
        ]
    return lines


def finetuned_lines(folder):
    """The table of what was trained for the labels of the data; none where there are no records."""
    found = {record["contestant"]: record for record in map(read_json, sorted(folder.glob("*.json")))}
    if "softmax" not in found or len(found) == 1:
        return []
    softmax = found["softmax"]
    noise = standard_error(softmax["metrics"]["accuracy"], softmax["eval_samples"])
    rows = []
    for contestant in sorted(found, key=lambda name: (name != "softmax", name)):
        accuracies = [100 * record["metrics"]["accuracy"] for record in (found[contestant], softmax)]
        rows.append([CONTESTANTS.get(contestant, contestant), f"{accuracies[0]:.1f}"])
        rows[-1].append("" if contestant == "softmax" else f"{accuracies[0] - accuracies[1]:+.1f}")
    return [
        f"Fine-tuned for {softmax['steps']} steps on `{Path(softmax['dataset']).name}`, accuracy on "
        f"{softmax['eval_samples']:,} texts, in percent:",
        "",
        *table(["attention", "accuracy", "against softmax, points"], rows),
        f"One seed; the standard error of a difference is up to {noise:.1f} points. `{softmax['command']}`",
        "",
    ]


def standard_error(accuracy, number):
    """Of the difference of two such accuracies, each on so many texts, in points; less if the texts are shared."""
    return 100 * math.sqrt(2 * accuracy * (1 - accuracy) / number)


def perplexities(records):
    """The table of a causal model: perplexities, and what they are of the original's."""
    rows = []
    for record in records:
        quality = record["quality"]
        original = quality["original"]["perplexity"]
        silenced = quality.get("synapses silenced", {}).get("perplexity")
        rows.append(
            [
                NAMES[record["arm"]],
                str(len(record["attention_swap"]["layers"])),
                *(
                    f"{quality[stage]['perplexity']:.1f}" if stage in quality else ""
                    for stage in ("swapped", "transferred", "distilled")
                ),
                f"{final(record)['perplexity'] / original:.3f}",
                "" if silenced is None else f"{silenced / original:.3f}",
                minutes(record),
            ]
        )
    tokens, original = records[0]["quality"]["original"]["tokens"], records[0]["quality"]["original"]["perplexity"]
    header = [
        "arm",
        "layers",
        "swapped",
        "transferred",
        "distilled",
        "over the original's",
        "silenced, over it",
        "minutes",
    ]
    return [*table(header, rows), f"Perplexity on {tokens:,} tokens; the original's is {original:.1f}."]


def nearness(records):
    """The table of another model: how near its embeddings are to the original's."""
    rows = []
    for record in records:
        quality, accuracy = record["quality"], record.get("probe")
        silenced = quality.get("synapses silenced", {}).get("cosine")
        rows.append(
            [
                NAMES[record["arm"]],
                *(f"{quality[s]['cosine']:.3f}" if s in quality else "" for s in ("swapped", "transferred")),
                *(f"{final(record)[name]:.4f}" for name in ("cosine", "cosine_fifth_percentile", "spearman")),
                "" if silenced is None else f"{silenced:.3f}",
                "" if accuracy is None else difference_of_accuracies(accuracy),
                minutes(record),
            ]
        )
    header = ["arm", "cosine, swapped", "transferred", "distilled", "its fifth percentile", "Spearman", "silenced"]
    lines = table([*header, "probe", "minutes"], rows)
    known = [record["probe"]["original"] for record in records if record.get("probe")]
    if known:
        lines.append(
            "Probe: how much more accurate a linear probe of the embeddings is than one of the original's, in points, "
            f"over {len(known[0])} draws of examples; that of the original reaches {100 * mean(known[0]):.1f} %."
        )
    return lines


def minutes(record):
    """How long the conversion took, with its measurements; of an interrupted one that is not known."""
    return "" if record.get("resumed") else f"{record['seconds'] / 60:.0f}"


def difference_of_accuracies(accuracy):
    """How many points the converted model is better, with the standard deviation over the draws."""
    pairs = zip(accuracy["converted"], accuracy["original"], strict=True)
    better = [100 * (own - original) for own, original in pairs]
    return f"{mean(better):+.1f} ± {stdev(better):.1f}"
