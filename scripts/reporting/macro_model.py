# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What docs/macro_model.md says of the simulation, from the record of scripts/simulate_synapse.py."""

from reporting.tables import table


def changed(cases, quantity):
    """How a quantity moves over the factors of a sweep, or nothing if it stays the same in the digits shown."""
    values = [f"{quantity(case):.3f}" for case in sorted(cases, key=lambda case: case["factor"])]
    return ", ".join(values) if len(set(values)) > 1 else ""


def constants_lines(record):
    """A row for each constant, with what the sweep says of it."""
    names = list(record["sweep"])
    factors = ", ".join(f"{factor:g}" for factor in sorted(case["factor"] for case in record["sweep"][names[0]]))
    num_segments = len(record["sweep"][names[0]][0]["retention"])
    rows = []
    for name in names:
        constant, cases = record["constants"][name], record["sweep"][name]
        unit = "" if constant["unit"] == "1" else constant["unit"]
        rows.append(
            [
                *(f"`{name}`", f"{constant['value']:g}", unit, constant["meaning"]),
                changed(cases, lambda case: case["scale"]),
                changed(cases, lambda case: case["retention"][0]),
            ]
        )
    header = ["constant", "value", "unit", "", "scale of r", f"share of the first of {num_segments} segments"]
    return [
        *table(header, rows),
        f"The last two columns are for the value times {factors}; a field is empty where nothing moves in the digits "
        "shown.",
        "",
    ]


def macro_model_lines(record):
    """What docs/macro_model.md says of the simulation, as lines of Markdown."""
    coupling, kept = record["coupling"], record["kept_per_cycle"]
    constants = {name: constant["value"] for name, constant in record["constants"].items()}
    longest = max(map(len, record["retention"].values()))
    shares = [
        [f"T = {total}", ", ".join(f"{share:.3f}" for share in shares)] for total, shares in record["retention"].items()
    ]
    streaming = ", ".join(f"{share:.3f}" for share in record["streaming_retention"][:longest])
    active, versions, hardware = constants["tau"] * constants["active_share"], record["versions"], record["hardware"]
    return [
        *constants_lines(record),
        f"{record['num_neurons']} neurons and {record['num_neurons'] ** 2} processes, {record['num_segments']} cycles "
        f"of {constants['tau']:g} s, in the first {active:g} s of which the neurons have input; "
        f"`{record['command']}` takes {record['seconds']:.0f} s with numpy {versions['numpy']} and scipy "
        f"{versions['scipy']} on one thread of {hardware['cpu']}.",
        "",
        "![The two processes, the coupling, the retention, and each constant](macro_model.png)",
        "",
        f"**The coupling.** The neighbour of a process responds with {coupling['r'][1]:.3f} of what the process itself "
        f"does, and from there on r falls as exp(-{coupling['scale']:.3f} d) with the distance d; the closed form says "
        f"{coupling['scale_closed_form']:.3f}. T falls as exp(-{1 / constants['coupling_length']:.3f} d).",
        "",
        f"**The retention.** From one cycle to the next, p^l keeps q = {kept['simulated']:.4f}, fitted to the "
        f"simulation; the closed form exp(-`tau` `gamma_l` / `tau_pl`) says {kept['closed_form']:.4f}. At the ends of "
        f"all cycles, the simulated p^l differs from 1 - q^t by at most {record['saturation_error']:.0e} of its last "
        "value.",
        "",
        *table(["", "share of each segment t = 1, 2, ..."], [*shares, ["streaming", streaming]]),
    ]
