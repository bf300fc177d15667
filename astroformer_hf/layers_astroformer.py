# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The block that text and image models are made of: attention in one of three arms, and a feed-forward half.

Letters in shape comments: B batch, N tokens, H heads, m hidden neurons, d head size.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .astrocyte_code import ASTROCYTE_CODES, AstrocyteCode, untrained_activity, upcast
from .attention_operation import attend, full_precision, neuron_astrocyte_attention_weights
from .forward_keywords import may_wait_for
from .head_shards import split_heads
from .library_compatibility import takes_cache
from .token_layout import NeighbourhoodState, sizes_of_documents


class AstroformerAttention(nn.Module):
    """Multi-head attention in one of three arms that differ in nothing else: "neuron_astrocyte", "linear", "softmax".

    Whether it is causal, and which tokens are real, says the layout that comes with the hidden states.

    Scale. The operation keeps the paper's constants. With neurons of activity phi_0, F features and n written tokens,
    its output is an average of the values times

        (n phi_0)^(1 - alpha) / m      with feedback,
        n F phi_0^2 / m                without,

    where softmax attention has 1. These are constants that the output projection could absorb, but Adam moves every
    weight by the same step, so an output that is m times too small learns m times too slowly. The layer divides by them
    (phi_0 as it is before training), so the output starts at the scale of softmax attention for every m, n and alpha.
    `calcium_normalization="sum"` leaves n in; "mean" reads calcium and Hebbian weights as means over the tokens, that
    is, as concentrations.
    """

    def __init__(self, config, layer_idx=0):
        super().__init__()
        self.layer_idx = layer_idx
        self.attention_type = config.attention_type
        self.num_heads = config.num_attention_heads
        self.num_hidden_neurons = config.num_hidden_neurons
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.operation = {
            "alpha": config.presynaptic_alpha,
            "feature_map": config.feature_map,
            "feedback": config.use_calcium_feedback,
        }
        has_astrocyte = config.attention_type == "neuron_astrocyte"
        if not has_astrocyte:  # linear attention: no plasticity but the neurons' own
            self.operation.update(alpha=1.0, feedback=True)
        self.scale, self.length_exponent = self._scale(config, **self.operation)

        key_size = self.num_heads * self.num_hidden_neurons
        self.q_proj = nn.Linear(config.hidden_size, key_size)
        self.k_proj = nn.Linear(config.hidden_size, key_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.astrocyte_code = None
        if has_astrocyte and config.use_astrocyte_hebbian:
            self.astrocyte_code = ASTROCYTE_CODES[config.astrocyte_code](config)
        random_projection = None
        if config.feature_map == "favor" and config.attention_type != "softmax":
            random_projection = torch.empty(config.num_random_features, config.num_hidden_neurons)
        self.register_buffer("random_projection", random_projection)

    def forward(self, hidden_states, layout, output_attentions=False, cache=None):
        """`(batch, length, hidden_size)` to the same; and the maps `(batch, heads, length, length)`, None unasked.

        With a cache, causal attention continues from it and writes to it. The softmax arm's maps then cover the tokens
        in the cache as well; the others' cannot, because their states do not hold them one by one.
        """
        query, key, value, shard = self.project(hidden_states)
        if self.attention_type == "softmax":
            own_attention = self._softmax_attention
        else:
            own_attention = self._neuron_astrocyte_attention
        output, attention_map = own_attention(query, key, value, layout, output_attentions, cache, shard)
        if shard is not None and attention_map is not None:
            attention_map = shard.gather(attention_map)
        return self.o_proj(output.transpose(1, 2).flatten(2)), attention_map

    def project(self, hidden_states):
        """Queries and keys, `(batch, heads, length, hidden_neurons)`, values, `(batch, heads, length, head_size)`, and
        which heads those are: a `HeadShard`, None for all."""
        projections = {"q_proj": self.q_proj, "k_proj": self.k_proj, "v_proj": self.v_proj}
        projected = {name: projection(hidden_states) for name, projection in projections.items()}
        sizes = (self.num_hidden_neurons, self.num_hidden_neurons, self.head_size)
        weights = {name: projection.weight for name, projection in projections.items()}
        by_head, shard = split_heads(projected, sizes, self.num_heads, weights)
        return *by_head, shard

    def _neuron_astrocyte_attention(self, query, key, value, layout, output_attentions, cache, shard):
        written = value
        if self.training and self.dropout_prob > 0:
            release = nn.functional.dropout(value.new_ones(*value.shape[:-1], 1), self.dropout_prob)  # (B, H, N, 1)
            written = value * release
        # at least in float32, so that neither a long sum nor its scale leaves the range of float16
        written = upcast(written)
        scale = self.output_scale(layout) if layout.output_scale is None else layout.output_scale
        memory = neighbourhood = initial_state = None
        if cache is not None:
            memory = cache.layers[self.layer_idx]
            initial_state, neighbourhood = memory.synapses, memory.neighbourhood
        code = None
        if self.astrocyte_code is not None:
            with full_precision(key):
                code = self.astrocyte_code(upcast(key), layout, neighbourhood, shard, for_attention=True)
        operation = {
            **self.operation,
            "random_projection": self.random_projection,
            "causal": layout.causal,
            "initial_state": initial_state,
            "document_ids": layout.document_ids,
        }
        output, synapses, sums = attend(query, key, written, code, layout.padding_mask, **operation, output_scale=scale)
        if memory is not None:
            counted = None if layout.counted is None else layout.counted[:, -1:]
            neighbourhood = None if sums[0] is None else NeighbourhoodState(*sums)
            memory.update(synapses, neighbourhood, counted, key.shape[2])

        attention_map = None
        if output_attentions:
            weights = neuron_astrocyte_attention_weights(upcast(query), key, code, layout.padding_mask, **operation)
            attention_map = (weights * scale).to(value.dtype)
            if initial_state is None:  # so that gradients reach the map, for who wants to see them
                return attention_map @ written.to(value.dtype), attention_map
        return output.to(value.dtype), attention_map

    def output_scale(self, layout):
        """The factor on the operation's output: a float, or `(batch or 1, 1, length or 1, 1)`."""
        return self.scale * layout.num_written**self.length_exponent if self.length_exponent else self.scale

    @staticmethod
    def _scale(config, alpha, feature_map, feedback):
        """The layer's factor on the operation's output, as (constant, exponent of the number of tokens)."""
        m, is_mean = config.num_hidden_neurons, config.calcium_normalization == "mean"
        num_features = config.num_random_features if feature_map == "favor" else m
        activity = untrained_activity(feature_map, num_features)
        if feedback:
            return m * activity ** (alpha - 1), alpha - 1 if is_mean else 0
        return m / (num_features * activity**2), -1 if is_mean else 0

    def _softmax_attention(self, query, key, value, layout, output_attentions, cache, shard):
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        length, past_length = query.shape[2], key.shape[2] - query.shape[2]
        mask = None  # where a query may look, `(1 or batch, 1, length or 1, past_length + length)`
        if layout.full_mask is not None:
            mask = layout.full_mask[:, None, None, :]
        if layout.document_ids is not None:
            if layout.document_sizes is not None and not output_attentions:
                return self._softmax_attention_by_documents(query, key, value, layout), None
            same = layout.document_ids[:, None, :, None] == layout.document_ids[:, None, None, :]
            mask = same if mask is None else same & mask
        only_causal = layout.causal and mask is None and past_length == 0
        if layout.causal and not only_causal and (length > 1 or mask is not None):
            own = torch.arange(past_length, past_length + length, device=key.device)[:, None]
            other = torch.arange(past_length + length, device=key.device)
            # a padded token looks at itself, so that its row, which nothing reads, has a softmax
            mask = other <= own if mask is None else (other <= own) & mask | (other == own)
        dropout_prob = self.dropout_prob if self.training else 0.0
        if not output_attentions:
            output = nn.functional.scaled_dot_product_attention(
                query, key, value, mask, dropout_prob, is_causal=bool(only_causal and length > 1)
            )
            return output, None
        scores = query @ key.transpose(-1, -2) * self.num_hidden_neurons**-0.5
        if only_causal:
            mask = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention_map = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        if mask is not None:
            attention_map = attention_map.masked_fill(~mask, 0)  # a sequence of nothing but padding attends to nothing
        return nn.functional.dropout(attention_map, dropout_prob) @ value, attention_map

    def _softmax_attention_by_documents(self, query, key, value, layout):
        dropout_prob = self.dropout_prob if self.training else 0.0
        sizes = layout.document_sizes
        # split, not sliced one by one: the gradient of each slice would be of the size of the whole
        inputs = [x.transpose(0, 1).flatten(1, 2).split(sizes, dim=1) for x in (query, key, value)]  # (H, size, .) each
        masks = [None] * len(sizes)
        if layout.padding_mask is not None:
            masks = [real.expand(len(real), -1) for real in layout.padding_mask.flatten().split(sizes)]
        outputs = []
        for *own, mask in zip(*inputs, masks, strict=True):
            size = own[0].shape[1]
            if layout.causal and mask is not None:  # a padded token looks at itself
                mask = mask.tril() | torch.eye(size, dtype=torch.bool, device=mask.device)
            is_causal = layout.causal and mask is None and size > 1
            own = (x[None] for x in own)
            outputs.append(nn.functional.scaled_dot_product_attention(*own, mask, dropout_prob, is_causal=is_causal))
        return torch.cat(outputs, dim=2).unflatten(2, (len(query), -1)).squeeze(0).transpose(0, 1)


def with_what_layers_share(layout, layers):
    """The layout with what is the same in all layers of a model, so that it is worked out once."""
    attention = layers[0].attention
    if attention.attention_type == "softmax" and may_wait_for(layout.document_ids):
        layout = layout._replace(document_sizes=sizes_of_documents(layout.document_ids))
    layout = layout._replace(output_scale=attention.output_scale(layout))
    code = attention.astrocyte_code
    if code is None:
        return layout
    if not isinstance(code, AstrocyteCode):  # an adapter around it
        code = next(module for module in code.modules() if isinstance(module, AstrocyteCode))
    return layout._replace(geometry=code.geometry(layout))


class AstroformerMLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class AstroformerLayer(GradientCheckpointingLayer):
    """A pre-norm block: X + attention(norm(X)), then the same around the feed-forward half."""

    def __init__(self, config, layer_idx=0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AstroformerAttention(config, layer_idx)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AstroformerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @takes_cache
    def forward(self, hidden_states, layout, output_attentions=False, cache=None):
        attention_output, _ = self.attention(self.attention_norm(hidden_states), layout, output_attentions, cache)
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
