# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""How fast the synapses of a layer forget: the leak terms -beta s and -gamma p of the macro model (Kozachkov, Slotine
and Krotov, "Neuron-Astrocyte Associative Memory", 2023), one rate per head, learned.

    "learned"   log f_t = -exp(b)                 a rate, in 1 / tokens
    "gated"     log f_t = log sigmoid(x_t W + b)  which depends on the token that comes

f_t is the share of all that was written that is left when token t comes; `attention_operation.py` says what is done
with it. A head remembers about 1 / -log(f) tokens, its memory span. Spans start spread over the heads, evenly in their
logarithm: some heads must start long, or recall is never learned, and some short, since near words matter most. The b
is called a bias, so that training leaves it out of weight decay, which would drive every rate to 1.

Images have no order in which time could pass. There a head's rate is one of distance, in patches along rows plus
patches along columns.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .astrocyte_code import of_heads, upcast
from .head_shards import HeadShard


class SynapticDecay(nn.Module):
    """The leak of a layer's synapses, as `config.synaptic_decay` says: "learned" or "gated"."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads))  # b
        self.weight: nn.Parameter | None = None
        if config.synaptic_decay == "gated":
            self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.hidden_size))  # W, transposed

    def initial_values(self, config: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Pairs of a parameter and its initial value, a tensor that broadcasts to it."""
        spans = torch.tensor(spread_over_heads(config.initial_memory_spans, len(self.bias)), dtype=torch.float64)
        if self.weight is None:
            return [(self.bias, -spans.log())]
        # sigmoid(b) = exp(-1 / span)
        return [(self.bias, -torch.expm1(1 / spans).log()), (self.weight, torch.tensor(0.0))]

    def forward(
        self, hidden_states: torch.Tensor, distances: torch.Tensor | None = None, shard: HeadShard | None = None
    ) -> torch.Tensor:
        """The logarithm of the share that is left.

        Args:
            hidden_states (`torch.Tensor`): `(batch, length, hidden_size)`.
            distances (`torch.Tensor`, *optional*): `(length, length)`, between tokens that do not lie on a line.
                "learned" only: a gate would need an order.
            shard (`HeadShard`, *optional*): where the layer computes some of the heads.

        Returns:
            log f_t, `(batch, heads, length)`, or `(1, heads, length)` where it is the same for all; with `distances`
            that of what is written at one place and found at another, `(heads, length, length)`. In float32 (float64
            for float64).
        """
        if self.weight is None:
            (bias,) = of_heads(shard, self.bias)
            rates = upcast(bias).exp()  # in 1 / tokens, (heads,)
            if distances is not None:
                return -rates[:, None, None] * distances.to(rates)
            return -rates[None, :, None].expand(1, -1, hidden_states.shape[1])
        weight, bias = (upcast(x) for x in of_heads(shard, self.weight, self.bias))
        return nn.functional.logsigmoid(upcast(hidden_states) @ weight.T + bias).transpose(1, 2)


def spread_over_heads(spans: Sequence[float], num_heads: int) -> list[float]:
    """Memory spans of the heads, in tokens: `spans` are laid over all heads and interpolated in their logarithm."""
    logs = [math.log(span) for span in spans]
    found = []
    for head in range(num_heads):
        place = (len(logs) - 1) * (head / (num_heads - 1) if num_heads > 1 else 0.5)
        left = min(int(place), max(len(logs) - 2, 0))
        right = min(left + 1, len(logs) - 1)
        found.append(math.exp(logs[left] + (logs[right] - logs[left]) * (place - left)))
    return found


def effective_tokens(spans: Sequence[float], num_heads: int, causal: bool, dimensions: int) -> float:
    """How many tokens a leaky synapse sees at most, each counted by its share that is left; averaged over the heads in
    its logarithm."""
    seen = []
    for span in spread_over_heads(spans, num_heads):
        if causal:
            seen.append(-1 / math.expm1(-1 / span))
        else:
            seen.append(math.tanh(0.5 / span) ** -dimensions)
    return math.exp(math.fsum(map(math.log, seen)) / num_heads)
