# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The astrocyte code R: where the processes of the astrocyte lie, as seen by the hidden neurons.

The processes at two tokens are coupled by calcium that diffuses between them, the less the farther they are apart:

    r_ij = exp(-scale * |i - j|)

and three codes are made from that coupling (`ASTROCYTE_CODES`), each with a learned resting level b per hidden neuron:

    "learned"      R = r W_rel + b     W_rel a learned table, one row per position: the paper's (AT, section III)
    "sinusoidal"   R = r S W + b       S the sines and cosines of the positions, W learned: any length
    "activity"     R = r' K W + b      r' = r without its diagonal, rows normalised over the real tokens; W learned: the
                                       process at a synapse integrates the activity of its neighbours, the term
                                       sum_kl T_ijkl psi(p_kl) of the astrocyte's dynamics (Kozachkov, Slotine and
                                       Krotov, "Neuron-Astrocyte Associative Memory", 2023)

The N x N matrix r is never built: an exponential coupling is a first-order recurrence in each direction, so R costs
O(N m). In "learned" and "sinusoidal" the astrocyte tiles the whole line of positions, whether or not a token sits at
each, so that R at a position depends neither on the batch nor on its padded length.

Initial values. An untrained neuron has about the activity phi(0), and an untrained code that starts at R = 0 is heard
as loudly as that at every position: H_astro then dilutes H_neuron by a plain average of all values. So b starts where
phi(b) is `RESTING_ACTIVITY` times the activity of an untrained neuron, the tables start near zero, and the astrocyte's
term starts small and grows as far as it helps. The b adds nothing to what the paper's code can express (r is
invertible, so W_rel could hold it); it gives the optimiser one number to move. There is no small start for "favor",
whose features integrate to 1 for every R, nor for "activity" with "relu", where the keys outweigh so small a b.
"""

import math
from typing import NamedTuple

import torch
from torch import nn


# phi(b) at initialisation, in units of the activity of an untrained neuron.
RESTING_ACTIVITY = 0.05


def untrained_activity(feature_map, num_features):
    """About the activity phi(x) of a freshly initialised neuron, whose x is near 0: a float, by feature map."""
    return {"elu": 1.0, "exp": 1.0, "relu": 0.1, "favor": num_features**-0.5}[feature_map]


def resting_level(feature_map):
    """The b at which phi(b) is `RESTING_ACTIVITY` times `untrained_activity`; 0 for "favor", which has no such b."""
    if feature_map == "favor":
        return 0.0
    if feature_map == "relu":
        return RESTING_ACTIVITY * untrained_activity("relu", 1)
    return math.log(RESTING_ACTIVITY)


# Tokens per block of the chunked recurrence: a small Toeplitz product inside, a decayed carry between.
CHUNK_SIZE = 64

# Base of the geometric series of wavelengths, over 2 pi positions (Vaswani et al., "Attention is all you need", 2017).
WAVELENGTH_BASE = 10_000.0


# --------------------------------------------------------------------------------------------------------------------
# The exponential coupling in linear time
# --------------------------------------------------------------------------------------------------------------------


def decayed_sum(x, scale, reverse=False):
    """y_i = sum over j <= i (j >= i if `reverse`) of exp(-scale |i - j|) x_j.

    Inside a chunk a Toeplitz product; between chunks the sums at the chunks' ends obey the same recurrence with a decay
    of `scale * CHUNK_SIZE`, so the function calls itself on them: O(length) in all. `decayed_sum_token_by_token` is the
    plain form.

    Args:
        x (`torch.Tensor`): `(..., length, channels)`.
        scale (`float`): decay per position, positive.
        reverse (`bool`): whether to run from the last position to the first.

    Returns:
        `torch.Tensor` of the shape and dtype of `x`.
    """
    *batch, length, channels = x.shape
    chunk_size = min(length, CHUNK_SIZE)
    position = torch.arange(chunk_size, device=x.device, dtype=x.dtype)
    distance = position[:, None] - position
    if reverse:
        distance = -distance
    within = torch.where(distance >= 0, torch.exp(-scale * distance.clamp(min=0)), 0)  # (chunk, chunk)
    if length <= CHUNK_SIZE:
        return within @ x

    num_chunks = -(-length // chunk_size)
    x = nn.functional.pad(x, (0, 0, 0, num_chunks * chunk_size - length))
    y = within @ x.view(*batch, num_chunks, chunk_size, channels)
    if reverse:
        at_ends = decayed_sum(y[..., 0, :], scale * chunk_size, reverse=True)  # (..., num_chunks, channels)
        carry = nn.functional.pad(at_ends[..., 1:, :], (0, 0, 0, 1))
        steps_from_carry = chunk_size - position
    else:
        at_ends = decayed_sum(y[..., -1, :], scale * chunk_size)
        carry = nn.functional.pad(at_ends[..., :-1, :], (0, 0, 1, 0))
        steps_from_carry = position + 1
    y = y + torch.exp(-scale * steps_from_carry)[:, None] * carry[..., None, :]
    return y.reshape(*batch, num_chunks * chunk_size, channels)[..., :length, :]


def decayed_sum_token_by_token(x, scale, reverse=False):
    """The plain form of `decayed_sum`: y_i = exp(-scale) y_{i-1} + x_i."""
    y, running = [], torch.zeros_like(x[..., 0, :])
    tokens = x.unbind(-2)
    for token in reversed(tokens) if reverse else tokens:
        running = math.exp(-scale) * running + token
        y.append(running)
    return torch.stack(y[::-1] if reverse else y, dim=-2)


def exponential_coupling(x, scale):
    """r x with r_ij = exp(-scale |i - j|): `(..., length, channels)` to the same."""
    return decayed_sum(x, scale) + math.exp(-scale) * _neighbour(decayed_sum(x, scale, reverse=True), +1)


def coupling_to_others(x, scale):
    """exp(scale) (r - 1) x: the coupling to all positions but the own, with the next neighbour at weight 1."""
    return _neighbour(decayed_sum(x, scale), -1) + _neighbour(decayed_sum(x, scale, reverse=True), +1)


def _neighbour(x, offset):
    """The row before (offset -1) or after (offset +1) each row of `(..., length, channels)`, 0 past the ends."""
    if offset < 0:
        return nn.functional.pad(x[..., :-1, :], (0, 0, 1, 0))
    return nn.functional.pad(x[..., 1:, :], (0, 0, 0, 1))


def coupling_row_sum(scale):
    """sum over all j of exp(-scale |i - j|) = coth(scale / 2): what one process receives from a uniform astrocyte."""
    return 1 / math.tanh(scale / 2)


# --------------------------------------------------------------------------------------------------------------------
# Where the tokens of a batch lie
# --------------------------------------------------------------------------------------------------------------------


class SequenceLayout(NamedTuple):
    """Which tokens of a batch are real, and where they lie; worked out once per forward pass.

    Attributes:
        padding_mask: `(batch, length)` bool, True where a token is real; None if all are.
        position_ids: `(1 or batch, length)`, the position of each token; padding takes no position.
        is_contiguous: whether token i has position i in every sequence.
        order: `(batch, length)`, the index of each real token in turn, then of the padding; None if the real tokens
            come first anyway.
        rank: `(batch, length)`, the inverse of `order` on real tokens (and a valid index elsewhere), or None with it.
    """

    padding_mask: torch.Tensor | None
    position_ids: torch.Tensor
    is_contiguous: bool
    order: torch.Tensor | None
    rank: torch.Tensor | None


def sequence_layout(length, device, attention_mask=None, position_ids=None):
    """The `SequenceLayout` of a batch.

    Left and inner padding are laid out as if the padding were not there. Whether a mask has any is asked of its values,
    which a compiled or exported graph cannot do: there the general layout, right for every mask, is taken.

    Args:
        length (`int`): tokens per sequence, padding included.
        device (`torch.device`): where the positions are made.
        attention_mask (`torch.Tensor`, *optional*): `(batch, length)`, nonzero where a token is real.
        position_ids (`torch.Tensor`, *optional*): `(1 or batch, length)`, instead of counting the real tokens.
    """
    padding_mask = order = rank = None
    tokens_first = True
    if attention_mask is not None:
        padding_mask = attention_mask != 0
        if torch.compiler.is_compiling():
            tokens_first = False
        elif padding_mask.all():
            padding_mask = None
        else:
            tokens_first = not (~padding_mask[:, :-1] & padding_mask[:, 1:]).any()
    if not tokens_first:
        order = padding_mask.long().argsort(dim=-1, descending=True, stable=True)
        rank = (padding_mask.long().cumsum(-1) - 1).clamp(min=0)
    is_contiguous = position_ids is None and tokens_first
    if position_ids is None:
        position_ids = torch.arange(length, device=device)[None] if tokens_first else rank
    return SequenceLayout(padding_mask, position_ids, is_contiguous, order, rank)


# --------------------------------------------------------------------------------------------------------------------
# The codes
# --------------------------------------------------------------------------------------------------------------------


class AstrocyteCode(nn.Module):
    """What the three codes share: the resting level b, `(heads, 1, hidden_neurons)`, and their interface.

    `forward(key, layout)` takes the keys, `(batch, heads, length, hidden_neurons)`, and the batch's `SequenceLayout`;
    it returns R, `(heads, length, hidden_neurons)`, or the same with a leading batch, in float32 (float64 for float64).
    """

    def __init__(self, config):
        super().__init__()
        self.scale = float(config.astrocyte_scale)
        self.resting_bias = nn.Parameter(torch.empty(config.num_attention_heads, 1, config.num_hidden_neurons))

    def initial_values(self, config):
        """Pairs of a parameter and its initial value, a tensor that broadcasts to it."""
        return [(self.resting_bias, torch.tensor(resting_level(config.feature_map)))]


class LearnedAstrocyteCode(AstrocyteCode):
    """R = r W_rel + b with a learned row of W_rel per position; no position past `max_position_embeddings`."""

    def __init__(self, config):
        super().__init__(config)
        shape = (config.num_attention_heads, config.max_position_embeddings, config.num_hidden_neurons)
        self.relative_embedding = nn.Parameter(torch.empty(shape))  # W_rel

    def initial_values(self, config):
        std = config.initializer_range / coupling_row_sum(self.scale)  # so that R, too, starts within that range
        return [*super().initial_values(config), (self.relative_embedding, _normal_like(self.relative_embedding, std))]

    def forward(self, key, layout):
        table = upcast(self.relative_embedding)
        if layout.is_contiguous:
            # Rows so far past the last token that their coupling is below rounding need not be read.
            reach = math.ceil(-math.log(torch.finfo(table.dtype).eps) / self.scale)
            table = table[:, : key.shape[2] + reach]
            code = exponential_coupling(table, self.scale)[:, : key.shape[2]]  # (H, N, m)
        else:
            code = exponential_coupling(table, self.scale)[:, layout.position_ids].transpose(0, 1)  # (1 or B, H, N, m)
            code = code[0] if code.shape[0] == 1 else code
        return code + self.resting_bias


class SinusoidalAstrocyteCode(AstrocyteCode):
    """R = r S W + b with the sines and cosines S of the positions: like "learned", without a table.

    On the whole line of positions a wave of frequency w is an eigenfunction of r, with the eigenvalue
    sinh(scale) / (cosh(scale) - cos(w)): the coupling is a gain per frequency, and no recurrence is needed.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_frequencies = max(1, config.num_hidden_neurons // 2)
        shape = (config.num_attention_heads, 2 * self.num_frequencies, config.num_hidden_neurons)
        self.weight = nn.Parameter(torch.empty(shape))  # W

    def initial_values(self, config):
        std = config.initializer_range / coupling_row_sum(self.scale) / math.sqrt(self.num_frequencies)
        return [*super().initial_values(config), (self.weight, _normal_like(self.weight, std))]

    def forward(self, key, layout):
        weight = upcast(self.weight)
        waves = sinusoidal_features(layout.position_ids, self.num_frequencies, weight.dtype)  # S, (1 or B, N, 2F)
        frequencies = wave_frequencies(self.num_frequencies, waves)
        # sinh(s) / (cosh(s) - cos(w)) in tanh(s / 2), which neither overflows nor cancels
        t = math.tanh(self.scale / 2)
        gain = t / (t * t + (frequencies / 2).sin().square() * (1 - t * t))
        code = (waves * gain.repeat(2))[:, None] @ weight + self.resting_bias  # (1 or B, H, N, m)
        return code[0] if code.shape[0] == 1 else code


class ActivityAstrocyteCode(AstrocyteCode):
    """R = r' K W + b: each process integrates the activity that its neighbours' neurons see.

    Distances count real tokens only, so padding, on either side or between, changes nothing. A token without
    neighbours has R = b.
    """

    def __init__(self, config):
        super().__init__(config)
        shape = (config.num_attention_heads, config.num_hidden_neurons, config.num_hidden_neurons)
        self.weight = nn.Parameter(torch.empty(shape))  # W

    def initial_values(self, config):
        return [*super().initial_values(config), (self.weight, torch.eye(self.weight.shape[-1]))]

    def forward(self, key, layout):
        key = upcast(key)
        padding_mask = layout.padding_mask
        if layout.order is not None:
            key = _reorder(key, layout.order)
            padding_mask = padding_mask.gather(1, layout.order)
        if padding_mask is None:
            real = key.new_ones(1, 1, key.shape[2], 1)
        else:
            padding_mask = padding_mask[:, None, :, None]  # (B, 1, N, 1)
            real = padding_mask.to(key.dtype)
            key = key.masked_fill(~padding_mask, 0)
        total = coupling_to_others(key, self.scale)  # (B, H, N, m)
        weight_of_others = coupling_to_others(real, self.scale)  # (1 or B, 1, N, 1)
        neighbourhood = total / weight_of_others.clamp(min=torch.finfo(total.dtype).tiny)
        if layout.order is not None:
            neighbourhood = _reorder(neighbourhood, layout.rank)
        return neighbourhood @ upcast(self.weight) + self.resting_bias


ASTROCYTE_CODES = {
    "learned": LearnedAstrocyteCode,
    "sinusoidal": SinusoidalAstrocyteCode,
    "activity": ActivityAstrocyteCode,
}


def wave_frequencies(num_frequencies, like):
    """Radians per position, 1 down to nearly 1 / `WAVELENGTH_BASE`: `(num_frequencies,)`, as `like`."""
    exponents = torch.arange(num_frequencies, device=like.device, dtype=like.dtype) / num_frequencies
    return WAVELENGTH_BASE**-exponents


def sinusoidal_features(position_ids, num_frequencies, dtype):
    """Sines, then cosines, of the positions: `(batch, length)` to `(batch, length, 2 * num_frequencies)` in `dtype`."""
    positions = position_ids.to(dtype)
    angles = positions[..., None] * wave_frequencies(num_frequencies, positions)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _normal_like(parameter, std):
    return std * torch.randn_like(parameter)


def upcast(x):
    """`x` in float32 at least: sums run in it, whatever the dtype of their terms."""
    return x if x.dtype == torch.float64 else x.float()


def _reorder(x, index):
    """Rows of `(batch, heads, length, channels)` in the order of `index`, `(batch, length)`."""
    return x.gather(2, index[:, None, :, None].expand_as(x))
