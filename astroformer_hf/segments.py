# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Long documents: a text is read in segments, and an astrocyte's memory goes from each to the next.

Segment t is read behind M memory tokens, which carry what the segments before it left. Where they end up is the memory
of the next segment:

    mem_{t+1} = retention(t) * mem'_{t+1} / rms(mem'_{t+1})                                                  (M x D)

mem' are the hidden states at the memory tokens, brought to a root mean square of 1, so that the retention is the
strength of the memory. It acts on the residual stream that the next segment adds to: the weaker the memory, the more of
it is overwritten. A normalisation behind it would undo it. In a causal model the memory tokens, which see nothing but
each other at the head of the segment, stand at its end once more, and it is those that the next segment is given.

The retention follows from the slow process of the macro model (`docs/macro_model.md`), which saturates: after t
segments it holds 1 - q^t. "ltp" is the share of all T segments that segment t brings, "streaming" its share of what is
held after it, which needs no T.

Training by "replay" (AMRB) keeps the memories and computes each segment a second time in the backward pass. This is
gradient checkpointing at the borders of segments: the gradients are those of "full", dropout included.

Source: M. Z. A. Mia, M. Bal and A. Sengupta, "RMAAT", ICLR 2026, arXiv 2601.00426. The tokens at the end of a causal
segment: A. Bulatov, Y. Kuratov and M. Burtsev, "Recurrent Memory Transformer", NeurIPS 2022.

Letters in shape comments: B batch, N tokens, M memory tokens, D hidden size.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from .astrocyte_code import LearnedAstrocyteCode, upcast
from .cache_astroformer import AstroformerCache
from .configuration_astroformer import AstroformerBaseConfig
from .forward_keywords import may_look_at, may_wait_for
from .input_checks import TextInputs
from .library_compatibility import inside_adapters
from .token_layout import order_of_tokens, sequence_layout
from .traced_values import held_sizes, is_exporting, known_value


# What the slow process loses in a segment, -log(q) = tau gamma_l / tau_pl of docs/macro_model.md.
LEAK_PER_SEGMENT = 1 / 6

# A streaming retention falls no further, so that a memory in half precision is never taken for none.
LEAST_RETENTION = 1e-4

Pick = Callable[[torch.Tensor | None], Any]  # from inputs `(1 or B, N, ...)`, those of some of the tokens
Embed = Callable[[Pick, torch.Tensor], torch.Tensor]  # and with the positions of these, their embeddings


def retention_of_share(segment: int, num_segments: int | torch.Tensor) -> float | torch.Tensor:
    """ "ltp": (1 - q) q^(t - 1) / (1 - q^T), what segment t (from 1 on) brings of all that T segments do."""
    brought = math.expm1(-LEAK_PER_SEGMENT) * math.exp(-LEAK_PER_SEGMENT * (segment - 1))
    if torch.is_tensor(num_segments):
        return brought / torch.expm1(-LEAK_PER_SEGMENT * num_segments.clamp(min=1).float())
    return brought / math.expm1(-LEAK_PER_SEGMENT * num_segments)


def next_streaming_retention(retention: torch.Tensor) -> torch.Tensor:
    """ "streaming": r_{t+1} = q r_t / (1 + q r_t) for r_t = (1 - q) q^(t - 1) / (1 - q^t), the share of what is held
    after segment t that t has brought. 0 stands for nothing before, which 1 follows."""
    kept = math.exp(-LEAK_PER_SEGMENT) * retention
    return torch.where(retention > 0, (kept / (1 + kept)).clamp(min=LEAST_RETENTION), 1.0)


class AstroformerMemory(nn.Module):
    """What an astrocyte keeps from segment to segment: M memory tokens.

    They are learned embeddings, to which the memory is added. A memory of nothing but 0 stands for none. Of any other,
    the root mean square is the retention that was applied last, from which a streaming one follows.
    """

    def __init__(self, config: AstroformerBaseConfig) -> None:
        super().__init__()
        self.config = config  # of which the retention may be changed, see `check_fields`
        self.embeddings = nn.Parameter(torch.empty(config.num_memory_tokens, config.hidden_size))

    def begin(self, memory: torch.Tensor | None, texts: "Texts") -> torch.Tensor:
        """The memory before the first segment, `(batch, M, hidden_size)`: the given one, or none."""
        # of the embeddings only what they are like: an offloaded parameter is where this module's forward reads it
        like: dict[str, Any] = {"dtype": self.embeddings.dtype, "device": texts.device}
        return torch.zeros(texts.batch_size, *self.embeddings.shape, **like) if memory is None else memory.to(**like)

    def forward(self, memory: torch.Tensor) -> torch.Tensor:
        """The embeddings of the memory tokens, `(batch, M, hidden_size)`, of a memory of that shape."""
        return self.embeddings + memory

    def store(
        self, hidden_states: torch.Tensor, memory: torch.Tensor, retention: torch.Tensor | float | None
    ) -> torch.Tensor:
        """The next memory.

        Args:
            hidden_states (`torch.Tensor`): `(batch, M, hidden_size)`, of the memory tokens after a segment.
            memory (`torch.Tensor`): likewise, the one before it. Its strength says which segment that was.
            retention (`torch.Tensor` or `float`, *optional*): by the share of all segments, for "ltp": `(batch, 1)` or
                one for all.
        """
        if self.config.num_memory_tokens == 0:
            return memory
        unit = nn.functional.rms_norm(upcast(hidden_states), hidden_states.shape[-1:])
        if self.config.memory_retention == "streaming":
            strength = upcast(memory.detach()).to(unit.device).square().mean((1, 2)).sqrt()  # (B,)
            retention = next_streaming_retention(strength)[:, None]
        elif self.config.memory_retention == "none":
            retention = 1.0
        assert retention is not None, "only an encoder, which reads whole texts, may have 'ltp'"
        if torch.is_tensor(retention):
            retention = retention.to(unit)[..., None]
        return (retention * unit).to(memory.device, hidden_states.dtype)


def check_memory(
    memory: Any, config: AstroformerBaseConfig, batch_size: int | None = None, past_length: int = 0
) -> None:
    """Raises a ValueError if a forward cannot go on from a memory that it is given, for so many texts, if it is known,
    and after so many tokens in a cache."""
    if memory is None:
        return
    if config.segment_length is None:
        raise ValueError("memory is for models that read in segments; this one has segment_length=None")
    shape = (batch_size, config.num_memory_tokens, config.hidden_size)
    if not torch.is_tensor(memory) or memory.shape[1:] != shape[1:] or batch_size not in (None, memory.shape[0]):
        got = tuple(memory.shape) if torch.is_tensor(memory) else f"a {type(memory).__name__}"
        raise ValueError(f"memory must have the shape (batch, num_memory_tokens, hidden_size), {shape}, got {got}")
    if memory.layout != torch.strided:
        raise ValueError(f"memory must be a dense tensor, got one of layout {memory.layout}")
    if not memory.is_floating_point():
        raise ValueError(f"memory must be of a floating dtype, as the model's hidden states, got {memory.dtype}")
    if config.memory_retention == "ltp":
        raise ValueError(
            "memory is not for memory_retention 'ltp', which goes by the number of segments in the whole text: give "
            "the text in one call, or use 'streaming'"
        )
    if past_length > 0:
        raise ValueError(
            f"memory does not go with the {past_length} tokens in the cache, which has its own: leave it out"
        )


def check_segments_of(
    inputs: TextInputs, config: AstroformerBaseConfig, document_ids: torch.Tensor | None, cache: Any, is_packed: bool
) -> None:
    """Raises a ValueError if texts cannot be cut into segments, which go by the real tokens of each row, counted.

    Args:
        inputs (`TextInputs`): of a forward, checked otherwise.
        config (`AstroformerBaseConfig`): of a model that reads in segments.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)`, of rows that may hold several documents.
        cache (`AstroformerCache`, *optional*): what the inputs go on from.
        is_packed (`bool`): whether it is said by other inputs that they do.
    """
    if document_ids is not None and (is_packed or may_wait_for(document_ids)):
        raise ValueError(
            "rows of several documents (position_ids that restart at 0, seq_idx, cu_seq_lens_q) are not for models "
            f"that read in segments (segment_length={config.segment_length}): give each a row"
        )
    position_ids, attention_mask = inputs.position_ids, inputs.attention_mask
    if position_ids is None:
        return
    message = (
        "position_ids must count the real tokens of each text from 0 on, where a model reads in segments "
        f"(segment_length={config.segment_length}); leave them out. `generate` makes them of attention_mask: pad "
        "prompts on the left, and give each a token"
    )
    if torch.jit.is_tracing() or is_exporting():
        raise ValueError(f"{message}: in a graph they cannot be checked")
    length = position_ids.shape[-1]
    if length == 1 and not may_look_at(position_ids):
        return  # a step of decoding waits for nothing
    past_length: Any = 0 if cache is None else cache.get_seq_length()
    past_counted = cache.layers[0].counted if past_length > 0 else None
    before = past_length if past_counted is None else past_counted
    expected = torch.arange(length, device=position_ids.device)[None] + before
    differs = position_ids.view(-1, length) != expected
    if attention_mask is not None:
        real = attention_mask[:, past_length:] != 0
        if past_counted is None:
            before = (attention_mask[:, :past_length] != 0).sum(-1, keepdim=True)
        differs = (position_ids != real.long().cumsum(-1) - 1 + before) & real
    if torch.compiler.is_compiling():
        torch._assert_async(~differs.any(), message)
    elif differs.any():
        raise ValueError(message)


def check_fields(model: Any) -> None:
    """Raises a ValueError if fields of a model that reads in segments were set to what it was not made for."""
    if torch.compiler.is_compiling():
        return
    config = model.config
    config.validate_architecture()
    num_memory_tokens = memory_of(model).embeddings.shape[0]
    if config.num_memory_tokens != num_memory_tokens:
        raise ValueError(
            f"num_memory_tokens={config.num_memory_tokens} was set on a model that was made with {num_memory_tokens}: "
            "make one of a configuration that has it"
        )
    for code in model.layers[0].attention.modules():
        if isinstance(code, LearnedAstrocyteCode) and code.relative_embedding.shape[1] < config.num_table_positions:
            raise ValueError(
                f"segment_length={config.segment_length} was set on a model whose learned astrocyte code has "
                f"{code.relative_embedding.shape[1]} rows, and takes {config.num_table_positions} with the memory "
                "tokens: make one of a configuration that has it, or use astrocyte_code 'sinusoidal' or 'activity'"
            )


def check_pooled_rows(memory: torch.Tensor | None, attention_mask: torch.Tensor | None) -> None:
    """Raises a ValueError if a head would answer for texts that ended before the piece which comes now: with a memory
    of what came before, they have an answer, which a vector of nothing is not."""
    if memory is None or attention_mask is None or not (may_look_at(attention_mask) or may_wait_for(attention_mask)):
        return
    ended = (attention_mask == 0).all(-1).nonzero().squeeze(1).tolist()
    if ended:
        raise ValueError(
            f"attention_mask has no real token in row {', '.join(map(str, ended))} of the batch, which goes on from a "
            "memory: its answer is that of the piece with its last token. Keep that, and leave the row out (of the "
            "memory, too)"
        )


def use_of_segment_cache(config: AstroformerBaseConfig, use_cache: bool | None, is_given: bool = False) -> bool | None:
    """Whether a model that reads in segments uses a cache: by default not while gradients are on, nor in a graph.

    Args:
        config (`AstroformerBaseConfig`): of the model.
        use_cache (`bool`, *optional*): what is asked for.
        is_given (`bool`): whether there is a cache already.

    Raises:
        ValueError: it is asked to, and cannot.
    """
    if use_cache is None and (torch.is_grad_enabled() or is_exporting() or config.attention_type == "softmax"):
        use_cache = False
    if not is_given and not (config.is_decoder and use_cache):
        return use_cache
    if config.attention_type == "softmax":
        raise ValueError(
            "use_cache must be False, and there must be no cache, for attention_type 'softmax' with segment_length: "
            "keys and values, also those that prefix tuning brings, would have to be dropped where a segment ends"
        )
    if not isinstance(config.memory_backprop, str) and torch.is_grad_enabled():
        raise ValueError(
            f"use_cache must be False, or gradients off, with memory_backprop={config.memory_backprop}: a cache does "
            "not know how many segments are to come"
        )
    return use_cache


def check_generation(config: AstroformerBaseConfig, use_cache: bool, cache: Any, memory: Any) -> None:
    """Raises a ValueError if `generate` is given what does not go with segments, or with their absence."""
    if config.segment_length is not None:
        use_of_segment_cache(config, use_cache)
    check_memory(memory, config, past_length=cache.get_seq_length() if isinstance(cache, Cache) else 0)


def refuse_recording(keywords: Mapping[str, Any], config: AstroformerBaseConfig) -> None:
    """Raises a ValueError if what layers return is asked for, of a model that reads in segments."""
    if config.segment_length is None:
        return
    for name in ("output_attentions", "output_hidden_states"):
        value = keywords.get(name)
        if getattr(config, name) if value is None else value:
            raise ValueError(
                f"{name} must be False where a model reads in segments (segment_length={config.segment_length}): "
                "layers run once for each segment"
            )


# --------------------------------------------------------------------------------------------------------------------
# A whole text
# --------------------------------------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """The tokens of a batch in the order in which segments take them.

    Attributes:
        batch_size, length (`int`): of the batch, padding included.
        device (`torch.device`): of the tokens.
        num_real: `(batch, 1)`, real tokens of each text; None if all are.
        order, rank: as of `SequenceLayout`; None if all are real.
        padding_mask: `(batch, length)` bool, True where a token is real; None if all are.
    """

    batch_size: int
    length: int
    device: torch.device
    num_real: torch.Tensor | None = None
    order: torch.Tensor | None = None
    rank: torch.Tensor | None = None
    padding_mask: torch.Tensor | None = None

    def pick(self, start: int, end: int) -> Pick:
        """What takes the tokens from place `start` to `end` out of inputs."""
        if self.order is None:
            return lambda x: x if x is None else x[:, start:end]
        index = self.order[:, start:end]
        return lambda x: x if x is None else take_tokens(x, index)

    def put_back(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """From the order of the segments to that of the inputs; 0 at padding."""
        if self.rank is None:
            return hidden_states
        assert self.padding_mask is not None
        return take_tokens(hidden_states, self.rank).masked_fill(~self.padding_mask[..., None], 0)


def texts_of(tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Texts:
    """The `Texts` of `(batch, length, ...)`; `attention_mask` is `(batch, length)`, nonzero where a token is real."""
    batch_size, length, device = *tokens.shape[:2], tokens.device
    (length,) = held_sizes([length])
    padding_mask = None if attention_mask is None else attention_mask != 0
    if padding_mask is None or known_value(padding_mask.all):
        return Texts(batch_size, length, device)
    order, rank = order_of_tokens(padding_mask)
    return Texts(batch_size, length, device, padding_mask.sum(-1, keepdim=True), order, rank, padding_mask)


def take_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of `(1 or batch, length, ...)` at `index`, `(batch, number)`."""
    x = x.expand(index.shape[0], *x.shape[1:])
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def read_in_segments(
    model: Any, embed: Embed, texts: Texts, memory: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads texts segment by segment, each cut into segments of its own real tokens.

    Args:
        model (`AstroformerEncoder`): of which `encode` and `memory` are used.
        embed: from what picks tokens, and their positions in the segment, to their embeddings.
        texts (`Texts`): which tokens are real.
        memory (`torch.Tensor`, *optional*): `(batch, M, hidden_size)`, of what came before.

    Returns:
        Hidden states `(batch, length, hidden_size)`, 0 at padding, and the memory after the last segment of each text.
    """
    config, size = model.config, model.config.segment_length
    check_fields(model)
    memory = memory_of(model).begin(memory, texts)
    num_segments: Any = -(-texts.length // size)
    own_segments: Any = num_segments if texts.num_real is None else (texts.num_real + size - 1) // size  # (B, 1)
    is_transformed = torch._C._are_functorch_transforms_active()  # which take no checkpoints
    replays = config.memory_backprop != "full" and torch.is_grad_enabled()
    replays = replays and not (is_transformed or torch.jit.is_tracing())
    elsewhere = tensors_elsewhere(model, texts.device) if replays else []

    def read(memory: torch.Tensor, index: int, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * size
        end = min(start + size, texts.length)
        retention = None
        if config.memory_retention == "ltp":
            retention = retention_of_share(index + 1, own_segments)
        mask = None if texts.num_real is None else torch.arange(start, end, device=texts.device) < texts.num_real
        hidden_states, after = _read_segment(
            model, embed, texts.pick(start, end), memory, end - start, mask, retention=retention
        )
        if mask is not None:  # where nothing is read, nothing changes
            after = torch.where(mask[:, :1, None], after, memory)
        return hidden_states, after

    parts = []
    for index in range(num_segments):
        if index > 0:
            memory = _with_gradients_across(memory, own_segments - index, config.memory_backprop)
        if replays:
            part, memory = checkpoint(read, memory, index, *elsewhere, use_reentrant=False)
        else:
            part, memory = read(memory, index)
        parts.append(part)
    return texts.put_back(torch.cat(parts, dim=1)), memory


def memory_of(model: Any) -> AstroformerMemory:
    """The memory of a model. Its forward is called as `model.memory(...)`, through what adapters put around it.

    Raises:
        ValueError: the model was made without one.
    """
    if not hasattr(model, "memory"):
        raise ValueError(
            f"segment_length={model.config.segment_length} was set on a model that was made without segments: give it "
            "to from_pretrained, or make the model of a configuration that has it"
        )
    return inside_adapters(model.memory, AstroformerMemory)


def tensors_elsewhere(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    """A tensor on each other device of a model: `checkpoint` keeps the random states of the devices of what it is
    given, and a replay is to draw the same dropout on all of them."""
    found = {x.device: x.detach() for x in model.parameters() if x.device.type not in ("cpu", "meta")}
    return [x for own, x in found.items() if own != device]


def _read_segment(
    model: Any,
    embed: Embed,
    pick: Pick,
    memory: torch.Tensor,
    length: int,
    mask: torch.Tensor | None = None,
    *,
    retention: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states of a segment of `length` tokens, real where `mask` says so, and the memory after it."""
    causal, num_memory_tokens = model.config.is_decoder, model.config.num_memory_tokens
    behind = num_memory_tokens if causal else 0
    if mask is not None:
        mask = nn.functional.pad(mask, (num_memory_tokens, behind), value=True)
    layout = sequence_layout(num_memory_tokens + length + behind, memory.device, mask, causal=causal)
    own = slice(num_memory_tokens, num_memory_tokens + length)
    embeddings = embed(pick, layout.position_ids[:, own])
    recalled = model.memory(memory).to(embeddings)
    hidden_states = model.encode(torch.cat([recalled, embeddings] + [recalled] * causal, dim=1), layout, False)
    of_memory = hidden_states[:, own.stop :] if causal else hidden_states[:, :num_memory_tokens]
    return hidden_states[:, own], memory_of(model).store(of_memory, memory, retention)


def _with_gradients_across(memory: torch.Tensor, segments_left: Any, backprop: str | int) -> torch.Tensor:
    """A memory before the last `segments_left` segments, `(batch, 1)` or one for all, without its history where no
    gradient is to go on. Counted from the end of each text, k + 1 segments at a time are linked by k memories."""
    if isinstance(backprop, str) or not memory.requires_grad:
        return memory
    is_border = (segments_left % (backprop + 1) == 0) & (segments_left > 0)  # nothing is read after the last
    if not torch.is_tensor(is_border):
        return memory.detach() if is_border else memory
    return torch.where(is_border[..., None], memory.detach(), memory)


# --------------------------------------------------------------------------------------------------------------------
# What continues a text: a decoder with a cache
# --------------------------------------------------------------------------------------------------------------------


def continue_in_segments(
    model: Any, embed: Embed, texts: Texts, memory: torch.Tensor | None, cache: AstroformerCache
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Goes on with texts from a cache, which holds the memory and the synapses of the segment that is open.

    Args:
        model, embed: as of `read_in_segments`; a causal model.
        texts (`Texts`): the tokens that come now.
        memory (`torch.Tensor`, *optional*): `(batch, M, hidden_size)`, of what came before; for an empty cache.
        cache (`AstroformerCache`): is written to.

    Returns:
        Hidden states `(batch, length, hidden_size)`, 0 at padding, and the memory if the text ended here; None after a
        single token that continues a text.
    """
    size = model.config.segment_length
    past_length, counted = cache.get_seq_length(), cache.layers[0].counted
    if past_length == 0 or texts.length > 1:  # not once for each token that is generated
        check_fields(model)
    if cache.layers[0].memory is None:
        _open_segment(model, cache, memory_of(model).begin(memory, texts))
    is_even = counted is None and texts.num_real is None
    taken: Any
    if is_even:
        taken, hidden_states = past_length % size, []
        start = 0
        while start < texts.length:
            end = min(start + size - taken, texts.length)
            layout = sequence_layout(
                end - start, texts.device, causal=True, past_length=model.config.num_memory_tokens + taken
            )
            embeddings = embed(texts.pick(start, end), layout.position_ids)
            hidden_states.append(model.encode(embeddings, layout, False, cache))
            taken, start = taken + end - start, end
            if taken == size:
                _open_segment(model, cache, _closed(model, cache, taken))
                taken = 0
        read = torch.cat(hidden_states, dim=1)
    else:
        num_real = torch.full((texts.batch_size, 1), texts.length, device=texts.device)
        num_real = num_real if texts.num_real is None else texts.num_real
        counted = (
            num_real.new_full((texts.batch_size, 1), past_length) if counted is None else counted.to(num_real.device)
        )
        read, taken = _continue_unevenly(model, embed, texts, cache, num_real, counted % size)
        counted = counted + num_real
    for layer in cache.layers:  # the tokens of the text, and not the memory's
        layer.length, layer.counted = past_length + texts.length, counted
    after: Any = None
    if texts.length > 1 or past_length == 0:
        after = cache.layers[0].memory
        if not is_even:
            after = torch.where(taken[..., None] > 0, _closed(model, cache, taken), after)
        elif taken > 0:
            after = _closed(model, cache, taken)
    return read, after


def _continue_unevenly(
    model: Any, embed: Embed, texts: Texts, cache: AstroformerCache, num_real: torch.Tensor, taken: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts whose segments end at different tokens; `num_real` come now and `taken` are in the open segment, both
    `(batch, 1)`. Returns the hidden states in the order of the inputs, and `taken` afterwards."""
    size, most = model.config.segment_length, texts.length
    if texts.device.type == "meta":
        raise ValueError(
            "where texts of a padded batch end their segments is not known on the device 'meta': give use_cache=False"
        )
    done = torch.zeros_like(taken)
    places = torch.arange(most, device=texts.device)
    read = None
    past_length = model.config.num_memory_tokens + size - 1  # or fewer, which `past_counted` says
    while True:
        num_now = torch.minimum(size - taken, num_real - done)  # (B, 1)
        width = 1 if most == 1 else max(1, int(num_now.max()))  # where all is padding, one token that is none
        real = places[:width] < num_now
        place = (done + places[:width]).clamp(max=most - 1)  # in the order of the segments
        index = place if texts.order is None else texts.order.gather(1, place)
        layout = sequence_layout(
            width,
            texts.device,
            nn.functional.pad(real, (past_length, 0), value=True),
            causal=True,
            past_length=past_length,
            past_counted=model.config.num_memory_tokens + taken,
        )
        positions = layout.position_ids
        embeddings = embed(lambda x, index=index: x if x is None else take_tokens(x, index), positions)  # type: ignore[misc]
        hidden_states = model.encode(embeddings, layout, False, cache).masked_fill(~real[..., None], 0)
        if read is None:
            read = hidden_states.new_zeros(texts.batch_size, most, hidden_states.shape[-1])
        read = read.scatter_add(1, index[..., None].expand_as(hidden_states), hidden_states)
        taken, done = taken + num_now, done + num_now
        full = (taken == size).squeeze(1).nonzero().squeeze(1)
        if len(full) > 0:
            ended = cache.copy_rows(full)
            _open_segment(model, ended, _closed(model, ended, size))
            cache.put_rows(full, ended)
            taken = taken % size
        if most == 1 or not (done < num_real).any():
            return read, taken


def _closed(model: Any, cache: AstroformerCache, taken: torch.Tensor | int) -> torch.Tensor:
    """The memory if the open segment, of which `taken` tokens have been read, ended now; the cache stays as it is."""
    memory: Any = cache.layers[0].memory
    num_memory_tokens = model.config.num_memory_tokens
    if num_memory_tokens == 0:
        return memory
    is_even = not torch.is_tensor(taken)
    layout = sequence_layout(
        num_memory_tokens,
        memory.device,
        causal=True,
        past_length=num_memory_tokens + (taken if is_even else model.config.segment_length),
        past_counted=None if is_even else num_memory_tokens + taken,
    )
    hidden_states = model.encode(_recalled(model, memory), layout, False, cache.copy_rows())
    return memory_of(model).store(hidden_states, memory, None)


def _open_segment(model: Any, cache: AstroformerCache, memory: torch.Tensor) -> None:
    """Begins a segment: its synapses hold what the memory tokens at its head imprint."""
    for layer in cache.layers:
        layer.forget_segment()
    cache.layers[0].memory, cache.layers[0].segment_length = memory, model.config.segment_length
    if model.config.num_memory_tokens > 0:
        layout = sequence_layout(model.config.num_memory_tokens, memory.device, causal=True)
        model.encode(_recalled(model, memory), layout, False, cache)


def _recalled(model: Any, memory: torch.Tensor) -> torch.Tensor:
    """The embeddings of the memory tokens, in the dtype that the parameters have."""
    return model.memory(memory.to(memory_of(model).embeddings.dtype))
