# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Attention of which a part is exact, on a GPU: the passes of `hybrid_attention.py` as five Triton kernels.

PyTorch makes the features, phi of queries and keys, and the synapses that the blocks of tokens start from: matrix
products and running sums. What the kernels fuse is what the plain form spends its time and memory on: the scores of the
windows, the synapses' weights inside of a block, and their sum in one normaliser.

A program has a head and a block of queries (or of keys, for the gradients of these). Of the keys, those that all its
queries find in the synapses are in the state that it reads; the others lie in a few blocks around, which it takes one
by one: a pair of tokens is read exactly or through its features, as its distance says.

With the sum of a query's weights W, y = dY / W and delta = y Y, the gradient of the weight of a key j is
e_j = y v_j - delta, and

    ds_j = scaling exp(s_j - M) e_j     dphi(q) = g sum_j e_j w_j     dw_j = g sum_t e_tj phi(q_t)

over the keys that are read exactly, and those that are not. M is the greatest s_j, which takes back the sum of all ds.
The few sinks, which every query reads, have their gradients in PyTorch.

These functions know nothing of autograd and check nothing; their callers do. Letters in shape comments: B batch,
H heads, K key heads, N tokens, M keys (N, causally with the window of the state before), F features, d head size.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .attention_contract import Kernel
from .attention_passes import WEIGHT_FLOOR
from .feature_maps import MOST_GAIN, HedgehogMap
from .token_layout import for_each_query, reorder
from .token_roles import ExactPart, causal_roles, latest_keys, roles_both_ways
from .triton_blocks import block_of, by_token, on_device, precision_of, rows_of, strides, triton


if triton is not None:
    from .hybrid_attention_triton_source import (
        forward_kernel,
        key_backward_kernel,
        key_features_backward_kernel,
        query_backward_kernel,
        query_features_backward_kernel,
    )


# --------------------------------------------------------------------------------------------------------------------
# The passes
# --------------------------------------------------------------------------------------------------------------------


def causal_forward(**inputs: Any) -> tuple[torch.Tensor, ...]:
    """What `hybrid_attention.hybrid_causal` returns."""
    call = _Call(inputs, causal=True)
    output, *_ = call.attend()
    hebbian, calcium = (x[:, :, -1].clone() for x in call.states)  # clones let go of the other blocks
    window = reorder(call.brought, latest_keys(call.window_size, inputs["tokens"]))
    return output.to(inputs["output_dtype"]), hebbian, calcium, window, call.sinks


def causal_backward(**inputs: Any) -> dict[str, torch.Tensor]:
    """Gradients from those of `causal_forward`'s results."""
    call = _Call(inputs, causal=True)
    found = call.differentiate(inputs["d_output"], (inputs["d_grouped_hebbian"], inputs["d_grouped_calcium"]))
    d_brought, d_sinks = found.pop("brought"), found.pop("sinks") + inputs["d_sinks"]
    window_size = call.window_size
    latest = latest_keys(window_size, inputs["tokens"])
    d_brought.scatter_add_(2, _rows_at(latest, d_brought), inputs["d_window"])
    slots, is_new = call.roles.sink_source, call.roles.is_new_sink
    d_new = d_sinks.masked_fill(~is_new[:, None, :, None], 0)
    d_brought[:, :, window_size:].scatter_add_(2, _rows_at(slots, d_brought), d_new)
    size = inputs["query"].shape[3]
    return {
        **found,
        "grouped_key": d_brought[:, :, window_size:, :size],
        "grouped_value": d_brought[:, :, window_size:, size:],
        "window": d_brought[:, :, :window_size],
        "sinks": d_sinks.masked_fill(is_new[:, None, :, None], 0),
    }


def both_ways_forward(**inputs: Any) -> tuple[torch.Tensor]:
    """What `hybrid_attention.hybrid_both_ways` returns, in a tuple."""
    output, *_ = _Call(inputs, causal=False).attend()
    return (output.to(inputs["output_dtype"]),)


def both_ways_backward(**inputs: Any) -> dict[str, torch.Tensor]:
    """Gradients from that of `both_ways_forward`'s result."""
    call = _Call(inputs, causal=False)
    found = call.differentiate(inputs["d_output"], None)
    d_brought, d_sinks = (found.pop(name) for name in ("brought", "sinks"))
    for name in ("grouped_hebbian", "grouped_calcium"):  # there is no state to begin with
        del found[name]
    # what is not read there has a gradient of 0
    d_brought.scatter_add_(2, _rows_at(call.roles.sink_source, d_brought), d_sinks)
    size = inputs["query"].shape[3]
    return {**found, "grouped_key": d_brought[..., :size], "grouped_value": d_brought[..., size:]}


class _Answer(NamedTuple):
    """What `forward_kernel` writes: the output `(B, H, N, d)`, and of each query, `(B, H, N)`, the sum of its weights,
    its greatest score and which token it is of."""

    output: torch.Tensor
    totals: torch.Tensor
    greatest: torch.Tensor
    greatest_at: torch.Tensor


class _Call:
    """The tensors of one call, from the inputs of a pass.

    Args:
        inputs (mapping): of `hybrid_causal` or `hybrid_both_ways`.
        causal (`bool`): of which of them.
    """

    def __init__(self, inputs: dict[str, Any], causal: bool) -> None:
        self.causal, self.scaling = causal, inputs["scaling"]
        self.query, self.loudness = rows_of(inputs["query"]), inputs["loudness"].flatten()
        count, length = inputs["tokens"], self.query.shape[2]
        brought = torch.cat((inputs["grouped_key"], inputs["grouped_value"]), dim=-1)
        if causal:
            exact, before = ExactPart(inputs["window"].shape[2], inputs["sinks"].shape[2]), inputs["counted"]
            self.roles = causal_roles(exact, length, count, before)
            self.sinks = reorder(brought, self.roles.sink_source)
            self.sinks = torch.where(self.roles.is_new_sink[:, None, :, None], self.sinks, inputs["sinks"])
            brought = torch.cat((inputs["window"], brought), dim=2)
        else:
            exact = ExactPart(inputs["window_size"], inputs["sink_tokens"])
            self.roles = roles_both_ways(exact, length, count)
            self.sinks = reorder(brought, self.roles.sink_source)
        self.window_size = exact.window_size
        self.is_ordinary = self.roles.is_ordinary.contiguous()
        brought = brought.masked_fill(~self.roles.is_there[:, None, :, None], 0)  # padding may be anything
        self.brought = brought
        self.key, self.value = self.brought.split(self.query.shape[3], dim=-1)
        self.query_map = HedgehogMap(inputs["query_map"])
        self.key_map = HedgehogMap(inputs["key_map"], inputs["key_loudness"])
        self.query_features = self.query_map(self.query).contiguous()
        self.written_key = self.key[:, :, :length]
        features = self.key_map(self.written_key)
        self.key_features = features.masked_fill(~self.roles.is_written[:, None, :, None], 0).contiguous()
        self.precision = precision_of(self.query.dtype)
        self.block = tokens_of_block(self.query.shape[3], self.precision)
        self.num_blocks = triton.cdiv(length, self.block)
        sums = _sums_of_blocks(self.block, self.key_features, self.value[:, :, :length])
        first_state = (inputs["grouped_hebbian"], inputs["grouped_calcium"]) if causal else None
        self.states = tuple(map(_running, sums, first_state or (None, None)))
        self.later = None if causal else tuple(_running(x.flip(2)).flip(2) for x in sums)

    def attend(self) -> _Answer:
        query, (batch_size, num_heads, length, size) = self.query, self.query.shape
        output = by_token(query, size, torch.float32)
        totals, greatest = (query.new_empty(batch_size, num_heads, length) for _ in range(2))
        greatest_at = torch.empty_like(totals, dtype=torch.int64)
        with on_device(query):
            forward_kernel[(batch_size * num_heads * self.num_blocks,)](
                query,
                self.query_features,
                self.key,
                self.value,
                self.key_features,
                self.is_ordinary,
                self.sinks.contiguous(),
                self.roles.sink_seen_from.contiguous(),
                *self.states,
                *(self.later or (None, None)),
                self.loudness,
                output,
                totals,
                greatest,
                greatest_at,
                *self.sizes(),
                self.scaling,
                NUM_SINKS=self.sinks.shape[2],
                **self.constants("F", "D"),
            )
        return _Answer(output.transpose(1, 2), totals, greatest, greatest_at)

    def differentiate(
        self, d_output: torch.Tensor, d_states: tuple[torch.Tensor, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """The gradients of the inputs by their names, and of `brought` and `sinks`."""
        query, (batch_size, num_heads, length, size) = self.query, self.query.shape
        answer = self.attend()
        y = (d_output / answer.totals.clamp(min=WEIGHT_FLOOR)[..., None]).contiguous()
        delta = (answer.output * y).sum(-1)
        delta = torch.where(answer.totals < WEIGHT_FLOOR, 0, delta)  # the floor has no gradient
        d_query, d_greatest, of_sinks = self.differentiate_exact(answer, y, delta)
        num_features = self.query_features.shape[3]
        d_features = torch.empty_like(self.query_features)
        constants = self.constants("F", "D")
        feature_blocks = triton.cdiv(num_features, constants["BLOCK_F"])
        with on_device(query):
            query_features_backward_kernel[batch_size * num_heads * self.num_blocks, feature_blocks](
                self.value,
                self.key_features,
                *self.states,
                *(self.later or (None, None)),
                y,
                delta,
                d_features,
                *self.sizes()[3:],
                **constants,
            )
        d_loudness = (self.query_features * d_features).sum((0, 2, 3))
        loudness = self.loudness[:, None, None]
        d_query_by_map, d_query_map, _ = _map_gradients(self.query_map, query, d_features * loudness)

        # what the queries of each block read of the states, and of those of the blocks from each on
        sums = _sums_of_blocks(self.block, self.query_features, y * loudness, -delta * self.loudness[:, None])
        key_heads = self.key.shape[1]
        sums = tuple(x.unflatten(1, (key_heads, -1)).sum(2) for x in sums)
        d_of_states = tuple(
            _running(x.flip(2), first).flip(2) for x, first in zip(sums, d_states or (None, None), strict=True)
        )
        d_earlier = (None, None) if self.causal else tuple(map(_running, sums))
        num_keys = self.key.shape[2]
        d_key, d_value = (query.new_empty(batch_size, key_heads, num_keys, size) for _ in range(2))
        d_key_features = torch.empty_like(self.key_features)
        with on_device(query):
            key_backward_kernel[(batch_size * key_heads * triton.cdiv(num_keys, self.block),)](
                query,
                self.query_features,
                self.key,
                self.value,
                self.key_features,
                self.is_ordinary,
                self.loudness,
                y,
                delta,
                answer.greatest,
                answer.greatest_at,
                d_greatest,
                d_of_states[0],
                d_earlier[0],
                d_key,
                d_value,
                *self.sizes(),
                self.scaling,
                **constants,
            )
            key_features_backward_kernel[batch_size * key_heads * self.num_blocks, feature_blocks](
                self.query_features,
                self.value,
                self.loudness,
                y,
                delta,
                d_of_states[0],
                d_of_states[1],
                *d_earlier,
                d_key_features,
                *strides(self.key),
                num_heads,
                length,
                self.num_blocks,
                **constants,
            )
        d_key_features = d_key_features.masked_fill(~self.roles.is_written[:, None, :, None], 0)
        d_written, d_key_map, d_key_loudness = _map_gradients(self.key_map, self.written_key, d_key_features)
        d_key[:, :, :length] += d_written
        return {
            "query": d_query + d_query_by_map,
            "query_map": d_query_map,
            "key_map": d_key_map,
            "key_loudness": d_key_loudness,
            "loudness": d_loudness[:, None, None],
            "grouped_hebbian": d_of_states[0][:, :, 0].clone(),
            "grouped_calcium": d_of_states[1][:, :, 0].clone(),
            "brought": torch.cat((d_key, d_value), dim=-1),
            "sinks": of_sinks,
        }

    def differentiate_exact(
        self, answer: _Answer, y: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of what is read exactly: the gradient of the query, that of the greatest scores, `(B, H, N)`, but for its
        sign, and the gradient of the sinks."""
        query, (batch_size, num_heads, length, size) = self.query, self.query.shape
        sink_key, sink_value = for_each_query(query, self.sinks).split(size, dim=-1)
        is_read = self.roles.reads_sinks(length)[:, None]
        scores = (query @ sink_key.transpose(-1, -2) * self.scaling).masked_fill(~is_read, -torch.inf)
        weights = (scores - answer.greatest[..., None]).exp()
        d_scores = weights * (y @ sink_value.transpose(-1, -2) - delta[..., None]) * self.scaling
        d_greatest = d_scores.sum(-1)
        d_query = torch.zeros_like(query)
        if self.window_size > 0:
            of_windows = by_token(query, size, torch.float32)
            with on_device(query):
                query_backward_kernel[(batch_size * num_heads * self.num_blocks,)](
                    query,
                    self.key,
                    self.value,
                    self.is_ordinary,
                    y,
                    delta,
                    answer.greatest,
                    answer.greatest_at,
                    d_greatest,
                    of_windows,
                    *self.sizes(),
                    self.scaling,
                    **self.constants("D"),
                )
            d_query = of_windows.transpose(1, 2)
        slots = torch.arange(self.sinks.shape[2], device=query.device)
        is_greatest = answer.greatest_at[..., None] == -1 - slots
        d_scores = d_scores - torch.where(is_greatest, d_greatest[..., None], 0)
        d_query = d_query + d_scores @ sink_key
        of_sinks = torch.cat((d_scores.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ y), dim=-1)
        return d_query, d_greatest, of_sinks.unflatten(1, (self.key.shape[1], -1)).sum(2)

    def sizes(self) -> tuple[Any, ...]:
        """Strides of the queries and of the keys, and sizes that vary."""
        num_heads, length = self.query.shape[1:3]
        lengths = num_heads, length, self.key.shape[2], self.num_blocks
        return *strides(self.query), *strides(self.key), *lengths

    def constants(self, *sizes: str) -> dict[str, Any]:
        """What kernels are made for; `sizes`: which of F and D they have."""
        size, num_features = self.query.shape[3], self.query_features.shape[3]
        of_sizes = {"F": num_features, "BLOCK_F": block_of(num_features, self.precision)}
        of_sizes |= {"D": size, "BLOCK_D": max(16, triton.next_power_of_2(size))}
        return {
            "WINDOW": self.window_size,
            "CAUSAL": self.causal,
            "REACH": triton.cdiv(self.window_size, self.block),
            "GROUPS": self.query.shape[1] // self.key.shape[1],
            "PRECISION": self.precision,
            "BLOCK_N": self.block,
            **{name: x for name, x in of_sizes.items() if name[-1] in sizes},
            "num_warps": self.block // 4,
            "num_stages": 1,
        }


def tokens_of_block(size: int, precision: str) -> int:
    """How many tokens a block has, for a head size, so that the kernels fit the registers, and the shared memory of
    smaller GPUs."""
    return 32 if size <= (128 if precision == "tf32" else 64) else 16


def _rows_at(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The index `(B, rows)` of tokens, for each entry of `(B, K, tokens, channels)`."""
    return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


def _sums_of_blocks(
    block: int, features: torch.Tensor, value: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over each block of so many tokens: of features times values, `(B, ., blocks, F, d)`, and of features
    times the weights `(B, ., N)`, or as they are, `(B, ., blocks, F)`."""
    weight = torch.ones_like(value[..., 0]) if weight is None else weight
    fill = -features.shape[2] % block
    features, brought = (
        nn.functional.pad(x, (0, 0, 0, fill)).unflatten(2, (-1, block))
        for x in (features, torch.cat((value, weight[..., None]), dim=-1))
    )
    sums = features.transpose(-1, -2) @ brought
    return sums[..., :-1], sums[..., -1]


def _running(sums: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
    """`first` (0 without one), and it with the sums of one, two and so on of the blocks: `(B, K, blocks + 1, ...)`."""
    first = torch.zeros_like(sums[:, :, 0]) if first is None else first
    return torch.cat((first[:, :, None], sums), dim=2).cumsum(2)


def _map_gradients(
    features_of: HedgehogMap, x: torch.Tensor, d_features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The gradients of x, the map and its loudness from that of the features."""
    mapped = x @ features_of.weight
    features = torch.cat((mapped, -mapped), dim=-1).softmax(-1)
    d_x, d_loudness = torch.zeros_like(x), None
    if features_of.loudness is not None:
        exponent = x @ features_of.loudness
        gained = exponent.clamp(-MOST_GAIN, MOST_GAIN).exp()
        d_features = d_features * gained
        d_exponent = (d_features * features).sum(-1, keepdim=True).masked_fill(exponent.abs() > MOST_GAIN, 0)
        d_x = d_exponent @ features_of.loudness.transpose(-1, -2)
        d_loudness = (x.transpose(-1, -2) @ d_exponent).sum(0)
    d_scores = features * (d_features - (features * d_features).sum(-1, keepdim=True))
    positive, negative = d_scores.chunk(2, dim=-1)
    d_mapped = positive - negative
    return d_x + d_mapped @ features_of.weight.transpose(-1, -2), (x.transpose(-1, -2) @ d_mapped).sum(0), d_loudness


KERNELS = {
    "hybrid_causal": Kernel(causal_forward, causal_backward),
    "hybrid_both_ways": Kernel(both_ways_forward, both_ways_backward),
}
