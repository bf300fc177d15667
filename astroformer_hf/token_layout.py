# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Where tokens lie, and how the astrocyte's processes at two places are coupled.

Calcium diffuses between the processes, the less the farther they are apart:

    r_ij = exp(-scale * ||pos_i - pos_j||)

Three geometries share one interface, which the codes of `astrocyte_code.py` are written in:

- `SequenceLayout`: text, on a line. The N x N matrix r is never built: an exponential coupling is a first-order
  recurrence in each direction, so it costs O(N);
- `SequenceLayout` with `causal=True`: the same in one direction, j <= i, with a state that continues it;
- `GridLayout`: the patches of an image, at their Euclidean distance. N is small, and r is built.

Their methods couple a learned table (`coupled_table`), the sines and cosines of the positions (`coupled_waves`), and
the keys of the batch (`activity`). Letters in shape comments: B batch, H heads, N tokens, m hidden neurons.

Prefix tokens, such as the class token of an image, stand before the others and lie nowhere: the process at one is
coupled to nothing but itself, at its own row of a learned table (the first ones), at no wave, and without neighbours.
Every layout has their number.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from .attention_contract import MaterializedCode
from .decayed_sums import (
    CHUNK_SIZE,
    continues,
    couple_to_near,
    coupling_to_others,
    decayed_sum,
    exponential_coupling,
    farthest,
    near_coupling,
)
from .traced_values import held_sizes, is_exporting, known_value


# Base of the geometric series of wavelengths, over 2 pi positions (Vaswani et al., "Attention is all you need", 2017).
WAVELENGTH_BASE = 10_000.0

MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)


# --------------------------------------------------------------------------------------------------------------------
# Sines and cosines of positions
# --------------------------------------------------------------------------------------------------------------------


def wave_frequencies(num_frequencies: int, like: torch.Tensor) -> torch.Tensor:
    """Radians per position, 1 down to nearly 1 / `WAVELENGTH_BASE`: `(num_frequencies,)`, as `like`."""
    exponents = torch.arange(num_frequencies, device=like.device, dtype=like.dtype) / num_frequencies
    return WAVELENGTH_BASE**-exponents


def sinusoidal_features(position_ids: torch.Tensor, num_frequencies: int, dtype: torch.dtype) -> torch.Tensor:
    """Sines, then cosines, of the positions: `(batch, length)` to `(batch, length, 2 * num_frequencies)` in `dtype`."""
    positions = position_ids.to(dtype)
    angles = positions[..., None] * wave_frequencies(num_frequencies, positions)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


# --------------------------------------------------------------------------------------------------------------------
# Text: a line
# --------------------------------------------------------------------------------------------------------------------


class NeighbourhoodState(NamedTuple):
    """What a causal neighbourhood remembers: decayed sums up to and including the last real token.

    Attributes:
        total: `(batch, heads, hidden_neurons)`, of the keys.
        count: `(batch, 1, 1)`, of ones.
    """

    total: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # a tuple has a method of that name


class SequenceLayout(NamedTuple):
    """Which tokens of a batch are real, and where they lie on the line; worked out once per forward pass.

    Attributes:
        causal: whether a token sees only those up to itself.
        padding_mask: `(batch, length)` bool, True where a token is real; None if all are.
        position_ids: `(1 or batch, length)`, the position of each token; padding takes no position.
        end: no position is greater than or equal to this; None if that is not known.
        is_contiguous: whether token i has position i in every sequence.
        order: `(batch, length)`, the index of each real token in turn, then of the padding; None if the real tokens
            come first anyway.
        rank: `(batch, length)`, the inverse of `order` on real tokens (and a valid index elsewhere), or None with it.
        counted: `(batch, length)`, the number of real tokens up to each, those in the cache included; None if all are.
        num_written: number of real tokens, at least 1, that each token can read: an int, or a tensor that broadcasts to
            `(batch, heads, length, 1)`.
        full_mask: `(batch, past + length)` bool, the mask of the tokens in the cache as well; None if all are real.
        document_ids: `(batch, length)` numbers of the documents that are packed into each row, from 0 in steps of at
            most 1, at padding that of the token before; None if each row is one document. Positions, counts and order
            are then those in the own document.
        num_prefix_tokens: tokens before the line, in each sequence. They are real, and counted, but have no positions:
            `position_ids`, `end`, `order` and `rank` are those of the other tokens.
    """

    causal: bool
    padding_mask: torch.Tensor | None
    position_ids: torch.Tensor
    end: int | None
    is_contiguous: bool
    order: torch.Tensor | None
    rank: torch.Tensor | None
    counted: torch.Tensor | None
    num_written: torch.Tensor | int
    full_mask: torch.Tensor | None
    document_ids: torch.Tensor | None
    num_prefix_tokens: int = 0

    def coupling(self, scale: float, dtype: torch.dtype) -> None:
        """r is never built here: None."""

    def distances(self) -> None:
        """Nor are distances: time passes from token to token."""

    def coupling_of_table(
        self, scale: float, dtype: torch.dtype
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None:
        """What `coupled_table` multiplies by, as r is above rounding only so far: of a single causal token the rows of
        the positions up to it, `(1 or batch, steps)`, and their coupling; else a `near_coupling`, None if it is large.
        """
        reach = farthest(scale, dtype)
        device, is_compiling = self.position_ids.device, torch.compiler.is_compiling()
        if self.causal and self.position_ids.shape[1] == 1:
            num_steps = reach + 1 if self.end is None or is_compiling else min(reach + 1, self.end)
            steps = torch.arange(num_steps, device=device)
            rows = self.position_ids - steps
            return rows.clamp(min=0), torch.exp(-scale * steps.to(dtype)) * (rows >= 0)
        if reach > CHUNK_SIZE:
            return None
        # the whole of a short input at once; a compiled graph is to be the same for every length
        size = CHUNK_SIZE
        if self.end is not None and not is_compiling and self.end <= 2 * CHUNK_SIZE:
            size = self.end
        return near_coupling(size, reach, scale, self.causal, device, dtype)

    def neighbour_weights(self, scale: float, dtype: torch.dtype) -> None:
        """Nor is r': None."""

    def coupled_table(
        self,
        table: torch.Tensor,
        scale: float,
        coupling: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """r W for a row of W per prefix token and per position, `(heads, rows, m)`: `(heads, length, m)`, or with a
        leading batch.

        `coupling` is that of `coupling_of_table`, worked out here if it is None.
        """
        if (prefix := self.num_prefix_tokens) == 0:
            return self._coupled_line(table, scale, coupling)
        coupled = self._coupled_line(table[:, prefix:], scale, coupling)
        return torch.cat((table[:, :prefix].expand(*coupled.shape[:-2], -1, -1), coupled), dim=-2)

    def _coupled_line(
        self,
        table: torch.Tensor,
        scale: float,
        coupling: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        coupling = self.coupling_of_table(scale, table.dtype) if coupling is None else coupling
        if isinstance(coupling, tuple):
            rows, coupling = coupling
            coupled = (coupling[:, None].to(table) @ table[:, rows]).transpose(0, 1)  # (1 or B, H, 1, m)
            return without_shared_batch(coupled)
        num_rows = table.shape[1] if self.end is None else self.end
        if coupling is not None:
            coupled = couple_to_near(table, coupling.to(table), self.causal, num_rows)
        elif self.causal:
            coupled = decayed_sum(table[:, :num_rows], scale)
        else:
            coupled = exponential_coupling(table[:, : num_rows + farthest(scale, table.dtype)], scale)
        if self.is_contiguous:
            return coupled[:, : self.position_ids.shape[1]]
        coupled = coupled[:, self.position_ids].transpose(0, 1)  # (1 or B, H, N, m)
        return without_shared_batch(coupled)

    def coupled_waves(self, num_frequencies: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """r S of the sines and cosines S on the whole line: `(1 or batch, length, 2 * num_frequencies)`.

        A wave of frequency w is an eigenfunction of r, with the eigenvalue sinh(scale) / (cosh(scale) - cos(w)): the
        coupling is a gain per frequency. Causally it is also a delay, as of 1 / (1 - exp(-scale - i w)).
        """
        waves = self._coupled_waves_on_line(num_frequencies, scale, dtype)
        return nn.functional.pad(waves, (0, 0, self.num_prefix_tokens, 0)) if self.num_prefix_tokens > 0 else waves

    def _coupled_waves_on_line(self, num_frequencies: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
        waves = sinusoidal_features(self.position_ids, num_frequencies, dtype)
        frequencies = wave_frequencies(num_frequencies, waves)
        haversine = (frequencies / 2).sin().square()  # (1 - cos(w)) / 2, without its cancellation
        if not self.causal:
            t = math.tanh(scale / 2)  # in terms of which the eigenvalue neither overflows nor cancels
            gain = t / (t * t + haversine * (1 - t * t))
            return waves * gain.repeat(2)
        decay, loss = math.exp(-scale), -math.expm1(-scale)
        norm = loss * loss + 4 * decay * haversine  # |1 - exp(-scale - i w)|^2
        in_phase, delayed = (loss + 2 * decay * haversine) / norm, decay * frequencies.sin() / norm
        sines, cosines = waves.chunk(2, dim=-1)
        return torch.cat((in_phase * sines - delayed * cosines, in_phase * cosines + delayed * sines), dim=-1)

    def activity(
        self,
        key: torch.Tensor,
        scale: float,
        weight: torch.Tensor,
        bias: torch.Tensor,
        state: NeighbourhoodState | None = None,
        weights: None = None,
    ) -> "ActivityRecipe":
        """The code "activity": R = r' K W + b, where r' K is for each token the mean key of the others (causally, of
        those before it), weighted by their coupling.

        Args:
            key (`torch.Tensor`): `(batch, heads, length, m)`.
            scale (`float`): scale of the coupling.
            weight, bias (`torch.Tensor`): W, `(heads, m, m)`, and b, `(heads, 1, m)`.
            state (`NeighbourhoodState`, *optional*): what came before, causally.

        Returns:
            `ActivityRecipe`, of which R is yet to be made.
        """
        if self.causal and state is None:
            state = NeighbourhoodState(key.new_zeros(*key.shape[:2], key.shape[3]), key.new_zeros(key.shape[0], 1, 1))
        total, count = state or (None, None)
        return ActivityRecipe(weight, bias, self.order, self.rank, total, count, scale, self.num_prefix_tokens)


class ActivityRecipe(NamedTuple):
    """The astrocyte code "activity" as what it is made of: a `CodeRecipe`, see `attention_contract.py`.

    Attributes:
        weight, bias, order, rank, total, count, coupling_scale: the arguments of `activity_code` of these names.
        num_prefix_tokens: tokens before those, which have no neighbours and are nobody's.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    order: torch.Tensor | None
    rank: torch.Tensor | None
    total: torch.Tensor | None
    count: torch.Tensor | None  # type: ignore[assignment]  # as in `NeighbourhoodState`
    coupling_scale: float
    num_prefix_tokens: int = 0

    @property
    def fused(self) -> Mapping[str, str]:
        """From the names of passes that take R to those that make this code as they go; they know no prefix tokens."""
        if self.num_prefix_tokens > 0:
            return {}
        passes = (
            *("write_mode", "write_and_read_causally", "write_and_read_documents"),
            "write_and_read_both_ways",
        )
        return {name: f"{name}_with_activity" for name in passes}

    def materialize(
        self,
        key: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        causal: bool = False,
        document_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, NeighbourhoodState | None]:
        """R, `(batch, heads, length, m)`, and causally the `NeighbourhoodState` after the last real token."""
        prefix, inputs = self.num_prefix_tokens, self._asdict()
        del inputs["num_prefix_tokens"]
        code, *sums = activity_code(
            key[:, :, prefix:],
            padding_mask=None if padding_mask is None else padding_mask[:, prefix:],
            document_ids=document_ids,
            causal=causal,
            **inputs,
        )
        if prefix > 0:
            code = torch.cat((self.bias.expand(*code.shape[:2], prefix, -1), code), dim=2)
        return code, NeighbourhoodState(*sums) if causal else None

    def fused_inputs(self, causal: bool) -> dict[str, Any]:
        """What the passes of `fused` take beside the others' inputs, by keyword."""
        inputs = {"weight": self.weight, "bias": self.bias, "coupling_scale": self.coupling_scale}
        return {**inputs, "total": self.total, "count": self.count} if causal else inputs

    def state_after(self, outputs: Mapping[str, torch.Tensor]) -> NeighbourhoodState | None:
        """The `NeighbourhoodState` from the results of a causal pass; None from those of another."""
        return NeighbourhoodState(outputs["total"], outputs["count"]) if "total" in outputs else None


def activity_code(
    key: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    padding_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
    rank: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
    coupling_scale: float,
    causal: bool,
) -> tuple[torch.Tensor, Any, Any]:
    """R = r' K W + b from the mean r' K of the keys before and after each token (causally, before it), weighted by
    their coupling.

    Distances count real tokens only, so padding, on either side or between, changes nothing. The mean of a token
    without neighbours is 0.

    Args:
        key (`torch.Tensor`): `(batch, heads, length, m)`.
        weight, bias (`torch.Tensor`): W, `(heads, m, m)`, and b, `(heads, 1, m)`.
        padding_mask, document_ids, order, rank (`torch.Tensor`, *optional*): as of `SequenceLayout`.
        total, count (`torch.Tensor`, *optional*): the fields of the `NeighbourhoodState` to go on from, causally.
        coupling_scale (`float`): scale of the coupling.
        causal (`bool`): whether a token sees those before it only.

    Returns:
        `(code, total, count)`: `(batch, heads, length, m)`, and causally the fields of the state after the last real
        token.
    """
    if order is not None:
        assert padding_mask is not None  # without padding, the tokens are in order
        key = reorder(key, order)
        padding_mask = padding_mask.gather(1, order)
        document_ids = None if document_ids is None else document_ids.gather(1, order)
    real = key.new_ones(key.shape[0], 1, key.shape[2], 1)
    if padding_mask is not None:
        real = padding_mask[:, None, :, None].to(key.dtype)  # (B, 1, N, 1)
        key = key.masked_fill(real == 0, 0)
    if causal:
        assert total is not None and count is not None  # the state to go on from
        totals, counts = (
            _continued(x, coupling_scale, before, document_ids) for x, before in ((key, total), (real, count))
        )
        total, count = _after_last(totals, padding_mask), _after_last(counts, padding_mask)
        totals, counts = totals[:, :, :-1], counts[:, :, :-1]
        if document_ids is not None:  # a document's first token has none before it, but for those of the state
            has_past = continues(document_ids)
            has_past[:, :, 0] = True
            totals, counts = totals * has_past, counts * has_past
    else:
        totals, counts = (coupling_to_others(x, coupling_scale, document_ids) for x in (key, real))
    # where there is no neighbour the totals are 0; divided by 1, so that no gradient is infinite
    means = totals / torch.where(counts > 0, counts, 1)
    means = means if rank is None else reorder(means, rank)
    return means @ weight + bias, total, count


def _continued(x: torch.Tensor, scale: float, before: torch.Tensor, document_ids: torch.Tensor | None) -> torch.Tensor:
    """`decayed_sum` of `(batch, heads, length, channels)` whose first document goes on from `before`, `(batch, heads,
    channels)`, which also stands at the head of the result: `(batch, heads, 1 + length, channels)`."""
    before = before[:, :, None]
    steps = torch.arange(1, x.shape[2] + 1, device=x.device, dtype=x.dtype)[:, None]
    reach = torch.exp(-scale * steps)
    if document_ids is not None:
        reach = reach * (document_ids == document_ids[:, :1])[:, None, :, None]
    return torch.cat((before, decayed_sum(x, scale, document_ids=document_ids) + reach * before), dim=2)


def _after_last(x: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """The row of `(batch, heads, 1 + length, channels)` after the last of the real tokens, which come first."""
    if padding_mask is None:
        return x[:, :, -1]
    last = padding_mask.sum(-1)[:, None, None, None].expand(-1, x.shape[1], -1, x.shape[3])  # (B, H, 1, channels)
    return x.gather(2, last).squeeze(2)


def sequence_layout(
    length: int,
    device: torch.device,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    causal: bool = False,
    past_length: int = 0,
    past_counted: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    *,
    num_prefix_tokens: int = 0,
) -> SequenceLayout:
    """The `SequenceLayout` of a batch.

    Left and inner padding are laid out as if the padding were not there. Whether a mask has any is asked of its values.
    Where that cannot be done (see `known_value`), the general layout, right for every mask, is taken. Nor is it asked
    for a single token, so that no step of decoding waits for the device.

    Args:
        length (`int`): tokens per sequence, padding included.
        device (`torch.device`): where the positions are made.
        attention_mask (`torch.Tensor`, *optional*): `(batch, past_length + length)`, nonzero where a token is real.
        position_ids (`torch.Tensor`, *optional*): `(1 or batch, length)`, instead of counting the real tokens.
        causal (`bool`): whether a token sees only those up to itself.
        past_length (`int`): tokens that are already in the cache, padding included.
        past_counted (`torch.Tensor`, *optional*): `(batch, 1)`, how many of them are real; counted in the mask, and
            without one all, by default.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)`, as of `number_documents`, where rows are packed.
        num_prefix_tokens (`int`): how many of the tokens, the first ones of each sequence, are prefix tokens. They are
            real, have no `position_ids`, and come with neither a past nor several documents.

    Raises:
        ValueError: for prefix tokens that do not come first.
    """
    if num_prefix_tokens > 0:
        if past_length > 0 or document_ids is not None:
            what = "several documents in a row" if document_ids is not None else f"past_length {past_length}"
            raise ValueError(f"num_prefix_tokens must be 0 with {what}, got {num_prefix_tokens}")
        on_line = None if attention_mask is None else attention_mask[:, num_prefix_tokens:]
        line = sequence_layout(length - num_prefix_tokens, device, on_line, position_ids, causal)
        return _behind_prefix(line, num_prefix_tokens, device)
    (length,) = held_sizes([length])
    full_mask = padding_mask = order = rank = counted = None
    tokens_first = True
    if attention_mask is not None:
        full_mask = attention_mask != 0
        padding_mask = full_mask[:, past_length:]
        if past_length > 0 and past_counted is None:
            past_counted = full_mask[:, :past_length].sum(-1, keepdim=True)
        if length > 1:
            own = padding_mask
            if known_value(own.all):
                padding_mask = None
                full_mask = full_mask if past_length > 0 else None
            else:
                tokens_first = known_value(lambda: (~own[:, :-1] & own[:, 1:]).any()) is False
    if padding_mask is not None and not tokens_first:
        order, rank = order_of_tokens(padding_mask)
    if padding_mask is not None or past_counted is not None:
        if padding_mask is None:
            counted = torch.arange(1, length + 1, device=device)[None]
        else:
            counted = padding_mask.long().cumsum(-1)
        counted = counted + (past_length if past_counted is None else past_counted)  # (B, N)
    if document_ids is not None:
        real = torch.ones_like(document_ids) if padding_mask is None else padding_mask.long()
        in_document = torch.zeros_like(document_ids).scatter_add(1, document_ids, real)  # (B, N), at the number of each
        counted = real.cumsum(-1) - (in_document.cumsum(-1) - in_document).gather(1, document_ids)

    num_written: torch.Tensor | int
    if document_ids is not None and not causal:
        num_written = in_document.gather(1, document_ids)[:, None, :, None].clamp(min=1).float()
    elif not causal:
        num_written = max(length, 1) if counted is None else counted[:, -1:, None, None].clamp(min=1).float()
    elif counted is None:
        counts = torch.arange(past_length + 1, past_length + length + 1, device=device)
        num_written = counts[None, None, :, None].float()
    else:
        num_written = counted[:, None, :, None].clamp(min=1).float()

    is_contiguous = position_ids is None and past_length == 0 and tokens_first and document_ids is None
    end = None if position_ids is not None or is_exporting() else past_length + length
    if position_ids is None:
        if counted is None or is_contiguous:
            position_ids = torch.arange(past_length, past_length + length, device=device)[None]
        else:
            position_ids = (counted - 1).clamp(min=0)
    return SequenceLayout(
        *(causal, padding_mask, position_ids, end, is_contiguous, order, rank, counted, num_written, full_mask),
        document_ids,
    )


def _behind_prefix(line: SequenceLayout, num_prefix_tokens: int, device: torch.device) -> SequenceLayout:
    """The layout of a line with that many prefix tokens before it."""

    def all_real(mask: torch.Tensor | None) -> torch.Tensor | None:
        return None if mask is None else nn.functional.pad(mask, (num_prefix_tokens, 0), value=True)

    counted, num_written = line.counted, line.num_written + num_prefix_tokens
    if counted is not None or line.causal:
        in_prefix = torch.arange(1, num_prefix_tokens + 1, device=device)
    if counted is not None:
        counted = torch.cat((in_prefix.expand(len(counted), -1), counted + num_prefix_tokens), dim=1)
    if line.causal:
        assert torch.is_tensor(num_written)  # a number per token, (B, 1, N, 1) or (N, 1)
        of_prefix = in_prefix[:, None].to(num_written).expand(*num_written.shape[:-2], -1, -1)
        num_written = torch.cat((of_prefix, num_written), dim=-2)
    return line._replace(
        padding_mask=all_real(line.padding_mask),
        full_mask=all_real(line.full_mask),
        counted=counted,
        num_written=num_written,
        num_prefix_tokens=num_prefix_tokens,
    )


def order_of_tokens(padding_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of each real token in turn, then of the padding, and the inverse of that on real tokens: two times
    `(batch, length)`, the fields `order` and `rank` of `SequenceLayout`."""
    real = padding_mask.long()
    rank = real.cumsum(-1) - 1
    place = torch.where(padding_mask, rank, real.sum(-1, keepdim=True) + (1 - real).cumsum(-1) - 1)  # in the order
    index = torch.arange(padding_mask.shape[1], device=padding_mask.device)
    order = torch.zeros_like(place).scatter(1, place, index.expand_as(place))
    return order, rank.clamp(min=0)


def number_documents(starts: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Numbers the documents in each row of a batch, from 0 in steps of at most 1.

    Args:
        starts (`torch.Tensor`): `(batch, length)` bool, whether a token is the first of a document. The first real
            token is, whatever it says, and no padded one.
        padding_mask (`torch.Tensor`, *optional*): `(batch, length)` bool, True where a token is real.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, long. Padding belongs to the document of the token before it.
    """
    if padding_mask is None:
        padding_mask = torch.ones_like(starts)
    is_first = padding_mask & (padding_mask.long().cumsum(-1) == 1)
    return (starts & padding_mask & ~is_first).long().cumsum(-1)


def starts_of_documents(document_ids: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Where the numbers of documents change from one real token to the next: `(batch, length)` bool."""
    if padding_mask is not None:
        document_ids = document_ids.gather(1, last_real(padding_mask))
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return nn.functional.pad(changes, (1, 0), value=True)


def sizes_of_documents(document_ids: torch.Tensor) -> list[int]:
    """Tokens of each document, padding included, row after row: a list of numbers."""
    starts = starts_of_documents(document_ids).flatten().nonzero().flatten()
    return starts.diff(append=starts.new_tensor([document_ids.numel()])).tolist()


def last_real(padding_mask: torch.Tensor) -> torch.Tensor:
    """The index of the last real token up to each, or 0: `(batch, length)`."""
    index = torch.arange(padding_mask.shape[1], device=padding_mask.device)
    return torch.where(padding_mask, index, 0).cummax(-1).values


def without_shared_batch(code: torch.Tensor) -> torch.Tensor:
    """A code `(1 or batch, heads, length, m)` without its batch, where all share it; a traced graph takes any batch."""
    return code[0] if code.shape[0] == 1 and not torch.jit.is_tracing() else code


def reorder(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of `(batch, heads, length, channels)` in the order of `index`, `(batch, number of rows)`."""
    return x.gather(2, index[:, None, :, None].expand(*x.shape[:2], -1, x.shape[3]))


def for_each_query(query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Keys or values `(batch, key_heads, length, size)`, repeated for the heads of the queries that share them."""
    groups = query.shape[1] // x.shape[1]
    return x.repeat_interleave(groups, dim=1) if groups > 1 else x


# --------------------------------------------------------------------------------------------------------------------
# Images: a grid
# --------------------------------------------------------------------------------------------------------------------


class GridLayout(NamedTuple):
    """The patches of an image, in rows from the top left, and before them the prefix tokens, such as a class token.

    Positions are those of the grid that the model was made for. An image of another size is laid out over the same
    extent, with patches of another area: its positions fall between those of that grid, and a sum over its patches
    counts each by its area.

    Attributes:
        coordinates: `(patches, 2)`, row and column of each patch.
        grid: rows and columns of the image.
        own_grid: rows and columns of the grid that the model was made for.
        num_prefix_tokens: tokens before the patches.
        causal, padding_mask, counted, full_mask, document_ids: likewise; an image is never causal, has no padding and
            is one document.
    """

    coordinates: torch.Tensor
    grid: tuple[int, int]
    own_grid: tuple[int, int]
    num_prefix_tokens: int = 0

    causal: bool = False
    padding_mask: None = None
    counted: None = None
    full_mask: None = None
    document_ids: None = None

    @property
    def num_written(self) -> int:
        return math.prod(self.grid) + self.num_prefix_tokens

    def coupling(self, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """r, `(length, length)`."""
        coordinates = self.coordinates.to(dtype)
        distance = (coordinates[:, None] - coordinates).square().sum(-1).sqrt()
        coupling = torch.exp(-scale * distance)
        if (prefix := self.num_prefix_tokens) > 0:
            coupling = nn.functional.pad(coupling, (prefix, 0, prefix, 0))
            coupling[:prefix, :prefix] = torch.eye(prefix, dtype=dtype, device=coupling.device)
        return coupling

    def distances(self) -> torch.Tensor:
        """Rows plus columns between two patches, `(length, length)`, float32; 0 to prefix tokens, which lie nowhere."""
        distances = (self.coordinates[:, None] - self.coordinates).abs().sum(-1)
        return nn.functional.pad(distances, (self.num_prefix_tokens, 0, self.num_prefix_tokens, 0))

    def coupling_of_table(self, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """What `coupled_table` multiplies by: r."""
        return self.coupling(scale, dtype)

    def coupled_table(self, table: torch.Tensor, scale: float, coupling: torch.Tensor | None = None) -> torch.Tensor:
        """r W for a row of W per token of the own grid, `(heads, tokens, m)`, resized to this grid; `coupling` is r."""
        if self.grid != self.own_grid:
            of_prefix, rows = table[:, : self.num_prefix_tokens], table[:, self.num_prefix_tokens :]
            rows = rows.unflatten(1, self.own_grid).permute(0, 3, 1, 2)  # (H, m, rows, columns)
            rows = nn.functional.interpolate(rows, size=self.grid, mode="bicubic", align_corners=False)
            table = torch.cat((of_prefix, self._area * rows.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
        coupling = self.coupling(scale, table.dtype) if coupling is None else coupling
        return coupling.to(table) @ table  # FSDP in mixed precision casts what it finds among a layer's arguments

    def coupled_waves(self, num_frequencies: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """r S of the sines and cosines S of rows, then of columns: `(1, length, 4 * num_frequencies)`."""
        rows, columns = self.coordinates.T
        axes = [sinusoidal_features(axis[None], num_frequencies, dtype) for axis in (rows, columns)]
        waves = self._area * torch.cat(axes, dim=-1)
        if self.num_prefix_tokens > 0:
            waves = nn.functional.pad(waves, (0, 0, self.num_prefix_tokens, 0))
        return self.coupling(scale, dtype) @ waves

    def activity(
        self,
        key: torch.Tensor,
        scale: float,
        weight: torch.Tensor,
        bias: torch.Tensor,
        state: None = None,
        weights: torch.Tensor | None = None,
    ) -> MaterializedCode:
        """R = r' K W + b, as of `SequenceLayout`, but made, `(batch, heads, length, m)`; `weights` are r'."""
        weights = self.neighbour_weights(scale, key.dtype) if weights is None else weights
        return MaterializedCode(weights.to(key) @ key @ weight + bias)

    def neighbour_weights(self, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """r', `(length, length)`."""
        coupling = self.coupling(scale, dtype)
        others = coupling.masked_fill(torch.eye(coupling.shape[0], dtype=torch.bool, device=coupling.device), 0)
        # in units of the nearest neighbour, so that a large scale leaves something to normalise
        others = others * math.exp(
            scale * min(1.0, *(own / size for own, size in zip(self.own_grid, self.grid, strict=True)))
        )
        return others / others.sum(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)

    @property
    def _area(self) -> float:
        return math.prod(self.own_grid) / math.prod(self.grid)


def grid_layout(
    grid: Sequence[int], own_grid: Sequence[int], num_prefix_tokens: int, device: torch.device
) -> GridLayout:
    """The `GridLayout` of an image of `grid` patches, rows and columns, for a model made for `own_grid`."""
    num_rows, num_columns = held_sizes(grid)
    own_rows, own_columns = own_grid
    axes = [  # patch centres, over the extent of the own grid
        (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (own / size) - 0.5
        for size, own in ((num_rows, own_rows), (num_columns, own_columns))
    ]
    coordinates = torch.cartesian_prod(*axes).view(-1, 2)
    return GridLayout(coordinates, (num_rows, num_columns), (own_rows, own_columns), int(num_prefix_tokens))
