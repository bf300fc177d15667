#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Trains the paper's comparison: tasks x arms x seeds, each arm at the learning rate that suits it best.

    python scripts/reproduce.py --preset smoke --results_dir outputs/smoke      minutes, on what comes with Python
    python scripts/reproduce.py --results_dir outputs/mine                      a day on two cores, data from the Hub
    python scripts/reproduce.py --preset cpu --results_dir outputs/mine         hours: the paper's own effects alone
    python scripts/reproduce.py --preset long --results_dir outputs/mine        days on two cores: long documents
    python scripts/reproduce.py --preset paper --results_dir outputs/mine       one GPU
    python scripts/reproduce.py --tasks imdb --data imdb=my_folder --results_dir outputs/mine --list

Every arm is trained with the same learning rates from the first seed, then with the best of them from the other seeds.
In the preset "switches" further rates are tried while the best is at an edge, and some arms take the rate of another.
Each run goes through the training script of its task and leaves its record under --results_dir. A finished cell is
never trained again, and a killed one continues from its last checkpoint when the command is given again. To use several
cores or GPUs, start the command several times, each with OMP_NUM_THREADS=1 or its CUDA_VISIBLE_DEVICES: the processes
share the cells between them. At the end it prints the table; `scripts/report.py` writes tables and figures.
"""

import argparse
import contextlib
import gc
import importlib
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import listops_dataset
import torch
from comparison.arms import ALL_ARMS
from comparison.cells import as_arguments
from comparison.presets import PRESETS, arms_of, default_arms
from comparison.records import Records
from comparison.summaries import summary_lines
from comparison.tasks import TASKS
from filelock import FileLock, Timeout
from training import docstrings
from training.files import ROOT, read_json, write_json
from training.listops import rules_of, write_listops
from training.provenance import forget_peak_memory


def listops(preset):
    """What writes the data of a preset of `listops_dataset.py` to a folder."""
    return lambda folder: write_listops(folder, rules_of(**listops_dataset.PRESETS[preset], seed=0))


def labelled_docstrings(folder):
    """Writes the docstrings of Python to a folder."""
    if not (folder / "validation.parquet").exists():
        docstrings.write_labelled(folder)


# Tasks whose data are made on this machine, and what writes to a folder what is not there yet.
MADE = {"docstrings": labelled_docstrings, "listops_short": listops("short"), "listops": listops("full")}


def parse_arguments(arguments=None):
    usage, details = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="switches", help="which tasks and arms, and how large (default: switches)"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)} (default: all of the preset)"
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=ALL_ARMS,
        metavar="ARM",
        help=f"of {', '.join(ALL_ARMS)} (default: all of the preset)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="of the final runs (default: those of the preset)")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="TASK=FOLDER",
        help="local folders of files named by split, instead of the Hub",
    )
    parser.add_argument("--results_dir", type=Path, default=Path("results"), help="where records go (default: results)")
    parser.add_argument(
        "--output_dir", type=Path, help="where models go (default: outputs/reproduce/ and the name of --results_dir)"
    )
    parser.add_argument("--list", action="store_true", help="train nothing; list what is done and what is missing")
    args = parser.parse_args(arguments)
    setting = PRESETS[args.preset]
    args.output_dir = args.output_dir or ROOT / "outputs/reproduce" / args.results_dir.resolve().name
    args.tasks = args.tasks or list(setting)
    args.arms = args.arms or list(default_arms(args.preset))
    for task in args.tasks:
        if task not in setting:
            parser.error(f"--tasks: {task!r} is not in the preset {args.preset!r}, which has {', '.join(setting)}")
    for arm in args.arms:
        if arm not in arms_of(args.preset):
            known = ", ".join(arms_of(args.preset))
            parser.error(f"--arms: {arm!r} is not in the preset {args.preset!r}, which has {known}")
    folders = {}
    for item in args.data:
        task, _, folder = item.partition("=")
        if task not in TASKS or not folder or not Path(folder).is_dir():
            parser.error(f"--data: expected TASK=FOLDER with one of {', '.join(TASKS)} and a folder, got {item!r}")
        folders[task] = folder
    args.data = folders
    return args


def data_arguments(task, folder=None):
    """The arguments of a task's script that name its data: a local folder, the Hub, or what comes with Python."""
    if folder is not None:
        has_test, has_validation = (any(Path(folder).glob(f"{split}.*")) for split in ("test", "validation"))
        test = ["--test_split", "test"] if has_test else []
        held_out = ["--validation_share", "0.1"] if not has_validation else []
        return ["--dataset_dir", str(folder), *held_out, *test]
    if task in MADE:
        folder = Path("outputs/data") / task
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            MADE[task](folder)
        return data_arguments(task, folder)
    return as_arguments(TASKS[task].hub or {})


def train(cell, folder, data):
    """Trains a cell in `folder`, or goes on with it, and returns its record.

    Raises:
        ValueError: the folder holds a run with other arguments or data.
    """
    task, own = TASKS[cell.task], {"arguments": cell.arguments, "data": data}
    mark = folder / "cell.json"
    if mark.exists() and read_json(mark) != own:
        raise ValueError(f"{folder} holds a run with other arguments or data, see {mark}; move the folder away")
    write_json(mark, own)
    if not (folder / "results.json").exists():
        forget_peak_memory()
        with (
            open(folder / "log.txt", "a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                importlib.import_module(task.script).main([*data, *cell.arguments, "--output_dir", str(folder)])
            except SystemExit as error:  # of the script's argument parser
                raise RuntimeError(f"{task.script} ended with {error}") from error
    results = read_json(folder / "results.json")
    return {
        "task": cell.task,
        "arm": cell.arm,
        "seed": cell.seed,
        "preset": cell.preset,
        "learning_rate": cell.rate,
        "pipeline_tag": results.pop("task"),
        "attention_type": results.pop("arm"),
        "arguments": cell.arguments,
        **results,
    }


def try_to_train(cell, args, records):
    """Trains a cell and writes its record, unless another process is at it.

    Returns:
        Whether the cell is done now, by this process or another.
    """
    folder = args.output_dir / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    try:
        if records.get(cell) is None:
            print(f"{cell}: training, log in {folder / 'log.txt'}", flush=True)
            record = train(cell, folder, data_arguments(cell.task, args.data.get(cell.task)))
            path = records.path(cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
            for checkpoint in folder.glob("checkpoint-*"):  # the model itself stays
                shutil.rmtree(checkpoint, ignore_errors=True)
            metric = TASKS[cell.task].metric
            print(f"{cell}: {metric} {record['metrics'][metric]:.4f} in {record['seconds']:.0f} s", flush=True)
    finally:
        lock.release()
    return True


def run(args, records):
    """Trains what is missing. Returns the cells that failed, with their errors in words."""
    failed = {}
    while missing := [cell for cell in records.missing(args.tasks, args.arms, args.seeds) if cell not in failed]:
        for cell in missing:
            try:
                is_done = try_to_train(cell, args, records)
            except Exception as error:
                # in words alone: the error itself would keep the model in memory
                failed[cell] = f"{type(error).__name__}: {error}"
                trace = traceback.format_exc()
                is_done = True
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if cell in failed:
                print(f"{cell}: failed, {failed[cell]}", file=sys.stderr, flush=True)
                with open(args.output_dir / cell.name / "log.txt", "a", encoding="utf-8") as log:
                    log.write(trace)
            if is_done:
                total, done = records.count(args.tasks, args.arms, args.seeds)
                print(f"{done} of {total} cells", flush=True)
                break
        else:
            time.sleep(2)  # other processes train all that is left
    return failed


def relative(path):
    """A path relative to the project's folder, where it has one: records then read the same everywhere."""
    path = Path(path).resolve()
    return Path(os.path.relpath(path, ROOT)) if path.drive == ROOT.drive else path


def main(arguments=None):
    args = parse_arguments(arguments)
    if torch.cuda.device_count() > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit(
            "one process trains on one GPU, so that batches are as large as the preset says; name it with "
            "CUDA_VISIBLE_DEVICES=0, and start the command again with 1, 2 and so on: the processes share the cells"
        )
    args.data = {task: str(relative(folder)) for task, folder in args.data.items()}
    args.results_dir, args.output_dir = relative(args.results_dir), relative(args.output_dir)
    os.chdir(ROOT)
    records = Records(args.results_dir, args.preset)
    total, done = records.count(args.tasks, args.arms, args.seeds)
    if total == 0:
        sys.exit(f"no task of {', '.join(args.tasks)} has one of the arms {', '.join(args.arms)}")
    if args.list:
        for cell in records.missing(args.tasks, args.arms, args.seeds):
            print(f"missing: {cell}")
        print(f"{done} of {total} cells are done")
    failed = {} if args.list else run(args, records)
    for task in args.tasks:
        print("\n".join(["", TASKS[task].title, *summary_lines(records, task, args.arms, args.seeds)]))
    if failed:
        sys.exit(f"{len(failed)} cells failed: {'; '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
