# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The tables of docs/findings.md, from records that are made up."""

import types

from comparison.presets import arms_of
from comparison.summaries import Summary
from comparison.tasks import TASKS
from reporting import findings
from reporting.comparisons import Comparison, guesses


def record(arm, loss, seed, fast=False):
    """A run of 100 steps whose loss falls in a line from chance, or twice as fast."""
    start = 4.0
    half = loss if fast else (start + loss) / 2
    curve = [{"step": step, "eval_loss": x} for step, x in ((1, start), (50, half), (100, loss))]
    return {
        "arm": arm,
        "dataset": "d",
        "split": "validation",
        "steps": 100,
        "seed": seed,
        "seconds": 1.0,
        "metrics": {"loss": loss},
        "learning_curve": {"evaluation": curve},
        "config": {"vocab_size": 55},
    }


def known(**arms):
    """A comparison of three seeds of each arm, by its loss and whether it learns fast."""
    summaries = {
        arm: Summary(TASKS["shakespeare"], [record(arm, loss + 0.01 * seed, seed, fast) for seed in range(3)])
        for arm, (loss, fast) in arms.items()
    }
    comparison = types.SimpleNamespace(tasks={"shakespeare": summaries})
    comparison.goals = lambda task: Comparison.goals(comparison, task)
    return comparison


def test_tables_say_who_is_better_and_faster():
    lines = findings.findings_lines(
        known(softmax=(2.0, False), best=(1.5, True), linear=(2.2, False), best_without_decay=(1.5, False))
    )
    text = "\n".join(lines)
    assert "| softmax attention | +0.500 ± 0.008, p < 0.001 |" in text
    assert "| linear attention | +0.700 ± 0.008, p < 0.001 |" in text
    nothing = next(line for line in lines if line.startswith("| leaky synapses"))
    assert "0.000 ± 0.008, p = 1" in nothing
    assert "| the paper's form |  |" in text  # not trained
    faster = next(line for line in lines if line.startswith("| the best form |"))
    assert 0.3 < float(faster.split("|")[2]) < 0.6
    never = next(line for line in lines if line.startswith("| linear attention |") and "not reached" in line)
    assert never


def test_effects_alone_have_the_arms_and_tasks_that_were_trained():
    assert not any("by each effect alone" in line for line in findings.findings_lines(known(best=(1.5, False))))
    found = known(
        best=(1.5, False), linear=(2.2, False), linear_covariance=(2.0, False), **{"synapse_0.5": (2.1, False)}
    )
    text = "\n".join(findings.findings_lines(found))
    assert "| linear attention with | Tiny Shakespeare |" in text
    assert "| α = 0.5 at the synapse (`presynaptic_target`) | +0.100 ± 0.008, p < 0.001 |" in text
    assert "α = 0.25" not in text
    assert "| linear attention | +0.200 ± 0.008, p < 0.001 |" in text


def test_recall_is_shown_beside_the_bytes_of_the_state():
    def summary(task, accuracy, **fields):
        shared = {"dataset": "d", "split": "validation", "steps": 100, "vocab_size": 256, **fields}
        return Summary(TASKS[task], [{**shared, "metrics": {"accuracy": accuracy + 0.01 * i}} for i in (-1, 0, 1)])

    tasks = {
        "mqar8_1layer": {
            "softmax": summary("mqar8_1layer", 0.14, num_pairs=8, state_bytes=24576),
            "linear_convolution": summary("mqar8_1layer", 0.43, num_pairs=8, state_bytes=None),
        },
        "mqar16_1layer": {"softmax": summary("mqar16_1layer", 0.07, num_pairs=16, state_bytes=49152)},
        "bytes1024": {"softmax": summary("bytes1024", 0.8)},
    }
    known = types.SimpleNamespace(tasks=tasks, arms=arms_of("long"))
    text = "\n".join(findings.recall_lines(known))
    assert "| attention | 8 pairs | state, bytes | 16 pairs | state, bytes |" in text
    assert "| softmax attention | 14.0% ± 1.0 | 24,576 | 7.0% ± 1.0 | 49,152 |" in text
    assert "| linear, convolution of 4 | 43.0% ± 1.0 |  |  |  |" in text
    assert not findings.recall_lines(types.SimpleNamespace(tasks={}, arms={}))


def test_classifiers_are_shown_beside_the_commonest_label():
    def summary(accuracy, **config):
        records = []
        for i in (-1, 0, 1):
            curve = [{"step": step, "eval_accuracy": accuracy + 0.01 * i} for step in (1, 100)]
            records.append(
                {
                    **{"arm": "a", "dataset": "d", "split": "validation", "steps": 100, "config": config},
                    **{"majority": 0.5, "eval_samples": 2500, "seconds": 7.0 + i},
                    **{"metrics": {"accuracy": accuracy + 0.01 * i}, "learning_curve": {"evaluation": curve}},
                    **{"hardware": {"cpu": "c", "threads": 1, "gpus": []}, "versions": {"torch": 2, "transformers": 5}},
                }
            )
        return Summary(TASKS["bytes1024"], records)

    arms = {
        "softmax": summary(0.519),
        "segments": summary(0.60, segment_length=128),
        "segments_off": summary(0.55, segment_length=128),
    }
    known = types.SimpleNamespace(tasks={"bytes1024": arms, "mqar8_1layer": {}}, arms=arms_of("long"))
    lines = findings.classification_lines(known)
    assert [line for line in lines if line.startswith("### ")] == ["### IMDB in 1,024 bytes"]
    rows = {line.split(" | ")[0]: line for line in lines if line.startswith("| ")}
    # two sampling errors of 2,500 examples are 2 points
    softmax = "51.9% ± 1.0 | not learnt | -8.1 ± 0.8, p < 0.001 |  | 51.9% ± 1.0 | 7 |"
    assert rows["| softmax attention"] == f"| softmax attention | {softmax}"
    off = "55.0% ± 1.0 | +5.0 | -5.0 ± 0.8, p = 0.004 | +3.1 ± 0.8, p = 0.019 | 55.0% ± 1.0 | 7 |"
    assert rows["| best form in segments, no memory"].endswith(f" | {off}")
    said = (
        "100 steps, 3 seeds, 2,500 examples of the validation split; segments of 128 tokens. Always the commonest "
        "label, on the validation split: 50.0%"
    )
    assert any(line.startswith(said) for line in lines)
    assert not findings.classification_lines(types.SimpleNamespace(tasks={"mqar8_1layer": {}}, arms={}))
    pixels = summary(0.3, id2label=dict(enumerate("abcde")))
    for record in pixels.records:
        del record["majority"]
    known = types.SimpleNamespace(tasks={"pixels": {"softmax": pixels}}, arms=arms_of("long"))
    assert any("| +10.0 |" in line for line in findings.classification_lines(known))


def test_a_guess_is_of_labels_or_of_values():
    text = guesses({"majority": 0.507, "split": "validation"})
    assert text == "the commonest label of the training examples, on the validation split, 50.7%"
    text = guesses({"majority": 0.02, "num_pairs": 8, "vocab_size": 256})
    assert text.startswith("any value of the example 13.2%, its commonest value 15.0%, the commonest value of the tr")


def test_where_softmax_attention_learns_nothing_speed_is_not_compared():
    summary = types.SimpleNamespace(task=TASKS["mqar8_1layer"], records=[{"num_pairs": 8, "vocab_size": 256}])
    for mean, expected in ((0.14, False), (0.30, False), (0.40, True), (0.99, True)):
        summary.mean = mean
        assert findings.learns(summary) == expected
