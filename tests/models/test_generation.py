# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Decoding: with and without the cache, in pieces, with beams, left-padded, far past the training length."""

import copy
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache
from variants import EACH_TIME, VARIANTS, make_model, some_each_time, tiny_config, tiny_vision_config

from astroformer_hf import AstroformerCache, attention_backend
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


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several of beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "top_k": 5},
}


@pytest.mark.parametrize(
    ("name", "way"),
    some_each_time(
        itertools.product(VARIANTS, WAYS),
        [*itertools.product(EACH_TIME, ["greedy"]), *zip(EACH_TIME, itertools.cycle(list(WAYS)[1:]), strict=False)],
    ),
)
def test_the_cache_changes_nothing(name, way):
    model = make_model("AstroformerForCausalLM", **VARIANTS[name])
    options = {
        "do_sample": False,
        **WAYS[way],
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


def second_turn(model, **options):
    """A batch of which a row ends early and is padded, then two more tokens: the cache, the ids, and their mask."""
    inputs = prompts()
    with torch.no_grad():
        first = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, **options)
    ids, mask = first.sequences, torch.cat((inputs["attention_mask"], torch.ones(3, 6).long()), dim=1)
    mask[0, 12:], ids[0, 12:] = 0, 0
    ids = torch.cat((ids, torch.randint(1, 50, (3, 2))), dim=1)
    return first[CACHE_NAME], ids, torch.cat((mask, torch.ones(3, 2).long()), dim=1)


def test_a_row_that_ended_before_the_others_is_right_in_the_next_turn_or_refused(model):
    cache, ids, mask = second_turn(model)
    past = cache.get_seq_length()
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    expected = model(ids, attention_mask=mask).logits[:, past:]
    if isinstance(cache, AstroformerCache):
        for call in (
            lambda: model(ids[:, past:], attention_mask=mask, cache=cache),
            lambda: model(ids[:, past : past + 1], attention_mask=mask[:, : past + 1], cache=cache),
            lambda: model.generate(ids, **{CACHE_NAME: cache}, **options),
        ):
            with pytest.raises(
                ValueError, match=rf"otherwise of the {past} tokens in the cache .* in row 0 of the .*give the"
            ):
                call()
        cache.batch_select_indices(torch.tensor([1, 2]))  # as the error offers
        ids, mask, expected = ids[1:], mask[1:], expected[1:]
    output = model(ids[:, past:], attention_mask=mask, cache=copy.deepcopy(cache)).logits
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    options["attention_mask"] = mask
    assert torch.equal(model.generate(ids, **{CACHE_NAME: cache}, **options), model.generate(ids, **options))


MASKS = {
    "real for padding": lambda mask: mask.index_fill(1, torch.tensor([0]), 1),
    "padding for real": lambda mask: mask.index_fill(1, torch.tensor([8]), 0),
    "on the other side": lambda mask: torch.cat((mask[:, :9].flip(1), mask[:, 9:]), dim=1),
    "shifted": lambda mask: torch.cat((mask[:, :9].roll(-1, dims=1), mask[:, 9:]), dim=1),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("code", ["activity", "sinusoidal"])
def test_a_mask_says_of_the_cache_what_was_said_when_it_was_written(name, code):
    model, inputs = make_model("AstroformerForCausalLM", astrocyte_code=code), prompts()
    inputs["attention_mask"][0, 3:5] = 0
    following = torch.randint(1, 50, (3, 2))
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 2).long()), dim=1)
    cache = model(**inputs, use_cache=True)[CACHE_NAME]
    with pytest.raises(ValueError, match="attention_mask says otherwise of the 9 tokens in the cache"):
        model(following, attention_mask=MASKS[name](mask), cache=cache)
    # nothing was written; nor does it matter whether the mask was given in pieces, or only where it was needed
    expected = model(torch.cat((inputs["input_ids"], following), dim=1), attention_mask=mask).logits[:, 9:]
    output = model(following, attention_mask=mask, cache=cache).logits
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    model(following, cache=cache)
    model(following, attention_mask=torch.cat((mask, torch.ones(3, 4).long()), dim=1), cache=cache)
    unmasked = model(following, use_cache=True)[CACHE_NAME]
    model(following, attention_mask=torch.ones(3, 4), cache=unmasked)
    with pytest.raises(ValueError, match="says otherwise of the 4 tokens in the cache"):
        model(following, attention_mask=torch.tensor([[0] + [1] * 5]).expand(3, 6), cache=unmasked)


def test_masks_follow_beams_and_copies_of_rows():
    model, inputs = make_model("AstroformerForCausalLM"), prompts()
    cache = model(**inputs, use_cache=True)[CACHE_NAME]
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([5, 4, 3, 2, 1, 0]))
    mask = torch.cat((inputs["attention_mask"].repeat_interleave(2, 0).flip(0), torch.ones(6, 2).long()), dim=1)
    following = torch.randint(1, 50, (6, 2))
    with pytest.raises(ValueError, match="in row 0, 1, 2, 3 of the batch"):
        model(following, attention_mask=mask[[2, 3, 0, 1, 4, 5]], cache=cache)
    model(following, attention_mask=mask, cache=cache)


@pytest.mark.parametrize("mask", [None, 0], ids=["unmasked", "masked"])
def test_a_step_of_decoding_waits_for_no_device(mask, monkeypatch):
    """What costs nothing on a CPU is not done elsewhere: no operation that hands a value to Python."""

    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
            return function(*args, **(kwargs or {}))

    model, inputs = make_model("AstroformerForCausalLM"), prompts()
    if mask is None:
        del inputs["attention_mask"]
    cache = model(**inputs, use_cache=True)[CACHE_NAME]
    monkeypatch.setattr("astroformer_hf.cache_astroformer.may_look_at", lambda tensor: False)
    monkeypatch.setattr("astroformer_hf.forward_keywords.may_look_at", lambda tensor: False)
    monkeypatch.setattr("astroformer_hf.input_checks.may_look_at", lambda tensor: False)
    monkeypatch.setattr("astroformer_hf.packed_rows.may_look_at", lambda tensor: False)
    monkeypatch.setattr("astroformer_hf.input_checks.check_range", lambda *arguments: None)
    if mask is not None:
        mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1).long()), dim=1)
    with torch.no_grad(), attention_backend("plain"), Looks():
        model(torch.ones(3, 1).long(), attention_mask=mask, cache=cache)
    assert cache.get_seq_length() == 10


def test_a_second_turn_with_the_new_tokens_alone(model):
    inputs, following = prompts(), torch.randint(1, 50, (3, 2))
    with torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE_NAME]
    ids = torch.cat((inputs["input_ids"], following), dim=1)
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 2).long()), dim=1)
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(ids, attention_mask=mask, **options)
    given = {CACHE_NAME: copy.deepcopy(cache)}
    assert torch.equal(model.generate(following, attention_mask=mask, **given, **options)[:, 2:], expected[:, 11:])
    for prompt in (following, inputs["input_ids"]):  # without the mask, or without anything new
        with pytest.raises(ValueError, match="no token beyond the 9 in the cache.* attention_mask that covers"):
            model.generate(prompt, **{CACHE_NAME: cache}, **options)
    with pytest.raises(ValueError, match="prefill_chunk_size=2 does not go with a .* that holds 9 tokens"):
        model.generate(ids, attention_mask=mask, **{CACHE_NAME: cache}, prefill_chunk_size=2, **options)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}], ids=str)
def test_prompt_caches_need_a_copy_per_beam(model, options):
    ids = torch.randint(1, 50, (2, 12))
    with torch.no_grad():
        cache = model(ids[:, :9], use_cache=True)[CACHE_NAME]
    with pytest.raises(ValueError, match=r"holds 2 sequences and the input has 6.*cache.batch_repeat_interleave"):
        model.generate(ids, **{CACHE_NAME: cache}, max_new_tokens=4, **options)
    cache.batch_repeat_interleave(3)
    answers = []
    for given in ({CACHE_NAME: cache}, {}):
        torch.manual_seed(0)
        answers.append(model.generate(ids, **given, max_new_tokens=4, **options))
    assert torch.equal(*answers)


def test_rows_that_end_early_do_not_disturb_the_others(model):
    inputs = prompts()
    free = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    end = free[0, 11].item()  # the first row's third token ends a text
    together = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)
    for i, padding in enumerate((0, 4, 1)):
        alone = inputs["input_ids"][i : i + 1, padding:]
        alone = model.generate(alone, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)[0]
        assert torch.equal(alone, together[i, padding : padding + len(alone)])
        assert not together[i, padding + len(alone) :].any()


def test_continuous_batching_is_refused(model):
    prompt = [[1, 2, 3]]
    refused = pytest.raises(NotImplementedError, match="continuous batching .*generate_batch.* is not supported")
    with refused:
        model.generate_batch(prompt, max_new_tokens=3)
    with refused:
        model.generate(torch.tensor(prompt), max_new_tokens=3, cache_implementation="paged")
    with refused:
        model.init_continuous_batching()
    with refused, model.continuous_batching_context_manager():
        pass
    with pytest.raises(TypeError, match="'logits_indices': continuous batching .* is not supported"):
        model(torch.tensor(prompt), logits_indices=torch.arange(3))  # as its manager calls, if it is made by hand


def test_assistants_whose_cache_takes_nothing_back_are_refused():
    softmax = make_model("AstroformerForCausalLM", attention_type="softmax")
    linear = make_model("AstroformerForCausalLM", attention_type="linear")
    ids = torch.randint(1, 50, (1, 10))
    with pytest.raises(ValueError, match="not supported with stateful models"):
        linear.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=6)
    with pytest.raises(
        ValueError, match="cannot take back . of the .* Assisted generation works with .*'softmax' only"
    ):
        softmax.generate(ids, assistant_model=linear, max_new_tokens=6, do_sample=False)


def test_a_cache_is_made_with_or_without_the_number_of_layers():
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (2, 11))
    expected = model(ids).logits[:, 9:]
    for cache in (AstroformerCache(), AstroformerCache(2), AstroformerCache(config=model.config)):
        assert cache.get_seq_length() == 0 and cache.num_bytes == 0
        model(ids[:, :9], cache=cache)
        assert len(cache) == 2
        torch.testing.assert_close(model(ids[:, 9:], cache=cache).logits, expected, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 3, "do_sample": False}
    output = model.generate(ids, **{CACHE_NAME: AstroformerCache()}, **options)
    assert torch.equal(output, model.generate(ids, **options))
    for wrong in (tiny_config(attention_type="softmax"), tiny_vision_config(attention_type="softmax")):
        with pytest.raises(ValueError, match="AstroformerCache is for .*'softmax'"):
            AstroformerCache(config=wrong)
    with pytest.raises(ValueError, match="num_hidden_layers must be the configuration's 2"):
        AstroformerCache(3, config=model.config)


OTHERS = {
    "layers": ({"num_hidden_layers": 3}, "has 3 layers and the model 2"),
    "heads": ({"num_attention_heads": 8}, "was written by another model"),
    "neurons": ({"num_hidden_neurons": 12}, "was written by another model"),
    "code": ({"astrocyte_code": "sinusoidal"}, "was written by another model"),
}


ARMS_AND_OTHERS = [("neuron_astrocyte", name) for name in OTHERS] + [
    (arm, name) for arm in ("linear", "softmax") for name in OTHERS if name != "code"
]


@pytest.mark.parametrize(("arm", "name"), ARMS_AND_OTHERS)
def test_a_cache_of_another_model_is_refused(arm, name):
    changes, message = OTHERS[name]
    model = make_model("AstroformerForCausalLM", attention_type=arm)
    other, ids = make_model("AstroformerForCausalLM", attention_type=arm, **changes), torch.randint(1, 50, (2, 9))
    with pytest.raises(ValueError, match=message):
        model(ids, cache=other(ids, use_cache=True)[CACHE_NAME])
    with pytest.raises(ValueError, match="holds 2 sequences and the input has 1"):
        model(ids[:1], cache=model(ids, use_cache=True)[CACHE_NAME])


def test_gradient_checkpointing_leaves_out_no_cache_in_silence(model):
    ids = torch.randint(1, 50, (2, 12))
    cache = model(ids[:, :9], use_cache=True)[CACHE_NAME]
    expected = model(ids).logits
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(model(ids[:, 9:], cache=copy_of(cache)).logits, expected[:, 9:], rtol=1e-4, atol=1e-4)
    model.train()
    output = model(ids, use_cache=True)
    assert output.get(CACHE_NAME) is None
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"{CACHE_NAME} does not go with gradient checkpointing .*model.eval"):
        model(ids[:, 9:], cache=cache)


def copy_of(cache):
    """A copy of a cache whose tensors are part of a graph, which copy.deepcopy refuses."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    return made


STREAMING = {
    "sinusoidal": {"astrocyte_code": "sinusoidal"},
    "activity": {"astrocyte_code": "activity"},
    "linear": {"attention_type": "linear"},
}


@pytest.mark.parametrize("code", STREAMING)
def test_streams_far_past_the_training_length_in_constant_memory(code):
    model = make_model("AstroformerForCausalLM", max_position_embeddings=160, **STREAMING[code])
    ids = torch.randint(1, 50, (1, 640))
    cache, sizes, outputs = AstroformerCache(2), set(), []
    with torch.no_grad():
        expected = model(ids).logits
        for start in range(0, 640, 40):
            outputs.append(model(ids[:, start : start + 40], cache=cache).logits)
            sizes.add(cache.num_bytes)
        assert len(sizes) == 1
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-3, atol=1e-3)
        output = model.generate(ids[:, :10], max_new_tokens=630, do_sample=True, return_dict_in_generate=True)
    assert output.sequences.shape == (1, 640) and output[CACHE_NAME].num_bytes in sizes


def test_the_learned_code_ends_with_its_table():
    model = make_model("AstroformerForCausalLM", astrocyte_code="learned", max_position_embeddings=20)
    ids = torch.randint(1, 50, (1, 10))
    assert model.generate(ids, max_new_tokens=10, do_sample=False).shape == (1, 20)
    with pytest.raises(ValueError, match="max_position_embeddings=20"):
        model.generate(ids, max_new_tokens=12, do_sample=False)
    with pytest.raises(ValueError, match="max_position_embeddings=20"):
        model(torch.randint(1, 50, (1, 21)))


def test_a_refused_call_leaves_the_cache_as_it_was():
    model = make_model("AstroformerForCausalLM", astrocyte_code="learned", max_position_embeddings=20)
    ids, mask = torch.randint(1, 50, (2, 15)), torch.ones(2, 15).long()
    mask[0, :3] = 0
    with torch.no_grad():
        cache = getattr(model(ids[:, :12], attention_mask=mask[:, :12], use_cache=True), CACHE_NAME)
        longer = torch.randint(1, 50, (2, 9))
        with pytest.raises(ValueError, match="max_position_embeddings=20"):
            model(longer, attention_mask=torch.cat((mask[:, :12], torch.ones(2, 9).long()), 1), **{CACHE_NAME: cache})
        found = model(ids[:, 12:], attention_mask=mask, **{CACHE_NAME: cache}).logits
        torch.testing.assert_close(found, model(ids, attention_mask=mask).logits[:, 12:], rtol=1e-4, atol=1e-4)


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
    for kind in ("static", "offloaded_static"):
        with pytest.raises(ValueError, match=f"cache_implementation='{kind}'"):
            model.generate(**prompts(), max_new_tokens=2, cache_implementation=kind)


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
