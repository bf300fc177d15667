# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""From hidden states and labels to a loss: pooling, what labels may be, and the losses themselves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .astrocyte_code import upcast
from .configuration_astroformer import AstroformerBaseConfig
from .forward_keywords import may_look_at
from .input_checks import check_range


def check_pooling(config: AstroformerBaseConfig) -> None:
    """Raises a ValueError if a model is to be pooled to its first token, which has not seen the text."""
    if config.segment_length is not None and config.pooling == "cls":
        raise ValueError(
            f"pooling 'cls' would read the first of the segments (segment_length={config.segment_length}) alone; give "
            "pooling='last' or 'mean'"
        )
    if config.is_decoder and config.pooling == "cls":
        raise ValueError(
            "pooling 'cls' would read the first token of a causal model (is_decoder=True), which sees no other; give "
            "pooling='last', its last token, or 'mean'"
        )


def pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One vector per sequence, `(batch, hidden_size)`: the mean over its real tokens ("mean"), the first ("cls") or the
    last ("last") of them.

    A sequence of nothing but padding pools to 0 ("mean"), to its first ("cls") or to its last row ("last").
    """
    if attention_mask is not None:
        attention_mask = attention_mask[:, -hidden_states.shape[1] :]  # without the tokens in a cache
    if pooling in ("cls", "last"):
        if attention_mask is None:
            return hidden_states[:, 0 if pooling == "cls" else -1]
        real = (attention_mask != 0).int()
        index = real.argmax(-1) if pooling == "cls" else real.shape[1] - 1 - real.flip(-1).argmax(-1)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), index]
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    real = (attention_mask != 0)[..., None]  # (B, N, 1)
    total = hidden_states.masked_fill(~real, 0).sum(dim=1, dtype=torch.float32)
    return (total / real.sum(dim=1).clamp(min=1)).to(hidden_states.dtype)


def pop_loss_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes those of a forward's keyword arguments that are for the loss, and returns them."""
    names = ("num_items_in_batch", "shift_labels", "ignore_index")
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def class_labels(
    labels: Any, shape: tuple[int, ...], size: int, size_name: str, loss_arguments: dict[str, Any] | None = None
) -> torch.Tensor:
    """Labels in int64; a ValueError if they have another shape or leave [0, size), but for those that are ignored.

    `loss_arguments` are those of `pop_loss_arguments`; their `shift_labels` are treated likewise, in place.
    """
    loss_arguments = {} if loss_arguments is None else loss_arguments
    ignored = loss_arguments.get("ignore_index", -100)

    def checked(name: str, labels: Any) -> torch.Tensor:
        labels = whole_numbers(name, labels, [shape])
        check_range(name, labels.masked_fill(labels == ignored, 0), size, size_name)
        return labels

    if loss_arguments.get("shift_labels") is not None:
        loss_arguments["shift_labels"] = checked("shift_labels", loss_arguments["shift_labels"])
    return checked("labels", labels)


def answer_positions(name: str, positions: Any, batch_size: int, length: int) -> torch.Tensor:
    """Positions of answers in int64; a ValueError if they have another shape or are negative."""
    positions = whole_numbers(name, positions, [(batch_size,), (batch_size, 1)])
    check_range(name, positions.clamp(max=length), length + 1, "length + 1")
    return positions


def whole_numbers(name: str, labels: Any, shapes: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Labels that are indices, in int64; a ValueError that names them if they are no tensor of them in such a shape."""
    if not torch.is_tensor(labels):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.shape not in shapes:
        raise ValueError(
            f"{name} must have shape {' or '.join(str(tuple(s)) for s in shapes)}, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} must be whole numbers, got {labels.dtype}")
    return labels.long()


def sequence_classification_loss(
    logits: torch.Tensor,
    labels: Any,
    config: AstroformerBaseConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy, binary cross-entropy or squared error: the sum over label entries divided by their number.

    That number is `num_items_in_batch` where it is given, so that a batch accumulated in parts has the loss of the
    whole. Arguments and errors as for `AstroformerForSequenceClassification.forward`.
    """
    if not torch.is_tensor(labels):
        raise ValueError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    batch_size = logits.shape[0]
    num_labels: Any = config.num_labels
    problem_type: Any = config.problem_type or inferred_problem_type(labels, num_labels)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "single_label_classification": [(batch_size,), (batch_size, 1)],
        "multi_label_classification": [(batch_size, num_labels)],
        "regression": [(batch_size, num_labels)] + ([(batch_size,)] if num_labels == 1 else []),
    }
    if problem_type not in shapes:
        raise ValueError(f"config.problem_type must be one of {', '.join(map(repr, shapes))}, got {problem_type!r}")
    expected = shapes[problem_type]
    if not any(has_shape(labels, shape) for shape in expected):
        raise ValueError(
            f"labels must have shape {' or '.join(map(str, expected))} for {problem_type} with {num_labels} labels, "
            f"got {tuple(labels.shape)}; if they are of another problem, set config.problem_type"
        )

    if problem_type == "single_label_classification":
        if labels.is_floating_point():
            raise ValueError(f"labels must be whole numbers for single_label_classification, got {labels.dtype}")
        labels = labels.reshape(-1)
        loss = classification_loss(
            logits, class_labels(labels, labels.shape, num_labels, "num_labels"), num_items_in_batch
        )
    else:
        logits = upcast(logits)
        labels = labels.to(logits.dtype).view_as(logits)
        if problem_type == "multi_label_classification":
            if may_look_at(labels) and not ((labels >= 0) & (labels <= 1)).all():
                raise ValueError(
                    f"labels must be from 0 to 1 for {problem_type}, got values from {labels.min()} to {labels.max()}"
                )
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        else:
            loss = nn.functional.mse_loss(logits, labels, reduction="sum")
        loss = mean_over_items(loss, labels.numel(), num_items_in_batch)
    if config.problem_type is None:  # for those who read a saved classifier's answers, such as pipelines
        config.problem_type = problem_type
    return loss


def has_shape(x: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has a shape; number by number, as a graph for every batch can compare them."""
    return x.dim() == len(shape) and all(x.shape[i] == shape[i] for i in range(x.dim()))


def inferred_problem_type(labels: torch.Tensor, num_labels: int) -> str:
    """What labels are of, where the configuration does not say."""
    if num_labels == 1:
        return "regression"
    is_one_of_each = labels.dtype == torch.bool and labels.shape[1:] == (num_labels,)
    if labels.is_floating_point() or is_one_of_each:
        return "multi_label_classification"
    return "single_label_classification"


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy of `(batch, classes)` logits against `(batch,)` labels, a mean as of `mean_over_items`."""
    loss = nn.functional.cross_entropy(upcast(logits), labels, reduction="sum")
    return mean_over_items(loss, (labels != -100).sum(), num_items_in_batch)


def mean_over_items(
    loss: torch.Tensor, num_items: torch.Tensor | int, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """A summed loss divided by the number of its items, or by `num_items_in_batch` where it is given, so that a batch
    that is accumulated in parts has the loss of the whole."""
    if num_items_in_batch is not None:
        num_items = num_items_in_batch
        if torch.is_tensor(num_items):
            num_items = num_items.to(loss.device)
    return loss / num_items
