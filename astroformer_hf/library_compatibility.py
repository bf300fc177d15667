# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Differences between releases of transformers, so that the rest of the package needs no case distinctions; and every
name in transformers and torch that the package uses without a stability guarantee.

Up to 5.23, a decoder's cache is called `past_key_values`, in arguments and in outputs; from 5.24 on, `cache`. In this
package, the argument is `cache`, and `takes_cache` makes a forward accept the name of the installed release. Releases
are told apart by their features, never by their version number.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import output_capturing
from transformers.utils.deprecation import deprecate_kwarg


Forward = TypeVar("Forward", bound=Callable[..., Any])
Module = TypeVar("Module", bound=torch.nn.Module)

CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = CACHE_NAMES["cache" not in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}]


def inside_adapters(module: torch.nn.Module, module_class: type[Module]) -> Module:
    """The module of a class that adapters may have been put around, as peft puts them around parameters."""
    if isinstance(module, module_class):
        return module
    return next(inner for inner in module.modules() if isinstance(inner, module_class))


# Each name that is private or may change without notice, and what would replace it.
PRIVATE_NAMES = {
    "torch._C._are_functorch_transforms_active": "a public way to ask whether torch.func transforms; there is none yet",
    "torch._assert_async": "a public assertion on the device; without it, a mask there is not checked",
    "transformers.GenerationMixin._prepare_cache_for_generation": "a hook that names a model's kind of cache; without "
    "it, `generate` creates a DynamicCache, which the forward rejects by name",
    "transformers.PreTrainedConfig._attn_implementation": "a public name of the implementation that was chosen",
    "transformers.PreTrainedModel._supports_flash_attn": "nothing: the library asks before it lets FlashAttention in",
    "transformers.PreTrainedModel._supports_sdpa": "nothing: likewise",
    "transformers.PreTrainedModel._init_weights": "the hook that every model outside transformers has",
    "transformers.PreTrainedModel._is_stateful": "`is_croppable` of the cache, once assisted generation checks it",
    "transformers.PreTrainedModel._no_split_modules": "nothing: it tells device maps and FSDP the units",
    "transformers.PreTrainedModel._skip_keys_device_placement": "nothing: without it, a cache moves with the hidden "
    "states",
    "transformers.PreTrainedModel._tied_weights_keys": "nothing: it makes tied weights be saved once",
    "transformers.PreTrainedModel._can_compile_fullgraph": "nothing: without it, `generate` compiles no model",
    "transformers.PreTrainedModel._can_set_attn_implementation": "an error of the library's own where a model cannot "
    "use the implementation that is asked for",
    "transformers.PreTrainedModel._can_record_outputs": "as for `capture_outputs`, which reads it",
    "transformers.modeling_layers.GradientCheckpointingLayer": "torch.utils.checkpoint around each layer",
    "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "the Auto classes' registration, once "
    "Trainer's label smoothing and the pipelines use it",
    "transformers.utils.can_return_tuple": "`return_dict` handled in each forward",
    "transformers.utils.deprecation.deprecate_kwarg": "our own FutureWarning, until the old name is gone",
    "transformers.utils.hub.cached_file": "huggingface_hub's download, for folders and the Hub alike",
    "transformers.utils.hub.extract_commit_hash": "the same",
    "transformers.utils.output_capturing._active_collector": "every model handing on `output_attentions`",
    "transformers.utils.output_capturing.capture_outputs": "collecting hidden states and maps in the loop over layers",
}


def takes_cache(forward: Forward) -> Forward:
    """Decorates a forward that has an argument `cache`, or passes it on, to accept the installed release's name for it.

    From 5.24 on, the old name is accepted with the library's FutureWarning; before, `past_key_values` is the name in
    the signature, and `cache` is accepted too. Passing both is an error.
    """
    if CACHE_NAME == "cache":
        return deprecate_kwarg("past_key_values", "5.40.0", new_name="cache", raise_if_both_names=True)(forward)

    @functools.wraps(forward)
    def renamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            if "cache" in kwargs:
                raise ValueError("past_key_values and cache are two names of one argument; pass past_key_values only")
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(self, *args, **kwargs)

    found = inspect.signature(forward)
    parameters = [p.replace(name="past_key_values") if p.name == "cache" else p for p in found.parameters.values()]
    decorated: Any = renamed
    decorated.__signature__ = found.replace(parameters=parameters)
    return decorated


def collects_attention_maps() -> bool:
    """Whether the library collects the attention maps of the forward pass that is running.

    Models tell their attention so by a keyword, but not all of them do.
    """
    collector = getattr(output_capturing, "_active_collector", None)
    return collector is not None and "attentions" in (collector.get() or ())


def drops_cache(layer: Any) -> bool:
    """Whether gradient checkpointing by transformers would ignore this layer's cache.

    Up to 5.23 it does so in training mode, later only if gradients are enabled as well.
    """
    has_backward = torch.is_grad_enabled() or CACHE_NAME == "past_key_values"
    return layer.gradient_checkpointing and layer.training and has_backward


def refuse_lost_prompts(model: Any) -> None:
    """Raises a ValueError where `generate` would lose the prompts or prefixes that peft puts before a model's input: it
    looks the cache up by its name, and up to 0.21.2 knows the old one alone."""
    prepare = vars(model).get("prepare_inputs_for_generation")  # while peft generates, its own
    adapter = getattr(getattr(prepare, "__self__", None), "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False) and CACHE_NAME not in prepare.__func__.__code__.co_consts:
        raise ValueError(
            f"{type(adapter).__name__} does not go with generate here: this release of peft does not know that the "
            f"cache of transformers is called {CACHE_NAME!r}, and the prompts would be lost. Use a newer peft, or "
            "transformers 5.23"
        )
