# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Models of the library whose attention is swapped, as classes that save, load and generate.

`swapped_model_class` makes the class of a swapped model from the library's: the same with synapses in its attention
layers. Auto classes find it through the classes at the end of this file, one for each of them.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from .configuration_swapped import (
    AUTO_CLASSES,
    HOW_TO_LOAD,
    MODEL_TYPE,
    PREFIX,
    WHEN_MADE,
    AstromorphicConfig,
    refuse_other_attention,
    swapped_config_class,
)
from .library_compatibility import CACHE_NAME, refuse_lost_prompts
from .loading import SafelyLoadedModel
from .swapped_attention import (
    AttentionSwap,
    HybridCache,
    add_synapses,
    attention_layers,
    register,
)


logger = logging.get_logger(__name__)


def swap_attention(model: PreTrainedModel, *, layers: Any = "all", **options: Any) -> PreTrainedModel:
    """Replaces the softmax attention of a model of the library, in place.

    Args:
        model (`PreTrainedModel`): a model that follows the library's attention interface.
        layers (`str` or sequence of `int`): "all", or the numbers of the attention layers to replace, from 0.
        options: the fields of `AttentionSwap`: `feature_map`, `num_features`, `window_size`, `sink_tokens`,
            `astrocyte_code`, `astrocyte_scale`.

    Returns:
        The same model. Its new parameters are at their initial values: `transfer_attention` makes them learn from the
        original.

    Raises:
        ValueError: for a model that does not follow the interface or is swapped already, and for options that are none.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"swap_attention takes a model of the library, got {type(model).__name__}; swap the model before adapters "
            "are put around it"
        )
    if getattr(model.config, "attention_swap", None) is not None:
        raise ValueError(f"the attention of this {type(model).__name__} is swapped already")
    found = attention_layers(model)
    on_meta = [name for name, x in model.named_parameters() if x.is_meta]
    if on_meta and torch.get_default_device().type != "meta":
        raise ValueError(
            f"swap_attention takes a model whose weights are in memory; {on_meta[0]!r} is on the meta device, or "
            "offloaded to the disk"
        )
    if not model._can_set_attn_implementation() or not found:
        raise ValueError(f"{type(model).__name__} does not follow the library's attention interface: nothing to swap")
    chosen = range(len(found)) if layers == "all" else layers
    if (
        isinstance(chosen, str)
        or not isinstance(chosen, Sequence)
        or not chosen
        or not all(type(i) is int and 0 <= i < len(found) for i in chosen)
    ):
        raise ValueError(f"layers must be 'all' or a list of numbers from 0 to {len(found) - 1}, got {layers!r}")
    unknown = options.keys() - {field.name for field in dataclasses.fields(AttentionSwap)}
    if unknown:
        raise TypeError(f"swap_attention has no option {sorted(unknown)}")
    swap = AttentionSwap(**options, layers=tuple(sorted(set(chosen))))
    take_own_config(model)
    model.config.attention_swap = dataclasses.asdict(swap)
    add_synapses(model)
    as_swapped(model)
    return model


def take_own_config(model: PreTrainedModel) -> None:
    """Gives a model, and each module of it, a copy of its configuration, which other models may have as well."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        own = copies.get(id(getattr(module, "config", None)))
        if own is not None:
            module.config = own


class SwappedModelMixin(SafelyLoadedModel):
    """What swapped models add to those of the library."""

    _is_stateful = True  # sums cannot take back a token, as assisted generation asks of a cache

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        library: Any = super()
        library.__init__(config, *args, **kwargs)
        own: Any = self
        add_synapses(own)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuses every other than the swapped one: its parameters would be left out."""
        refuse_other_attention(attn_implementation)
        return super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of the library, without `attn_implementation`.

        Raises:
            ValueError: the checkpoint lacks synapses; what has not learned from the original is of no use.
        """
        refuse_other_attention(kwargs.pop("attn_implementation", None))
        wants_info = kwargs.pop("output_loading_info", False)
        library: Any = super()
        model, info = library.from_pretrained(*args, output_loading_info=True, **kwargs)
        missing = sorted(name for name in info["missing_keys"] if ".synapses." in name)
        if missing:
            raise ValueError(f"the checkpoint of a swapped model lacks synapses, {', '.join(missing)}")
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As of the library, with the code that loads the model."""
        own: Any = self
        own.config.auto_map = {
            "AutoConfig": f"{AstromorphicConfig.__module__.rpartition('.')[2]}.{AstromorphicConfig.__name__}",
            **{
                name: f"{__name__.rpartition('.')[2]}.{AUTO_CLASSES[name]}"
                for name in auto_classes_of(type(own.config).__mro__[2])
            },
        }
        # Weights that the library renamed as it loaded the original keep their new names: old ones it would know in
        # checkpoints of the original's model type alone.
        super().save_pretrained(save_directory, *args, **{**kwargs, "save_original_format": False})
        if kwargs.get("is_main_process", True):
            custom_object_save(AstromorphicModelStub, save_directory)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        own: Any = self
        refuse_lost_prompts(own)
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(f"cache_implementation={kind!r} is not supported by a swapped model; leave it out")
        if model_kwargs.get(CACHE_NAME) is None and generation_config.use_cache:
            places = [getattr(module, "layer_idx", None) for module in attention_layers(own)]
            if places == list(range(getattr(own.config, "num_hidden_layers", 0))):
                model_kwargs[CACHE_NAME] = HybridCache(own.config)
                return None
            logger.warning_once(
                f"{type(own).__name__} has layers without attention, or several models in one: its cache holds every "
                "key and value, and grows with the text"
            )
        library: Any = super()
        return library._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


@functools.cache
def swapped_model_class(original: Any) -> type[PreTrainedModel]:
    """The class of a swapped model, from that of the original."""
    members = {
        "__module__": __name__,
        "__doc__": f"A `{original.__name__}` with synapses in its attention layers.",
        "config_class": swapped_config_class(original.config_class),
        "original_class": original,
    }
    return type(f"{PREFIX}{original.__name__}", (SwappedModelMixin, original), members)


def auto_classes_of(original_config: Any) -> list[str]:
    """The Auto classes that know models of a configuration of the library."""
    return [name for name in AUTO_CLASSES if original_config in getattr(transformers, name)._model_mapping]


def class_for(auto_name: str, config: Any) -> Any:
    """The class of the swapped model that an Auto class makes of a configuration."""
    original_config = type(config).__mro__[2]
    original = getattr(transformers, auto_name)._model_mapping[original_config]
    if isinstance(original, (tuple, list)):
        named = {name.removeprefix(PREFIX) for name in config.architectures or ()}
        original = next((c for c in original if c.__name__ in named), original[0])
    return known_to(auto_name, swapped_model_class(original))


def known_to(auto_name: str, swapped_class: Any) -> Any:
    """The same class, which its Auto class, and with it pipelines, know by name from now on."""
    getattr(transformers, auto_name).register(swapped_class.config_class, swapped_class, exist_ok=True)
    if auto_name == "AutoModelForCausalLM":  # a list by names, where Trainer looks whether to shift smoothed labels
        name = f"{MODEL_TYPE}_{swapped_class.config_class.original_model_type}"
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] = swapped_class.__name__
    return swapped_class


def as_swapped(model: PreTrainedModel) -> None:
    """Turns a model of the library into one of its swapped class, in place."""
    config_class: Any = type(model.config)
    model_class: Any = type(model)
    model.config.__class__ = swapped_config_class(config_class)
    swapped_class: Any = swapped_model_class(model_class)
    with torch.device("meta"):
        swapped_class(model.config)  # the library learns from a class's first model what it can record
    for auto_name in auto_classes_of(config_class):
        known = getattr(transformers, auto_name)._model_mapping[config_class]
        if model_class in (known if isinstance(known, (tuple, list)) else (known,)):
            known_to(auto_name, swapped_class)
    model.__class__ = swapped_class


def register_with_auto_classes(config_class: Any) -> None:
    """Has the Auto classes find swapped models of a configuration."""
    for name in auto_classes_of(config_class.__mro__[2]):
        getattr(transformers, name).register(config_class, globals()[AUTO_CLASSES[name]], exist_ok=True)


class AstromorphicModelStub:
    """The base of the classes that stand for Auto classes in a checkpoint: each gives a model of the swapped class that
    its Auto class would choose."""

    auto_name = ""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As of the library; arguments of the Auto class's."""
        if config is None:
            raise ValueError(f"{cls.__name__} loads through {cls.auto_name}: {HOW_TO_LOAD}")
        return class_for(cls.auto_name, config).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        refuse_other_attention(kwargs.pop("attn_implementation", None))
        return class_for(cls.auto_name, config)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing to do: a model's folder names the classes itself."""


for _auto_name, _name in AUTO_CLASSES.items():
    globals()[_name] = type(_name, (AstromorphicModelStub,), {"__module__": __name__, "auto_name": _auto_name})


def __getattr__(name: str) -> Any:
    """The swapped class of a model of the library, by the name under which pickle looks for it."""
    original: Any = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if inspect.isclass(original) and issubclass(original, PreTrainedModel):
        known: Any = original
        return swapped_model_class(known)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


WHEN_MADE.append(register_with_auto_classes)
register()
