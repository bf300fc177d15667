# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Models that read in segments: against each text alone read by hand; gradients, generation, what is refused."""

import copy
import importlib.util
import itertools
import math
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from simulation.macro_model import Constants, retention_table, streaming_retention
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments
from variants import EACH_TIME, HEADS, VARIANTS, make_model, tiny_config

import astroformer_hf
from astroformer_hf import AstroformerCache, AstroformerForCausalLM, AstroformerModel, cache_astroformer, segments
from astroformer_hf.library_compatibility import CACHE_NAME
from astroformer_hf.token_layout import sequence_layout


SIZE, MEMORY = 4, 3
ARMS = {name: VARIANTS[name] for name in EACH_TIME}
LENGTHS = (11, 8, 3, 1, 13)


def segment_model(name="AstroformerModel", **changes):
    fields = {"segment_length": SIZE, "num_memory_tokens": MEMORY}
    return make_model(name, **{**fields, **changes})


def batch(side="right", lengths=LENGTHS):
    """Texts of these lengths in one batch, and each alone."""
    texts = [torch.randint(1, 50, (1, length)) for length in lengths]
    longest = max(lengths) + 1  # so that no row is without padding
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        length = text.shape[1]
        places = {
            "right": torch.arange(length),
            "left": torch.arange(longest - length, longest),
            "between": torch.cat((torch.arange(length // 2), torch.arange(longest - length + length // 2, longest))),
        }[side]
        ids[row, places], mask[row, places] = text[0], 1
    return ids, mask, texts


def read_by_hand(model, text, retention=None):
    """Hidden states and memory of a text alone, segment by segment, by nothing but the model's blocks."""
    memory = torch.zeros(1, MEMORY, model.config.hidden_size, dtype=model.memory.embeddings.dtype)
    read, num_segments = [], math.ceil(text.shape[1] / SIZE)
    table = {
        "ltp": lambda: retention_table(num_segments),
        "streaming": lambda: [streaming_retention(t) for t in range(1, num_segments + 1)],
        "none": lambda: [1.0] * num_segments,
    }[model.config.memory_retention]()
    causal = model.config.is_decoder
    for t, tokens in enumerate(text.split(SIZE, dim=1)):
        length = tokens.shape[1]
        layout = sequence_layout(MEMORY + length + causal * MEMORY, text.device, causal=causal)
        head = model.memory.embeddings + memory
        own = model.embeddings(tokens, None, torch.arange(MEMORY, MEMORY + length)[None], None)
        hidden = model.encode(torch.cat([head, own] + [head] * causal, 1), layout, False)
        read.append(hidden[:, MEMORY : MEMORY + length])
        after = hidden[:, -MEMORY:] if causal else hidden[:, :MEMORY]
        memory = table[t] * after / after.square().mean(-1, keepdim=True).sqrt()
    return torch.cat(read, 1), memory


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("retention", ["streaming", "none", "ltp"])
def test_a_text_is_read_segment_by_segment(arm, retention, causal):
    if causal and retention == "ltp":
        pytest.skip("a decoder does not know how many segments are to come")
    model = segment_model(is_decoder=causal, memory_retention=retention, **ARMS[arm]).double()
    for length in (3, 4, 11):
        text = torch.randint(1, 50, (1, length))
        read, memory = read_by_hand(model, text)
        outputs = model(text, use_cache=False)
        assert_close(outputs.last_hidden_state, read, rtol=1e-9, atol=1e-9)
        assert_close(outputs.memory, memory, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", ["right", "left", "between"])
@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_padded_batch_is_each_text_alone(arm, causal, side):
    retention = "none" if causal or side == "left" else "ltp" if side == "right" else "streaming"
    # numbers of tokens are in float32, where lengths differ
    model = segment_model(is_decoder=causal, memory_retention=retention, **ARMS[arm]).double()
    ids, mask, texts = batch(side)
    weight, to_memory = torch.randn(model.config.hidden_size).double(), torch.randn(MEMORY, 1).double()

    def grads(inputs):
        model.zero_grad()
        total, outputs = 0.0, []
        for keywords in inputs:
            output = model(**keywords, use_cache=False)
            real = keywords.get("attention_mask", torch.ones_like(keywords["input_ids"]))
            total = total + (output.last_hidden_state @ weight * real).sin().sum()
            total = total + (output.memory * to_memory).sin().sum()
            outputs.append(output)
        total.backward()
        return outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (together,), expected = grads([{"input_ids": ids, "attention_mask": mask}])
    alone, found = grads([{"input_ids": text} for text in texts])
    for row, output in enumerate(alone):
        assert_close(together.last_hidden_state[row][mask[row] == 1], output.last_hidden_state[0], rtol=1e-6, atol=1e-6)
        assert_close(together.memory[row], output.memory[0], rtol=1e-6, atol=1e-6)
    assert expected.keys() == found.keys() and "memory.embeddings" in found
    for name, grad in expected.items():
        assert_close(found[name], grad, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_padding_leaves_the_memory_unchanged():
    model = segment_model()
    ids, memory = torch.randint(1, 50, (2, 9)), torch.randn(2, MEMORY, 32)
    mask = torch.ones_like(ids)
    mask[1] = 0
    outputs = model(ids, attention_mask=mask, memory=memory)
    assert torch.equal(outputs.memory[1], memory[1]) and not torch.equal(outputs.memory[0], memory[0])
    assert not outputs.last_hidden_state[1].any()


def test_the_retention_is_that_of_the_macro_model():
    constants = Constants()
    assert segments.LEAK_PER_SEGMENT == pytest.approx(constants.leak_per_cycle)
    for num_segments in (1, 2, 7, 16):
        own = [segments.retention_of_share(t, num_segments) for t in range(1, num_segments + 1)]
        assert own == pytest.approx(list(retention_table(num_segments, constants)))
        assert sum(own) == pytest.approx(1)
        padded = [segments.retention_of_share(t, torch.tensor([[num_segments], [0]])) for t in range(1, 3)]
        assert torch.stack(padded).isfinite().all() and padded[0][0].item() == pytest.approx(own[0], rel=1e-6)
    retention = torch.zeros(()).double()
    for t in range(1, 60):
        retention = segments.next_streaming_retention(retention)
        expected = max(streaming_retention(t, constants), segments.LEAST_RETENTION)
        assert retention.item() == pytest.approx(expected, rel=1e-9)


def test_a_row_of_padding_spoils_no_gradient():
    found = []
    for rows in (2, 1):
        torch.manual_seed(0)
        model = segment_model("AstroformerForSequenceClassification", memory_retention="ltp")
        ids, mask = torch.randint(1, 50, (2, 9)), torch.ones(2, 9).long()
        mask[1] = 0
        model(ids[:rows], attention_mask=mask[:rows], labels=torch.tensor([0, -100][:rows])).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in found[1].items():
        assert_close(found[0][name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_memory_in_half_precision_never_begins_anew():
    model = segment_model(memory_retention="streaming", segment_length=2, num_hidden_layers=1).half()
    strength, memory = [], None
    with torch.no_grad():
        for _ in range(130):
            memory = model(torch.randint(1, 50, (1, 2)), memory=memory).memory
            strength.append(memory.float().square().mean().sqrt().item())
    assert all(later < 1.05 * earlier for earlier, later in itertools.pairwise(strength))
    assert strength[-1] == pytest.approx(segments.LEAST_RETENTION, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_how_strong_the_memory_is(dtype):
    text = torch.randint(1, 50, (2, 5 * SIZE))
    strength = {}
    for retention in ("streaming", "ltp", "none"):
        model = segment_model(memory_retention=retention).to(dtype)
        strength[retention] = [
            model(text[:, : SIZE * t]).memory.float().square().mean((1, 2)).sqrt().mean().item() for t in (1, 2, 5)
        ]
    tolerance = {"rel": 1e-5 if dtype == torch.float32 else 1e-2}
    assert strength["none"] == pytest.approx([1, 1, 1], **tolerance)
    assert strength["streaming"] == pytest.approx([streaming_retention(t) for t in (1, 2, 5)], **tolerance)
    assert strength["ltp"] == pytest.approx([retention_table(t)[-1] for t in (1, 2, 5)], **tolerance)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_what_comes_out_depends_on_memory_and_retention(causal):
    text = torch.randint(1, 50, (2, 5 * SIZE))
    model = segment_model(is_decoder=causal, memory_retention="none")
    read = model(text).last_hidden_state
    model.config.memory_retention = "streaming"
    other = model(text).last_hidden_state
    # the first memory is as strong either way
    assert_close(other[:, : 2 * SIZE], read[:, : 2 * SIZE])
    assert (other[:, 2 * SIZE : 3 * SIZE] - read[:, 2 * SIZE : 3 * SIZE]).abs().max() > 1e-3
    first = text.clone()
    first[:, 0] = first[:, 0] % 49 + 1
    changed = (model(first).last_hidden_state - other).abs().amax((0, 2))
    assert (changed > 1e-6).all()  # at every token of all segments
    without = segment_model(is_decoder=causal, num_memory_tokens=0)
    changed = (without(first).last_hidden_state - without(text).last_hidden_state).abs().amax((0, 2))
    assert (changed[SIZE:] == 0).all() and (changed[:SIZE] > 0).any()


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("retention", ["streaming", "none"])
def test_in_pieces_a_text_is_the_whole(retention, causal):
    model = segment_model(is_decoder=causal, memory_retention=retention).double()
    text = torch.randint(1, 50, (2, 6 * SIZE + 1))
    whole = model(text, use_cache=False)
    memory, read = None, []
    for piece in text.split(2 * SIZE, dim=1):
        outputs = model(piece, memory=memory, use_cache=False)
        memory = outputs.memory
        read.append(outputs.last_hidden_state)
    assert_close(torch.cat(read, 1), whole.last_hidden_state, rtol=1e-9, atol=1e-9)
    assert_close(memory, whole.memory, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------------------------

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}


def gradients(model, inputs, use_cache=False):
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    outputs = model(**inputs, use_cache=use_cache)
    (outputs.last_hidden_state.sin().sum() + outputs.memory.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_replay_gives_the_gradients_of_all_segments(dtype, checkpointing, causal):
    model = segment_model(is_decoder=causal, **DROPOUT).to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids, mask, _ = batch("left")
    found = {}
    for backprop in ("full", "replay", 20):
        model.config.memory_backprop = backprop
        found[backprop] = gradients(model, {"input_ids": ids, "attention_mask": mask})
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    for name, grad in found["full"].items():
        assert_close(found["replay"][name], grad, **tolerance)
        assert_close(found[20][name], grad, **tolerance)


@pytest.mark.parametrize("crossed", [0, 1, 2])
def test_gradients_go_through_so_many_memories(crossed):
    model = segment_model(memory_backprop=crossed)
    lengths = (6 * SIZE, 4 * SIZE - 1)
    ids, mask, _ = batch("right", lengths)
    embeddings = model.embeddings.word_embeddings(ids).detach()
    for row, length in enumerate(lengths):
        num_segments = math.ceil(length / SIZE)
        for t in range(num_segments):  # which segments does segment t learn from?
            inputs = embeddings.clone().requires_grad_()
            read = model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
            read[row, t * SIZE : (t + 1) * SIZE].sin().sum().backward()
            reached = [inputs.grad[row, s * SIZE : (s + 1) * SIZE].any().item() for s in range(num_segments)]
            group = crossed + 1
            first = num_segments - math.ceil((num_segments - t) / group) * group
            assert reached == [max(first, 0) <= s <= t for s in range(num_segments)], (row, t, reached)
        assert t - max(first, 0) == min(crossed, num_segments - 1)  # the last segment's, as far as it may


def kept_bytes(model, ids):
    """What autograd keeps of a forward pass, each storage once."""
    kept = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = model(ids)
    del outputs
    return sum(kept.values())


def test_replay_keeps_little():
    ids = torch.randint(1, 50, (1, 64 * 16))
    fields = {"segment_length": 64, "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}
    model = make_model("AstroformerForSequenceClassification", **fields)
    model.config.memory_backprop = "full"
    full = kept_bytes(model, ids)
    model.config.memory_backprop = "replay"
    assert kept_bytes(model, ids) < full / 10


def test_a_memory_learns_to_carry():
    """The class is one token of the first segment, and is asked for at the end of the second."""
    config = tiny_config(segment_length=8, num_memory_tokens=4, pooling="last", num_labels=8, initializer_range=0.1)
    model = astroformer_hf.AstroformerForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    right = []
    for _ in range(300):
        labels, ids = torch.randint(8, (32,)), torch.randint(9, 50, (32, 16))
        ids[:, 2] = 1 + labels
        outputs = model(ids, labels=labels)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        right.append((outputs.logits.argmax(-1) == labels).float().mean().item())
        if sum(right[-10:]) > 9.5:
            return
    raise AssertionError(f"{right[-10:]} of the last answers were right, in {len(right)} steps")


# --------------------------------------------------------------------------------------------------------------------
# Decoders with a cache
# --------------------------------------------------------------------------------------------------------------------

CACHED = {name: fields for name, fields in ARMS.items() if fields.get("attention_type") != "softmax"}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several of beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "top_k": 5},
    "in chunks": {"prefill_chunk_size": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arm", CACHED)
def test_generating_with_the_cache_changes_nothing(arm, way):
    model = segment_model("AstroformerForCausalLM", **CACHED[arm])
    ids, mask, _ = batch("left", (11, 8, 3))
    options = {"do_sample": False, "max_new_tokens": 14, "return_dict_in_generate": True, "output_logits": True}
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        own = dict(WAYS[way])
        if not use_cache:
            own.pop("prefill_chunk_size", None)
        answers.append(model.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **{**options, **own}))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    assert answers[0].sequences.shape[1] == 26
    for cached, uncached in zip(answers[0].logits, answers[1].logits, strict=True):
        assert_close(cached, uncached, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padding", [None, "left", "right", "between"])
@pytest.mark.parametrize("pieces", [(1,) * 14, (4, 4, 6), (5, 1, 8), (13, 1)], ids=str)
@pytest.mark.parametrize("num_memory_tokens", [MEMORY, 0])
def test_with_a_cache_pieces_are_the_whole(num_memory_tokens, pieces, padding):
    model = segment_model("AstroformerForCausalLM", num_memory_tokens=num_memory_tokens).double()
    ids, mask, _ = batch(padding or "right")
    if padding is None:
        mask = torch.ones_like(mask)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False)
        at_once = model(ids, attention_mask=mask, use_cache=True)
        assert_close(at_once.logits * mask[..., None], whole.logits * mask[..., None], rtol=1e-8, atol=1e-8)
        assert_close(at_once.memory, whole.memory, rtol=1e-8, atol=1e-8)
        cache, logits, start = None, [], 0
        for size in pieces:
            state = {CACHE_NAME: cache}
            outputs = model(
                ids[:, start : start + size], attention_mask=mask[:, : start + size], use_cache=True, **state
            )
            cache = getattr(outputs, CACHE_NAME)
            logits.append(outputs.logits)
            start += size
            assert cache.get_seq_length() == start
            if size > 1 or start == 1:
                so_far = model(ids[:, :start], attention_mask=mask[:, :start], use_cache=False).memory
                assert_close(outputs.memory, so_far, rtol=1e-8, atol=1e-8)
            else:
                assert outputs.memory is None
    assert_close(torch.cat(logits, 1) * mask[..., None], whole.logits * mask[..., None], rtol=1e-8, atol=1e-8)
    if pieces[-1] == 1 and num_memory_tokens > 0:
        sizes = {x.num_bytes for x in (cache, getattr(at_once, CACHE_NAME))}
        assert len(sizes) == 1  # whatever the length


def test_a_memory_before_the_prompt():
    model = segment_model("AstroformerForCausalLM")
    text = torch.randint(1, 50, (2, 4 * SIZE))
    memory = model(text, use_cache=False).memory
    prompt = torch.randint(1, 50, (2, 6))
    together = torch.cat((text, prompt), dim=1)
    expected = model.generate(together, max_new_tokens=9, do_sample=False)[:, text.shape[1] :]
    for use_cache in (True, False):
        answer = model.generate(prompt, memory=memory, max_new_tokens=9, do_sample=False, use_cache=use_cache)
        assert torch.equal(answer, expected)


def test_a_cache_can_be_gone_on_from_twice():
    model = segment_model("AstroformerForCausalLM")
    prompt = torch.randint(1, 50, (1, 10))
    outputs = model.generate(prompt, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    cache = getattr(outputs, CACHE_NAME)
    kept = copy.deepcopy(cache)
    more = torch.cat((outputs.sequences, torch.randint(1, 50, (1, 7))), dim=1)
    expected = model.generate(more, max_new_tokens=6, do_sample=False)
    for state in (cache, kept):
        assert torch.equal(model.generate(more, max_new_tokens=6, do_sample=False, **{CACHE_NAME: state}), expected)


def test_one_token_at_a_time_with_a_memory():
    model = segment_model("AstroformerForSequenceClassification", is_decoder=True, pooling="last", segment_length=1)
    text = torch.randint(1, 50, (1, 6))
    with torch.no_grad():
        memory = None
        for token in text.split(1, dim=1):
            outputs = model(token, memory=memory)
            memory = outputs.memory
        assert_close(outputs.logits, model(text).logits)


def test_a_memory_is_taken_in_the_model_s_precision():
    model = segment_model("AstroformerForCausalLM")
    ids, mask, _ = batch("left", (11, 8))
    inputs = {"input_ids": ids, "attention_mask": mask, "memory": torch.randn(2, MEMORY, 32).bfloat16()}
    with torch.no_grad():
        cached, uncached = (
            model(**inputs, use_cache=use_cache).logits * mask[..., None] for use_cache in (True, False)
        )
        assert_close(cached, uncached, rtol=1e-4, atol=1e-4)
        inputs["memory"] = inputs["memory"].float()
        assert model.bfloat16()(**inputs).logits.isfinite().all()


def test_a_refused_call_leaves_the_cache_as_it_was():
    model = segment_model("AstroformerForCausalLM")
    ids, mask, _ = batch("left", (11, 8))
    memory = torch.zeros(2, MEMORY, 32)
    with torch.no_grad():
        cache = getattr(model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True), CACHE_NAME)
        rest = {"input_ids": ids[:, 6:], "attention_mask": mask, CACHE_NAME: cache}
        for refused in ({"memory": memory}, {"position_ids": torch.arange(6, 12)[None]}):
            with pytest.raises(ValueError, match="memory does not go|position_ids must count"):
                model(**rest, **refused)
        whole = model(ids, attention_mask=mask, use_cache=False).logits[:, 6:]
        assert_close(model(**rest).logits * mask[:, 6:, None], whole * mask[:, 6:, None], rtol=1e-4, atol=1e-4)
    more = torch.cat((ids, ids[:, -1:]), dim=1)
    with pytest.raises(ValueError, match="memory does not go with the 12 tokens"):
        model.generate(more, memory=memory, **{CACHE_NAME: cache})


def test_positions_after_a_padded_beginning():
    model = segment_model("AstroformerForCausalLM")
    ids, mask, _ = batch("left", (11, 8))
    new = torch.randint(1, 50, (2, 3))
    counted = mask.sum(-1, keepdim=True) + torch.arange(3)
    for positions, fits in ((counted, True), (torch.arange(12, 15)[None], False), (counted + 1, False)):
        with torch.no_grad():
            cache = getattr(model(ids, attention_mask=mask, use_cache=True), CACHE_NAME)
            if fits:
                model(new, position_ids=positions, **{CACHE_NAME: cache})
            else:
                with pytest.raises(ValueError, match="position_ids (must count|go on from 12 tokens)"):
                    model(new, position_ids=positions, **{CACHE_NAME: cache})


@pytest.mark.parametrize("changes", [{"segment_length": 5}, {"astrocyte_code": "sinusoidal"}], ids=str)
def test_a_cache_of_another_segmented_model(changes):
    prompt = torch.randint(1, 50, (1, 6))
    with torch.no_grad():
        cache = getattr(segment_model("AstroformerForCausalLM")(prompt, use_cache=True), CACHE_NAME)
        with pytest.raises(ValueError, match="written by another model"):
            segment_model("AstroformerForCausalLM", **changes)(prompt, **{CACHE_NAME: cache})


def test_a_compiled_model_generates():
    model = segment_model("AstroformerForCausalLM", num_hidden_layers=1)
    ids, mask, _ = batch("left", (11, 8))
    options = {"max_new_tokens": 3, "do_sample": False}
    expected = model.generate(ids, attention_mask=mask, **options)
    model.forward = torch.compile(model.forward, backend="eager")
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), expected)


def test_torch_func():
    model = segment_model("AstroformerForSequenceClassification").double()
    ids, mask, _ = batch()
    parameters = dict(model.named_parameters())

    def loss(parameters):
        inputs = {"input_ids": ids, "attention_mask": mask}
        return torch.func.functional_call(model, parameters, kwargs=inputs).logits.sin().sum()

    loss(parameters).backward()
    for name, grad in torch.func.grad(loss)(parameters).items():
        own = parameters[name].grad
        assert_close(grad, torch.zeros_like(grad) if own is None else own)


# --------------------------------------------------------------------------------------------------------------------
# The library around
# --------------------------------------------------------------------------------------------------------------------


def trained(folder, steps, **changes):
    """The loss that `Trainer` logs for two updates, and what it evaluates, with a batch in `steps` parts."""
    torch.manual_seed(0)
    model = segment_model("AstroformerForSequenceClassification", **changes)
    texts = [{"input_ids": list(range(1, 2 + 3 * i)), "labels": i % 2} for i in range(8)]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=texts,
        eval_dataset=texts,
        data_collator=padded,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.predict(texts).predictions


def padded(features):
    """Texts of different lengths in a batch."""
    longest = max(len(feature["input_ids"]) for feature in features)
    rows = [feature["input_ids"] + [0] * (longest - len(feature["input_ids"])) for feature in features]
    mask = [[1] * len(feature["input_ids"]) + [0] * (longest - len(feature["input_ids"])) for feature in features]
    columns = {"input_ids": rows, "attention_mask": mask, "labels": [feature["labels"] for feature in features]}
    return {name: torch.tensor(x) for name, x in columns.items()}


def test_trainer(tmp_path):
    losses, logits = trained(tmp_path, 1)
    assert logits.shape == (8, 2)  # and no memory
    for other in (trained(tmp_path, 4), trained(tmp_path, 1, memory_backprop="full")):
        assert other[0] == pytest.approx(losses, rel=1e-4)
        assert other[1] == pytest.approx(logits, abs=1e-3)


@pytest.mark.parametrize("name", ["AstroformerForCausalLM", "AstroformerForImageClassification"])
def test_predictions_are_logits_alone(name, tmp_path):
    inputs = HEADS[name][2]()
    data = [{key: x[i] for key, x in inputs.items()} for i in range(4)]
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    model = segment_model(name)
    predictions = Trainer(model=model, args=arguments).predict(data).predictions
    with torch.no_grad():
        assert_close(torch.as_tensor(predictions), model(**inputs).logits)


def test_saved_and_loaded(tmp_path):
    ids, mask, _ = batch()
    for name in ("AstroformerForSequenceClassification", "AstroformerForCausalLM"):
        model = segment_model(name, memory_retention="none", memory_backprop=2)
        model.save_pretrained(tmp_path / name)
        again = type(model).from_pretrained(tmp_path / name)
        assert (again.config.segment_length, again.config.memory_backprop) == (SIZE, 2)
        inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("of_memory", [False, True])
def test_adapters(of_memory):
    model = segment_model("AstroformerForSequenceClassification")
    kind = {"target_parameters": ["memory.embeddings"]} if of_memory else {}
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False, **kind))
    ids, mask, _ = batch()
    found = {}
    for backprop in ("full", "replay"):
        model.config.memory_backprop = backprop
        adapted.zero_grad()
        outputs = adapted(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 0, 1, 1]))
        outputs.loss.backward()
        found[backprop] = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert any("lora" in name for name in found["full"])
    for name, grad in found["full"].items():
        assert_close(found["replay"][name], grad, rtol=1e-5, atol=1e-6)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(input_ids=ids, attention_mask=mask).logits, outputs.logits)
    assert_close(adapted.merge_and_unload()(ids, mask).logits, outputs.logits, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Images, the graph, what is refused
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["sinusoidal", "learned", "activity"])
def test_images_are_sequences_of_patches(code):
    model = make_model("AstroformerForImageClassification", segment_length=6, astrocyte_code=code)
    images = torch.randn(3, 3, 16, 16)
    outputs = model(images)
    base = model.astroformer_vision
    embeddings, _ = base.embeddings(images)
    memory, read = torch.zeros(3, 8, 32), []
    for segment in embeddings.split(6, dim=1):
        layout = sequence_layout(8 + segment.shape[1], segment.device)
        hidden = base.encode(torch.cat((base.memory.embeddings + memory, segment), 1), layout, False)
        memory = base.memory.store(hidden[:, :8], memory, None)
        read.append(hidden[:, 8:])
    assert_close(outputs.memory, memory)
    assert_close(outputs.logits, model.classifier(torch.cat(read, 1).mean(1)))


def test_images_replayed():
    found = {}
    for backprop in ("full", "replay"):
        torch.manual_seed(0)
        model = make_model("AstroformerForImageClassification", segment_length=6, memory_backprop=backprop)
        model.double()(torch.randn(2, 3, 16, 16, dtype=torch.float64)).logits.sin().sum().backward()
        found[backprop] = {name: p.grad for name, p in model.named_parameters()}
    for name, grad in found["full"].items():
        assert_close(found["replay"][name], grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fullgraph", [True])
def test_compiled(fullgraph):
    model = segment_model("AstroformerForSequenceClassification")
    ids, mask, _ = batch()
    expected = model(ids, attention_mask=mask).logits
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
        assert_close(compiled(input_ids=ids, attention_mask=mask).logits, expected)


def test_any_length_with_a_learned_code():
    config = tiny_config(segment_length=5, astrocyte_code="learned", max_position_embeddings=7)
    assert config.longest_input is None and not hasattr(config, "max_position_embeddings")
    model = AstroformerModel(config)
    table = model.layers[0].attention.astrocyte_code.relative_embedding
    assert table.shape[1] == 5 + config.num_memory_tokens
    assert model(torch.randint(1, 50, (1, 200))).last_hidden_state.shape == (1, 200, 32)


REFUSED = {
    "memory has the wrong shape": (
        {},
        {"memory": torch.zeros(2, MEMORY + 1, 32)},
        r"memory must have the shape \(batch, num_memory_tokens, hidden_size\), \(2, 3, 32\), got \(2, 4, 32\)",
    ),
    "memory that is sparse": ({}, {"memory": torch.zeros(2, MEMORY, 32).to_sparse()}, "memory must be a dense tensor"),
    "memory of whole numbers": ({}, {"memory": torch.zeros(2, MEMORY, 32).long()}, "floating dtype, .* torch.int64"),
    "memory without segments": (
        {"segment_length": None},
        {"memory": torch.zeros(2, MEMORY, 32)},
        "segment_length=None",
    ),
    "memory and ltp": ({"memory_retention": "ltp"}, {"memory": torch.zeros(2, MEMORY, 32)}, "'ltp'"),
    "packed": ({}, {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, "several documents"),
    "seq_idx": ({}, {"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)}, "several documents"),
    "positions": ({}, {"position_ids": torch.arange(3, 9)[None]}, "position_ids must count the real tokens"),
    "maps": ({}, {"output_attentions": True}, "output_attentions must be False"),
    "hidden states": ({}, {"output_hidden_states": True}, "output_hidden_states must be False"),
    "hidden states by configuration": ({"output_hidden_states": True}, {}, "output_hidden_states must be False"),
    "softmax with a cache": (
        {"attention_type": "softmax", "is_decoder": True},
        {"use_cache": True},
        "use_cache must be",
    ),
    "positions that generate makes": (
        {"is_decoder": True},
        {"position_ids": torch.full((2, 6), 2), "attention_mask": torch.eye(2, 6).long()},
        "pad prompts on the left, and give each a token",
    ),
    "cache and k": ({"memory_backprop": 2, "is_decoder": True}, {"use_cache": True}, "memory_backprop=2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    fields, keywords, message = REFUSED[case]
    model = segment_model(**fields)
    with pytest.raises(ValueError, match=message):
        model(torch.randint(1, 50, (2, 6)), **keywords)


FIELDS = {
    "segment_length": [(0, "segment_length must be positive"), (2.5, "segment_length")],
    "num_memory_tokens": [(-1, "num_memory_tokens must be from 0")],
    "memory_retention": [("long", "memory_retention must be one of")],
    "memory_backprop": [
        ("some", "memory_backprop must be"),
        (-1, "memory_backprop must be"),
        (True, "memory_backprop"),
        (10**30, "memory_backprop must be"),
    ],
}


@pytest.mark.parametrize(("name", "value", "message"), [(n, *case) for n, cases in FIELDS.items() for case in cases])
def test_fields_that_do_not_fit(name, value, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**{"segment_length": 4, name: value})


def test_combinations_that_do_not_fit():
    with pytest.raises(ValueError, match="'ltp'"):
        tiny_config(segment_length=4, memory_retention="ltp", is_decoder=True)
    with pytest.raises(ValueError, match="'ltp'"):
        AstroformerForCausalLM(tiny_config(segment_length=4, memory_retention="ltp"))
    with pytest.raises(ValueError, match="pooling 'cls'"):
        astroformer_hf.AstroformerForSequenceClassification(tiny_config(segment_length=4, pooling="cls"))
    with pytest.raises(ValueError, match="class token"):
        make_model("AstroformerForImageClassification", segment_length=4, pooling="cls")
    with pytest.raises(ValueError, match="use_cache must be False"):
        segment_model("AstroformerForCausalLM", attention_type="softmax").generate(torch.ones(1, 3).long())


def test_a_cache_of_another_kind_of_model():
    prompt = torch.randint(1, 50, (1, 6))
    models = [make_model("AstroformerForCausalLM"), segment_model("AstroformerForCausalLM")]
    for first, second in itertools.permutations(models):
        cache = getattr(first(prompt, use_cache=True), CACHE_NAME)
        assert isinstance(cache, AstroformerCache)
        with pytest.raises(ValueError, match="written by another model"):
            second(prompt, attention_mask=torch.ones(1, 12), **{CACHE_NAME: cache})
    segmented = models[1]
    cache = getattr(segmented(prompt, use_cache=True), CACHE_NAME)
    with pytest.raises(ValueError, match="memory does not go with the 6 tokens in the cache"):
        segmented(prompt, memory=torch.zeros(1, MEMORY, 32), **{CACHE_NAME: cache})


@pytest.mark.parametrize("arm", ARMS)
def test_a_piece_of_padding_alone(arm):
    """As in prompts that are read in chunks, whose first ones may hold nothing."""
    model = segment_model("AstroformerForCausalLM", **ARMS[arm])
    ids, mask = torch.randint(1, 50, (2, 13)), torch.ones(2, 13).long()
    mask[0, :9], mask[1, :7] = 0, 0
    softmax = model.config.attention_type == "softmax"
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False).logits * mask[..., None]
        if softmax:
            return
        cache, read = None, []
        for start in range(0, 13, 3):
            more = {} if cache is None else {CACHE_NAME: cache}
            outputs = model(ids[:, start : start + 3], attention_mask=mask[:, : start + 3], use_cache=True, **more)
            cache = getattr(outputs, CACHE_NAME)
            read.append(outputs.logits)
        assert_close(torch.cat(read, 1) * mask[..., None], whole, rtol=1e-4, atol=1e-4)
        options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        found, expected = (
            model.generate(ids, **options, **more) for more in ({"prefill_chunk_size": 3}, {"use_cache": False})
        )
    assert torch.equal(found, expected)


def test_a_text_that_ended_has_its_answer_already():
    model = segment_model("AstroformerForSequenceClassification", pooling="last")
    ids, mask, texts = batch("right", (11, 3))
    with torch.no_grad():
        first = model(ids[:, : 2 * SIZE], attention_mask=mask[:, : 2 * SIZE])
        rest = {"input_ids": ids[:, 2 * SIZE :], "attention_mask": mask[:, 2 * SIZE :]}
        with pytest.raises(ValueError, match="no real token in row 1 of the batch, which goes on from a memory"):
            model(**rest, memory=first.memory)
        last = model(**{name: x[:1] for name, x in rest.items()}, memory=first.memory[:1])
        for found, text in ((last.logits, texts[0]), (first.logits[1:], texts[1])):
            assert_close(found, model(text).logits, rtol=1e-4, atol=1e-5)
        model(ids, attention_mask=torch.zeros_like(mask))  # without a memory, as in a model without segments


def test_a_choice_that_ended_has_its_score_already():
    model = segment_model("AstroformerForMultipleChoice", pooling="last")
    ids, mask = torch.randint(1, 50, (1, 3, 6)), torch.ones(1, 3, 6).long()
    mask[0, 1] = 0
    with torch.no_grad():
        memory = model(ids).memory
        with pytest.raises(ValueError, match="no real token in row 1 of the batch, which goes on from a memory"):
            model(ids, attention_mask=mask, memory=memory)
        assert model(ids, memory=memory).logits.shape == (1, 3)


def test_labels_at_padding_do_not_count():
    model = segment_model("AstroformerForMaskedLM")
    ids, mask, _ = batch()
    labels = torch.randint(1, 50, ids.shape)
    found = []
    for ignored in (-100, 7):
        labels = labels.masked_fill(mask == 0, ignored)
        model.zero_grad()
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, grad in found[0].items():
        assert torch.equal(found[1][name], grad), name


def test_replay_keeps_the_random_states_of_every_device(monkeypatch):
    """`torch.utils.checkpoint` keeps those of the devices of what it is given."""
    tensors = [types.SimpleNamespace(device=own, detach=lambda own=own: own) for own in map(of_index, (0, 1, 1, 0, 2))]
    model = types.SimpleNamespace(parameters=lambda: tensors)
    assert [own.index for own in segments.tensors_elsewhere(model, of_index(0))] == [1, 2]
    given = []
    monkeypatch.setattr(segments, "tensors_elsewhere", lambda *_: ["that of another device"])
    monkeypatch.setattr(segments, "checkpoint", lambda read, *args, **options: given.append(args) or read(*args))
    segment_model()(torch.randint(1, 50, (1, 6)))
    assert len(given) == 2 and all(args[2:] == ("that of another device",) for args in given)


def of_index(index):
    return torch.device("cuda", index)


def test_segments_of_a_model_that_was_made_without():
    model = make_model("AstroformerForCausalLM")
    model.config.segment_length = 4
    for use_cache in (True, False):
        with pytest.raises(ValueError, match="segment_length=4 was set on a model that was made without segments"):
            model(torch.randint(1, 50, (1, 6)), use_cache=use_cache)


CHANGED_FIELDS = {
    "fewer memory tokens": ({"num_memory_tokens": 0}, "num_memory_tokens=0 was set on a model that was made with 3"),
    "more memory tokens": ({"num_memory_tokens": 5}, "num_memory_tokens=5 was set on a model that was made with 3"),
    "longer segments": ({"segment_length": 30}, "segment_length=30 was set on a model whose learned .* has 10 rows"),
    "no tokens": ({"segment_length": 0}, "segment_length must be positive, got 0"),
    "ltp": ({"memory_retention": "ltp"}, "memory_retention must be 'streaming' or 'none' for decoders"),
    "another retention": ({"memory_retention": "some"}, "memory_retention must be one of"),
    "another backprop": ({"memory_backprop": "some"}, "memory_backprop must be 'replay'"),
}


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("case", CHANGED_FIELDS)
def test_fields_set_to_what_the_model_was_not_made_for(case, use_cache):
    changes, message = CHANGED_FIELDS[case]
    model = segment_model("AstroformerForCausalLM", astrocyte_code="learned")
    for name, value in changes.items():
        setattr(model.config, name, value)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(torch.randint(1, 50, (1, 25)), use_cache=use_cache)


def test_a_retention_set_afterwards():
    ids = torch.randint(1, 50, (1, 25))
    model, other = segment_model(), segment_model(memory_retention="streaming")
    model.load_state_dict(other.state_dict())
    model.config.memory_retention = "streaming"
    assert torch.equal(model(ids).memory, other(ids).memory)


@pytest.mark.parametrize("segment_length", [None, SIZE])
def test_a_mask_of_ones_over_a_cache_with_padding(segment_length):
    """The library drops such a mask, and what is left of it are the positions."""
    model = segment_model("AstroformerForCausalLM", segment_length=segment_length)
    ids, mask, _ = batch("left", (11, 8))
    more = torch.cat((ids, torch.randint(1, 50, (2, 3))), dim=1)
    true = torch.cat((mask, torch.ones(2, 3).long()), dim=1)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cache = getattr(model(ids, attention_mask=mask, use_cache=True), CACHE_NAME)
    with pytest.raises(ValueError, match="some of those in the cache are padding in row 0, 1 of the batch"):
        model.generate(more, attention_mask=torch.ones_like(more), **options, **{CACHE_NAME: copy.deepcopy(cache)})
    found = model.generate(more, attention_mask=true, **options, **{CACHE_NAME: cache})
    assert torch.equal(found, model.generate(more, attention_mask=true, **options, use_cache=False))


def test_what_a_cache_refuses_is_said_before_positions_are():
    model = segment_model("AstroformerForCausalLM")
    ids, mask, _ = batch("left", (11, 8))
    more = torch.cat((ids, ids[:, -2:]), dim=1)
    with torch.no_grad():
        cache = getattr(model(ids, attention_mask=mask, use_cache=True), CACHE_NAME)
    longer = torch.cat((mask, torch.ones(2, 2).long()), dim=1)
    with pytest.raises(ValueError, match=r"holds 2 sequences and the input has 4. .* cache.batch_repeat_interleave"):
        model.generate(more, attention_mask=longer, num_beams=2, max_new_tokens=3, **{CACHE_NAME: cache})
    longer[0, 5] = 0
    with pytest.raises(ValueError, match="attention_mask says otherwise of the 12 tokens in the cache .* in row 0 of"):
        model.generate(more, attention_mask=longer, max_new_tokens=3, **{CACHE_NAME: cache})


@pytest.mark.parametrize("segment_length", [None, SIZE])
def test_the_cache_of_code_that_came_with_a_checkpoint(segment_length):
    name = "astroformer_hf.copy_of_the_cache"
    spec = importlib.util.spec_from_file_location(name, cache_astroformer.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = segment_model("AstroformerForCausalLM", segment_length=segment_length)
    ids, mask, _ = batch("left", (11, 8))
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = model.generate(ids, **options, **{CACHE_NAME: module.AstroformerCache()})
    assert torch.equal(found, model.generate(ids, **options, use_cache=False))


@pytest.mark.parametrize("segment_length", [None, SIZE])
def test_whether_to_use_a_cache_may_be_left_open(segment_length):
    model = segment_model("AstroformerForCausalLM", segment_length=segment_length)
    ids = torch.randint(1, 50, (1, 6))
    found, expected = (model.generate(ids, max_new_tokens=5, use_cache=use_cache) for use_cache in (None, False))
    assert torch.equal(found, expected)


def test_where_there_are_no_values():
    model = segment_model("AstroformerForCausalLM").to("meta")
    ids, mask = (x.to("meta") for x in batch()[:2])
    with torch.no_grad():
        assert model(ids, attention_mask=mask, use_cache=False).logits.shape == (*ids.shape, model.config.vocab_size)
        assert model(ids).logits.shape == (*ids.shape, model.config.vocab_size)
        with pytest.raises(ValueError, match="not known on the device 'meta': give use_cache=False"):
            model(ids, attention_mask=mask)


def test_an_exported_decoder_keeps_no_cache():
    model = segment_model("AstroformerForCausalLM")
    ids, mask, _ = batch("left", (11, 8))
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        program = torch.export.export(model, (), inputs)
        assert_close(program.module()(**inputs).logits, model(**inputs, use_cache=False).logits)
