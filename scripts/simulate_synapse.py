#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Simulates a synapse with its astrocyte process: the coupling r, the retention, and what each constant does to them.

    python scripts/simulate_synapse.py
    python scripts/simulate_synapse.py --tau_pl 60 --sweep tau tau_pl gamma_l --output_dir outputs/slow

In --output_dir it leaves

    simulation.json     command, versions, hardware, constants; the fast and the slow process over the segments; r by
                        distance; the retention for 2, 4, 8 and 16 segments; and the sweep
    simulation.png      the same as a figure, with a panel for each constant

docs/macro_model.md has the equations. Of each constant, the unit stands in brackets, (1) for none.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import matplotlib
from simulation import macro_model
from simulation.figures import plot_record
from simulation.macro_model import Constants, descriptions, spelled
from training.files import write_json, write_whole
from training.provenance import command, hardware, versions


matplotlib.use("Agg")
import matplotlib.pyplot as plt


TABLES = (2, 4, 8, 16)  # numbers of segments
SWEPT_SEGMENTS = 8
DIGITS = 6
NAMES = {spelled(name): name for name in descriptions()}  # of options: of fields


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, description in descriptions().items():
        parser.add_argument(
            f"--{spelled(name)}",
            dest=name,
            type=float,
            default=getattr(Constants, name),
            help=f"({description['unit']}) {description['meaning']} (default: %(default)g)",
        )
    parser.add_argument(
        "--num_neurons",
        type=int,
        default=macro_model.NUM_NEURONS,
        help="neurons on the line, which have this number squared of synapses and processes (default: %(default)s)",
    )
    parser.add_argument(
        "--num_segments", type=int, default=macro_model.NUM_SEGMENTS, help="cycles simulated (default: %(default)s)"
    )
    parser.add_argument("--points", type=int, default=20, help="points of the curves per cycle (default: %(default)s)")
    parser.add_argument(
        "--sweep",
        nargs="*",
        choices=NAMES,
        metavar="CONSTANT",
        default=list(NAMES),
        help=f"which constants are varied, one at a time: {', '.join(NAMES)} (default: all)",
    )
    parser.add_argument(
        "--factors",
        nargs="+",
        type=float,
        default=[0.5, 1, 2],
        help="by which a constant is multiplied (default: 0.5 1 2)",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("outputs/macro_model"),
        help="folder of the results (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    try:
        macro_model.check_count("--num_neurons", args.num_neurons, least=3)  # r at three distances at least
        macro_model.check_count("--num_segments", args.num_segments, least=2)
        macro_model.check_count("--points", args.points)
        args.constants = Constants(**{name: getattr(args, name) for name in NAMES.values()})
    except ValueError as error:
        parser.error(str(error))
    args.cases = {}
    for option in args.sweep:
        for factor in args.factors:
            value = getattr(args.constants, NAMES[option]) * factor
            try:
                varied = dataclasses.replace(args.constants, **{NAMES[option]: value})
            except ValueError as error:
                parser.error(f"--factors {factor:g} of {option}: {error}")
            args.cases.setdefault(option, []).append((factor, varied))
    return args


def rounded(values):
    """Numbers as a record keeps them."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def measure(constants, num_neurons, num_segments):
    """r by distance and p^l over the segments, with the rates that describe them."""
    r = macro_model.coupling_over_distance(constants, num_neurons=num_neurons)
    trajectory = macro_model.simulate(constants, num_segments=num_segments, num_neurons=num_neurons, points=1)
    stored = trajectory.stored
    return {
        "r": rounded(r),
        "scale": macro_model.fitted_scale(r),
        "kept_per_cycle": macro_model.fitted_kept_per_cycle(stored),
        "retention": rounded(macro_model.simulated_retention(stored, num_segments)),
    }


def sweep(cases, num_neurons, num_segments):
    """What each constant does: a list of measurements, one for each factor, by the name of the constant."""
    total, done, measured = sum(map(len, cases.values())), 0, {}
    for name, varied in cases.items():
        measured[name] = []
        for factor, constants in varied:
            case = measure(constants, num_neurons, num_segments)
            value, done = getattr(constants, NAMES[name]), done + 1
            measured[name].append({"factor": factor, "value": value, **case})
            print(
                f"[{done}/{total}] {name} = {value:g}: scale of r {case['scale']:.3f} per process; p^l keeps "
                f"{case['kept_per_cycle']:.1%} over a cycle; the first of {num_segments} segments adds "
                f"{case['retention'][0]:.1%} of what is stored",
                flush=True,
            )
    return measured


def main(arguments=None):
    args = parse_arguments(arguments)
    start, constants = time.perf_counter(), args.constants
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--output_dir {args.output_dir} cannot be made a folder: {error}") from error
    trajectory = macro_model.simulate(
        constants, num_segments=args.num_segments, num_neurons=args.num_neurons, points=args.points
    )
    middle, stored = args.num_neurons**2 // 2, trajectory.stored
    r = macro_model.coupling_over_distance(constants, num_neurons=args.num_neurons)
    tables = [num for num in TABLES if num <= args.num_segments]
    record = {
        "command": command(__file__, arguments),
        "versions": versions(("astroformer-hf", "numpy", "scipy")),
        "hardware": hardware(),
        "num_neurons": args.num_neurons,
        "num_segments": args.num_segments,
        "constants": {
            spelled(name): {"value": getattr(constants, name), **description}
            for name, description in descriptions().items()
        },
        "coupling": {
            "r": rounded(r),
            "scale": macro_model.fitted_scale(r),
            "scale_closed_form": macro_model.coupling_scale(constants),
        },
        "kept_per_cycle": {
            "simulated": macro_model.fitted_kept_per_cycle(stored),
            "closed_form": constants.kept_per_cycle,
        },
        "saturation_error": macro_model.saturation_error(stored, constants),
        "retention": {str(num): rounded(macro_model.simulated_retention(stored, num)) for num in tables},
        "streaming_retention": rounded(macro_model.streaming_retention(range(1, args.num_segments + 1), constants)),
        "trajectory": {
            "time": rounded(trajectory.time),
            "fast": rounded(trajectory.fast[:, middle]),
            "slow": rounded(trajectory.slow[:, middle]),
        },
        "sweep": sweep(args.cases, args.num_neurons, min(SWEPT_SEGMENTS, args.num_segments)),
    }
    record["seconds"] = round(time.perf_counter() - start, 1)
    write_json(args.output_dir / "simulation.json", record)
    figure = plot_record(record)
    write_whole(args.output_dir / "simulation.png", lambda path: figure.savefig(path, dpi=110))
    plt.close(figure)
    print(f"simulation.json and simulation.png are in {args.output_dir}")


if __name__ == "__main__":
    main()
