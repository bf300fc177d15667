# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Loading a checkpoint with its processor, and reading its inputs and answers."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import astroformer_hf  # noqa: F401 (registers the classes)


MODELS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForCausalLM": AutoModelForCausalLM,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForImageClassification": AutoModelForImageClassification,
}


def load(name, revision=None, trust_remote_code=False):
    """The model of a folder or of a name on the Hub, in float32, and its tokenizer or image processor."""
    source = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **source)
    architecture = (config.architectures or [""])[0]
    auto_class = next((found for ending, found in MODELS.items() if architecture.endswith(ending)), AutoModel)
    model = auto_class.from_pretrained(name, **source).float()
    processor = AutoImageProcessor if takes_images(model) else AutoTokenizer
    return model, processor.from_pretrained(name, **source)


def takes_images(model):
    return model.main_input_name == "pixel_values"


def class_probabilities(config, logits):
    """What a classifier says of one example.

    Args:
        config (`PretrainedConfig`): of the classifier.
        logits (`torch.Tensor`): `(num_labels,)`.

    Returns:
        `dict` from label to probability, each by itself where several labels may be true; None for a regression.
    """
    if config.problem_type == "regression" or len(logits) == 1:
        return None
    shares = logits.sigmoid() if config.problem_type == "multi_label_classification" else logits.softmax(-1)
    return {config.id2label[i]: share for i, share in enumerate(shares.tolist())}


def patches(values, grid):
    """Values of the tokens on the grid of patches, without that of a class token."""
    return values[-grid[0] * grid[1] :].view(grid).numpy()


def spell(tokenizer, input_ids):
    """The text of each token, beginning with a space where a word begins."""
    decoded = [tokenizer.decode(input_ids[: i + 1], clean_up_tokenization_spaces=False) for i in range(len(input_ids))]
    ends = [0, *map(len, decoded)]
    return [text[end:] for text, end in zip(decoded, ends, strict=False)]
