# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Keyword arguments of every forward: what the libraries pass is taken, and anything else is an error that names it."""

import inspect

import pytest
import torch
from transformers import DynamicCache
from variants import HEADS, VISION, make_model

import astroformer_hf
from astroformer_hf import AstroformerCache
from astroformer_hf.forward_keywords import FROM_LIBRARIES
from astroformer_hf.library_compatibility import CACHE_NAME


TEXT = [name for name in HEADS if name not in VISION]


def test_a_misspelt_keyword_is_an_error_that_names_it(head):
    model, inputs = make_model(head), HEADS[head][2]()
    wrong, right = ("pixel_value", "pixel_values") if head in VISION else ("attn_mask", "attention_mask")
    given = {wrong: inputs.pop(right)}
    with pytest.raises(TypeError, match=rf"^{head}\.forward\(\) got .* '{wrong}'; did you mean '{right}'\?$"):
        model(**inputs, **given)
    with pytest.raises(TypeError, match=rf"^{head}\.forward\(\) got an unexpected keyword argument 'zzz'$"):
        model(**HEADS[head][2](), zzz=False)


@pytest.mark.parametrize("head", [head for head in HEADS if "labels" in HEADS[head][2]()])
def test_misspelt_labels_are_an_error(head):
    inputs = HEADS[head][2]()
    inputs["label"] = inputs.pop("labels")
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'; did you mean 'labels'"):
        make_model(head)(**inputs)


# What changes the answers of other models, and does not exist here.
ABSENT = {
    "encoder_hidden_states": torch.zeros(4, 3, 32),
    "head_mask": torch.ones(4),
    "bool_masked_pos": torch.ones(4, 16).bool(),
    "special_tokens_mask": torch.ones(4, 9),
    "debug_io": True,
}


@pytest.mark.parametrize("name", ABSENT)
def test_features_of_other_models_are_refused_but_none_is_as_good_as_absent(name, head):
    model, inputs = make_model(head), HEADS[head][2]()
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        model(**inputs, **{name: ABSENT[name]})
    expected = model(**inputs)[0]
    torch.testing.assert_close(model(**inputs, **{name: None})[0], expected, rtol=0, atol=0)


def test_what_goes_with_some_losses_only_is_an_error_elsewhere():
    shifted = torch.ones(4, 9).long()
    for head in TEXT:
        inputs = HEADS[head][2]()
        if head == "AstroformerForCausalLM":
            assert make_model(head)(**inputs, shift_labels=shifted).loss != make_model(head)(**inputs).loss
        else:
            with pytest.raises(TypeError, match="'shift_labels'"):
                make_model(head)(**inputs, shift_labels=shifted)
    with pytest.raises(TypeError, match="'ignore_index'"):
        make_model("AstroformerForSequenceClassification")(
            **HEADS["AstroformerForSequenceClassification"][2](), ignore_index=1
        )


def test_what_the_libraries_pass_is_taken(head):
    model, inputs = make_model(head), HEADS[head][2]()
    length = 9 if head not in VISION else 0
    given = {
        "assistant_tokenizer": object(),
        "cache_position": torch.arange(length),
        "is_causal": model.config.is_decoder,
        "num_items_in_batch": 4,
        "output_attentions": False,
        "output_hidden_states": True,
        "return_dict": True,
        "tokenizer": object(),
        "use_cache": False,
    }
    assert given.keys() == FROM_LIBRARIES.keys()
    if head in VISION:
        del given["cache_position"]
    expected, output = model(**inputs), model(**inputs, **given)
    name = "last_hidden_state" if head.endswith("Model") else next(k for k in expected if k.endswith("logits"))
    torch.testing.assert_close(output[name], expected[name], rtol=0, atol=0)
    assert len(output.hidden_states) == 3
    assert CACHE_NAME not in output


def test_the_direction_of_attention_cannot_be_turned_by_a_keyword(head):
    model, inputs = make_model(head), HEADS[head][2]()
    with pytest.raises(ValueError, match="is_causal=.* does not fit a model with is_decoder="):
        model(**inputs, is_causal=not model.config.is_decoder)
    model.config.is_causal = not model.config.is_decoder  # as sentence-transformers' config_kwargs do
    with pytest.raises(ValueError, match="is_causal=.* does not fit a model with is_decoder="):
        model(**inputs)


def test_positions_that_do_not_fit_the_cache_are_refused():
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (2, 9))
    cache = model(ids, use_cache=True)[CACHE_NAME]
    model(ids[:, :2], cache=cache, cache_position=torch.arange(9, 11))
    with pytest.raises(ValueError, match="cache_position must be the positions from 11"):
        model(ids[:, :2], cache=cache, cache_position=torch.arange(2))


@pytest.mark.parametrize("name", ["past_key_value", "cache_params", "layer_past", "mems", "use_cache"])
@pytest.mark.parametrize("cache", [DynamicCache, AstroformerCache])
def test_a_cache_under_another_name_is_an_error_that_says_the_right_one(name, cache):
    arm = "softmax" if cache is DynamicCache else "linear"
    for head in ("AstroformerForCausalLM", "AstroformerModel"):
        model = make_model(head, is_decoder=True, attention_type=arm)
        with pytest.raises(TypeError, match=f"got a {cache.__name__} as '{name}'; give it as '{CACHE_NAME}'"):
            model(torch.ones(1, 3).long(), **{name: cache()})


def test_an_image_model_has_no_cache():
    for head in VISION:
        with pytest.raises(TypeError, match="unexpected keyword argument 'cache'"):
            make_model(head)(**HEADS[head][2](), cache=DynamicCache())


# The classifier because peft's prefix tuning looks there for whether it may bring one.
HAVE_CACHES = ("AstroformerModel", "AstroformerForCausalLM", "AstroformerForSequenceClassification")


def test_signatures_are_those_of_the_release(head):
    parameters = inspect.signature(getattr(astroformer_hf, head).forward).parameters
    assert list(parameters)[1] == ("pixel_values" if head in VISION else "input_ids")
    other = "past_key_values" if CACHE_NAME == "cache" else "cache"
    assert other not in parameters
    assert (CACHE_NAME in parameters) == (head in HAVE_CACHES)
