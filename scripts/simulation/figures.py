# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The figure of `scripts/simulate_synapse.py`, drawn from its record, so that `scripts/report.py` can draw it again."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator


COLUMNS = 4
COLOURS = ("tab:blue", "black", "tab:red", "tab:green", "tab:purple", "tab:orange")


def plot_processes(fast, slow, record):
    """p^s and p^l of the process in the middle, over the segments."""
    trajectory, length = record["trajectory"], record["constants"]["tau"]["value"]
    segments = np.array(trajectory["time"]) / length
    fast.plot(segments, trajectory["fast"], color="tab:blue", linewidth=1)
    fast.set(title="fast process p^s", xlabel="segments", ylabel="p^s")
    slow.plot(segments, trajectory["slow"], color="tab:red", linewidth=1, label="simulated")
    ends, q = np.arange(record["num_segments"] + 1), record["kept_per_cycle"]["closed_form"]
    final = trajectory["slow"][-1] / (1 - q ** ends[-1])
    slow.plot(ends, final * (1 - q**ends), "k.", label="1 - q^t")
    slow.set(title="slow process p^l", xlabel="segments", ylabel="p^l")
    slow.legend()


def plot_coupling(axis, record):
    """r over distance, and the exponential that it is beyond the process itself."""
    r, scale = np.array(record["coupling"]["r"]), record["coupling"]["scale_closed_form"]
    distance = np.arange(len(r))
    axis.semilogy(distance, r, "o", color="tab:blue", markersize=4, label="simulated")
    axis.semilogy(distance[1:], r[1] * np.exp(-scale * (distance[1:] - 1)), "k-", linewidth=1, label="exp(-scale d)")
    axis.set(title="coupling r", xlabel="distance d in processes", ylabel="r")
    axis.legend()


def plot_retention(axis, record):
    """The retention for each number of segments, and the streaming form."""
    for colour, (total, shares) in zip(COLOURS, record["retention"].items(), strict=False):
        axis.plot(range(1, len(shares) + 1), shares, "o-", color=colour, markersize=3, label=f"T = {total}")
    streaming = record["streaming_retention"]
    axis.plot(range(1, len(streaming) + 1), streaming, "--", color="grey", label="streaming")
    axis.set(title="retention", xlabel="segment t", ylabel="share", ylim=(0, None))
    axis.legend(fontsize=8)


def plot_constant(axis, name, record):
    """How r and the retention move with one constant."""
    for colour, case in zip(COLOURS, record["sweep"][name], strict=False):
        shares, r = case["retention"], case["r"][: len(case["retention"]) + 1]
        axis.plot(range(1, len(shares) + 1), shares, color=colour, label=f"x {case['factor']:g}: {case['value']:g}")
        axis.plot(range(1, len(r)), r[1:], "--", color=colour)
    unit = record["constants"][name]["unit"]
    axis.set(title=name if unit == "1" else f"{name} ({unit})", ylim=(0, None))
    axis.legend(fontsize=7)


def plot_record(record):
    """The two processes, r and the retention; below them a panel for each constant, r dashed, the retention solid.

    Args:
        record (`dict`): what `scripts/simulate_synapse.py` writes as JSON.
    """
    swept = list(record["sweep"])
    rows = 1 + -(-len(swept) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 2.9 * rows), layout="constrained", squeeze=False)
    plot_processes(axes[0, 0], axes[0, 1], record)
    plot_coupling(axes[0, 2], record)
    plot_retention(axes[0, 3], record)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    below = axes[1:].flat
    for axis, name in zip(below, swept, strict=False):
        plot_constant(axis, name, record)
    for axis in list(axes[1:].flat)[len(swept) :]:
        axis.axis("off")
    if swept:
        figure.supxlabel(
            "a panel for each constant: the retention over segments (solid), r over the distance in processes (dashed)"
        )
    return figure
