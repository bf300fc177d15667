# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Models of the library whose softmax attention is replaced by neuron-astrocyte attention with learned feature maps.

`swap_attention` of `modeling_swapped.py` gives each attention layer of a model `SwappedSynapses` beside its
projections, which are kept: a feature map for queries and one for keys per head, and how loud the synapses are beside
what is read exactly (`hybrid_attention.py`). The maps are then learned from the softmax attention of the original, by
`transfer.py`.

The feature map "hedgehog" is `feature_maps.HedgehogMap`, with a matrix W per head that starts as the identity, and for
keys with a vector a per head that starts at zero.
"""

import dataclasses
import functools
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from .cache_astroformer import check_rows, places_after
from .configuration_swapped import IMPLEMENTATION, refuse_other_attention
from .feature_maps import FEATURE_MAPS, HedgehogMap
from .hybrid_attention import ExactPart, HybridState, Synapses, hybrid_attention, hybrid_attention_weights
from .library_attention import (
    TokenMask,
    check_key_length,
    checked_mask,
    refusal,
    released,
    token_mask,
    wants_attention_map,
)
from .library_compatibility import CACHE_NAME
from .token_layout import for_each_query, sequence_layout


HEDGEHOG = "hedgehog"
CODES = ("activity",)
# While it is a list, swapped layers compute softmax attention and add the error of their synapses, see `transfer.py`.
ATTENTION_ERRORS: ContextVar[list[torch.Tensor] | None] = ContextVar("attention_errors", default=None)
OWN_CACHE = "hybrid_cache"  # the keyword by which a layer's attention function is handed the cache


@dataclasses.dataclass(frozen=True)
class AttentionSwap:
    """What the attention of a model is replaced by; its configuration keeps it as `attention_swap`.

    Args:
        feature_map (`str`): "hedgehog", learned, or one of the fixed `FEATURE_MAPS` without random features.
        num_features (`int`, *optional*): of "hedgehog", an even number; twice the head size by default.
        window_size (`int`): nearest tokens that are read exactly: causally so many, the token included, bidirectionally
            so many on each side. 0: none.
        sink_tokens (`int`): first tokens of a text that are read exactly, bidirectionally first and last ones. 0: none.
        astrocyte_code (`str`, *optional*): "activity" adds H_astro; None: H_neuron alone.
        astrocyte_scale (`float`): scale of the coupling between the processes.
        layers (sequence of `int`): the attention layers that are replaced, from 0; a tuple afterwards.

    Raises:
        ValueError: for a value that is none of these.
    """

    feature_map: str = HEDGEHOG
    num_features: int | None = None
    window_size: int = 0
    sink_tokens: int = 0
    astrocyte_code: str | None = None
    astrocyte_scale: float = 3.0
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # a list, as read from a file
        fixed = [name for name, phi in FEATURE_MAPS.items() if not phi.has_random_projection]
        if self.feature_map not in (HEDGEHOG, *fixed):
            raise ValueError(f"feature_map must be one of {[HEDGEHOG, *fixed]}, got {self.feature_map!r}")
        if self.num_features is not None and (
            self.feature_map != HEDGEHOG or self.num_features < 2 or self.num_features % 2
        ):
            raise ValueError(
                f"num_features must be an even number of at least 2, and is for feature_map 'hedgehog', got "
                f"{self.num_features!r} for {self.feature_map!r}"
            )
        for name in ("window_size", "sink_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
        if self.astrocyte_code not in (None, *CODES):
            raise ValueError(f"astrocyte_code must be None or one of {list(CODES)}, got {self.astrocyte_code!r}")
        if not self.astrocyte_scale > 0:
            raise ValueError(f"astrocyte_scale must be above 0, got {self.astrocyte_scale!r}")

    @property
    def exact(self) -> ExactPart:
        return ExactPart(self.window_size, self.sink_tokens)


class SwappedSynapses(nn.Module):
    """The synapses of one attention layer.

    Args:
        swap (`AttentionSwap`): of the model.
        num_heads, num_key_heads, head_size (`int`): of the layer.
    """

    def __init__(self, swap: AttentionSwap, num_heads: int, num_key_heads: int, head_size: int) -> None:
        super().__init__()
        self.swap, self.heads = swap, (num_heads, num_key_heads, head_size)
        self.log_loudness = nn.Parameter(torch.zeros(num_heads))
        self.query_map: nn.Parameter | None = None
        self.key_map: nn.Parameter | None = None
        self.key_loudness: nn.Parameter | None = None
        if swap.feature_map == HEDGEHOG:
            rows = (swap.num_features or 2 * head_size) // 2
            self.query_map = nn.Parameter(torch.empty(num_heads, head_size, rows))
            self.key_map = nn.Parameter(torch.empty(num_key_heads, head_size, rows))
            self.key_loudness = nn.Parameter(torch.empty(num_key_heads, head_size, 1))  # a
        self.code_weight: nn.Parameter | None = None
        self.code_bias: nn.Parameter | None = None
        if swap.astrocyte_code is not None:
            self.code_weight = nn.Parameter(torch.empty(num_key_heads, head_size, head_size))
            self.code_bias = nn.Parameter(torch.empty(num_key_heads, 1, head_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values: maps that are the identity as far as they go, scaled as usual for softmax attention."""
        for weight in (self.query_map, self.key_map):
            if weight is not None:
                rows, columns = weight.shape[1:]
                start = torch.eye(rows).repeat(1, -(-columns // rows))[:, :columns]
                weight.copy_(start * rows**-0.25)
        self.log_loudness.zero_()
        if self.key_loudness is not None:
            self.key_loudness.zero_()
        if self.code_weight is not None and self.code_bias is not None:
            self.code_weight.copy_(torch.eye(self.code_weight.shape[-1]))
            self.code_bias.zero_()

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: TokenMask,
        scaling: float | None = None,
        state: HybridState | None = None,
        wants_map: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, HybridState | None]:
        """Attention of a layer.

        Args:
            query (`torch.Tensor`): `(batch, heads, length, size)`.
            key, value (`torch.Tensor`): `(batch, key_heads, length, size)`.
            mask (`TokenMask`): of these tokens.
            scaling (`float`, *optional*): of the exact scores, by default one over the square root of the size.
            state (`HybridState`, *optional*): causally, of the tokens before them.
            wants_map (`bool`): whether to return the attention map.

        Returns:
            `(batch, heads, length, size)`, the map or None, and causally the state after the last token.
        """
        heads = query.shape[1], key.shape[1], query.shape[3]
        if heads != self.heads:
            raise ValueError(
                f"the synapses are for {_of_heads(self.heads)}, but the layer has {_of_heads(heads)}; a model whose "
                "heads are spread over several devices is not supported"
            )
        synapses = Synapses(
            query_features=self._features(self.query_map, None),
            key_features=self._features(self.key_map, self.key_loudness),
            loudness=self.log_loudness.float().exp()[:, None, None],
            code=None if self.code_weight is None else self._code,
        )
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        options: dict[str, Any] = {"scaling": scaling, "causal": mask.causal}
        if wants_map:
            weights = hybrid_attention_weights(query, key, synapses, self.swap.exact, mask.real, **options)
            weights = weights.to(value.dtype)
            return weights @ for_each_query(query, value), weights, None
        output, state = hybrid_attention(
            query, key, value, synapses, self.swap.exact, mask.real, **options, state=state
        )
        return output, None, state

    def _features(self, weight: nn.Parameter | None, loudness: nn.Parameter | None) -> Any:
        """phi, over `(batch, heads, length, size)`."""
        if weight is not None:
            return HedgehogMap(weight, loudness)
        return lambda x: FEATURE_MAPS[self.swap.feature_map](x * x.shape[-1] ** -0.25, None)

    def _code(self, key: torch.Tensor, real: torch.Tensor, causal: bool, state: Any) -> tuple[torch.Tensor, Any]:
        assert self.code_weight is not None and self.code_bias is not None
        layout = sequence_layout(key.shape[2], key.device, real, causal=causal)
        weight, bias = self.code_weight.to(key.dtype), self.code_bias.to(key.dtype)
        recipe = layout.activity(key, self.swap.astrocyte_scale, weight, bias, state)
        return recipe.materialize(key, layout.padding_mask, layout.causal, None)


def _of_heads(heads: tuple[int, int, int]) -> str:
    return "{} heads of queries, {} of keys, of size {}".format(*heads)


# --------------------------------------------------------------------------------------------------------------------
# In a model
# --------------------------------------------------------------------------------------------------------------------


def swapped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function of a swapped model, for `AttentionInterface`: in its swapped layers the synapses', in the
    others softmax. Arguments, results and errors as of `library_attention.library_attention`."""
    layer = kwargs.pop(OWN_CACHE, None)
    config = getattr(module, "config", None)
    if not getattr(module, "in_swapped_model", False) and getattr(config, "attention_swap", None) is None:
        raise ValueError(
            f"attn_implementation {IMPLEMENTATION!r} is that of swapped models, and this one has no synapses; "
            "swap_attention gives it some"
        )
    mask = checked_mask(module, query, key, attention_mask, kwargs)
    mask = mask._replace(real=None if mask.real is None else mask.real.to(key.device))
    wants_map = wants_attention_map(kwargs)
    synapses: SwappedSynapses | None = getattr(module, "synapses", None)
    value = released(value, dropout if synapses is not None else 0.0)
    past_length = key.shape[2] - query.shape[2]
    if wants_map and past_length > 0:
        raise refusal("attention maps (output_attentions=True) with a cache", config)
    errors = ATTENTION_ERRORS.get()
    if layer is None:
        check_key_length(key, mask, config)
    elif wants_map or errors is not None:  # neither leaves a state behind
        what = "attention maps (output_attentions=True)" if wants_map else "the errors of the synapses"
        raise refusal(f"{what} with a cache", config)
    if synapses is None or errors is not None:
        output, weights = softmax_attention(query, key, value, mask, dropout, scaling, wants_map)
        if synapses is not None and errors is not None:
            found, *_ = synapses(query, key, value, mask, scaling)
            errors.append(relative_error(found, output, mask.real))
    elif layer is not None:
        places = layer.places_after(synapses.swap, mask.real, key.shape[0], key.shape[2])
        new = None if mask.real is None else mask.real[:, -key.shape[2] :]
        output, weights, state = synapses(query, key, value, mask._replace(real=new), scaling, layer.state)
        assert state is not None
        layer.write(synapses.swap, state, places, key.shape[2])
    else:
        # of a cache that holds every key, the queries of the tokens in it are not asked again
        query = nn.functional.pad(query, (0, 0, past_length, 0))
        output, weights, _ = synapses(query, key, value, mask, scaling, None, wants_map)
        output = output[:, :, past_length:]
    return output.transpose(1, 2).contiguous(), weights


def softmax_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: TokenMask,
    dropout: float,
    scaling: float | None,
    wants_map: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled dot product attention with a `TokenMask`; `(batch, heads, length, size)`, and the map or None."""
    key, value = for_each_query(query, key), for_each_query(query, value)
    length, key_length = query.shape[2], key.shape[2]
    is_causal = mask.causal and mask.real is None and length == key_length
    shown = None if mask.real is None else mask.real[:, None, None, :]
    if mask.causal and not is_causal and (length > 1 or wants_map):
        place = torch.arange(key_length, device=key.device)
        earlier = place <= place[key_length - length :, None]
        # a padded token looks at itself, so that its row, which nothing reads, has a softmax
        itself = place == place[key_length - length :, None]
        shown = earlier if shown is None else earlier & shown | itself
    if not wants_map:
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, shown, dropout, is_causal=is_causal, scale=scaling
        )
        return output, None
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if is_causal:
        shown = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
    if shown is not None:
        scores = scores.masked_fill(~shown, torch.finfo(scores.dtype).min)
    weights = nn.functional.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout)
    return weights @ value, weights


def relative_error(found: torch.Tensor, expected: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """The squared difference over the squares of what is expected, `(..., length, size)`, over real tokens."""
    found, expected = found.float(), expected.float()
    if real is not None:
        real = real.view(len(real), *(1,) * (found.dim() - 3), -1, 1)
        found, expected = found * real, expected * real
    return (found - expected).square().sum() / expected.square().sum().clamp(min=1e-12)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention layers of a model that follow the library's interface, from the first to the last."""
    found = []
    for name, module in model.named_modules():
        is_attention = hasattr(module, "is_causal") and hasattr(module, "config") and not hasattr(module, "layers")
        if is_attention and "cross" not in name.lower():
            found.append(module)
    return found


def add_synapses(model: PreTrainedModel) -> None:
    """Gives a model the synapses that its configuration's `attention_swap` tells of, untrained.

    Raises:
        ValueError: it tells of something that this release does not know.
    """
    options = model.config.attention_swap
    unknown = sorted(options.keys() - {field.name for field in dataclasses.fields(AttentionSwap)})
    if unknown:
        raise ValueError(f"attention_swap has {', '.join(map(repr, unknown))}, which this release does not know")
    swap = AttentionSwap(**options)
    found: list[Any] = attention_layers(model)
    for i in swap.layers:
        module = found[i]
        reference = next(module.parameters())
        synapses = SwappedSynapses(swap, *shape_of(module))
        module.synapses = synapses.to(device=reference.device, dtype=reference.dtype)
    for part in model.modules():
        has_own_config = isinstance(part, PreTrainedModel) and part.config is not model.config
        if has_own_config and any(hasattr(module, "synapses") for module in part.modules()):
            refuse: Any = functools.partial(refuse_to_save_part, type(part).__name__)
            part.save_pretrained = refuse
    for i, module in enumerate(found):
        module.in_swapped_model = True
        module.register_forward_pre_hook(CacheMessenger(i), with_kwargs=True)
    model.set_attn_implementation(IMPLEMENTATION)


def refuse_to_save_part(name: str, *args: Any, **kwargs: Any) -> None:
    """Stands for `save_pretrained` of a model in a swapped one, whose own configuration tells of no swap."""
    raise ValueError(
        f"this {name} is a part of a swapped model, and would be loaded with softmax attention: save the whole model"
    )


def shape_of(module: Any) -> tuple[int, int, int]:
    """Heads, heads of keys, and head size of an attention layer."""
    config = module.config
    heads = config.num_attention_heads
    names = ("qk_head_dim", "head_dim", "attention_head_size")  # the first: queries with a part that is rotated
    size = next((getattr(module, name) for name in names if getattr(module, name, None)), None)
    size = size or getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, size


class CacheMessenger:
    """A forward pre-hook of an attention layer: hands its part of a `HybridCache` on to its attention function, as a
    keyword, and refuses to run a swapped layer without its synapses.

    Args:
        index (`int`): the number of the layer, in the model and in the cache.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        is_swapped = getattr(module, "synapses", None) is not None
        config: Any = module.config
        if is_swapped:
            refuse_other_attention(config._attn_implementation)
        for given in (*arguments, *keywords.values()):  # its name depends on the model and the release
            if not isinstance(given, HybridCache):
                continue
            if self.index == 0:
                given.check_whole()
            layer = given.layers[self.index]
            if isinstance(layer, HybridCacheLayer):
                if not is_swapped:
                    raise refusal("the HybridCache of a model in which other layers are swapped", config)
                layer.is_awaited = True
                return arguments, {**keywords, OWN_CACHE: layer}
        return None


# --------------------------------------------------------------------------------------------------------------------
# The cache
# --------------------------------------------------------------------------------------------------------------------


class HybridCacheLayer(CacheLayerMixin):
    """What a swapped layer remembers: a `HybridState`, of constant size.

    `update` gives back the new keys and values alone: the attention function, which is handed this layer, knows what
    to make of them, and writes when it has.

    Args:
        keeps_places (`bool`): whether it takes down for the cache which tokens were real.
    """

    is_sliding = False

    def __init__(self, keeps_places: bool = False) -> None:
        super().__init__()
        self.keeps_places = keeps_places
        self.reset()

    def reset(self) -> None:
        self.state: HybridState | None = None
        self.swap: AttentionSwap | None = None  # of the layer that has written
        self.places: torch.Tensor | None = None  # see `places_after`
        self.length = 0
        self.is_initialized = False
        self.is_awaited = False  # whether an attention function has been handed this layer

    def places_after(
        self, swap: AttentionSwap, real: torch.Tensor | None, batch_size: int, length: int
    ) -> torch.Tensor | None:
        """Checks that what comes now goes on from what was written, and changes nothing yet.

        Args:
            swap (`AttentionSwap`): of the layer that is about to write.
            real (`torch.Tensor`, *optional*): `(batch, tokens so far + length)` bool, False where one is padding.
            batch_size, length (`int`): sequences, and new tokens of each.

        Returns:
            `places` after the new tokens, where this layer takes them down.

        Raises:
            ValueError: another swap has written, or other sequences, or the mask says otherwise of the tokens in the
                cache.
        """
        check_rows(self.state.counted.shape[0] if self.state is not None else batch_size, batch_size)
        if self.swap not in (None, swap):
            raise ValueError(
                f"the cache was written by a model with {self.swap}, and cannot be read by one with {swap}"
            )
        return places_after(self.places, real, batch_size, length, self.length) if self.keeps_places else None

    def write(self, swap: AttentionSwap, state: HybridState, places: torch.Tensor | None, length: int) -> None:
        """Takes over what a layer leaves after `length` more tokens, all at once: what was refused has changed nothing.

        Args:
            swap (`AttentionSwap`): of the layer.
            state (`HybridState`): after the new tokens.
            places (`torch.Tensor`, *optional*): as `places_after` returned.
            length (`int`): new tokens.
        """
        self.swap, self.state, self.places = swap, state, places
        self.length += length
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to allocate."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_awaited:
            raise ValueError(
                "a HybridCache is for models whose attention is swapped, in the layers in which theirs is; softmax "
                "attention would find the new tokens alone. DynamicCache is for others"
            )
        self.is_awaited = False
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in tensors_in(self.state))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ValueError(
                f"crop({tokens_to_remove}): the synapses hold sums over the {self.length} tokens in the cache, not "
                "each one, and cannot take any back; assisted generation is not available"
            )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._apply(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._apply(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._apply(lambda x: x[indices.to(x.device)])

    def _apply(self, function: Any) -> None:
        self.state = map_tensors(function, self.state)
        self.places = map_tensors(function, self.places)


class HybridCache(Cache):
    """The cache of a swapped decoder: constant in size in its swapped layers, every key and value in the others.

    Args:
        config (`PreTrainedConfig`): of the model.
    """

    layers: list[Any]
    max_cache_len = -1  # no longest text, as peft's prefixes ask

    def __init__(self, config: Any) -> None:
        swapped = AttentionSwap(**config.attention_swap).layers
        layers: list[Any] = [
            HybridCacheLayer(keeps_places=i == min(swapped)) if i in swapped else DynamicLayer()
            for i in range(config.num_hidden_layers)
        ]
        super().__init__(layers=layers)

    def check_whole(self) -> None:
        """Raises a ValueError if a call failed between two layers, of which the first ones hold its tokens."""
        lengths = [layer.get_seq_length() for layer in self.layers]
        if lengths and min(lengths) < max(lengths):
            raise ValueError(
                f"{CACHE_NAME} is not whole: its layers hold {lengths} tokens, since a call failed between them. Begin "
                "with another cache; copy.deepcopy of one keeps what was before"
            )

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """As of the library, refused where a layer cannot, before any layer has."""
        for layer in sorted(self.layers, key=lambda layer: not isinstance(layer, HybridCacheLayer)):
            layer.crop(*args, **kwargs)

    @property
    def num_bytes(self) -> int:
        """Memory of the states of swapped layers and of the keys and values of the others."""
        held: list[torch.Tensor] = []
        for layer in self.layers:
            whole = (getattr(layer, "keys", None), getattr(layer, "values", None))
            held += tensors_in(layer.state if isinstance(layer, HybridCacheLayer) else whole)
        return sum(x.numel() * x.element_size() for x in held)


def tensors_in(state: Any) -> list[torch.Tensor]:
    """The tensors in a tuple of tensors, tuples and None."""
    if torch.is_tensor(state):
        return [state]
    return [x for part in state or () for x in tensors_in(part)]


def map_tensors(function: Any, state: Any) -> Any:
    """The same tuple with `function` of its tensors."""
    if state is None or torch.is_tensor(state):
        return None if state is None else function(state)
    return getattr(type(state), "_make", type(state))(map_tensors(function, part) for part in state)


def register() -> None:
    """Makes the attention function of swapped models known to the library. Twice is harmless."""
    AttentionInterface.register(IMPLEMENTATION, swapped_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, token_mask)
