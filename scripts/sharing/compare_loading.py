# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Loads a checkpoint through its Auto classes and writes its outputs for a few inputs, so that two ways of loading it
can be compared: with the installed package, or without it, from the code in the checkpoint alone.

python scripts/sharing/compare_loading.py --model outputs/quickstart --output with_package.safetensors
python scripts/sharing/compare_loading.py --model outputs/quickstart --output without.safetensors --without_package

A program of its own that imports none of the other scripts: the process that hides the package must not have it loaded.
"""

import argparse
import importlib.abc
import sys

import torch
import transformers
from safetensors.torch import save_file


TEXTS = ("What a lovely film.", "Two hours of my life are gone, and nobody will give them back to me.")


class HidePackage(importlib.abc.MetaPathFinder):
    """An import hook that hides the installed package, as on a machine that has only the checkpoint."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "astroformer_hf":
            raise ModuleNotFoundError(f"{name} is hidden", name=name)
        return None


def auto_class_of(config):
    """The Auto class of the head that was saved, as the checkpoint's own map of its code names it."""
    (architecture,) = config.architectures
    for auto_name, reference in config.auto_map.items():
        auto_class = getattr(transformers, auto_name)
        names = {reference.rpartition("--")[2].split(".")[1]}
        if hasattr(config, "original_model_type") and auto_name != "AutoConfig":
            # swapped attention: a class made of the one that the library has for the original
            original = auto_class._model_mapping[transformers.CONFIG_MAPPING[config.original_model_type]]
            classes = original if isinstance(original, (tuple, list)) else (original,)
            names = {f"Astromorphic{original.__name__}" for original in classes}
        if architecture in names:
            return auto_class
    raise ValueError(f"auto_map must name a class for {architecture!r}, got {config.auto_map}")


def outputs_of(model_name, trust_remote_code):
    """A checkpoint's outputs as tensors by name: for random inputs, and for an example through its processor."""
    config = transformers.AutoConfig.from_pretrained(model_name, trust_remote_code=trust_remote_code)
    auto_class = auto_class_of(config)
    model = auto_class.from_pretrained(model_name, trust_remote_code=trust_remote_code)
    torch.manual_seed(0)
    if model.main_input_name == "pixel_values":
        processor = transformers.AutoImageProcessor.from_pretrained(model_name)
        height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        inputs = {"pixel_values": torch.randn(2, config.num_channels, height, width)}
        picture = torch.randint(0, 256, (height + 5, width + 3, config.num_channels), dtype=torch.uint8)
        example = processor(images=picture.numpy(), return_tensors="pt")
    else:
        processor = transformers.AutoTokenizer.from_pretrained(model_name)
        longest = min(64, getattr(config, "longest_input", None) or 64)
        length = min(12, longest)
        mask = torch.ones(3, length, dtype=torch.long)
        mask[1, : length // 3] = 0
        mask[2, length - length // 3 :] = 0
        inputs = {"input_ids": torch.randint(0, config.vocab_size, mask.shape), "attention_mask": mask}
        can_pad = processor.pad_token is not None
        texts = list(TEXTS) if can_pad else TEXTS[0]
        example = processor(texts, padding=can_pad, truncation=True, max_length=longest, return_tensors="pt")
        if not can_pad:
            example = {name: torch.atleast_2d(tensor) for name, tensor in example.items()}
    found = {}
    for source, given in (("random", inputs), ("example", dict(example))):
        if auto_class is transformers.AutoModelForMultipleChoice:
            given = {name: tensor[None] for name, tensor in given.items()}
        with torch.no_grad():
            outputs = model(**given)
        for name, tensor in [*given.items(), *outputs.items()]:
            if isinstance(tensor, torch.Tensor):
                # numpy, which compares them, does not know bfloat16
                found[f"{source}.{name}"] = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model, or its name on the Hub")
    parser.add_argument("--output", required=True, help="safetensors file to write")
    parser.add_argument(
        "--without_package", action="store_true", help="hide the package and run the code in the checkpoint"
    )
    args = parser.parse_args(arguments)
    if args.without_package:
        sys.meta_path.insert(0, HidePackage())
    else:
        import astroformer_hf  # noqa: F401 (registers the classes)
    save_file(outputs_of(args.model, trust_remote_code=args.without_package), args.output)


if __name__ == "__main__":
    main()
