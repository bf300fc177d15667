# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The model classes, each under the Auto class that loads it: the one list that all others are made from.

`auto_map` in a saved configuration, the registration with the Auto classes, docs/api.md and the tests follow it. A new
head is a class in its modelling file and a line here; the tests say where else its name belongs.
"""

TEXT_MODELS = {
    "AutoModel": "AstroformerModel",
    "AutoModelForSequenceClassification": "AstroformerForSequenceClassification",
    "AutoModelForTokenClassification": "AstroformerForTokenClassification",
    "AutoModelForQuestionAnswering": "AstroformerForQuestionAnswering",
    "AutoModelForMultipleChoice": "AstroformerForMultipleChoice",
    "AutoModelForMaskedLM": "AstroformerForMaskedLM",
    "AutoModelForCausalLM": "AstroformerForCausalLM",
}
IMAGE_MODELS = {
    "AutoModel": "AstroformerVisionModel",
    "AutoModelForImageClassification": "AstroformerForImageClassification",
}


def auto_map(suffix: str, config: str, models: dict[str, str]) -> dict[str, str]:
    """Where each Auto class finds its code beside a checkpoint, as "module.Class".

    Args:
        suffix (`str`): of the modules `configuration_SUFFIX` and `modeling_SUFFIX`.
        config (`str`): name of the configuration's class.
        models (`dict`): names of the models' classes by those of the Auto classes.
    """
    references = {auto_name: f"modeling_{suffix}.{name}" for auto_name, name in models.items()}
    return {"AutoConfig": f"configuration_{suffix}.{config}", **references}
