# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Attention of which a small part is exact: softmax over the nearest tokens and over sinks, the synapses for the rest.

For a query t, let E be the tokens near it (a window) and the first tokens of the text (sinks, on which softmax
attention rests when it looks at nothing; bidirectionally also the last). With scores s_ti = scaling q_t k_i, their
maximum M_t over E, and what the synapses hold of all other tokens that t reads,

    Y_t = (sum_{i in E} exp(s_ti - M_t) v_i + g phi(q_t) H_t) / (sum_{i in E} exp(s_ti - M_t) + g phi(q_t) c_t)

    H_t = sum_{i not in E} w_i v_i^T,   c_t = sum_{i not in E} w_i,   w_i = phi(k_i) + phi(r_i)

with one number g per head: how loud the synapses are beside the exact part. The combination in one normaliser is that
of LoLCATs (Zhang et al., ICLR 2025). A window as long as the text is softmax attention; without a window and sinks, it
is neuron-astrocyte attention at alpha = 1 with calcium of all sources, for every g.

Causally a token enters the synapses when it leaves the window, so the state between tokens is of constant size: the
synapses, the keys and values of the window, and the sinks'.

Two forms stand here side by side: `hybrid_attention_weights`, the map that is applied, and `hybrid_attention`, at a
cost linear in the length. With the learned map "hedgehog" and without an astrocyte code, the latter is one of the
passes `hybrid_causal` and `hybrid_both_ways`, which `hybrid_attention_cpu.py` computes faster. Heads of queries may
share a head of keys and values, whose synapses are then theirs, too.

Letters in shape comments: B batch, H heads, K key heads, N tokens, F features, d head size, w window, S sinks.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from .astrocyte_code import upcast
from .attention_backends import choose_backend, register_operators, run_pass
from .attention_contract import MaterializedCode, Pass, declares_pass
from .attention_operation import attend
from .attention_passes import WEIGHT_FLOOR, full_precision
from .attention_state import NeuronAstrocyteState
from .feature_maps import HedgehogMap
from .token_layout import for_each_query, order_of_tokens, reorder
from .token_roles import ExactPart, causal_roles, latest_keys, roles_both_ways


class Synapses(NamedTuple):
    """How the tokens that are not read exactly are written and read.

    Attributes:
        query_features, key_features: phi of queries and of keys, functions from `(batch, heads, length, size)` to
            `(batch, heads, length, features)`, positive; such as a `HedgehogMap`.
        loudness: g, `(heads, 1, 1)`, of the heads of queries.
        code: makes R, in the space of the keys, `code(key, real, causal, state)` -> `(R, state)`; None: H_astro = 0.
            `real` is `(batch, length)` bool; the state, a tuple of tensors or None, is of causal codes.
    """

    query_features: Any
    key_features: Any
    loudness: torch.Tensor
    code: Any = None


def hybrid_attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    padding_mask: torch.Tensor | None = None,
    *,
    scaling: float,
    causal: bool,
) -> torch.Tensor:
    """The attention map that `hybrid_attention` applies without building it: the equation, entry by entry.

    Args:
        query (`torch.Tensor`): `(batch, heads, length, size)`.
        key (`torch.Tensor`): `(batch, key_heads, length, size)`; heads side by side share a head of keys.
        synapses (`Synapses`): of the tokens that are not read exactly.
        exact (`ExactPart`): which are.
        padding_mask (`torch.Tensor`, *optional*): `(batch, length)` bool, True where a token is real.
        scaling (`float`): of the exact scores.
        causal (`bool`): whether a token reads those up to itself only.

    Returns:
        `(batch, heads, length, length)`; the rows of real tokens sum to 1. Memory is quadratic.
    """
    batch_size, length = query.shape[0], query.shape[2]
    real = query.new_ones(batch_size, length, dtype=torch.bool) if padding_mask is None else padding_mask
    place = real.cumsum(-1) - 1  # among the real tokens of the row
    distance = place[:, :, None] - place[:, None, :]
    if causal:
        near = (distance >= 0) & (distance < exact.window_size)
        is_sink = place < exact.sink_tokens
        seen = distance >= 0
    else:
        near = (distance.abs() <= exact.window_size) & (exact.window_size > 0)
        is_sink = (place < exact.sink_tokens) | (place >= real.sum(-1, keepdim=True) - exact.sink_tokens)
        seen = torch.ones_like(near)
    seen = seen & real[:, None, :]
    is_exact = (near | is_sink[:, None, :]) & seen
    with full_precision(query):
        query, key = upcast(query), upcast(key)
        scores = (query @ for_each_query(query, key).transpose(-1, -2) * scaling).masked_fill(
            ~is_exact[:, None], -math.inf
        )
        weights = (scores - _finite_maximum(scores)).exp()
        written = synapses.key_features(key)
        if synapses.code is not None:
            r, _ = synapses.code(key, real & ~is_sink, causal, None)
            written = written + synapses.key_features(r)
        rest = synapses.query_features(query) @ for_each_query(query, written).transpose(-1, -2)
        weights = weights + synapses.loudness * rest * (seen & ~is_exact)[:, None]
        return weights / weights.sum(-1, keepdim=True).clamp(min=WEIGHT_FLOOR)


class HybridState(NamedTuple):
    """What a causal text leaves for the tokens that follow; no size depends on its length.

    Attributes:
        synapses: of the tokens that have left the window, `(batch, key_heads, features, size)` and the sum of features.
        code_state: of the code of those tokens.
        window: keys and values of the window's tokens, `(batch, key_heads, window_size, 2 size)`, the latest last.
        sinks: those of the sinks, `(batch, key_heads, sink_tokens, 2 size)`.
        counted: `(batch, 1)`, how many real tokens there were.
    """

    synapses: NeuronAstrocyteState | None
    code_state: Any
    window: torch.Tensor
    sinks: torch.Tensor
    counted: torch.Tensor


def hybrid_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    padding_mask: torch.Tensor | None = None,
    *,
    scaling: float,
    causal: bool,
    state: HybridState | None = None,
) -> tuple[torch.Tensor, HybridState | None]:
    """Attention that reads some tokens exactly and the others from the synapses, at a cost linear in the length.

    Args:
        query (`torch.Tensor`): `(batch, heads, length, size)`.
        key, value (`torch.Tensor`): `(batch, key_heads, length, size)`.
        synapses, exact, padding_mask, scaling, causal: as of `hybrid_attention_weights`.
        state (`HybridState`, *optional*): causally, what the call before returned.

    Returns:
        `(batch, heads, length, size)`, in the dtype of `value`, and causally the state after the last token.

    Raises:
        ValueError: a tensor has another shape than these.
    """
    _check_shapes(query, key, value, synapses, exact, padding_mask, state)
    dtype = value.dtype
    with full_precision(query):
        query, key, value = upcast(query), upcast(key), upcast(value)
        rank = None
        count = torch.full((query.shape[0], 1), query.shape[2], device=query.device)
        if padding_mask is not None:
            # in the order of the tokens, the padding last
            order, rank = order_of_tokens(padding_mask)
            query, key, value = (reorder(x, order) for x in (query, key, value))
            count = padding_mask.sum(-1, keepdim=True)
        given = (query, key, value, synapses, exact, count, scaling)
        if causal:
            output, state = _causal_pass(*given, state) if _has_pass(*given) else _causal(*given, state)
        else:
            output, state = _both_ways_pass(*given) if _has_pass(*given) else _both_ways(*given), None
        if rank is not None:
            output = reorder(output, rank)
        return output.to(dtype), state


def _check_shapes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    padding_mask: torch.Tensor | None,
    state: HybridState | None,
) -> None:
    """Raises a ValueError for tensors of other shapes than `hybrid_attention` takes: kernels read what they expect."""
    batch_size, heads, length, size = query.shape
    key_heads = key.shape[1]
    channels = size + value.shape[3]
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "key": (key, (batch_size, key_heads, length, size)),
        "value": (value, (batch_size, key_heads, length, value.shape[3])),
        "loudness": (synapses.loudness, (heads, 1, 1)),
        "padding_mask": (padding_mask, (batch_size, length)),
    }
    maps = {"query_features": (synapses.query_features, heads), "key_features": (synapses.key_features, key_heads)}
    for name, (features, number) in maps.items():
        if isinstance(features, HedgehogMap):
            expected[name] = (features.weight, (number, size, features.weight.shape[-1]))
    if state is not None:
        expected["state.counted"] = (state.counted, (batch_size, 1))
        expected["state.window"] = (state.window, (batch_size, key_heads, exact.window_size, channels))
        expected["state.sinks"] = (state.sinks, (batch_size, key_heads, exact.sink_tokens, channels))
        if state.synapses is not None:
            hebbian = state.synapses.hebbian
            expected["state.synapses"] = (hebbian, (batch_size, key_heads, hebbian.shape[2], value.shape[3]))
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {tuple(x.shape)}")
    if heads % key_heads:
        raise ValueError(f"the {heads} heads of queries must be a multiple of the {key_heads} heads of keys")


# --------------------------------------------------------------------------------------------------------------------
# As one pass, of which there are kernels
# --------------------------------------------------------------------------------------------------------------------


def _before_any_token(
    key: torch.Tensor,
    value: torch.Tensor,
    exact: ExactPart,
    count: torch.Tensor,
    synapses: NeuronAstrocyteState | None = None,
) -> HybridState:
    """The state before the first token: an empty window and no sinks, with the given synapses."""
    size = key.shape[3] + value.shape[3]
    window, sinks = (key.new_zeros(*key.shape[:2], number, size) for number in exact)
    return HybridState(synapses, None, window, sinks, torch.zeros_like(count))


def _has_pass(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, synapses: Synapses, *_: Any) -> bool:
    maps = (synapses.query_features, synapses.key_features)
    is_hedgehog = all(isinstance(features, HedgehogMap) for features in maps)
    return is_hedgehog and synapses.code is None and query.shape[-1] == value.shape[-1]


def _causal_pass(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    count: torch.Tensor,
    scaling: float,
    state: HybridState | None,
) -> tuple[torch.Tensor, HybridState]:
    """As `_causal`."""
    inputs = _inputs(query, key, value, synapses, count, scaling)
    if state is None:
        features = 2 * inputs["key_map"].shape[2]
        hebbian = key.new_zeros(*key.shape[:2], features, value.shape[3])
        silent = NeuronAstrocyteState(hebbian, key.new_zeros(*key.shape[:2], features))
        state = _before_any_token(key, value, exact, count, silent)
    assert state.synapses is not None
    inputs.update(grouped_hebbian=state.synapses.hebbian, grouped_calcium=state.synapses.calcium)
    inputs.update(window=state.window, sinks=state.sinks, counted=state.counted)
    output, hebbian, calcium, window, sinks = _run(hybrid_causal, inputs)
    return output, HybridState(NeuronAstrocyteState(hebbian, calcium), None, window, sinks, state.counted + count)


def _both_ways_pass(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    count: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """As `_both_ways`."""
    inputs = _inputs(query, key, value, synapses, count, scaling)
    (output,) = _run(hybrid_both_ways, {**inputs, **exact._asdict()})
    return output


def _inputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, synapses: Synapses, count: torch.Tensor, scaling: float
) -> dict[str, Any]:
    """What both passes take, by name."""
    key_loudness = synapses.key_features.loudness
    weights = {
        "query_map": synapses.query_features.weight,
        "key_map": synapses.key_features.weight,
        "key_loudness": key.new_zeros(*key.shape[1::2], 1) if key_loudness is None else key_loudness,
        "loudness": synapses.loudness,
    }
    return {
        "query": query,
        "grouped_key": key,
        "grouped_value": value,
        "tokens": count,
        **{name: x.to(query.dtype) for name, x in weights.items()},
        "scaling": scaling,
        "output_dtype": query.dtype,
    }


def _run(pass_: Pass, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    backend = choose_backend([pass_], inputs, [inputs[name] for name in pass_.tensors])
    return tuple(run_pass(pass_, backend, inputs).values())


@declares_pass(
    *("output", "grouped_hebbian", "grouped_calcium", "window", "sinks"),
    without_gradient=("tokens", "counted"),
    forward_only=("output_dtype",),
)
def hybrid_causal(
    *,
    query: torch.Tensor,
    grouped_key: torch.Tensor,
    grouped_value: torch.Tensor,
    tokens: torch.Tensor,
    counted: torch.Tensor,
    query_map: torch.Tensor,
    key_map: torch.Tensor,
    key_loudness: torch.Tensor,
    loudness: torch.Tensor,
    grouped_hebbian: torch.Tensor,
    grouped_calcium: torch.Tensor,
    window: torch.Tensor,
    sinks: torch.Tensor,
    scaling: float,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """The causal form with hedgehog maps, and the parts of its state that tokens change; see `HybridState`."""
    synapses = Synapses(HedgehogMap(query_map), HedgehogMap(key_map, key_loudness), loudness)
    written = NeuronAstrocyteState(grouped_hebbian, grouped_calcium)
    state: HybridState | None = HybridState(written, None, window, sinks, counted)
    exact = ExactPart(window.shape[2], sinks.shape[2])
    output, state = _causal(query, grouped_key, grouped_value, synapses, exact, tokens, scaling, state)
    assert state.synapses is not None
    return output.to(output_dtype), *state.synapses, state.window, state.sinks


@declares_pass("output", without_gradient=("tokens",), forward_only=("output_dtype",))
def hybrid_both_ways(
    *,
    query: torch.Tensor,
    grouped_key: torch.Tensor,
    grouped_value: torch.Tensor,
    tokens: torch.Tensor,
    query_map: torch.Tensor,
    key_map: torch.Tensor,
    key_loudness: torch.Tensor,
    loudness: torch.Tensor,
    window_size: int,
    sink_tokens: int,
    scaling: float,
    output_dtype: torch.dtype,
) -> torch.Tensor:
    """The form that reads in both directions, likewise."""
    synapses = Synapses(HedgehogMap(query_map), HedgehogMap(key_map, key_loudness), loudness)
    exact = ExactPart(window_size, sink_tokens)
    output = _both_ways(query, grouped_key, grouped_value, synapses, exact, tokens, scaling)
    return output.to(output_dtype)


for _pass in (hybrid_causal, hybrid_both_ways):
    register_operators(_pass)


# --------------------------------------------------------------------------------------------------------------------
# The plain form
# --------------------------------------------------------------------------------------------------------------------


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    count: torch.Tensor,
    scaling: float,
    state: HybridState | None,
) -> tuple[torch.Tensor, HybridState]:
    """Tokens in order, of which in each row the first `count`, `(batch, 1)`, are real."""
    (window_size, sink_tokens), length = exact, query.shape[2]
    brought = torch.cat((key, value), dim=-1)
    if state is None:
        state = _before_any_token(key, value, exact, count)
    before = state.counted
    brought = torch.cat((state.window, brought), dim=2)  # behind the tokens of the window before
    roles = causal_roles(exact, length, count, before)
    new = reorder(brought[:, :, window_size:], roles.sink_source)
    sinks = torch.where(roles.is_new_sink[:, None, :, None], new, state.sinks)

    parts = [_parts_of_sinks(query, sinks, roles.reads_sinks(length), scaling)] if sink_tokens else []
    if window_size:
        parts.append(_parts_of_window(query, brought[:, :, 1:], roles.is_ordinary[:, 1:], window_size, scaling))
    left = brought[:, :, :length]  # what has left the window when a query comes
    read, written, code_state = _read_synapses(
        query, left, roles.is_written, synapses, causal=True, state=state.synapses, code_state=state.code_state
    )
    latest = reorder(brought, latest_keys(window_size, count))
    state = HybridState(written, code_state, latest, sinks, before + count)
    return _in_one_normaliser(parts, [read], synapses.loudness), state


def _both_ways(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    synapses: Synapses,
    exact: ExactPart,
    count: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Likewise, reading in both directions."""
    (window_size, sink_tokens), length = exact, query.shape[2]
    brought = torch.cat((key, value), dim=-1)
    roles = roles_both_ways(exact, length, count)
    parts = []
    if sink_tokens:
        sinks = reorder(brought, roles.sink_source)
        parts.append(_parts_of_sinks(query, sinks, roles.reads_sinks(length), scaling))
    code = None
    if synapses.code is not None:
        code, _ = synapses.code(key, roles.is_ordinary, False, None)
    if not window_size:
        reads = [_read_synapses(query, brought, roles.is_written, synapses, causal=False, code=code)[0]]
        return _in_one_normaliser(parts, reads, synapses.loudness)
    around = nn.functional.pad(brought, (0, 0, window_size, window_size))
    known = nn.functional.pad(roles.is_ordinary, (window_size, window_size))
    parts.append(_parts_of_window(query, around, known, 2 * window_size + 1, scaling))
    # on either side of the window, what has been written on the way from that end
    reads = []
    for turned in (False, True):
        tokens = (query, brought, roles.is_written[:, None, :, None], *(() if code is None else (code,)))
        own_query, *written = (x.flip(2) if turned else x for x in tokens)
        behind, known, *own_code = (nn.functional.pad(x, (0, 0, window_size + 1, 0))[:, :, :length] for x in written)
        read, *_ = _read_synapses(
            own_query, behind, known[:, 0, :, 0], synapses, causal=True, code=own_code[0] if own_code else None
        )
        reads.append(read.flip(2) if turned else read)
    return _in_one_normaliser(parts, reads, synapses.loudness)


def _parts_of_sinks(
    query: torch.Tensor, sinks: torch.Tensor, is_read: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, Any]:
    """Scores `(batch, heads, length, sinks)`, and what weights of them become."""
    key, value = for_each_query(query, sinks).split(query.shape[-1], dim=-1)
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~is_read[:, None], -math.inf)
    return scores, lambda weights: weights @ value


def _parts_of_window(
    query: torch.Tensor, brought: torch.Tensor, is_there: torch.Tensor, width: int, scaling: float
) -> tuple[torch.Tensor, Any]:
    """The same of a window: query t reads tokens t to t + width - 1 of `brought`, block by block."""
    batch_size, heads, length, size = query.shape
    brought = for_each_query(query, brought)
    block = max(width, 16)
    num_blocks = -(-length // block)
    fill = num_blocks * block - length
    reach = block + width - 1
    in_blocks = nn.functional.pad(query, (0, 0, 0, fill)).view(batch_size, heads, num_blocks, block, size)
    around = nn.functional.pad(brought, (0, 0, 0, fill)).unfold(2, reach, block)  # (B, H, blocks, 2 size, reach)
    known = nn.functional.pad(is_there, (0, fill)).unfold(1, reach, block)[:, None, :, None]
    offset = torch.arange(reach, device=query.device) - torch.arange(block, device=query.device)[:, None]
    is_read = (offset >= 0) & (offset < width) & known
    key, value = around.split(size, dim=3)
    scores = (in_blocks @ key * scaling).masked_fill(~is_read, -math.inf).flatten(2, 3)[:, :, :length]

    def read(weights: torch.Tensor) -> torch.Tensor:
        weights = nn.functional.pad(weights, (0, 0, 0, fill)).view(batch_size, heads, num_blocks, block, reach)
        return (weights @ value.transpose(-1, -2)).flatten(2, 3)[:, :, :length]

    return scores, read


def _read_synapses(
    query: torch.Tensor,
    written: torch.Tensor,
    real: torch.Tensor,
    synapses: Synapses,
    *,
    causal: bool,
    state: NeuronAstrocyteState | None = None,
    code: torch.Tensor | None = None,
    code_state: Any = None,
) -> tuple[torch.Tensor, Any, Any]:
    """phi(q) H beside phi(q) c, `(batch, heads, length, size + 1)`, and the states."""
    key, value = written.split(query.shape[-1], dim=-1)
    if code is None and synapses.code is not None:
        code, code_state = synapses.code(key, real, causal, code_state)
    if code is not None:
        code = for_each_query(query, synapses.key_features(code))
    features, written = synapses.query_features(query), synapses.key_features(key)
    if state is not None:  # the counts are in the sums, too
        hebbian = torch.cat((state.hebbian, state.calcium[..., None]), dim=-1)
        state = NeuronAstrocyteState(*(for_each_query(query, x) for x in (hebbian, state.calcium)))
    value = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)  # the ones count what is written
    attended = attend(
        query=features,
        key=for_each_query(query, written),
        value=for_each_query(query, value),
        astrocyte_code=None if code is None else MaterializedCode(code, None),
        padding_mask=real,
        alpha=1.0,
        calcium_sources="all",
        feature_map="identity",
        feedback=False,
        random_projection=None,
        causal=causal,
        initial_state=state,
        output_scale=float(features.shape[-1]),
    )
    if not isinstance(attended.state, NeuronAstrocyteState):  # bidirectionally, nothing is left
        return attended.output, None, code_state
    groups = query.shape[1] // key.shape[1]  # heads that have written the same
    hebbian, calcium = (x[:, ::groups].contiguous() for x in attended.state)
    return attended.output, NeuronAstrocyteState(hebbian[..., :-1], calcium), code_state


def _in_one_normaliser(parts: list[Any], reads: list[torch.Tensor], loudness: torch.Tensor) -> torch.Tensor:
    """The exact parts and what was read from the synapses, `(batch, heads, length, size)`."""
    read = torch.stack(reads).sum(0) if len(reads) > 1 else reads[0]
    total, weight = (loudness * x for x in read.split((read.shape[-1] - 1, 1), dim=-1))
    if parts:
        scores = torch.cat([scores for scores, _ in parts], dim=-1)
        weights = (scores - _finite_maximum(scores)).exp()
        weight = weight + weights.sum(-1, keepdim=True)
        for own, (_, read_part) in zip(weights.split([s.shape[-1] for s, _ in parts], dim=-1), parts, strict=True):
            total = total + read_part(own)
    return total / weight.clamp(min=WEIGHT_FLOOR)


def _finite_maximum(scores: torch.Tensor) -> torch.Tensor:
    """The greatest score of each row, 0 for a row without any. It has a gradient: beside the exact weights, which all
    fall with it, those of the synapses stay."""
    maximum = scores.amax(-1, keepdim=True)
    return maximum.masked_fill(maximum == -math.inf, 0)
