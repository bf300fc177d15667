# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Models of the library with swapped attention."""

import copy
import json
import re

import pytest
import torch
import transformers
from conversion.library_models import IMAGE, SUPPORTED, TEXT, LibraryModel
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from variants import HIDE_PACKAGE, some_each_time

from astroformer_hf import swap_attention
from astroformer_hf.library_attention import TokenMask
from astroformer_hf.swapped_attention import (
    AttentionSwap,
    HybridCache,
    SwappedSynapses,
    attention_layers,
    softmax_attention,
)


EACH_TIME = ("BertModel", "ViTModel", "LlamaForCausalLM", "GPT2LMHeadModel")
BY_NAME = {model.name: model for model in SUPPORTED}
GENERATING = [name for name, model in BY_NAME.items() if model.generates]
SWAPS = {
    "linear": {},
    "window and sinks": {"window_size": 4, "sink_tokens": 1},
    "astrocyte": {"window_size": 3, "sink_tokens": 2, "astrocyte_code": "activity", "num_features": 12},
    "fixed map": {"feature_map": "elu", "window_size": 3},
}


def swapped(name, **swap):
    return swap_attention(BY_NAME[name].make("sdpa"), **swap)


@pytest.mark.parametrize("name", some_each_time(BY_NAME, EACH_TIME))
def test_a_window_as_long_as_the_text_changes_nothing(name):
    """Whatever is swapped can be silenced: projections, rotations, masks and scales are those of the original."""
    model, inputs = BY_NAME[name].make("sdpa"), BY_NAME[name].inputs()
    expected, number = model(**inputs)[0], model.num_parameters()
    swap_attention(model, window_size=64)
    torch.testing.assert_close(model(**inputs)[0], expected, rtol=1e-4, atol=1e-5)
    assert model.num_parameters() > number
    assert not torch.allclose(swapped(name, window_size=2)(**inputs)[0], expected, atol=1e-2)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", some_each_time(BY_NAME, EACH_TIME))
def test_maps_and_gradients(name, swap):
    model, inputs = swapped(name, **SWAPS[swap]), BY_NAME[name].inputs()
    output = model(**inputs, output_attentions=True)
    torch.testing.assert_close(output[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)
    sums = output.attentions[0].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    model(**inputs)[0].square().sum().backward()
    silent = {n for n, p in model.named_parameters() if "synapses" in n and (p.grad is None or (p.grad == 0).all())}
    assert not silent


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["BertModel", "LlamaForCausalLM"])
def test_padding_changes_nothing(name, side, swap):
    model, inputs = swapped(name, **SWAPS[swap]), BY_NAME[name].inputs()
    expected, ids, junk = model(**inputs)[0], inputs["input_ids"], torch.randint(3, 60, (2, 5))
    left = side == "left"
    mask = torch.cat((junk * 0, ids * 0 + 1) if left else (ids * 0 + 1, junk * 0), dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = torch.cat((junk, ids) if left else (ids, junk), dim=1)
    output = model(padded, attention_mask=mask, position_ids=positions)[0]
    torch.testing.assert_close(output[:, 5:] if left else output[:, :9], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", ["all", [1]], ids=str)
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", some_each_time(GENERATING, ("LlamaForCausalLM", "GPT2LMHeadModel")))
def test_generates_as_without_a_cache(name, swap, layers):
    model, ids = swapped(name, **SWAPS[swap], layers=layers), torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 7, "min_new_tokens": 7, "pad_token_id": 0, "do_sample": False}
    sizes = []
    for search in ({}, {"num_beams": 3}):
        expected = model.generate(ids, **options, **search, use_cache=False)
        cache = HybridCache(model.config)
        found = model.generate(ids, **options, **search, past_key_values=cache)
        assert torch.equal(found, expected) and torch.equal(model.generate(ids, **options, **search), expected)
        sizes.append(cache.num_bytes)
    longer = HybridCache(model.config)
    model(ids.repeat(1, 3), past_key_values=longer)
    assert (longer.num_bytes == sizes[0]) == (layers == "all")


@pytest.mark.parametrize("swap", SWAPS)
def test_prefill_in_pieces(swap):
    model, ids = swapped("LlamaForCausalLM", **SWAPS[swap]), torch.randint(3, 60, (2, 30))
    expected, cache, logits = model(ids).logits, HybridCache(model.config), []
    for piece in ids.split([11, 1, 13, 5], dim=1):
        logits.append(model(piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 30
    with pytest.raises(ValueError, match=r"crop\(-2\): the synapses hold sums over the 30 tokens"):
        cache.crop(-2)
    with pytest.raises(ValueError, match="attention maps .* with a cache"):
        model(ids[:, :1], past_key_values=cache, output_attentions=True)


def test_the_ways_of_generating():
    model, ids = swapped("LlamaForCausalLM", window_size=4, sink_tokens=2), torch.randint(3, 60, (2, 23))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    expected = model.generate(ids, **options, do_sample=False)
    assert torch.equal(model.generate(ids, **options, do_sample=False, prefill_chunk_size=5), expected)
    sampled = []
    for use_cache in (False, True):
        torch.manual_seed(0)
        sampled.append(model.generate(ids, **options, do_sample=True, use_cache=use_cache))
    assert torch.equal(*sampled)
    with pytest.raises(ValueError, match="cache_implementation='static' is not supported by a swapped model"):
        model.generate(ids, **options, cache_implementation="static")
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids[:1], max_new_tokens=4, pad_token_id=0, prompt_lookup_num_tokens=3)


def test_a_model_of_text_and_images(tmp_path):
    fields = {"text_config": {**TEXT, "eos_token_id": 2}, "vision_config": IMAGE}
    model = transformers.CLIPModel(transformers.CLIPConfig(**fields)).eval()
    inputs = {**BY_NAME["BertModel"].inputs(), **BY_NAME["ViTModel"].inputs()}
    expected = model(**inputs).logits_per_text
    swap_attention(model, window_size=40)
    torch.testing.assert_close(model(**inputs).logits_per_text, expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits_per_text, model(**inputs).logits_per_text)


def test_a_cache_that_is_not_handed_on_is_refused():
    model, ids = swapped("LlamaForCausalLM"), torch.randint(3, 60, (2, 9))
    cache = HybridCache(model.config)
    model(ids, past_key_values=cache)
    for layer in attention_layers(model):
        layer._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="a HybridCache is for models whose attention is swapped"):
        model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_softmax_of_layers_that_are_not_swapped(padded, length, causal):
    query, key, value = torch.randn(2, 4, length, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[0, :2] = not padded
    mask = TokenMask(real if padded else None, causal)
    output, _ = softmax_attention(query, key, value, mask, 0.0, 0.3, False)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    place = torch.arange(5)
    seen = real[:, None, None, :] & (place <= place[5 - length :, None] if causal else True)
    expected = scores.masked_fill(~seen, -1e9).softmax(-1) @ value.repeat_interleave(2, 1)
    shown = real[:, None, 5 - length :, None]
    torch.testing.assert_close(output * shown, expected * shown)
    from_map, weights = softmax_attention(query, key, value, mask, 0.0, 0.3, True)
    torch.testing.assert_close(from_map * shown, expected * shown)
    assert weights.shape == (2, 4, length, 5)


def test_only_the_layers_that_are_named_are_swapped():
    model = swapped("BertModel", layers=[1], window_size=2)
    first, second = attention_layers(model)
    assert not hasattr(first, "synapses") and isinstance(second.synapses, SwappedSynapses)
    assert AttentionSwap(**model.config.attention_swap).layers == (1,)
    everything = swapped("BertModel", window_size=2)
    inputs = BY_NAME["BertModel"].inputs()
    assert not torch.allclose(model(**inputs)[0], everything(**inputs)[0], atol=1e-3)


@pytest.mark.parametrize("name", some_each_time(BY_NAME, EACH_TIME))
def test_saved_and_loaded_again(name, tmp_path):
    # loaded first, since the library renames weights of some checkpoints, and names them back as it saves
    BY_NAME[name].make("sdpa").save_pretrained(tmp_path / "original")
    original = getattr(transformers, name).from_pretrained(tmp_path / "original").eval()
    model, inputs = swap_attention(original, **SWAPS["astrocyte"]), BY_NAME[name].inputs()
    with torch.no_grad():  # as if they had learned
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    expected = model(**inputs)[0]
    model.save_pretrained(tmp_path)
    auto_class = AutoModelForCausalLM if BY_NAME[name].generates else AutoModel
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and isinstance(loaded, getattr(transformers, name))
    assert loaded.config.model_type == "astromorphic" and loaded.config.hidden_size == 32
    assert torch.equal(loaded(**inputs)[0], expected)
    again = auto_class.from_config(AutoConfig.from_pretrained(tmp_path))
    assert again.state_dict().keys() == loaded.state_dict().keys()
    # never a model with softmax attention that says nothing
    with pytest.raises((StrictDataclassFieldValidationError, TypeError), match="hidden|num_|str"):
        getattr(transformers, name).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the attention of a swapped model is not chosen by it"):
        auto_class.from_pretrained(tmp_path, attn_implementation="sdpa")
    with pytest.raises(ValueError, match="the attention of a swapped model is not chosen by it"):
        loaded.set_attn_implementation("sdpa")


def test_a_head_finds_the_model_in_a_checkpoint_of_another(tmp_path):
    model, inputs = swapped("BertModel", window_size=3), BY_NAME["BertModel"].inputs()
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    assert classifier(**inputs).logits.shape == (2, 3)
    hidden = classifier(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden, model(**inputs).last_hidden_state)


STRANGER = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

for folder, generates in json.loads(sys.argv[1]).items():
    auto_class = AutoModelForCausalLM if generates else AutoModel
    try:
        auto_class.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("loaded without its code")
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    tensors = load_file(folder + "/expected.safetensors")
    expected, text = tensors.pop("expected"), tensors.pop("text", None)
    assert torch.equal(model(**tensors)[0], expected)
    if generates:
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
        found = model.generate(**tensors, **options)
        assert torch.equal(found.sequences, text) and type(found.past_key_values).__name__ == "HybridCache"
    model.save_pretrained(folder + "/again")
    assert torch.equal(auto_class.from_pretrained(folder + "/again", trust_remote_code=True)(**tensors)[0], expected)
print("equal")
"""


def test_a_stranger_loads_it_with_the_code_that_came_along(tmp_path, strangers):
    folders = {}
    for name in ("BertModel", "LlamaForCausalLM"):
        model, inputs = swapped(name, window_size=3, sink_tokens=1), BY_NAME[name].inputs()
        folder = str(tmp_path / name)
        model.save_pretrained(folder)
        expected = {**inputs, "expected": model(**inputs)[0].detach()}
        if BY_NAME[name].generates:
            expected["text"] = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
        save_file(expected, folder + "/expected.safetensors")
        folders[folder] = BY_NAME[name].generates
    program = tmp_path / "stranger.py"
    program.write_text(HIDE_PACKAGE + STRANGER)
    assert strangers.run(program, json.dumps(folders)).stdout.endswith("equal\n")


@pytest.mark.parametrize(
    "contents, message",
    [
        ({}, "needs original_config and attention_swap"),
        ({"original_config": {}, "attention_swap": {}}, "original_model_type is None, which transformers does not"),
        (
            {"original_config": {}, "attention_swap": {}, "original_model_type": "no_such"},
            "original_model_type is 'no_such', which transformers does not know",
        ),
    ],
    ids=str,
)
def test_a_damaged_configuration_is_named(contents, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "astromorphic", **contents}))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_a_copy_is_a_model_of_its_own():
    model, inputs = swapped("LlamaForCausalLM", window_size=2), BY_NAME["LlamaForCausalLM"].inputs()
    twin, expected = copy.deepcopy(model), model(**inputs).logits
    with torch.no_grad():
        twin.model.layers[0].self_attn.synapses.log_loudness.add_(3)
    torch.testing.assert_close(model(**inputs).logits, expected)
    assert not torch.allclose(twin(**inputs).logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"feature_map": "favor"}, "feature_map must be one of .*'hedgehog'.* got 'favor'"),
        ({"num_features": 7}, "num_features must be an even number"),
        ({"feature_map": "elu", "num_features": 8}, "is for feature_map 'hedgehog'"),
        ({"window_size": -1}, "window_size must be a whole number of at least 0, got -1"),
        ({"sink_tokens": 1.5}, "sink_tokens must be a whole number of at least 0, got 1.5"),
        ({"astrocyte_code": "learned"}, r"astrocyte_code must be None or one of \['activity'\], got 'learned'"),
        ({"astrocyte_scale": 0}, "astrocyte_scale must be above 0, got 0"),
        *(
            (
                {"layers": layers},
                f"layers must be 'all' or a list of numbers from 0 to 1, got {re.escape(repr(layers))}",
            )
            for layers in ([2], [], 1, [True], "some", torch.tensor([0, 1]))
        ),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        swapped("BertModel", **options)


def test_what_cannot_be_swapped_is_refused():
    with pytest.raises(ValueError, match="the attention of this AstromorphicBertModel is swapped already"):
        swap_attention(swapped("BertModel"))
    with pytest.raises(ValueError, match="DebertaV2Model does not follow the library's attention interface"):
        swap_attention(LibraryModel("DebertaV2Model", TEXT).make("eager"))
    with pytest.raises(TypeError, match=r"swap_attention has no option \['windows'\]"):
        swapped("BertModel", windows=3)
