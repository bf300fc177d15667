# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The macro model: neurons, synapses and the processes of an astrocyte as differential equations.

    tau_n  dx_i/dt    = -lambda x_i + sum_j g(s_ij) f(x_j) + b_i
    tau_s  ds_ij/dt   = -beta s_ij + theta(x_i) theta(x_j) + psi(p^s_ij) + c_ij
    tau_ps dp^s_ij/dt = -gamma_s p^s_ij + sum_kl T_ijkl psi(p^s_kl) + kappa(s_ij) + d_ij
    tau_pl dp^l_ij/dt = -gamma_l p^l_ij + kappa(s_ij)

x_i is the potential of neuron i, s_ij the state of the synapse from neuron j to neuron i, and p^s and p^l are what the
process of the astrocyte at that synapse holds for a short and for a long time. The papers leave the functions open but
for their shape. Here f, theta, psi and kappa are tanh, which saturates as a firing rate and calcium do, and g is tanh
over the number of neurons, so that neurons whose input ends fall silent.

Where things lie: the N neurons stand in a line, each with its N synapses evenly along its dendrite, in the order of the
presynaptic neurons. So the N^2 processes lie on one line at equal distances, as tokens do, and every distance here is
counted in processes. T_ijkl falls off with it:

    T_ijkl = coupling tanh(1 / (2 coupling_length)) exp(-distance / coupling_length)

of which the sum over a line without ends is `coupling`.

Time is cut into cycles of length tau, a cycle for each segment of a text. Neurons receive the input b_i = drive in the
first part of a cycle and none in the rest.

From the model follow the coupling r over distance (`coupling_over_distance`, `coupling_scale`) and how much of what is
stored came in each segment (`retention_table`, `streaming_retention`). Letters in shape comments: N neurons, P = N^2
processes, T segments.

Sources: L. Kozachkov, J.-J. Slotine and D. Krotov, "Neuron-astrocyte associative memory", PNAS 2025, arXiv 2311.08135
(the equations but the last); L. Kozachkov, K. V. Kastanenka and D. Krotov, "Building transformers from neurons and
astrocytes", PNAS 2023 (the tripartite synapse as attention); M. Z. A. Mia, M. Bal and A. Sengupta, "RMAAT", ICLR 2026,
arXiv 2601.00426 (the process p^l and the retention).
"""

import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp


NUM_NEURONS, NUM_SEGMENTS = 6, 16
# Of a process that is probed, d_ij: so little that functions are as steep as at rest.
PROBE = 0.01
LEAST = 1e-3  # of a constant: below, the equations are too stiff to be solved, or their coupling too steep
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-7, 1e-10


def spelled(name):
    """A constant as it is called in the equations and in options; `lambda` is no name in Python."""
    return name.rstrip("_")


@dataclass(frozen=True)
class Constants:
    """The constants of the macro model.

    The papers state which process is fast and which is slow, in orders of magnitude: a synapse's short-term plasticity
    takes up to seconds, long-term plasticity tens of seconds and more (RMAAT, on its macro model). The defaults are
    values of this order, not fitted to data, and chosen such that p^s settles within a cycle, whether the input is on
    or off, and that p^l integrates over many cycles until it saturates. Units are seconds, processes, or 1 for none.

    Attributes:
        tau_n (s): time constant of the neurons' potential x
        tau_s (s): time constant of the synapses' state s
        tau_ps (s): time constant of the fast process p^s, calcium that comes and goes
        tau_pl (s): time constant of the slow process p^l, which integrates
        lambda_ (1): leak of the neurons
        beta (1): leak of the synapses
        gamma_s (1): leak of the fast process
        gamma_l (1): leak of the slow process
        coupling (1): what a process receives from all processes if each of them is at psi = 1
        coupling_length (processes): distance over which T falls by the factor e
        drive (1): input b of every neuron in the first part of a cycle
        tau (s): length of a cycle, in which one segment is read
        active_share (1): share of a cycle in which neurons have input, at most 1

    Raises:
        ValueError: a constant is not a number from 0.001 on; `active_share` is above 1; or the leaks are so small that
            a synapse and the processes keep each other active without any input, for beta (gamma_s - coupling) <= 1.
    """

    tau_n: float = 0.05
    tau_s: float = 0.1
    tau_ps: float = 0.5
    tau_pl: float = 30.0
    lambda_: float = 1.0
    beta: float = 2.0
    gamma_s: float = 3.0
    gamma_l: float = 1.0
    coupling: float = 0.8
    coupling_length: float = 2.0
    drive: float = 1.0
    tau: float = 5.0
    active_share: float = 0.5

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not LEAST <= value < math.inf:
                raise ValueError(f"{spelled(name)} must be a number from {LEAST:g} on, got {value!r}")
        if self.active_share > 1:
            raise ValueError(f"active_share must be at most 1, got {self.active_share!r}")
        if self.beta * (self.gamma_s - self.coupling) <= 1:
            raise ValueError(
                f"beta (gamma_s - coupling) must be above 1, lest synapses stay active without any input; got beta "
                f"{self.beta!r}, gamma_s {self.gamma_s!r} and coupling {self.coupling!r}"
            )

    @property
    def kept_per_cycle(self):
        """q = exp(-tau gamma_l / tau_pl), the share of p^l that is left after a cycle without input."""
        return math.exp(-self.leak_per_cycle)

    @property
    def leak_per_cycle(self):
        """tau gamma_l / tau_pl, or -log(q)."""
        return self.tau * self.gamma_l / self.tau_pl


def descriptions():
    """The unit and the meaning of each constant, by its name in Python, as the docstring of `Constants` says."""
    return {
        name: {"unit": unit, "meaning": meaning}
        for name, unit, meaning in re.findall(r"^ {8}(\w+) \((\w+)\): (.*)$", Constants.__doc__, flags=re.MULTILINE)
    }


# --------------------------------------------------------------------------------------------------------------------
# The equations
# --------------------------------------------------------------------------------------------------------------------


def coupling_matrix(constants, num_neurons):
    """T: `(P, P)`, from the processes kl to the processes ij, which are numbered along the line."""
    place = np.arange(num_neurons**2)
    distance = np.abs(place[:, None] - place)
    strength = constants.coupling * math.tanh(1 / (2 * constants.coupling_length))
    return strength * np.exp(-distance / constants.coupling_length)


@dataclass(frozen=True)
class Inputs:
    """What comes from outside, as numbers or arrays.

    Attributes:
        neuron: b, `(N,)`, in the first part of each cycle.
        synapse: c, `(P,)`, at all times.
        process: d, `(P,)`, at all times.
    """

    neuron: float | np.ndarray = 0.0
    synapse: float | np.ndarray = 0.0
    process: float | np.ndarray = 0.0


def derivatives(state, constants, matrix, inputs):
    """The right-hand sides of the four equations, divided by their time constants.

    Args:
        state (`np.ndarray`): `(N + 3 P,)`, which is x, s, p^s and p^l one after another.
        constants (`Constants`): of the equations.
        matrix (`np.ndarray`): T, `(P, P)`.
        inputs (`Inputs`): b, c and d, all of them on.
    """
    num_processes = len(matrix)
    num_neurons = math.isqrt(num_processes)
    x, s, fast, slow = np.split(state, num_neurons + num_processes * np.arange(3))
    rate, source = np.tanh(x), np.tanh(s)  # f = theta, and kappa
    weights = source.reshape(num_neurons, num_neurons) / num_neurons  # g
    calcium = np.tanh(fast)  # psi
    return np.concatenate(
        (
            (-constants.lambda_ * x + weights @ rate + inputs.neuron) / constants.tau_n,
            (-constants.beta * s + np.outer(rate, rate).ravel() + calcium + inputs.synapse) / constants.tau_s,
            (-constants.gamma_s * fast + matrix @ calcium + source + inputs.process) / constants.tau_ps,
            (-constants.gamma_l * slow + source) / constants.tau_pl,
        )
    )


@dataclass(frozen=True)
class Trajectory:
    """What a simulation went through, from rest.

    Attributes:
        time: `(steps,)`, seconds.
        potential: x, `(steps, N)`.
        synapse, fast, slow: s, p^s and p^l, `(steps, P)`.
        points: steps per cycle; the cycles end at every `points`-th step after the first.
    """

    time: np.ndarray
    potential: np.ndarray
    synapse: np.ndarray
    fast: np.ndarray
    slow: np.ndarray
    points: int

    @property
    def stored(self):
        """p^l at the start and after each cycle, as the mean over the processes: `(T + 1,)`."""
        return self.slow[:: self.points].mean(1)


def check_count(name, value, least=1):
    """Raises a ValueError unless `value` is a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")


def simulate(constants, inputs=None, *, num_segments=NUM_SEGMENTS, num_neurons=NUM_NEURONS, points=20):
    """Integrates the equations over a number of cycles, from rest, where all is 0.

    Args:
        constants (`Constants`): of the equations.
        inputs (`Inputs`, *optional*): `constants.drive` for every neuron by default.
        num_segments (`int`): cycles.
        num_neurons (`int`): neurons on the line.
        points (`int`): steps per cycle that are returned; it does not change how exactly is integrated.

    Returns:
        `Trajectory` of `num_segments * points + 1` steps.

    Raises:
        ValueError: a number is not a whole one, or too small.
        RuntimeError: the solver gave up.
    """
    check_count("num_segments", num_segments)
    check_count("num_neurons", num_neurons, least=2)
    check_count("points", points)
    inputs = Inputs(neuron=constants.drive) if inputs is None else inputs
    matrix = coupling_matrix(constants, num_neurons)
    state = np.zeros(num_neurons + 3 * num_neurons**2)
    steps, states = np.linspace(0, constants.tau, points + 1)[1:], [state]
    # Inputs jump twice in a cycle. A solver that begins anew there takes no step across a jump.
    parts = [(inputs, 0.0, constants.active_share * constants.tau)]
    if constants.active_share < 1:
        parts.append((dataclasses.replace(inputs, neuron=0.0), parts[0][2], constants.tau))
    for _ in range(num_segments):
        for part_inputs, begin, end in parts:
            within = steps[(begin < steps) & (steps <= end)]
            solution = solve_ivp(
                lambda _, y, part_inputs=part_inputs: derivatives(y, constants, matrix, part_inputs),
                (begin, end),
                state,
                method="LSODA",
                t_eval=np.union1d(within, [end]),
                rtol=RELATIVE_TOLERANCE,
                atol=ABSOLUTE_TOLERANCE,
            )
            if not solution.success:
                raise RuntimeError(f"the equations could not be integrated with {constants}: {solution.message}")
            states.extend(solution.y.T[: len(within)])
            state = solution.y[:, -1]
    time = np.linspace(0, num_segments * constants.tau, num_segments * points + 1)
    parts = np.split(np.array(states), num_neurons + num_neurons**2 * np.arange(3), axis=1)
    return Trajectory(time, *parts, points=points)


# --------------------------------------------------------------------------------------------------------------------
# The coupling between processes
# --------------------------------------------------------------------------------------------------------------------


def coupling_over_distance(constants, *, num_neurons=NUM_NEURONS):
    """r over distance: how p^s responds at one process to activity at another.

    The network rests, but for a small input d at the process in the middle, for a cycle. r is the response of p^s at
    the end, divided by that of the middle process itself: 1 at distance 0.

    Returns:
        `np.ndarray` of `((P - 1) // 2 + 1,)`, mean of both sides, by the distance in processes.
    """
    num_processes = num_neurons**2
    middle = num_processes // 2
    process = np.zeros(num_processes)
    process[middle] = PROBE
    response = simulate(constants, Inputs(process=process), num_segments=1, num_neurons=num_neurons, points=1).fast[-1]
    reach = (num_processes - 1) // 2 + 1
    return (response[middle : middle + reach] + response[middle - np.arange(reach)]) / (2 * response[middle])


def fitted_scale(coupling):
    """The rate at which a measured r falls, per process, beyond distance 0.

    By least squares on log r, up to half of the distances: near its ends, the line lacks the processes that would hand
    calcium back.

    Args:
        coupling (`np.ndarray`): r by distance, as from `coupling_over_distance`.
    """
    distance = np.arange(1, max(3, len(coupling) // 2 + 1))
    return -float(np.polyfit(distance, np.log(coupling[distance]), 1)[0])


def coupling_scale(constants):
    """The rate at which r falls, per process, on a line without ends and once everything has settled.

    T is an exponential, and so is the response to one process, T's own sum over all ways from process to process:

        sinh(scale / 2) = sqrt(1 - w) sinh(1 / (2 coupling_length)),     w = coupling / (gamma_s - 1 / beta)

    where 1 / beta is what a process gets back from its own synapse. The more strongly processes are coupled, the
    farther r reaches beyond T.
    """
    w = constants.coupling / (constants.gamma_s - 1 / constants.beta)
    return 2 * math.asinh(math.sqrt(1 - w) * math.sinh(1 / (2 * constants.coupling_length)))


# --------------------------------------------------------------------------------------------------------------------
# Retention: what is stored, by segment
# --------------------------------------------------------------------------------------------------------------------


def simulated_retention(stored, num_segments):
    """The retention from a simulated p^l: dp_t / (dp_1 + ... + dp_T), where dp_t is what segment t adds.

    Args:
        stored (`np.ndarray`): p^l at the start and after each segment, at least `(T + 1,)`.
        num_segments (`int`): T.

    Returns:
        `np.ndarray` of `(T,)`, which sums to 1.

    Raises:
        ValueError: `num_segments` is not a whole number from 1 to the number of simulated segments.
    """
    check_count("num_segments", num_segments)
    if num_segments >= len(stored):
        raise ValueError(f"num_segments must be at most {len(stored) - 1}, which are simulated, got {num_segments!r}")
    added = np.diff(stored[: num_segments + 1])
    return added / added.sum()


def fitted_kept_per_cycle(stored):
    """q of a simulated saturation: each segment adds q times what the one before added, by least squares.

    Args:
        stored (`np.ndarray`): p^l at the start and after each of at least two segments, `(T + 1,)`.
    """
    added = np.diff(stored)
    return float(added[1:] @ added[:-1] / (added[:-1] @ added[:-1]))


def saturation_error(stored, constants):
    """How far a simulated p^l is from 1 - q^t: the largest difference over the segments, in shares of the last value.

    It is not 0 because the first cycle begins at rest and the others where the one before left the fast processes, and
    because the solver rounds.
    """
    segments = np.arange(len(stored))
    expected = share_stored(segments, constants.leak_per_cycle)
    return float(np.abs(stored / stored[-1] - expected / expected[-1]).max())


def retention_table(num_segments, constants=None):
    """The share of what is stored after T segments that came in each of them, in closed form.

    Each cycle drives p^l alike, and between them it leaks by q = exp(-tau gamma_l / tau_pl). So p^l(t tau) is
    proportional to 1 - q^t, segment t adds in proportion to (1 - q) q^(t - 1), and

        retention(t, T) = (1 - q) q^(t - 1) / (1 - q^T)

    Args:
        num_segments (`int`): T.
        constants (`Constants`, *optional*): the defaults if not given.

    Returns:
        `np.ndarray` of `(T,)` for t = 1 to T, falling, with the sum 1.

    Raises:
        ValueError: `num_segments` is not a whole number from 1 on.
    """
    check_count("num_segments", num_segments)
    leak = (constants or Constants()).leak_per_cycle
    return share_added(np.arange(1, num_segments + 1), leak) / share_stored(num_segments, leak)


def streaming_retention(t, constants=None):
    """The share of what is stored so far that segment t, the latest, has added; it needs no T.

    After t segments (1 - q^t) of what can ever be stored is stored, of which the latest has added (1 - q) q^(t - 1):

        (1 - q) q^(t - 1) / (1 - q^t)

    That is `retention_table(t)[-1]`, what the table would say if the text ended here. It is 1 for the first segment,
    and falls as p^l saturates. (1 - q) q^(t - 1) by itself is a share of what can ever be stored instead: of an endless
    text's table, with which nothing that has been read so far is compared.

    Args:
        t (`int` or array of `int`): number of the segment, from 1 on.
        constants (`Constants`, *optional*): the defaults if not given.

    Returns:
        `float`, or an array of the shape of `t`.

    Raises:
        ValueError: a `t` is not a whole number from 1 on.
    """
    numbers = np.asarray(t)
    if numbers.dtype.kind not in "iu" or (numbers < 1).any():
        raise ValueError(f"t must be a whole number from 1 on, or an array of them, got {t!r}")
    leak = (constants or Constants()).leak_per_cycle
    share = share_added(numbers, leak) / share_stored(numbers, leak)
    return share if numbers.ndim else float(share)


def share_added(t, leak):
    """(1 - q) q^(t - 1), the share of what can ever be stored that segment t adds, for q = exp(-leak)."""
    return -math.expm1(-leak) * np.exp(-leak * (t - 1))  # exact for a leak so small that q rounds to 1


def share_stored(t, leak):
    """1 - q^t, the share of what can ever be stored that is stored after t segments."""
    return -np.expm1(-leak * t)
