# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Neuron-astrocyte attention as an attention implementation of transformers, for models of the library.

    AutoModel.from_pretrained("bert-base-uncased", attn_implementation="neuron_astrocyte")   # or "linear"

replaces the softmax attention of every layer, with the weights of the checkpoint and no new ones. The answers are not
those of the checkpoint: a model has to be fine-tuned with it. What an implementation is given, a mask and keywords, is
either taken into account or refused with an error that names it.

Both read queries and keys through the feature map "exp", scaled as the library scales the products of softmax
attention; "linear" is linear attention, and "neuron_astrocyte" adds the astrocyte that `FORMS` describes, whose code is
made of the keys and has no parameters of its own. Neither knows positions: what the library adds to queries and keys
(rotations) or embeddings remains. The cache of the library holds every key and value, so a token takes time in
proportion to the context.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from .astrocyte_code import upcast
from .attention_operation import attend, neuron_astrocyte_attention_weights
from .attention_passes import full_precision
from .feature_maps import FEATURE_MAPS
from .forward_keywords import may_wait_for
from .layers_astroformer import materialized
from .library_compatibility import collects_attention_maps
from .token_layout import for_each_query, sequence_layout


class AttentionForm(NamedTuple):
    """The constants of an attention implementation, named as the fields of `AstroformerConfig`.

    alpha acts at the synapse and calcium has all sources, so that the weights with which a token reads the values sum
    to 1, as those of softmax attention do.
    """

    use_astrocyte_hebbian: bool
    presynaptic_alpha: float
    astrocyte_scale: float = 3.0
    astrocyte_resting_activity: float = 1.0


FORMS = {
    "linear": AttentionForm(use_astrocyte_hebbian=False, presynaptic_alpha=1.0),
    "neuron_astrocyte": AttentionForm(use_astrocyte_hebbian=True, presynaptic_alpha=0.5),
}
FEATURE_MAP = "exp"

# What models hand on that says nothing about which token reads which, or says what the mask says as well.
HARMLESS_KEYWORDS = {
    *("position_ids", "cache_position", "position_embeddings", "use_cache", "layer_idx"),
    *("output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch", "is_causal"),
    *("tokenizer", "assistant_tokenizer"),  # which `generate` leaves among them, with stop_strings
}


class TokenMask(NamedTuple):
    """What the implementations take as a model's attention mask.

    Attributes:
        real: `(batch, key_length)` bool, False where a token is padding; None where all are real.
        causal: whether a token reads those up to itself only.
        key_length: how many keys it is for; None: not known.
    """

    real: torch.Tensor | None
    causal: bool
    key_length: int | None = None


def token_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., bool] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    config: Any = None,
    **kwargs: Any,
) -> TokenMask:
    """The mask function that goes with the implementations: called by the library with the arguments that it gives
    to every such function, of which batch size, dtype and device make no difference here.

    Raises:
        ValueError: for a mask that is more than causal or not and padding or not.
    """
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        parts = " and ".join(map(repr, _parts_of(mask_function)))
        raise refusal(
            f"the mask of {parts}: only plain causal and plain bidirectional masks, with padding; no sliding window, "
            "no packed rows, no prefix. Packed rows show in position_ids that restart; give an attention_mask to rows "
            "that are not packed",
            config,
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise refusal("cross-attention", config)
    causal = mask_function is causal_mask_function
    expected = q_length if torch.is_tensor(q_offset) else q_offset + q_length
    if torch.is_tensor(q_offset) or kv_offset != 0 or (causal and kv_length != expected):
        raise refusal(
            f"a cache of fixed or bounded length (keys {kv_offset} to {kv_offset + kv_length} for {q_length} queries); "
            "use a DynamicCache, cache_implementation='dynamic'",
            config,
        )
    if attention_mask is not None and attention_mask.shape[-1] != kv_length:
        raise refusal(f"an attention_mask of {attention_mask.shape[-1]} tokens for {kv_length} keys", config)
    return TokenMask(None if attention_mask is None else attention_mask != 0, causal, kv_length)


def _parts_of(mask_function: Any) -> list[str]:
    """The names of the functions that the library combined into a mask function."""
    inside = [cell.cell_contents for cell in getattr(mask_function, "__closure__", None) or ()]
    functions = [f for x in inside for f in (x if isinstance(x, tuple) else (x,)) if callable(f)]
    own_name = getattr(mask_function, "__qualname__", repr(mask_function)).split(".")[0]
    return [name for f in functions for name in _parts_of(f)] or [own_name]


def library_attention(form: AttentionForm) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function of an `AttentionForm`, for `AttentionInterface`."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention as the library calls it.

        Args:
            module (`torch.nn.Module`): the layer.
            query (`torch.Tensor`): `(batch, heads, length, size)`.
            key, value (`torch.Tensor`): `(batch, key_heads, key_length, size)`; the heads may be fewer, each for
                several queries. Causally the queries are those of the last tokens.
            attention_mask (`TokenMask`, *optional*): as `token_mask` makes it; None for models without one.
            dropout (`float`): the share of synapses that release nothing.
            scaling (`float`, *optional*): of the products of queries and keys, by default one over the square root of
                the size.

        Returns:
            `(batch, length, heads, size)`, and the attention map if asked for.

        Raises:
            ValueError: for what it does not compute, with its name.
        """
        config = getattr(module, "config", None)
        mask = checked_mask(module, query, key, attention_mask, kwargs)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = for_each_query(query, key), released(for_each_query(query, value), dropout)
        query, key = query * scaling**0.5, key * scaling**0.5
        check_key_length(key, mask, config)
        output, attention_map = _attend(form, query, key, value, mask, wants_attention_map(kwargs), config)
        return output.transpose(1, 2).contiguous(), attention_map

    return attention


def released(value: torch.Tensor, dropout: float) -> torch.Tensor:
    """The values that synapses release, of which a share `dropout` release nothing."""
    if dropout == 0:
        return value
    return value * nn.functional.dropout(value.new_ones(*value.shape[:-1], 1), dropout)


def wants_attention_map(kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("output_attentions") or collects_attention_maps())


def checked_mask(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, attention_mask: Any, kwargs: dict[str, Any]
) -> TokenMask:
    """The mask of a call, after a check of all that the library handed on with it."""
    config = getattr(module, "config", None)
    mask = _checked_mask(module, query, key, attention_mask, config)
    for name, given in kwargs.items():
        if given is not None and given is not False and name not in HARMLESS_KEYWORDS:
            raise refusal(f"{name}={_shortened(given)}", config)
    if kwargs.get("is_causal") not in (None, mask.causal):
        raise refusal(f"is_causal={kwargs['is_causal']} with a mask that is its opposite", config)
    _refuse_packed_rows(kwargs.get("position_ids"), mask, config)
    return mask


def _refuse_packed_rows(position_ids: Any, mask: TokenMask, config: Any) -> None:
    """Raises a ValueError for positions that begin anew. The library takes them for packed rows where it has no cache,
    of which its mask then tells; with a cache it takes them as they are."""
    if not torch.is_tensor(position_ids) or position_ids.dim() != 2 or position_ids.shape[-1] < 2:
        return
    if mask.real is not None or not mask.causal or not may_wait_for(position_ids):
        return
    if (position_ids.diff(dim=-1) < 0).any():
        raise refusal("packed rows, which position_ids that begin anew are without an attention_mask", config)


def check_key_length(key: torch.Tensor, mask: TokenMask, config: Any) -> None:
    """Raises a ValueError if a cache kept other keys than the mask is for."""
    if mask.key_length not in (None, key.shape[2]):
        raise refusal(f"a cache that gives {key.shape[2]} keys where the mask is for {mask.key_length}", config)


def _checked_mask(module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: Any, config: Any) -> TokenMask:
    """The mask of a call, one that hides nothing where the model has none.

    A mask that a user makes passes the library by, and a model of text that comes without one has lost it.
    """
    if mask is None:
        if getattr(module, "is_causal", False) or hasattr(config, "vocab_size"):
            raise refusal("a call without the mask that its mask function makes", config)
        mask = TokenMask(None, causal=False)
    if not hasattr(mask, "causal"):
        shape = tuple(getattr(mask, "shape", ()))
        raise refusal(
            f"an attention mask of shape {shape}; give a model one of shape (batch, length), 1 for a real token", config
        )
    if mask.real is not None and (mask.real.dim() != 2 or mask.real.shape[0] != query.shape[0]):
        raise refusal(
            f"an attention_mask of shape {tuple(mask.real.shape)} for {query.shape[0]} sequences; give one of shape "
            f"(batch, length), ({query.shape[0]}, {key.shape[2]})",
            config,
        )
    if not mask.causal and query.shape[2] != key.shape[2]:
        raise refusal(f"cross-attention, {query.shape[2]} queries over {key.shape[2]} keys", config)
    return mask


def _attend(
    form: AttentionForm,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: TokenMask,
    wants_map: bool,
    config: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`(batch, heads, length, size)`, and the attention map or None."""
    length, past_length = query.shape[2], key.shape[2] - query.shape[2]
    if wants_map and past_length > 0:
        raise refusal("attention maps (output_attentions=True) with a cache", config)
    real = None if mask.real is None else mask.real.to(key.device)
    operation: dict[str, Any] = {
        "alpha": form.presynaptic_alpha,
        "presynaptic_target": "synapse",
        "calcium_sources": "all",
        "feature_map": FEATURE_MAP,
        "feedback": True,
        "random_projection": None,
        "causal": mask.causal,
    }
    state: Any = None
    code_state: Any = None
    # causally, what is in the cache is written first, and the queries go on from there
    for start, end in ((0, past_length), (past_length, past_length + length)):
        if start == end:
            continue
        layout = sequence_layout(
            end - start, key.device, None if real is None else real[:, :end], causal=mask.causal, past_length=start
        )
        own_key, own_value = key[:, :, start:end], upcast(value[:, :, start:end])
        own_query = query if start == past_length else query[:, :, :0]
        code = None
        if form.use_astrocyte_hebbian:
            with full_precision(key):
                code = layout.activity(upcast(own_key), form.astrocyte_scale, *_code_weights(form, key), code_state)
        operation.update(initial_state=state, padding_mask=layout.padding_mask)
        if wants_map:
            r = materialized(code, own_key, layout)
            weights = neuron_astrocyte_attention_weights(upcast(query), own_key, r, **operation)
            attention_map = (weights * query.shape[-1]).to(value.dtype)
            return attention_map @ value, attention_map
        attended = attend(
            query=own_query,
            key=own_key,
            value=own_value,
            astrocyte_code=code,
            **operation,
            output_final_state=start < past_length,
            output_scale=float(query.shape[-1]),  # the paper's 1/m is for weights that are learned with it
        )
        state, code_state = attended.state, attended.code_state
    return attended.output.to(value.dtype), None


def _code_weights(form: AttentionForm, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W and b of the code "activity" before training: `(heads, m, m)` and `(heads, 1, m)`."""
    heads, m = key.shape[1], key.shape[-1]
    resting_level = FEATURE_MAPS[FEATURE_MAP].resting_level
    assert resting_level is not None
    dtype = upcast(key[:, :, :0]).dtype
    identity = torch.eye(m, device=key.device, dtype=dtype).expand(heads, m, m)
    return identity, identity.new_full((heads, 1, m), resting_level(form.astrocyte_resting_activity))


def refusal(what: str, config: Any) -> ValueError:
    """The error that says what an implementation does not compute, and of which model."""
    name = getattr(config, "_attn_implementation", None)
    of = f" of {config.model_type!r}" if getattr(config, "model_type", None) else ""
    return ValueError(f"attn_implementation {name!r}{of} does not support {what}")


def _shortened(x: Any) -> str:
    return f"a tensor of shape {tuple(x.shape)}" if torch.is_tensor(x) else repr(x)[:80]


def register() -> None:
    """Makes the implementations known to the library. Twice is harmless.

    A model without the library's interface would take the name and go on with softmax attention: it is refused.
    """
    for name, form in FORMS.items():
        AttentionInterface.register(name, library_attention(form))
        AttentionMaskInterface.register(name, token_mask)
    original = PreTrainedModel.get_correct_attn_implementation
    if getattr(original, "refuses_models_without_interface", False):
        return

    def get_correct_attn_implementation(
        self: PreTrainedModel, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        _refuse_without_interface(self, requested_attention)
        return original(self, requested_attention, is_init_check)

    def set_attn_implementation(self: PreTrainedModel, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_without_interface(self, attn_implementation)  # the library warns and goes on
        return original_setter(self, attn_implementation, *args, **kwargs)

    get_correct_attn_implementation.refuses_models_without_interface = True  # type: ignore[attr-defined]
    setattr(PreTrainedModel, original.__name__, get_correct_attn_implementation)
    original_setter = PreTrainedModel.set_attn_implementation
    setattr(PreTrainedModel, original_setter.__name__, functools.wraps(original_setter)(set_attn_implementation))


def _refuse_without_interface(model: PreTrainedModel, attn_implementation: Any) -> None:
    """Raises a ValueError for one of the implementations and a model whose attention cannot be chosen."""
    given = attn_implementation.values() if isinstance(attn_implementation, dict) else [attn_implementation]
    asked = [name for name in given if name in FORMS]
    if asked and not model._can_set_attn_implementation():
        raise ValueError(
            f"attn_implementation {asked[0]!r} is not for {type(model).__name__}, whose attention is "
            "not an implementation that can be chosen"
        )
