# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What a text model asks of its inputs and of a cache, in errors that name the argument."""

from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache

from .cache_astroformer import AstroformerCache, check_rows
from .configuration_astroformer import AstroformerConfig
from .feature_maps import FEATURE_MAPS
from .forward_keywords import may_look_at
from .head_shards import refuse_sharded_sequence
from .library_compatibility import CACHE_NAME
from .token_layout import SequenceLayout
from .traced_values import is_exporting


class TextInputs(NamedTuple):
    """What every text model reads, in the order of its arguments; `AstroformerModel.forward` explains them."""

    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None


def isinstance_by_name(x: Any, cls: type) -> bool:
    """`isinstance`, also for the class's copy in code that came with a checkpoint."""
    return x is not None and cls.__name__ in {base.__name__ for base in type(x).__mro__}


def check_text_inputs(inputs: TextInputs, config: AstroformerConfig, past_length: int) -> torch.Tensor | None:
    """Checks the inputs against each other; returns the positions, if there are any, in two dimensions."""
    input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds = inputs
    refuse_sharded_sequence(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(f"input_ids must have shape (batch, length), got {tuple(input_ids.shape)}")
    if inputs_embeds is not None and (inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != config.hidden_size):
        raise ValueError(
            f"inputs_embeds must have shape (batch, length, hidden_size={config.hidden_size}), "
            f"got {tuple(inputs_embeds.shape)}"
        )
    tokens: Any = input_ids if inputs_embeds is None else inputs_embeds
    batch_size, length = tokens.shape[:2]
    if length == 0:
        name = "input_ids" if inputs_embeds is None else "inputs_embeds"
        raise ValueError(f"{name} must have at least one token, got shape {tuple(tokens.shape)}")
    check_mask(attention_mask)
    for name, tensor, expected_length in (
        ("attention_mask", attention_mask, past_length + length),
        ("token_type_ids", token_type_ids, length),
    ):
        if tensor is not None and tensor.shape != (batch_size, expected_length):
            in_cache = f", of which {past_length} are in the cache" if expected_length != length else ""
            raise ValueError(
                f"{name} must have shape {(batch_size, expected_length)}{in_cache}, got {tuple(tensor.shape)}"
            )
    if position_ids is not None:
        if position_ids.dim() == 1:
            position_ids = position_ids[None]
        if position_ids.shape not in ((1, length), (batch_size, length)):
            raise ValueError(
                f"position_ids must have shape {(1, length)} or {(batch_size, length)}, got {tuple(position_ids.shape)}"
            )
    check_range("input_ids", input_ids, config.vocab_size, "vocab_size")
    check_range("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
    return position_ids


def check_mask(attention_mask: Any) -> None:
    """Raises a ValueError if a mask is not one number per token, 1 or 0.

    What cannot be looked at is left to the device, which stops at an assertion; but whole numbers in a graph are taken
    as they are, as tokenizers make them.
    """
    if attention_mask is None:
        return
    is_tensor = torch.is_tensor(attention_mask)
    if not is_tensor or attention_mask.dim() != 2:
        got = tuple(attention_mask.shape) if is_tensor else f"a {type(attention_mask).__name__}"
        raise ValueError(
            f"attention_mask must have shape (batch, length), 1 for a real token and 0 for padding, got {got}; a mask "
            "with a row per query is not supported. config.is_decoder says whether a model is causal"
        )
    if attention_mask.dtype == torch.bool or attention_mask.numel() == 0:
        return
    is_binary = ((attention_mask == 0) | (attention_mask == 1)).all
    if may_look_at(attention_mask):
        if not is_binary():
            low, high = attention_mask.min().item(), attention_mask.max().item()
            raise ValueError(
                "attention_mask must be 1 where a token is real and 0 where it is padding, got values from "
                f"{low} to {high}; of an additive mask give (mask == 0)"
            )
    elif attention_mask.is_floating_point() and not is_exporting():
        torch._assert_async(is_binary(), "attention_mask must be 1 where a token is real and 0 where it is padding")


def check_range(name: str, indices: torch.Tensor | None, size: int, size_name: str) -> None:
    """Raises a ValueError that names the argument if `indices` leave [0, size).

    Only where the look costs nothing: elsewhere it would stall the device or break the graph, and the device's own
    assertion remains.
    """
    if indices is None or not may_look_at(indices) or indices.numel() == 0:
        return
    low, high = indices.min().item(), indices.max().item()
    if low < 0 or high >= size:
        raise ValueError(f"{name} must be in [0, {size_name}={size}), got values from {low} to {high}")


def check_positions(layout: SequenceLayout, position_ids: torch.Tensor | None, length: int, num_positions: int) -> None:
    """Raises a ValueError if the table of the "learned" code lacks a row for a position.

    Args:
        layout (`SequenceLayout`): of the input.
        position_ids (`torch.Tensor`, *optional*): as given; without them, positions follow from the length.
        length (`int`): tokens of the input and in the cache.
        num_positions (`int`): rows of the table.
    """
    if position_ids is not None or layout.document_ids is not None:
        check_range("position_ids", layout.position_ids, num_positions, "max_position_embeddings")
    elif length > num_positions:
        raise ValueError(
            f"an input of {length} tokens is longer than the learned astrocyte code, "
            f"max_position_embeddings={num_positions}; truncate it, or use astrocyte_code 'sinusoidal' or "
            "'activity', which take any length"
        )


def cache_class(config: AstroformerConfig) -> type[Cache]:
    """The kind of cache that a decoder writes."""
    return DynamicCache if config.attention_type == "softmax" else AstroformerCache


def check_cache(cache: Any, config: AstroformerConfig, is_dropped: bool) -> None:
    """Raises a ValueError if a cache is not one that the model can continue.

    Args:
        cache (`Cache`): as given.
        config (`AstroformerConfig`): of the model.
        is_dropped (`bool`): whether gradient checkpointing would leave it out.
    """
    if not config.is_decoder:
        raise ValueError(f"{CACHE_NAME} belongs to a decoder; this model has is_decoder=False")
    kind = cache_class(config)
    if not isinstance_by_name(cache, kind):
        raise ValueError(
            f"{CACHE_NAME} must be a {kind.__name__} for attention_type {config.attention_type!r}, got a "
            f"{type(cache).__name__}; leave it out, and the model makes one (prefix tuning, which brings keys and "
            "values, is for attention_type 'softmax' without segments)"
        )
    if is_dropped:
        raise ValueError(
            f"{CACHE_NAME} does not go with gradient checkpointing in training, which would leave it out: call "
            "model.eval() or model.gradient_checkpointing_disable() first"
        )
    if len(cache.layers) not in (0, config.num_hidden_layers):
        raise ValueError(
            f"{CACHE_NAME} has {len(cache.layers)} layers and the model {config.num_hidden_layers}: it is that of "
            "another model"
        )


def check_cache_layer(layer: Any, config: AstroformerConfig, code_has_state: bool, batch_size: int) -> None:
    """Raises a ValueError if a layer of a cache was written by another model, or for another number of sequences.

    Args:
        layer (`CacheLayerMixin`): the first, which has been written to.
        config (`AstroformerConfig`): of the model.
        code_has_state (`bool`): whether the model's astrocyte code writes a state as well.
        batch_size (`int`): sequences of the input.
    """
    found: list = []
    expected: list = []
    head_size, num_neurons = config.hidden_size // config.num_attention_heads, config.num_hidden_neurons
    assert num_neurons is not None  # the configuration has put the head size in its place
    memory, segment_length = getattr(layer, "memory", None), getattr(layer, "segment_length", None)
    if config.segment_length is not None or memory is not None:
        found += [segment_length, *(() if memory is None else memory.shape[1:])]
        expected += [config.segment_length, config.num_memory_tokens, config.hidden_size]
    if config.attention_type == "softmax":
        batch_in_cache = layer.keys.shape[0]
        channels = num_neurons + (config.synaptic_decay != "none")  # beside each key, how much is left when it comes
        found += [layer.keys.shape[-1], layer.values.shape[-1]]
        expected += [channels, head_size]
    elif layer.synapses is None:  # an empty segment without memory tokens
        batch_in_cache = 0 if memory is None else memory.shape[0]
    else:
        batch_in_cache = layer.synapses.calcium.shape[0]
        num_features = FEATURE_MAPS[config.feature_map].num_features(num_neurons, config.num_random_features)
        found += [*layer.synapses.hebbian.shape[-2:], layer.code_state is not None]
        expected += [num_features, head_size, code_has_state]
    if found != expected:
        raise ValueError(
            f"{CACHE_NAME} was written by another model, whose attention has other sizes or codes, or other segments"
        )
    check_rows(batch_in_cache, batch_size)


def flatten_choices(inputs: TextInputs) -> tuple[TextInputs, int]:
    """Inputs of `(batch, choices, length)` as `(batch * choices, length)`, and the number of choices.

    Raises:
        ValueError: the inputs have another shape.
    """
    tokens: Any = inputs.input_ids if inputs.input_ids is not None else inputs.inputs_embeds
    dimensions = 3 if inputs.input_ids is not None else 4
    if tokens is None or tokens.dim() != dimensions:
        raise ValueError(
            "input_ids must have shape (batch, choices, length), or inputs_embeds (batch, choices, length, "
            f"hidden_size), got {None if tokens is None else tuple(tokens.shape)}"
        )
    for name in ("attention_mask", "token_type_ids"):
        tensor: Any = getattr(inputs, name)
        if tensor is not None and getattr(tensor, "shape", None) != tokens.shape[:3]:
            got = tuple(tensor.shape) if torch.is_tensor(tensor) else f"a {type(tensor).__name__}"
            raise ValueError(
                f"{name} must have the shape (batch, choices, length) of the inputs, {tuple(tokens.shape[:3])}, "
                f"got {got}"
            )
    return TextInputs(*(x if x is None else x.flatten(0, 1) for x in inputs)), tokens.shape[1]
