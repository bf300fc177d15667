# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer text models: a pre-norm Transformer encoder whose attention is neuron-astrocyte attention.

The equations are in `neuron_astrocyte_attention.py` and `astrocyte_code.py`; here they become layers, models and heads.
Letters in shape comments: B batch, N tokens, H heads, m hidden neurons, d head size.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .astrocyte_code import (
    ASTROCYTE_CODES,
    AstrocyteCode,
    sequence_layout,
    sinusoidal_features,
    untrained_activity,
    upcast,
)
from .configuration_astroformer import AstroformerConfig
from .neuron_astrocyte_attention import (
    draw_random_projection,
    full_precision,
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
)


class AstroformerEmbeddings(nn.Module):
    """Tokens, token types and the sines and cosines of the positions, normalised: `(batch, length, hidden_size)`.

    Positions have no table, so that the length is bounded by nothing but the "learned" astrocyte code. They enter with
    the power that a freshly initialised token has.
    """

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # a wave's mean square is 1/2
        self.position_scale = config.initializer_range * 2**0.5

    def forward(self, input_ids, token_type_ids, position_ids, inputs_embeds):
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if token_type_ids is None:
            token_types = self.token_type_embeddings.weight[0]
        else:
            token_types = self.token_type_embeddings(token_type_ids)
        hidden_size = inputs_embeds.shape[-1]
        waves = sinusoidal_features(position_ids, -(-hidden_size // 2), torch.float32)[..., :hidden_size]
        embeddings = inputs_embeds + token_types + (self.position_scale * waves).to(inputs_embeds.dtype)
        return self.dropout(self.norm(embeddings))


class AstroformerAttention(nn.Module):
    """Multi-head attention in one of three arms that differ in nothing else: "neuron_astrocyte", "linear", "softmax".

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

    def __init__(self, config):
        super().__init__()
        if config.is_decoder:
            raise NotImplementedError("is_decoder=True: causal attention is not available yet")
        self.attention_type = config.attention_type
        self.num_heads = config.num_attention_heads
        self.num_hidden_neurons = config.num_hidden_neurons
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

    def forward(self, hidden_states, layout, output_attentions=False):
        """`(batch, length, hidden_size)` to the same; and the maps `(batch, heads, length, length)`, None unasked."""
        batch_and_length = hidden_states.shape[:2]
        query = self.q_proj(hidden_states).view(*batch_and_length, self.num_heads, -1).transpose(1, 2)  # (B, H, N, m)
        key = self.k_proj(hidden_states).view(*batch_and_length, self.num_heads, -1).transpose(1, 2)  # (B, H, N, m)
        value = self.v_proj(hidden_states).view(*batch_and_length, self.num_heads, -1).transpose(1, 2)  # (B, H, N, d)
        if self.attention_type == "softmax":
            attend = self._softmax_attention
        else:
            attend = self._neuron_astrocyte_attention
        output, attention_map = attend(query, key, value, layout, output_attentions)
        output = output.transpose(1, 2).reshape(*batch_and_length, -1)
        return self.o_proj(output), attention_map

    def _neuron_astrocyte_attention(self, query, key, value, layout, output_attentions):
        padding_mask, operation = layout.padding_mask, self.operation
        if self.random_projection is not None:
            operation = {**operation, "random_projection": self.random_projection}
        code = None
        if self.astrocyte_code is not None:
            with full_precision(key):
                code = self.astrocyte_code(key, layout)

        scale = self.scale * self._num_tokens(key, padding_mask) ** self.length_exponent
        written = value
        if self.training and self.dropout_prob > 0:
            release = nn.functional.dropout(value.new_ones(*value.shape[:-1], 1), self.dropout_prob)  # (B, H, N, 1)
            written = value * release
        # at least in float32, so that neither a long sum nor its scale leaves the range of float16
        written = upcast(written)
        output = neuron_astrocyte_attention(query, key, written, code, padding_mask, **operation) * scale

        attention_map = None
        if output_attentions:
            weights = neuron_astrocyte_attention_weights(upcast(query), key, code, padding_mask, **operation)
            attention_map = (weights * scale).to(value.dtype)
        return output.to(value.dtype), attention_map

    @staticmethod
    def _scale(config, alpha, feature_map, feedback):
        """The layer's factor on the operation's output, as (constant, exponent of the number of tokens)."""
        m, is_mean = config.num_hidden_neurons, config.calcium_normalization == "mean"
        num_features = config.num_random_features if feature_map == "favor" else m
        activity = untrained_activity(feature_map, num_features)
        if feedback:
            return m * activity ** (alpha - 1), alpha - 1 if is_mean else 0
        return m / (num_features * activity**2), -1 if is_mean else 0

    @staticmethod
    def _num_tokens(key, padding_mask):
        """n, at least 1: an int, or `(batch, 1, 1, 1)` where it is not the length."""
        if padding_mask is None:
            return max(key.shape[2], 1)
        return padding_mask.sum(-1).clamp(min=1).float()[:, None, None, None]

    def _softmax_attention(self, query, key, value, layout, output_attentions):
        mask = None
        if layout.padding_mask is not None:
            mask = layout.padding_mask[:, None, None, :]  # (B, 1, 1, N)
        dropout_prob = self.dropout_prob if self.training else 0.0
        if not output_attentions:
            output = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout_prob)
            return output, None
        scores = query @ key.transpose(-1, -2) * self.num_hidden_neurons**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention_map = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        if mask is not None:
            attention_map = attention_map.masked_fill(~mask, 0)  # a sequence of nothing but padding attends to nothing
        return nn.functional.dropout(attention_map, dropout_prob) @ value, attention_map


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

    def __init__(self, config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AstroformerAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AstroformerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, layout, output_attentions=False):
        attention_output, _ = self.attention(self.attention_norm(hidden_states), layout, output_attentions)
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class AstroformerPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving that all Astroformer text models share."""

    config: AstroformerConfig
    base_model_prefix = "astroformer"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["AstroformerEmbeddings", "AstroformerLayer"]
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AstroformerLayer, "attentions": AstroformerAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, AstrocyteCode):
            for parameter, value in module.initial_values(self.config):
                init.copy_(parameter, value)
        elif isinstance(module, AstroformerAttention) and module.random_projection is not None:
            init.copy_(module.random_projection, draw_random_projection(*module.random_projection.shape))


class AstroformerModel(AstroformerPreTrainedModel):
    """The bare encoder: from tokens to their hidden states."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = AstroformerEmbeddings(config)
        self.layers = nn.ModuleList([AstroformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        **kwargs,
    ):
        """Encodes a batch of token sequences.

        Args:
            input_ids (`torch.LongTensor`, *optional*): `(batch, length)` token ids; either these or `inputs_embeds`.
            attention_mask (`torch.Tensor`, *optional*): `(batch, length)`, 1 where a token is real, 0 where it is
                padding, which may stand on either side or between. Real tokens are encoded as if it were not there.
            token_type_ids (`torch.LongTensor`, *optional*): `(batch, length)` segment ids, 0 by default.
            position_ids (`torch.LongTensor`, *optional*): `(batch, length)` or `(1, length)` positions; by default the
                real tokens are counted.
            inputs_embeds (`torch.Tensor`, *optional*): `(batch, length, hidden_size)` instead of `input_ids`.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in every library model. The
                attention maps are those that the arm applies, `(batch, heads, length, length)`; they are computed only
                when asked for, at a memory that is quadratic in the length.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch, length, hidden_size)`.

        Raises:
            ValueError: for inputs that do not fit; the message names the argument.
        """
        attention_mask, position_ids = self._check_inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        layout = sequence_layout(inputs.shape[1], inputs.device, attention_mask, position_ids)
        output_attentions = kwargs.get("output_attentions")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        hidden_states = self.embeddings(input_ids, token_type_ids, layout.position_ids, inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, layout, output_attentions)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))

    def _check_inputs(self, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds):
        """Checks the arguments of `forward` against each other; returns mask and positions, these in two dimensions."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None and input_ids.dim() != 2:
            raise ValueError(f"input_ids must have shape (batch, length), got {tuple(input_ids.shape)}")
        if inputs_embeds is not None and (
            inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != self.config.hidden_size
        ):
            raise ValueError(
                f"inputs_embeds must have shape (batch, length, hidden_size={self.config.hidden_size}), "
                f"got {tuple(inputs_embeds.shape)}"
            )
        batch_size, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        for name, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if tensor is not None and tensor.shape != (batch_size, length):
                raise ValueError(f"{name} must have shape {(batch_size, length)}, got {tuple(tensor.shape)}")
        if position_ids is not None:
            if position_ids.dim() == 1:
                position_ids = position_ids[None]
            if position_ids.shape not in ((1, length), (batch_size, length)):
                raise ValueError(
                    f"position_ids must have shape {(1, length)} or {(batch_size, length)}, "
                    f"got {tuple(position_ids.shape)}"
                )
        check_range("input_ids", input_ids, self.config.vocab_size, "vocab_size")
        check_range("token_type_ids", token_type_ids, self.config.type_vocab_size, "type_vocab_size")
        if self._has_position_table:
            num_positions = self.config.max_position_embeddings
            check_range("position_ids", position_ids, num_positions, "max_position_embeddings")
            if position_ids is None and length > num_positions:
                raise ValueError(
                    f"an input of {length} tokens is longer than the learned astrocyte code, "
                    f"max_position_embeddings={num_positions}; truncate it, or use astrocyte_code 'sinusoidal' or "
                    "'activity', which take any length"
                )
        return attention_mask, position_ids

    @property
    def _has_position_table(self):
        config = self.config
        uses_code = config.attention_type == "neuron_astrocyte" and config.use_astrocyte_hebbian
        return uses_code and config.astrocyte_code == "learned"


class AstroformerForSequenceClassification(AstroformerPreTrainedModel):
    """Encoder, pooling and a linear classifier, for single-label and multi-label classification and for regression."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.astroformer = AstroformerModel(config)
        dropout_prob = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        """Classifies a batch of sequences.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            labels (`torch.Tensor`, *optional*): `(batch,)` class indices (-100 is ignored), `(batch, num_labels)` zeros
                and ones (multi-label), or `(batch,)` or `(batch, num_labels)` targets (regression). Which it is says
                `config.problem_type`; unset, one label means regression, whole numbers classes, others multi-label.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of label entries that the loss is a mean
                over, where a batch is accumulated in parts; `Trainer` gives it. By default those of this call.

        Returns:
            `SequenceClassifierOutput` with `logits` of shape `(batch, num_labels)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        outputs = self.astroformer(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        pooled = pool(outputs.last_hidden_state, attention_mask, self.config.pooling)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def pool(hidden_states, attention_mask, pooling):
    """One vector per sequence, `(batch, hidden_size)`: the mean over its real tokens, or its first ("cls") real token.

    A sequence of nothing but padding pools to 0 ("mean") or to its first row ("cls").
    """
    if pooling == "cls":
        if attention_mask is None:
            return hidden_states[:, 0]
        first = (attention_mask != 0).int().argmax(-1)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    real = (attention_mask != 0)[..., None]  # (B, N, 1)
    total = hidden_states.masked_fill(~real, 0).sum(dim=1, dtype=torch.float32)
    return (total / real.sum(dim=1).clamp(min=1)).to(hidden_states.dtype)


def sequence_classification_loss(logits, labels, config, num_items_in_batch=None):
    """Cross-entropy, binary cross-entropy or squared error: the sum over label entries divided by their number.

    That number is `num_items_in_batch` where it is given, so that a batch accumulated in parts has the loss of the
    whole. Arguments and errors as for `AstroformerForSequenceClassification.forward`.
    """
    num_labels, problem_type = config.num_labels, config.problem_type
    if problem_type is None:
        if num_labels == 1:
            problem_type = "regression"
        else:
            problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"

    batch_size = logits.shape[0]
    expected = {
        "single_label_classification": [(batch_size,), (batch_size, 1)],
        "multi_label_classification": [(batch_size, num_labels)],
        "regression": [(batch_size, num_labels)] + ([(batch_size,)] if num_labels == 1 else []),
    }[problem_type]
    if labels.shape not in expected:
        raise ValueError(
            f"labels must have shape {' or '.join(map(str, expected))} for {problem_type} with {num_labels} labels, "
            f"got {tuple(labels.shape)}"
        )

    logits = logits.float()
    if problem_type == "single_label_classification":
        if labels.is_floating_point():
            raise ValueError(f"labels must be whole numbers for single_label_classification, got {labels.dtype}")
        labels = labels.reshape(-1)
        check_range("labels", labels.masked_fill(labels == -100, 0), num_labels, "num_labels")
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        num_items = (labels != -100).sum()
    elif problem_type == "multi_label_classification":
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        num_items = labels.numel()
    else:
        loss = nn.functional.mse_loss(logits, labels.float().view_as(logits), reduction="sum")
        num_items = labels.numel()
    if num_items_in_batch is not None:
        num_items = num_items_in_batch
        if torch.is_tensor(num_items):
            num_items = num_items.to(loss.device)
    return loss / num_items


def check_range(name, indices, size, size_name):
    """Raises a ValueError that names the argument if `indices` leave [0, size).

    Only in eager mode on the CPU, where the look costs nothing: elsewhere it would stall the device or break the graph,
    and the device's own assertion remains.
    """
    if indices is None or indices.numel() == 0 or indices.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = indices.min().item(), indices.max().item()
    if low < 0 or high >= size:
        raise ValueError(f"{name} must be in [0, {size_name}={size}), got values from {low} to {high}")


__all__ = ["AstroformerPreTrainedModel", "AstroformerModel", "AstroformerForSequenceClassification"]
