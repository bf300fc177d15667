# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The demo: it shows what the model and `look_inside` say, in Python and in a browser, and its Space starts."""

import html
import io
import re
import runpy
import sys
from html.parser import HTMLParser

import demo
import pytest
import torch
import yaml
from looking import checkpoint
from looking.checkpoint import load
from looking.colours import colour, spell_number
from looking.page import describe_attention, describe_calcium
from looking.reading import MOST_BYTES, MOST_TOKENS, run
from PIL import Image
from sharing import demo_space
from training.tokenization import train_wordpiece_tokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from variants import ROOT, VARIANTS, make_model, tiny_config, tiny_vision_config

from astroformer_hf import AstroformerForImageClassification, AstroformerForSequenceClassification, look_inside


REVIEW = "a lovely film, if an awful end"
TAGS = ["<script>hacked=1</script>", "<img src=x onerror=hacked=1>"]  # a token each
HOSTILE = "".join(TAGS) + '" onmouseover="hacked=1" ${hacked=1} {{hacked}} film'


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """A folder with a classifier that has learnt which word is praise."""
    torch.manual_seed(0)
    texts, labels = ["a lovely film, if long", "an awful film, and the end"], torch.tensor([1, 0])
    tokenizer = train_wordpiece_tokenizer([*texts, HOSTILE] * 5, 110, 64)
    tokenizer.add_tokens(TAGS)
    model = AstroformerForSequenceClassification(
        tiny_config(vocab_size=len(tokenizer), id2label={0: "neg", 1: "pos"}, max_position_embeddings=64)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        model(**tokenizer(texts, padding=True, return_tensors="pt"), labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("text_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """A folder with a classifier of images that are 2 patches high and 4 wide, and a picture."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("image_model")
    config = tiny_vision_config(image_size=(8, 16), pooling="cls", num_labels=3)
    AstroformerForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 16}).save_pretrained(folder)
    picture = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 100).convert("RGB")
    picture.putpixel((0, 0), (255, 0, 0))
    picture.save(folder / "picture.png")
    (folder / "wrong.png").write_text("this is a text")
    return folder


def hints(drawn):
    """The tooltips in HTML, in order."""
    return [html.unescape(a or b) for a, b in re.findall(r'title="([^"]*)"|<title>(.*?)</title>', drawn)]


def expected_hints(names, response, feedback):
    return [
        f"{name}: C = {spell_number(c)}, P = {spell_number(p)}"
        for name, c, p in zip(names, response.tolist(), feedback.tolist(), strict=True)
    ]


def selections(records):
    """Every layer and head, and the mean of the heads, with C and P there, `(tokens,)` each."""
    for layer, record in enumerate(records):
        response, feedback = record.calcium_response[0], record.feedback[0]
        yield layer, demo.MEAN, response.mean(0), feedback.mean(0)
        for head in range(len(response)):
            yield layer, head, response[head], feedback[head]


def test_a_text_is_shown_as_the_model_reads_it(text_model):
    model, tokenizer = load(text_model)
    inputs = tokenizer(REVIEW, return_tensors="pt")
    output, records = look_inside(model, **inputs)
    answer, reading = demo.read_text(model, tokenizer, REVIEW)
    assert answer == dict(zip(("neg", "pos"), output.logits[0].softmax(-1).tolist(), strict=True))
    names = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert "9 tokens were read" not in reading.html(0, 0) and f"{len(names)} tokens were read" in reading.html(0, 0)
    for layer, head, response, feedback in selections(records):
        drawn = reading.html(layer, head)
        assert hints(drawn) == expected_hints(names, response, feedback)
        # what the tokenizer added has no colour, and no part in the scale
        assert drawn.count('class="special"') == 2 and drawn.count("<span style=") == len(names) - 2
        low, high = (spell_number(x.item()) for x in (response[1:-1].min(), response[1:-1].max()))
        assert f"C: {low} " in drawn and f" {high}</p>" in drawn


@pytest.mark.parametrize("text", [None, "", "  \n ", "\x00"])
def test_no_text_is_told_in_words(text_model, text):
    with pytest.raises(ValueError, match="Please enter a text"):
        demo.read_text(*load(text_model), text)


def test_a_long_text_is_cut_where_the_model_ends(text_model):
    model, tokenizer = load(text_model)
    tokenizer.model_max_length = 64  # what a tokenizer says is not what the model takes
    assert len(demo.read_text(model, tokenizer, "lovely film " * 40)[1].names) == 82
    model = type(model).from_pretrained(text_model, astrocyte_code="learned").eval()
    answer, reading = demo.read_text(model, tokenizer, "lovely film " * 40)
    assert "The text has 82 tokens; the first 64 were read" in reading.html(0, 0)
    assert reading.response.shape == (2, 4, 64) and len(hints(reading.html(0, 0))) == 64
    assert answer == demo.read_text(model, tokenizer, "lovely film " * 31)[0]


def test_a_text_cannot_become_html(text_model):
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag in ("div", "span", "p", "i") and {name for name, _ in attributes} <= {"class", "style", "title"}

    drawn = demo.read_text(*load(text_model), HOSTILE)[1].html(0, demo.MEAN)
    Tags().feed(drawn)
    assert "&lt;" in drawn and "<script" not in drawn


def test_an_image_is_shown_as_the_model_reads_it(image_model):
    model, processor = load(image_model)
    with Image.open(image_model / "picture.png") as image:
        inputs = processor([image], return_tensors="pt")
        answer, reading = demo.read_image(model, processor, image)
    output, records = look_inside(model, **inputs)
    assert answer == dict(zip(model.config.id2label.values(), output.logits[0].softmax(-1).tolist(), strict=True))
    names = [f"row {row}, column {column}" for row in range(2) for column in range(4)]
    for layer, head, response, feedback in selections(records):
        drawn = reading.html(layer, head)
        assert hints(drawn) == expected_hints(names, response[1:], feedback[1:])  # without the class token
        brightest = re.findall(r'<rect x="(\d)" y="(\d)" width="1" height="1" fill="(.*?)">', drawn)
        column, row, _ = next(place for place in brightest if place[2] == colour(1.0)[0])
        assert int(row) * 4 + int(column) == response[1:].argmax()
    assert 'viewBox="0 0 4 2"' in drawn and drawn.count("data:image/png;base64,") == 2
    with pytest.raises(ValueError, match="Please choose an image"):
        demo.read_image(model, processor, None)


def large_png(side):
    """A PNG of side x side pixels in a few kilobytes: all of them are black."""
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, format="PNG", optimize=True)
    return content.getvalue()


def test_inputs_beyond_measure_are_refused_before_they_are_decoded(image_model, text_model, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(large_png(13_000))
    assert path.stat().st_size < 50_000
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image))
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path) as image:
        with pytest.raises(
            ValueError, match="The picture has 13,000 x 13,000 pixels; please choose one of at most 30,0"
        ):
            demo.read_image(*load(image_model), image)
    model, tokenizer = load(text_model)
    with pytest.raises(ValueError, match="The text has 100,001 characters; please enter at most 100,000"):
        demo.read_text(model, lambda *_, **__: decoded.append("a text"), "a" * 100_001)
    assert decoded == []


def test_the_page_refuses_files_beyond_measure_before_they_are_decoded(image_model, tmp_path, monkeypatch):
    gr = pytest.importorskip("gradio", reason="gradio is not installed")
    page = demo.build_demo(*load(image_model))
    (given,) = (block for block in page.blocks.values() if isinstance(block, gr.Image))
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image))
    path = tmp_path / "large.png"
    for content, message in (
        (large_png(13_000), "13,000 x 13,000 pixels"),
        (large_png(20_000), "too many pixels"),
        (bytes(MOST_BYTES + 1), "The file has 20,971,521 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(gr.Error, match=message):
            given.preprocess(gr.data_classes.ImageData(path=str(path)))
    assert decoded == []
    options = {}
    monkeypatch.setattr(page, "launch", lambda **given: options.update(given))
    demo.launch(page)
    assert options["max_file_size"] == MOST_BYTES


def test_without_calcium_there_is_an_answer_only(text_model):
    _, tokenizer = load(text_model)
    model = make_model("AstroformerForSequenceClassification", vocab_size=120, **VARIANTS["softmax"])
    answer, reading = demo.read_text(model, tokenizer, REVIEW)
    logits = model(**tokenizer(REVIEW, return_tensors="pt")).logits[0]
    assert list(answer.values()) == pytest.approx(logits.softmax(-1).tolist()) and reading is None
    assert "without an astrocyte and its calcium" in describe_calcium(model)


def test_the_page_of_a_model_without_calcium(text_model):
    pytest.importorskip("gradio", reason="gradio is not installed")
    _, tokenizer = load(text_model)
    model = make_model("AstroformerForSequenceClassification", vocab_size=120, **VARIANTS["softmax"])
    page = demo.build_demo(model, tokenizer)
    classify = next(event.fn for event in page.fns.values() if event.api_name == "classify")
    assert classify(REVIEW) == demo.read_text(model, tokenizer, REVIEW)[0]
    shown = {component["type"] for component in page.config["components"]}
    assert "label" in shown and not shown & {"radio", "html", "state"}


@pytest.mark.parametrize(
    ("variant", "attention", "calcium"),
    [
        (
            "learned",
            "presynaptic α 0.5 at the synapse, astrocyte code learned",
            "feedback *P* = 1 / *C* of the astrocyte",
        ),
        (
            "no astrocyte",
            "presynaptic α 0.5 at the synapse, without H_astro, gated decay)",
            "feedback *P* = 1 / *C* of the astrocyte",
        ),
        ("no feedback", "presynaptic α 0.5 at the synapse, astrocyte code activity", "*C* does not act on the answer"),
        ("linear", "linear attention (φ exp)", "the usual normalisation"),
        ("learned, switches off", "α 0.5, astrocyte code learned)", "the keys of all tokens have raised"),
        ("activity, switches off", "presynaptic α", "*C* grows with the number of tokens: compare it within one text"),
        (
            "activity",
            "presynaptic α 0.5 at the synapse, astrocyte code activity, calcium of all sources, gated decay)",
            "the keys and the astrocyte's code of all tokens have raised in the astrocyte's process, of which the less",
        ),
        ("activity", "gated decay", "Compare *C* within one text"),
        ("softmax, leaky", "softmax attention (learned decay)", "only the answer is shown"),
        ("segments", "neuron-astrocyte attention", "reads in segments"),
    ],
)
def test_the_page_tells_the_arm(variant, attention, calcium):
    model = make_model("AstroformerForSequenceClassification", **VARIANTS[variant])
    assert attention in describe_attention(model) and calcium in describe_calcium(model)


def test_a_model_that_reads_in_segments_answers_alone(text_model):
    _, tokenizer = load(text_model)
    model = make_model("AstroformerForSequenceClassification", vocab_size=120, **VARIANTS["segments"])
    answer, reading = demo.read_text(model, tokenizer, REVIEW)
    logits = model(**tokenizer(REVIEW, return_tensors="pt")).logits[0]
    assert list(answer.values()) == pytest.approx(logits.softmax(-1).tolist()) and reading is None


def test_where_calcium_is_shown_a_long_text_is_cut(text_model):
    _, tokenizer = load(text_model)
    model = make_model("AstroformerForSequenceClassification", vocab_size=120)
    text = "film " * (MOST_TOKENS + 1)
    answer, reading = demo.read_text(model, tokenizer, text)
    assert reading.response.shape[-1] == MOST_TOKENS
    assert (
        f"has {MOST_TOKENS + 3:,} tokens; the first {MOST_TOKENS:,} were read, which is all that this" in reading.note
    )
    logits = model(**tokenizer(text, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")).logits[0]
    assert list(answer.values()) == pytest.approx(logits.softmax(-1).tolist())


def test_other_answers_than_one_of_several_classes(text_model):
    _, tokenizer = load(text_model)
    inputs, name = tokenizer(REVIEW, return_tensors="pt"), "AstroformerForSequenceClassification"
    several = make_model(name, vocab_size=120, problem_type="multi_label_classification")
    assert list(run(several, inputs)[0].values()) == several(**inputs).logits[0].sigmoid().tolist()
    number = make_model(name, vocab_size=120, num_labels=1, problem_type="regression")
    assert run(number, inputs)[0] == f"{number(**inputs).logits.item():.4g}"


def test_what_is_no_classifier_or_no_file_is_refused(image_model):
    with pytest.raises(ValueError, match="AstroformerForImageClassification, got AstroformerForCausalLM"):
        demo.build_demo(make_model("AstroformerForCausalLM"), None)
    with pytest.raises(ValueError, match="examples must be files of images, 'no.png' is none"):
        demo.build_demo(*load(image_model), examples=["no.png"])


# --------------------------------------------------------------------------------------------------------------------
# The page and the Space
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(image_model, tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("space")
    (folder / ".git").mkdir()
    picture = str(image_model / "picture.png")
    arguments = ["--model", str(image_model), "--title", "A: 'b'", "--examples", picture, "--space", str(folder)]
    demo.main(arguments)
    return folder


def test_space_has_what_the_hub_asks_for(space, tmp_path):
    import gradio

    _, header, text = (space / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["title"] == "A: 'b'" and card["sdk"] == "gradio" and card["sdk_version"] == gradio.__version__
    assert card["license"] == "apache-2.0" and (space / card["app_file"]).is_file() and "models" not in card
    assert card["python_version"] == ".".join(map(str, sys.version_info[:2]))
    assert "An image classifier with neuron-astrocyte attention" in text and "patch" in text and "{" not in text
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pins["torch"] == torch.__version__.partition("+")[0]
    assert {path.name for path in (space / "model").glob("*.*")} >= {"config.json", "model.safetensors"}
    assert (space / ".git").is_dir() and (space / "examples/picture.png").is_file()
    assert not [path for path in space.rglob("*") if ".tmp" in path.name or path.name.startswith("tmp")]


def test_space_keeps_pictures_of_the_same_name(image_model, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    pictures = [tmp_path / folder / "1.png" for folder in "ab"]
    for path, colour_of_all in zip(pictures, ("red", "blue"), strict=True):
        path.parent.mkdir()
        Image.new("RGB", (4, 4), colour_of_all).save(path)
    space = tmp_path / "space"
    demo.main(["--model", str(image_model), "--space", str(space), "--examples", *map(str, pictures)])
    assert [(space / f"examples/{i}_1.png").read_bytes() for i in range(2)] == [p.read_bytes() for p in pictures]
    assert "'0_1.png'" in (space / "app.py").read_text() and "'1_1.png'" in (space / "app.py").read_text()


def test_space_does_not_overwrite_its_model(space):
    with pytest.raises(ValueError, match="would overwrite --model"):
        demo.main(["--model", str(space / "model"), "--space", str(space)])


def test_space_loads_a_model_of_the_hub_from_there(monkeypatch, text_model, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    loaded = load(text_model)
    for module in (demo_space, checkpoint):
        monkeypatch.setattr(module, "load", lambda *_: loaded)
    demo.main(["--model", "user/name", "--revision", "v1", "--space", str(tmp_path), "--examples", 'A "b".', "It's."])
    assert "load('user/name', 'v1', False)" in (tmp_path / "app.py").read_text()
    assert yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])["models"] == ["user/name"]
    assert not (tmp_path / "model").exists()
    application = runpy.run_path(str(tmp_path / "app.py"))
    assert [['A "b".'], ["It's."]] in [x["props"].get("samples") for x in application["demo"].config["components"]]


@pytest.fixture(scope="module")
def browser():
    for package in ("gradio", "selenium"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import demo_browser

    with demo_browser.browser() as driver:
        yield demo_browser, driver


# Run by Python before anything else: keeps a list of the machines that a process asks for.
LISTENER = """
import pathlib, sys
def hear(event, arguments):
    address = {"socket.getaddrinfo": arguments[:1], "socket.connect": arguments[1:]}.get(event)
    address = address and (address[0] if isinstance(address[0], tuple) else address)
    if address:
        with open(pathlib.Path(__file__).with_name("hosts"), "a") as hosts:
            print(address[0], file=hosts)
sys.addaudithook(hear)
"""


@pytest.fixture(scope="module")
def servers(browser, text_model, space, tmp_path_factory):
    """The script with the text classifier, and the Space with that of images, both started at once.

    Gives two functions that wait for their addresses, and one for the machines that they have asked for.
    """
    folder = tmp_path_factory.mktemp("listener")
    (folder / "sitecustomize.py").write_text(LISTENER)
    environment = {"PYTHONPATH": str(folder)}
    package = space / "astroformer_hf/__init__.py"
    package.write_text(package.read_text() + "\n(__import__('pathlib').Path(__file__).parent / 'used').touch()\n")
    script = (str(ROOT / "scripts/demo.py"), "--model", str(text_model), "--examples", REVIEW)
    serving = browser[0].serving
    with (
        serving(*script, environment=environment) as text_server,
        serving("app.py", cwd=space, environment=environment) as image_server,
    ):
        yield text_server, image_server, lambda: set((folder / "hosts").read_text().split())


def check_page(tools, driver, address):
    """No complaint in the console, and nothing from elsewhere."""
    assert tools.complaints(driver) == []
    asked = tools.requests(driver)
    assert len(asked) > 10 and all(url.startswith(address) for url in asked), asked


@pytest.mark.browser
def test_a_text_in_a_browser(browser, servers, text_model):
    tools, driver = browser
    model, tokenizer = load(text_model)
    address = servers[0]()
    tools.open_demo(driver, address)
    assert "presynaptic α 0.5" in driver.page_source and REVIEW in driver.page_source
    for text in (REVIEW, HOSTILE):
        answer, reading = demo.read_text(model, tokenizer, text)
        tools.classify(driver, text)
        tools.wait_for(driver, text, lambda _, r=reading: tools.hints(driver) == hints(r.html(0, demo.MEAN)))
        shown = {label: f"{probability:.0%}" for label, probability in answer.items()}
        tools.wait_for(driver, str(shown), lambda _, s=shown: tools.answer(driver) == s)
    tools.choose(driver, "Layer", "1")
    tools.choose(driver, "Head", "2")
    tools.wait_for(driver, "head 2", lambda _: tools.hints(driver) == hints(reading.html(1, 2)))
    inside = "document.querySelectorAll('.calcium-text script, .calcium-text img').length"
    assert driver.execute_script(f"return [typeof hacked, {inside}]") == ["undefined", 0]
    check_page(tools, driver, address)
    tools.classify(driver, " ")
    tools.wait_for(driver, "the error", tools.message)
    assert "Please enter a text" in tools.message(driver) and "Traceback" not in driver.page_source


@pytest.mark.browser
def test_an_image_in_a_browser_from_the_space(browser, servers, image_model, space):
    tools, driver = browser
    model, processor = load(image_model)
    with Image.open(image_model / "picture.png") as image:
        answer, reading = demo.read_image(model, processor, image)
    address = servers[1]()
    assert (space / "astroformer_hf/used").exists()  # its own copy, not the package that is installed here
    tools.open_demo(driver, address)
    tools.classify(driver, image=image_model / "picture.png")
    tools.wait_for(driver, "patches", lambda _: tools.hints(driver) == hints(reading.html(0, demo.MEAN)))
    assert tools.answer(driver) == {label: f"{probability:.0%}" for label, probability in answer.items()}
    check_page(tools, driver, address)
    tools.open_demo(driver, address)
    tools.classify(driver, image=image_model / "wrong.png")
    tools.wait_for(driver, "the error", tools.message)
    assert "cannot be opened as an image" in tools.message(driver) and "Traceback" not in driver.page_source
    assert not list(space.glob("*.pyi"))  # gradio writes nothing beside the code
    assert servers[2]() == {"127.0.0.1"}  # of both, as they test their own address
