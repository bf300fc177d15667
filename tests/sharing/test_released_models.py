# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The trained models under model_cards/: they load, answer, and reach on a small sample the figures that were measured
on it when they were made."""

import json
import shutil

import publish
import pytest
import release_models
import torch
import transformers
from huggingface_hub import ModelCard
from release_models import CARDS, RELEASES, SAMPLES
from reporting import model_cards
from reporting.comparisons import Comparison
from safetensors.torch import load_file
from transformers import AutoConfig, pipeline
from variants import ROOT

from astroformer_hf import attention_backend, neuron_astrocyte_cpu


AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
}
PROCESSORS = {
    "text-classification": {"tokenizer.json", "tokenizer_config.json"},
    "image-classification": {"preprocessor_config.json", "example.png"},
    "text-generation": {"tokenizer.json", "tokenizer_config.json", "generation_config.json"},
}
EXPECTED = json.loads((SAMPLES / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(params=RELEASES)
def name(request):
    """The name of a released model."""
    return request.param


@pytest.fixture(scope="module")
def known():
    """The comparison that the released models are of."""
    return Comparison(ROOT / "results", release_models.PRESET)


def record_of(name):
    return json.loads((CARDS / name / "results.json").read_text(encoding="utf-8"))


def sample_for(name):
    return release_models.load_validation(SAMPLES / RELEASES[name].task)


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------------------
# The folders
# --------------------------------------------------------------------------------------------------------------------


def test_folders_hold_the_released_models_and_nothing_else(name):
    record = record_of(name)
    common = {"README.md", "config.json", "model.safetensors", "results.json"}
    assert contents(CARDS / name) == common | PROCESSORS[record["pipeline_tag"]]
    weights = load_file(CARDS / name / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {f"torch.{record['weights']}"}
    assert json.loads((CARDS / name / "config.json").read_text())["dtype"] == "float32"


def test_all_folders_are_released_models_and_small():
    assert {path.name for path in CARDS.iterdir() if path.is_dir()} == set(RELEASES) == set(EXPECTED)
    sizes = [path.stat().st_size for folder in (CARDS, SAMPLES) for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) < 10e6


def test_released_models_have_the_default_attention(name):
    config = AutoConfig.from_pretrained(CARDS / name)
    default = type(config)()
    for field in ("attention_type", "use_astrocyte_hebbian", "astrocyte_code", "hebbian_rule", "synaptic_decay"):
        assert getattr(config, field) == getattr(default, field)
    for field in ("presynaptic_alpha", "presynaptic_target", "calcium_sources", "use_calcium_feedback"):
        assert getattr(config, field) == getattr(default, field)


def test_figures_are_those_of_the_training_and_of_the_comparison(name, known):
    record = record_of(name)
    assert record["metrics"] == record["evaluations"][record["weights"]]
    compared = known.tasks[record["task"]][record["arm"]].records[0]
    for figures in (record["training"]["metrics"], compared["metrics"]):
        assert record["evaluations"]["float32"] == pytest.approx({**figures}, abs=2e-6)
    assert record["training"]["command"] == compared["command"]
    rounded = {kind: release_models.rounded(metrics) for kind, metrics in record["evaluations"].items()}
    assert (rounded["float16"] == rounded["float32"]) == (record["weights"] == "float16")


def test_card_says_what_the_record_says(name):
    record, card = record_of(name), ModelCard.load(CARDS / name / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert (card.data.model_name, card.data.pipeline_tag) == (name, record["pipeline_tag"])
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {metric: float(text) for metric, text in release_models.rounded(record["metrics"]).items()}
    for metric, text in release_models.rounded(record["metrics"]).items():
        assert f"| {metric} | {text} |" in card.content
    for text in (record["training"]["command"], record["example"]["code"], record["example"]["printed"].strip()):
        assert text in card.content
    for section in ("Use", "Results", "Limits", "Training", "License", "Cite"):
        assert f"\n## {section}\n" in card.content
    assert "{{" not in card.content and "{%" not in card.content and "\n\n\n" not in card.content


def test_cards_are_written_for_every_released_model(known):
    paths = {path.relative_to(CARDS).as_posix() for path in model_cards.cards(known, CARDS)}
    assert paths == {"README.md", *(f"{name}/README.md" for name in RELEASES)}


# --------------------------------------------------------------------------------------------------------------------
# What the models answer
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["plain", "cpp"])
def test_figures_on_the_sample_are_reached_again(name, backend):
    if backend == "cpp" and not neuron_astrocyte_cpu.LIBRARY.is_available():
        pytest.skip("there is no C++ compiler on this machine")
    model, processor = release_models.load(CARDS / name)
    with attention_backend(backend):
        metrics, losses = release_models.evaluate(model, processor, sample_for(name), record_of(name)["max_length"])
    expected = dict(EXPECTED[name])
    assert losses == pytest.approx(expected.pop("losses"), abs=1e-3)
    assert metrics == pytest.approx(expected, abs=1e-4)


def test_figures_on_the_sample_are_like_those_of_the_whole_split(name):
    whole, sample = record_of(name)["metrics"], EXPECTED[name]
    if "accuracy" not in whole:
        assert sample["loss"] == pytest.approx(whole["loss"], rel=0.1)
        return
    share, number = whole["accuracy"], len(sample["losses"])
    assert sample["accuracy"] == pytest.approx(share, abs=2 * (share * (1 - share) / number) ** 0.5)


def test_models_load_through_their_auto_classes(name):
    record = record_of(name)
    model = getattr(transformers, AUTO_CLASSES[record["pipeline_tag"]]).from_pretrained(CARDS / name)
    assert type(model).__module__.startswith("astroformer_hf.") and model.dtype == torch.float32
    assert model.num_parameters() == record["parameters"]


def test_code_of_a_card_prints_what_the_card_says(name):
    record = record_of(name)
    code, said = record["example"]["code"], record["example"]["printed"]
    printed = release_models.run_example(code)
    if record["pipeline_tag"] == "text-generation":  # what is drawn may differ from machine to machine
        assert printed.startswith(release_models.PROMPT) and len(printed) == len(said)
        return
    answers = [[line.rpartition(" ")[::2] for line in text.splitlines()] for text in (printed, said)]
    assert [label for label, _ in answers[0]] == [label for label, _ in answers[1]]
    assert [float(score) for _, score in answers[0]] == pytest.approx([float(s) for _, s in answers[1]], abs=0.02)


CLEAR = {
    "pos": (
        "This is one of the best films I have ever seen. The acting is superb and the story is beautiful.",
        "An excellent movie with wonderful performances, highly recommended.",
    ),
    "neg": (
        "This is one of the worst films I have ever seen. The acting is terrible and the story is stupid.",
        "A boring, awful mess. Avoid it, it is a waste of time.",
    ),
}


@pytest.mark.parametrize("name", [name for name in RELEASES if "imdb" in name])
def test_clear_reviews_are_understood(name):
    classify = pipeline("text-classification", model=str(CARDS / name))
    for label, texts in CLEAR.items():
        for answer in classify(list(texts)):
            assert answer["label"] == label and answer["score"] > 0.8


@pytest.mark.parametrize("name", [name for name in RELEASES if "cifar10" in name])
def test_a_car_is_seen(name):
    classify = pipeline("image-classification", model=str(CARDS / name))
    best, *others = classify(str(CARDS / name / "example.png"), top_k=10)
    assert best["label"] == "automobile" and best["score"] > 0.5 and len(others) == 9


@pytest.mark.parametrize("name", [name for name in RELEASES if "shakespeare" in name])
def test_words_are_continued(name):
    model, tokenizer = release_models.load(CARDS / name)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    answer = write("To be, or not to b", max_new_tokens=2, do_sample=False, return_full_text=False)
    assert answer[0]["generated_text"].startswith("e")


# --------------------------------------------------------------------------------------------------------------------
# What would be published
# --------------------------------------------------------------------------------------------------------------------


def test_published_is_the_folder_and_the_code_that_saving_writes(name, tmp_path):
    staged, saved = tmp_path / "staged", tmp_path / "saved"
    staged.mkdir()
    assert publish.stage(CARDS / name, staged, "user/mine") == []
    model, _ = release_models.load(CARDS / name)
    model.save_pretrained(saved)
    code = {path.name for path in saved.glob("*.py")}
    assert {"modeling_astroformer.py", "version.py"} <= code
    assert contents(staged) == contents(CARDS / name) | code | {"LICENSE"}
    for file in code:
        assert (staged / file).read_bytes() == (saved / file).read_bytes()
    maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (staged, saved)]
    assert maps[0] == maps[1]
    card = ModelCard.load(staged / "README.md")
    assert card.data.model_name == "mine" and 'model="user/mine"' in card.content
    assert "model_cards/" not in card.content.split("## Results")[0]
    assert name not in card.content.split("## Results")[0]


@pytest.mark.parametrize("name", ["astroformer-imdb", "astroformer-cifar10"])
def test_published_models_answer_the_same_without_the_package(name, tmp_path, forked_checks):
    publish.stage(CARDS / name, tmp_path, "user/mine")
    publish.check_answers(tmp_path)
    assert (tmp_path / "modeling_astroformer.py").is_file()


def test_code_is_not_added_to_a_folder_that_has_a_part_of_it(tmp_path):
    folder, staged = tmp_path / "model", tmp_path / "staged"
    shutil.copytree(CARDS / "astroformer-imdb", folder)
    shutil.copy(publish.PACKAGE / "configuration_astroformer.py", folder)
    staged.mkdir()
    with pytest.raises(publish.PublishError, match=r"modeling_astroformer\.py, the code of AutoModel, is missing"):
        publish.stage(folder, staged, "user/mine")


# --------------------------------------------------------------------------------------------------------------------
# Making the folders
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astroformer-imdb", "astroformer-cifar10"])
def test_a_model_is_released_from_what_training_left(name, tmp_path):
    trained, folder, record = tmp_path / "trained", tmp_path / "released", record_of(name)
    shutil.copytree(CARDS / name, trained)
    (trained / "training_args.bin").write_bytes(b"a pickle")
    left = {**record, **record["training"], "task": record["pipeline_tag"], "arm": record["attention_type"]}
    (trained / "results.json").write_text(json.dumps(left))
    sample = sample_for(name)
    figures = release_models.release(name, trained, sample, folder, sample)
    assert contents(folder) == contents(CARDS / name) - {"README.md"}
    made = json.loads((folder / "results.json").read_text())
    same = release_models.rounded(made["evaluations"]["float16"]) == release_models.rounded(
        made["evaluations"]["float32"]
    )
    assert made["weights"] == ("float16" if same else "float32")
    assert {str(x.dtype) for x in load_file(folder / "model.safetensors").values()} == {f"torch.{made['weights']}"}
    assert {**made["metrics"], "losses": figures["losses"]} == figures
    expected = dict(EXPECTED[name])
    losses = expected.pop("losses")
    # on the precision the sample may decide otherwise than the whole split; the figures in the recorded one stay
    assert made["evaluations"][record["weights"]] == pytest.approx(expected, abs=1e-4)
    if made["weights"] == record["weights"]:
        assert figures["losses"] == pytest.approx(losses, abs=1e-3)
    assert made["training"] == record["training"] and made["arm"] == record["arm"]


def test_a_released_folder_stays_until_its_successor_is_finished(tmp_path):
    folder = tmp_path / "model"
    (folder / "old").mkdir(parents=True)

    def write(name, error):
        with release_models.replacing(folder):
            assert not folder.exists()
            (folder / name).mkdir(parents=True)
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write("half", KeyboardInterrupt())
    assert [path.name for path in tmp_path.glob("**/*")] == ["model", "old"]
    folder.rename(tmp_path / ".model.before")  # as a process leaves it that is killed
    (folder / "half").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        write("half", KeyboardInterrupt())
    assert [path.name for path in tmp_path.glob("**/*")] == ["model", "old"]
    write("new", None)
    assert [path.name for path in tmp_path.glob("**/*")] == ["model", "new"]


def test_arguments_are_checked(tmp_path, capsys):
    with pytest.raises(SystemExit):
        release_models.parse_arguments(["--trained_dir", str(tmp_path)])
    assert "which has no results.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        release_models.parse_arguments(["--data", f"mnist={tmp_path}"])
    assert "expected TASK=FOLDER with one of imdb, cifar10, shakespeare" in capsys.readouterr().err
