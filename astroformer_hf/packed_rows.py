# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Rows that hold several documents one after another ("packing", "padding-free" training). Collators mark them by

- `position_ids` that restart at 0 with each document (`DataCollatorWithFlattening`, trl's packing);
- `seq_idx`, `(batch, length)`, the index of each token's document;
- `cu_seq_lens_q` (and `cu_seq_lens_k`, the same), `(documents + 1,)`: where each document of a single row begins and,
  last, where the row ends; `max_length_q` and `max_length_k` follow from it.

However they are marked, each document is encoded as if it were in a row of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .forward_keywords import PACKING_KEYWORDS, may_look_at, may_wait_for
from .token_layout import last_real, number_documents, starts_of_documents
from .traced_values import known_value


def packed_documents(
    shape: Sequence[int],
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    keywords: Mapping[str, Any],
    past_length: int = 0,
) -> torch.Tensor | None:
    """The index of each token's document, `(batch, length)` as from `number_documents`; None if no row has several.

    Where the values of `position_ids` cannot be read (while a graph is being traced), rows are treated as packed: the
    results are the same, but slower to compute.

    Args:
        shape (pair of `int`): `(batch, length)`.
        attention_mask, position_ids (`torch.Tensor`, *optional*): as for `AstroformerModel.forward`.
        keywords (`dict`): its other keyword arguments, `PACKING_KEYWORDS` among them.
        past_length (`int`): number of tokens in the cache.

    Raises:
        ValueError: the arguments contradict each other, or a document begins after cached tokens.
    """
    length = shape[1]
    padding_mask = None if attention_mask is None else attention_mask[:, past_length:] != 0
    starts = _explicit_starts(shape, padding_mask, keywords)
    if position_ids is None or length == 0:
        restarts = None
    else:
        restarts = (position_ids.view(-1, length) == 0).expand(shape)
        if starts is None and length > 1:
            _check_order(position_ids.view(-1, length).expand(shape), padding_mask)
    documents = None
    if starts is not None:
        documents = number_documents(starts, padding_mask)
        if may_look_at(restarts) and bool((number_documents(restarts & ~starts, padding_mask) > 0).any()):
            raise ValueError(
                "position_ids begin again at 0 where no document begins according to seq_idx or cu_seq_lens_q"
            )
    elif restarts is not None and length > 1:
        documents = number_documents(restarts, padding_mask)
        if known_value(documents.any) is False:
            documents = None
    if past_length > 0:
        goes_on_anew = restarts is not None and _begins_anew(restarts, attention_mask, padding_mask, past_length)
        if goes_on_anew or (documents is not None and known_value(documents.any)):
            raise ValueError(
                "a document begins (position_ids restart at 0, or seq_idx or cu_seq_lens_q say so) while the cache "
                "holds what came before: packed rows cannot use a cache; leave it out, or give each document a row"
            )
        return None
    return documents


def refuse_packed_rows(
    task: str,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    keywords: Mapping[str, Any],
) -> None:
    """Raises a ValueError if rows hold several documents, for a head that returns one answer per row.

    Args:
        task (`str`): what the head does, for the error message.
        hidden_states (`torch.Tensor`): `(batch, length, hidden_size)`.
        attention_mask, position_ids, keywords: as for `packed_documents`.
    """
    documents = packed_documents(hidden_states.shape[:2], attention_mask, position_ids, keywords)
    if documents is None:
        return
    is_packed = known_value(documents.any)
    if is_packed or is_packed is None and is_packed_explicitly(keywords):
        raise ValueError(
            f"{task} takes one document per row, but these rows are packed; give each document its own, padded row"
        )


def is_packed_explicitly(keywords: Mapping[str, Any]) -> bool:
    """Whether one of `PACKING_KEYWORDS` is given."""
    return any(keywords.get(name) is not None for name in PACKING_KEYWORDS)


def without_first_tokens(
    labels: torch.Tensor,
    shape: Sequence[int],
    kept: slice | torch.Tensor,
    inputs: Any,
    keywords: Mapping[str, Any],
    loss_arguments: dict[str, Any],
) -> torch.Tensor:
    """Labels of a causal language model, with what is ignored at the first token of each document but the first of its
    row: the preceding token, the last of another document, must not predict it.

    Args:
        labels (`torch.Tensor`): of the tokens whose logits are kept.
        shape (`tuple`): `(batch, length)` of the input.
        kept (`slice` or `torch.Tensor`): which of its tokens these are.
        inputs (`TextInputs`), keywords: of the forward.
        loss_arguments (`dict`): of `pop_loss_arguments`; its `shift_labels`, each at the token before, are treated
            likewise, in place.
    """
    length = shape[1]
    padding_mask = None if inputs.attention_mask is None else inputs.attention_mask[:, -length:] != 0
    starts = _explicit_starts(shape, padding_mask, keywords)
    if starts is None:
        if inputs.position_ids is None:
            return labels
        starts = (inputs.position_ids.view(-1, length) == 0).expand(*shape)
    first = starts & (number_documents(starts, padding_mask) > 0)
    ignored = loss_arguments.get("ignore_index", -100)
    if loss_arguments.get("shift_labels") is not None:
        following = torch.nn.functional.pad(first[:, 1:], (0, 1))
        loss_arguments["shift_labels"] = loss_arguments["shift_labels"].masked_fill(following[:, kept], ignored)
    return labels.masked_fill(first[:, kept], ignored)


def _explicit_starts(
    shape: Sequence[int], padding_mask: torch.Tensor | None, keywords: Mapping[str, Any]
) -> torch.Tensor | None:
    """Where documents begin according to `seq_idx` or `cu_seq_lens_q`: `(batch, length)` bool, None without them."""
    if not is_packed_explicitly(keywords):
        return None
    given = {name: keywords[name] for name in PACKING_KEYWORDS if keywords.get(name) is not None}
    batch_size, length = shape
    starts = []
    if "seq_idx" in given:
        if given["seq_idx"].shape not in ((batch_size, length), (1, length)):
            raise ValueError(f"seq_idx must have shape {(batch_size, length)}, got {tuple(given['seq_idx'].shape)}")
        starts.append(starts_of_documents(given["seq_idx"].expand(batch_size, length), padding_mask))
    bounds = given.get("cu_seq_lens_q", given.get("cu_seq_lens_k"))
    if bounds is not None:
        other = given.get("cu_seq_lens_k", bounds)
        if may_look_at(bounds) and not torch.equal(bounds, other.to(bounds)):
            raise ValueError(
                f"cu_seq_lens_q and cu_seq_lens_k must be the same in self-attention, got {bounds.tolist()} and "
                f"{other.tolist()}"
            )
        if batch_size != 1 or bounds.dim() != 1 or len(bounds) < 2:
            raise ValueError(
                "cu_seq_lens_q must have shape (documents + 1,) and a batch of one row that holds all documents, got "
                f"shape {tuple(bounds.shape)} and {batch_size} rows"
            )
        if may_look_at(bounds) and (bounds[0] != 0 or bounds[-1] != length or bool((bounds.diff() < 0).any())):
            raise ValueError(f"cu_seq_lens_q must rise from 0 to the row's length {length}, got {bounds.tolist()}")
        index = torch.arange(length, device=bounds.device)
        starts.append(torch.isin(index, bounds)[None])
    if not starts:
        raise ValueError(f"{', '.join(given)} do not say where documents begin; give cu_seq_lens_q or position_ids")
    if len(starts) == 2 and may_look_at(starts[0]):
        if not torch.equal(*(number_documents(x, padding_mask) for x in starts)):
            raise ValueError("seq_idx and cu_seq_lens_q say different things about where documents begin")
    return starts[0]


def _check_order(position_ids: torch.Tensor, padding_mask: torch.Tensor | None) -> None:
    """Raises a ValueError if positions decrease from one real token to the next, other than to 0."""
    if not may_look_at(position_ids):
        return
    follows = torch.ones_like(position_ids[:, 1:], dtype=torch.bool)  # whether a real token comes after another
    if padding_mask is not None:
        position_ids = position_ids.gather(1, last_real(padding_mask))
        follows = padding_mask[:, 1:] & (padding_mask.long().cumsum(-1)[:, 1:] > 1)
    back = follows & (position_ids.diff() < 0) & (position_ids[:, 1:] != 0)
    if back.any():
        row, place = back.nonzero()[0].tolist()
        raise ValueError(
            f"position_ids must not go back within a document, got {position_ids[row, place]} and then "
            f"{position_ids[row, place + 1]} in row {row}; the positions of each further document start at 0"
        )


def _begins_anew(
    restarts: torch.Tensor, attention_mask: torch.Tensor | None, padding_mask: torch.Tensor | None, past_length: int
) -> bool:
    """Whether a real token has position 0 although others are in the cache, where the values can be read."""
    if not (may_look_at(restarts) or (restarts.shape[1] > 1 and may_wait_for(restarts))):
        return False
    if attention_mask is not None and padding_mask is not None:  # it is part of the other
        restarts = restarts & padding_mask & (attention_mask[:, :past_length] != 0).any(-1, keepdim=True)
    return bool(restarts.any())
