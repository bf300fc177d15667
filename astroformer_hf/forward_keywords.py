# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Which keyword arguments a forward takes beside those in its signature. Any other is an error that names it: what is
ignored without a word is a wrong answer.

None is as good as not given, and is taken under any name.
"""

import difflib
import functools
import inspect

import torch
from transformers import Cache

from .library_compatibility import CACHE_NAME
from .token_layout import known_value


# What the libraries around pass to any model: who does, and what becomes of it.
FROM_LIBRARIES = {
    "cache_position": "generation loops written for older releases: it must say what the cache says",
    "is_causal": "sentence-transformers and others that turn decoders into encoders: it must agree with the model",
    "num_items_in_batch": "Trainer: a loss is a mean over so many labels; a model without a loss has no use for it",
    "output_attentions": "generate, peft: attention maps are returned",
    "output_hidden_states": "generate, peft: hidden states are returned",
    "return_dict": "generate, peft, sentence-transformers: an output with names, or a tuple",
    "use_cache": "generate, pipelines, trl: decoders return their state; others have none",
}

# Sequences that lie behind one another in a row, as `DataCollatorWithFlattening` and trl's packing make them.
PACKING_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")

# What only the library's continuous batching passes.
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


def checks_keywords(*names, beside=None):
    """Decorator of a forward: a TypeError for any keyword argument but those in its signature, in `FROM_LIBRARIES`, and

    Args:
        names (`str`): more that it takes in its `**kwargs`.
        beside (function, *optional*): a forward that its `**kwargs` go on to, whose own arguments it takes as well.
    """

    def decorate(forward):
        known = {*names, *FROM_LIBRARIES, *inspect.signature(forward).parameters} - {"self", "kwargs"}
        known = frozenset(known if beside is None else known | beside.known_keywords)

        @functools.wraps(forward)
        def checked(self, *args, **kwargs):
            for name, value in kwargs.items():
                if value is not None and (name not in known or (isinstance(value, Cache) and name != "cache")):
                    raise _unexpected(f"{type(self).__name__}.forward()", name, value, known)
            return forward(self, *args, **kwargs)

        checked.known_keywords = known
        return checked

    return decorate


def _unexpected(forward_name, name, value, known):
    """The error for a keyword argument that a forward does not know."""
    if isinstance(value, Cache) and "cache" in known:
        return TypeError(f"{forward_name} got a {type(value).__name__} as {name!r}; give it as {CACHE_NAME!r}")
    if name in CONTINUOUS_BATCHING_KEYWORDS:
        return TypeError(f"{forward_name} got {name!r}: {NO_CONTINUOUS_BATCHING}")
    candidates = sorted(CACHE_NAME if keyword == "cache" else keyword for keyword in known)
    alike = difflib.get_close_matches(name, candidates, n=1)
    hint = f"; did you mean {alike[0]!r}?" if alike else ""
    return TypeError(f"{forward_name} got an unexpected keyword argument {name!r}{hint}")


def check_library_keywords(keywords, config, length=0, past_length=0):
    """Raises a ValueError for keywords of the library that ask for what a model does not do.

    Args:
        keywords (`dict`): the keyword arguments of a forward beyond its signature.
        config (`AstroformerBaseConfig`): the model's.
        length, past_length (`int`): tokens of the input, and in the cache.
    """
    is_causal = keywords.get("is_causal")
    if is_causal is None:
        is_causal = getattr(config, "is_causal", None)
    if is_causal is not None and bool(is_causal) != config.is_decoder:
        raise ValueError(
            f"is_causal={is_causal!r} does not fit a model with is_decoder={config.is_decoder}, whose attention is "
            f"{'causal' if config.is_decoder else 'not causal'} always"
        )
    positions = keywords.get("cache_position")
    if may_look_at(positions) and positions.flatten().tolist() != list(range(past_length, past_length + length)):
        raise ValueError(
            f"cache_position must be the positions from {past_length}, which the cache says, to "
            f"{past_length + length - 1}, got {positions.flatten().tolist()}"
        )


def may_wait_for(tensor):
    """Whether the values of a tensor, or None, can be had, as of `known_value`."""
    return isinstance(tensor, torch.Tensor) and known_value(lambda: tensor.flatten()[:1].sum()) is not None


def may_look_at(tensor):
    """Whether they can be had at no cost, too: elsewhere than in main memory, a look would stall the device."""
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and may_wait_for(tensor)
