# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The covariance rule: plasticity that follows how activities vary together, not how strong they are together.

Hebb's rule, the paper's, adds up phi(k) v^T: a synapse grows with the product of the activities, also where neither
carries anything but its mean. Sejnowski's ("Storing covariance with nonlinearly interacting neurons", 1977) adds up the
product of their deviations from the mean. Over n tokens, with z the sum of phi(k) and V that of v,

    H_cov = (1/n) sum_s (phi(k_s) - z/n) v_s^T = (1/n) (H - z V^T / n)        H = sum_s phi(k_s) v_s^T

and the query reads it as it is, without phi, since a deviation may have either sign:

    Y_cov = q H_cov = (1/n) (q H - (q z) V / n)

Two reads of linear attention give all of that, in every form that the operation has: causal, leaky (n is then what is
left of the tokens), with padding, in pieces, of several documents. The first is of the synapses H and z, whose values
have a 1 beside them; the second of a single synapse that every token excites alike, which holds V and n.

Nothing here is the astrocyte's: the term can be added to any attention, and `config.hebbian_rule` adds it to every arm.
"""

from typing import Any

import torch
from torch import nn

from .attention_operation import attend, shares
from .attention_passes import working_dtype
from .attention_state import BidirectionalState, NeuronAstrocyteState
from .feature_maps import phi


CovarianceState = tuple[torch.Tensor, ...]


def covariance_read(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None = None,
    *,
    feature_map: str,
    causal: bool = False,
    initial_state: CovarianceState | None = None,
    **positions: Any,
) -> tuple[torch.Tensor, CovarianceState | None]:
    """Y_cov, `(batch, heads, length, head_dim)` in the dtype of `value`, and the state after the last token.

    Args:
        query, key, value, padding_mask, feature_map, causal: as of `neuron_astrocyte_attention`. The feature map must
            have a feature for each hidden neuron.
        initial_state (tuple of `torch.Tensor`, *optional*): causally, what the call before returned: hebbian and
            calcium of the two reads.
        positions: `log_decay`, `proximity` and `document_ids`, as of `attend`.

    Returns:
        The state is None unless `causal`.
    """
    working = working_dtype(query, key, value)
    query, activity = query.to(working), phi(key.to(working), feature_map)
    written = nn.functional.pad(value.to(working), (0, 1), value=1)  # (B, H, N, d + 1)
    alike = query.new_ones(*query.shape[:3], 1)
    reads: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    for read, excite, before in (
        (query, activity, None if initial_state is None else initial_state[:2]),
        (alike, alike[:, :, : key.shape[2]], None if initial_state is None else initial_state[2:]),
    ):
        output, state, _ = attend(
            query=read,
            key=excite,
            value=written,
            astrocyte_code=None,
            padding_mask=padding_mask,
            alpha=1.0,
            feature_map="identity",
            feedback=False,
            random_projection=None,
            causal=causal,
            initial_state=None if before is None else NeuronAstrocyteState(*before),
            output_final_state=causal,
            output_scale=float(read.shape[-1]),  # the operation's 1/m is not wanted here
            **positions,
        )
        reads.append(output)
        if causal:
            assert state is not None and not isinstance(state, BidirectionalState)
            states.extend(state)
    (q_hebbian, q_calcium), (values, count) = (read.split((value.shape[-1], 1), dim=-1) for read in reads)
    count = torch.where(count > 0, count, 1)
    output = (q_hebbian - q_calcium * values / count) / count
    return output.to(value.dtype), tuple(states) if causal else None


def covariance_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    padding_mask: torch.Tensor | None = None,
    *,
    feature_map: str,
    causal: bool = False,
    log_decay: torch.Tensor | None = None,
    proximity: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `covariance_read` multiplies the values with, `(batch, heads, length, length)`, for looking at. Arguments as
    there; memory is quadratic."""
    activity = phi(key.to(working_dtype(query, key)), feature_map)
    share = shares(log_decay, proximity, padding_mask, document_ids, causal, activity)
    if padding_mask is not None:
        share = share * padding_mask[:, None, None, :]
        activity = activity.masked_fill(~padding_mask[:, None, :, None], 0)
    count = share.sum(-1, keepdim=True)
    count = torch.where(count > 0, count, 1)
    query = query.to(activity.dtype)
    q_calcium = (query * (share @ activity)).sum(-1, keepdim=True)
    return share * (query @ activity.transpose(-1, -2) - q_calcium / count) / count
