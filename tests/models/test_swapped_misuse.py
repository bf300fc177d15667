# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Uses of swapped models, and of their caches, that would give other numbers unseen: each is right or refused."""

import copy
import pickle
import re
import subprocess
import sys

import pytest
import torch
from conversion.library_models import SUPPORTED
from peft import LoraConfig, PeftModelForCausalLM, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    BloomModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from astroformer_hf import swap_attention
from astroformer_hf.library_attention import TokenMask
from astroformer_hf.library_compatibility import CACHE_NAME
from astroformer_hf.swapped_attention import HybridCache
from astroformer_hf.transfer import attention_errors


LLAMA = next(model for model in SUPPORTED if model.name == "LlamaForCausalLM")
GENERATE = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


def llama():
    return LLAMA.make("sdpa")


def swapped(model=None, **options):
    return swap_attention(llama() if model is None else model, **{"window_size": 3, "sink_tokens": 2, **options})


def ids(length=9):
    return torch.randint(3, 60, (2, length))


def test_packed_rows_with_a_cache():
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    with pytest.raises(ValueError, match="does not support packed rows, which position_ids that begin anew are"):
        swapped()(ids(), position_ids=positions)


def test_a_mask_that_contradicts_the_cache():
    """As after a row that ended early, whose padding was written as real: there is no taking it back."""
    model, given, more = swapped(), ids(), ids(2)
    cache = HybridCache(model.config)
    model(given, past_key_values=cache)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, 4:9] = 0
    with pytest.raises(ValueError, match="attention_mask says otherwise of the 9 tokens in the cache .* in row 0 of"):
        model(more, past_key_values=cache, attention_mask=mask)

    # with the mask that they were written with, turns go on, whichever rows are left
    left = torch.ones(2, 9, dtype=torch.long)
    left[1, :4] = 0
    first = model.generate(given, attention_mask=left, return_dict_in_generate=True, **GENERATE)
    text = torch.cat((first.sequences, more), dim=1)
    mask = torch.cat((left, torch.ones(2, 6, dtype=torch.long)), dim=1)
    expected = model.generate(text, attention_mask=mask, use_cache=False, **GENERATE)
    assert torch.equal(
        model.generate(text, attention_mask=mask, past_key_values=first.past_key_values, **GENERATE), expected
    )
    kept = model.generate(given, attention_mask=left, return_dict_in_generate=True, **GENERATE).past_key_values
    kept.batch_select_indices(torch.tensor([1]))
    found = model.generate(text[1:], attention_mask=mask[1:], past_key_values=kept, **GENERATE)
    assert torch.equal(found, expected[1:])


def test_their_attention_in_a_model_that_is_not_swapped():
    model = llama()
    model.set_attn_implementation("neuron_astrocyte_swapped")
    with pytest.raises(ValueError, match="'neuron_astrocyte_swapped' is that of swapped models, .* has no synapses"):
        model(ids())
    partly = swapped(layers=[1])
    assert partly(ids()).logits.isfinite().all()  # softmax in the other layer


def test_attention_maps_leave_no_state():
    model, cache = swapped(), HybridCache(swapped().config)
    with pytest.raises(ValueError, match=r"attention maps \(output_attentions=True\) with a cache"):
        model(ids(), past_key_values=cache, output_attentions=True)
    with pytest.raises(ValueError, match=r"attention maps \(output_attentions=True\) with a cache"):
        model.generate(ids(), output_attentions=True, return_dict_in_generate=True, **{**GENERATE, "max_new_tokens": 4})
    with attention_errors() as errors, pytest.raises(ValueError, match="errors of the synapses with a cache"):
        model.generate(ids(), **GENERATE)
    assert errors == []


def test_the_cache_of_a_swapped_model_in_another():
    model, given = swapped(), ids()
    with pytest.raises(ValueError, match="a HybridCache is for models whose attention is swapped"):
        llama().generate(given, past_key_values=HybridCache(model.config), **GENERATE)
    with pytest.raises(ValueError, match="the HybridCache of a model in which other layers are swapped"):
        swapped(layers=[1]).generate(given, past_key_values=HybridCache(model.config), **GENERATE)
    cache = HybridCache(model.config)
    model(given, past_key_values=cache)
    with pytest.raises(ValueError, match="written by a model with .*window_size=3.* be read by one with .*size=5"):
        swapped(window_size=5)(ids(2), past_key_values=cache)
    cache.reset()
    swapped(window_size=5)(given, past_key_values=cache)  # nothing is in it any more


def test_synapses_that_a_checkpoint_lacks(tmp_path):
    swapped().save_pretrained(tmp_path)
    weights = load_file(path := tmp_path / "model.safetensors")
    lacking = [name for name in weights if "layers.1" in name and ".synapses." in name]
    save_file({name: x for name, x in weights.items() if name not in lacking}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks synapses, .*{re.escape(lacking[0])}"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_another_model_of_the_same_configuration_keeps_it(tmp_path):
    config = LlamaConfig(**llama().config.to_diff_dict())
    teacher, model = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    expected = teacher(ids := torch.randint(3, 60, (2, 9))).logits
    swapped(model)
    assert type(teacher.config) is LlamaConfig and teacher.config._attn_implementation == "sdpa"
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "config"))
    torch.testing.assert_close(teacher(ids).logits, expected)
    teacher.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    torch.testing.assert_close(loaded(ids).logits, expected)


def test_an_inner_model_that_is_given_another_attention():
    for change in (
        lambda model: model.model.set_attn_implementation("sdpa"),
        lambda model: setattr(model.config, "_attn_implementation", "sdpa"),
    ):
        model = swapped()
        change(model)
        with pytest.raises(ValueError, match="'sdpa': the attention of a swapped model is not chosen by it"):
            model(ids())


def test_a_model_with_adapters_is_swapped_before_them():
    model = llama()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="takes a model of the library, got PeftModel.*before adapters"):
        swap_attention(adapted, window_size=3)
    assert not hasattr(model.config, "attention_swap")


@pytest.mark.skipif(
    CACHE_NAME not in PeftModelForCausalLM.prepare_inputs_for_generation.__code__.co_consts,
    reason="this release of peft loses prefixes in models of the library as well",
)
def test_prefixes_of_peft_are_read():
    """They are keys and values in a cache that holds all; with a window as long as the text, as by the original."""
    answers, given = [], ids()
    for model in (llama(), swapped(window_size=64)):
        torch.manual_seed(0)
        adapted = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
        with torch.no_grad():
            for parameter in adapted.prompt_encoder.parameters():
                parameter.normal_()
        answers.append(adapted.generate(input_ids=given, attention_mask=torch.ones_like(given), **GENERATE))
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], llama().generate(given, **GENERATE))


@pytest.mark.parametrize("way", ["pickle", "torch.save", "another process"])
def test_a_model_is_pickled(way, tmp_path):
    model, given = swapped(), ids()
    expected = model(given).logits
    if way == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    elif way == "torch.save":
        torch.save(model, tmp_path / "model.pt")
        copied = torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        code = "import sys, torch; model, ids = torch.load(sys.argv[1], weights_only=False);"
        code += "torch.save(model(ids).logits, sys.argv[2])"
        torch.save((model, given), tmp_path / "model.pt")
        subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt", tmp_path / "logits.pt"], check=True)
        assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
        return
    assert type(copied) is type(model) and type(copied.config) is type(model.config)
    assert torch.equal(copied(given).logits, expected)
    assert torch.equal(copied.generate(given, **GENERATE), model.generate(given, **GENERATE))


def test_labels_are_shifted_where_they_are_smoothed(tmp_path):
    """With a window as long as the text, the loss of Trainer is that of the original."""
    rows = [{"input_ids": row, "labels": row} for row in ids(12)]
    losses = []
    for model in (llama(), swapped(window_size=64)):
        arguments = TrainingArguments(
            tmp_path, label_smoothing_factor=0.1, report_to="none", use_cpu=True, disable_tqdm=True
        )
        losses.append(Trainer(model, arguments, eval_dataset=rows).evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def with_convolutions():
    layer_types = ["conv", "full_attention", "conv", "full_attention"]
    config = Lfm2Config(
        vocab_size=60, **SIZES, num_hidden_layers=4, layer_types=layer_types, pad_token_id=0, eos_token_id=2
    )
    return Lfm2ForCausalLM(config).eval()


def with_images():
    vision = CLIPVisionConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, image_size=8, patch_size=4
    )
    text = LlamaConfig(vocab_size=60, **SIZES, num_hidden_layers=2, pad_token_id=0, eos_token_id=2)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=59)
    ).eval()


@pytest.mark.parametrize("make", [with_convolutions, with_images])
def test_models_whose_layers_are_not_all_attention_generate_with_a_cache_that_grows(make):
    model = swapped(make())
    given = torch.randint(3, 50, (2, 9))
    found = model.generate(given, return_dict_in_generate=True, **GENERATE)
    assert isinstance(found.past_key_values, DynamicCache)
    assert torch.equal(found.sequences, model.generate(given, use_cache=False, **GENERATE))


def test_a_model_without_the_librarys_interface_refuses_the_implementations():
    model = BloomModel(BloomConfig(vocab_size=60, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="'neuron_astrocyte' is not for BloomModel"):
        model.set_attn_implementation("neuron_astrocyte")
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("options", [{}, {"astrocyte_code": "activity"}, {"layers": [1]}], ids=str)
def test_a_cache_of_other_sequences(options):
    model = swapped(**options)
    cache = HybridCache(model.config)
    given = ids()
    with torch.no_grad():
        model(given, past_key_values=cache)
        for rows, more in ((1, ids(1)[:1]), (3, ids(2)[:1].repeat(3, 1))):
            if not options.get("layers"):  # where layers are not swapped, the library says so of their keys
                with pytest.raises(ValueError, match=rf"{CACHE_NAME} holds 2 sequences and the input has {rows}\. For"):
                    model(more, past_key_values=copy.deepcopy(cache))
        more = ids(3)
        cache.batch_repeat_interleave(3)
        found = model(more.repeat_interleave(3, 0), past_key_values=cache).logits
        expected = model(torch.cat((given, more), dim=1)).logits[:, -3:].repeat_interleave(3, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_prompts_that_are_copied_beside_a_cache_that_is_not():
    model, prompt = swapped(), ids(12)[:1]
    cache = HybridCache(model.config)
    with torch.no_grad():
        model(prompt[:, :10], past_key_values=cache)
    with pytest.raises(ValueError, match="holds 1 sequences and the input has 4"):
        model.generate(prompt, past_key_values=cache, num_return_sequences=4, **{**GENERATE, "do_sample": True})


@pytest.mark.parametrize("attention", ["swapped", "neuron_astrocyte", "linear"])
@pytest.mark.parametrize("shape", [(1, 9), (9,), (3, 9)], ids=str)
def test_a_mask_of_other_sequences(attention, shape):
    model = swapped() if attention == "swapped" else llama()
    if attention != "swapped":
        model.set_attn_implementation(attention)
    mask = torch.ones(shape, dtype=torch.long)
    mask[..., 0] = 0
    message = re.escape(
        f"an attention_mask of shape {shape} for 2 sequences; give one of shape (batch, length), (2, 9)"
    )
    with pytest.raises(ValueError, match=message):
        model(ids(), attention_mask=mask)


@torch.no_grad()
def test_what_is_refused_leaves_the_cache_as_it_was():
    model, token = swapped(), ids(1)
    cache = HybridCache(model.config)
    model(ids(), past_key_values=cache)
    expected = model(token, past_key_values=copy.deepcopy(cache)).logits
    contradiction = torch.ones(2, 10, dtype=torch.long)
    contradiction[0, 3] = 0
    for refused in ({"output_attentions": True}, {"attention_mask": contradiction}):
        with pytest.raises(ValueError, match="does not support attention maps|says otherwise"):
            model(token, past_key_values=cache, **refused)
        torch.testing.assert_close(model(token, past_key_values=copy.deepcopy(cache)).logits, expected)


@torch.no_grad()
def test_a_call_that_failed_between_two_layers_leaves_a_cache_that_is_refused():
    model, token = swapped(layers=[1]), ids(1)
    cache = HybridCache(model.config)
    model(ids(), past_key_values=cache)
    expected = model(token, past_key_values=copy.deepcopy(cache)).logits
    with pytest.raises(ValueError, match=r"crop\(-2\)"):  # the other layer could
        cache.crop(-2)
    torch.testing.assert_close(model(token, past_key_values=copy.deepcopy(cache)).logits, expected)
    with pytest.raises(ValueError, match="attention maps"):
        model(token, past_key_values=cache, output_attentions=True)
    with pytest.raises(ValueError, match=rf"{CACHE_NAME} is not whole: its layers hold \[10, 9\] tokens"):
        model(token, past_key_values=cache)


def test_a_part_of_a_swapped_model_is_not_saved_without_its_synapses(tmp_path):
    """Its own configuration tells of no swap: it would be loaded with softmax attention."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=4)
    text = CLIPTextConfig(**sizes, vocab_size=60, max_position_embeddings=64, eos_token_id=2, pad_token_id=0)
    model = swapped(CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict())), sink_tokens=0)
    model.save_pretrained(tmp_path / "whole")
    reloaded = AutoModel.from_pretrained(tmp_path / "whole")
    for whole in (model, reloaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for part in (whole.vision_model, whole.text_model):
            with pytest.raises(ValueError, match=f"this {type(part).__name__} is a part of a swapped model"):
                part.save_pretrained(tmp_path / "part")
    inner = swapped().model  # which shares the configuration of the whole
    inner.save_pretrained(tmp_path / "inner")
    assert AutoModel.from_pretrained(tmp_path / "inner").config.attention_swap["window_size"] == 3


def test_a_cache_goes_on_in_the_reloaded_model(tmp_path):
    model, given = swapped(), ids(10)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    cache = HybridCache(model.config)
    with torch.no_grad():
        model(given[:, :6], past_key_values=cache)
        found = reloaded(given[:, 6:], past_key_values=cache).logits
        torch.testing.assert_close(found, model(given).logits[:, 6:], rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_in_memory():
    with torch.device("meta"):
        model = llama()
    with pytest.raises(ValueError, match=r"weights are in memory; 'model\.embed_tokens\.weight' is on the meta device"):
        swap_attention(model, window_size=3)


def test_synapses_of_other_heads():
    """As where the heads of a model are spread over several devices."""
    layer = swapped().model.layers[0].self_attn.synapses
    query, key = torch.randn(1, 8, 5, 16), torch.randn(1, 2, 5, 16)
    with pytest.raises(ValueError, match="for 4 heads of queries, 2 of keys, of size 16, but the layer has 8 heads"):
        layer(query, key, key, TokenMask(None, causal=True))


def test_queries_with_a_part_that_is_rotated():
    """Latent attention, whose heads of queries and keys are larger than those of values."""
    sizes = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6, "kv_lora_rank": 8, "q_lora_rank": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"intermediate_size": 48, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "vocab_size": 60}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **experts)).eval()
    given = ids()
    with torch.no_grad():
        expected = model(given).logits
        torch.testing.assert_close(swapped(model, window_size=20)(given).logits, expected, rtol=1e-4, atol=1e-5)
    model = swapped(DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **experts)).eval())
    found, expected = (model.generate(given, use_cache=use_cache, **GENERATE) for use_cache in (True, False))
    assert torch.equal(found, expected)
