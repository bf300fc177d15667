# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Parts of a model on disk or in main memory, brought in when their module is called: the same numbers."""

import pytest
import torch
from accelerate import cpu_offload
from torch.testing import assert_close
from variants import HEADS, VARIANTS, VISION, make_model, without_labels

import astroformer_hf


PREFIXES = {name: "" if name.endswith("Model") else "astroformer." for name in HEADS}
PREFIXES["AstroformerForImageClassification"] = "astroformer_vision."


def outputs_of(model, inputs):
    with torch.no_grad():
        return [x for x in model(**inputs).to_tuple() if torch.is_tensor(x)]


def placed_on_disk(name, model, parts, folder):
    """The model, loaded anew with the parts of these names on disk."""
    model.save_pretrained(folder / "model")
    away = {PREFIXES[name] + part for part in parts}
    if "embeddings" in parts and hasattr(model, "lm_head"):
        away.add("lm_head")  # tied parameters lie together
    device_map = {}
    for part, module in model.named_modules():
        holds_one = part == "" or any(other.startswith(f"{part}.") for other in away)
        placed_with_more = any(part.startswith(f"{other}.") for other in device_map)
        if not holds_one and not placed_with_more and any(True for _ in module.parameters()):
            device_map[part] = "disk" if part in away else "cpu"
        elif holds_one:
            own = dict(module.named_parameters(prefix=part, recurse=False))
            device_map.update(dict.fromkeys(own, "cpu"))
    placed = type(model).from_pretrained(folder / "model", device_map=device_map, offload_folder=folder / "offload")
    return placed.eval()


@pytest.mark.parametrize("parts", [("embeddings",), ("layers.0",), ("layers.1", "norm")], ids="_".join)
def test_a_part_on_disk_changes_no_output(head, parts, tmp_path):
    model, inputs = make_model(head), HEADS[head][2]()
    placed = placed_on_disk(head, model, parts, tmp_path)
    on_meta = [name for name, parameter in placed.named_parameters() if parameter.device.type == "meta"]
    assert all(any(part in name for name in on_meta) for part in parts if "norm" not in part)
    for found, expected in zip(outputs_of(placed, inputs), outputs_of(model, inputs), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_every_variant_may_lie_on_disk(variant, causal, tmp_path):
    name = "AstroformerForCausalLM" if causal else "AstroformerForSequenceClassification"
    model, inputs = make_model(name, **variant), HEADS[name][2]()
    placed = placed_on_disk(name, model, ("embeddings", "layers.0", "layers.1"), tmp_path)
    for found, expected in zip(outputs_of(placed, inputs), outputs_of(model, inputs), strict=True):
        assert_close(found, expected)
    if causal:
        prompt = without_labels(inputs)
        prompt["attention_mask"][2, 6:] = 1  # a prompt ends with a real token
        texts = [m.generate(**prompt, max_new_tokens=5, do_sample=False) for m in (placed, model)]
        assert_close(*texts, rtol=0, atol=0)


@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "buffers_too"])
def test_every_variant_may_lie_in_main_memory(variant, buffers):
    for name in ("AstroformerForCausalLM", "AstroformerForMaskedLM", "AstroformerForImageClassification"):
        model, inputs = make_model(name, **variant), HEADS[name][2]()
        expected = outputs_of(model, inputs)
        placed = cpu_offload(model, execution_device="cpu", offload_buffers=buffers)
        assert all(parameter.device.type == "meta" for parameter in placed.parameters())
        for found, own in zip(outputs_of(placed, inputs), expected, strict=True):
            assert_close(found, own)


def test_the_parts_of_the_embeddings_may_lie_apart(tmp_path):
    for name, part in (
        ("AstroformerForMaskedLM", "embeddings.token_type_embeddings"),
        ("AstroformerForImageClassification", "embeddings.projection"),
    ):
        changes = {"pooling": "cls"} if name in VISION else {}
        model, inputs = make_model(name, **changes), HEADS[name][2]()
        placed = placed_on_disk(name, model, (part,), tmp_path / name)
        for found, expected in zip(outputs_of(placed, inputs), outputs_of(model, inputs), strict=True):
            assert_close(found, expected)


def test_no_parameter_is_read_outside_its_own_module():
    """As accelerate's hooks need it: while a module is not called, its parameters may be on no device at all."""
    for variant in VARIANTS.values():
        for name in ("AstroformerForCausalLM", "AstroformerForImageClassification"):
            model, inputs = make_model(name, **variant), HEADS[name][2]()
            expected = outputs_of(model, inputs)
            for module in model.modules():
                own = dict(module.named_parameters(recurse=False))
                if own:
                    away = {key: torch.nn.Parameter(torch.empty_like(x, device="meta")) for key, x in own.items()}
                    module._parameters.update(away)
                    module.register_forward_pre_hook(lambda m, _, own=own: m._parameters.update(own))
                    module.register_forward_hook(lambda m, _, __, away=away: m._parameters.update(away))
            for found, own in zip(outputs_of(model, inputs), expected, strict=True):
                assert_close(found, own, msg=f"{name} {variant}")


def test_embeddings_that_are_tied_are_in_one_unit():
    for name in ("AstroformerForCausalLM", "AstroformerForMaskedLM"):
        assert getattr(astroformer_hf, name)._no_split_modules == ["AstroformerLayer"]
