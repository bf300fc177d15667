# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The block that text and image models are made of: attention in one of three arms, and a feed-forward half; and what
stands before output embeddings.

Letters in shape comments: B batch, N tokens, H heads, m hidden neurons, d head size.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .astrocyte_code import ASTROCYTE_CODES, AstrocyteCode, Layout, of_heads, upcast
from .attention_contract import CodeRecipe
from .attention_operation import attend, neuron_astrocyte_attention_weights
from .attention_passes import full_precision
from .configuration_astroformer import AstroformerBaseConfig
from .decayed_sums import time_elapsed
from .feature_maps import FEATURE_MAPS
from .forward_keywords import may_wait_for
from .head_shards import HeadShard, split_heads
from .hebbian_covariance import covariance_read, covariance_weights
from .library_compatibility import inside_adapters, takes_cache
from .synaptic_decay import SynapticDecay, effective_tokens
from .token_layout import sizes_of_documents


class AstroformerAttention(nn.Module):
    """Multi-head attention in one of three arms that differ in nothing else: "neuron_astrocyte", "linear", "softmax".

    The layout says whether attention is causal and which tokens are real.

    Scale. The operation keeps the paper's constants. With neurons of activity phi_0, F features and n written tokens,
    its output is an average of the values times

        (n phi_0)^(1 - alpha) / m        with feedback,             and 1 / m where alpha acts at the synapse
        n F phi_0^2 / m                  without,                   and (n phi_0)^alpha F phi_0 / m likewise,

    where softmax attention has 1. These are constants that the output projection could absorb, but Adam moves every
    weight by the same step, so an output that is m times too small learns m times too slowly. The layer divides by them
    (and leaves n there with `calcium_normalization="sum"`): "mean" reads calcium and Hebbian weights as means over the
    tokens, that is, as concentrations. Where synapses leak, n is not more than they hold at their initial rates.
    """

    def __init__(self, config: AstroformerBaseConfig, layer_idx: int = 0) -> None:
        super().__init__()
        assert config.num_hidden_neurons is not None, "the configuration fills it in"
        self.config = config  # where the library says which implementation of softmax attention is wanted
        self.layer_idx = layer_idx
        self.attention_type = config.attention_type
        self.num_heads = config.num_attention_heads
        self.num_hidden_neurons = config.num_hidden_neurons
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.operation: dict[str, Any] = {
            "alpha": config.presynaptic_alpha,
            "presynaptic_target": config.presynaptic_target,
            "calcium_sources": config.calcium_sources,
            "feature_map": config.feature_map,
            "feedback": config.use_calcium_feedback,
        }
        has_astrocyte = config.attention_type == "neuron_astrocyte"
        if not has_astrocyte:  # linear attention: no plasticity but the neurons' own
            self.operation.update(alpha=1.0, presynaptic_target="response", calcium_sources="neurons", feedback=True)
        self.scale, self.length_exponent = self._scale(config, self.operation)
        self.most_tokens = math.inf

        key_size = self.num_heads * self.num_hidden_neurons
        self.q_proj = nn.Linear(config.hidden_size, key_size)
        self.k_proj = nn.Linear(config.hidden_size, key_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.astrocyte_code: AstrocyteCode | None = None
        if has_astrocyte and config.use_astrocyte_hebbian:
            self.astrocyte_code = ASTROCYTE_CODES[config.astrocyte_code](config)
        self.synaptic_decay: SynapticDecay | None = None
        if config.synaptic_decay != "none":
            self.synaptic_decay = SynapticDecay(config)
            self.most_tokens = effective_tokens(
                config.initial_memory_spans, self.num_heads, config.is_decoder, config.num_position_dimensions
            )
        self.covariance_gain: nn.Parameter | None = None
        if config.hebbian_rule == "covariance":
            self.covariance_gain = nn.Parameter(torch.empty(self.num_heads))
        random_projection = None
        if FEATURE_MAPS[config.feature_map].has_random_projection and config.attention_type != "softmax":
            random_projection = torch.empty(config.num_random_features, config.num_hidden_neurons)
        self.register_buffer("random_projection", random_projection)

    def forward(
        self,
        hidden_states: torch.Tensor,
        shared: "SharedAcrossLayers",
        output_attentions: bool = False,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, length, hidden_size)` to the same; and the maps `(batch, heads, length, length)`, None unasked.

        `shared` is the `SharedAcrossLayers` of the model.

        With a cache, causal attention continues from it and writes to it. The softmax arm's maps then cover the tokens
        in the cache as well; the others' cannot, because their states do not hold them one by one.
        """
        query, key, value, shard = self.project(hidden_states)
        leak = self.leak(hidden_states, shared, shard)
        own_attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
        if self.attention_type == "softmax":
            own_attention = self._softmax_attention
        else:
            own_attention = self._neuron_astrocyte_attention
        output, attention_map = own_attention(query, key, value, shared, output_attentions, cache, shard, leak)
        if self.covariance_gain is not None:
            added, to_map = self.covariance_term(
                query, key, value, shared, cache, shard, leak, attention_map is not None
            )
            output = output + added.to(output.dtype)
            if attention_map is not None and to_map is not None:
                attention_map = attention_map + to_map.to(attention_map.dtype)
        if shard is not None and attention_map is not None:
            attention_map = shard.gather(attention_map)
        return self.o_proj(output.transpose(1, 2).flatten(2)), attention_map

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, HeadShard | None]:
        """Queries and keys, `(batch, heads, length, hidden_neurons)`, values, `(batch, heads, length, head_size)`, and
        which heads those are: a `HeadShard`, None for all."""
        projections = {"q_proj": self.q_proj, "k_proj": self.k_proj, "v_proj": self.v_proj}
        projected = {name: projection(hidden_states) for name, projection in projections.items()}
        sizes = (self.num_hidden_neurons, self.num_hidden_neurons, self.head_size)
        weights = {name: projection.weight for name, projection in projections.items()}
        (query, key, value), shard = split_heads(projected, sizes, self.num_heads, weights)
        return query, key, value, shard

    def leak(
        self, hidden_states: torch.Tensor, shared: "SharedAcrossLayers", shard: HeadShard | None
    ) -> dict[str, torch.Tensor]:
        """How the synapses leak: `log_decay`, `log_proximity`, or nothing if they do not."""
        if self.synaptic_decay is None:
            return {}
        name = "log_decay" if shared.distances is None else "log_proximity"
        with full_precision(hidden_states):
            return {name: self.synaptic_decay(hidden_states, shared.distances, shard)}

    def _neuron_astrocyte_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shared: "SharedAcrossLayers",
        output_attentions: bool,
        cache: Any,  # an `AstroformerCache`, perhaps of a checkpoint's own code, or None
        shard: HeadShard | None,
        leak: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layout, written = shared.layout, value
        if self.training and self.dropout_prob > 0:
            release = nn.functional.dropout(value.new_ones(*value.shape[:-1], 1), self.dropout_prob)  # (B, H, N, 1)
            written = value * release
        # at least in float32, so that neither a long sum nor its scale leaves the range of float16
        written = upcast(written)
        memory = initial_state = code_state = None
        if cache is not None:
            memory = cache.layers[self.layer_idx]
            initial_state, code_state = memory.synapses, memory.code_state
        code = None
        if self.astrocyte_code is not None:
            with full_precision(key):
                code = self.astrocyte_code(upcast(key), layout, shared.geometry, code_state, shard)
        operation = {
            **self.operation,
            **self.leak_of_operation(leak),
            "random_projection": self.random_projection,
            "causal": layout.causal,
            "initial_state": initial_state,
            "document_ids": layout.document_ids,
        }
        output = attention_map = None
        if output_attentions:
            r = materialized(code, key, layout)
            weights = neuron_astrocyte_attention_weights(upcast(query), key, r, layout.padding_mask, **operation)
            attention_map = (weights * shared.output_scale).to(value.dtype)
            if initial_state is None:  # so that `attentions` stay in the autograd graph
                output = attention_map @ written.to(value.dtype)
                if memory is None:
                    return output, attention_map
        attended = attend(
            query=query,
            key=key,
            value=written,
            astrocyte_code=code,
            padding_mask=layout.padding_mask,
            **operation,
            output_final_state=memory is not None,
            output_scale=shared.output_scale,
        )
        if memory is not None:
            counted = None if layout.counted is None else layout.counted[:, -1:]
            memory.update(attended.state, attended.code_state, counted, key.shape[2])
        return attended.output.to(value.dtype) if output is None else output, attention_map

    def covariance_term(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shared: "SharedAcrossLayers",
        cache: Any,
        shard: HeadShard | None,
        leak: dict[str, torch.Tensor],
        with_map: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the covariance rule adds to the output and, if asked for, to the map."""
        assert self.covariance_gain is not None
        layout, memory = shared.layout, None if cache is None else cache.layers[self.layer_idx]
        arguments: dict[str, Any] = {
            "feature_map": self.operation["feature_map"],
            "causal": layout.causal,
            "document_ids": layout.document_ids,
            **self.leak_of_operation(leak),
        }
        with full_precision(query):
            (gain,) = of_heads(shard, self.covariance_gain)
            gain = upcast(gain)[:, None, None] * self.num_hidden_neurons**-0.5
            query, key = upcast(query), upcast(key)
            read, state = covariance_read(
                query,
                key,
                upcast(value),
                layout.padding_mask,
                **arguments,
                initial_state=None if memory is None else memory.covariance,
            )
            if memory is not None:
                memory.covariance = state
            weights = None
            if with_map:
                weights = gain * covariance_weights(query, key, layout.padding_mask, **arguments)
            return gain * read, weights

    @staticmethod
    def leak_of_operation(leak: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
        """What the operation takes of the synapses' leak."""
        proximity = leak["log_proximity"].exp() if "log_proximity" in leak else None
        return {"log_decay": leak.get("log_decay"), "proximity": proximity}

    def output_scale(self, layout: Layout) -> torch.Tensor | float:
        """The factor on the operation's output: a float, or `(batch or 1, 1, length or 1, 1)`."""
        if not self.length_exponent:
            return self.scale
        num_written = layout.num_written
        if torch.is_tensor(num_written):
            return self.scale * num_written.clamp(max=self.most_tokens) ** self.length_exponent
        return self.scale * min(num_written, self.most_tokens) ** self.length_exponent

    @staticmethod
    def _scale(config: AstroformerBaseConfig, operation: dict[str, Any]) -> tuple[float, float]:
        """The layer's factor on the operation's output, as (constant, exponent of the number of tokens)."""
        assert config.num_hidden_neurons is not None, "the configuration fills it in"
        m, alpha = config.num_hidden_neurons, operation["alpha"]
        feature_map = FEATURE_MAPS[operation["feature_map"]]
        num_features = feature_map.num_features(m, config.num_random_features)
        activity = feature_map.activity_before_training(num_features)
        if operation["feedback"]:
            exponent = alpha - 1 if operation["presynaptic_target"] == "response" else 0.0
            scale = m * activity**exponent
        else:
            exponent = -1.0 if operation["presynaptic_target"] == "response" else -alpha
            scale = m / (num_features * activity ** (1 - exponent))
        return scale, exponent if config.calcium_normalization == "mean" else 0

    def _softmax_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shared: "SharedAcrossLayers",
        output_attentions: bool,
        cache: Cache | None,
        shard: HeadShard | None,
        leak: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layout, log_decay, length = shared.layout, leak.get("log_decay"), query.shape[2]
        if log_decay is not None:
            # as precise as the cache has it, which keeps it beside the keys
            log_decay = log_decay.to(key.dtype).expand(*key.shape[:2], -1)
            key = torch.cat((key, log_decay[..., None]), dim=-1)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        bias = None  # added to the scores, `(1 or batch, heads, length, past_length + length)`
        if log_decay is not None:
            key, log_decay = key[..., :-1], upcast(key[..., -1])
            if layout.full_mask is not None:
                log_decay = log_decay.masked_fill(~layout.full_mask[:, None], 0)
            elapsed = time_elapsed(log_decay)
            bias = -(elapsed[..., -length:, None] - elapsed[..., None, :]).abs()
        elif "log_proximity" in leak:
            bias = leak["log_proximity"][None]
        past_length = key.shape[2] - length
        implementation = self.config._attn_implementation or "sdpa"
        if "flash" in implementation and not output_attentions:
            if bias is not None or layout.document_ids is not None or key.shape[-1] != value.shape[-1]:
                raise ValueError(
                    f"attn_implementation {implementation!r} takes no synaptic_decay, no packed rows, and no "
                    "num_hidden_neurons other than the head size: use 'sdpa'"
                )
            return self._by_the_library(implementation, query, key, value, layout.full_mask, layout.causal), None
        mask = None  # where a query may look, `(1 or batch, 1, length or 1, past_length + length)`
        if layout.full_mask is not None:
            mask = layout.full_mask[:, None, None, :]
        if layout.document_ids is not None:
            if shared.document_sizes is not None and implementation != "eager" and not output_attentions:
                return self._softmax_attention_by_documents(query, key, value, shared), None
            same = layout.document_ids[:, None, :, None] == layout.document_ids[:, None, None, :]
            mask = same if mask is None else same & mask
        only_causal = layout.causal and mask is None and past_length == 0
        if layout.causal and (bias is not None or not only_causal) and (length > 1 or mask is not None):
            own = torch.arange(past_length, past_length + length, device=key.device)[:, None]
            other = torch.arange(past_length + length, device=key.device)
            # a padded token looks at itself, so that its row, which nothing reads, has a softmax
            mask = other <= own if mask is None else (other <= own) & mask | (other == own)
            only_causal = False
        if implementation != "eager" and not output_attentions:
            if bias is not None:
                bias = bias.to(query.dtype)
                mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
            return self._by_the_library(implementation, query, key, value, mask, only_causal), None
        scores = query @ key.transpose(-1, -2) * self.num_hidden_neurons**-0.5
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        if only_causal:
            mask = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention_map = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        if mask is not None:
            attention_map = attention_map.masked_fill(~mask, 0)  # a sequence of nothing but padding attends to nothing
        dropout_prob = self.dropout_prob if self.training else 0.0
        return nn.functional.dropout(attention_map, dropout_prob) @ value, attention_map if output_attentions else None

    def _by_the_library(
        self,
        implementation: str,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
    ) -> torch.Tensor:
        """Softmax attention by the function that the library has under a name, such as "sdpa"; arguments and result
        `(batch, heads, length, size)`, the mask as that function wants it."""
        output, _ = ALL_ATTENTION_FUNCTIONS[implementation](
            self,
            query,
            key,
            value,
            mask,
            dropout=self.dropout_prob if self.training else 0.0,
            scaling=self.num_hidden_neurons**-0.5,
            is_causal=is_causal,
        )
        return output.transpose(1, 2)

    def _softmax_attention_by_documents(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shared: "SharedAcrossLayers"
    ) -> torch.Tensor:
        layout, sizes = shared.layout, shared.document_sizes
        assert sizes is not None, "without them a mask keeps documents apart"
        # split, not sliced one by one: the gradient of each slice would be of the size of the whole
        inputs = [x.transpose(0, 1).flatten(1, 2).split(sizes, dim=1) for x in (query, key, value)]  # (H, size, .) each
        masks: list[torch.Tensor | None] = [None] * len(sizes)
        if layout.padding_mask is not None:
            masks = [real.expand(len(real), -1) for real in layout.padding_mask.flatten().split(sizes)]
        outputs = []
        for *own, mask in zip(*inputs, masks, strict=True):
            size = own[0].shape[1]
            if layout.causal and mask is not None:  # a padded token looks at itself
                mask = mask.tril() | torch.eye(size, dtype=torch.bool, device=mask.device)
            own_query, own_key, own_value = (x[None] for x in own)
            outputs.append(
                self._by_the_library("sdpa", own_query, own_key, own_value, mask, layout.causal and mask is None)
            )
        return torch.cat(outputs, dim=2).unflatten(2, (len(query), -1)).squeeze(0).transpose(0, 1)


def materialized(code: CodeRecipe | None, key: torch.Tensor, layout: Layout) -> torch.Tensor | None:
    """R of a `CodeRecipe` or None, for keys `(batch, heads, length, hidden_neurons)`."""
    if code is None:
        return None
    return code.materialize(upcast(key), layout.padding_mask, layout.causal, layout.document_ids)[0]


class SharedAcrossLayers(NamedTuple):
    """What is the same in all layers of a model, worked out once per forward pass by `precompute_shared`.

    Attributes:
        layout: where the tokens lie, which are real, and whether attention is causal.
        geometry: what the codes share, as of `AstrocyteCode.geometry`.
        output_scale: as of `AstroformerAttention.output_scale`.
        document_sizes: as of `sizes_of_documents`, where the softmax arm needs them as numbers; else None.
        distances: as of `GridLayout.distances`, where synapses leak; None on a line.
    """

    layout: Layout
    geometry: Any = None
    output_scale: torch.Tensor | float = 1.0
    document_sizes: list[int] | None = None
    distances: torch.Tensor | None = None


def precompute_shared(layout: Layout, layers: nn.ModuleList) -> SharedAcrossLayers:
    """The `SharedAcrossLayers` of the layers of a model."""
    attention: Any = layers[0].attention
    document_sizes = geometry = distances = None
    if attention.synaptic_decay is not None:
        distances = layout.distances()
    elif attention.attention_type == "softmax" and may_wait_for(layout.document_ids):
        document_sizes = sizes_of_documents(layout.document_ids)
    code = attention.astrocyte_code
    if code is not None:
        geometry = inside_adapters(code, AstrocyteCode).geometry(layout)
    return SharedAcrossLayers(layout, geometry, attention.output_scale(layout), document_sizes, distances)


class AstroformerMLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, config: AstroformerBaseConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class AstroformerLayer(GradientCheckpointingLayer):
    """A pre-norm block: X + attention(norm(X)), then the same around the feed-forward half."""

    def __init__(self, config: AstroformerBaseConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AstroformerAttention(config, layer_idx)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AstroformerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        shared: "SharedAcrossLayers",
        output_attentions: bool = False,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        attention_output, _ = self.attention(self.attention_norm(hidden_states), shared, output_attentions, cache)
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class AstroformerTransform(nn.Module):
    """What stands before a masked language model's output embeddings, as in BERT.

    A module of its own, so that its `norm` is not taken for that of the bare model when this is loaded from the
    checkpoint of the whole.
    """

    def __init__(self, config: AstroformerBaseConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act_fn(self.dense(hidden_states)))
