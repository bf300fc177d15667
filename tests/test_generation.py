# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Decoding: with and without the cache, in pieces, with beams, left-padded, far past the training length."""

import pytest
import torch
from conftest import make_model
from transformers import DynamicCache, StaticCache

from astroformer_hf import AstroformerCache
from astroformer_hf.library_compatibility import CACHE_NAME


@pytest.fixture
def model(variant):
    return make_model("AstroformerForCausalLM", **variant)


def prompts(length=9):
    ids = torch.randint(1, 50, (3, length))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :1] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 5}],
    ids=str,
)
def test_the_cache_changes_nothing(model, options):
    options = {
        "do_sample": False,
        **options,
        "max_new_tokens": 70,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    answers = []
    inputs = prompts()
    for use_cache in (True, False):
        torch.manual_seed(0)
        answers.append(model.generate(**inputs, use_cache=use_cache, **options))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    assert answers[0].sequences.shape[1] == 79
    for cached, uncached in zip(answers[0].logits, answers[1].logits, strict=True):
        torch.testing.assert_close(cached, uncached, rtol=1e-3, atol=1e-4)


def test_a_left_padded_prompt_goes_on_as_it_does_alone(model):
    inputs = prompts()
    together = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    for i, padding in enumerate((0, 4, 1)):
        alone = model.generate(inputs["input_ids"][i : i + 1, padding:], max_new_tokens=20, do_sample=False)
        assert torch.equal(alone[0], together[i, padding:])


@pytest.mark.parametrize("pieces", [(1,) * 9, (4, 5), (8, 1), (1, 7, 1)], ids=str)
def test_in_pieces_is_the_whole(model, pieces):
    inputs = prompts()
    inputs["attention_mask"][0, 5] = 0  # padding also between
    expected = model(**inputs).logits
    cache, outputs, start = None, [], 0
    for size in pieces:
        output = model(
            inputs["input_ids"][:, start : start + size],
            attention_mask=inputs["attention_mask"][:, : start + size],
            cache=cache,
            use_cache=True,
        )
        cache, start = output[CACHE_NAME], start + size
        outputs.append(output.logits)
        assert cache.get_seq_length() == start
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(outputs, dim=1)[real], expected[real], rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_the_cache(model):
    ids = torch.randint(1, 50, (2, 12))

    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradients(model(ids).logits[:, 6:])
    cache = model(ids[:, :6], use_cache=True)[CACHE_NAME]
    in_pieces = gradients(model(ids[:, 6:], cache=cache).logits)
    torch.testing.assert_close(in_pieces, whole, rtol=1e-3, atol=1e-3)


def test_beams_reorder_the_state(model):
    ids = torch.randint(1, 50, (3, 9))
    cache = model(ids, use_cache=True)[CACHE_NAME]
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    following = torch.randint(1, 50, (3, 1))
    expected = model(torch.cat((ids[order], following), dim=1)).logits[:, -1:]
    torch.testing.assert_close(model(following, cache=cache).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_cache_can_be_repeated_selected_and_reset(model):
    ids, following = torch.randint(1, 50, (2, 9)), torch.randint(1, 50, (3, 1))
    cache = model(ids, use_cache=True)[CACHE_NAME]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 1]))
    expected = model(torch.cat((ids[[0, 1, 0]], following), dim=1)).logits[:, -1:]
    torch.testing.assert_close(model(following, cache=cache).logits, expected, rtol=1e-4, atol=1e-4)
    if isinstance(cache, AstroformerCache):
        cache.reset()
        assert cache.get_seq_length() == 0 and cache.num_bytes == 0
        torch.testing.assert_close(model(ids, cache=cache).logits, model(ids).logits)


def test_a_second_turn_goes_on_from_the_first(model):
    first = model.generate(**prompts(), max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    mask = torch.cat((prompts()["attention_mask"], torch.ones(3, 7).long()), dim=1)
    ids = torch.cat((first.sequences, torch.randint(1, 50, (3, 2))), dim=1)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    cached = model.generate(ids, **{CACHE_NAME: first[CACHE_NAME]}, **options)
    assert torch.equal(cached, model.generate(ids, **options))


STREAMING = {
    "sinusoidal": {"astrocyte_code": "sinusoidal"},
    "activity": {"astrocyte_code": "activity"},
    "linear": {"attention_type": "linear"},
}


@pytest.mark.parametrize("code", STREAMING)
def test_streams_far_past_the_training_length_in_constant_memory(code):
    model = make_model("AstroformerForCausalLM", max_position_embeddings=160, **STREAMING[code])
    ids = torch.randint(1, 50, (1, 1600))
    cache, sizes, outputs = AstroformerCache(2), set(), []
    with torch.no_grad():
        expected = model(ids).logits
        for start in range(0, 1600, 50):
            outputs.append(model(ids[:, start : start + 50], cache=cache).logits)
            sizes.add(cache.num_bytes)
        assert len(sizes) == 1
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-3, atol=1e-3)
        output = model.generate(ids[:, :10], max_new_tokens=1590, do_sample=True, return_dict_in_generate=True)
    assert output.sequences.shape == (1, 1600) and output[CACHE_NAME].num_bytes in sizes


def test_the_learned_code_ends_with_its_table():
    model = make_model("AstroformerForCausalLM", astrocyte_code="learned", max_position_embeddings=20)
    ids = torch.randint(1, 50, (1, 10))
    assert model.generate(ids, max_new_tokens=10, do_sample=False).shape == (1, 20)
    with pytest.raises(ValueError, match="max_position_embeddings=20"):
        model.generate(ids, max_new_tokens=12, do_sample=False)
    with pytest.raises(ValueError, match="max_position_embeddings=20"):
        model(torch.randint(1, 50, (1, 21)))


def test_assisted_generation_works_or_says_why_not(variant):
    model = make_model("AstroformerForCausalLM", **variant)
    assistant = make_model("AstroformerForCausalLM", **variant)
    ids = torch.randint(1, 50, (1, 10))
    options = {"max_new_tokens": 12, "do_sample": False}
    if variant.get("attention_type") == "softmax":
        assisted = model.generate(ids, assistant_model=assistant, **options)
        assert torch.equal(assisted, model.generate(ids, **options))
    else:
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            model.generate(ids, assistant_model=assistant, **options)
        cache = model(ids, use_cache=True)[CACHE_NAME]
        with pytest.raises(ValueError, match=r"crop\(-3\): cannot take back 3 of the 10 tokens in the cache"):
            cache.crop(-3)
        with pytest.raises(ValueError, match=r"crop\(4\): cannot keep 4 of the 10 tokens in the cache"):
            cache.crop(4)
        cache.crop(0)


def test_caches_of_another_kind_are_refused():
    ids = torch.randint(1, 50, (1, 10))
    model = make_model("AstroformerForCausalLM")
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=20)):
        with pytest.raises(ValueError, match="must be a AstroformerCache .*'neuron_astrocyte', got a"):
            model(ids, cache=cache)
    with pytest.raises(ValueError, match="must be a DynamicCache .*'softmax', got a AstroformerCache"):
        make_model("AstroformerForCausalLM", attention_type="softmax")(ids, cache=AstroformerCache(2))


def test_caches_that_grow_to_a_size_set_beforehand_are_refused(model):
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        model.generate(**prompts(), max_new_tokens=2, cache_implementation="static")


def test_the_mask_covers_the_cache():
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (2, 10))
    cache = model(ids, use_cache=True)[CACHE_NAME]
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 11\), of which 10 are in the cache"):
        model(ids[:, :1], attention_mask=torch.ones(2, 1), cache=cache)


def test_no_cache_in_training_or_unasked():
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (2, 10))
    assert model(ids)[CACHE_NAME] is not None
    assert model(ids, use_cache=False).get(CACHE_NAME) is None
    assert model.train()(ids).get(CACHE_NAME) is None


def test_prefill_in_chunks(model):
    inputs = prompts(30)
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, prefill_chunk_size=8, **options), expected)


def test_embeddings_as_a_prompt(model):
    inputs = prompts()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    output = model.generate(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=8, do_sample=False
    )
    assert torch.equal(output, expected[:, 9:])


def test_moves_to_another_memory_and_back(model):
    ids = torch.randint(1, 50, (2, 10))
    cache = model(ids, use_cache=True)[CACHE_NAME]
    if isinstance(cache, AstroformerCache):
        for layer in cache.layers:
            layer.offload()
            layer.prefetch()
    following = torch.randint(1, 50, (2, 1))
    expected = model(torch.cat((ids, following), dim=1)).logits[:, -1:]
    torch.testing.assert_close(model(following, cache=cache).logits, expected, rtol=1e-4, atol=1e-4)


def test_half_precision_decodes():
    for arm in ("neuron_astrocyte", "linear", "softmax"):
        model = make_model("AstroformerForCausalLM", attention_type=arm).to(torch.bfloat16)
        ids = torch.randint(1, 50, (2, 10))
        expected = model(ids).logits
        cache = model(ids[:, :9], use_cache=True)[CACHE_NAME]
        torch.testing.assert_close(model(ids[:, 9:], cache=cache).logits, expected[:, 9:], rtol=0.1, atol=0.1)
