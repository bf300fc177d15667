# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The passes of neuron-astrocyte attention, in their plain form: what the backends have faster twins of.

Bidirectionally the operation writes all and then reads all (`write_mode`, `read_mode`); causally it goes in chunks
(`write_and_read_causally`); rows of several documents are written and read document by document
(`write_and_read_documents`); synapses that leak are read from both ends of the line (`write_and_read_both_ways`), or at
given distances (`write_and_read_at_distances`). All but the last stand here a second time "with activity": they make
the astrocyte code of that name, R = r' K W + b, as they go, so that a kernel never stores it.

A pass is declared here once, by `declares_pass`: name, inputs, results, and what is not differentiable are read off its
signature. It is called by keyword. For feature maps that kernels do not have, query, key and code are features already,
and `feature_map` is "identity". The equations are those of `attention_operation.py`, whose letters shape comments use.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .attention_contract import declares_pass
from .decayed_sums import LeakyChunks, documents_in_chunks, in_chunks
from .feature_maps import phi
from .token_layout import activity_code, order_of_tokens


# Smallest calcium that counts as any: small enough to leave every real signal alone, and large enough for the square of
# its inverse, in the derivative of the feedback, to be a number in float32, the narrowest type that the sums run in.
# Below it a synapse is silent: it neither adds to the response nor is answered by the feedback.
CALCIUM_FLOOR = 1e-18
# The same of the sum of all weights of an answer, of which exact ones are a part.
WEIGHT_FLOOR = 1e-18

# Tokens per block of the causal form: quadratic attention inside, the state of the synapses between.
CHUNK_SIZE = 64

Tensor = torch.Tensor
NOT_DIFFERENTIABLE = ("padding_mask", "document_ids")


# --------------------------------------------------------------------------------------------------------------------
# Write mode, read mode
# --------------------------------------------------------------------------------------------------------------------


@declares_pass("hebbian", "calcium", without_gradient=("padding_mask",))
def write_mode(
    *,
    key: Tensor,
    value: Tensor,
    astrocyte_code: Tensor | None,
    padding_mask: Tensor | None,
    feature_map: str,
    calcium_sources: str,
) -> tuple[Tensor, Tensor]:
    """Keys and values imprint the synapses: what these tokens write, as `(hebbian, calcium)`."""
    imprint, source = imprints(key, astrocyte_code, padding_mask, feature_map, calcium_sources)
    hebbian = imprint.transpose(-1, -2) @ silenced(value, padding_mask).to(imprint.dtype)
    return hebbian, source.sum(dim=-2)


@declares_pass("output", forward_only=("output_dtype",))
def read_mode(
    *, query: Tensor, hebbian: Tensor, plasticity: Tensor | None, feature_map: str, output_dtype: torch.dtype
) -> Tensor:
    """Queries are answered from the synapses, `(batch, heads, length, head_dim)` in `output_dtype`.

    Args:
        hebbian (`torch.Tensor`): `(batch, heads, features, head_dim)`, H_neuron + H_astro, with every factor of the
            output in it.
        plasticity (`torch.Tensor`, *optional*): g, `(batch, heads, features)`; without it there is no feedback.
    """
    activity = phi(query.to(hebbian.dtype), feature_map)  # (B, H, N, F)
    output = activity @ hebbian  # (B, H, N, d)
    if plasticity is not None:
        output = with_feedback(output, activity @ plasticity[..., None])
    return output.to(output_dtype)


def presynaptic_plasticity(calcium: Tensor, alpha: float) -> Tensor:
    """g = calcium^alpha: the calcium of a process grows sub-linearly with the activity that it saw."""
    return torch.where(calcium > CALCIUM_FLOOR, calcium.clamp(min=CALCIUM_FLOOR) ** alpha, 0)


def presynaptic_release(calcium: Tensor, alpha: float) -> Tensor:
    """calcium^(alpha - 1), what a synapse releases in proportion to its weight: the less, the more it has seen."""
    release = torch.exp((alpha - 1) * calcium.clamp(min=CALCIUM_FLOOR).log())  # its derivative stays finite
    return torch.where(calcium > CALCIUM_FLOOR, release, 0)


def released(activity: Tensor, calcium: Tensor, alpha: float, presynaptic_target: str) -> Tensor:
    """phi(Q) as it reaches the synapses' weights, `(batch, heads, length, features)`: times calcium^(alpha - 1) where
    alpha acts at the synapse, from the calcium of each token or, `(batch, heads, features)`, of all."""
    if presynaptic_target == "response" or alpha == 1:
        return activity
    release = presynaptic_release(calcium, alpha)
    return activity * (release if release.dim() == activity.dim() else release[:, :, None])


def calcium_response(activity: Tensor, calcium: Tensor, alpha: float) -> Tensor:
    """C = phi(Q) g with g = calcium^alpha: `(batch, heads, length, 1)`, from the activity phi(Q) of shape
    `(batch, heads, length, features)` and the calcium, `(batch, heads, features)`, or causally one for each token."""
    g = presynaptic_plasticity(calcium, alpha)
    return activity @ g[..., None] if g.dim() < activity.dim() else (activity * g).sum(-1, keepdim=True)


def astrocyte_feedback(response: Tensor) -> Tensor:
    """P = 1 / C, and 0 where the process found no calcium at all."""
    return torch.where(response > CALCIUM_FLOOR, 1 / response.clamp(min=CALCIUM_FLOOR), 0)


def with_feedback(output: Tensor, response: Tensor) -> Tensor:
    """P * output with P = 1 / C, 0 where there is no calcium, as of `astrocyte_feedback`: `(batch, heads, length, ...)`
    for a response C of shape `(batch, heads, length, 1)`.

    In one division: where C is large, the derivative of P alone, 1 / C^2, would be 0 in float32.
    """
    return output / torch.where(response > CALCIUM_FLOOR, response, math.inf)


def activities(
    key: Tensor, astrocyte_code: Tensor | None, padding_mask: Tensor | None, feature_map: str
) -> tuple[Tensor, Tensor]:
    """phi(K) and phi(R) in the working dtype, 0 at padded tokens; a scalar 0 stands for phi(R) without a code."""
    working = working_dtype(key)
    presynaptic = phi(key.to(working), feature_map)  # (B, H, N, F)
    process = presynaptic.new_zeros(())
    if astrocyte_code is not None:
        process = phi(astrocyte_code.to(working), feature_map)  # (H, N, F) or (B, H, N, F)
    if padding_mask is not None:
        padded = ~padding_mask[:, None, :, None]  # (B, 1, N, 1)
        presynaptic = presynaptic.masked_fill(padded, 0)
        process = process.masked_fill(padded, 0)
    return presynaptic, process


def imprints(
    key: Tensor, astrocyte_code: Tensor | None, padding_mask: Tensor | None, feature_map: str, calcium_sources: str
) -> tuple[Tensor, Tensor]:
    """phi(K) + phi(R), which values are written with, and what calcium is the sum of: that, with `calcium_sources`
    "all", or phi(K) alone, with "neurons"; in the working dtype, 0 at padded tokens."""
    presynaptic, process = activities(key, astrocyte_code, padding_mask, feature_map)
    imprint = presynaptic + process
    return imprint, imprint if calcium_sources == "all" else presynaptic


def silenced(value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The values with 0 at padded tokens: zero activity times a padded NaN would be NaN."""
    return value if padding_mask is None else value.masked_fill(~padding_mask[:, None, :, None], 0)


# --------------------------------------------------------------------------------------------------------------------
# Both at once: causally, and document by document
# --------------------------------------------------------------------------------------------------------------------


@declares_pass(
    *("output", "hebbian", "calcium"),
    without_gradient=NOT_DIFFERENTIABLE,
    forward_only=("output_dtype",),
    states=("hebbian", "calcium"),
)
def write_and_read_causally(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    astrocyte_code: Tensor | None,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
    log_decay: Tensor | None,
    hebbian: Tensor,
    calcium: Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The causal form in chunks: `(output, hebbian, calcium)`, each token reading what was written up to itself.

    Inside a chunk a token reads its predecessors through a masked `CHUNK_SIZE` x `CHUNK_SIZE` attention map; what the
    chunks before have written it reads from their Hebbian weights. Time and memory are linear in the length.

    Args:
        document_ids (`torch.Tensor`, *optional*): as of `number_documents`; a token then reads its own document only.
        log_decay (`torch.Tensor`, *optional*): log f_t, 0 at padded tokens; without it nothing leaks.
        hebbian, calcium (`torch.Tensor`): the state before these tokens.
        scale (`float`): factor of the output, 1/m.
    """
    length = query.shape[2]
    imprint, source = imprints(key, astrocyte_code, padding_mask, feature_map, calcium_sources)
    written = silenced(value, padding_mask).to(imprint.dtype)
    if length == 1:  # a single token reads all that was written, its own key included
        if log_decay is not None:
            left = log_decay.to(hebbian.dtype).exp()  # (B, H, 1)
            hebbian, calcium = hebbian * left[..., None], calcium * left
        hebbian = hebbian + imprint.transpose(-1, -2) @ written
        calcium = calcium + source.sum(dim=-2)
        output = read_mode(
            query=query,
            hebbian=released_weights(hebbian, calcium, alpha, presynaptic_target) * scale,
            plasticity=presynaptic_plasticity(calcium, alpha) if feedback else None,
            feature_map=feature_map,
            output_dtype=output_dtype,
        )
        return output, hebbian, calcium
    activity = phi(query.to(hebbian.dtype), feature_map)  # (B, H, N, F)
    if document_ids is None and log_decay is None:
        calciums = calcium[:, :, None] + source.cumsum(-2)  # z_t, (B, H, N, F)
        last_calcium = calciums[:, :, -1]
        reading = released(activity, calciums, alpha, presynaptic_target)
        read, imprint, written = (in_chunks(x, CHUNK_SIZE) for x in (reading, imprint, written))  # (B, H, chunks, C, .)
        hebbian = hebbian[:, :, None]  # before the first chunk, and after each: (B, H, 1 + chunks, F, d)
        hebbian = torch.cat((hebbian, (imprint.transpose(-1, -2) @ written).cumsum(2) + hebbian), dim=2)
        output = (read @ imprint.transpose(-1, -2)).tril() @ written + read @ hebbian[:, :, :-1]
        output, hebbian = output.flatten(2, 3)[:, :, :length], hebbian[:, :, -1]
    else:
        chunks = LeakyChunks(log_decay, document_ids, hebbian.dtype)
        calciums, last_calcium = chunks.sums(source, calcium)
        reading = released(activity, calciums, alpha, presynaptic_target)
        output, hebbian = _read_along(chunks, reading, imprint, written, hebbian)
    output = output * scale  # (B, H, N, d)
    if feedback:
        output = with_feedback(output, calcium_response(activity, calciums, alpha))
    return output.to(output_dtype), hebbian, last_calcium


def released_weights(hebbian: Tensor, calcium: Tensor, alpha: float, presynaptic_target: str) -> Tensor:
    """H as it answers, `(batch, heads, features, head_dim)`: the counterpart of `released` for tokens that all read the
    same calcium, `(batch, heads, features)`."""
    if presynaptic_target == "response" or alpha == 1:
        return hebbian
    return hebbian * presynaptic_release(calcium, alpha)[..., None]


def _read_along(
    chunks: LeakyChunks, reading: Tensor, imprint: Tensor, written: Tensor, hebbian: Tensor
) -> tuple[Tensor, Tensor]:
    """What each token reads from what was written up to itself, `(batch, heads, length, head_dim)`; and the Hebbian
    weights after the last token, which go on from `hebbian`."""
    length = reading.shape[2]
    read, imprint, written = (in_chunks(x, CHUNK_SIZE) for x in (reading, imprint, written))  # (B, H, chunks, C, .)
    between = chunks.carried(hebbian, (imprint * chunks.until).transpose(-1, -2) @ written)  # (B, H, 1 + chunks, F, d)
    own = ((read @ imprint.transpose(-1, -2)) * chunks.within) @ written  # of the token's chunk
    output = own + (read * chunks.since) @ between[:, :, :-1]
    return output.flatten(2, 3)[:, :, :length], between[:, :, -1]


def _read_around(
    chunks: LeakyChunks, reading: Tensor, imprint: Tensor, written: Tensor, hebbian: Tensor, later_hebbian: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What each token reads from what was written on either side and by itself, `(batch, heads, length, head_dim)`; and
    the Hebbian weights after the last token and, from the end, before the first."""
    length = reading.shape[2]
    read, imprint, written = (in_chunks(x, CHUNK_SIZE) for x in (reading, imprint, written))  # (B, H, chunks, C, .)
    before = chunks.carried(hebbian, (imprint * chunks.until).transpose(-1, -2) @ written)  # (B, H, 1 + chunks, F, d)
    after = chunks.carried_back(later_hebbian, (imprint * chunks.since).transpose(-1, -2) @ written)
    own = ((read @ imprint.transpose(-1, -2)) * chunks.around) @ written  # of the token's chunk
    output = own + (read * chunks.since) @ before[:, :, :-1] + (read * chunks.until) @ after[:, :, 1:]
    return output.flatten(2, 3)[:, :, :length], before[:, :, -1], after[:, :, 0]


@declares_pass("output", without_gradient=NOT_DIFFERENTIABLE, forward_only=("output_dtype",))
def write_and_read_documents(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    astrocyte_code: Tensor | None,
    padding_mask: Tensor | None,
    document_ids: Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> Tensor:
    """Write mode and read mode of each document in a row: `(batch, heads, length, head_dim)`.

    In the chunks of `write_and_read_causally`, with what was written before a chunk and what is written after it.
    """
    length = query.shape[2]
    imprint, source = imprints(key, astrocyte_code, padding_mask, feature_map, calcium_sources)
    activity = phi(query.to(imprint.dtype), feature_map)  # (B, H, N, F)
    own, imprint, written = (  # (B, H, chunks, C, .)
        in_chunks(x, CHUNK_SIZE) for x in (source, imprint, silenced(value, padding_mask).to(activity.dtype))
    )
    chunks = _DocumentChunks(document_ids)
    visible = chunks.same.to(own.dtype)

    def from_other_chunks(left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of whether a token reads what a neighbouring chunk hands on, and that."""
        nothing = torch.zeros_like(left[:, :, :1])
        yield chunks.goes_on, chunks.carried_forward(nothing, left)[:, :, :-1]
        yield chunks.went_on, chunks.carried_back(right)[:, :, 1:]

    reading, calcium = activity, None
    if feedback or presynaptic_target == "synapse":
        before, after = ((own * inside).sum(-2) for inside in (chunks.in_last, chunks.in_first))
        calcium = visible @ own  # of the whole document, at each of its tokens
        for reads, of_others in from_other_chunks(before, after):
            calcium = calcium + reads * of_others[:, :, :, None]
        calcium = calcium.flatten(2, 3)[:, :, :length]
        reading = released(activity, calcium, alpha, presynaptic_target)
    read = in_chunks(reading, CHUNK_SIZE)
    before, after = (
        (imprint * inside).transpose(-1, -2) @ written for inside in (chunks.in_last, chunks.in_first)
    )  # (B, H, chunks, F, d)
    output = ((read @ imprint.transpose(-1, -2)) * visible) @ written
    for reads, hebbian in from_other_chunks(before, after):
        output = output + (read * reads) @ hebbian
    output = output.flatten(2, 3)[:, :, :length] * scale
    if feedback:
        assert calcium is not None
        output = with_feedback(output, calcium_response(activity, calcium, alpha))
    return output.to(output_dtype)


@declares_pass(
    *("output", "hebbian", "calcium", "later_hebbian", "later_calcium"),
    without_gradient=NOT_DIFFERENTIABLE,
    forward_only=("output_dtype",),
    states=("hebbian", "calcium", "later_hebbian", "later_calcium"),
)
def write_and_read_both_ways(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    astrocyte_code: Tensor | None,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
    log_decay: Tensor,
    hebbian: Tensor,
    calcium: Tensor,
    later_hebbian: Tensor,
    later_calcium: Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Synapses that leak, read in both directions: of what token s wrote, token t finds the share that is left after
    the time between them, whichever comes first.

    Args:
        hebbian, calcium (`torch.Tensor`): the state before these tokens.
        later_hebbian, later_calcium (`torch.Tensor`): that of the tokens after them, as the last of these finds it.

    Returns:
        `(output, hebbian, calcium, later_hebbian, later_calcium)`: the states as the token after the last, and the one
        before the first, will find them, but for the time to the former.
    """
    imprint, source = imprints(key, astrocyte_code, padding_mask, feature_map, calcium_sources)
    written = silenced(value, padding_mask).to(imprint.dtype)
    activity = phi(query.to(hebbian.dtype), feature_map)  # (B, H, N, F)
    chunks = LeakyChunks(log_decay, document_ids, hebbian.dtype)
    calciums, calcium, later_calcium = chunks.sums_around(source, calcium, later_calcium)  # the first (B, H, N, F)
    reading = released(activity, calciums, alpha, presynaptic_target)
    output, hebbian, later_hebbian = _read_around(chunks, reading, imprint, written, hebbian, later_hebbian)
    output = output * scale
    if feedback:
        output = with_feedback(output, calcium_response(activity, calciums, alpha))
    return output.to(output_dtype), hebbian, calcium, later_hebbian, later_calcium


@declares_pass("output", without_gradient=("padding_mask",), forward_only=("output_dtype",))
def write_and_read_at_distances(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    astrocyte_code: Tensor | None,
    padding_mask: Tensor | None,
    proximity: Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> Tensor:
    """Synapses that leak, for tokens that do not lie on a line: of what token s wrote, token t finds a share
    `proximity`, `(heads, length, length)`. Quadratic in the length, as that is."""
    imprint, source = imprints(key, astrocyte_code, padding_mask, feature_map, calcium_sources)
    activity = phi(query.to(imprint.dtype), feature_map)  # (B, H, N, F)
    proximity = proximity.to(imprint.dtype)
    calcium = proximity @ source
    reading = released(activity, calcium, alpha, presynaptic_target)
    written = silenced(value, padding_mask).to(imprint.dtype)
    output = ((reading @ imprint.transpose(-1, -2)) * proximity) @ written * scale
    if feedback:
        output = with_feedback(output, calcium_response(activity, calcium, alpha))
    return output.to(output_dtype)


class _DocumentChunks:
    """Which tokens of a row that is cut into chunks are in the same document. C tokens per chunk.

    Attributes:
        same: `(B, 1, chunks, C, C)`, whether two tokens of a chunk are.
        in_last, in_first: `(B, 1, chunks, C, 1)`, whether a token is in the document of its chunk's last (first) token.
        goes_on, went_on: `(B, 1, chunks, C, 1)`, whether a token is in the document that the chunk before ended with
            (for the first chunk: the row's first), or that the chunk after begins with.
    """

    def __init__(self, document_ids: Tensor) -> None:
        documents = documents_in_chunks(document_ids, CHUNK_SIZE)[:, None]  # (B, 1, chunks, C)
        last, first = documents[..., -1], documents[..., 0]
        self._before = torch.cat((documents[..., :1, 0], last), dim=-1)  # (B, 1, 1 + chunks)
        self._after = torch.cat((first, documents[..., -1:, -1]), dim=-1)
        self.same = documents[..., :, None] == documents[..., None, :]
        self.in_last, self.in_first = ((documents == x[..., None])[..., None] for x in (last, first))
        self.goes_on = (documents == self._before[..., :-1, None])[..., None]
        self.went_on = (documents == self._after[..., 1:, None])[..., None]

    def carried_forward(self, initial: Tensor, written: Tensor) -> Tensor:
        """What has been written, up to the end of each chunk, for the document that is open there.

        Args:
            initial (`torch.Tensor`): `(B, H, 1, ...)`, before the first chunk.
            written (`torch.Tensor`): `(B, H, chunks, ...)`, by the tokens that are `in_last`.

        Returns:
            `torch.Tensor` of shape `(B, H, 1 + chunks, ...)`, beginning with `initial`.
        """
        return self._carried(torch.cat((initial, written), dim=2), self._before, torch.tril)

    def carried_back(self, written: Tensor) -> Tensor:
        """The same from the end of the row, of the tokens that are `in_first`: `(B, H, chunks + 1, ...)`."""
        nothing = torch.zeros_like(written[:, :, :1])
        return self._carried(torch.cat((written, nothing), dim=2), self._after, torch.triu)

    @staticmethod
    def _carried(written: Tensor, documents: Tensor, side: Callable[[Tensor], Tensor]) -> Tensor:
        same = side((documents[..., :, None] == documents[..., None, :]).to(written.dtype))
        return (same @ written.flatten(3)).view(written.shape)


# --------------------------------------------------------------------------------------------------------------------
# The same with the astrocyte code "activity", made on the way; its inputs are those of `token_layout.activity_code`
# --------------------------------------------------------------------------------------------------------------------


@declares_pass("hebbian", "calcium", without_gradient=("padding_mask",))
def write_mode_with_activity(
    *,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    coupling_scale: float,
    feature_map: str,
    calcium_sources: str,
) -> tuple[Tensor, Tensor]:
    """`write_mode` with the astrocyte code "activity"."""
    code, *_ = activity_code(
        key.to(working_dtype(key)),
        weight,
        bias,
        padding_mask=padding_mask,
        **_in_turn(padding_mask),
        coupling_scale=coupling_scale,
        causal=False,
    )
    return write_mode(
        key=key,
        value=value,
        astrocyte_code=code,
        padding_mask=padding_mask,
        feature_map=feature_map,
        calcium_sources=calcium_sources,
    )


@declares_pass(
    *("output", "hebbian", "calcium", "total", "count"),
    without_gradient=(*NOT_DIFFERENTIABLE, "count"),
    forward_only=("output_dtype",),
    states=("hebbian", "calcium"),
)
def write_and_read_causally_with_activity(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
    log_decay: Tensor | None,
    hebbian: Tensor,
    calcium: Tensor,
    weight: Tensor,
    bias: Tensor,
    total: Tensor,
    count: Tensor,
    coupling_scale: float,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`write_and_read_causally` with the astrocyte code "activity", and after its results the code's own state."""
    code, total, count = activity_code(
        key.to(working_dtype(key)),
        weight,
        bias,
        padding_mask=padding_mask,
        document_ids=document_ids,
        total=total,
        count=count,
        **_in_turn(padding_mask),
        coupling_scale=coupling_scale,
        causal=True,
    )
    results = write_and_read_causally(
        query=query,
        key=key,
        value=value,
        astrocyte_code=code,
        padding_mask=padding_mask,
        document_ids=document_ids,
        log_decay=log_decay,
        hebbian=hebbian,
        calcium=calcium,
        alpha=alpha,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        feature_map=feature_map,
        feedback=feedback,
        scale=scale,
        output_dtype=output_dtype,
    )
    return *results, total, count


@declares_pass("output", without_gradient=NOT_DIFFERENTIABLE, forward_only=("output_dtype",))
def write_and_read_documents_with_activity(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
    document_ids: Tensor,
    weight: Tensor,
    bias: Tensor,
    coupling_scale: float,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> Tensor:
    """`write_and_read_documents` with the astrocyte code "activity"."""
    code, *_ = activity_code(
        key.to(working_dtype(key)),
        weight,
        bias,
        padding_mask=padding_mask,
        document_ids=document_ids,
        **_in_turn(padding_mask),
        coupling_scale=coupling_scale,
        causal=False,
    )
    return write_and_read_documents(
        query=query,
        key=key,
        value=value,
        astrocyte_code=code,
        padding_mask=padding_mask,
        document_ids=document_ids,
        alpha=alpha,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        feature_map=feature_map,
        feedback=feedback,
        scale=scale,
        output_dtype=output_dtype,
    )


@declares_pass(
    *("output", "hebbian", "calcium", "later_hebbian", "later_calcium"),
    without_gradient=NOT_DIFFERENTIABLE,
    forward_only=("output_dtype",),
    states=("hebbian", "calcium", "later_hebbian", "later_calcium"),
)
def write_and_read_both_ways_with_activity(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
    log_decay: Tensor,
    hebbian: Tensor,
    calcium: Tensor,
    later_hebbian: Tensor,
    later_calcium: Tensor,
    weight: Tensor,
    bias: Tensor,
    coupling_scale: float,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`write_and_read_both_ways` with the astrocyte code "activity"."""
    code, *_ = activity_code(
        key.to(working_dtype(key)),
        weight,
        bias,
        padding_mask=padding_mask,
        document_ids=document_ids,
        **_in_turn(padding_mask),
        coupling_scale=coupling_scale,
        causal=False,
    )
    return write_and_read_both_ways(
        query=query,
        key=key,
        value=value,
        astrocyte_code=code,
        padding_mask=padding_mask,
        document_ids=document_ids,
        log_decay=log_decay,
        hebbian=hebbian,
        calcium=calcium,
        later_hebbian=later_hebbian,
        later_calcium=later_calcium,
        alpha=alpha,
        presynaptic_target=presynaptic_target,
        calcium_sources=calcium_sources,
        feature_map=feature_map,
        feedback=feedback,
        scale=scale,
        output_dtype=output_dtype,
    )


def _in_turn(padding_mask: Tensor | None) -> dict[str, Tensor]:
    """What `activity_code` needs to lay out padding of any kind."""
    return {} if padding_mask is None else dict(zip(("order", "rank"), order_of_tokens(padding_mask), strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Precision
# --------------------------------------------------------------------------------------------------------------------


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """In which sums, powers and the division run: float64 if a tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast leaves matrix products alone."""
    device_type = tensor.device.type
    return torch.autocast(device_type, enabled=False) if _has_autocast(device_type) else nullcontext()


@torch.compiler.assume_constant_result  # torch 2.8 does not trace what it calls
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
