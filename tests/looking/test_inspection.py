# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Looking inside: what is shown is what the model computes; and the figures and the page of the script."""

import pytest
import torch
import visualize
from looking.checkpoint import spell
from looking.colours import colour, coloured_text
from peft import LoraConfig, get_peft_model
from PIL import Image
from training.tokenization import train_character_tokenizer, train_wordpiece_tokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from variants import ROOT, SWITCHES_OFF, VARIANTS, make_model, tiny_config, tiny_vision_config

from astroformer_hf import (
    AstroformerCache,
    AstroformerForImageClassification,
    AstroformerForSequenceClassification,
    look_inside,
    neuron_astrocyte_attention,
)
from astroformer_hf.library_compatibility import CACHE_NAME


SYNAPTIC = {name: variant for name, variant in VARIANTS.items() if variant.get("attention_type") != "softmax"}
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0]])


def run(name, variant):
    """A model of a class with its layers' inputs heard by a test's own hooks: (model, inputs, records, heard)."""
    model = make_model(name, **variant)
    if name == "AstroformerForImageClassification":
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        inputs = {"input_ids": torch.randint(1, 50, PADDED.shape), "attention_mask": PADDED}
    heard = []
    for layer in model.base_model.layers:
        layer.attention.register_forward_hook(lambda module, args, output: heard.append((module, args[0], output[0])))
    expected = model(**inputs)
    output, records = look_inside(model, **inputs)
    assert torch.equal(output[0], expected[0])
    return model, inputs, records, heard[: len(records)]


@pytest.mark.parametrize("name", ["AstroformerModel", "AstroformerForCausalLM", "AstroformerForImageClassification"])
@pytest.mark.parametrize("variant", SYNAPTIC)
def test_records_are_what_the_layers_computed(name, variant):
    if "segment_length" in SYNAPTIC[variant]:
        with pytest.raises(ValueError, match="segment_length=4"):
            run(name, SYNAPTIC[variant])
        return
    model, inputs, records, heard = run(name, SYNAPTIC[variant])
    causal = name == "AstroformerForCausalLM"
    mask = inputs.get("attention_mask")
    mask = None if mask is None else mask.bool()
    for record, (layer, hidden_states, output) in zip(records, heard, strict=True):
        query, key, value = (
            projection(hidden_states).unflatten(-1, (4, -1)).transpose(1, 2)
            for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        options = {**layer.operation, "random_projection": layer.random_projection, "causal": causal}
        is_leaky = layer.synaptic_decay is not None
        if is_leaky and mask is not None:
            options["log_decay"] = layer.synaptic_decay(hidden_states)
        _, state = neuron_astrocyte_attention(
            query, key, value, record.astrocyte_code, mask, **options, output_final_state=True
        )
        state = getattr(state, "before", state)
        hebbian = (record.hebbian_neuron + record.hebbian_astro) * layer.num_hidden_neurons
        torch.testing.assert_close(hebbian, state.hebbian, rtol=1e-4, atol=1e-4)
        assert record.memory_span.isfinite().all() == is_leaky
        assert (record.release is not None) == (layer.operation["presynaptic_target"] == "synapse")
        if is_leaky:
            gated, bias = layer.synaptic_decay.weight is not None, layer.synaptic_decay.bias
            # before training a gate does not depend on the token
            span = -1 / torch.nn.functional.logsigmoid(bias) if gated else (-bias).exp()
            torch.testing.assert_close(record.memory_span[0], span)
        silenced = value if mask is None else value.masked_fill(~mask[:, None, :, None], 0)
        mixed = layer.o_proj((record.attention @ silenced).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed[record.padding_mask], output[record.padding_mask], rtol=1e-4, atol=1e-4)
        response, feedback = record.calcium_response, record.feedback
        real = record.padding_mask[:, None].expand_as(response)
        assert (response[~real] == 0).all() and (feedback[~real] == 0).all()
        heard_of = response > 0  # with "relu" a token may find no calcium
        assert heard_of[real].all() or options["feature_map"] == "relu"
        if options["feedback"]:
            torch.testing.assert_close((response * feedback)[heard_of], torch.ones(heard_of.sum()))
            assert (feedback[~heard_of] == 0).all()
        else:
            assert (feedback[real] == 1).all()
        has_astrocyte = layer.astrocyte_code is not None
        assert bool(record.hebbian_astro.any()) == has_astrocyte == (record.coupling is not None)


@pytest.mark.parametrize("name", ["AstroformerModel", "AstroformerForCausalLM"])
def test_calcium_response_follows_its_equation(name):
    switches = {**SWITCHES_OFF, "feature_map": "elu"}
    _, inputs, records, heard = run(name, {**switches, "use_astrocyte_hebbian": False, "presynaptic_alpha": 0.5})
    layer, hidden_states, _ = heard[0]
    query, key = (p(hidden_states).unflatten(-1, (4, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj))
    activity = [torch.nn.functional.elu(x) + 1 for x in (query, key)]
    for example, tokens in ((0, range(7)), (1, range(2, 6))):
        for t in tokens:
            heard_by_then = [s for s in tokens if s <= t or name == "AstroformerModel"]
            calcium = sum(activity[1][example, :, s] for s in heard_by_then)  # (H, m)
            response = (activity[0][example, :, t] * calcium**0.5).sum(-1)
            torch.testing.assert_close(records[0].calcium_response[example, :, t], response, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["AstroformerModel", "AstroformerForCausalLM"])
def test_retention_and_release_follow_their_equations(name):
    switches = {"synaptic_decay": "gated", "presynaptic_target": "synapse", "calcium_sources": "all"}
    model = make_model(name, **switches, feature_map="elu", presynaptic_alpha=0.5, use_astrocyte_hebbian=False)
    for layer in model.base_model.layers:
        torch.nn.init.normal_(layer.attention.synaptic_decay.weight)
    heard = []
    model.base_model.layers[0].attention.register_forward_hook(lambda _, args, __: heard.append(args[0]))
    ids = torch.randint(1, 50, PADDED.shape)
    _, records = look_inside(model, input_ids=ids, attention_mask=PADDED)
    layer, record = model.base_model.layers[0].attention, records[0]
    gate = torch.sigmoid(heard[0] @ layer.synaptic_decay.weight.T + layer.synaptic_decay.bias).transpose(1, 2)
    real = PADDED[:, None].bool().expand_as(gate)
    torch.testing.assert_close(record.retention[real], gate[real])
    assert (record.retention[~real] == 1).all()
    spans = -PADDED.sum(-1, keepdim=True) / gate.log().masked_fill(~real, 0).sum(-1)
    torch.testing.assert_close(record.memory_span, spans)

    key = layer.k_proj(heard[0]).unflatten(-1, (4, -1)).transpose(1, 2)
    activity = (torch.nn.functional.elu(key) + 1) * real[..., None]
    for t in range(7):
        calcium = 0
        for s in range(7):
            between = gate[..., min(s, t) + 1 : max(s, t) + 1].masked_fill(~real[..., min(s, t) + 1 : max(s, t) + 1], 1)
            if s <= t or name == "AstroformerModel":
                calcium = calcium + between.prod(-1)[..., None] * activity[:, :, s]
        expected = torch.where(calcium > 0, calcium.clamp(min=1e-9) ** -0.5, 0)
        torch.testing.assert_close(record.release[:, :, t], expected, rtol=1e-4, atol=1e-5)


def test_on_a_grid_the_memory_span_is_in_patches():
    _, _, records, heard = run("AstroformerForImageClassification", VARIANTS["leaky"])
    assert records[0].retention is None
    spans = (-heard[0][0].synaptic_decay.bias).exp().expand(2, -1)
    torch.testing.assert_close(records[0].memory_span, spans)


def test_coupling_falls_with_the_distance_between_tokens_or_patches():
    _, _, records, _ = run("AstroformerModel", {"astrocyte_scale": 0.7})
    coupling = records[0].coupling[0]
    distance = (torch.arange(7.0)[:, None] - torch.arange(7.0)).abs()
    torch.testing.assert_close(coupling, torch.exp(-0.7 * distance))
    padded = PADDED[1] == 0
    assert (records[0].coupling[1, padded] == 0).all() and (records[0].coupling[1, :, padded] == 0).all()
    assert (records[0].coupling[1][~padded][:, ~padded] > 0).all()
    _, _, records, _ = run("AstroformerForCausalLM", {"astrocyte_scale": 0.7})
    torch.testing.assert_close(records[0].coupling[0], torch.exp(-0.7 * distance).tril())
    _, _, records, _ = run("AstroformerForImageClassification", {"astrocyte_scale": 0.7})
    assert records[0].coupling[0, 0, 5] == pytest.approx(2.718281828 ** (-0.7 * 2**0.5), rel=1e-4)  # a diagonal step


def test_a_model_is_left_as_it_was():
    model = make_model("AstroformerModel").train()
    look_inside(model, input_ids=torch.ones(1, 4).long())
    assert model.training and not any(layer.attention._forward_pre_hooks for layer in model.layers)


def test_a_text_that_goes_on_from_a_cache_is_refused():
    model, ids = make_model("AstroformerForCausalLM"), torch.randint(1, 50, (1, 9))
    cache = getattr(model(ids[:, :6], use_cache=True), CACHE_NAME)
    with pytest.raises(ValueError, match=f"look_inside takes whole texts, and {CACHE_NAME} holds 6 tokens"):
        look_inside(model, input_ids=ids[:, 6:], **{CACHE_NAME: cache})
    output, _ = look_inside(model, input_ids=ids, **{CACHE_NAME: AstroformerCache()})  # an empty one is none
    torch.testing.assert_close(output.logits, model(ids).logits)


def test_an_adapted_model():
    model = make_model("AstroformerForSequenceClassification")
    adaptation = LoraConfig(task_type="SEQ_CLS", r=2, target_parameters=["astrocyte_code.weight"])
    ids = torch.randint(1, 50, (1, 9))
    _, expected = look_inside(model, input_ids=ids)
    _, found = look_inside(get_peft_model(model, adaptation), input_ids=ids)  # whose adapters add nothing yet
    torch.testing.assert_close(found[0].coupling, expected[0].coupling)
    torch.testing.assert_close(found[0].attention, expected[0].attention)


def test_softmax_attention_has_no_synapses():
    model = make_model("AstroformerModel", attention_type="softmax")
    with pytest.raises(ValueError, match="neuron-astrocyte or linear attention, got 'softmax'"):
        look_inside(model, input_ids=torch.ones(1, 4).long())


# --------------------------------------------------------------------------------------------------------------------
# The script
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_model")
    tokenizer = train_wordpiece_tokenizer(["a lovely film", "an awful <film>"] * 5, 60, 16)
    config = tiny_config(vocab_size=len(tokenizer), id2label={0: "neg", 1: "pos"}, max_position_embeddings=16)
    AstroformerForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_model")
    AstroformerForImageClassification(tiny_vision_config(pooling="cls", astrocyte_code="learned")).save_pretrained(
        folder
    )
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    return folder


FIGURES = ("calcium", "attention", "hebbian", "code", "memory")


def check_figures(folder):
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as figure:
            assert figure.format == "PNG" and len(figure.convert("RGB").getcolors(1 << 24)) > 10
    page = (folder / "index.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(FIGURES)
    return page


def test_script_shows_a_text(text_model, tmp_path, scripts):
    arguments = ["--model", text_model, "--text", "a lovely <film>", "--output_dir", tmp_path / "look"]
    result = scripts.run(ROOT / "scripts/visualize.py", *arguments)
    assert "The model's answer: " in result.stdout
    page = check_figures(tmp_path / "look")
    assert page.count("Layer ") == 2 and page.count(": C = ") >= 10 and "&lt;" in page and "<film" not in page


def test_script_shows_an_image_and_an_example_of_a_data_set(image_model, text_model, tmp_path):
    visualize.main(
        ["--model", str(image_model), "--image", str(image_model / "red.png"), "--output_dir", str(tmp_path / "image")]
    )
    page = check_figures(tmp_path / "image")
    assert "Layer " not in page
    data = tmp_path / "data"
    data.mkdir()
    (data / "validation.csv").write_text("text,label\nan awful film,0\na lovely film,1\n")
    arguments = ["--model", str(text_model), "--dataset_dir", str(data), "--output_dir", str(tmp_path / "text")]
    visualize.main([*arguments, "--index", "1"])
    assert "lovely" in check_figures(tmp_path / "text").replace("</span>", "")
    with pytest.raises(ValueError, match="--index must be from 0 to 1, got 2"):
        visualize.main([*arguments, "--index", "2"])


def test_script_names_what_does_not_fit(image_model):
    with pytest.raises(ValueError, match="takes an --image"):
        visualize.main(["--model", str(image_model), "--text", "a film"])


def test_colours_run_from_the_lowest_to_the_highest_response():
    text = coloured_text(["low", "##er", "high"], [" low", "er", " high"], torch.tensor([1.0, 2.0, 3.0]))
    lowest, highest = colour(0.0)[0], colour(1.0)[0]
    assert text.index(lowest) < text.index(">low<") < text.index(">er<") < text.index(highest) < text.index(">high<")
    assert 'title="##er: C = 2"' in text and "</span><span" in text and "</span> <span" in text


def test_tokens_are_spelt_as_the_text_is():
    words = train_wordpiece_tokenizer(["lower lowest lovely films"] * 5, 60, 16)
    ids = words("lower films").input_ids
    spelt = spell(words, ids)
    assert len(spelt) == len(ids) and "".join(spelt) == words.decode(ids) == "[CLS] lower films [SEP]"
    characters = train_character_tokenizer(["a b"], 8)
    assert spell(characters, characters("ab a").input_ids) == ["a", "b", " ", "a"]
