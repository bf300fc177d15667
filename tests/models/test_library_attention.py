# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""`attn_implementation="neuron_astrocyte"` and "linear" in models of the library."""

import types

import pytest
import torch
from conversion.library_models import GROUPED, REFUSED, SUPPORTED, TEXT, LibraryModel
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, BertModel
from variants import some_each_time

from astroformer_hf import neuron_astrocyte_network
from astroformer_hf.library_attention import FORMS, TokenMask, library_attention, register
from astroformer_hf.token_layout import sequence_layout


EACH_TIME = ("BertModel", "RobertaModel", "LlamaForCausalLM", "GPT2LMHeadModel")
BY_NAME = {model.name: model for model in SUPPORTED}
BERT, LLAMA = BY_NAME["BertModel"], BY_NAME["LlamaForCausalLM"]
TEXT_MODELS = [name for name, model in BY_NAME.items() if "image_size" not in model.fields]
GENERATING = [name for name, model in BY_NAME.items() if model.generates]


@pytest.fixture(params=FORMS)
def name(request):
    return request.param


def call(name, query, key, value, mask, **kwargs):
    return library_attention(FORMS[name])(types.SimpleNamespace(), query, key, value, mask, **kwargs)


def expected_attention(name, query, key, value, mask, scaling):
    """The same token by token, over the queries that stand last."""
    form, past_length = FORMS[name], key.shape[2] - query.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = (x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (key, value))
    query, key = query * scaling**0.5, key * scaling**0.5
    query = torch.cat((torch.zeros_like(key[:, :, :past_length]), query), dim=2)
    code = None
    if form.use_astrocyte_hebbian:
        layout = sequence_layout(key.shape[2], key.device, mask.real, causal=mask.causal)
        identity = torch.eye(key.shape[-1], dtype=key.dtype).expand(key.shape[1], -1, -1)
        recipe = layout.activity(key, form.astrocyte_scale, identity, torch.zeros_like(identity[:, :1]))
        code = recipe.materialize(key, layout.padding_mask, layout.causal, None)[0]
    output = neuron_astrocyte_network(
        *(query, key, value, code, mask.real),
        alpha=form.presynaptic_alpha,
        presynaptic_target="synapse",
        calcium_sources="all",
        feature_map="exp",
        causal=mask.causal,
    )
    return query.shape[-1] * output[:, :, past_length:].transpose(1, 2)


@pytest.mark.parametrize("causal, length, past_length", [(False, 13, 0), (True, 13, 0), (True, 6, 7), (True, 1, 12)])
@pytest.mark.parametrize("padded", ["no", "left", "right", "inside"])
def test_the_function_is_the_network(name, causal, length, past_length, padded):
    key_length = length + past_length
    query = torch.randn(2, 4, length, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 2, key_length, size, dtype=torch.float64, requires_grad=True) for size in (8, 6))
    real = torch.ones(2, key_length, dtype=torch.bool)
    real[0, {"no": slice(0, 0), "left": slice(0, 3), "right": slice(10, None), "inside": slice(4, 7)}[padded]] = False
    mask = TokenMask(None if padded == "no" else real, causal)
    output, weights = call(name, query, key, value, mask, scaling=0.3)
    assert weights is None and output.shape == (2, length, 4, 6)
    expected = expected_attention(name, query, key, value, mask, 0.3)
    shown = real[:, past_length:, None, None]  # what a padded query reads is nobody's business
    torch.testing.assert_close(output * shown, expected * shown, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(output) * shown
    for found, wanted in zip(
        torch.autograd.grad(output, (query, key, value), upstream),
        torch.autograd.grad(expected, (query, key, value), upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    if past_length == 0:
        from_maps, weights = call(name, query, key, value, mask, scaling=0.3, output_attentions=True)
        torch.testing.assert_close(from_maps * shown, expected * shown, rtol=1e-10, atol=1e-10)
        sums = weights.sum(-1).transpose(1, 2)[..., None]
        torch.testing.assert_close(sums * shown, torch.ones_like(sums) * shown, rtol=1e-10, atol=1e-10)


def test_dropout_silences_synapses(name):
    query, key, value = (torch.randn(1, 2, 200, 8) for _ in range(3))
    torch.manual_seed(0)
    output, _ = call(name, query, key, value, TokenMask(None, False), dropout=0.5)
    torch.manual_seed(0)
    release = torch.nn.functional.dropout(torch.ones(1, 2, 200, 1), 0.5)
    expected, _ = call(name, query, key, value * release, TokenMask(None, False))
    assert 0 in release
    torch.testing.assert_close(output, expected)


def padded(inputs, side):
    """Inputs with five junk tokens on one side, and which tokens are the inputs'."""
    ids, junk = inputs["input_ids"], torch.randint(3, 60, (2, 5))
    real, none = torch.ones_like(ids), torch.zeros_like(junk)
    left = side == "left"
    mask = torch.cat((none, real) if left else (real, none), dim=1)
    return torch.cat((junk, ids) if left else (ids, junk), dim=1), mask, slice(5, None) if left else slice(0, 9)


@pytest.mark.parametrize("model_name", some_each_time(TEXT_MODELS, EACH_TIME))
def test_padding_changes_nothing(name, model_name):
    model, inputs = BY_NAME[model_name].make(name), BY_NAME[model_name].inputs()
    expected = model(**inputs)[0]
    assert not torch.allclose(expected, BY_NAME[model_name].make("sdpa")(**inputs)[0], atol=1e-2)
    ids, mask, shown = padded(inputs, "right")
    torch.testing.assert_close(model(ids, attention_mask=mask)[0][:, shown], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(ids)[0][:, shown], expected) or model_name in (*GENERATING, "CLIPTextModel")
    if model_name not in ("RobertaModel", "BertLMHeadModel", "OPTForCausalLM", "DistilBertModel", "CLIPTextModel"):
        ids, mask, shown = padded(inputs, "left")
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = model(ids, attention_mask=mask, position_ids=positions)[0][:, shown]
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_name", some_each_time(GENERATING, ("LlamaForCausalLM", "GPT2LMHeadModel")))
def test_generates_as_without_a_cache(name, model_name):
    model, ids = BY_NAME[model_name].make(name), torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    for search in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        expected = model.generate(ids, **options, **search, use_cache=False)
        assert torch.equal(model.generate(ids, **options, **search), expected)
    with pytest.raises(ValueError, match="does not support a cache of fixed or bounded length"):
        model.generate(ids, **options, cache_implementation="static")


@pytest.mark.parametrize("model_name", some_each_time(BY_NAME, EACH_TIME))
def test_every_parameter_learns_and_maps_are_given(name, model_name):
    model, inputs = BY_NAME[model_name].make(name), BY_NAME[model_name].inputs()
    output = model(**inputs, output_attentions=True)
    assert len(output.attentions) == 2 and output.attentions[0].shape[:2] == (2, 4)
    torch.testing.assert_close(output[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)
    model.train()(**inputs)[0].square().sum().backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None and "pooler" not in n and "mask_token" not in n}
    assert not unused


def test_gradient_checkpointing_changes_nothing(name):
    model, inputs = LLAMA.make(name).train(), LLAMA.inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: f"{model.name}, {model.refused}")
def test_what_is_not_computed_is_refused_by_name(name, model):
    with pytest.raises(ValueError, match=f"attn_implementation '{name}'.*{model.refused}"):
        model.make(name)(**model.inputs())


@pytest.mark.parametrize("keyword", ["s_aux", "softcap", "position_bias", "sliding_window", "cu_seq_lens_q", "cache"])
def test_keywords_that_change_attention_are_refused(name, keyword):
    x = torch.randn(1, 2, 5, 8)
    call(name, x, x, x, TokenMask(None, True), position_ids=torch.arange(5), use_cache=True, **{keyword: None})
    with pytest.raises(ValueError, match=f"does not support {keyword}="):
        call(name, x, x, x, TokenMask(None, True), **{keyword: torch.ones(2)})
    with pytest.raises(ValueError, match="is_causal=True with a mask that is its opposite"):
        call(name, x, x, x, TokenMask(None, False), is_causal=True)


def test_masks_and_caches_that_are_not_computed_are_refused(name):
    bert, llama, ids = BERT.make(name), LLAMA.make(name), torch.randint(3, 60, (2, 9))
    with pytest.raises(ValueError, match=r"does not support an attention mask of shape \(2, 1, 9, 9\)"):
        bert(ids, attention_mask=torch.ones(2, 1, 9, 9).bool())
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    with pytest.raises(
        ValueError, match="only plain causal and plain bidirectional masks.* Packed rows show in position_ids"
    ):
        llama(ids, position_ids=positions, use_cache=False)
    for decoder in SUPPORTED:  # with a cache, the library's masks do not tell
        if "Causal" in decoder.name or "LMHead" in decoder.name:
            with pytest.raises(ValueError, match="support packed rows, which position_ids that begin anew are"):
                decoder.make(name)(ids, position_ids=positions)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]).expand(2, -1)
    assert llama(ids, position_ids=positions, attention_mask=mask).logits.isfinite().all()
    cache = llama(ids).past_key_values
    with pytest.raises(ValueError, match=r"attention maps \(output_attentions=True\) with a cache"):
        llama(ids[:, :1], past_key_values=cache, output_attentions=True)
    x = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match="does not support cross-attention, 3 queries over 5 keys"):
        call(name, x[:, :, :3], x, x, TokenMask(None, False))


def test_a_model_that_lost_its_mask_function_is_refused(name, monkeypatch):
    """The library gives an implementation without one no mask at all, and padding would be read."""
    model = BERT.make(name)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, name)
    with pytest.raises(ValueError, match="does not support a call without the mask that its mask function makes"):
        model(**BERT.inputs())


def test_registering_twice_is_harmless():
    register()
    functions = AttentionInterface()
    assert set(FORMS) <= set(functions.valid_keys())
    assert LibraryModel("DebertaV2Model", TEXT).make("eager").config._attn_implementation == "eager"
    assert LibraryModel("LlamaForCausalLM", GROUPED).make("sdpa").config._attn_implementation == "sdpa"


def test_a_checkpoint_loads_with_it(name, tmp_path):
    original, inputs = BERT.make("sdpa"), BERT.inputs()
    original.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, attn_implementation=name).eval()
    assert type(model) is BertModel and model.num_parameters() == original.num_parameters()
    torch.testing.assert_close(model(**inputs)[0], BERT.make(name)(**inputs)[0])
    original.set_attn_implementation(name)
    torch.testing.assert_close(model(**inputs)[0], original(**inputs)[0])


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
def test_in_half_precision(name, dtype, tolerance):
    model, inputs = BERT.make(name), BERT.inputs()
    expected = model(**inputs)[0]
    output = model.to(dtype)(**inputs)[0]
    assert output.dtype == dtype
    assert (output - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.inductor
@pytest.mark.parametrize("name", some_each_time(FORMS, ["neuron_astrocyte"]))
def test_compiled(name):
    model, inputs = LLAMA.make(name), LLAMA.inputs()
    expected = model(**inputs, use_cache=False).logits
    compiled = torch.compile(model)
    torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
