# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The macro model against what can be solved in closed form; the coupling and the retention that follow from it; and
the script that simulates it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import simulate_synapse
from simulation.macro_model import (
    Constants,
    Inputs,
    coupling_matrix,
    coupling_over_distance,
    coupling_scale,
    derivatives,
    descriptions,
    fitted_kept_per_cycle,
    fitted_scale,
    retention_table,
    saturation_error,
    simulate,
    simulated_retention,
    streaming_retention,
)


SMALL = {"num_neurons": 3, "num_segments": 4}


@pytest.fixture(scope="module")
def saturation():
    """p^l after each of 16 segments, with the default constants."""
    return simulate(Constants(), num_segments=16, num_neurons=2, points=1).stored


# --------------------------------------------------------------------------------------------------------------------
# The equations
# --------------------------------------------------------------------------------------------------------------------


def test_derivatives_are_the_equations():
    """Each sum and product written out, where every term differs from the others."""
    values = {field.name: 0.6 + 0.03 * i for i, field in enumerate(dataclasses.fields(Constants))}
    constants = Constants(**{**values, "gamma_s": 3.0})
    n, rng = 3, np.random.default_rng(0)
    x, b, (s, fast, slow, c, d) = rng.normal(size=n), rng.normal(size=n), rng.normal(size=(5, n, n))
    inputs = Inputs(neuron=b, synapse=c.ravel(), process=d.ravel())
    state = np.concatenate((x, s.ravel(), fast.ravel(), slow.ravel()))
    found = derivatives(state, constants, coupling_matrix(constants, n), inputs)
    place = {(i, j): i * n + j for i in range(n) for j in range(n)}
    length = constants.coupling_length
    for i in range(n):
        total = -constants.lambda_ * x[i] + b[i]
        total += sum(math.tanh(s[i, j]) / n * math.tanh(x[j]) for j in range(n))
        assert found[i] == pytest.approx(total / constants.tau_n)
    for (i, j), number in place.items():
        total = -constants.beta * s[i, j] + math.tanh(x[i]) * math.tanh(x[j]) + math.tanh(fast[i, j]) + c[i, j]
        assert found[n + number] == pytest.approx(total / constants.tau_s)
        total = -constants.gamma_s * fast[i, j] + math.tanh(s[i, j]) + d[i, j]
        for (k, m), other in place.items():
            strength = constants.coupling * math.tanh(0.5 / length) * math.exp(-abs(number - other) / length)
            total += strength * math.tanh(fast[k, m])
        assert found[n + 9 + number] == pytest.approx(total / constants.tau_ps)
        total = -constants.gamma_l * slow[i, j] + math.tanh(s[i, j])
        assert found[n + 18 + number] == pytest.approx(total / constants.tau_pl)


def test_slow_process_saturates_exponentially_under_a_constant_source():
    """kappa is 1 within milliseconds where synapses have a very large input, and p^l then has a solution."""
    constants = Constants(tau_pl=7.0, gamma_l=0.5, tau_s=1e-3)
    trajectory = simulate(constants, Inputs(synapse=100.0), num_segments=4, num_neurons=2, points=5)
    assert trajectory.time[-1] == 20 and trajectory.slow.shape == (21, 4)
    expected = (1 - np.exp(-trajectory.time * 0.5 / 7)) / 0.5
    np.testing.assert_allclose(trajectory.slow, np.broadcast_to(expected[:, None], (21, 4)), atol=1e-4)


def test_neurons_without_synapses_follow_their_input():
    """Before synapses have formed, x is a leaky integrator, on while the input is and off afterwards."""
    constants = Constants(tau_s=1e6, tau_n=0.5, lambda_=2.0, tau=1.0, active_share=0.5)
    x = simulate(constants, Inputs(neuron=3.0), num_segments=1, num_neurons=2, points=4).potential[:, 0]
    rise = 1.5 * (1 - np.exp(-np.array([0, 1, 2]) * 0.25 * 4))
    np.testing.assert_allclose(x, [*rise, *(rise[-1] * np.exp(-np.array([1, 2])))], atol=1e-5)


def test_network_rests_without_input_and_the_fast_process_settles_within_a_cycle():
    still = simulate(Constants(), Inputs(), points=4, **SMALL)
    assert not still.fast.any() and not still.slow.any()
    fast = simulate(Constants(), points=20, **SMALL).fast.mean(1)
    assert fast[0] == 0 and fast[10] > 0.1
    assert abs(fast[10] - fast[9]) < 5e-3 * fast[10]  # settled while the input is on
    assert fast[20] < 2e-3 * fast[10]  # and after it
    np.testing.assert_allclose(fast[1:21], fast[61:81], atol=1e-3 * fast[10])  # every cycle is like the first


def test_number_of_points_changes_nothing():
    coarse, fine = (simulate(Constants(active_share=0.3), points=points, **SMALL) for points in (1, 7))
    np.testing.assert_allclose(coarse.stored, fine.stored, rtol=1e-6)
    assert fine.time.shape == (29,) and fine.potential.shape == (29, 3) and fine.synapse.shape == (29, 9)


# --------------------------------------------------------------------------------------------------------------------
# The coupling
# --------------------------------------------------------------------------------------------------------------------


def test_coupling_falls_exponentially_with_distance():
    r = coupling_over_distance(Constants(), num_neurons=6)
    assert r[0] == 1 and len(r) == 18 and (np.diff(r) < 0).all() and (r > 0).all()
    assert coupling_scale(Constants()) < 1 / Constants().coupling_length  # processes hand calcium on
    assert fitted_scale(r) == pytest.approx(coupling_scale(Constants()), rel=1e-3)


def test_scale_in_closed_form_is_that_of_the_inverse_matrix():
    """The response at rest, solved as linear equations on a line too long for its ends to matter."""
    constants = Constants(coupling=1.1, coupling_length=3.0, beta=1.5)
    size = 20
    response = np.linalg.inv(
        (constants.gamma_s - 1 / constants.beta) * np.eye(size**2) - coupling_matrix(constants, size)
    )[size**2 // 2, size**2 // 2 :]
    assert fitted_scale(response[:40]) == pytest.approx(coupling_scale(constants), rel=1e-6)


# --------------------------------------------------------------------------------------------------------------------
# The retention
# --------------------------------------------------------------------------------------------------------------------


def test_slow_process_is_the_closed_form(saturation):
    constants = Constants()
    assert constants.kept_per_cycle == pytest.approx(math.exp(-5 / 30))
    assert fitted_kept_per_cycle(saturation) == pytest.approx(constants.kept_per_cycle, abs=1e-4)
    assert saturation_error(saturation, constants) < 1e-4
    assert saturation_error(saturation, Constants(tau_pl=33.0)) > 1e-2
    assert saturation[-1] > 0.9 * saturation[-1] / (1 - constants.kept_per_cycle**16)  # nearly all that it can hold


@pytest.mark.parametrize("num_segments", [1, 2, 4, 8, 16])
def test_retention_sums_to_one_falls_and_is_what_is_simulated(num_segments, saturation):
    shares = retention_table(num_segments)
    assert shares.shape == (num_segments,) and shares.sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(shares) < 0).all() and (shares > 0).all()
    np.testing.assert_allclose(simulated_retention(saturation, num_segments), shares, atol=1e-4)


def test_streaming_retention_is_the_latest_share_of_what_is_stored(saturation):
    numbers = np.arange(1, 17)
    streamed = streaming_retention(numbers)
    np.testing.assert_allclose(streamed, np.diff(saturation) / saturation[1:], atol=1e-4)
    np.testing.assert_allclose(streamed, [retention_table(t)[-1] for t in numbers], rtol=1e-12)
    q = Constants().kept_per_cycle
    np.testing.assert_allclose(streamed, (1 - q) * q ** (numbers - 1) / (1 - q**numbers), rtol=1e-12)
    assert streaming_retention(1) == 1 and isinstance(streaming_retention(3), float)


def test_retention_of_a_process_that_hardly_leaks():
    """q rounds to 1: every segment counts alike."""
    constants = Constants(tau_pl=1e20)
    np.testing.assert_allclose(retention_table(4, constants), 0.25)
    assert streaming_retention(5, constants) == pytest.approx(0.2)


# What doubling a constant does: to the rate at which r falls, to the share of the first segment, and to p^l itself.
DIRECTIONS = {
    "beta": (1, 0, -1),
    "gamma_s": (1, 0, -1),
    "coupling": (-1, 0, 1),
    "coupling_length": (-1, 0, None),
    "gamma_l": (0, 1, -1),
    "tau_pl": (0, -1, -1),
    "tau": (0, 1, 1),
    "drive": (0, 0, 1),
    "lambda_": (0, 0, -1),
    "active_share": (0, None, 1),
    "tau_n": (0, 0, -1),
    "tau_s": (0, 0, None),
    "tau_ps": (0, 0, None),
}


@pytest.fixture(scope="module")
def measured():
    return measure(Constants())


def measure(constants):
    r = coupling_over_distance(constants, num_neurons=4)
    stored = simulate(constants, num_neurons=2, num_segments=3, points=1).stored
    return fitted_scale(r), simulated_retention(stored, 3)[0], stored[-1]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_each_constant_moves_the_outputs(name, measured):
    doubled = measure(dataclasses.replace(Constants(), **{name: 2 * getattr(Constants(), name)}))
    for direction, after, before in zip(DIRECTIONS[name], doubled, measured, strict=True):
        if direction is not None:
            change = after / before - 1
            assert change * direction > 1e-4 if direction else abs(change) < 2e-3, (name, after, before)


def test_every_constant_is_described_and_has_a_direction():
    names = {field.name for field in dataclasses.fields(Constants)}
    assert set(descriptions()) == names == set(DIRECTIONS)


# --------------------------------------------------------------------------------------------------------------------
# Errors, and the script
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", None])
@pytest.mark.parametrize("name", ["tau_n", "lambda_", "active_share"])
def test_constants_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"^{name.rstrip('_')} must be a number from 0.001 on, got "):
        Constants(**{name: value})


def test_constants_fit_together():
    with pytest.raises(ValueError, match="active_share must be at most 1, got 1.5"):
        Constants(active_share=1.5)
    with pytest.raises(ValueError, match=r"lest synapses stay active.*beta 2.0, gamma_s 3.0 and coupling 2.6"):
        Constants(coupling=2.6)


def test_numbers_are_whole(saturation):
    for wrong in (0, 2.0, True, "2"):
        with pytest.raises(ValueError, match="num_segments must be a whole number from 1 on"):
            retention_table(wrong)
        with pytest.raises(ValueError, match="num_segments must be a whole number from 1 on"):
            simulated_retention(saturation, wrong)
        with pytest.raises(ValueError, match="t must be a whole number from 1 on"):
            streaming_retention(wrong)
    with pytest.raises(ValueError, match="num_segments must be at most 16, which are simulated, got 17"):
        simulated_retention(saturation, 17)
    with pytest.raises(ValueError, match="num_neurons must be a whole number from 2 on, got 1"):
        simulate(Constants(), num_neurons=1)
    with pytest.raises(ValueError, match="points must be a whole number from 1 on, got 0"):
        simulate(Constants(), points=0)


def test_script(tmp_path, capsys):
    options = ["--num_neurons", "3", "--num_segments", "4", "--points", "3", "--tau_pl", "12", "--factors", "1", "2"]
    arguments = [*options, "--sweep", "tau_pl", "--output_dir", str(tmp_path / "new/folder")]
    simulate_synapse.main(arguments)
    printed = capsys.readouterr().out
    assert "[1/2] tau_pl = 12:" in printed and "[2/2] tau_pl = 24:" in printed
    record = json.loads((tmp_path / "new/folder/simulation.json").read_text())
    assert record["command"].startswith("python scripts/simulate_synapse.py --num_neurons 3")
    assert record["versions"]["scipy"] and record["hardware"]["cpu"] and record["seconds"] > 0
    assert record["constants"]["tau_pl"] == {"value": 12.0, "unit": "s", "meaning": descriptions()["tau_pl"]["meaning"]}
    constants = Constants(tau_pl=12.0)
    assert list(record["retention"]) == ["2", "4"]
    np.testing.assert_allclose(record["retention"]["4"], retention_table(4, constants), atol=1e-3)
    assert record["kept_per_cycle"]["closed_form"] == constants.kept_per_cycle
    assert record["coupling"]["r"][0] == 1 and len(record["coupling"]["r"]) == 5
    assert len(record["trajectory"]["slow"]) == len(record["trajectory"]["time"]) == 4 * 3 + 1
    first, second = record["sweep"]["tau_pl"]
    assert (first["value"], second["value"]) == (12, 24) and first["retention"][0] > second["retention"][0]
    assert (tmp_path / "new/folder/simulation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tau_n", "-1"], "tau_n must be a number from 0.001 on, got -1.0"),
        (["--coupling_length", "0.0005"], "coupling_length must be a number from 0.001 on, got 0.0005"),
        (["--lambda", "0"], "lambda must be a number from 0.001 on, got 0.0"),
        (["--num_neurons", "2"], "--num_neurons must be a whole number from 3 on, got 2"),
        (["--num_segments", "1"], "--num_segments must be a whole number from 2 on, got 1"),
        (
            ["--factors", "4", "--sweep", "coupling"],
            "--factors 4 of coupling: beta (gamma_s - coupling) must be above 1",
        ),
        (["--sweep", "mass"], "invalid choice: 'mass'"),
    ],
)
def test_script_refuses(options, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        simulate_synapse.main([*options, "--output_dir", str(tmp_path / "none")])
    assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="--output_dir .*file cannot be made a folder"):
        simulate_synapse.main(["--output_dir", str(tmp_path / "file")])
