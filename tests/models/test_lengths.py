# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""How long an input may be: the one answer of the configuration, and what the tools around make of it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training.tokenization import tell_longest_input, train_bpe_tokenizer, train_wordpiece_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from variants import ROOT, make_model, tiny_config, tiny_vision_config

from astroformer_hf import AstroformerConfig, AstroformerForSequenceClassification


TEXTS = ["a calm sea and a grey sky", "the ship sails over the calm sea"] * 10
LONG = "the ship sails over the calm sea " * 120  # more tokens than any default
# The astrocyte code alone bounds the length, where the arm has one.
BOUNDED = [{"astrocyte_code": "learned"}, {"astrocyte_code": "learned", "feature_map": "relu"}]
UNBOUNDED = [
    {},
    {"astrocyte_code": "sinusoidal"},
    {"astrocyte_code": "learned", "use_astrocyte_hebbian": False},
    {"astrocyte_code": "learned", "attention_type": "linear"},
    {"astrocyte_code": "learned", "attention_type": "softmax"},
]


def length_for_lm_eval(config, tokenizer):
    """Where lm-eval 0.4.13 looks for the longest input, in its order: a copy of its `resolve_max_length`."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    known = getattr(tokenizer, "model_max_length", None)
    if known is not None and known != 1000000000000000019884624838656:
        return int(known)
    return 2048


def save(folder, head="AstroformerForSequenceClassification", **changes):
    """A folder with a model and a tokenizer as the scripts save them."""
    tokenizer = train_wordpiece_tokenizer(TEXTS, 200)
    model = make_model(head, vocab_size=len(tokenizer), **changes)
    tell_longest_input(tokenizer, model.config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("fields", BOUNDED, ids=str)
def test_a_table_is_the_longest_input(fields, tmp_path):
    config = tiny_config(**fields)
    assert config.longest_input == config.max_position_embeddings == 160
    assert AstroformerConfig(**fields).longest_input == 512
    save(tmp_path, **fields)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.longest_input == tokenizer.model_max_length == length_for_lm_eval(loaded, tokenizer) == 160


@pytest.mark.parametrize("fields", UNBOUNDED, ids=str)
def test_without_a_table_nothing_bounds_the_input(fields, tmp_path):
    config = tiny_config(**fields)
    assert config.longest_input is None and not hasattr(config, "max_position_embeddings")
    save(tmp_path, **fields)
    config, tokenizer = AutoConfig.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert config.longest_input is None
    assert length_for_lm_eval(config, tokenizer) == 2048  # its own default, as for any model that states none
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = tokenizer(LONG, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 800
    (answer,) = pipeline("text-classification", model=str(tmp_path))(LONG, truncation=True)
    assert answer["score"] == pytest.approx(model(**inputs).logits.softmax(-1).max().item(), abs=1e-5)


def test_an_image_model_states_none():
    assert tiny_vision_config(astrocyte_code="learned").longest_input is None


def test_the_field_is_kept_for_a_code_that_needs_it(tmp_path):
    tiny_config(max_position_embeddings=77).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["max_position_embeddings"] == 77 and not any("table" in name for name in content)
    assert AutoConfig.from_pretrained(tmp_path, astrocyte_code="learned").max_position_embeddings == 77
    for changes in (
        {"max_position_embeddings": 90, "astrocyte_code": "learned"},
        {"astrocyte_code": "learned", "max_position_embeddings": 90},
    ):
        assert AutoConfig.from_pretrained(tmp_path, **changes).longest_input == 90
    config = AutoConfig.from_pretrained(tmp_path, max_position_embeddings=90)
    assert config.to_dict()["max_position_embeddings"] == 90
    config.astrocyte_code = "learned"
    assert config.longest_input == 90
    with pytest.raises(ValueError, match="max_position_embeddings must be positive, got 0"):
        AutoConfig.from_pretrained(tmp_path, max_position_embeddings=0)


def test_fields_given_while_loading_are_checked(tmp_path):
    make_model("AstroformerForSequenceClassification").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pooling must be one of .* got 'max'"):
        AstroformerForSequenceClassification.from_pretrained(tmp_path, pooling="max")


def test_a_checkpoint_of_an_older_release_is_not_cut(tmp_path):
    folder = ROOT / "tests/releases/0.1.0/text_activity"
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 24
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.longest_input is None and not hasattr(model.config, "max_position_embeddings")
    assert model(torch.randint(1, 40, (1, 900))).logits.isfinite().all()
    expected = load_file(folder / "expected.safetensors")
    logits = expected.pop("logits")
    torch.testing.assert_close(model(**expected).logits, logits)


@pytest.mark.parametrize("fields", [{}, {"astrocyte_code": "learned"}], ids=str)
def test_sentence_transformers_cuts_where_the_model_ends(fields, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = save(tmp_path, "AstroformerModel", **fields)
    wrapped = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    longest = model.config.longest_input
    inputs = tokenizer(LONG, truncation=longest is not None, max_length=longest, return_tensors="pt")
    expected = model(**inputs).last_hidden_state.mean(1)[0]
    assert (inputs["input_ids"].shape[1] > 800) == (longest is None)
    torch.testing.assert_close(torch.tensor(wrapped.encode(LONG)), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"astrocyte_code": "learned"}], ids=str)
def test_generate_goes_on_past_the_default_length(fields):
    model = make_model("AstroformerForCausalLM", max_position_embeddings=30, **fields)
    written = model.generate(torch.randint(1, 50, (1, 25)), do_sample=False, pad_token_id=0).shape[1]
    assert written == (30 if fields else 45)  # 20 new tokens, unless the table ends


def test_scripts_save_tokenizers_as_long_as_their_models():
    tokenizer = train_bpe_tokenizer(TEXTS, 300, 64)
    tell_longest_input(tokenizer, tiny_config())
    assert tokenizer.model_max_length > 10**9
    tell_longest_input(tokenizer, tiny_config(astrocyte_code="learned"))
    assert tokenizer.model_max_length == 160
