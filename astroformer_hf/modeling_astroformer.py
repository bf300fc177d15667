# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer text models: a pre-norm Transformer, encoder or decoder, whose attention is neuron-astrocyte attention.

The equations are in `attention_operation.py` and `astrocyte_code.py`; here they become layers, models and heads.
Letters in shape comments: B batch, N tokens, H heads, m hidden neurons, d head size.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple, logging
from transformers.utils.output_capturing import capture_outputs

from .astrocyte_code import ASTROCYTE_CODES, AstrocyteCode
from .cache_astroformer import AstroformerCache, check_first_position
from .configuration_astroformer import AstroformerBaseConfig, AstroformerConfig
from .feature_maps import draw_random_projection
from .forward_keywords import (
    NO_CONTINUOUS_BATCHING,
    PACKING_KEYWORDS,
    check_library_keywords,
    checks_keywords,
    may_wait_for,
)
from .input_checks import (
    TextInputs,
    check_cache,
    check_cache_layer,
    check_positions,
    check_text_inputs,
    flatten_choices,
)
from .layers_astroformer import AstroformerAttention, AstroformerLayer, AstroformerTransform, precompute_shared
from .library_compatibility import CACHE_NAME, CACHE_NAMES, drops_cache, refuse_lost_prompts, takes_cache
from .loading import SafelyLoadedModel
from .losses import (
    answer_positions,
    check_pooling,
    class_labels,
    classification_loss,
    pool,
    pop_loss_arguments,
    sequence_classification_loss,
)
from .model_classes import TEXT_MODELS
from .model_outputs import (
    AstroformerBaseModelOutput,
    AstroformerBaseModelOutputWithPast,
    AstroformerCausalLMOutputWithPast,
    AstroformerMaskedLMOutput,
    AstroformerMultipleChoiceModelOutput,
    AstroformerQuestionAnsweringModelOutput,
    AstroformerSequenceClassifierOutput,
    AstroformerTokenClassifierOutput,
)
from .packed_rows import is_packed_explicitly, packed_documents, refuse_packed_rows, without_first_tokens
from .segments import (
    AstroformerMemory,
    Pick,
    check_generation,
    check_memory,
    check_pooled_rows,
    check_segments_of,
    continue_in_segments,
    read_in_segments,
    refuse_recording,
    texts_of,
    use_of_segment_cache,
)
from .synaptic_decay import SynapticDecay
from .token_layout import GridLayout, SequenceLayout, sequence_layout, sinusoidal_features
from .traced_values import hold_shape


logger = logging.get_logger(__name__)


class AstroformerEmbeddings(nn.Module):
    """Tokens, token types and the sines and cosines of the positions, normalised: `(batch, length, hidden_size)`.

    Positions have no table, so that the length is bounded by nothing but the "learned" astrocyte code. They enter with
    the power that a freshly initialised token has.
    """

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # a wave's mean square is 1/2
        self.position_scale = config.initializer_range * 2**0.5

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if token_type_ids is None:  # looked up like any other: the table is only where its own forward reads it
            token_type_ids = position_ids.new_zeros(1, 1, dtype=torch.long)
        token_types = self.token_type_embeddings(token_type_ids).to(inputs_embeds.device)
        hidden_size = inputs_embeds.shape[-1]
        waves = sinusoidal_features(position_ids, -(-hidden_size // 2), torch.float32)[..., :hidden_size]
        embeddings = inputs_embeds + token_types + (self.position_scale * waves).to(inputs_embeds)
        return self.dropout(self.norm(embeddings))


class AstroformerPreTrainedModel(SafelyLoadedModel):
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

    def get_correct_attn_implementation(self, requested_attention: str | None, *args: Any, **kwargs: Any) -> str:
        """The library's function that computes the softmax arm: "sdpa" by default, "eager", "flash_attention_2".

        Raises:
            ValueError: for another one, or for another `attention_type`, which has functions of its own.
        """
        has_softmax = self.config.attention_type == "softmax"
        if requested_attention is not None:
            known = requested_attention in ("eager", "sdpa") or "flash" in requested_attention
            if not known or not has_softmax and requested_attention != "eager":
                raise ValueError(
                    f"attn_implementation {requested_attention!r} is not for attention_type "
                    f"{self.config.attention_type!r}: "
                    + ("choose 'sdpa', 'eager' or 'flash_attention_2'" if has_softmax else "it has its own functions")
                )
        elif not has_softmax or self.config.output_attentions:  # the library wants that together with "eager"
            requested_attention = "eager"
        self._supports_sdpa = self._supports_flash_attn = has_softmax  # where the library looks
        return super().get_correct_attn_implementation(requested_attention, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AstroformerMemory):
            init.normal_(module.embeddings, std=self.config.initializer_range)
        elif isinstance(module, AstrocyteCode | SynapticDecay):
            for parameter, value in module.initial_values(self.config):
                init.copy_(parameter, value)
        elif isinstance(module, AstroformerAttention):
            if module.random_projection is not None:
                projection: Any = module.random_projection
                init.copy_(projection, draw_random_projection(*projection.shape))
            if module.covariance_gain is not None:
                init.ones_(module.covariance_gain)


class AstroformerEncoder(AstroformerPreTrainedModel):
    """What text and image models do between the embeddings and the hidden states: blocks, and a last normalisation."""

    layers: nn.ModuleList
    norm: nn.LayerNorm
    memory: AstroformerMemory

    def build_layers(self, config: AstroformerBaseConfig) -> None:
        """Makes the blocks and the normalisation, and the memory of a model that reads in segments."""
        self.layers = nn.ModuleList([AstroformerLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.segment_length is not None:
            self.memory = AstroformerMemory(config)

    def encode(
        self,
        hidden_states: torch.Tensor,
        layout: SequenceLayout | GridLayout,
        output_attentions: bool | None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Runs the blocks.

        Args:
            hidden_states (`torch.Tensor`): `(batch, length, hidden_size)` embeddings.
            layout (`SequenceLayout` or `GridLayout`): where the tokens or patches lie.
            output_attentions (`bool`, *optional*): whether attention maps are wanted; the configuration's by default.
            cache (`Cache`, *optional*): of a decoder: what comes before, which is written to.

        Returns:
            `(batch, length, hidden_size)` hidden states, normalised.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        shared = precompute_shared(layout, self.layers)
        for layer in self.layers:
            hidden_states = layer(hidden_states, shared, output_attentions, **{CACHE_NAME: cache})
        return self.norm(hidden_states)


class AstroformerModel(AstroformerEncoder):
    """The bare model, from tokens to their hidden states: an encoder, or a decoder if `config.is_decoder`."""

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        self.embeddings = AstroformerEmbeddings(config)
        self.build_layers(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
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
        memory: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerBaseModelOutput | AstroformerBaseModelOutputWithPast:
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
            use_cache (`bool`, *optional*): decoders only: whether to return that state; `config.use_cache` by default,
                but not of a model that reads in segments while gradients are on.
            memory (`torch.Tensor`, *optional*): of a model that reads in segments: what came before these texts, as an
                earlier call returned it, `(batch, num_memory_tokens, hidden_size)`. A cache holds its own.
            seq_idx, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k (*optional*): the same of packed rows in
                the words of other collators, see `packed_rows.py`.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in every library model. The
                attention maps are those that the arm applies, `(batch, heads, length, length)`; they are computed only
                when asked for, at a memory that is quadratic in the length.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch, length, hidden_size)`; of a decoder
            `BaseModelOutputWithPast`, with `cache` (before transformers 5.24 `past_key_values`) as well. Of a
            model that reads in segments also with `memory`, after the last token of each text: to go on from it is to
            begin another segment there. It is None after a single token that goes on from a cache.

        Raises:
            ValueError: for inputs that do not fit; the message names the argument.
            TypeError: for a keyword argument that it does not know.
        """
        cache_is_asked_for = cache is not None or use_cache is True
        cache = self._prepare_cache(cache, use_cache)
        if torch.jit.is_tracing():
            if cache is not None:
                raise ValueError("a graph of torch.jit.trace carries no cache; trace with use_cache=False")
            input_ids, inputs_embeds = hold_shape(input_ids, "input_ids"), hold_shape(inputs_embeds, "inputs_embeds")
            attention_mask = hold_shape(attention_mask, "attention_mask")
        past_length = 0 if cache is None else cache.get_seq_length()
        inputs = TextInputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        position_ids = check_text_inputs(inputs, self.config, past_length)
        tokens: Any = input_ids if inputs_embeds is None else inputs_embeds
        batch_size, length = tokens.shape[:2]
        check_library_keywords(kwargs, self.config, length, past_length)
        refuse_recording(kwargs, self.config)
        document_ids = packed_documents((batch_size, length), attention_mask, position_ids, kwargs, past_length)
        if document_ids is not None and (may_wait_for(document_ids) or is_packed_explicitly(kwargs)):
            if cache is not None and cache_is_asked_for:
                raise ValueError(
                    f"{CACHE_NAME} and use_cache are not for packed rows: what would it go on from? Leave them out"
                )
            cache = None
        check_memory(memory, self.config, batch_size, past_length)
        past_counted, places = self._continue_cache(cache, attention_mask, batch_size, length)
        check_first_position(position_ids, attention_mask, past_counted, past_length)
        if self.config.segment_length is not None:
            check_segments_of(inputs, self.config, document_ids, cache, is_packed_explicitly(kwargs))
            _take_down(cache, places)
            return self._read_in_segments(inputs, memory, cache, past_length)
        layout = sequence_layout(
            length,
            tokens.device,
            attention_mask,
            position_ids,
            causal=self.config.is_decoder,
            past_length=past_length,
            past_counted=past_counted,
            document_ids=document_ids,
        )
        if self.config.longest_input is not None:
            check_positions(layout, position_ids, past_length + length, self.config.longest_input)
        _take_down(cache, places)
        hidden_states = self.embeddings(input_ids, token_type_ids, layout.position_ids, inputs_embeds)
        hidden_states = self.encode(hidden_states, layout, kwargs.get("output_attentions"), cache)
        if not self.config.is_decoder:
            return AstroformerBaseModelOutput(last_hidden_state=hidden_states)
        state: Any = {CACHE_NAME: cache}
        return AstroformerBaseModelOutputWithPast(last_hidden_state=hidden_states, **state)

    def _read_in_segments(
        self, inputs: TextInputs, memory: torch.Tensor | None, cache: Any, past_length: int
    ) -> AstroformerBaseModelOutput | AstroformerBaseModelOutputWithPast:
        input_ids, attention_mask, token_type_ids, _, inputs_embeds = inputs
        tokens: Any = input_ids if inputs_embeds is None else inputs_embeds
        texts = texts_of(tokens, None if attention_mask is None else attention_mask[:, past_length:])

        def embed(pick: Pick, position_ids: torch.Tensor) -> torch.Tensor:
            return self.embeddings(pick(input_ids), pick(token_type_ids), position_ids, pick(inputs_embeds))

        if cache is None:
            hidden_states, memory = read_in_segments(self, embed, texts, memory)
        else:
            hidden_states, memory = continue_in_segments(self, embed, texts, memory, cache)
        outputs: Any = {"last_hidden_state": hidden_states, "memory": memory}
        if not self.config.is_decoder:
            return AstroformerBaseModelOutput(**outputs)
        return AstroformerBaseModelOutputWithPast(**outputs, **{CACHE_NAME: cache})

    def _prepare_cache(self, cache: Any, use_cache: bool | None) -> Any:
        """The cache to continue, a new one where one is wanted, or None."""
        config = self.config
        if config.segment_length is not None:
            use_cache = use_of_segment_cache(config, use_cache, cache is not None)
        if cache is not None:
            check_cache(cache, config, is_dropped=drops_cache(self.layers[0]))
            if config.attention_type != "softmax":
                cache.make_layers(config.num_hidden_layers)
            return cache
        if not config.is_decoder or not (config.use_cache if use_cache is None else use_cache):
            return None
        if drops_cache(self.layers[0]):
            if use_cache:
                logger.warning_once("use_cache=True does not go with gradient checkpointing: no cache is returned")
            return None
        return DynamicCache() if config.attention_type == "softmax" else AstroformerCache(config.num_hidden_layers)

    def _continue_cache(
        self, cache: Any, attention_mask: torch.Tensor | None, batch_size: int, length: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Checks that the input continues what the cache holds; returns how many real tokens that is, if known, and
        the `places` of the cache after the input."""
        if cache is None:
            return None, None
        if cache.get_seq_length():
            attention: Any = self.layers[0].attention
            code = None if attention.astrocyte_code is None else ASTROCYTE_CODES[self.config.astrocyte_code]
            check_cache_layer(cache.layers[0], self.config, code is not None and code.has_state, batch_size)
        if self.config.attention_type == "softmax":
            return None, None
        return cache.layers[0].counted, cache.places_after(attention_mask, batch_size, length)


def _take_down(cache: Any, places: torch.Tensor | None) -> None:
    """Writes into a cache which of the tokens that it is about to hold are real."""
    if hasattr(cache, "places_after"):  # as of this package or of code that came with a checkpoint
        cache.layers[0].places = places


def head_forward(*keywords: str, returns_cache: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a head's forward, which takes the model's inputs as one `TextInputs` and then its own arguments.

    Users call it with the inputs one by one, and its signature names them so. What `AstroformerModel.forward` takes
    beside them is taken in the head's `**kwargs`; any other keyword argument is an error.

    Args:
        keywords (`str`): arguments of its loss that the head takes in its `**kwargs`.
        returns_cache (`bool`): whether its output has a cache; others' decoders make none, unless they are asked to.
    """

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        def with_named_inputs(
            self: Any,
            input_ids: Any = None,
            attention_mask: Any = None,
            token_type_ids: Any = None,
            position_ids: Any = None,
            inputs_embeds: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            inputs = TextInputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
            if not (returns_cache or args or {"cache", "use_cache"} & kwargs.keys()):
                kwargs["use_cache"] = False
            return forward(self, inputs, *args, **kwargs)

        found = inspect.signature(forward)
        own_self, _, *others = found.parameters.values()
        parameters = [own_self, *inspect.signature(TextInputs).parameters.values(), *others]
        named: Any = functools.wraps(forward)(with_named_inputs)
        named.__signature__ = found.replace(parameters=parameters)
        named.__annotations__ = {p.name: p.annotation for p in parameters[1:]} | {"return": found.return_annotation}
        del named.__wrapped__  # its signature is not what users see
        return takes_cache(checks_keywords(*keywords, beside=AstroformerModel.forward)(can_return_tuple(named)))

    return decorate


class AstroformerTextHead(AstroformerPreTrainedModel):
    """A head on a text model. Its forward encodes, computes logits, then a loss if there are labels.

    Heads whose loss is the library's say which with `loss_type`: it would go by the name of the class, which a subclass
    need not keep.
    """

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        self.astroformer = AstroformerModel(config)


def recorded(outputs: AstroformerBaseModelOutput) -> dict[str, Any]:
    """What every head returns of its model's outputs: hidden states and attention maps if asked for, and the memory."""
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", "memory")}


def classifier_dropout(config: AstroformerBaseConfig) -> nn.Dropout:
    """The dropout before a classifier."""
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


# Trainer's label smoothing shifts the labels of the causal language models that are listed here by name, and pipelines
# look here for what they support; the Auto classes' own registration does not reach this list.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["astroformer"] = TEXT_MODELS["AutoModelForCausalLM"]

has_library_signature: Any = functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # `generate` looks at it


class AstroformerForCausalLM(AstroformerTextHead, GenerationMixin):
    """A decoder and a language-model head on it: predicts the next token. Its configuration is made `is_decoder`.

    Generating takes the same time and memory for every token, however long the text has become, with
    `attention_type` "neuron_astrocyte" and "linear".
    """

    _tied_weights_keys = {"lm_head.weight": "astroformer.embeddings.word_embeddings.weight"}

    def __init__(self, config: AstroformerConfig) -> None:
        if not config.is_decoder:
            config = copy.deepcopy(config)
            config.is_decoder = True
            config.validate_architecture()
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]  # sums cannot take back a token, as assisted generation asks of a cache
        return self.config.attention_type != "softmax"

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        kind, cache = generation_config.cache_implementation, model_kwargs.get(CACHE_NAME)
        refuse_lost_prompts(self)
        generation_config.use_cache = model_kwargs["use_cache"] = generation_config.use_cache is not False
        check_generation(self.config, generation_config.use_cache, cache, model_kwargs.get("memory"))
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
        library: Any = super()
        return library._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    @has_library_signature
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # how many tokens are not in the cache, of which the library takes 0 or fewer from the wrong end
        num_new = kwargs.get("next_sequence_length")
        if num_new is not None and num_new <= 0:
            past_length = kwargs[CACHE_NAME].get_seq_length()
            raise ValueError(
                f"the prompt has no token beyond the {past_length} in the cache. Give the whole text so far, the "
                "tokens in the cache and new ones; or the new ones alone, with an attention_mask that covers those in "
                "the cache as well"
            )
        library: Any = super()
        prepared = library.prepare_inputs_for_generation(*args, **kwargs)
        if (cache := prepared.get(CACHE_NAME)) is not None and cache.get_seq_length():
            prepared.pop("memory", None)  # of before the prompt, which the cache has taken over
        return prepared

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: continuous batching keeps keys and values in pages, which this model has not."""
        raise NotImplementedError(NO_CONTINUOUS_BATCHING)

    continuous_batching_context_manager = generate_batch = init_continuous_batching

    @head_forward("shift_labels", "ignore_index", returns_cache=True)
    def forward(
        self,
        inputs: TextInputs,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        *,
        logits_to_keep: int | torch.Tensor = 0,
        memory: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerCausalLMOutputWithPast:
        """Predicts, at every token, the next one.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cache, use_cache: see
                `AstroformerModel.forward`. In training no state is returned unless `use_cache` asks for it.
            memory (`torch.Tensor`, *optional*): see there. `generate` takes it, too, as what came before the prompt.
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
        outputs = self.astroformer(*inputs, cache=cache, use_cache=use_cache, memory=memory, return_dict=True, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:2], self.config.vocab_size, "vocab_size", loss_arguments)
            shape = outputs.last_hidden_state.shape[:2]
            labels = without_first_tokens(labels, shape, kept, inputs, kwargs, loss_arguments)
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        state = {CACHE_NAME: getattr(outputs, CACHE_NAME)}
        return AstroformerCausalLMOutputWithPast(loss=loss, logits=logits, **state, **recorded(outputs))


class AstroformerForMaskedLM(AstroformerTextHead):
    """An encoder and a language-model head on it: predicts the tokens behind the mask."""

    _tied_weights_keys = {"lm_head.weight": "astroformer.embeddings.word_embeddings.weight"}

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForMaskedLM"
        if config.is_decoder:
            raise ValueError("AstroformerForMaskedLM needs a model that sees both sides, got is_decoder=True")
        self.transform = AstroformerTransform(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @head_forward("ignore_index")
    def forward(
        self,
        inputs: TextInputs,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerMaskedLMOutput:
        """Predicts the token at every place.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            labels (`torch.LongTensor`, *optional*): `(batch, length)` tokens to predict; -100 is ignored, and, of a
                model that reads in segments, padding, which it does not read.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): see `AstroformerForCausalLM.forward`.

        Returns:
            `MaskedLMOutput` with `logits` of shape `(batch, length, vocab_size)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        loss_arguments = pop_loss_arguments(kwargs)
        outputs = self.astroformer(*inputs, return_dict=True, **kwargs)
        logits = self.lm_head(self.transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:2], self.config.vocab_size, "vocab_size", loss_arguments)
            if self.config.segment_length is not None and inputs.attention_mask is not None:
                # the transform's norm, given the 0 that stands there, would multiply gradients by a million
                labels = labels.masked_fill(inputs.attention_mask == 0, loss_arguments.get("ignore_index", -100))
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        return AstroformerMaskedLMOutput(loss=loss, logits=logits, **recorded(outputs))


class AstroformerForSequenceClassification(AstroformerTextHead):
    """Encoder, pooling and a linear classifier, for single-label and multi-label classification and for regression."""

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        check_pooling(config)
        self.num_labels = cast(int, config.num_labels)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @head_forward()
    def forward(
        self,
        inputs: TextInputs,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerSequenceClassifierOutput:
        """Classifies a batch of sequences.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: see `AstroformerModel.forward`.
            labels (`torch.Tensor`, *optional*): `(batch,)` class indices (-100 is ignored), `(batch, num_labels)` from
                0 to 1 (multi-label), or `(batch,)` or `(batch, num_labels)` targets (regression), of any dtype that
                holds them. `config.problem_type` says which; unset, one label means regression, whole numbers
                classes, others multi-label, and that is written into the configuration.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of label entries that the loss is a mean
                over, where a batch is accumulated in parts; `Trainer` gives it. By default those of this call.
            cache: see `AstroformerModel.forward`. In the signature because prefix tuning asks whether it is there.

        Returns:
            `SequenceClassifierOutput` with `logits` of shape `(batch, num_labels)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        outputs = self.astroformer(*inputs, cache=cache, return_dict=True, **kwargs)
        check_pooled_rows(kwargs.get("memory"), inputs.attention_mask)
        hidden_states = outputs.last_hidden_state
        refuse_packed_rows("sequence classification", hidden_states, inputs.attention_mask, inputs.position_ids, kwargs)
        pooled = pool(hidden_states, inputs.attention_mask, self.config.pooling)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config, num_items_in_batch)
        return AstroformerSequenceClassifierOutput(loss=loss, logits=logits, **recorded(outputs))


class AstroformerForTokenClassification(AstroformerTextHead):
    """A linear classifier on every token's hidden state."""

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForTokenClassification"
        self.num_labels = cast(int, config.num_labels)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @head_forward("ignore_index")
    def forward(
        self,
        inputs: TextInputs,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerTokenClassifierOutput:
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
        outputs = self.astroformer(*inputs, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:2], self.num_labels, "num_labels", loss_arguments)
            loss = self.loss_function(logits, labels, self.config, **loss_arguments)
        return AstroformerTokenClassifierOutput(loss=loss, logits=logits, **recorded(outputs))


class AstroformerForQuestionAnswering(AstroformerTextHead):
    """Finds where the answer to a question starts and ends in a text that follows it."""

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForQuestionAnswering"
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @head_forward()
    def forward(
        self,
        inputs: TextInputs,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerQuestionAnsweringModelOutput:
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
        outputs = self.astroformer(*inputs, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        refuse_packed_rows("question answering", hidden_states, inputs.attention_mask, inputs.position_ids, kwargs)
        start_logits, end_logits = self.qa_outputs(hidden_states).unbind(-1)
        loss = None
        if (start_positions is None) != (end_positions is None):
            raise ValueError("give both of start_positions and end_positions, or neither")
        if start_positions is not None:
            start_positions = answer_positions("start_positions", start_positions, *start_logits.shape)
            end_positions = answer_positions("end_positions", end_positions, *end_logits.shape)
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **loss_arguments)
        return AstroformerQuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **recorded(outputs)
        )


class AstroformerForMultipleChoice(AstroformerTextHead):
    """Scores each of several sequences, of which one is right."""

    def __init__(self, config: AstroformerConfig) -> None:
        super().__init__(config)
        check_pooling(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @head_forward()
    def forward(
        self,
        inputs: TextInputs,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple | AstroformerMultipleChoiceModelOutput:
        """Scores the choices.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as of `AstroformerModel.forward`,
                with a second dimension for the choices: `(batch, choices, length)` and so on. A memory has a row each.
            labels (`torch.LongTensor`, *optional*): `(batch,)` index of the right choice.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): see `AstroformerForCausalLM.forward`.

        Returns:
            `MultipleChoiceModelOutput` with `logits` of shape `(batch, choices)` and `loss` if there are labels.

        Raises:
            ValueError: for inputs or labels that do not fit; the message names the argument.
        """
        inputs, num_choices = flatten_choices(inputs)
        outputs = self.astroformer(*inputs, return_dict=True, **kwargs)
        check_pooled_rows(kwargs.get("memory"), inputs.attention_mask)
        hidden_states = outputs.last_hidden_state
        refuse_packed_rows("multiple choice", hidden_states, inputs.attention_mask, inputs.position_ids, kwargs)
        pooled = pool(hidden_states, inputs.attention_mask, self.config.pooling)
        logits = self.classifier(self.dropout(pooled)).view(-1, num_choices)
        loss = None
        if labels is not None:
            labels = class_labels(labels, logits.shape[:1], num_choices, "choices")
            loss = classification_loss(logits, labels, num_items_in_batch)
        return AstroformerMultipleChoiceModelOutput(loss=loss, logits=logits, **recorded(outputs))
