# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Which tokens hybrid attention reads exactly, and which through the synapses: what its plain form and its Triton
kernels both start from.

Letters in shape comments: B batch, N tokens, M keys (N, causally behind those of the window before), w window, S sinks.
"""

from typing import NamedTuple

import torch


class ExactPart(NamedTuple):
    """Which tokens a query reads exactly.

    Attributes:
        window_size: causally the number of nearest tokens, itself included; bidirectionally on each side, and itself.
            0: none.
        sink_tokens: the number of first tokens of the text; bidirectionally of first and of last ones. 0: none.
    """

    window_size: int = 0
    sink_tokens: int = 0


class TokenRoles(NamedTuple):
    """What becomes of each token. In each row the first ones are real, and padding follows.

    Attributes:
        is_there: `(B, M)`, whether a key is that of a real token.
        is_ordinary: `(B, M)`, whether it is, and not of a sink: a key that a window reads.
        is_written: `(B, N)`, whether the synapses take the key there, of the first N.
        sink_source: `(B, S)`, the new token that a sink is.
        is_new_sink: `(B, S)`, whether it is one; else the sink is known from before, or there is none.
        sink_seen_from: `(B, S)`, the first of the N queries that reads a sink; N, where none does.
    """

    is_there: torch.Tensor
    is_ordinary: torch.Tensor
    is_written: torch.Tensor
    sink_source: torch.Tensor
    is_new_sink: torch.Tensor
    sink_seen_from: torch.Tensor

    def reads_sinks(self, length: int) -> torch.Tensor:
        """`(B, N, S)`: whether a query reads a sink."""
        return self.sink_seen_from[:, None] <= torch.arange(length, device=self.is_there.device)[:, None]


def causal_roles(exact: ExactPart, length: int, count: torch.Tensor, before: torch.Tensor) -> TokenRoles:
    """Roles of `length` tokens, of which in each row the first `count`, `(B, 1)`, are real, after `before` others."""
    (window_size, sink_tokens), device = exact, count.device
    place = before + torch.arange(-window_size, length, device=device)  # in the whole text
    is_there = (place >= 0) & (place < before + count)
    is_ordinary = is_there & (place >= sink_tokens)
    # a key is written when it has left the window
    is_written = is_ordinary[:, :length] & (torch.arange(length, device=device) < count)
    source = torch.arange(sink_tokens, device=device) - before
    return TokenRoles(
        is_there=is_there,
        is_ordinary=is_ordinary,
        is_written=is_written,
        sink_source=source.clamp(0, length - 1),
        is_new_sink=(source >= 0) & (source < count),
        sink_seen_from=source,
    )


def roles_both_ways(exact: ExactPart, length: int, count: torch.Tensor) -> TokenRoles:
    """Likewise, where queries read in both directions. There are twice as many sinks: the first tokens and the last."""
    sink_tokens, device = exact.sink_tokens, count.device
    place = torch.arange(length, device=device)
    is_there = place < count
    is_ordinary = is_there & (place >= sink_tokens) & (place < count - sink_tokens)
    slots = torch.arange(sink_tokens, device=device)
    first, last = slots.expand(count.shape[0], -1), count - 1 - slots
    is_sink = torch.cat((first < count, last >= sink_tokens), dim=1)  # in a short text, none twice
    return TokenRoles(
        is_there=is_there,
        is_ordinary=is_ordinary,
        is_written=is_ordinary,
        sink_source=torch.cat((first, last), dim=1).clamp(0, length - 1),
        is_new_sink=is_sink,
        sink_seen_from=torch.where(is_sink, 0, length),
    )


def latest_keys(window_size: int, count: torch.Tensor) -> torch.Tensor:
    """`(B, w)`: which of the M causal keys are the window of the tokens that follow."""
    return count + torch.arange(window_size, device=count.device)
