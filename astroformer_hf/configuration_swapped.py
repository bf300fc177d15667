# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The configuration of models of the library whose attention is swapped: a model type of its own, "astromorphic".

A swapped Llama is a `LlamaForCausalLM` with synapses in its attention layers, and its configuration a `LlamaConfig`
with `attention_swap`; both have classes of their own, made from the library's when they are needed. In `config.json`
the original's fields are under `original_config`, and what stands in their place at the top is no value for them: so a
checkpoint loads through this code or not at all, and never as a model with softmax attention.
"""

from .version import __version__  # first: it checks the releases of what is imported here


# isort: split
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .saved_fields import check_saved_fields


MODEL_TYPE = "astromorphic"
PREFIX = "Astromorphic"  # of the names of classes
IMPLEMENTATION = "neuron_astrocyte_swapped"  # the attention implementation of swapped models
HOW_TO_LOAD = "import astroformer_hf, or give trust_remote_code=True to an Auto class"
# Fields without which no model can be made, under the names that configurations accept.
UNREADABLE = ("hidden_size", "num_hidden_layers", "num_attention_heads")
# Every Auto class of models, and the class of `modeling_swapped.py` that stands for it in a checkpoint.
AUTO_CLASSES = {
    name: PREFIX + name.removeprefix("Auto")
    for name in dir(transformers)
    if name.startswith("AutoModel") and hasattr(getattr(transformers, name), "_model_mapping")
}


WHEN_MADE: list[Callable[[Any], None]] = []  # functions that are told of each class of `swapped_config_class`


def refuse_other_attention(attn_implementation: Any) -> None:
    """Raises a ValueError for an attention implementation by which the synapses would be left out."""
    if attn_implementation not in (None, IMPLEMENTATION):
        raise ValueError(
            f"attn_implementation {attn_implementation!r}: the attention of a swapped model is not chosen by it"
        )


class SwappedConfigMixin:
    """What the configurations of swapped models add to those of the library."""

    original_model_type: str

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As of the library; also from the contents of a `config.json`."""
        refuse_other_attention(kwargs.pop("attn_implementation", None))
        if "original_config" in config_dict:
            model_type, config_dict = read_original(config_dict)
            if model_type != cls.original_model_type:
                raise ValueError(f"the checkpoint is of a swapped {model_type!r}, not of {cls.original_model_type!r}")
        library: Any = super()
        return library.from_dict(config_dict, **kwargs)

    def to_json_string(self, use_diff: bool = True) -> str:
        """As in `config.json`."""
        own: Any = self
        flat = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        top = {name: flat.pop(name) for name in ("architectures", "auto_map", "transformers_version") if name in flat}
        del flat["model_type"]
        top |= {"model_type": MODEL_TYPE, "attention_swap": flat.pop("attention_swap", None), "original_config": flat}
        # beside the fields, because the library's classes look for their own type among nested configurations
        top |= {"original_model_type": own.original_model_type, **dict.fromkeys(UNREADABLE, HOW_TO_LOAD)}
        top["astroformer_version"] = __version__
        return json.dumps(top, indent=2, sort_keys=True) + "\n"


@functools.cache
def swapped_config_class(original: Any) -> type[PreTrainedConfig]:
    """The class of a swapped model's configuration, from that of the original's."""
    members = {
        "__module__": __name__,
        "__doc__": f"A `{original.__name__}` with `attention_swap`.",
        "model_type": MODEL_TYPE,
        "original_model_type": original.model_type,
    }
    made = type(f"{PREFIX}{original.__name__}", (SwappedConfigMixin, original), members)
    for tell in WHEN_MADE:
        tell(made)
    return made


def __getattr__(name: str) -> Any:
    """The swapped class of a configuration of the library, by the name under which pickle looks for it."""
    original: Any = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if inspect.isclass(original) and issubclass(original, PreTrainedConfig):
        known: Any = original
        return swapped_config_class(known)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class AstromorphicConfig(PreTrainedConfig):
    """What `AutoConfig` finds for the model type "astromorphic".

    Its `from_dict` gives a configuration of the class that `swapped_config_class` makes of the original's.
    """

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that the contents of a `config.json` tell of.

        Raises:
            ValueError: for contents that are not of a swapped model, or of one whose original the library lacks.
        """
        model_type, _ = read_original(config_dict)
        known: Any = CONFIG_MAPPING[model_type]
        config_class: Any = swapped_config_class(known)
        return config_class.from_dict(config_dict, **kwargs)


def read_original(config_dict: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The original's model type, and the fields of a swapped model's configuration, from the contents of a
    `config.json`.

    Raises:
        ValueError: for contents that are not of a swapped model, or of one whose original the library lacks, and for
            those that `check_saved_fields` refuses.
    """
    check_saved_fields(config_dict)
    fields = dict(config_dict)
    fields.pop("astroformer_version", None)
    original, model_type = fields.pop("original_config", None), fields.pop("original_model_type", None)
    if not isinstance(original, dict) or not isinstance(fields.get("attention_swap"), dict):
        raise ValueError(f"a configuration of type {MODEL_TYPE!r} needs original_config and attention_swap")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"original_model_type is {model_type!r}, which transformers does not know")
    for name in (*UNREADABLE, "model_type"):
        fields.pop(name, None)
    return model_type, {**original, **fields}


__all__ = ["AstromorphicConfig"]
