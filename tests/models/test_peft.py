# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Adapters of peft: what they adapt by default, the astrocyte's own parameters, and prompts."""

import pytest
import torch
from conversion.library_models import SUPPORTED
from transformers import DynamicCache
from variants import HEADS, make_model, without_labels

from astroformer_hf import library_compatibility, swap_attention
from astroformer_hf.library_compatibility import CACHE_NAME


peft = pytest.importorskip("peft")

ADAPTED = [name for name in HEADS if name not in ("AstroformerModel", "AstroformerVisionModel")]
ASTROCYTE = {
    "activity": ["astrocyte_code.weight", "astrocyte_code.resting_bias"],
    "sinusoidal": ["astrocyte_code.weight", "astrocyte_code.resting_bias"],
    "learned": ["astrocyte_code.relative_embedding", "astrocyte_code.resting_bias"],
}
DEFAULTS = {
    "LoRA": (peft.LoraConfig, {}, {"q_proj", "v_proj"}),
    "DoRA": (peft.LoraConfig, {"use_dora": True}, {"q_proj", "v_proj"}),
    "IA3": (peft.IA3Config, {}, {"k_proj", "v_proj", "down_proj"}),
    "LoKr": (peft.LoKrConfig, {}, {"q_proj", "v_proj"}),
    "AdaLoRA": (peft.AdaLoraConfig, {"total_step": 9}, {"q_proj", "v_proj"}),
    "LN": (peft.LNTuningConfig, {}, {"attention_norm", "mlp_norm", "norm"}),
}


def answers(model, inputs):
    """What a model answers without labels, and without gradients."""
    with torch.no_grad():
        output = model(**without_labels(inputs))
    return torch.cat([x.flatten() for name, x in output.items() if "logits" in name])


def disturb(adapted):
    """Moves what an adapter trains away from where it changes nothing."""
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def check(head, config, folder, **fields):
    """An adapter changes the answers, has gradients, and gives the same when saved, loaded and merged; returns it."""
    model, inputs = make_model(head, **fields), HEADS[head][2]()
    model.save_pretrained(folder / "base")
    before = answers(model, inputs)
    adapted = peft.get_peft_model(model, config).eval()
    disturb(adapted)
    after = answers(adapted, inputs)
    assert (after - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(answers(adapted, inputs), before)
    assert torch.equal(answers(adapted, inputs), after)
    adapted(**inputs).loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None for p in trained.values())
    adapted.save_pretrained(folder / "adapter")
    base = type(model).from_pretrained(folder / "base")
    again = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    torch.testing.assert_close(answers(again, inputs), after)
    torch.testing.assert_close(answers(again.merge_and_unload(), inputs), after, rtol=1e-4, atol=1e-5)
    return adapted


@pytest.mark.parametrize("kind", DEFAULTS)
def test_default_modules(kind, tmp_path):
    make, options, expected = DEFAULTS[kind]
    adapted = check("AstroformerForSequenceClassification", make(**options), tmp_path)
    assert set(adapted.peft_config["default"].target_modules) == expected


@pytest.mark.parametrize("head", ADAPTED)
def test_every_head_is_adapted(head, tmp_path):
    check(head, peft.LoraConfig(), tmp_path)


def test_the_library_s_own_adapters_find_the_modules():
    model = make_model("AstroformerForSequenceClassification")
    try:
        model.add_adapter(peft.LoraConfig())
    except ValueError as error:
        if "use a version" not in str(error):
            raise
        pytest.skip(f"the library wants a newer peft: {error}")
    assert any("q_proj.lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("code", ASTROCYTE)
@pytest.mark.parametrize("head", ["AstroformerForSequenceClassification", "AstroformerForCausalLM"])
def test_the_astrocyte_s_parameters_are_adapted(head, code, tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], target_parameters=ASTROCYTE[code], r=2)
    adapted = check(head, config, tmp_path, astrocyte_code=code)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("astrocyte_code" in name for name in names) == 2 * 2 * 2  # layers, parameters, factors


@pytest.mark.parametrize("code", ASTROCYTE)
def test_a_changed_adapter_of_the_astrocyte_is_heard(code):
    model = make_model("AstroformerForSequenceClassification", astrocyte_code=code)
    ids = torch.randint(1, 50, (2, 9))  # all of one length: nothing is asked again
    before = answers(model, {"input_ids": ids})
    config = peft.LoraConfig(target_modules=[], target_parameters=ASTROCYTE[code][:1], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    one = answers(adapted, {"input_ids": ids})
    disturb(adapted)
    other = answers(adapted, {"input_ids": ids})
    assert (other - one).abs().max() > 1e-4
    with adapted.disable_adapter():
        assert torch.equal(answers(adapted, {"input_ids": ids}), before)
    assert torch.equal(answers(adapted, {"input_ids": ids}), other)
    torch.testing.assert_close(adapted(ids).logits.flatten(), other)


def knows_the_cache_as():
    """The strings in peft's code that prepares inputs, the cache's name among them."""
    return peft.PeftModelForCausalLM.prepare_inputs_for_generation.__code__.co_consts


def test_prompts_that_would_be_lost_are_refused(monkeypatch):
    monkeypatch.setattr(library_compatibility, "CACHE_NAME", "another")
    inputs = {"input_ids": torch.randint(3, 50, (1, 9)), "max_new_tokens": 2, "min_new_tokens": 2}
    llama = next(model for model in SUPPORTED if model.name == "LlamaForCausalLM").make("sdpa")
    for model in (make_model("AstroformerForCausalLM"), swap_attention(llama, window_size=4)):
        adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
        with pytest.raises(ValueError, match="does not know that the cache of transformers is called 'another'"):
            adapted.generate(**inputs)
        assert adapted.get_base_model().generate(**inputs).shape == (1, 11)


@pytest.mark.parametrize("fields", [{}, {"astrocyte_code": "learned"}, {"attention_type": "softmax"}], ids=str)
@pytest.mark.parametrize("is_decoder", [False, True])
def test_prompts_are_embeddings_before_the_input(is_decoder, fields):
    head = "AstroformerForCausalLM" if is_decoder else "AstroformerForSequenceClassification"
    model, inputs = make_model(head, **fields), HEADS[head][2]()
    task = "CAUSAL_LM" if is_decoder else "SEQ_CLS"
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5)).eval()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    prompt = adapted.get_prompt(len(ids))
    embeds = torch.cat((prompt, model.get_input_embeddings()(ids)), dim=1)
    longer = torch.cat((torch.ones(len(ids), 5), mask), dim=1).long()
    got = adapted(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got, model(inputs_embeds=embeds, attention_mask=longer).logits)
    if is_decoder and CACHE_NAME not in knows_the_cache_as():
        with pytest.raises(ValueError, match="PromptTuningConfig does not go with generate here"):
            adapted.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=4)
    elif is_decoder:
        full = adapted.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=4)[:, 9:]
        expected, row = [], embeds[:1]
        for _ in range(4):
            expected.append(model(inputs_embeds=row).logits[:, -1].argmax(-1))
            row = torch.cat((row, model.get_input_embeddings()(expected[-1])[:, None]), dim=1)
        assert full.flatten().tolist() == torch.cat(expected).tolist()


# The second are peft's words, which looks for an argument by its name before transformers 5.24.
REFUSED = "belongs to a decoder|does not support past key values"


def prefix(task):
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5)


@pytest.mark.parametrize("head, task", [("CausalLM", "CAUSAL_LM"), ("SequenceClassification", "SEQ_CLS")])
def test_prefixes_are_keys_and_values_before_the_input(head, task):
    if task == "SEQ_CLS" and CACHE_NAME == "cache":
        pytest.skip("peft looks for an argument past_key_values, which this release of the library calls cache")
    head = f"AstroformerFor{head}"
    model, inputs = make_model(head, attention_type="softmax", is_decoder=True, pooling="last"), HEADS[head][2]()
    adapted = peft.get_peft_model(model, prefix(task)).eval()
    disturb(adapted)
    inputs.pop("labels")
    written = adapted.get_prompt(4)
    assert isinstance(written, DynamicCache) and written.get_seq_length() == 5
    mask = torch.cat((torch.ones(4, 5).long(), inputs["attention_mask"]), dim=1)
    expected = model(input_ids=inputs["input_ids"], attention_mask=mask, past_key_values=written).logits
    torch.testing.assert_close(adapted(**inputs).logits, expected)
    assert (expected - model(**inputs).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    "head, task, fields, message",
    [
        ("CausalLM", "CAUSAL_LM", {}, "prefix tuning.* is for attention_type 'softmax'"),
        ("CausalLM", "CAUSAL_LM", {"attention_type": "linear"}, "prefix tuning.* is for attention_type 'softmax'"),
        ("SequenceClassification", "SEQ_CLS", {}, REFUSED),
        ("SequenceClassification", "SEQ_CLS", {"attention_type": "softmax"}, REFUSED),
        ("TokenClassification", "TOKEN_CLS", {}, REFUSED),
        ("QuestionAnswering", "QUESTION_ANS", {}, REFUSED),
    ],
    ids=str,
)
def test_prefixes_are_refused_elsewhere(head, task, fields, message):
    head = f"AstroformerFor{head}"
    adapted = peft.get_peft_model(make_model(head, **fields), prefix(task)).eval()
    with pytest.raises(ValueError, match=message):
        adapted(**HEADS[head][2]())


def test_importing_the_package_imports_no_peft(strangers, tmp_path):
    (tmp_path / "imports.py").write_text(
        "import sys, astroformer_hf; astroformer_hf.AstroformerConfig().to_dict(); assert 'peft' not in sys.modules"
    )
    strangers.run(tmp_path / "imports.py")
