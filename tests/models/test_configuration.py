# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Configurations of several releases, and the presets."""

import copy
import json

import pytest
from variants import ROOT, tiny_config, tiny_vision_config

from astroformer_hf import AstroformerConfig, AstroformerVisionConfig
from astroformer_hf.configuration_astroformer import BEFORE_IT_EXISTED


OTHER_VALUES = {
    "synaptic_decay": "learned",
    "presynaptic_target": "synapse",
    "calcium_sources": "all",
    "hebbian_rule": "covariance",
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/releases/*/*/config.json")), ids=lambda p: p.parent.name)
def test_what_is_older_than_a_switch_has_it_off(path, monkeypatch):
    cls = AstroformerVisionConfig if "image" in path.parent.name else AstroformerConfig
    saved = json.loads(path.read_text())
    assert not saved.keys() & OTHER_VALUES.keys()
    for name, value in OTHER_VALUES.items():  # whatever a new model has
        monkeypatch.setattr(cls, name, value)
        monkeypatch.setattr(cls.__dataclass_fields__[name], "default", value)
    config = cls.from_pretrained(path.parent)
    assert {name: getattr(config, name) for name in OTHER_VALUES} == BEFORE_IT_EXISTED
    assert cls.from_pretrained(path.parent, synaptic_decay="learned").synaptic_decay == "learned"


@pytest.mark.parametrize("make", [tiny_config, tiny_vision_config])
def test_a_saved_configuration_keeps_the_switches(make, tmp_path):
    config = make(**OTHER_VALUES, initial_memory_spans=[2, 40])
    config.save_pretrained(tmp_path)
    loaded = type(config).from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in OTHER_VALUES} == OTHER_VALUES
    assert list(loaded.initial_memory_spans) == [2, 40]


@pytest.mark.parametrize(
    "fields, decay",
    [
        ({}, "gated"),
        ({"attention_type": "linear"}, "none"),
        ({"attention_type": "softmax"}, "none"),
        ({"attention_type": "softmax", "synaptic_decay": "gated"}, "gated"),
        ({"synaptic_decay": "none"}, "none"),
    ],
)
def test_synapses_leak_by_default_in_the_arm_with_synapses(fields, decay, tmp_path):
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    assert config.synaptic_decay == AstroformerConfig.from_pretrained(tmp_path).synaptic_decay == decay
    of_images = AstroformerVisionConfig(**{**fields, "synaptic_decay": None}).synaptic_decay
    assert of_images == ("learned" if "attention_type" not in fields else "none")


@pytest.mark.parametrize("cls", [AstroformerConfig, AstroformerVisionConfig])
def test_presets(cls):
    best, paper = cls.preset("best", presynaptic_alpha=0.25), cls.preset("paper", hidden_size=24, num_attention_heads=3)
    assert cls.preset("best").to_dict() == cls().to_dict()
    assert (best.presynaptic_target, best.presynaptic_alpha, paper.hidden_size) == ("synapse", 0.25, 24)
    assert (paper.astrocyte_code, paper.calcium_normalization) == ("learned", "sum")
    assert {name: getattr(paper, name) for name in OTHER_VALUES} == BEFORE_IT_EXISTED
    with pytest.raises(ValueError, match="preset must be one of 'best', 'paper', got 'fast'"):
        cls.preset("fast")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hebbian_rule": "anti"}, "hebbian_rule must be one of 'correlation', 'covariance', got 'anti'"),
        ({"synaptic_decay": "slow"}, "synaptic_decay must be one of 'none', 'learned', 'gated', got 'slow'"),
        ({"initial_memory_spans": [1, -2]}, r"initial_memory_spans must be positive numbers of tokens, got \[1, -2\]"),
        ({"initial_memory_spans": []}, r"initial_memory_spans must be positive numbers of tokens, got \[\]"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        AstroformerConfig(**changes)


def test_images_have_no_gate():
    with pytest.raises(ValueError, match="synaptic_decay must be 'none' or 'learned' for images"):
        AstroformerVisionConfig(synaptic_decay="gated")


@pytest.mark.parametrize("code", ["activity", "learned"])
def test_configurations_are_equal_by_their_fields(code):
    for make in (tiny_config, tiny_vision_config):
        config = make(astrocyte_code=code)
        assert config == make(astrocyte_code=code) == copy.deepcopy(config)
        assert config != make(astrocyte_code=code, hidden_size=64) and config != 3
