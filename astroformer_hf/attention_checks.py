# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Checks of what users give to the operation; each error names the argument, what was found and what was expected."""

import torch

from .attention_state import BidirectionalState, State
from .feature_maps import FEATURE_MAPS
from .token_layout import number_documents, starts_of_documents


PRESYNAPTIC_TARGETS = ("response", "synapse")
CALCIUM_SOURCES = ("neurons", "all")


def check_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    alpha: float,
    feature_map: str,
    random_projection: torch.Tensor | None,
) -> None:
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {sorted(FEATURE_MAPS)}, got {feature_map!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise ValueError(f"alpha must be a number in (0, 1], got {alpha!r}")

    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, (batch, heads, length, size); {shapes}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same number of hidden neurons (last dimension); {shapes}")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise ValueError(f"query, key and value must agree in batch and heads; {shapes}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value must have the same length; {shapes}")
    if query.shape[2] != key.shape[2] and 0 not in (query.shape[2], key.shape[2]):
        raise ValueError(f"query and key must have the same length, unless one of them is empty; {shapes}")

    batch_size, num_heads, length, num_hidden_neurons = key.shape
    if astrocyte_code is not None:
        expected = (num_heads, length, num_hidden_neurons)
        if astrocyte_code.shape not in (expected, (batch_size, *expected)):
            raise ValueError(
                f"astrocyte_code must have shape {expected}, or that with a leading batch of {batch_size}, "
                f"got {tuple(astrocyte_code.shape)}"
            )
    if padding_mask is not None:
        if padding_mask.dtype != torch.bool:
            raise ValueError(f"padding_mask must be bool, True where a token is real, got {padding_mask.dtype}")
        if padding_mask.shape != (batch_size, length):
            raise ValueError(f"padding_mask must have shape {(batch_size, length)}, got {tuple(padding_mask.shape)}")
    if random_projection is not None:
        if not FEATURE_MAPS[feature_map].has_random_projection:
            raise ValueError(
                "random_projection belongs to a feature_map of random features such as 'favor', got feature_map "
                f"{feature_map!r}"
            )
        if random_projection.dim() != 2 or random_projection.shape[1] != num_hidden_neurons:
            raise ValueError(
                f"random_projection must have shape (random_features, {num_hidden_neurons}), "
                f"got {tuple(random_projection.shape)}"
            )


def check_switches(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    presynaptic_target: str,
    calcium_sources: str,
    log_decay: torch.Tensor | None,
    proximity: torch.Tensor | None,
    causal: bool,
    initial_state: State | None,
    output_final_state: bool,
) -> None:
    if presynaptic_target not in PRESYNAPTIC_TARGETS:
        raise ValueError(f"presynaptic_target must be 'response' or 'synapse', got {presynaptic_target!r}")
    if calcium_sources not in CALCIUM_SOURCES:
        raise ValueError(f"calcium_sources must be 'neurons' or 'all', got {calcium_sources!r}")
    batch_size, num_heads, length, _ = key.shape
    both_ways = log_decay is not None and not causal
    if log_decay is not None:
        if log_decay.shape not in ((batch_size, num_heads, length), (1, num_heads, length)):
            raise ValueError(
                f"log_decay must have shape {(batch_size, num_heads, length)}, or that with a batch of 1, got "
                f"{tuple(log_decay.shape)}"
            )
        if proximity is not None:
            raise ValueError("log_decay is for tokens on a line and proximity for others: give one of them")
        if not causal and length == 0:
            raise ValueError("log_decay needs keys, unless causal=True: what is read in both directions stands in line")
    if proximity is not None:
        if proximity.shape != (num_heads, query.shape[2], length) or query.shape[2] != length:
            raise ValueError(
                f"proximity must have shape {(num_heads, length, length)}, and there must be as many queries as keys, "
                f"got {tuple(proximity.shape)} and {query.shape[2]} queries"
            )
        if causal or initial_state is not None or output_final_state:
            raise ValueError("proximity is for whole inputs: not with causal=True, initial_state or output_final_state")
    if initial_state is not None and isinstance(initial_state, BidirectionalState) != both_ways:
        expected = "BidirectionalState with log_decay unless causal=True" if both_ways else "NeuronAstrocyteState"
        raise ValueError(f"initial_state must be a {expected}, got {type(initial_state).__name__}")


def checked_documents(
    document_ids: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    padding_mask: torch.Tensor | None,
    causal: bool,
    keeps_states: bool,
) -> torch.Tensor | None:
    """`document_ids`, checked, as `number_documents` numbers them; None without."""
    if document_ids is None:
        return None
    batch_size, _, length, _ = key.shape
    if document_ids.shape != (batch_size, length) or document_ids.is_floating_point():
        raise ValueError(
            f"document_ids must be whole numbers of shape {(batch_size, length)}, got {document_ids.dtype} of shape "
            f"{tuple(document_ids.shape)}"
        )
    if query.shape[2] != length:
        raise ValueError(f"document_ids need queries and keys of the same length, got {query.shape[2]} and {length}")
    if not causal and keeps_states:
        raise ValueError(
            "document_ids have no initial_state or final state unless causal=True: each document of a row has a state "
            "of its own"
        )
    if length == 0:
        return None
    documents = number_documents(starts_of_documents(document_ids, padding_mask), padding_mask)
    if document_ids.device.type == "cpu" and not torch.compiler.is_compiling():  # where the look costs nothing
        for row, ids in enumerate(document_ids):
            ids = ids if padding_mask is None else ids[padding_mask[row]]
            if len(ids.unique()) < len(ids.unique_consecutive()):
                raise ValueError(
                    "document_ids must not return to a document that has ended: the tokens of each stand together, got "
                    f"{ids.unique_consecutive().tolist()} in row {row}"
                )
    return documents
