# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Sums along a line in which what is farther away counts less, exponentially, in linear time.

The coupling between the astrocyte's processes, r_ij = exp(-scale |i - j|), has one rate for all (`decayed_sum` and what
is made of it). What a leaky synapse remembers has one for each head, or for each token (`LeakyChunks`, `leaky_sum`).
All run in chunks: a small matrix product inside, a decayed carry between.
"""

import math

import torch
from torch import nn

from .traced_values import is_exporting


# Tokens per block of the chunked recurrences.
CHUNK_SIZE = 64


def in_chunks(x: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """`(..., length, channels)` to `(..., chunks, chunk_size, channels)`, filled up with zeros.

    A chunk is no longer than the input. An exported graph, which takes every length, always has chunks of `chunk_size`,
    and one that it does not need, because a single chunk would be a graph of its own.
    """
    *batch, length, channels = x.shape
    if is_exporting():
        num_chunks = -(-length // chunk_size) + 1
    else:
        chunk_size = min(length, chunk_size)
        num_chunks = -(-length // chunk_size)
    # made contiguous first: for no padding at all, pad keeps strides that a compiled graph does not expect
    x = nn.functional.pad(x.contiguous(), (0, 0, 0, num_chunks * chunk_size - length))
    return x.reshape(*batch, num_chunks, chunk_size, channels)


def documents_in_chunks(document_ids: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """`(batch, length)` to `(batch, chunks, chunk_size)`, cut as by `in_chunks`, filled up with the last document."""
    from_zero = document_ids - document_ids[:, -1:]  # so that the zeros that fill up are its number
    return in_chunks(from_zero[..., None], chunk_size)[..., 0]


def decayed_sum(
    x: torch.Tensor, scale: float, reverse: bool = False, document_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """y_i = sum over j <= i (j >= i if `reverse`) of exp(-scale |i - j|) x_j, j in the document of i.

    Inside a chunk a Toeplitz product; between chunks the sums at the chunks' ends obey the same recurrence with a decay
    of `scale * CHUNK_SIZE`, so the function calls itself on them, until all is in one chunk or a decay is below
    rounding: O(length) in all. `decayed_sum_token_by_token` is the plain form.

    Args:
        x (`torch.Tensor`): `(..., length, channels)`.
        scale (`float`): decay per position, positive.
        reverse (`bool`): whether to run from the last position to the first.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)`, as of `SequenceLayout`, for an `x` of shape
            `(batch, heads, length, channels)`. Without it all is one document.

    Returns:
        `torch.Tensor` of the shape and dtype of `x`.
    """
    if math.exp(-scale) < torch.finfo(x.dtype).eps:
        return x
    length = x.shape[-2]
    if document_ids is not None:
        documents = documents_in_chunks(document_ids, CHUNK_SIZE)  # (B, num_chunks, chunk_size)
    x = in_chunks(x, CHUNK_SIZE)  # (..., num_chunks, chunk_size, channels)
    num_chunks, chunk_size = x.shape[-3:-1]
    position = torch.arange(chunk_size, device=x.device, dtype=x.dtype)
    distance = position[:, None] - position
    if reverse:
        distance = -distance
    weights = torch.where(distance >= 0, torch.exp(-scale * distance.clamp(min=0)), 0)
    if document_ids is not None:
        weights = weights * (documents[..., :, None] == documents[..., None, :])[:, None]
    y = weights @ x
    if num_chunks == 1:
        return y.squeeze(-3)

    end, before = (0, +1) if reverse else (-1, -1)  # the row a chunk's sum ends with; the chunk that it reaches from
    ends = None if document_ids is None else documents[..., end]  # (B, num_chunks)
    sums = decayed_sum(y[..., end, :], scale * chunk_size, reverse, ends)  # (..., num_chunks, channels)
    carry = _neighbour(sums, before)
    steps_from_carry = chunk_size - position if reverse else position + 1
    reach = torch.exp(-scale * steps_from_carry)[:, None]
    if ends is not None:
        reach = reach * (documents == _neighbour(ends[..., None], before))[:, None, ..., None]
    y = y + reach * carry[..., None, :]
    return y.flatten(-3, -2)[..., :length, :]


def decayed_sum_token_by_token(
    x: torch.Tensor, scale: float, reverse: bool = False, document_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """The plain form of `decayed_sum`: y_i = exp(-scale) y_{i-1} + x_i, beginning anew with each document."""
    y, running = [], torch.zeros_like(x[..., 0, :])
    steps = range(x.shape[-2])
    before = None
    for i in reversed(steps) if reverse else steps:
        if document_ids is not None and before is not None:
            running = running * (document_ids[:, i] == document_ids[:, before])[:, None, None]
        running = math.exp(-scale) * running + x[..., i, :]
        y.append(running)
        before = i
    return torch.stack(y[::-1] if reverse else y, dim=-2)


def exponential_coupling(x: torch.Tensor, scale: float) -> torch.Tensor:
    """r x with r_ij = exp(-scale |i - j|): `(..., length, channels)` to the same."""
    return decayed_sum(x, scale) + math.exp(-scale) * _neighbour(decayed_sum(x, scale, reverse=True), +1)


def coupling_to_others(x: torch.Tensor, scale: float, document_ids: torch.Tensor | None = None) -> torch.Tensor:
    """exp(scale) (r - 1) x: the coupling to all positions but the own, with the next neighbour at weight 1; to those of
    the own document, where `document_ids` are given as for `decayed_sum`."""
    before = _neighbour(decayed_sum(x, scale, document_ids=document_ids), -1)
    after = _neighbour(decayed_sum(x, scale, reverse=True, document_ids=document_ids), +1)
    if document_ids is not None:
        goes_on = continues(document_ids)
        before, after = before * goes_on, after * _neighbour(goes_on, +1)
    return before + after


def continues(document_ids: torch.Tensor) -> torch.Tensor:
    """Whether each token is in the document of the one before it: `(batch, 1, length, 1)`, False for the first."""
    same = document_ids[:, 1:] == document_ids[:, :-1]
    return nn.functional.pad(same, (1, 0))[:, None, :, None]


def farthest(scale: float, dtype: torch.dtype) -> int:
    """The distance, in positions, beyond which a coupling is below rounding in `dtype`."""
    return math.ceil(-math.log(torch.finfo(dtype).eps) / scale)


def near_coupling(
    size: int, reach: int, scale: float, causal: bool, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """r of `size` positions in a row and of those up to `reach` before them and, unless it is causal, after them:
    `(size, reach + size + reach)`, causally `(size, reach + size)`. Farther apart than `reach` it is 0."""
    others = torch.arange(-reach, size + (0 if causal else reach), device=device, dtype=dtype)
    distance = (others[reach : reach + size, None] - others).abs()
    # what is left out would cost time, too: products of denormal numbers are slow
    coupling = torch.exp(-scale * distance).masked_fill(distance > reach, 0)
    return coupling.tril(reach) if causal else coupling


def couple_to_near(x: torch.Tensor, near: torch.Tensor, causal: bool, num_rows: int) -> torch.Tensor:
    """The first `num_rows` rows of r x, `(..., length, channels)`, of an r that reaches no farther than `near`, a
    `near_coupling`, does. In chunks of its size: one product instead of the recurrences of `decayed_sum`."""
    size = near.shape[0]
    reach = (near.shape[1] - size) // (1 if causal else 2)
    if num_rows <= size:
        x = x[..., : size if causal else size + reach, :]
        near = near[:num_rows, reach : reach + x.shape[-2]]
        return near.expand(*x.shape[:-2], -1, -1) @ x  # expanded first: a product of other ranks copies x
    x = in_chunks(x[..., : num_rows if causal else num_rows + reach, :], size)
    num_chunks = x.shape[-3]
    around = nn.functional.pad(x, (0, 0, 0, 0, 1, 0 if causal else 1))  # a chunk of zeros before, and after
    parts = [around[..., :num_chunks, -reach:, :], x]
    if not causal:
        parts.append(around[..., 2:, :reach, :])
    windows = torch.cat(parts, dim=-2)
    return (near.expand(*windows.shape[:-2], -1, -1) @ windows).flatten(-3, -2)[..., :num_rows, :]


def _neighbour(x: torch.Tensor, offset: int) -> torch.Tensor:
    """The row before (offset -1) or after (offset +1) each row of `(..., length, channels)`, 0 past the ends."""
    # padded first, then cut: no slice is empty, which an exported graph would have to ask
    if offset < 0:
        return nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :]
    return nn.functional.pad(x, (0, 0, 0, 1))[..., 1:, :]


# --------------------------------------------------------------------------------------------------------------------
# A share of its own that is left at each token
# --------------------------------------------------------------------------------------------------------------------


def time_elapsed(log_decay: torch.Tensor) -> torch.Tensor:
    """The logarithm of what is left, at each token, of what there was before the first: of the shape of `log_decay`,
    `(..., length)`.

    A token that leaves nothing, or less than the dtype has a number for, counts as one that leaves the least there is:
    the logarithm of less would drown the others' in the sum.
    """
    return log_decay.clamp(min=math.log(torch.finfo(log_decay.dtype).tiny)).cumsum(-1)


class LeakyChunks:
    """A line cut into chunks, along which the synapses leak and, if it holds several documents, start anew with each.

    Of what token s wrote a share f_{s+1} ... f_t is left at token t, f_t = exp(log_decay_t). Shares are exponentials of
    differences, never quotients, which would overflow. C tokens per chunk.

    Args:
        log_decay (`torch.Tensor`, *optional*): `(batch, heads, length)`, the logarithm of f_t, at most 0; without it
            nothing leaks.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)`, as of `token_layout.number_documents`; without
            them all is one document. One of the two is given.
        dtype (`torch.dtype`): of the shares.

    Attributes:
        within: `(B, H, chunks, C, C)`, the share of what token s wrote that is left at token t of the same chunk; 0 for
            s > t.
        since: `(B, H, chunks, C, 1)`, the share of what there was before the chunk that is left at a token.
        until: `(B, H, chunks, C, 1)`, the share of what a token wrote that is left at the chunk's end.

    Read from the end, the same shares hold the other way round: `until` is that of what there is after the chunk, as
    its last token finds it, and `since` that of what a token wrote, as the last token of the chunk before finds it.
    """

    def __init__(self, log_decay: torch.Tensor | None, document_ids: torch.Tensor | None, dtype: torch.dtype) -> None:
        self.within: torch.Tensor
        self._of_chunks: torch.Tensor | None = None  # log decay over each chunk, after a 0: (B, H, 1 + chunks)
        self._documents: torch.Tensor | None = None  # the last of each chunk, after the row's first: (B, 1 + chunks)
        if log_decay is not None:
            steps = in_chunks(log_decay.to(dtype)[..., None], CHUNK_SIZE)[..., 0]  # (B, H, chunks, C)
            elapsed = time_elapsed(steps)
            visible = torch.ones(*2 * steps.shape[-1:], dtype=torch.bool, device=steps.device).tril()
            difference = elapsed[..., :, None] - elapsed[..., None, :]
            self.within = difference.masked_fill(~visible, -math.inf).exp()
            self.since = elapsed.exp()[..., None]
            self.until = (elapsed[..., -1:] - elapsed).exp()[..., None]
            self._of_chunks = nn.functional.pad(elapsed[..., -1], (1, 0))
        if document_ids is not None:
            documents = documents_in_chunks(document_ids, CHUNK_SIZE)  # (B, chunks, C)
            self._documents = torch.cat((documents[:, :1, 0], documents[..., -1]), dim=-1)
            same = (documents[..., :, None] == documents[..., None, :])[:, None].to(dtype).tril()
            goes_on = (documents == self._documents[:, :-1, None])[:, None, ..., None].to(dtype)
            in_last = (documents == documents[..., -1:])[:, None, ..., None].to(dtype)
            if log_decay is None:
                self.within, self.since, self.until = same, goes_on, in_last
            else:
                self.within = self.within * same
                self.since, self.until = self.since * goes_on, self.until * in_last

    def carried(self, initial: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """What there is before the first chunk, and after each.

        Args:
            initial (`torch.Tensor`): `(B, H, ...)`, before the first.
            written (`torch.Tensor`): `(B, H, chunks, ...)`, what each chunk's tokens leave at its end.

        Returns:
            `torch.Tensor` of shape `(B, H, 1 + chunks, ...)`, beginning with `initial`.
        """
        sums = torch.cat((initial[:, :, None], written), dim=2)
        return leaky_sum(sums.flatten(3), self._of_chunks, self._documents).view(sums.shape)

    def carried_back(self, later: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """What there is after each chunk, as its last token finds it, and before that what there is after the token
        before the first: `(B, H, 1 + chunks, ...)`, ending with `later`. As of `carried`, from the end."""
        sums = torch.cat((written, later[:, :, None]), dim=2).flip(2)
        of_chunks = None if self._of_chunks is None else nn.functional.pad(self._of_chunks[..., 1:].flip(-1), (1, 0))
        documents = None if self._documents is None else self._documents.flip(1)
        return leaky_sum(sums.flatten(3), of_chunks, documents).view(sums.shape).flip(2)

    @property
    def around(self) -> torch.Tensor:
        """`(B, H, chunks, C, C)`, the share of what token s wrote that token t of the same chunk finds, before or after
        it."""
        return self.within + self.within.tril(-1).transpose(-1, -2)

    def sums(self, x: torch.Tensor, initial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The running sum at each token of `x`, `(B, H, length, channels)`, and the one after the last, `(B, H,
        channels)`."""
        length = x.shape[2]
        x = in_chunks(x, CHUNK_SIZE)
        between = self.carried(initial, (x * self.until).sum(-2))  # (B, H, 1 + chunks, channels)
        sums = self.within @ x + self.since * between[:, :, :-1, None]
        return sums.flatten(2, 3)[:, :, :length], between[:, :, -1]

    def sums_around(
        self, x: torch.Tensor, initial: torch.Tensor, later: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sum of both directions at each token of `x`, `(B, H, length, channels)`; the one after the last token
        and, from the end, the one before the first, `(B, H, channels)`."""
        length = x.shape[2]
        x = in_chunks(x, CHUNK_SIZE)
        before = self.carried(initial, (x * self.until).sum(-2))  # (B, H, 1 + chunks, channels)
        after = self.carried_back(later, (x * self.since).sum(-2))
        sums = self.around @ x + self.since * before[:, :, :-1, None] + self.until * after[:, :, 1:, None]
        return sums.flatten(2, 3)[:, :, :length], before[:, :, -1], after[:, :, 0]


def leaky_sum(
    x: torch.Tensor, log_decay: torch.Tensor | None, document_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """y_t = exp(log_decay_t) y_{t-1} + x_t, beginning anew with each document: `(batch, heads, length, channels)` to
    the same. In chunks, of whose sums it is taken again until one chunk holds all: O(length).

    Args:
        x (`torch.Tensor`): `(batch, heads, length, channels)`.
        log_decay, document_ids (`torch.Tensor`, *optional*): as of `LeakyChunks`.
    """
    length = x.shape[2]
    if log_decay is None and document_ids is None:
        return x.cumsum(2)
    if length > CHUNK_SIZE and not is_exporting():
        chunks = LeakyChunks(log_decay, document_ids, x.dtype)
        return chunks.sums(x, torch.zeros_like(x[:, :, 0]))[0]
    # an exported graph takes any length in one go
    share = x.new_ones(1, 1, length, length).tril()
    if log_decay is not None:
        elapsed = time_elapsed(log_decay.to(x.dtype))
        share = (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(share == 0, -math.inf).exp()
    if document_ids is not None:
        share = share * (document_ids[:, None, :, None] == document_ids[:, None, None, :]).to(x.dtype)
    return share @ x


def leaky_sum_token_by_token(
    x: torch.Tensor, log_decay: torch.Tensor | None, document_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """The plain form of `leaky_sum`."""
    y, running = [], torch.zeros_like(x[:, :, 0])
    for t in range(x.shape[2]):
        if log_decay is not None:
            running = running * log_decay[:, :, t, None].to(x.dtype).exp()
        if document_ids is not None and t > 0:
            running = running * (document_ids[:, t] == document_ids[:, t - 1])[:, None, None]
        running = running + x[:, :, t]
        y.append(running)
    return torch.stack(y, dim=2) if y else x
