# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What differs between the releases of transformers, so that the models read as if there were one; and every name of
transformers and torch that they lean on though nothing promises that it stays.

Up to 5.23 the cache of a decoder is called `past_key_values`, in arguments and in outputs; from 5.24 on `cache`. Here
the argument is `cache`, and `takes_cache` makes a forward known under the name of the installed release. What is
installed is asked of the library's features, never of its number.
"""

import dataclasses
import functools
import inspect

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg


CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = CACHE_NAMES["cache" not in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}]

# Each name that is private, or that the library changes without notice, and what would replace it.
PRIVATE_NAMES = {
    "torch._C._are_functorch_transforms_active": "a public question whether torch.func transforms; none as yet",
    "torch._assert_async": "a public assertion on the device; without it a mask there is not checked",
    "transformers.GenerationMixin._prepare_cache_for_generation": "a hook that names a model's kind of cache; without "
    "it `generate` makes a DynamicCache, which the forward refuses by name",
    "transformers.PreTrainedModel._init_weights": "the hook that every model outside the library has",
    "transformers.PreTrainedModel._is_stateful": "`is_croppable` of the cache, once assisted generation asks it",
    "transformers.PreTrainedModel._no_split_modules": "none: how device maps and FSDP find the units",
    "transformers.PreTrainedModel._skip_keys_device_placement": "none: without it a cache moves with the hidden states",
    "transformers.PreTrainedModel._tied_weights_keys": "none: how tied weights are saved once",
    "transformers.PreTrainedModel._can_compile_fullgraph": "nothing: without it `generate` compiles no model",
    "transformers.PreTrainedModel._can_record_outputs": "as for `capture_outputs`, which reads it",
    "transformers.modeling_layers.GradientCheckpointingLayer": "torch.utils.checkpoint around each layer",
    "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "the Auto classes' registration, once "
    "Trainer's label smoothing and the pipelines ask it",
    "transformers.utils.can_return_tuple": "`return_dict` handled in each forward",
    "transformers.utils.deprecation.deprecate_kwarg": "a FutureWarning of our own, until the old name is gone",
    "transformers.utils.hub.cached_file": "huggingface_hub's own download, for folders and the Hub alike",
    "transformers.utils.hub.extract_commit_hash": "the same",
    "transformers.utils.output_capturing.capture_outputs": "collecting hidden states and maps in the loop over layers",
}


def takes_cache(forward):
    """A forward that has an argument `cache`, or hands it on, known under the cache's name in the installed release.

    From 5.24 on the old name is taken with the library's FutureWarning; before it, `past_key_values` is the name in the
    signature, and `cache` is taken, too. Both at once are an error.
    """
    if CACHE_NAME == "cache":
        return deprecate_kwarg("past_key_values", "5.40.0", new_name="cache", raise_if_both_names=True)(forward)

    @functools.wraps(forward)
    def renamed(self, *args, **kwargs):
        if "past_key_values" in kwargs:
            if "cache" in kwargs:
                raise ValueError("past_key_values and cache are two names of one argument; give past_key_values only")
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(self, *args, **kwargs)

    found = inspect.signature(forward)
    parameters = [p.replace(name="past_key_values") if p.name == "cache" else p for p in found.parameters.values()]
    renamed.__signature__ = found.replace(parameters=parameters)
    return renamed


def drops_cache(layer):
    """Whether the library's checkpointing of this layer would leave out its cache.

    Up to 5.23 it does in training mode, later only where there are gradients as well.
    """
    has_backward = torch.is_grad_enabled() or CACHE_NAME == "past_key_values"
    return layer.gradient_checkpointing and layer.training and has_backward
