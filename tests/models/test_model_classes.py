# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""One table of the model classes, and one signature of what they share: what each list of them must hold."""

import inspect

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels
from variants import EXAMPLES, HEADS, LABELS, VISION, make_model

import astroformer_hf
from astroformer_hf import (
    AstroformerConfig,
    AstroformerModel,
    AstroformerVisionConfig,
    modeling_astroformer,
    modeling_astroformer_vision,
)
from astroformer_hf.input_checks import TextInputs
from astroformer_hf.library_compatibility import CACHE_NAME
from astroformer_hf.model_classes import IMAGE_MODELS, TEXT_MODELS


MODELS = [*TEXT_MODELS.values(), *IMAGE_MODELS.values()]
BARE = {"AstroformerModel", "AstroformerVisionModel"}
TEXT = [name for name in HEADS if name not in VISION]


def test_every_class_of_the_table_is_exported_and_has_an_example():
    bases = {"AstroformerPreTrainedModel", "AstroformerVisionPreTrainedModel"}
    exported = {name: getattr(astroformer_hf, name) for name in astroformer_hf.__all__}
    models = {name for name, x in exported.items() if inspect.isclass(x) and issubclass(x, PreTrainedModel)}
    assert models == bases | set(MODELS)
    assert len(MODELS) == len(set(MODELS))
    assert set(MODELS) == set(EXAMPLES)
    defined = {**vars(modeling_astroformer), **vars(modeling_astroformer_vision)}
    assert {name for name in defined if name.startswith("AstroformerFor")} == set(MODELS) - BARE


@pytest.mark.parametrize(
    "config_class, models", [(AstroformerConfig, TEXT_MODELS), (AstroformerVisionConfig, IMAGE_MODELS)]
)
def test_auto_map_names_each_class_where_it_is_defined(config_class, models):
    expected = {"AutoConfig": config_class, **{auto: getattr(astroformer_hf, name) for auto, name in models.items()}}
    assert config_class().auto_map == config_class.auto_map_of_class
    assert config_class.auto_map_of_class == {
        auto: f"{cls.__module__.removeprefix('astroformer_hf.')}.{cls.__name__}" for auto, cls in expected.items()
    }


@pytest.mark.parametrize("name", TEXT)
def test_text_models_share_the_order_of_their_inputs(name):
    signature = inspect.signature(getattr(astroformer_hf, name).forward)
    _, *inputs = list(signature.parameters.values())[: len(TextInputs._fields) + 1]
    assert tuple(p.name for p in inputs) == TextInputs._fields
    assert all(p.default is None and p.annotation == torch.Tensor | None for p in inputs)
    assert list(signature.parameters)[-1] == "kwargs"


def test_inputs_may_be_given_in_that_order(head):
    model, inputs = make_model(head), HEADS[head][2]()
    labels = {name: inputs.pop(name) for name in LABELS if name in inputs}
    expected = model(**inputs, **labels)
    in_order = inputs.values() if head in VISION else (inputs.get(name) for name in TextInputs._fields)
    output = model(*in_order, **labels)
    for key, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(output[key], value), key


def test_trainer_finds_the_labels_of_each_class(head):
    expected = [name for name in LABELS if name in HEADS[head][2]()]
    assert find_labels(getattr(astroformer_hf, head)) == expected


def test_a_subclass_may_go_on_to_the_forward_of_its_head(head):
    cls = getattr(astroformer_hf, head)

    class Scaled(cls):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model, inputs = make_model(head), HEADS[head][2]()
    own = Scaled(model.config).eval()
    own.load_state_dict(model.state_dict())
    assert torch.equal(own(**inputs)[0], model(**inputs)[0])
    assert isinstance(own(**inputs, return_dict=False), tuple)
    with pytest.raises(TypeError, match=r"Scaled\.forward\(\) got an unexpected keyword argument 'zzz'"):
        own(**inputs, zzz=True)


def test_a_subclass_of_a_decoder_takes_the_cache_by_the_name_of_the_release():
    class Scaled(AstroformerModel):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    own, ids = Scaled(make_model("AstroformerForCausalLM").config).eval(), torch.randint(1, 50, (2, 9))
    cache = own(ids[:, :5], use_cache=True)[CACHE_NAME]
    output = own(ids[:, 5:], **{CACHE_NAME: cache})
    torch.testing.assert_close(output.last_hidden_state, own(ids).last_hidden_state[:, 5:])
