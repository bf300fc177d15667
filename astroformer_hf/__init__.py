# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Astroformer: Hugging Face Transformers models with neuron-astrocyte attention.

Importing the package registers its classes with the Auto classes of `transformers`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration_astroformer import AstroformerConfig
from .modeling_astroformer import AstroformerForSequenceClassification, AstroformerModel, AstroformerPreTrainedModel
from .neuron_astrocyte_attention import (
    NeuronAstrocyteState,
    neuron_astrocyte_attention,
    neuron_astrocyte_attention_weights,
    neuron_astrocyte_network,
)
from .version import __version__


AutoConfig.register(AstroformerConfig.model_type, AstroformerConfig, exist_ok=True)
AstroformerConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, AstroformerModel),
    (AutoModelForSequenceClassification, AstroformerForSequenceClassification),
):
    auto_class.register(AstroformerConfig, model_class, exist_ok=True)
    # a saved folder then carries the code that defines the class
    model_class.register_for_auto_class(auto_class.__name__)
del auto_class, model_class

__all__ = [
    "AstroformerConfig",
    "AstroformerForSequenceClassification",
    "AstroformerModel",
    "AstroformerPreTrainedModel",
    "NeuronAstrocyteState",
    "__version__",
    "neuron_astrocyte_attention",
    "neuron_astrocyte_attention_weights",
    "neuron_astrocyte_network",
]
