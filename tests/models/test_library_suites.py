# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The library's own common tests over every class, as it runs them over its own; README.md explains the skips."""

import re
import unittest

import pytest
import torch
from library_suites import Unavailable, load
from transformers.models.auto import modeling_auto
from variants import tiny_config, tiny_vision_config

import astroformer_hf as astroformer
from astroformer_hf.model_classes import IMAGE_MODELS, TEXT_MODELS


try:
    modeling_common, configuration_common, training_mixin = load()
except Unavailable as error:
    pytest.skip(
        f"THE LIBRARY'S COMMON TESTS DO NOT RUN: the package index was not reached: {error}", allow_module_level=True
    )

# The suites choose labels by looking a class up in these lists, which hold the library's own models only.
for model_type, models in (("astroformer", TEXT_MODELS), ("astroformer_vision", IMAGE_MODELS)):
    for auto_name, name in models.items():
        task = re.sub("(?<=[a-z])(?=[A-Z])", "_", auto_name.removeprefix("Auto")).upper()  # "MODEL_FOR_MASKED_LM"
        getattr(modeling_auto, f"{task}_MAPPING_NAMES")[model_type] = name

# The first is what the suite for training overfits.
ENCODERS = (
    astroformer.AstroformerForMaskedLM,
    *(getattr(astroformer, name) for auto, name in TEXT_MODELS.items() if not re.search("MaskedLM|CausalLM", auto)),
)


class TextTester:
    """What the suites ask of a text model: a small configuration and inputs for it."""

    batch_size, seq_length, num_choices, is_training = 3, 7, 4, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent, **changes):
        self.parent, self.changes = parent, changes

    def get_config(self):
        return tiny_config(initializer_range=0.02, **self.changes)

    def prepare_config_and_inputs_for_common(self):
        mask = torch.ones(self.batch_size, self.seq_length, dtype=torch.long)
        mask[1, 5:] = 0
        inputs = {"input_ids": torch.randint(1, 50, (self.batch_size, self.seq_length)), "attention_mask": mask}
        return self.get_config(), inputs


class ImageTester:
    """The same of an image model."""

    batch_size, seq_length, is_training = 3, 16, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    image_size, patch_size, num_channels = 16, 4, 3

    def __init__(self, parent, **changes):
        self.parent, self.changes = parent, changes

    def get_config(self):
        return tiny_vision_config(initializer_range=0.02, **self.changes)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, 16, 16)}


class CommonSuites(modeling_common.ModelTesterMixin):
    """The suites for models and configurations, for a tester, its classes and fields of the configuration."""

    make_tester = TextTester
    config_class = astroformer.AstroformerConfig
    changes = {}
    model_tester = None
    all_model_classes = ENCODERS

    def setUp(self):
        self.model_tester = self.make_tester(self, **self.changes)
        self.config_tester = configuration_common.ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=self.config_class is astroformer.AstroformerConfig,
            hidden_size=32,
            num_attention_heads=4,
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class TestEncoders(CommonSuites, training_mixin.TrainingTesterMixin, unittest.TestCase):
    pass


class TestDecoders(
    CommonSuites,
    training_mixin.TrainingTesterMixin,
    modeling_common.GenerationTesterMixin,  # empty: the source distribution does not carry it
    unittest.TestCase,
):
    changes = {"is_decoder": True, "astrocyte_code": "sinusoidal"}
    all_model_classes = (astroformer.AstroformerForCausalLM, astroformer.AstroformerModel)

    def test_tied_head_has_a_tp_plan_entry(self):  # for plans that shard the embeddings; ours leaves both whole
        plan = astroformer.AstroformerForCausalLM(self.model_tester.get_config()).tp_plan
        self.assertTrue(plan)
        self.assertFalse([name for name in plan if "embedding" in name or "lm_head" in name])


@pytest.mark.on_demand
class TestSoftmaxDecoders(TestDecoders):
    changes = {"is_decoder": True, "attention_type": "softmax"}


@pytest.mark.on_demand
class TestLearnedCodeEncoders(CommonSuites, unittest.TestCase):
    changes = {"astrocyte_code": "learned"}


class TestImageModels(CommonSuites, unittest.TestCase):
    make_tester = ImageTester
    config_class = astroformer.AstroformerVisionConfig
    all_model_classes = (astroformer.AstroformerVisionModel, astroformer.AstroformerForImageClassification)
    test_resize_embeddings = False

    def test_model_get_set_embeddings(self):  # an image has no table of embeddings; as in the library's own ViT
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
            self.assertIsNone(model.get_output_embeddings())
