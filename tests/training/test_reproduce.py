# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The comparison: cells are trained once, survive a kill, and repeat from their command; rates are chosen as told; and
the report says what the records say."""

import json
import os
import shlex
import time

import datasets
import pytest
import reproduce
import torch
from comparison.arms import ARMS, LONG_ARMS, OFF, SWITCH_ARMS
from comparison.cells import Cell, fields_of
from comparison.presets import PRESETS, default_arms, default_seeds
from comparison.records import Records
from comparison.summaries import Summary, first_crossing, mean_along, seconds_of, significance, summaries, with_spread
from comparison.tasks import IMAGE, LANGUAGE, RECALL, TASKS
from reporting import comparisons, texts
from reporting.tables import command_today
from training import data, provenance
from training.short_convolution import add_short_convolution
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification
from variants import ROOT

from astroformer_hf import AstroformerConfig, AstroformerVisionConfig
from astroformer_hf.configuration_astroformer import BEFORE_IT_EXISTED, CHOICES


FEW = ("--tasks", "digits", "--arms", "softmax")


def command(folder, *more):
    return [
        *(str(ROOT / "scripts/reproduce.py"), "--preset", "smoke"),
        *("--results_dir", str(folder / "results"), "--output_dir", str(folder / "models"), *more),
    ]


def start(folder, scripts, *more):
    return scripts.start(*command(folder, *more))


def printed_by(process):
    return "".join(process.communicate())


def records_in(folder):
    """The records under a folder, by task and name."""
    paths = (folder / "results").rglob("*.json")
    return {f"{path.parent.name}/{path.name}": json.loads(path.read_text()) for path in paths}


# What is trained of the smoke preset each time: (tasks, arms) of a command. With --all, one command trains all of it.
WHOLE = (tuple(PRESETS["smoke"]), default_arms("smoke"))
TRAINED = [(("digits",), ("softmax", "full")), (("docstrings", "characters", "mqar4_1layer"), ("full",))]
if os.environ.get("ASTROFORMER_TESTS") == "all":
    TRAINED = [WHOLE]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, scripts):
    """The smoke preset, as far as it is trained: its folder and what the commands printed."""
    folder = tmp_path_factory.mktemp("whole")
    parts = [() if part == WHOLE else ("--tasks", *part[0], "--arms", *part[1]) for part in TRAINED]
    return folder, "".join(scripts.run(*command(folder, *part)).stdout for part in parts)


def table_of(output):
    """The lines of the table that the command ends with."""
    return [line for line in output.splitlines() if line.startswith("  ") and " seeds, " in line]


def test_smoke_preset_trains_every_cell(whole):
    folder, output = whole
    assert set(PRESETS["smoke"]) == {task for tasks, _ in TRAINED for task in tasks}
    numbers = []
    for tasks, arms in TRAINED:
        settings = [PRESETS["smoke"][task] for task in tasks]
        numbers.append(len(arms) * sum(len(task.rates) + len(task.seeds) - 1 for task in settings))
        assert f"{numbers[-1]} of {numbers[-1]} cells" in output
    found = records_in(folder)
    assert len(found) == sum(numbers)
    assert len(table_of(output)) == sum(len(arms) * len(tasks) for tasks, arms in TRAINED)
    wanted = {"task", "arm", "seed", "preset", "metrics", "learning_curve", "parameters", "seconds", "command"}
    wanted |= {"versions", "hardware", "learning_rate", "steps", "peak_memory_bytes"}
    for record in found.values():
        assert wanted <= set(record) and record["preset"] == "smoke"
        assert len(record["learning_curve"]["evaluation"]) == 4
        assert record["checkpoint"] == "last" and record["parameters"] > 0 and record["seconds"] > 0
        assert record["peak_memory_bytes"] is None or 50 * 2**20 < record["peak_memory_bytes"] < 2**36


def test_killed_half_way_and_started_again_it_gives_the_same_table(whole, tmp_path, scripts):
    process = start(tmp_path, scripts, *FEW)
    second = tmp_path / "models/smoke/digits/softmax_rate0.004_seed42/checkpoint-4/trainer_state.json"
    deadline = time.time() + 240
    while not second.exists() and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.01)
    process.kill()
    assert len(records_in(tmp_path)) == 1, "killed too late"
    first = next((tmp_path / "results").rglob("*.json"))
    written = first.stat().st_mtime_ns

    again = printed_by(start(tmp_path, scripts, *FEW))
    assert first.stat().st_mtime_ns == written  # a finished cell is not touched
    assert f"{first.stem.split('_')[0]}, rate 0.001, seed 42: training" not in again
    killed = json.loads((tmp_path / "results/smoke/digits/softmax_rate0.004_seed42.json").read_text())
    assert killed["resumed"]

    found, expected = records_in(tmp_path), records_in(whole[0])
    assert len(found) == 3
    for name, record in found.items():
        assert record["metrics"] == expected[name]["metrics"], name
        losses = [[entry["loss"] for entry in run["learning_curve"]["train"]] for run in (record, expected[name])]
        assert losses[0] == losses[1], name
    assert set(table_of(again)) <= set(table_of(whole[1]))


def test_a_cell_repeats_from_the_command_in_its_record(whole, tmp_path, scripts):
    for name in (
        "digits/full_rate0.004_seed42",
        "docstrings/full_rate0.001_seed42",
        "characters/full_rate0.001_seed42",
        "mqar4_1layer/full_rate0.004_seed42",
    ):
        record = json.loads((whole[0] / f"results/smoke/{name}.json").read_text())
        words = shlex.split(record["command"])
        words[words.index("--output_dir") + 1] = str(tmp_path / name)
        scripts.run(*words[1:], cwd=ROOT)
        again = json.loads((tmp_path / name / "results.json").read_text())
        assert again["metrics"] == record["metrics"], name
        if name.startswith("mqar"):
            assert (again["curve_samples"], again["eval_samples"], again["test_samples"]) == (20, 60, 60)
            assert again["chance"] == record["chance"] == 1 / 4 + 3 / 4 / 128
            assert again["test_metrics"] == record["test_metrics"] != record["metrics"]


def test_a_run_killed_after_its_last_step_is_only_measured(whole, tmp_path, scripts):
    name = "smoke/digits/full_rate0.001_seed42"
    record = json.loads((whole[0] / f"results/{name}.json").read_text())
    words = shlex.split(record["command"])
    words[words.index("--output_dir") + 1] = str(tmp_path)
    outputs = []
    for _ in range(2):
        outputs.append(scripts.run(*words[1:], cwd=ROOT).stdout)
        again = json.loads((tmp_path / "results.json").read_text())
        assert again["metrics"] == record["metrics"]
        steps = [entry["step"] for entry in again["learning_curve"]["evaluation"]]
        assert steps == [entry["step"] for entry in record["learning_curve"]["evaluation"]] and len(steps) == 4
        assert again["seconds"] > 0 and again["processor_seconds"] > 0
        (tmp_path / "results.json").unlink()
    assert "checkpoint-8" in outputs[1].splitlines()[0] and "'loss'" not in outputs[1]  # not one more step


def test_a_folder_with_another_run_is_refused(tmp_path, scripts):
    folder = tmp_path / "models/smoke/digits/softmax_rate0.001_seed42"
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({"arguments": ["--hidden_size", "7"], "data": []}))
    output = printed_by(process := start(tmp_path, scripts, *FEW, "--seeds", "42"))
    assert process.returncode == 1 and "holds a run with other arguments or data" in output
    assert "move the folder away" in output


def test_two_processes_share_the_cells(tmp_path, scripts):
    processes = [start(tmp_path, scripts, *FEW) for _ in range(2)]
    outputs = [printed_by(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    trained = [line for output in outputs for line in output.splitlines() if ": training" in line]
    assert len(trained) == len(set(trained)) == len(records_in(tmp_path)) == 3
    assert table_of(outputs[0]) == table_of(outputs[1])


def test_a_failing_cell_does_not_stop_the_others(tmp_path, scripts):
    bad = tmp_path / "bad"
    bad.mkdir()
    for split in ("train", "validation"):
        (bad / f"{split}.csv").write_text("words,label\na,0\n")
    more = ("--tasks", "docstrings", "digits", "--arms", "softmax", "--data", f"docstrings={bad}")
    output = printed_by(process := start(tmp_path, scripts, *more))
    assert process.returncode == 1
    assert "docstrings, softmax, rate 0.001, seed 42: failed, ValueError: the data has no column 'text'" in output
    assert "2 cells failed" in output and len(records_in(tmp_path)) == 3


def test_a_local_folder_with_a_test_split(tmp_path, scripts):
    folder = tmp_path / "novel"
    folder.mkdir()
    for split, lines in (("train", 200), ("validation", 50), ("test", 75)):
        words = (f"the {('calm', 'grey')[i % 2]} sea carries the {('ship', 'boat')[i % 3 % 2]}" for i in range(lines))
        (folder / f"{split}.txt").write_text("\n".join(words))
    more = (
        "--preset",
        "cpu",
        "--tasks",
        "wikitext2",
        "--arms",
        "full",
        "--seeds",
        "42",
        "--data",
        f"wikitext2={folder}",
    )
    output = printed_by(process := start(tmp_path, scripts, *more))
    assert process.returncode == 0, output
    records = records_in(tmp_path)
    assert len(records) == len(PRESETS["cpu"]["wikitext2"].rates)
    best = min(records.values(), key=lambda record: record["metrics"]["loss"])
    assert best["test_split"] == "test" and best["test_samples"] > best["eval_samples"]
    assert best["test_metrics"]["perplexity"] == pytest.approx(2.718281828 ** best["test_metrics"]["loss"])
    assert f"loss {best['test_metrics']['loss']:.3f}" in output  # the rate by validation, the table by test


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "smoke", "--tasks", "imdb"], "'imdb' is not in the preset 'smoke', which has docstrings"),
        (["--data", "imdb"], "--data: expected TASK=FOLDER with one of imdb, .* got 'imdb'"),
        (["--data", "mnist=."], "got 'mnist=.'"),
        (["--arms", "hard"], "invalid choice: 'hard'"),
        (["--preset", "cpu", "--arms", "best"], "'best' is not in the preset 'cpu', which has softmax, linear"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse_arguments(arguments)
    import re

    assert re.search(message, " ".join(capsys.readouterr().err.split()))


# --------------------------------------------------------------------------------------------------------------------
# Arms
# --------------------------------------------------------------------------------------------------------------------


def build(preset, task, arm, **smaller):
    """The untrained model of a cell, by the arguments that its script is given, without values for its weights."""
    script = __import__(TASKS[task].script)
    cell = Cell(preset, task, arm, 1e-3, 42)
    model_args, data_args, training_args = script.parse_arguments(
        [*cell.arguments, "--output_dir", "x", "--bf16", "false"]
    )
    assert training_args.learning_rate == 1e-3 and training_args.seed == 42
    assert not training_args.load_best_model_at_end
    if TASKS[task].script == IMAGE:
        config = AstroformerVisionConfig(**model_args.architecture, image_size=32, patch_size=4)
        with torch.device("meta"):
            return AutoModelForImageClassification.from_config(config)
    script_of = TASKS[task].script
    if script_of == RECALL:
        length = data_args.rules["length"]
    else:
        length = data_args.block_size if script_of == LANGUAGE else data_args.max_length
    config = AstroformerConfig(
        **model_args.architecture,
        vocab_size=100,
        max_position_embeddings=length,
        is_decoder=script_of in (LANGUAGE, RECALL),
    )
    auto_class = AutoModelForCausalLM if config.is_decoder else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto_class.from_config(config)
        add_short_convolution(model, model_args.short_convolution)
    return model


OLDER = [(preset, task) for preset in PRESETS if preset not in ("switches", "long") for task in PRESETS[preset]]


@pytest.mark.parametrize("preset, task", OLDER)
def test_arms_differ_in_the_astrocyte_alone(preset, task):
    sizes = {}
    for arm in ARMS:
        model = build(preset, task, arm)
        astrocyte = sum(p.numel() for name, p in model.named_parameters() if "astrocyte_code" in name)
        sizes[arm] = model.num_parameters() - astrocyte
        has_astrocyte = arm.startswith(("hebbian", "full"))
        assert (astrocyte > 0) == has_astrocyte, arm
        operation = model.base_model.layers[0].attention.operation
        if arm != "softmax":
            alpha = 1.0 if arm in ("linear", "random_features") or arm.startswith("hebbian") else None
            alpha = float(arm.split("_")[1]) if arm.startswith("presynaptic") else alpha
            assert operation["alpha"] == alpha if alpha is not None else operation["alpha"] < 1, arm
            assert operation["feedback"] == (arm != "full_without_feedback")
            assert operation["feature_map"] == ("favor" if arm == "random_features" else "exp")
    assert len(set(sizes.values())) == 1, sizes


@pytest.mark.parametrize("task", PRESETS["long"])
def test_arms_of_long_tasks_differ_in_what_they_say(task):
    setting, sizes = PRESETS["long"][task], {}
    arms = default_arms("long", task)
    assert {"softmax", "linear", "best"} <= set(arms)
    for arm in arms:
        model, fields = build("long", task, arm), fields_of(LONG_ARMS[arm], setting)
        added = ("astrocyte_code", "synaptic_decay", "taps", "memory")
        own = {part: sum(p.numel() for n, p in model.named_parameters() if part in n) for part in added}
        sizes[arm] = model.num_parameters() - sum(own.values())
        in_segments = arm.startswith("segments")
        own_length = setting.forms["segments"]["segment_length"] if in_segments else None
        assert model.config.segment_length == setting.options.get("segment_length", own_length)
        assert (own["memory"] > 0) == (in_segments and not arm.endswith("off")), arm
        assert (own["taps"] > 0) == arm.endswith("convolution"), arm
        assert (own["astrocyte_code"] > 0) == fields["use_astrocyte_hebbian"], arm
        if in_segments:
            assert fields["pooling"] == ("last" if "last" in arm else "mean")
            assert model.config.memory_backprop == {"segments_full": "full", "segments_1": 1}.get(arm, "replay")
            expected = {"segments_ltp": "ltp", "segments_streaming": "streaming"}.get(arm, "none")
            assert model.config.memory_retention == expected
    assert len(set(sizes.values())) == 1, sizes


def test_the_data_of_listops_are_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rules = {"min_length": 5, "max_length": 30, "num_train": 30, "num_validation": 10, "num_test": 10}
    monkeypatch.setitem(reproduce.listops_dataset.PRESETS, "short", rules)
    arguments = reproduce.data_arguments("listops_short")
    assert arguments == ["--dataset_dir", "outputs/data/listops_short", "--test_split", "test"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs/data/listops_short").glob("*.parquet")}
    assert len(written) == 3 and reproduce.data_arguments("listops_short") == arguments
    assert written == {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setitem(reproduce.listops_dataset.PRESETS, "short", {**rules, "max_length": 40})
    with pytest.raises(ValueError, match="other rules, max_length is 30 there and 40 here"):
        reproduce.data_arguments("listops_short")


@pytest.mark.parametrize("task", PRESETS["switches"])
def test_arms_of_the_switches_differ_in_what_they_say(task):
    setting, sizes = PRESETS["switches"][task], {}
    for arm in default_arms("switches", task):
        model, fields = build("switches", task, arm), fields_of(SWITCH_ARMS[arm], setting)
        added = ("astrocyte_code", "synaptic_decay", "taps", "covariance")
        own = {part: sum(p.numel() for n, p in model.named_parameters() if part in n) for part in added}
        sizes[arm] = model.num_parameters() - sum(own.values())
        assert (own["astrocyte_code"] > 0) == fields["use_astrocyte_hebbian"], arm
        assert (own["synaptic_decay"] > 0) == (fields["synaptic_decay"] != "none"), arm
        assert (own["taps"] > 0) == arm.endswith("convolution"), arm
        assert (own["covariance"] > 0) == (fields["hebbian_rule"] == "covariance") == arm.endswith("covariance"), arm
        attention = model.base_model.layers[0].attention
        assert attention.attention_type == fields["attention_type"], arm
        assert attention.operation["alpha"] == fields["presynaptic_alpha"], arm
        assert attention.operation["presynaptic_target"] == fields["presynaptic_target"], arm
        assert attention.operation["calcium_sources"] == fields["calcium_sources"], arm
        assert attention.operation["feedback"] == fields["use_calcium_feedback"], arm
    assert len(set(sizes.values())) == 1, sizes


def test_every_arm_of_the_switches_names_every_switch():
    # how the astrocyte's code and phi are chosen is said elsewhere; pooling and memory are no part of attention
    assert set(CHOICES) - {"astrocyte_code", "feature_map", "pooling", "memory_retention"} <= set(OFF)
    assert {"presynaptic_alpha", "use_astrocyte_hebbian", "use_calcium_feedback"} <= set(OFF)
    for task, setting in PRESETS["switches"].items():
        best = fields_of(SWITCH_ARMS["best"], setting)
        for name, arm in SWITCH_ARMS.items():
            cell, fields = Cell("switches", task, name, 1e-3, 42), fields_of(arm, setting)
            assert set(OFF) <= set(fields) and all(f"--{field}" in cell.arguments for field in OFF), name
            if fields["synaptic_decay"] != "none":
                spans = cell.arguments.index("--initial_memory_spans")
                expected = [f"{span:g}" for span in fields["initial_memory_spans"]]
                assert cell.arguments[spans + 1 : spans + 1 + len(expected)] == expected, name
            if fields["use_astrocyte_hebbian"]:
                assert {"--astrocyte_code", "--astrocyte_resting_activity"} <= set(cell.arguments), name
            options = [word for word in cell.arguments if word.startswith("--")]
            assert len(options) == len(set(options)), name
            if name.startswith("best_"):
                assert {key for key in best if fields[key] != best[key]}, name


# --------------------------------------------------------------------------------------------------------------------
# Choosing, summing up, and reporting, on made-up records
# --------------------------------------------------------------------------------------------------------------------


def write_record(folder, cell, accuracy, **changes):
    record = {
        **{"task": cell.task, "arm": cell.arm, "seed": cell.seed, "preset": cell.preset, "learning_rate": cell.rate},
        **{
            "pipeline_tag": "image-classification",
            "attention_type": "softmax" if cell.arm == "softmax" else "neuron_astrocyte",
        },
        "arguments": cell.arguments,
        "dataset": "digits",
        "split": "validation",
        "metrics": {"accuracy": accuracy, "loss": 1.0},
        "learning_curve": {
            "train": [],
            "evaluation": [
                {"step": step, "eval_accuracy": accuracy * share, "eval_loss": 1.0}
                for step, share in ((10, 0.25), (20, 0.75), (30, 1.0))
            ],
        },
        **{"parameters": 1000, "steps": 30, "train_samples": 100, "eval_samples": 50, "seconds": 2.0},
        "peak_memory_bytes": 2**30,
        "command": f"python scripts/train_image_classification.py --seed {cell.seed}",
        "versions": {"torch": "9.9", "transformers": "8.8"},
        "hardware": {"cpu": "abacus", "cores": 1, "threads": 1, "gpus": []},
        "config": {
            "id2label": {str(i): str(i) for i in range(10)},
            **{"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
            **BEFORE_IT_EXISTED,
        },
        **changes,
    }
    path = folder / f"{cell.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


@pytest.fixture
def made_up(tmp_path):
    """Records in which the second rate is the better one, of two arms and two seeds."""
    for arm, accuracy in (("softmax", 0.8), ("full", 0.9)):
        write_record(tmp_path, Cell("smoke", "digits", arm, 1e-3, 42), accuracy - 0.1)
        write_record(tmp_path, Cell("smoke", "digits", arm, 4e-3, 42), accuracy)
        write_record(tmp_path, Cell("smoke", "digits", arm, 4e-3, 43), accuracy + 0.02)
    return tmp_path


def test_a_record_older_than_the_switches_had_them_off(tmp_path):
    cell = Cell("smoke", "digits", "full", 1e-3, 42)
    absent = [f"--{name}" for name in (*BEFORE_IT_EXISTED, "astrocyte_scale")]
    words = iter(cell.arguments)
    older = [word for word in words if word not in absent or next(words) is None]
    assert len(older) == len(cell.arguments) - 2 * len(absent)
    write_record(tmp_path, cell, 0.5, arguments=older)
    assert Records(tmp_path, "smoke").get(cell)["arguments"] == older
    write_record(tmp_path, cell, 0.5, arguments=[*older, "--synaptic_decay", "learned"])
    with pytest.raises(ValueError, match="Move the file away"):
        Records(tmp_path, "smoke").get(cell)


def test_commands_of_older_releases_are_repeated_with_their_defaults():
    config = {"feature_map": "elu", "astrocyte_resting_activity": 3.0}
    command = "python scripts/train_text_classification.py --astrocyte_resting_activity 3 --seed 1"
    assert command_today(command, {**config, **BEFORE_IT_EXISTED}) == command
    assert command_today(command, config) == (
        f"{command} --astrocyte_scale 1.0 --synaptic_decay none --presynaptic_target response "
        "--calcium_sources neurons --hebbian_rule correlation --feature_map elu"
    )


def test_the_rate_is_chosen_before_other_seeds_are_trained(tmp_path):
    arms, sweep = ["softmax"], [Cell("smoke", "digits", "softmax", rate, 42) for rate in (1e-3, 4e-3)]
    assert Records(tmp_path, "smoke").missing(["digits"], arms) == sweep
    write_record(tmp_path, sweep[0], 0.7)
    assert Records(tmp_path, "smoke").missing(["digits"], arms) == sweep[1:]
    write_record(tmp_path, sweep[1], 0.6)
    records = Records(tmp_path, "smoke")
    assert records.chosen_rate("digits", "softmax") == 1e-3
    assert records.missing(["digits"], arms) == [Cell("smoke", "digits", "softmax", 1e-3, 43)]
    assert records.count(["digits"], arms) == (3, 2)
    assert records.missing(["digits"], arms, [42]) == [] and records.count(["digits"], arms, [42]) == (2, 2)


def test_the_lowest_loss_is_chosen_for_language(tmp_path):
    for rate, loss in ((1e-3, 2.0), (4e-3, 3.0)):
        write_record(tmp_path, Cell("smoke", "characters", "softmax", rate, 42), 0.5, metrics={"loss": loss})
    assert Records(tmp_path, "smoke").chosen_rate("characters", "softmax") == 1e-3


def test_a_run_that_diverged_is_not_chosen(tmp_path):
    for rate, loss in ((1e-3, float("nan")), (4e-3, 3.0)):
        write_record(tmp_path, Cell("smoke", "characters", "softmax", rate, 42), 0.5, metrics={"loss": loss})
    assert Records(tmp_path, "smoke").chosen_rate("characters", "softmax") == 4e-3


def write_sweep(folder, arm, losses, task="shakespeare"):
    """Records of an arm's first seed, by their learning rates."""
    for rate, loss in losses.items():
        cell = Cell("switches", task, arm, rate, 42)
        write_record(folder, cell, 0.5, metrics={"loss": loss, "accuracy": 0.5})
    return Records(folder, "switches")


@pytest.mark.parametrize(
    "losses, rates, chosen",
    [
        ({1.5e-3: 2.0, 3e-3: 1.0, 6e-3: 2.0}, [1.5e-3, 3e-3, 6e-3], 3e-3),
        ({1.5e-3: 3.0, 3e-3: 2.0, 6e-3: 1.0}, [1.5e-3, 3e-3, 6e-3, 1.2e-2], None),
        ({1.5e-3: 3.0, 3e-3: 2.0, 6e-3: 1.0, 1.2e-2: 1.5}, [1.5e-3, 3e-3, 6e-3, 1.2e-2], 6e-3),
        ({1.5e-3: 1.0, 3e-3: 2.0, 6e-3: 3.0}, [7.5e-4, 1.5e-3, 3e-3, 6e-3], None),
        ({1.5e-3: 3.0, 3e-3: 2.0, 6e-3: 1.0, 1.2e-2: float("nan")}, [1.5e-3, 3e-3, 6e-3, 1.2e-2], 6e-3),
        # all that the preset has diverge: smaller ones are tried
        (dict.fromkeys((1.5e-3, 3e-3, 6e-3), float("nan")), [7.5e-4, 1.5e-3, 3e-3, 6e-3], None),
        # at most three on a side
        (
            {1.5e-3 * 2**i: 9.0 - i for i in range(6)},
            [1.5e-3 * 2**i for i in range(6)],
            4.8e-2,
        ),
    ],
)
def test_rates_widen_while_the_best_is_at_an_edge(losses, rates, chosen, tmp_path):
    records = write_sweep(tmp_path, "softmax", losses)
    assert [cell.rate for cell in records.sweep("shakespeare", "softmax")] == pytest.approx(rates)
    assert records.chosen_rate("shakespeare", "softmax") == (None if chosen is None else pytest.approx(chosen))
    missing = records.missing(["shakespeare"], ["softmax"])
    if chosen is None:
        assert [cell.rate for cell in missing] == pytest.approx([rate for rate in rates if rate not in losses])
    else:
        assert [(cell.rate, cell.seed) for cell in missing] == [(pytest.approx(chosen), seed) for seed in (43, 44)]


def test_equal_accuracies_are_told_apart_by_their_loss(tmp_path):
    for rate, loss in ((2e-3, 0.5), (4e-3, 0.1), (8e-3, 0.3)):
        cell = Cell("switches", "mqar4_1layer", "softmax", rate, 42)
        write_record(tmp_path, cell, 1.0, metrics={"accuracy": 1.0, "loss": loss})
    assert Records(tmp_path, "switches").chosen_rate("mqar4_1layer", "softmax") == 4e-3


def test_an_arm_without_a_sweep_takes_the_rate_of_another(tmp_path):
    records, tasks, arms = Records(tmp_path, "switches"), ["shakespeare"], ["linear_decay"]
    sweep = [Cell("switches", "shakespeare", "linear", rate, 42) for rate in (1.5e-3, 3e-3, 6e-3)]
    assert records.missing(tasks, arms) == records.missing(tasks, ["linear", *arms]) == sweep
    assert records.count(tasks, arms) == (5, 0)
    records = write_sweep(tmp_path, "linear", {1.5e-3: 2.0, 3e-3: 1.0, 6e-3: 2.0})
    assert records.missing(tasks, arms) == [
        Cell("switches", "shakespeare", "linear_decay", 3e-3, seed) for seed in (42, 43)
    ]
    assert records.count(tasks, arms) == (5, 3) and records.count(tasks, ["linear", *arms]) == (7, 3)
    # and only where they are wanted
    assert records.missing(["imdb"], arms) == [] and "linear_decay" not in default_arms("switches", "imdb")
    assert default_seeds("switches", "shakespeare", "linear") == (42, 43, 44)
    for arm in SWITCH_ARMS.values():
        assert arm.rate_of is None or SWITCH_ARMS[arm.rate_of].rate_of is None


def test_records_of_different_data_are_not_averaged(made_up):
    write_record(made_up, Cell("smoke", "digits", "full", 4e-3, 43), 0.9, dataset="letters")
    with pytest.raises(ValueError, match="differ in dataset: .*digits.*letters"):
        summaries(Records(made_up, "smoke"), "digits", ["full"])


def test_local_folders_say_which_splits_they_have(tmp_path):
    (tmp_path / "train.csv").write_text("")
    (tmp_path / "test.csv").write_text("")
    held_out = ["--validation_share", "0.1", "--test_split", "test"]
    assert reproduce.data_arguments("imdb", str(tmp_path)) == ["--dataset_dir", str(tmp_path), *held_out]
    (tmp_path / "validation.csv").write_text("")
    assert reproduce.data_arguments("imdb", str(tmp_path)) == ["--dataset_dir", str(tmp_path), "--test_split", "test"]
    assert "stanfordnlp/imdb" in reproduce.data_arguments("imdb")


def test_a_record_of_other_arguments_is_refused(made_up):
    cell = Cell("smoke", "digits", "full", 4e-3, 43)
    write_record(made_up, cell, 0.9, arguments=["--hidden_size", "7"])
    with pytest.raises(ValueError, match="full_rate0.004_seed43.json was made with --hidden_size 7"):
        Records(made_up, "smoke").get(cell)


def test_summary(made_up):
    found = summaries(Records(made_up, "smoke"), "digits", ["softmax", "full", "linear"])
    assert list(found) == ["softmax", "full"]  # of linear there is nothing
    full = found["full"]
    assert full.mean == pytest.approx(0.91) and full.spread == pytest.approx(0.02 / 2**0.5)
    assert with_spread(full.task, full.mean, full.spread) == "91.0% ± 1.4"
    # the curves of 0.9 and 0.92 go through 1/4, 3/4 and all of that at 10, 20 and 30 steps
    assert full.steps_to(0.45) == pytest.approx([15.0, 10 + 10 * (0.45 - 0.23) / 0.46])
    assert full.steps_to(0.91) == [None, pytest.approx(20 + 10 * (0.91 - 0.69) / 0.23)]


@pytest.mark.parametrize(
    "goal, sign, step", [(0.1, 1, 5.0), (0.5, 1, 15.0), (0.8, 1, 30.0), (0.9, 1, None), (0.1, -1, None), (0.3, -1, 5.0)]
)
def test_first_crossing(goal, sign, step):
    assert first_crossing([5, 10, 20, 30], [0.2, 0.4, 0.6, 0.8], goal, sign) == (
        None if step is None else pytest.approx(step)
    )


def test_speed_of_learning(made_up):
    full = summaries(Records(made_up, "smoke"), "digits", ["full"])["full"]
    # 2 seconds for 30 steps
    assert full.seconds_to(0.45) == pytest.approx([step * 2 / 30 for step in full.steps_to(0.45)])
    assert full.seconds_to(0.91)[0] is None
    assert seconds_of({"seconds": 2.0}) == 2.0 and seconds_of({"seconds": 2.0, "processor_seconds": 1.5}) == 1.5
    # trapezoids between 1/4, 3/4 and all of 0.9 and 0.92
    assert full.areas() == pytest.approx([0.9 * (0.5 + 0.875) / 2, 0.92 * (0.5 + 0.875) / 2])
    assert mean_along([5], [0.3]) == 0.3 and mean_along([0, 10, 40], [0.0, 1.0, 1.0]) == pytest.approx(35 / 40)


def of_values(*values):
    return Summary(TASKS["digits"], [{"metrics": {"accuracy": value}, "arm": "x"} for value in values])


@pytest.mark.parametrize(
    "first, second, words",
    [
        ((0.80, 0.82), (0.81, 0.90), "within seeds (n = 2)"),
        ((0.80, 0.82), (0.83, 0.90, 0.95), "apart (n = 2)"),
        ((0.80,), (0.80, 0.90, 0.95), "within seeds (n = 1)"),
        # t = -4.9 with 4 degrees of freedom, from a table
        ((1.0, 2.0, 3.0), (5.0, 6.0, 7.0), "p = 0.008"),
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), "p = 1.00"),
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), "p < 0.001"),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "p = 1"),
    ],
)
def test_significance(first, second, words):
    assert significance(of_values(*first), of_values(*second)) == words
    assert significance(of_values(*second), of_values(*first)) == words


def test_test_split_is_reported_where_there_is_one(made_up):
    for seed, accuracy in ((42, 0.5), (43, 0.6)):
        cell = Cell("smoke", "digits", "full", 4e-3, seed)
        more = {"test_metrics": {"accuracy": accuracy}, "test_split": "test", "test_samples": 70}
        write_record(made_up, cell, 0.9, **more)
    found = summaries(Records(made_up, "smoke"), "digits", ["full"])["full"]
    assert found.mean == pytest.approx(0.55)


def test_report_says_what_the_records_say(made_up, tmp_path):
    known = comparisons.Comparison(made_up, "smoke")
    text = "\n".join(comparisons.results_lines(known))
    goal = 0.1 + 0.8 * (0.81 - 0.1)
    assert f"steps to {goal:.1%}" in text and "81.0% ± 1.4" in text and "91.0% ± 1.4" in text
    assert "| `full` | 80.0% | **90.0%** |" in text and "at the edge" in text
    assert f"| +10.0 ± {100 * 0.02 / 2**0.5:.1f} |" in text  # better than softmax, two seeds each
    assert "abacus, 1 thread; torch 9.9" in text and "--seed 42" in text
    overview = "\n".join(comparisons.overview_lines(known))
    assert "| softmax attention | 81.0% ± 1.4 |" in overview and "2 seeds" in overview
    headlines = "\n".join(comparisons.headline_lines(known))
    assert "| softmax attention | 81.0% ± 1.4 |" in headlines and "| linear attention |  |" in headlines
    assert "best arm of each task | 91.0% ± 1.4 (`full`) |" in headlines and "over 2 seeds" in headlines
    comparisons.write_figures(known, tmp_path / "figures")
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["smoke_ablation.png", "smoke_alpha.png", "smoke_learning.png"]


def test_report_on_the_switches(tmp_path):
    losses = {"softmax": {1.5e-3: 2.0, 3e-3: 1.7, 6e-3: 1.8}, "best": {1.5e-3: 1.9, 3e-3: 1.8, 6e-3: 1.6, 1.2e-2: 1.7}}
    points = ((50, 3.0), (1000, 2.0))
    for arm, seeds in (("softmax", (42, 43, 44)), ("best", (42, 43, 44)), ("softmax_convolution", (42, 43))):
        swept = losses.get(arm, {3e-3: 1.65})
        for rate, loss in swept.items():
            for seed in seeds if loss == min(swept.values()) else (42,):
                value = loss + (seed - 43) / 100
                evaluation = [{"step": step, "eval_loss": loss} for step, loss in (*points, (2000, value))]
                write_record(
                    tmp_path,
                    Cell("switches", "shakespeare", arm, rate, seed),
                    0.5,
                    metrics={"loss": value},
                    steps=2000,
                    curve_samples=200,
                    eval_samples=1742,
                    learning_curve={"train": [], "evaluation": evaluation},
                    config={"vocab_size": 69, "num_hidden_layers": 4, "hidden_size": 128, **BEFORE_IT_EXISTED},
                )
    known = comparisons.Comparison(tmp_path, "switches")
    assert list(known.tasks) == ["shakespeare"]
    assert list(known.tasks["shakespeare"]) == ["softmax", "best", "softmax_convolution"]
    text = "\n".join(comparisons.results_lines(known))
    assert "| arm | 0.0015 | 0.003 | 0.006 | 0.012 |" in text and "| `softmax` | 1.990 | **1.690** | 1.790 |  |" in text
    assert (
        "at the edge of the range" not in text
        and "take a rate as it is: `softmax_convolution` that of `softmax`" in text
    )
    assert "by 3 evaluations on 200 validation examples along the way" in text
    better = next(line for line in text.splitlines() if line.startswith("| `best` |"))
    assert "code activity, α = 0.5" in better and "| p < 0.001 |  | 3 |" in better
    assert "| within seeds (n = 2) |" not in text and "| apart (n = 2) | apart (n = 2) | 2 |" in text
    assert "3 of 3" in text and "neuron-astrocyte, best form | 1.600 ± 0.010 |" in "\n".join(
        comparisons.headline_lines(known)
    )
    comparisons.write_figures(known, tmp_path / "figures")


def test_texts_are_rewritten_between_their_markers(tmp_path):
    path = tmp_path / "text.md"
    path.write_text(f"before\n{texts.BEGIN}\nold\n{texts.END}\nafter\n")
    assert texts.between_markers(path, ["new", ""]) == f"before\n{texts.BEGIN}\nnew\n{texts.END}\nafter\n"


def test_committed_records_are_of_the_presets_as_they_are():
    for preset in PRESETS:
        records = Records(ROOT / "results", preset)
        for path in (ROOT / "results" / preset).rglob("*.json"):
            record = json.loads(path.read_text())
            cell = Cell(preset, record["task"], record["arm"], record["learning_rate"], record["seed"])
            assert records.path(cell) == path and records.get(cell) == record


# --------------------------------------------------------------------------------------------------------------------
# What the training scripts gained
# --------------------------------------------------------------------------------------------------------------------


class Arguments:
    dataset_name = dataset_config_name = max_train_samples = max_eval_samples = test_split = validation_share = None
    train_split, validation_split = "train", "validation"

    def __init__(self, folder, **changes):
        self.dataset_dir = str(folder)
        vars(self).update(changes)


def test_some_are_the_same_for_every_seed():
    rows = datasets.Dataset.from_dict({"x": list(range(20))})
    some = data.some_of(rows, 5)
    assert len(set(some["x"])) == 5 and list(some["x"]) == sorted(some["x"]) == list(data.some_of(rows, 5)["x"])
    assert data.some_of(rows, None) is rows is data.some_of(rows, 20)
    assert list(data.some_of(range(20), 5)) == list(some["x"])


def test_validation_is_held_out_of_train_where_there_is_none(tmp_path):
    for split, number in (("train", 50), ("test", 7)):
        (tmp_path / f"{split}.csv").write_text(
            "text,label\n" + "".join(f"{split} {i},{i % 2}\n" for i in range(number))
        )
    found = data.load_examples(Arguments(tmp_path, validation_share=0.2, test_split="test"), 0, ("text",))
    assert {name: len(split) for name, split in found.items()} == {"train": 40, "held out": 10, "test": 7}
    assert not set(found["train"]["text"]) & set(found["held out"]["text"])
    other_seed = data.load_examples(Arguments(tmp_path, validation_share=0.2), 1, ("text",))
    assert set(other_seed["held out"]["text"]) == set(found["held out"]["text"])
    without = data.load_examples(Arguments(tmp_path), 0, ("text",))
    assert {name: len(split) for name, split in without.items()} == {"train": 50, "test": 7}
    with pytest.raises(ValueError, match="--validation_share must be between 0 and 1, got 1.5"):
        data.load_examples(Arguments(tmp_path, validation_share=1.5), 0, ("text",))
    with pytest.raises(ValueError, match="must differ, got train, test, test; .* --validation_share holds out"):
        data.load_examples(Arguments(tmp_path, test_split="test"), 0, ("text",))
    with pytest.raises(ValueError, match="no split 'exam'"):
        data.load_examples(Arguments(tmp_path, test_split="exam"), 0, ("text",))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not count anew")
def test_memory_is_counted_anew(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    provenance.forget_peak_memory()
    before = provenance.peak_memory_bytes()
    held = torch.ones(2**26)  # 256 MiB
    after = provenance.peak_memory_bytes()
    assert after - before > 200 * 2**20 and len(held)
    del held
    provenance.forget_peak_memory()
    assert provenance.peak_memory_bytes() < after - 100 * 2**20
