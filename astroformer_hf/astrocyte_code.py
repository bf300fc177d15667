# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The astrocyte code R: where the processes of the astrocyte lie, as seen by the hidden neurons.

Three codes are made from the coupling r between the processes, which falls with their distance (`token_layout.py`),
each with a learned resting level b per hidden neuron:

    "learned"      R = r W_rel + b     W_rel a learned table, one row per position: the paper's (AT, section III)
    "sinusoidal"   R = r S W + b       S the sines and cosines of the positions, W learned: any length
    "activity"     R = r' K W + b      r' = r without its diagonal, rows normalised over the real tokens; W learned: the
                                       process at a synapse integrates the activity of its neighbours, the term
                                       sum_kl T_ijkl psi(p_kl) of the astrocyte's dynamics (Kozachkov, Slotine and
                                       Krotov, "Neuron-Astrocyte Associative Memory", 2023)

Causally r_ij is 0 for j > i, and R depends on nothing that comes later. In "learned" and "sinusoidal" the astrocyte
tiles the whole line of positions, whether or not a token sits at each, so that R at a position depends neither on the
batch nor on its padded length.

Initial values. An untrained neuron has about the activity phi(0), and an untrained code that starts at R = 0 is heard
as loudly as that at every position: for "learned" and "sinusoidal", H_astro then dilutes H_neuron by a plain average of
all values. So their tables start near zero and b starts where phi(b) is `config.astrocyte_resting_activity` times the
activity of an untrained neuron: the astrocyte's term starts small and grows as far as it helps. For "activity", whose
code tells the tokens apart from the start, a loud start can be the better one. The b adds nothing to what the paper's
code can express (r is invertible, so W_rel could hold it); it gives the optimiser one number to move. There is no small
start for "favor", whose features integrate to 1 for every R, nor for "activity" with "relu", where the keys outweigh so
small a b.
"""

import math
from functools import lru_cache

import torch
from torch import nn

from .token_layout import NeighbourhoodState, without_shared_batch


def untrained_activity(feature_map, num_features):
    """About the activity phi(x) of a freshly initialised neuron, whose x is near 0: a float, by feature map."""
    return {"elu": 1.0, "exp": 1.0, "relu": 0.1, "favor": num_features**-0.5}[feature_map]


def resting_level(feature_map, resting_activity):
    """The b at which phi(b) is `resting_activity` times `untrained_activity`; 0 for "favor", which has no such b."""
    if feature_map == "favor":
        return 0.0
    if feature_map == "relu":
        return resting_activity * untrained_activity("relu", 1)
    if feature_map == "elu" and resting_activity > 1:
        return resting_activity - 1.0
    return math.log(resting_activity)


# --------------------------------------------------------------------------------------------------------------------
# The codes
# --------------------------------------------------------------------------------------------------------------------


class AstrocyteCode(nn.Module):
    """What the three codes share: the resting level b, `(heads, 1, hidden_neurons)`, and their interface.

    `forward(key, layout, state=None, shard=None, for_attention=False)` takes the keys, `(batch, heads, length,
    hidden_neurons)`, where the tokens lie (a layout of `token_layout.py`), for a causal layout the state that the call
    before returned, and a `HeadShard` where the keys are not of all heads. It returns R, `(heads, length,
    hidden_neurons)` or the same with a leading batch, in float32 (float64 for float64); and the state, None for codes
    that need none. `for_attention`, it returns what `attend` takes instead: R alone, or of "activity" on a line what it
    is made of. A layer calls it as a module, so that hooks that bring its parameters from elsewhere run.

    `geometry(layout)` is what the codes of all layers have in common; a model works it out once and puts it into the
    layout. It may be None.

    `has_state` says whether it keeps a state in a decoder's cache.
    """

    has_state = False

    def __init__(self, config):
        super().__init__()
        self.scale = float(config.astrocyte_scale)
        self.resting_bias = nn.Parameter(torch.empty(config.num_attention_heads, 1, config.num_hidden_neurons))

    def initial_values(self, config):
        """Pairs of a parameter and its initial value, a tensor that broadcasts to it."""
        return [(self.resting_bias, torch.tensor(resting_level(config.feature_map, config.astrocyte_resting_activity)))]

    @property
    def dtype(self):
        return upcast(self.resting_bias).dtype


class PositionalAstrocyteCode(AstrocyteCode):
    """A code that follows from positions and parameters alone."""

    def forward(self, key, layout, state=None, shard=None, for_attention=False):
        code = self.positional_code(layout, shard)
        return code if for_attention else (code, None)


class LearnedAstrocyteCode(PositionalAstrocyteCode):
    """R = r W_rel + b with a learned row of W_rel per position, and no position past the last row."""

    def __init__(self, config):
        super().__init__(config)
        shape = (config.num_attention_heads, config.num_table_positions, config.num_hidden_neurons)
        self.relative_embedding = nn.Parameter(torch.empty(shape))  # W_rel

    def initial_values(self, config):
        # so that R, too, starts within that range
        std = config.initializer_range / coupling_row_sum(self.scale, config.num_position_dimensions)
        return [*super().initial_values(config), (self.relative_embedding, _normal_like(self.relative_embedding, std))]

    def geometry(self, layout):
        return layout.coupling_of_table(self.scale, self.dtype)

    def positional_code(self, layout, shard=None):
        table, bias = of_heads(shard, self.relative_embedding, self.resting_bias)
        return layout.coupled_table(upcast(table), self.scale) + bias


class SinusoidalAstrocyteCode(PositionalAstrocyteCode):
    """R = r S W + b with the sines and cosines S of the positions: like "learned", without a table."""

    def __init__(self, config):
        super().__init__(config)
        self.num_frequencies = max(1, config.num_hidden_neurons // 2)
        num_waves = 2 * self.num_frequencies * config.num_position_dimensions
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, num_waves, config.num_hidden_neurons))  # W

    def initial_values(self, config):
        dimensions = config.num_position_dimensions
        # half of the waves' power is in each of sine and cosine
        std = config.initializer_range / coupling_row_sum(self.scale, dimensions)
        std = std / math.sqrt(self.num_frequencies * dimensions)
        return [*super().initial_values(config), (self.weight, _normal_like(self.weight, std))]

    def geometry(self, layout):
        return layout.coupled_waves(self.num_frequencies, self.scale, self.dtype)  # r S, (1 or B, N, waves)

    def positional_code(self, layout, shard=None):
        waves = self.geometry(layout) if layout.geometry is None else layout.geometry
        weight, bias = of_heads(shard, self.weight, self.resting_bias)
        weight = upcast(weight)
        return without_shared_batch(waves[:, None].to(weight) @ weight + bias)  # (1 or B, H, N, m)


class ActivityAstrocyteCode(AstrocyteCode):
    """R = r' K W + b: each process integrates the activity that its neighbours' neurons see."""

    has_state = True

    def __init__(self, config):
        super().__init__(config)
        shape = (config.num_attention_heads, config.num_hidden_neurons, config.num_hidden_neurons)
        self.weight = nn.Parameter(torch.empty(shape))  # W

    def initial_values(self, config):
        return [*super().initial_values(config), (self.weight, torch.eye(self.weight.shape[-1]))]

    def geometry(self, layout):
        return layout.neighbour_weights(self.scale, self.dtype)

    def forward(self, key, layout, state=None, shard=None, for_attention=False):
        weight, bias = of_heads(shard, self.weight, self.resting_bias)
        code = layout.activity(upcast(key), self.scale, upcast(weight), upcast(bias), state)
        if for_attention:
            return code
        if torch.is_tensor(code):
            return code, None
        code, *sums = code.make(upcast(key), layout.padding_mask, layout.causal)
        return code, NeighbourhoodState(*sums) if layout.causal else None


ASTROCYTE_CODES = {
    "learned": LearnedAstrocyteCode,
    "sinusoidal": SinusoidalAstrocyteCode,
    "activity": ActivityAstrocyteCode,
}


@lru_cache
def coupling_row_sum(scale, dimensions):
    """What one process receives from a uniform astrocyte: the sum of exp(-scale * distance) over all others and itself.

    On the line this is coth(scale / 2); on a grid it is summed up to where it is below rounding, or 64 patches away.
    """
    if dimensions == 1:
        return 1 / math.tanh(scale / 2)
    reach = min(math.ceil(36 / scale), 64)
    steps = range(-reach, reach + 1)
    return math.fsum(math.exp(-scale * math.hypot(i, j)) for i in steps for j in steps)


def of_heads(shard, *parameters):
    """The rows of parameters, `(heads, ...)`, that belong to a `HeadShard`; all of them for None."""
    return parameters if shard is None else tuple(map(shard.rows, parameters))


def _normal_like(parameter, std):
    return std * torch.randn_like(parameter)


def upcast(x):
    """`x` in float32 at least: sums run in it, whatever the dtype of their terms."""
    return x if x.dtype == torch.float64 else x.float()
