# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""docs/api.md, the reference of everything that `astroformer_hf` exports, from its signatures and docstrings."""

import inspect
import re

from training.files import ROOT

import astroformer_hf
from astroformer_hf.model_classes import IMAGE_MODELS, TEXT_MODELS


PAGE = ROOT / "docs/api.md"
HEAD = """# API

Everything that `astroformer_hf` exports, generated from the code by `python scripts/report_api.py`. What the models
inherit (`from_pretrained`, `save_pretrained`, `generate`, `push_to_hub`, ...) is documented in
[transformers](https://huggingface.co/docs/transformers/main_classes/model). [Concepts](concepts.md) explains the terms.

"""
# In this order; every exported name must be in one of them.
GROUPS = {
    "Configurations": ("AstroformerConfig", "AstroformerVisionConfig"),
    "Text models": (*TEXT_MODELS.values(), "AstroformerPreTrainedModel"),
    "Image models": (*IMAGE_MODELS.values(), "AstroformerVisionPreTrainedModel"),
    "The operation": (
        "neuron_astrocyte_attention",
        "NeuronAstrocyteState",
        "BidirectionalState",
        "neuron_astrocyte_attention_weights",
        "neuron_astrocyte_network",
        "attention_backend",
    ),
    "Pretrained models": (
        *("swap_attention", "transfer_attention", "TransferReport", "keep_swapped", "DistillationTrainer"),
        "AstromorphicConfig",
    ),
    "State and inspection": ("AstroformerCache", "look_inside", "SynapseRecord"),
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def markdown(docstring):
    """A docstring as Markdown: its sections under bold headings, their entries as lists."""
    lines, section, indent = [], None, " " * 4
    for line in inspect.cleandoc(docstring).splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line[:-1]
            lines += [f"**{'Arguments' if section == 'Args' else section}**", ""]
        elif section is None or section == "Returns" or not line.strip():
            lines.append(line.removeprefix(indent) if section else line)
        elif entry := re.match(rf"{indent}(\w[\w, ]*)(.*)", line):  # a name or several, then type and text
            names = re.sub(r"\w+", r"`\g<0>`", entry[1].rstrip())
            lines.append(f"- {names}{' ' if entry[1].endswith(' ') else ''}{entry[2]}")
        else:  # an entry goes on
            lines.append(f"  {line.strip()}")
    return lines


def signature(name, function):
    """A function's head as it stands in the code, an argument a line if it is long, without `self`."""
    found = inspect.signature(inspect.unwrap(function))
    arguments = [p for p in found.parameters.values() if p.name != "self"]
    found = found.replace(parameters=arguments)
    text = f"{name}{found}"
    if len(text) > 110:
        parts, starred = [], False
        for argument in arguments:
            if argument.kind is argument.KEYWORD_ONLY and not starred:
                parts.append("*")
            starred |= argument.kind in (argument.KEYWORD_ONLY, argument.VAR_POSITIONAL)
            parts.append(str(argument))
        result = str(found.replace(parameters=[]))[2:]
        text = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"
    text = re.sub(r"\b(?!torch\b)(?:\w+\.)+([A-Z]\w*)", r"\1", text)  # types by their names, but for torch's
    return ["```text", text, "```", ""]


def entry(name):
    """The lines of an exported name."""
    exported = getattr(astroformer_hf, name)
    lines = [f"### `{name}`", ""]
    if inspect.isfunction(exported):
        return [*lines, *signature(name, exported), *markdown(exported.__doc__), ""]
    lines += [*markdown(exported.__doc__), ""]
    if "forward" in vars(exported):
        lines += [*signature("forward", exported.forward), *markdown(exported.forward.__doc__), ""]
    return lines


def page():
    """The text of docs/api.md."""
    lines = []
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += entry(name)
    return HEAD + "\n".join(lines).rstrip() + "\n"
