# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer text models: a pre-norm Transformer, encoder or decoder, whose attention is neuron-astrocyte attention.

The equations are in `neuron_astrocyte_attention.py` and `astrocyte_code.py`; here they become layers, models and heads.
Letters in shape comments: B batch, N tokens, H heads, m hidden neurons, d head size.
"""

import copy
import json
import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.output_capturing import capture_outputs

from .astrocyte_code import ASTROCYTE_CODES, AstrocyteCode, untrained_activity, upcast
from .cache_astroformer import AstroformerCache
from .configuration_astroformer import AstroformerConfig
from .neuron_astrocyte_attention import (
    attend,
    draw_random_projection,
    full_precision,
    neuron_astrocyte_attention_weights,
)
from .token_layout import NeighbourhoodState, hold_shape, known_value, sequence_layout, sinusoidal_features


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

    def forward(self, hidden_states, layout, output_attentions=False, past_key_values=None):
        """`(batch, length, hidden_size)` to the same; and the maps `(batch, heads, length, length)`, None unasked.

        With a cache, causal attention continues from it and writes to it. The softmax arm's maps then cover the tokens
        in the cache as well; the others' cannot, because their states do not hold them one by one.
        """
        batch_and_length = hidden_states.shape[:2]
        query = self.q_proj(hidden_states).view(*batch_and_length, self.num_heads, -1).transpose(1, 2)  # (B, H, N, m)
        key = self.k_proj(hidden_states).view(*batch_and_length, self.num_heads, -1).transpose(1, 2)  # (B, H, N, m)
        value = self.v_proj(hidden_states).view(*batch_and_length, self.num_heads, -1).transpose(1, 2)  # (B, H, N, d)
        if self.attention_type == "softmax":
            own_attention = self._softmax_attention
        else:
            own_attention = self._neuron_astrocyte_attention
        output, attention_map = own_attention(query, key, value, layout, output_attentions, past_key_values)
        output = output.transpose(1, 2).reshape(*batch_and_length, -1)
        return self.o_proj(output), attention_map

    def _neuron_astrocyte_attention(self, query, key, value, layout, output_attentions, past_key_values):
        written = value
        if self.training and self.dropout_prob > 0:
            release = nn.functional.dropout(value.new_ones(*value.shape[:-1], 1), self.dropout_prob)  # (B, H, N, 1)
            written = value * release
        # at least in float32, so that neither a long sum nor its scale leaves the range of float16
        written = upcast(written)
        scale = self.output_scale(layout) if layout.output_scale is None else layout.output_scale
        memory = neighbourhood = initial_state = None
        if past_key_values is not None:
            memory = past_key_values.layers[self.layer_idx]
            initial_state, neighbourhood = memory.synapses, memory.neighbourhood
        code = None
        if self.astrocyte_code is not None:
            with full_precision(key):
                code = self.astrocyte_code.for_attention(upcast(key), layout, neighbourhood)
        operation = {
            **self.operation,
            "random_projection": self.random_projection,
            "causal": layout.causal,
            "initial_state": initial_state,
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

    def _softmax_attention(self, query, key, value, layout, output_attentions, past_key_values):
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        length, past_length = query.shape[2], key.shape[2] - query.shape[2]
        mask = None  # where a query may look, `(1 or batch, 1, length or 1, past_length + length)`
        if layout.full_mask is not None:
            mask = layout.full_mask[:, None, None, :]
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


def with_what_layers_share(layout, layers):
    """The layout with what is the same in all layers of a model, so that it is worked out once."""
    attention = layers[0].attention
    layout = layout._replace(output_scale=attention.output_scale(layout))
    code = attention.astrocyte_code
    return layout if code is None else layout._replace(geometry=code.geometry(layout))


def isinstance_by_name(x, cls):
    """`isinstance`, also for the class's copy in code that came with a checkpoint."""
    return x is not None and cls.__name__ in {base.__name__ for base in type(x).__mro__}


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

    def forward(self, hidden_states, layout, output_attentions=False, past_key_values=None):
        attention_output, _ = self.attention(
            self.attention_norm(hidden_states), layout, output_attentions, past_key_values
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


# Whether a checkpoint is being loaded all into the memory of this machine, neither elsewhere nor in fewer bits.
_loads_into_memory: ContextVar[bool] = ContextVar("loads_into_memory", default=False)
PLACEMENTS = ("device_map", "tp_plan", "tp_size", "device_mesh", "quantization_config", "gguf_file")


def memory_of_machine(with_gpus=False):
    """Bytes of main memory, infinitely many where the system does not tell; with that of the GPUs, if asked."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return float("inf")
    if with_gpus:
        memory += sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return memory


def check_shards(name, options):
    """Refuses a checkpoint in several files if one is not a safetensors file beside its index, before any is read.

    Args:
        name (`str` or `os.PathLike`, *optional*): folder, or name on the Hub, of the checkpoint.
        options (`dict`): of `from_pretrained`. What was checked on the Hub is put into it as the revision to load.
    """
    if name is None or options.get("gguf_file") is not None:
        return
    folder = Path(name, options.get("subfolder") or "")
    if Path(name).is_dir():
        indices = sorted(folder.glob("*.safetensors.index*.json"))
    else:
        variant = options.get("variant")
        own_name = SAFE_WEIGHTS_INDEX_NAME if variant is None else f"{SAFE_WEIGHTS_INDEX_NAME[:-5]}.{variant}.json"
        places = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        try:
            found = cached_file(
                str(name),
                own_name,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **{place: options[place] for place in places if options.get(place) is not None},
            )
        except OSError:
            return  # there is no such repository, which the library tells better
        indices = [] if found is None else [Path(found)]
        if found is not None:
            options["revision"] = extract_commit_hash(found, None) or options.get("revision")
    for index in indices:
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"{index} is damaged: it has no map of weights to files ({error!r})") from error
        for shard in shards:
            if not isinstance(shard, str) or not re.fullmatch(r"[^/\\]+\.safetensors", shard):
                raise ValueError(f"{index.name} must name safetensors files beside it, got {shard!r}")


class AstroformerPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving that all Astroformer text models share."""

    config: AstroformerConfig
    base_model_prefix = "astroformer"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["AstroformerEmbeddings", "AstroformerLayer"]
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AstroformerLayer, "attentions": AstroformerAttention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads a checkpoint as every library model does, from safetensors only: no pickle is ever read.

        Raises:
            ValueError: `use_safetensors` or `weights_only` is not True; the index of a checkpoint in several files
                names one that is not a safetensors file beside it; or the model that the configuration describes is
                larger than the machine's memory, and nothing, such as `device_map`, says that it goes elsewhere.
            OSError: there are no weights in safetensors, or their file is damaged.
            RuntimeError: the weights have other shapes than the configuration says.
        """
        for name in ("use_safetensors", "weights_only"):
            if kwargs.get(name) not in (None, True):
                raise ValueError(f"{name} must be True, got {kwargs[name]!r}: a pickle can run code")
            kwargs[name] = True
        check_shards(pretrained_model_name_or_path, kwargs)
        before = _loads_into_memory.set(all(kwargs.get(name) is None for name in PLACEMENTS))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"The weights of {str(pretrained_model_name_or_path)!r} are damaged or not in the safetensors format "
                f"({error}). Fetch them again, with force_download=True if they come from the Hub."
            ) from error
        finally:
            _loads_into_memory.reset(before)

    def post_init(self):
        super().post_init()
        if self.device.type == "meta" and _loads_into_memory.get():  # and what the checkpoint lacks is initialised
            needed = sum(parameter.nbytes for parameter in self.parameters())
            if needed > memory_of_machine() and needed > memory_of_machine(with_gpus=True):
                raise ValueError(
                    f"The configuration describes a model of {self.num_parameters():,} parameters, "
                    f"{needed / 2**30:,.0f} GiB, and this machine has {memory_of_machine() / 2**30:,.0f} GiB of memory"
                )

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, AstrocyteCode):
            for parameter, value in module.initial_values(self.config):
                init.copy_(parameter, value)
        elif isinstance(module, AstroformerAttention) and module.random_projection is not None:
            init.copy_(module.random_projection, draw_random_projection(*module.random_projection.shape))


class AstroformerModel(AstroformerPreTrainedModel):
    """The bare model, from tokens to their hidden states: an encoder, or a decoder if `config.is_decoder`."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = AstroformerEmbeddings(config)
        self.layers = nn.ModuleList([AstroformerLayer(config, i) for i in range(config.num_hidden_layers)])
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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutput | BaseModelOutputWithPast:
        """Computes the hidden states of a batch of token sequences.

        Args:
            input_ids (`torch.LongTensor`, *optional*): `(batch, length)` token ids; either these or `inputs_embeds`.
            attention_mask (`torch.Tensor`, *optional*): `(batch, length)`, 1 where a token is real, 0 where it is
                padding, which may stand on either side or between. Real tokens are encoded as if it were not there.
                With a cache it covers the tokens in the cache, too.
            token_type_ids (`torch.LongTensor`, *optional*): `(batch, length)` segment ids, 0 by default.
            position_ids (`torch.LongTensor`, *optional*): `(batch, length)` or `(1, length)` positions; by default the
                real tokens are counted.
            inputs_embeds (`torch.Tensor`, *optional*): `(batch, length, hidden_size)` instead of `input_ids`.
            past_key_values (`AstroformerCache` or `DynamicCache`, *optional*): decoders only: the state after the
                tokens before these, as an earlier call returned it (a `DynamicCache` in the softmax arm). It is
                written to.
            use_cache (`bool`, *optional*): decoders only: whether to return that state; `config.use_cache` by default.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in every library model. The
                attention maps are those that the arm applies, `(batch, heads, length, length)`; they are computed only
                when asked for, at a memory that is quadratic in the length.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch, length, hidden_size)`; of a decoder
            `BaseModelOutputWithPast`, with `past_key_values` as well.

        Raises:
            ValueError: for inputs that do not fit; the message names the argument.
        """
        past_key_values = self._check_cache(past_key_values, use_cache)
        if torch.jit.is_tracing():
            if past_key_values is not None:
                raise ValueError("a graph of torch.jit.trace carries no cache; trace with use_cache=False")
            input_ids, inputs_embeds = hold_shape(input_ids, "input_ids"), hold_shape(inputs_embeds, "inputs_embeds")
            attention_mask = hold_shape(attention_mask, "attention_mask")
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        position_ids = self._check_inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_length
        )
        inputs: Any = input_ids if inputs_embeds is None else inputs_embeds
        past_counted = None
        if isinstance_by_name(past_key_values, AstroformerCache):
            past_counted = past_key_values.layers[0].counted  # type: ignore[union-attr]  # told by its name
        layout = sequence_layout(
            *(inputs.shape[1], inputs.device, attention_mask, position_ids),
            *(self.config.is_decoder, past_length, past_counted),
        )
        layout = with_what_layers_share(layout, self.layers)
        output_attentions = kwargs.get("output_attentions")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        hidden_states = self.embeddings(input_ids, token_type_ids, layout.position_ids, inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, layout, output_attentions, past_key_values=past_key_values)
        hidden_states = self.norm(hidden_states)
        if not self.config.is_decoder:
            return BaseModelOutput(last_hidden_state=hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def _check_cache(self, past_key_values, use_cache):
        """The cache to continue, a new one where one is wanted, or None."""
        config = self.config
        if not config.is_decoder:
            if past_key_values is not None:
                raise ValueError("past_key_values belong to a decoder; this model has is_decoder=False")
            return None
        kind = DynamicCache if config.attention_type == "softmax" else AstroformerCache
        if past_key_values is None:
            if not (config.use_cache if use_cache is None else use_cache):
                return None
            return DynamicCache() if kind is DynamicCache else AstroformerCache(config.num_hidden_layers)
        if not isinstance_by_name(past_key_values, kind):
            raise ValueError(
                f"past_key_values must be a {kind.__name__} for attention_type {config.attention_type!r}, got a "
                f"{type(past_key_values).__name__}; leave it out, and the model makes one"
            )
        return past_key_values

    def _check_inputs(self, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_length):
        """Checks the arguments of `forward` against each other; returns the positions, in two dimensions."""
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
                    f"position_ids must have shape {(1, length)} or {(batch_size, length)}, "
                    f"got {tuple(position_ids.shape)}"
                )
        check_range("input_ids", input_ids, self.config.vocab_size, "vocab_size")
        check_range("token_type_ids", token_type_ids, self.config.type_vocab_size, "type_vocab_size")
        if self._has_position_table:
            num_positions = self.config.max_position_embeddings
            check_range("position_ids", position_ids, num_positions, "max_position_embeddings")
            if position_ids is None and past_length + length > num_positions:
                raise ValueError(
                    f"an input of {past_length + length} tokens is longer than the learned astrocyte code, "
                    f"max_position_embeddings={num_positions}; truncate it, or use astrocyte_code 'sinusoidal' or "
                    "'activity', which take any length"
                )
        return position_ids

    @property
    def _has_position_table(self):
        config = self.config
        uses_code = config.attention_type == "neuron_astrocyte" and config.use_astrocyte_hebbian
        return uses_code and config.astrocyte_code == "learned"


# Trainer's label smoothing shifts the labels of the causal language models that are listed here by name, and pipelines
# look here for what they support; the Auto classes' own registration does not reach this list.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["astroformer"] = "AstroformerForCausalLM"


class AstroformerForCausalLM(AstroformerPreTrainedModel, GenerationMixin):
    """A decoder and a language-model head on it: predicts the next token. Its configuration is made `is_decoder`.

    Generating takes the same time and memory for every token, however long the text has become, with
    `attention_type` "neuron_astrocyte" and "linear".
    """

    _tied_weights_keys = {"lm_head.weight": "astroformer.embeddings.word_embeddings.weight"}

    def __init__(self, config):
        if not config.is_decoder:
            config = copy.deepcopy(config)
            config.is_decoder = True
        super().__init__(config)
        self.astroformer = AstroformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @property
    def _is_stateful(self):  # sums cannot take back a token, as assisted generation asks of a cache
        return self.config.attention_type != "softmax"

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        kind = generation_config.cache_implementation
        if self._is_stateful and model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            if kind not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation={kind!r} is for models whose cache grows; that of attention_type "
                    f"{self.config.attention_type!r} never does, leave it out"
                )
            model_kwargs["past_key_values"] = AstroformerCache(self.config.num_hidden_layers)
            return None
        if kind is not None and "static" in kind:
            raise ValueError(f"cache_implementation={kind!r} is not supported; leave it out for a dynamic cache")
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> tuple | CausalLMOutputWithPast:
        """Predicts, at every token, the next one.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_key_values, use_cache: see
                `AstroformerModel.forward`. In training no state is returned unless `use_cache` asks for it.
            labels (`torch.LongTensor`, *optional*): `(batch, length)`, the `input_ids` themselves (the shift by one
                is done here); -100 is ignored.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute logits of the last so many tokens only, or
                of those with these indices; 0 means all.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of labels that the loss is a mean over,
                where a batch is accumulated in parts; `Trainer` gives it.

        Returns:
            `CausalLMOutputWithPast` with `logits` of shape `(batch, length, vocab_size)`, `past_key_values`, and
            `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        loss_arguments = pop_loss_arguments(kwargs)
        if use_cache is None and self.training:
            use_cache = False
        outputs = self.astroformer(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:2], self.config.vocab_size, "vocab_size")
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class AstroformerTransform(nn.Module):
    """What stands before a masked language model's output embeddings, as in BERT.

    A module of its own, so that its `norm` is not taken for that of the bare model when this is loaded from the
    checkpoint of the whole.
    """

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states):
        return self.norm(self.act_fn(self.dense(hidden_states)))


class AstroformerForMaskedLM(AstroformerPreTrainedModel):
    """An encoder and a language-model head on it: predicts the tokens behind the mask."""

    _tied_weights_keys = {"lm_head.weight": "astroformer.embeddings.word_embeddings.weight"}

    def __init__(self, config):
        super().__init__(config)
        if config.is_decoder:
            raise ValueError("AstroformerForMaskedLM needs a model that sees both sides, got is_decoder=True")
        self.astroformer = AstroformerModel(config)
        self.transform = AstroformerTransform(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | MaskedLMOutput:
        """Predicts the token at every place.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            labels (`torch.LongTensor`, *optional*): `(batch, length)` tokens to predict; -100 is ignored.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): see `AstroformerForCausalLM.forward`.

        Returns:
            `MaskedLMOutput` with `logits` of shape `(batch, length, vocab_size)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        loss_arguments = pop_loss_arguments(kwargs)
        outputs = self.astroformer(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.lm_head(self.transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:2], self.config.vocab_size, "vocab_size")
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AstroformerForSequenceClassification(AstroformerPreTrainedModel):
    """Encoder, pooling and a linear classifier, for single-label and multi-label classification and for regression."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.astroformer = AstroformerModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | SequenceClassifierOutput:
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


class AstroformerForTokenClassification(AstroformerPreTrainedModel):
    """A linear classifier on every token's hidden state."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.astroformer = AstroformerModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | TokenClassifierOutput:
        """Classifies every token.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            labels (`torch.LongTensor`, *optional*): `(batch, length)` class indices; -100 is ignored.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): see `AstroformerForCausalLM.forward`.

        Returns:
            `TokenClassifierOutput` with `logits` of shape `(batch, length, num_labels)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        loss_arguments = pop_loss_arguments(kwargs)
        outputs = self.astroformer(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:2], self.num_labels, "num_labels")
            loss = self.loss_function(logits, labels, self.config, **loss_arguments)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AstroformerForQuestionAnswering(AstroformerPreTrainedModel):
    """Finds where the answer to a question starts and ends in a text that follows it."""

    def __init__(self, config):
        super().__init__(config)
        self.astroformer = AstroformerModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | QuestionAnsweringModelOutput:
        """Scores every token as the answer's first and as its last.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            start_positions, end_positions (`torch.LongTensor`, *optional*): `(batch,)` index of the answer's first and
                last token; one past the end of the input is ignored. Both are needed for a loss.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): see `AstroformerForCausalLM.forward`.

        Returns:
            `QuestionAnsweringModelOutput` with `start_logits` and `end_logits` of shape `(batch, length)`, and `loss`
            if there are positions.

        Raises:
            ValueError: for inputs or positions that do not fit; the message names the argument.
        """
        loss_arguments = pop_loss_arguments(kwargs)
        outputs = self.astroformer(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if (start_positions is None) != (end_positions is None):
            raise ValueError("give both of start_positions and end_positions, or neither")
        if start_positions is not None and end_positions is not None:
            for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
                if positions.shape not in ((len(start_logits),), (len(start_logits), 1)):
                    raise ValueError(f"{name} must have shape {(len(start_logits),)}, got {tuple(positions.shape)}")
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **loss_arguments)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class AstroformerForMultipleChoice(AstroformerPreTrainedModel):
    """Scores each of several sequences, of which one is right."""

    def __init__(self, config):
        super().__init__(config)
        self.astroformer = AstroformerModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | MultipleChoiceModelOutput:
        """Scores the choices.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as of `AstroformerModel.forward`,
                with a second dimension for the choices: `(batch, choices, length)` and so on.
            labels (`torch.LongTensor`, *optional*): `(batch,)` index of the right choice.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): see `AstroformerForCausalLM.forward`.

        Returns:
            `MultipleChoiceModelOutput` with `logits` of shape `(batch, choices)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        dimensions = 3 if input_ids is not None else 4
        if inputs is None or inputs.dim() != dimensions:
            raise ValueError(
                "input_ids must have shape (batch, choices, length), or inputs_embeds (batch, choices, length, "
                f"hidden_size), got {None if inputs is None else tuple(inputs.shape)}"
            )
        num_choices = inputs.shape[1]
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds = (
            x if x is None else x.flatten(0, 1)
            for x in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        )
        outputs = self.astroformer(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        pooled = pool(outputs.last_hidden_state, attention_mask, self.config.pooling)
        logits = self.classifier(self.dropout(pooled)).view(-1, num_choices)
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:1], num_choices, "choices")
            loss = classification_loss(logits, labels, num_items_in_batch)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def classifier_dropout(config):
    """The dropout before a classifier."""
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


def pop_loss_arguments(kwargs):
    """Takes those of a forward's keyword arguments that are for the loss, and returns them."""
    names = ("num_items_in_batch", "shift_labels", "ignore_index")
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def check_labels(labels, shape, size, size_name):
    """Raises a ValueError if labels have another shape or leave [0, size), but for the ignored -100."""
    if labels.shape != shape:
        raise ValueError(f"labels must have shape {tuple(shape)}, got {tuple(labels.shape)}")
    check_range("labels", labels.masked_fill(labels == -100, 0), size, size_name)


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

    if problem_type == "single_label_classification":
        if labels.is_floating_point():
            raise ValueError(f"labels must be whole numbers for single_label_classification, got {labels.dtype}")
        labels = labels.reshape(-1)
        check_labels(labels, labels.shape, num_labels, "num_labels")
        return classification_loss(logits, labels, num_items_in_batch)
    logits, labels = logits.float(), labels.float().view_as(logits)
    if problem_type == "multi_label_classification":
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    else:
        loss = nn.functional.mse_loss(logits, labels, reduction="sum")
    return mean_over_items(loss, labels.numel(), num_items_in_batch)


def classification_loss(logits, labels, num_items_in_batch=None):
    """Cross-entropy of `(batch, classes)` logits against `(batch,)` labels, a mean as of `mean_over_items`."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return mean_over_items(loss, (labels != -100).sum(), num_items_in_batch)


def mean_over_items(loss, num_items, num_items_in_batch=None):
    """A summed loss divided by the number of its items, or by `num_items_in_batch` where it is given, so that a batch
    that is accumulated in parts has the loss of the whole."""
    if num_items_in_batch is not None:
        num_items = num_items_in_batch
        if torch.is_tensor(num_items):
            num_items = num_items.to(loss.device)
    return loss / num_items


def check_range(name, indices, size, size_name):
    """Raises a ValueError that names the argument if `indices` leave [0, size).

    Only in eager mode on the CPU, where the look costs nothing: elsewhere it would stall the device or break the graph,
    and the device's own assertion remains. Nor where there are no values to look at; see `known_value`.
    """
    if indices is None or indices.numel() == 0 or indices.device.type != "cpu":
        return
    low, high = known_value(indices.min), known_value(indices.max)
    if low is None or high is None:
        return
    if low < 0 or high >= size:
        raise ValueError(f"{name} must be in [0, {size_name}={size}), got values from {low} to {high}")


__all__ = [
    "AstroformerPreTrainedModel",
    "AstroformerModel",
    "AstroformerForCausalLM",
    "AstroformerForMaskedLM",
    "AstroformerForSequenceClassification",
    "AstroformerForTokenClassification",
    "AstroformerForQuestionAnswering",
    "AstroformerForMultipleChoice",
]
