# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The passes of neuron-astrocyte attention, in their plain form: what the backends have faster twins of.

Bidirectionally the operation writes all and then reads all (`write_mode`, `read_mode`); causally it goes in chunks
(`write_and_read_causally`); rows of several documents are written and read document by document
(`write_and_read_documents`). Three of them stand here a second time "with activity": they make the astrocyte code of
that name, R = r' K W + b, as they go, so that a kernel never stores it.

A pass is declared here once, by `declares_pass`: name, inputs, results, and what is not differentiable are read off its
signature. It is called by keyword. For feature maps that kernels do not have, query, key and code are features already,
and `feature_map` is "identity". The equations are those of `attention_operation.py`, whose letters shape comments use.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .attention_contract import declares_pass
from .decayed_sums import documents_in_chunks, in_chunks
from .feature_maps import phi
from .token_layout import activity_code, order_of_tokens


# Smallest calcium that counts as any. It is representable in float32, the narrowest type that the sums run in, and
# small enough to leave every real signal alone. Below it a synapse is silent: it neither adds to the response nor is
# answered by the feedback, which would be infinite.
CALCIUM_FLOOR = 1e-20

# Tokens per block of the causal form: quadratic attention inside, the state of the synapses between.
CHUNK_SIZE = 64

Tensor = torch.Tensor
NOT_DIFFERENTIABLE = ("padding_mask", "document_ids")


# --------------------------------------------------------------------------------------------------------------------
# Write mode, read mode
# --------------------------------------------------------------------------------------------------------------------


@declares_pass("hebbian", "calcium", without_gradient=("padding_mask",))
def write_mode(
    *, key: Tensor, value: Tensor, astrocyte_code: Tensor | None, padding_mask: Tensor | None, feature_map: str
) -> tuple[Tensor, Tensor]:
    """Keys and values imprint the synapses: what these tokens write, as `(hebbian, calcium)`."""
    presynaptic, process = activities(key, astrocyte_code, padding_mask, feature_map)
    hebbian = (presynaptic + process).transpose(-1, -2) @ silenced(value, padding_mask).to(presynaptic.dtype)
    return hebbian, presynaptic.sum(dim=-2)


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
        output = output * astrocyte_feedback(activity @ plasticity[..., None])
    return output.to(output_dtype)


def presynaptic_plasticity(calcium: Tensor, alpha: float) -> Tensor:
    """g = calcium^alpha: the calcium of a process grows sub-linearly with the activity that it saw."""
    return torch.where(calcium > CALCIUM_FLOOR, calcium.clamp(min=CALCIUM_FLOOR) ** alpha, 0)


def calcium_response(activity: Tensor, calcium: Tensor, alpha: float) -> Tensor:
    """C = phi(Q) g with g = calcium^alpha: `(batch, heads, length, 1)`, from the activity phi(Q) of shape
    `(batch, heads, length, features)` and the calcium, `(batch, heads, features)`, or causally one for each token."""
    g = presynaptic_plasticity(calcium, alpha)
    return activity @ g[..., None] if g.dim() < activity.dim() else (activity * g).sum(-1, keepdim=True)


def astrocyte_feedback(response: Tensor) -> Tensor:
    """P = 1 / C, and 0 where the process found no calcium at all."""
    return torch.where(response > CALCIUM_FLOOR, 1 / response.clamp(min=CALCIUM_FLOOR), 0)


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


def silenced(value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """The values with 0 at padded tokens: zero activity times a padded NaN would be NaN."""
    return value if padding_mask is None else value.masked_fill(~padding_mask[:, None, :, None], 0)


# --------------------------------------------------------------------------------------------------------------------
# Both at once: causally, and document by document
# --------------------------------------------------------------------------------------------------------------------


@declares_pass(*("output", "hebbian", "calcium"), without_gradient=NOT_DIFFERENTIABLE, forward_only=("output_dtype",))
def write_and_read_causally(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    astrocyte_code: Tensor | None,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
    hebbian: Tensor,
    calcium: Tensor,
    alpha: float,
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
        hebbian, calcium (`torch.Tensor`): the state before these tokens.
        scale (`float`): factor of the output, 1/m.
    """
    length = query.shape[2]
    if length == 1:  # a single token reads all that was written, its own key included
        written = write_mode(
            key=key, value=value, astrocyte_code=astrocyte_code, padding_mask=padding_mask, feature_map=feature_map
        )
        hebbian, calcium = hebbian + written[0], calcium + written[1]
        plasticity = presynaptic_plasticity(calcium, alpha) if feedback else None
        output = read_mode(
            query=query,
            hebbian=hebbian * scale,
            plasticity=plasticity,
            feature_map=feature_map,
            output_dtype=output_dtype,
        )
        return output, hebbian, calcium
    presynaptic, process = activities(key, astrocyte_code, padding_mask, feature_map)
    activity = phi(query.to(hebbian.dtype), feature_map)  # (B, H, N, F)
    read, imprint, written = (  # (B, H, chunks, C, .)
        in_chunks(x, CHUNK_SIZE)
        for x in (activity, presynaptic + process, silenced(value, padding_mask).to(activity.dtype))
    )
    scores = read @ imprint.transpose(-1, -2)
    if document_ids is None:
        calcium = calcium[:, :, None] + presynaptic.cumsum(-2)  # z_t, (B, H, N, F)
        last_calcium = calcium[:, :, -1]
        hebbian = hebbian[:, :, None]  # before the first chunk, and after each: (B, H, 1 + chunks, F, d)
        hebbian = torch.cat((hebbian, (imprint.transpose(-1, -2) @ written).cumsum(2) + hebbian), dim=2)
        output = scores.tril() @ written + read @ hebbian[:, :, :-1]
    else:
        chunks = _DocumentChunks(document_ids)
        calcium, hebbian = calcium[:, :, None], hebbian[:, :, None]
        own = in_chunks(presynaptic, CHUNK_SIZE)
        visible = chunks.same.to(own.dtype).tril()  # (B, 1, chunks, C, C)
        calciums = chunks.carried_forward(calcium, (own * chunks.in_last).sum(-2))  # (B, H, 1 + chunks, F)
        hebbian = chunks.carried_forward(hebbian, (imprint * chunks.in_last).transpose(-1, -2) @ written)
        calcium = (visible @ own + chunks.goes_on * calciums[:, :, :-1, None]).flatten(2, 3)[:, :, :length]
        last_calcium = calciums[:, :, -1]
        output = (scores * visible) @ written + (read * chunks.goes_on) @ hebbian[:, :, :-1]
    output = output.flatten(2, 3)[:, :, :length] * scale  # (B, H, N, d)
    if feedback:
        output = output * astrocyte_feedback(calcium_response(activity, calcium, alpha))
    return output.to(output_dtype), hebbian[:, :, -1], last_calcium


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
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> Tensor:
    """Write mode and read mode of each document in a row: `(batch, heads, length, head_dim)`.

    In the chunks of `write_and_read_causally`, with what was written before a chunk and what is written after it.
    """
    length = query.shape[2]
    presynaptic, process = activities(key, astrocyte_code, padding_mask, feature_map)
    activity = phi(query.to(presynaptic.dtype), feature_map)  # (B, H, N, F)
    read, own, imprint, written = (  # (B, H, chunks, C, .)
        in_chunks(x, CHUNK_SIZE)
        for x in (activity, presynaptic, presynaptic + process, silenced(value, padding_mask).to(activity.dtype))
    )
    chunks = _DocumentChunks(document_ids)
    visible = chunks.same.to(own.dtype)

    def from_other_chunks(left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of whether a token reads what a neighbouring chunk hands on, and that."""
        nothing = torch.zeros_like(left[:, :, :1])
        yield chunks.goes_on, chunks.carried_forward(nothing, left)[:, :, :-1]
        yield chunks.went_on, chunks.carried_back(right)[:, :, 1:]

    before, after = (
        (imprint * inside).transpose(-1, -2) @ written for inside in (chunks.in_last, chunks.in_first)
    )  # (B, H, chunks, F, d)
    output = ((read @ imprint.transpose(-1, -2)) * visible) @ written
    for reads, hebbian in from_other_chunks(before, after):
        output = output + (read * reads) @ hebbian
    output = output.flatten(2, 3)[:, :, :length] * scale
    if feedback:
        before, after = ((own * inside).sum(-2) for inside in (chunks.in_last, chunks.in_first))
        calcium = visible @ own  # of the whole document, at each of its tokens
        for reads, of_others in from_other_chunks(before, after):
            calcium = calcium + reads * of_others[:, :, :, None]
        calcium = calcium.flatten(2, 3)[:, :, :length]
        output = output * astrocyte_feedback(calcium_response(activity, calcium, alpha))
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
    return write_mode(key=key, value=value, astrocyte_code=code, padding_mask=padding_mask, feature_map=feature_map)


@declares_pass(
    *("output", "hebbian", "calcium", "total", "count"),
    without_gradient=(*NOT_DIFFERENTIABLE, "count"),
    forward_only=("output_dtype",),
)
def write_and_read_causally_with_activity(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
    hebbian: Tensor,
    calcium: Tensor,
    weight: Tensor,
    bias: Tensor,
    total: Tensor,
    count: Tensor,
    coupling_scale: float,
    alpha: float,
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
        hebbian=hebbian,
        calcium=calcium,
        alpha=alpha,
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
