# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer: Hugging Face Transformers models with neuron-astrocyte attention.

Importing the package registers its classes with the Auto classes of `transformers`.
"""

from .version import __version__  # first: it checks the releases of what the others import


# isort: split
from typing import TYPE_CHECKING, Any

import transformers

from . import library_attention
from .attention_backends import attention_backend
from .attention_operation import (
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
    neuron_astrocyte_network,
)
from .attention_state import BidirectionalState, NeuronAstrocyteState
from .cache_astroformer import AstroformerCache
from .configuration_astroformer import AstroformerConfig
from .configuration_astroformer_vision import AstroformerVisionConfig
from .configuration_swapped import AstromorphicConfig
from .inspection import SynapseRecord, look_inside
from .modeling_astroformer import (
    AstroformerForCausalLM,
    AstroformerForMaskedLM,
    AstroformerForMultipleChoice,
    AstroformerForQuestionAnswering,
    AstroformerForSequenceClassification,
    AstroformerForTokenClassification,
    AstroformerModel,
    AstroformerPreTrainedModel,
)
from .modeling_astroformer_vision import (
    AstroformerForImageClassification,
    AstroformerVisionModel,
    AstroformerVisionPreTrainedModel,
)
from .modeling_swapped import swap_attention


if TYPE_CHECKING:
    from .transfer import DistillationTrainer, TransferReport, keep_swapped, transfer_attention

# What trains imports `Trainer`, and with it much that using a model does not need: not before it is asked for.
_WHAT_TRAINS = ("DistillationTrainer", "TransferReport", "keep_swapped", "transfer_attention")


def __getattr__(name: str) -> Any:
    if name in _WHAT_TRAINS:
        from . import transfer

        return getattr(transfer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    """Makes the Auto classes find ours, and a saved folder carry the code that defines them."""
    for config_class in (AstroformerConfig, AstroformerVisionConfig):
        for auto_name, reference in config_class.auto_map_of_class.items():
            auto_class = getattr(transformers, auto_name)
            own_class = globals()[reference.split(".")[1]]
            if auto_class is transformers.AutoConfig:
                auto_class.register(own_class.model_type, own_class, exist_ok=True)
            else:
                auto_class.register(config_class, own_class, exist_ok=True)
            own_class.register_for_auto_class(auto_name)


_register()
library_attention.register()
transformers.AutoConfig.register(AstromorphicConfig.model_type, AstromorphicConfig, exist_ok=True)

__all__ = [
    "AstroformerCache",
    "AstroformerConfig",
    "AstroformerForCausalLM",
    "AstroformerForImageClassification",
    "AstroformerForMaskedLM",
    "AstroformerForMultipleChoice",
    "AstroformerForQuestionAnswering",
    "AstroformerForSequenceClassification",
    "AstroformerForTokenClassification",
    "AstroformerModel",
    "AstroformerPreTrainedModel",
    "AstroformerVisionConfig",
    "AstroformerVisionModel",
    "AstroformerVisionPreTrainedModel",
    "AstromorphicConfig",
    "BidirectionalState",
    "DistillationTrainer",
    "NeuronAstrocyteState",
    "SynapseRecord",
    "TransferReport",
    "__version__",
    "attention_backend",
    "keep_swapped",
    "look_inside",
    "neuron_astrocyte_attention",
    "neuron_astrocyte_attention_weights",
    "neuron_astrocyte_network",
    "swap_attention",
    "transfer_attention",
]
