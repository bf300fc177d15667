# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Which keyword arguments a forward accepts beyond its signature. Any other is an error that names it, because silently
ignoring an argument gives a wrong answer.

None counts as not given, and is accepted under any name.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard, TypeVar

import torch
from transformers import Cache, PreTrainedConfig

from .library_compatibility import CACHE_NAME
from .traced_values import known_value


Forward = TypeVar("Forward", bound=Callable[..., Any])

# What other libraries pass to any model: which ones do, and how it is used.
FROM_LIBRARIES = {
    "assistant_tokenizer": "generate, which leaves it among what it hands on: it is not read",
    "cache_position": "generation loops written for older releases: it must agree with the cache",
    "is_causal": "sentence-transformers and others that turn decoders into encoders: it must agree with the model",
    "num_items_in_batch": "Trainer: the number of labels that a loss is averaged over; without a loss it is ignored",
    "output_attentions": "generate, peft: attention maps are returned",
    "output_hidden_states": "generate, peft: hidden states are returned",
    "return_dict": "generate, peft, sentence-transformers: an output with names, or a tuple",
    "tokenizer": "generate with stop_strings or token_healing, likewise",
    "use_cache": "generate, pipelines, trl: decoders return their state; other models have none",
}

# Several sequences in one row, as `DataCollatorWithFlattening` and trl's packing produce them.
PACKING_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")

# Passed only by continuous batching in transformers.
CONTINUOUS_BATCHING_KEYWORDS = (
    "block_table",
    "logits_indices",
    "max_seqlen_k",
    "max_seqlen_q",
    "read_index",
    "write_index",
)
NO_CONTINUOUS_BATCHING = (
    "continuous batching (generate_batch, ContinuousBatchingManager, cache_implementation='paged') is not supported by "
    "Astroformer models; use generate, with a batch padded on the left"
)


def checks_keywords(*names: str, beside: Any = None) -> Callable[[Forward], Forward]:
    """Decorator that makes a forward raise a TypeError for keyword arguments that it does not know.

    It knows those in its signature, those in `FROM_LIBRARIES`, and the following.

    Args:
        names (`str`): further names that it accepts in its `**kwargs`.
        beside (function, *optional*): a decorated forward that receives its `**kwargs`, whose arguments it accepts too.
    """

    def decorate(forward: Forward) -> Forward:
        own = {*names, *FROM_LIBRARIES, *inspect.signature(forward).parameters} - {"self", "kwargs"}
        known = frozenset(own if beside is None else own | beside.known_keywords)

        @functools.wraps(forward)
        def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name, value in kwargs.items():
                if value is not None and (name not in known or (isinstance(value, Cache) and name != "cache")):
                    raise _unexpected(f"{type(self).__name__}.forward()", name, value, known)
            return forward(self, *args, **kwargs)

        decorated: Any = checked
        decorated.known_keywords = known
        return decorated

    return decorate


def _unexpected(forward_name: str, name: str, value: Any, known: Collection[str]) -> TypeError:
    """The error for a keyword argument that a forward does not know."""
    if isinstance(value, Cache) and "cache" in known:
        return TypeError(f"{forward_name} got a {type(value).__name__} as {name!r}; give it as {CACHE_NAME!r}")
    if name in CONTINUOUS_BATCHING_KEYWORDS:
        return TypeError(f"{forward_name} got {name!r}: {NO_CONTINUOUS_BATCHING}")
    candidates = sorted(CACHE_NAME if keyword == "cache" else keyword for keyword in known)
    alike = difflib.get_close_matches(name, candidates, n=1)
    hint = f"; did you mean {alike[0]!r}?" if alike else ""
    return TypeError(f"{forward_name} got an unexpected keyword argument {name!r}{hint}")


def check_library_keywords(
    keywords: Mapping[str, Any], config: PreTrainedConfig, length: int = 0, past_length: int = 0
) -> None:
    """Raises a ValueError for library keywords that request something the model does not do.

    Args:
        keywords (`dict`): the keyword arguments of a forward beyond its signature.
        config (`AstroformerBaseConfig`): the model's configuration.
        length, past_length (`int`): number of tokens in the input and in the cache.
    """
    is_causal = keywords.get("is_causal")
    if is_causal is None:
        is_causal = getattr(config, "is_causal", None)
    if is_causal is not None and bool(is_causal) != config.is_decoder:
        raise ValueError(
            f"is_causal={is_causal!r} does not fit a model with is_decoder={config.is_decoder}, whose attention is "
            f"{'always' if config.is_decoder else 'never'} causal"
        )
    positions = keywords.get("cache_position")
    if may_look_at(positions) and positions.flatten().tolist() != list(range(past_length, past_length + length)):
        raise ValueError(
            f"cache_position must be the positions from {past_length}, the number of tokens in the cache, to "
            f"{past_length + length - 1}, got {positions.flatten().tolist()}"
        )


def may_wait_for(tensor: Any) -> TypeGuard[torch.Tensor]:
    """Whether `tensor` is a tensor whose values can be read; see `known_value`."""
    return isinstance(tensor, torch.Tensor) and known_value(lambda: tensor.flatten()[:1].sum()) is not None


def may_look_at(tensor: Any) -> TypeGuard[torch.Tensor]:
    """Whether they can also be read at no cost: anywhere but in main memory, reading would stall the device."""
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and may_wait_for(tensor)
