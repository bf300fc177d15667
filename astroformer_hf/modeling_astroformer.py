# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer text models: a pre-norm Transformer, encoder or decoder, whose attention is neuron-astrocyte attention.

The equations are in `attention_operation.py` and `astrocyte_code.py`; here they become layers, models and heads.
Letters in shape comments: B batch, N tokens, H heads, m hidden neurons, d head size.
"""

import copy
import functools
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
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, can_return_tuple, logging
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.output_capturing import capture_outputs

from .astrocyte_code import ASTROCYTE_CODES, AstrocyteCode, upcast
from .cache_astroformer import AstroformerCache
from .configuration_astroformer import AstroformerConfig
from .feature_maps import FEATURE_MAPS, draw_random_projection
from .forward_keywords import (
    NO_CONTINUOUS_BATCHING,
    PACKING_KEYWORDS,
    check_library_keywords,
    checks_keywords,
    may_look_at,
    may_wait_for,
)
from .head_shards import refuse_pipeline, refuse_sharded_sequence
from .layers_astroformer import AstroformerAttention, AstroformerLayer, precompute_shared
from .library_compatibility import CACHE_NAME, CACHE_NAMES, drops_cache, takes_cache
from .packed_rows import is_packed_explicitly, packed_documents, refuse_packed_rows, without_first_tokens
from .token_layout import (
    hold_shape,
    is_exporting,
    sequence_layout,
    sinusoidal_features,
)


logger = logging.get_logger(__name__)


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
        if token_type_ids is None:  # looked up like any other: the table is only where its own forward reads it
            token_type_ids = position_ids.new_zeros(1, 1, dtype=torch.long)
        token_types = self.token_type_embeddings(token_type_ids).to(inputs_embeds.device)
        hidden_size = inputs_embeds.shape[-1]
        waves = sinusoidal_features(position_ids, -(-hidden_size // 2), torch.float32)[..., :hidden_size]
        embeddings = inputs_embeds + token_types + (self.position_scale * waves).to(inputs_embeds)
        return self.dropout(self.norm(embeddings))


def isinstance_by_name(x, cls):
    """`isinstance`, also for the class's copy in code that came with a checkpoint."""
    return x is not None and cls.__name__ in {base.__name__ for base in type(x).__mro__}


# Whether a checkpoint is being loaded all into the memory of this machine, neither elsewhere nor in fewer bits.
_loads_into_memory: ContextVar[bool] = ContextVar("loads_into_memory", default=False)
PLACEMENTS = (
    "device_map",
    "distributed_config",
    "tp_plan",
    "tp_size",
    "device_mesh",
    "quantization_config",
    "gguf_file",
)


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
    # not the embeddings: FSDP refuses a parameter in two units, and theirs may be the output's too
    _no_split_modules = ["AstroformerLayer"]
    _can_compile_fullgraph = True
    _skip_keys_device_placement = list(CACHE_NAMES)
    _can_record_outputs = {"hidden_states": AstroformerLayer, "attentions": AstroformerAttention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads a checkpoint as every library model does, from safetensors only: no pickle is ever read.

        Raises:
            ValueError: `use_safetensors` or `weights_only` is not True; the index of a checkpoint in several files
                names one that is not a safetensors file beside it; or the model that the configuration describes is
                larger than the machine's memory, and nothing, such as `device_map`, says that it goes elsewhere.
            NotImplementedError: `distributed_config` asks for pipeline parallelism.
            OSError: there are no weights in safetensors, or their file is damaged.
            RuntimeError: the weights have other shapes than the configuration says.
        """
        for name in ("use_safetensors", "weights_only"):
            if kwargs.get(name) not in (None, True):
                raise ValueError(f"{name} must be True, got {kwargs[name]!r}: a pickle can run code")
            kwargs[name] = True
        refuse_pipeline(kwargs.get("distributed_config"))
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

    @takes_cache
    @checks_keywords(*PACKING_KEYWORDS)
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutput | BaseModelOutputWithPast:
        """Computes the hidden states of a batch of token sequences.

        Args:
            input_ids (`torch.LongTensor`, *optional*): `(batch, length)` token ids; either these or `inputs_embeds`.
            attention_mask (`torch.Tensor`, *optional*): `(batch, length)`, 1 (or True) where a token is real, 0 where
                it is padding, which may stand on either side or between. Real tokens are encoded as if it were not
                there. With a cache it covers the tokens in the cache, too. Masks with a row per query, and additive
                ones, are refused.
            token_type_ids (`torch.LongTensor`, *optional*): `(batch, length)` segment ids, 0 by default.
            position_ids (`torch.LongTensor`, *optional*): `(batch, length)` or `(1, length)` positions; by default the
                real tokens are counted. Where they begin again at 0 within a row, another document begins, which is
                encoded as if it stood in a row of its own ("packing"). Such rows have no cache.
            inputs_embeds (`torch.Tensor`, *optional*): `(batch, length, hidden_size)` instead of `input_ids`.
            cache (`AstroformerCache` or `DynamicCache`, *optional*): decoders only: the state after the tokens before
                these, as an earlier call returned it (a `DynamicCache` in the softmax arm). It is written to. Before
                transformers 5.24 its name is `past_key_values`.
            use_cache (`bool`, *optional*): decoders only: whether to return that state; `config.use_cache` by default.
            seq_idx, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k (*optional*): the same of packed rows in
                the words of other collators, see `packed_rows.py`.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in every library model. The
                attention maps are those that the arm applies, `(batch, heads, length, length)`; they are computed only
                when asked for, at a memory that is quadratic in the length.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch, length, hidden_size)`; of a decoder
            `BaseModelOutputWithPast`, with `cache` (before transformers 5.24 `past_key_values`) as well.

        Raises:
            ValueError: for inputs that do not fit; the message names the argument.
            TypeError: for a keyword argument that it does not know.
        """
        cache_is_asked_for = cache is not None or use_cache is True
        cache = self._check_cache(cache, use_cache)
        if torch.jit.is_tracing():
            if cache is not None:
                raise ValueError("a graph of torch.jit.trace carries no cache; trace with use_cache=False")
            input_ids, inputs_embeds = hold_shape(input_ids, "input_ids"), hold_shape(inputs_embeds, "inputs_embeds")
            attention_mask = hold_shape(attention_mask, "attention_mask")
        past_length = 0 if cache is None else cache.get_seq_length()
        position_ids = self._check_inputs(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_length
        )
        inputs: Any = input_ids if inputs_embeds is None else inputs_embeds
        check_library_keywords(kwargs, self.config, inputs.shape[1], past_length)
        document_ids = packed_documents(inputs.shape[:2], attention_mask, position_ids, kwargs, past_length)
        if document_ids is not None and (may_wait_for(document_ids) or is_packed_explicitly(kwargs)):
            if cache is not None and cache_is_asked_for:
                raise ValueError(
                    f"{CACHE_NAME} and use_cache are not for packed rows: what would it go on from? Leave them out"
                )
            cache = None
        past_counted = self._go_on_from(cache, attention_mask, inputs)
        layout = sequence_layout(
            *(inputs.shape[1], inputs.device, attention_mask, position_ids),
            *(self.config.is_decoder, past_length, past_counted, document_ids),
        )
        if self.config.longest_input is not None:
            self._check_positions(layout, position_ids, past_length + inputs.shape[1])
        shared = precompute_shared(layout, self.layers)
        output_attentions = kwargs.get("output_attentions")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        hidden_states = self.embeddings(input_ids, token_type_ids, layout.position_ids, inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, shared, output_attentions, **{CACHE_NAME: cache})
        hidden_states = self.norm(hidden_states)
        if not self.config.is_decoder:
            return BaseModelOutput(last_hidden_state=hidden_states)
        state: Any = {CACHE_NAME: cache}
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **state)

    def _check_cache(self, cache, use_cache):
        """The cache to continue, a new one where one is wanted, or None."""
        config = self.config
        if not config.is_decoder:
            if cache is not None:
                raise ValueError(f"{CACHE_NAME} belongs to a decoder; this model has is_decoder=False")
            return None
        kind = DynamicCache if config.attention_type == "softmax" else AstroformerCache
        if cache is None:
            if not (config.use_cache if use_cache is None else use_cache):
                return None
            if drops_cache(self.layers[0]):
                if use_cache:
                    logger.warning_once("use_cache=True does not go with gradient checkpointing: no cache is returned")
                return None
            return DynamicCache() if kind is DynamicCache else AstroformerCache(config.num_hidden_layers)
        if not isinstance_by_name(cache, kind):
            raise ValueError(
                f"{CACHE_NAME} must be a {kind.__name__} for attention_type {config.attention_type!r}, got a "
                f"{type(cache).__name__}; leave it out, and the model makes one (prefix tuning, which brings keys and "
                "values, is for attention_type 'softmax')"
            )
        if drops_cache(self.layers[0]):
            raise ValueError(
                f"{CACHE_NAME} does not go with gradient checkpointing in training, which would leave it out: call "
                "model.eval() or model.gradient_checkpointing_disable() first"
            )
        if kind is AstroformerCache:
            cache.make_layers(config.num_hidden_layers)
        if len(cache.layers) not in (0, config.num_hidden_layers):
            raise ValueError(
                f"{CACHE_NAME} has {len(cache.layers)} layers and the model {config.num_hidden_layers}: it is that of "
                "another model"
            )
        return cache

    def _go_on_from(self, cache, attention_mask, inputs):
        """Checks that the input goes on from what is in the cache; returns how many real tokens that is, if known."""
        if cache is None:
            return None
        batch_size, length = inputs.shape[:2]
        if cache.get_seq_length():
            self._check_what_was_written(cache.layers[0], batch_size)
        if self.config.attention_type == "softmax":
            return None
        cache.follow_mask(attention_mask, batch_size, length)
        return cache.layers[0].counted

    def _check_what_was_written(self, memory, batch_size):
        """Checks a layer of a cache against the model and the number of sequences."""
        config = self.config
        head_size, num_neurons = config.hidden_size // config.num_attention_heads, config.num_hidden_neurons
        if config.attention_type == "softmax":
            batch_in_cache = memory.keys.shape[0]
            found, expected = (memory.keys.shape[-1], memory.values.shape[-1]), (num_neurons, head_size)
        else:
            batch_in_cache = memory.synapses.calcium.shape[0]
            num_features = FEATURE_MAPS[config.feature_map].num_features(num_neurons, config.num_random_features)
            has_code = self.layers[0].attention.astrocyte_code is not None
            found = (*memory.synapses.hebbian.shape[-2:], memory.code_state is not None)
            expected = (num_features, head_size, has_code and ASTROCYTE_CODES[config.astrocyte_code].has_state)
        if found != expected:
            raise ValueError(f"{CACHE_NAME} was written by another model, whose attention has other sizes or codes")
        if batch_in_cache != batch_size:
            raise ValueError(
                f"{CACHE_NAME} holds {batch_in_cache} sequences and the input has {batch_size}. For beams and "
                "num_return_sequences, give each sequence its copies first: cache.batch_repeat_interleave(copies)"
            )

    def _check_inputs(self, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, past_length):
        """Checks the arguments of `forward` against each other; returns the positions, in two dimensions."""
        refuse_sharded_sequence(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
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
                    f"position_ids must have shape {(1, length)} or {(batch_size, length)}, "
                    f"got {tuple(position_ids.shape)}"
                )
        check_range("input_ids", input_ids, self.config.vocab_size, "vocab_size")
        check_range("token_type_ids", token_type_ids, self.config.type_vocab_size, "type_vocab_size")
        return position_ids

    def _check_positions(self, layout, position_ids, length):
        """Checks that the table of the "learned" code has a row for each position."""
        num_positions = self.config.longest_input
        if position_ids is not None or layout.document_ids is not None:
            check_range("position_ids", layout.position_ids, num_positions, "max_position_embeddings")
        elif length > num_positions:
            raise ValueError(
                f"an input of {length} tokens is longer than the learned astrocyte code, "
                f"max_position_embeddings={num_positions}; truncate it, or use astrocyte_code 'sinusoidal' or "
                "'activity', which take any length"
            )


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
        kind, cache = generation_config.cache_implementation, model_kwargs.get(CACHE_NAME)
        if generation_config.prefill_chunk_size is not None and isinstance(cache, Cache) and cache.get_seq_length():
            raise ValueError(  # some releases would read the tokens in the cache a second time
                f"prefill_chunk_size={generation_config.prefill_chunk_size} does not go with a {CACHE_NAME} that holds "
                f"{cache.get_seq_length()} tokens; leave it out, or call the model on the pieces"
            )
        if self._is_stateful and cache is None and generation_config.use_cache:
            if kind not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation={kind!r} is for models whose cache grows; that of attention_type "
                    f"{self.config.attention_type!r} never does, leave it out"
                )
            model_kwargs[CACHE_NAME] = AstroformerCache(self.config.num_hidden_layers)
            return None
        if kind is not None and "static" in kind:
            raise ValueError(f"cache_implementation={kind!r} is not supported; leave it out for a dynamic cache")
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # `generate` looks at its signature
    def prepare_inputs_for_generation(self, *args, **kwargs):
        # how many tokens are not in the cache, of which the library takes 0 or fewer from the wrong end
        num_new = kwargs.get("next_sequence_length")
        if num_new is not None and num_new <= 0:
            past_length = kwargs[CACHE_NAME].get_seq_length()
            raise ValueError(
                f"the prompt has no token beyond the {past_length} in the cache. Give the whole text so far, the "
                "tokens in the cache and new ones; or the new ones alone, with an attention_mask that covers those in "
                "the cache as well"
            )
        return super().prepare_inputs_for_generation(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Raises NotImplementedError: continuous batching keeps keys and values in pages, which this model has not."""
        raise NotImplementedError(NO_CONTINUOUS_BATCHING)

    continuous_batching_context_manager = generate_batch = init_continuous_batching

    @takes_cache
    @checks_keywords("shift_labels", "ignore_index", beside=AstroformerModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> tuple | CausalLMOutputWithPast:
        """Predicts, at every token, the next one.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cache, use_cache: see
                `AstroformerModel.forward`. In training no state is returned unless `use_cache` asks for it.
            labels (`torch.LongTensor`, *optional*): `(batch, length)`, the `input_ids` themselves (the shift by one
                is done here); -100 is ignored, and so is the first token of each document of a packed row.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute logits of the last so many tokens only, or
                of those with these indices; 0 means all.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of labels that the loss is a mean over,
                where a batch is accumulated in parts; `Trainer` gives it.

        Returns:
            `CausalLMOutputWithPast` with `logits` of shape `(batch, length, vocab_size)`, `cache`, and `loss` if
            there are labels.

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
            cache=cache,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:2], self.config.vocab_size, "vocab_size", loss_arguments)
            if labels.shape == outputs.last_hidden_state.shape[:2]:
                ignored = loss_arguments.get("ignore_index", -100)
                labels = without_first_tokens(labels, attention_mask, position_ids, kwargs, ignored)
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
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

    @takes_cache
    @checks_keywords("ignore_index", beside=AstroformerModel.forward)
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
        outputs = self.astroformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.lm_head(self.transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:2], self.config.vocab_size, "vocab_size", loss_arguments)
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AstroformerForSequenceClassification(AstroformerPreTrainedModel):
    """Encoder, pooling and a linear classifier, for single-label and multi-label classification and for regression."""

    def __init__(self, config):
        super().__init__(config)
        check_pooling(config)
        self.num_labels = config.num_labels
        self.astroformer = AstroformerModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @takes_cache
    @checks_keywords(beside=AstroformerModel.forward)
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
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple | SequenceClassifierOutput:
        """Classifies a batch of sequences.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            labels (`torch.Tensor`, *optional*): `(batch,)` class indices (-100 is ignored), `(batch, num_labels)` from
                0 to 1 (multi-label), or `(batch,)` or `(batch, num_labels)` targets (regression), of any dtype that
                holds them. Which it is says `config.problem_type`; unset, one label means regression, whole numbers
                classes, others multi-label, and that is written into the configuration.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of label entries that the loss is a mean
                over, where a batch is accumulated in parts; `Trainer` gives it. By default those of this call.
            cache: see `AstroformerModel.forward`. In the signature because prefix tuning asks whether it is there.

        Returns:
            `SequenceClassifierOutput` with `logits` of shape `(batch, num_labels)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        outputs = self.astroformer(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        refuse_packed_rows("sequence classification", outputs.last_hidden_state, attention_mask, position_ids, kwargs)
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

    @takes_cache
    @checks_keywords("ignore_index", beside=AstroformerModel.forward)
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
        outputs = self.astroformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:2], self.num_labels, "num_labels", loss_arguments)
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

    @takes_cache
    @checks_keywords(beside=AstroformerModel.forward)
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
        outputs = self.astroformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        refuse_packed_rows("question answering", outputs.last_hidden_state, attention_mask, position_ids, kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if (start_positions is None) != (end_positions is None):
            raise ValueError("give both of start_positions and end_positions, or neither")
        if start_positions is not None and end_positions is not None:
            start_positions, end_positions = (
                answer_positions(name, positions, *start_logits.shape)
                for name, positions in (("start_positions", start_positions), ("end_positions", end_positions))
            )
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
        check_pooling(config)
        self.astroformer = AstroformerModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @takes_cache
    @checks_keywords(beside=AstroformerModel.forward)
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
        for name, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if tensor is not None and getattr(tensor, "shape", None) != inputs.shape[:3]:
                got = tuple(tensor.shape) if torch.is_tensor(tensor) else f"a {type(tensor).__name__}"
                raise ValueError(
                    f"{name} must have the shape (batch, choices, length) of the inputs, {tuple(inputs.shape[:3])}, "
                    f"got {got}"
                )
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds = (
            x if x is None else x.flatten(0, 1)
            for x in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        )
        outputs = self.astroformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        refuse_packed_rows("multiple choice", outputs.last_hidden_state, attention_mask, position_ids, kwargs)
        pooled = pool(outputs.last_hidden_state, attention_mask, self.config.pooling)
        logits = self.classifier(self.dropout(pooled)).view(-1, num_choices)
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:1], num_choices, "choices")
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


def whole_numbers(name, labels, shapes):
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


def class_labels(labels, shape, size, size_name, loss_arguments=None):
    """Labels in int64; a ValueError if they have another shape or leave [0, size), but for those that are ignored.

    `loss_arguments` are those of `pop_loss_arguments`; their `shift_labels` are treated likewise, in place.
    """
    loss_arguments = {} if loss_arguments is None else loss_arguments
    ignored = loss_arguments.get("ignore_index", -100)

    def checked(name, labels):
        labels = whole_numbers(name, labels, [shape])
        check_range(name, labels.masked_fill(labels == ignored, 0), size, size_name)
        return labels

    if loss_arguments.get("shift_labels") is not None:
        loss_arguments["shift_labels"] = checked("shift_labels", loss_arguments["shift_labels"])
    return checked("labels", labels)


def answer_positions(name, positions, batch_size, length):
    """Positions of answers in int64; a ValueError if they have another shape or are negative."""
    positions = whole_numbers(name, positions, [(batch_size,), (batch_size, 1)])
    check_range(name, positions.clamp(max=length), length + 1, "length + 1")
    return positions


def check_pooling(config):
    """Raises a ValueError if a causal model is to be pooled to its first token, which has seen nothing else."""
    if config.is_decoder and config.pooling == "cls":
        raise ValueError(
            "pooling 'cls' would read the first token of a causal model (is_decoder=True), which sees no other; give "
            "pooling='last', its last token, or 'mean'"
        )


def pool(hidden_states, attention_mask, pooling):
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


def sequence_classification_loss(logits, labels, config, num_items_in_batch=None):
    """Cross-entropy, binary cross-entropy or squared error: the sum over label entries divided by their number.

    That number is `num_items_in_batch` where it is given, so that a batch accumulated in parts has the loss of the
    whole. Arguments and errors as for `AstroformerForSequenceClassification.forward`.
    """
    if not torch.is_tensor(labels):
        raise ValueError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    batch_size, num_labels = logits.shape[0], config.num_labels
    problem_type = config.problem_type or inferred_problem_type(labels, num_labels)
    expected = {
        "single_label_classification": [(batch_size,), (batch_size, 1)],
        "multi_label_classification": [(batch_size, num_labels)],
        "regression": [(batch_size, num_labels)] + ([(batch_size,)] if num_labels == 1 else []),
    }[problem_type]
    if labels.shape not in expected:
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


def inferred_problem_type(labels, num_labels):
    """What labels are of, where the configuration does not say."""
    if num_labels == 1:
        return "regression"
    is_one_of_each = labels.dtype == torch.bool and labels.shape[1:] == (num_labels,)
    if labels.is_floating_point() or is_one_of_each:
        return "multi_label_classification"
    return "single_label_classification"


def classification_loss(logits, labels, num_items_in_batch=None):
    """Cross-entropy of `(batch, classes)` logits against `(batch,)` labels, a mean as of `mean_over_items`."""
    loss = nn.functional.cross_entropy(upcast(logits), labels, reduction="sum")
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

    Only where the look costs nothing: elsewhere it would stall the device or break the graph, and the device's own
    assertion remains.
    """
    if not may_look_at(indices) or indices.numel() == 0:
        return
    low, high = indices.min().item(), indices.max().item()
    if low < 0 or high >= size:
        raise ValueError(f"{name} must be in [0, {size_name}={size}), got values from {low} to {high}")


def check_mask(attention_mask):
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
            "with a row per query is not supported. Whether a model is causal says config.is_decoder"
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
