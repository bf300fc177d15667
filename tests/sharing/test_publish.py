# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""From a trained folder to a repository that a stranger can use, on a Hub that runs here and fails when it is told to.

The stranger is a process that cannot import the package. ASTROFORMER_STRANGER names the Python of an environment in
which it was never installed, such as one with nothing but transformers, torch and pillow; by default it is hidden.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import huggingface_hub
import publish
import pytest
import torch
from conversion.library_models import SUPPORTED
from loopback_hub import ORGANIZATION, READER_TOKEN, Fault, File, LoopbackHub, Repository
from publish import Publisher, PublishError
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from script_server import ScriptServer
from training.tokenization import train_bpe_tokenizer
from transformers import AutoTokenizer, pipeline
from variants import HIDE_PACKAGE, ROOT, tiny_config

from astroformer_hf import AstroformerForCausalLM


FOREVER = 10**9
TEXTS = ["the calm sea carries the ship", "what a grey and dull affair", "no"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, known to the client in this process, which does not wait between its tries."""
    with LoopbackHub() as hub:
        hub.be_found(monkeypatch, tmp_path / "cache")
        hub.waits = []
        impatient = types.SimpleNamespace(**{**vars(time), "sleep": hub.waits.append})
        monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)
        monkeypatch.setattr(publish, "time", impatient)
        yield hub


@pytest.fixture
def files(tmp_path):
    """A staged folder: small files, a large one for one piece and one that goes in parts, one in a subfolder."""
    folder = tmp_path / "staged"
    (folder / "figures").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# model\n")
    (folder / "config.json").write_text("{}")
    (folder / "figures" / "curve.png").write_bytes(b"small" * 100)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 600)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub, repo_id="user/model", revision="main"):
    files = hub.files(repo_id, revision)
    files.pop(".gitattributes")
    return files


# --------------------------------------------------------------------------------------------------------------------
# Faults
# --------------------------------------------------------------------------------------------------------------------

STEPS = {
    "look": {"method": "GET", "path": "/api/models/user/model"},
    "create": {"method": "POST", "path": "/api/repos/create"},
    "metadata": {"method": "POST", "path": "/api/validate-yaml"},
    "modes": {"method": "POST", "path": ".*/preupload/"},
    "batch": {"method": "POST", "path": r".*\.git/info/lfs"},
    "part": {"method": "PUT", "path": "/lfs/.*/2"},
    "piece": {"method": "PUT", "path": "/lfs/[0-9a-f]+$"},
    "end of parts": {"method": "POST", "path": "/lfs/.*/end"},
    "verify": {"method": "POST", "path": "/lfs/.*/verify"},
    "commit": {"method": "POST", "path": ".*/commit/"},
    "list": {"method": "GET", "path": ".*/tree/"},
}
PASSING = {
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429},
    "dropped": {"kind": "drop"},
    "lost answer": {"kind": "lose"},
    "cut answer": {"kind": "cut"},
}
AFTER_THE_FACT = ("verify", "list")  # what they ask after has happened, which the next try finds out
WITHOUT_ANSWER = ("part", "piece")  # an empty one cannot be cut


@pytest.mark.parametrize(
    "step, fault", [(s, f) for s in STEPS for f in PASSING if not (f == "cut answer" and s in WITHOUT_ANSWER)]
)
def test_a_fault_that_passes_is_survived_and_leaves_one_commit(step, fault, hub, files):
    injected = Fault(**STEPS[step], times=2, **PASSING[fault])
    hub.faults.append(injected)
    commit = Publisher("user/model").publish(files, "Upload")
    assert injected.times < 2 and hub.waits
    repository = hub.repositories["model", "user/model"]
    assert repository.titles == ["initial commit", "Upload"] and repository.branches == {"main": commit}
    assert published(hub) == contents(files)


@pytest.mark.parametrize("fault", ["503", "dropped"])
@pytest.mark.parametrize("step", [step for step in STEPS if step not in AFTER_THE_FACT])
def test_a_fault_that_stays_is_told_and_nothing_is_left(step, fault, hub, files, capsys):
    hub.faults.append(Fault(**STEPS[step], times=FOREVER, **PASSING[fault]))
    with pytest.raises(PublishError, match="the Hub could not .*: (it answered 503|no answer)"):
        Publisher("user/model", retries=1).publish(files, "Upload")
    hub.faults.clear()
    if step == "look":  # then it cannot look whether the repository is empty either, so it leaves it alone
        hub.repositories.clear()
    assert hub.repositories == {}
    Publisher("user/model").publish(files, "Upload")
    assert published(hub) == contents(files)


def test_what_cannot_be_removed_is_told_and_taken_up_later(hub, files, capsys):
    hub.faults.append(Fault("status", "POST", ".*/commit/", FOREVER))
    hub.faults.append(Fault("status", "DELETE", ".*", FOREVER))
    with pytest.raises(PublishError, match="take the commit"):
        Publisher("user/model", retries=1).publish(files, "Upload")
    assert "the same command goes on with it" in capsys.readouterr().err
    assert list(hub.files("user/model")) == [".gitattributes"]
    hub.faults.clear()
    Publisher("user/model").publish(files, "Upload")
    assert published(hub) == contents(files)


def test_a_failed_update_leaves_what_was_there(hub, files):
    first = Publisher("user/model").publish(files, "First")
    before = published(hub)
    (files / "config.json").write_text('{"new": 1}')
    for step in ("part", "commit"):
        (files / "model.safetensors").write_bytes(step.encode() * 40_000)
        hub.faults.append(Fault("status", **STEPS[step], times=FOREVER))
        with pytest.raises(PublishError):
            Publisher("user/model", update=True, retries=1).publish(files, "Second")
        hub.faults.clear()
        assert published(hub) == before and hub.repositories["model", "user/model"].branches == {"main": first}


def test_corrupted_uploads_are_sent_again_and_never_committed(hub, files):
    for step in ("part", "piece"):
        hub.faults.append(Fault("corrupt", **STEPS[step]))
    Publisher("user/model").publish(files, "Upload")
    assert not hub.faults and published(hub) == contents(files)
    hub.faults.append(Fault("corrupt", **STEPS["part"], times=FOREVER))
    (files / "model.safetensors").write_bytes(b"other" * 40_000)
    with pytest.raises(PublishError, match="BadDigest"):
        Publisher("user/other", retries=1).publish(files, "Upload")
    assert ("model", "user/other") not in hub.repositories


def test_a_hub_that_keeps_other_bytes_than_were_sent_is_caught(hub, files):
    class Forgetful(dict):
        def __setitem__(self, oid, content):
            super().__setitem__(oid, content[:-1] + b"?")

    hub.objects = Forgetful()
    with pytest.raises(PublishError, match="other content than was sent.*model.safetensors"):
        Publisher("user/model").publish(files, "Upload")


def test_slow_answers_are_waited_for_up_to_the_timeout(hub, files):
    hub.faults.append(Fault("slow", **STEPS["commit"], seconds=0.5))
    Publisher("user/model").publish(files, "Upload")
    assert published(hub) == contents(files) and not hub.waits
    for step in ("look", "list"):
        slow = Fault("slow", **STEPS[step], seconds=1.0)
        hub.faults.append(slow)
        hub.waits.clear()
        Publisher("user/model", timeout=0.3, update=True).publish(files, "Upload")
        assert slow.times == 0 and hub.waits, step
    hub.waits.clear()
    # the commit arrives after the client has given up waiting and tried again
    hub.faults.append(Fault("slow", **STEPS["commit"], seconds=1.0))
    Publisher("user/slow", timeout=0.3).publish(files, "Upload")
    assert hub.waits
    time.sleep(1.2)  # until the first try has arrived as well
    assert hub.repositories["model", "user/slow"].titles == ["initial commit", "Upload"]


def test_a_hub_that_is_not_there_is_told(hub, files):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(PublishError, match="could not look at the repository: no answer"):
        Publisher("user/model", retries=1).publish(files, "Upload")


def test_answers_that_are_no_json_are_tried_again_and_other_refusals_told(hub, files):
    hub.faults.append(Fault("garbage", **STEPS["metadata"], times=2))
    Publisher("user/model").publish(files, "Upload")
    assert not hub.faults and published(hub) == contents(files)
    (files / "README.md").write_text("---\nmodel-index:\n- name: model\n---\n")
    with pytest.raises(PublishError, match='take the commit: .*"model-index" must have a name'):
        Publisher("user/other").publish(files, "Upload")
    assert ("model", "user/other") not in hub.repositories


def test_without_a_network_by_wish_nothing_is_tried(hub, files, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="offline mode"):
        Publisher("user/model").publish(files, "Upload")
    assert not hub.waits and not hub.requests


def test_interrupted_uploads_take_back_what_they_made(hub, files, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Publisher("user/model", revision="v1").publish(files, "Upload")
    assert hub.repositories == {}


def test_what_somebody_else_put_there_meanwhile_is_not_removed(hub, files, monkeypatch):
    def somebody_commits(self, repo_id, *_, **__):
        hub.repositories["model", repo_id].commit("main", {"theirs.txt": File(b"theirs", False)}, "theirs")
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", somebody_commits)
    with pytest.raises(KeyboardInterrupt):
        Publisher("user/model").publish(files, "Upload")
    assert hub.repositories["model", "user/model"].titles == ["initial commit", "theirs"]

    def somebody_commits_to_the_branch(self, repo_id, *_, revision, **__):
        hub.repositories["model", repo_id].commit(revision, {"theirs.txt": File(b"theirs", False)}, "theirs")
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", somebody_commits_to_the_branch)
    with pytest.raises(KeyboardInterrupt):
        Publisher("user/model", revision="v1").publish(files, "Upload")
    assert hub.files("user/model", "v1") == {"theirs.txt": b"theirs"}


def test_who_makes_the_repository_at_the_same_time_is_left_alone(hub, files, monkeypatch):
    create_repo = huggingface_hub.HfApi.create_repo

    def somebody_is_faster(self, repo_id, **options):
        url = create_repo(self, repo_id)
        hub.repositories["model", repo_id].commit("main", {"old.py": File(b"theirs", False)}, "theirs")
        return url

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", somebody_is_faster)
    with pytest.raises(PublishError, match="user/model was made by somebody else"):
        Publisher("user/model").publish(files, "Upload")
    assert hub.files("user/model") == {"old.py": b"theirs"}


# --------------------------------------------------------------------------------------------------------------------
# Who may, and where
# --------------------------------------------------------------------------------------------------------------------


def test_tokens_and_names_are_checked_first(hub, files, monkeypatch):
    assert Publisher("user/model").check_access() == "user"
    Publisher(f"{ORGANIZATION}/model").check_access()
    with pytest.raises(PublishError, match=r"namespace of yours \(user, club\), got 'other/model'"):
        Publisher("other/model").check_access()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PublishError, match="token is not valid: make one .* `hf auth login` or set HF_TOKEN"):
        Publisher("user/model").check_access()
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(PublishError, match="no access token was found"):
        Publisher("user/model").check_access()
    assert hub.repositories == {}


def test_a_taken_name_needs_update_which_removes_stale_code(hub, files):
    (files / "old_module.py").write_text("old = 1")
    first = Publisher("user/model").publish(files, "First")
    with pytest.raises(PublishError, match="user/model exists already.*--update"):
        Publisher("user/model").publish(files, "Second")
    repository = hub.repositories["model", "user/model"]
    repository.commits[first]["notes.txt"] = repository.commits[first]["config.json"]
    (files / "old_module.py").unlink()
    second = Publisher("user/model", update=True).publish(files, "Second")
    assert repository.titles[1:] == ["First", "Second"] and second != first
    assert "old_module.py" in hub.files("user/model", first)
    assert set(published(hub)) == {*contents(files), "notes.txt"}
    # nothing new, no commit
    assert Publisher("user/model", update=True).publish(files, "Third") == second
    assert len(repository.titles) == 3


def test_private_repositories_and_branches(hub, files, monkeypatch):
    Publisher("user/secret", private=True).publish(files, "Upload")
    assert hub.repositories["model", "user/secret"].private
    commit = Publisher("user/model", revision="v1").publish(files, "Upload")
    assert hub.repositories["model", "user/model"].branches["v1"] == commit
    assert published(hub, revision="main") == {} and published(hub, revision="v1") == contents(files)
    with pytest.raises(PublishError, match="the branch 'v1' of user/model exists already"):
        Publisher("user/model", revision="v1").publish(files, "Upload")
    for branch in ("v1", "new"):
        with pytest.raises(PublishError, match="exists and is public"):
            Publisher("user/model", revision=branch, private=True, update=True).publish(files, "Upload")
    hub.faults.append(Fault("status", **STEPS["commit"], times=FOREVER))
    with pytest.raises(PublishError):
        Publisher("user/model", revision="v2", retries=1).publish(files, "Upload")
    assert set(hub.repositories["model", "user/model"].branches) == {"main", "v1"}
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        huggingface_hub.HfApi().model_info("user/secret")


# --------------------------------------------------------------------------------------------------------------------
# Downloads
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "drop"])
def test_downloads_go_on_after_a_fault(fault, hub, files):
    Publisher("user/model").publish(files, "Upload")
    hub.faults.append(Fault(fault, "GET", "/cdn/|.*/resolve/", times=2))
    folder = huggingface_hub.snapshot_download("user/model")
    assert not hub.faults
    assert contents(Path(folder)) == hub.files("user/model")


def test_a_download_that_the_hub_refuses_is_told_and_can_be_taken_up(hub, files):
    Publisher("user/model").publish(files, "Upload")
    hub.faults.append(Fault("status", "GET", "/cdn/", times=FOREVER))
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="503 Service Unavailable"):
        huggingface_hub.snapshot_download("user/model")
    hub.faults.clear()
    assert contents(Path(huggingface_hub.snapshot_download("user/model"))) == hub.files("user/model")


def test_a_corrupted_download_is_found_by_its_checksum(hub, files):
    Publisher("user/model").publish(files, "Upload")
    hub.faults.append(Fault("corrupt", "GET", "/cdn/", times=1))
    huggingface_hub.snapshot_download("user/model", max_workers=1)
    found = huggingface_hub.HfApi(endpoint=hub.endpoint).verify_repo_checksums(
        "user/model", cache_dir=huggingface_hub.constants.HF_HUB_CACHE
    )
    assert len(found.mismatches) == 1 and found.mismatches[0]["algorithm"] == "sha256"


# --------------------------------------------------------------------------------------------------------------------
# What is published
# --------------------------------------------------------------------------------------------------------------------

TRAINED = {
    "text": ["train_text_classification.py", "--vocab_size", "300", "--max_length", "32"],
    "image": ["train_image_classification.py"],
    "causal": ["train_language_model.py", "--block_size", "32"],
}
SMALL = ["--hidden_size", "32", "--num_hidden_layers", "1", "--max_steps", "3", "--max_train_samples", "64"]
SMALL += ["--max_eval_samples", "32", "--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps"]
SMALL += ["--save_steps", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scripts):
    """Folders of models that the training scripts made, briefly."""
    root = tmp_path_factory.mktemp("trained")
    reviews = root / "reviews"
    reviews.mkdir()
    for split in ("train", "validation"):
        rows = [f'"{text} {i}",{("bad", "good")[i % 2]}' for i, text in enumerate(TEXTS * 30)]
        (reviews / f"{split}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    for name, (script, *flags) in TRAINED.items():
        data = ["--dataset_dir", reviews] if name == "text" else []
        scripts.run(ROOT / "scripts" / script, *flags, *SMALL, "--output_dir", root / name, *data)
    return root


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the text classifier's folder, to damage."""
    return Path(shutil.copytree(trained / "text", tmp_path / "text"))


def stage(folder, repo_id="user/model"):
    """Stages a folder beside it; where that is, and what was left out."""
    target = folder.parent / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    left_out = publish.stage(folder, target, repo_id)
    return target, left_out


@pytest.mark.parametrize("name", TRAINED)
def test_the_staged_folder_is_whole_and_has_no_pickles(name, trained, tmp_path):
    target, left_out = stage(Path(shutil.copytree(trained / name, tmp_path / name)))
    names = set(contents(target))
    assert {"README.md", "LICENSE", "config.json", "model.safetensors", "learning_curve.png", "version.py"} <= names
    assert ("preprocessor_config.json" if name == "image" else "tokenizer.json") in names
    assert {"training_args.bin", "checkpoint-3/"} <= set(left_out)
    assert {Path(path).suffix for path in names} <= {".md", ".json", ".safetensors", ".png", ".py", ""}
    card = huggingface_hub.ModelCard.load(target / "README.md")
    assert 'model="user/model", trust_remote_code=True' in card.text and "\n# model\n" in card.content
    assert card.data.model_name == "model" and card.data.eval_results
    assert f'model="{name}"' not in card.text


def test_an_image_classifier_answers_the_same_without_the_package(trained, tmp_path, forked_checks):
    publish.check_answers(stage(Path(shutil.copytree(trained / "image", tmp_path / "image")))[0])


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_card(pattern, replacement):
    def damage(folder):
        text, count = re.subn(pattern, replacement, (folder / "README.md").read_text(), flags=re.DOTALL)
        assert count
        (folder / "README.md").write_text(text)

    return damage


UNFIT = {
    "no model": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "has no model.safetensors"),
    "no card": (lambda f: (f / "README.md").unlink(), "has no README.md"),
    "no license": (edit_card("license: apache-2.0\n", ""), "nothing of the license"),
    "no task": (edit_card("pipeline_tag: text-classification\n", ""), r"nothing of the task \(pipeline_tag\)"),
    "no results": (edit_card("model-index:.*?\n---", "---"), "nothing of results"),
    "no figure": (lambda f: (f / "learning_curve.png").unlink(), "shows 'learning_curve.png', which is not in"),
    "figure outside": (edit_card(r"\(learning_curve.png\)", "(../reviews/train.csv)"), "which is not in the folder"),
    "no use": (edit_card(r'model="text"', 'model="mine"'), "does not show how to use 'user/model'"),
    "bad metadata": (edit_card("^---\n", "---\n: [\n"), "no valid metadata"),
    "no code": (lambda f: (f / "modeling_astroformer.py").unlink(), "modeling_astroformer.py, the code of AutoModel"),
    "no map": (lambda f: edit_config(f, auto_map=None), "has no auto_map: it was saved without its code"),
    "of the library": (
        lambda f: edit_config(f, auto_map=None, model_type="bert"),
        "has no auto_map: a model of type .bert. is one of the library.* `push_to_hub`",
    ),
    "code outside": (lambda f: edit_config(f, auto_map={"AutoModel": "/tmp/evil.Model"}), "points outside .*evil"),
    "code elsewhere": (lambda f: edit_config(f, auto_map={"AutoModel": "a/b--evil.Model"}), "points outside .*evil"),
    "figure that is none": (
        edit_card(r"\(learning_curve.png\)", "(training_args.bin)"),
        "'training_args.bin', which is not an",
    ),
    "not UTF-8": (lambda f: (f / "README.md").write_bytes(b"\xff\xfe"), "cannot be read: UnicodeDecodeError"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be read: JSONDecodeError"),
    "broken index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "cannot be read: KeyError"),
    "odd map": (lambda f: edit_config(f, auto_map={"AutoModel": {}}), "cannot be read: AttributeError"),
    "token in a vocabulary": (lambda f: (f / "vocab.txt").write_text(f"hf_{'a' * 34}"), "vocab.txt contains .* token"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer or image processor"),
    "token": (lambda f: (f / "results.json").write_text(f'"hf_{"a" * 34}"'), "results.json contains .* access token"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_folders_are_refused_with_the_reason(name, folder):
    damage, pattern = UNFIT[name]
    damage(folder)
    with pytest.raises(PublishError, match=pattern):
        stage(folder)


def test_only_code_and_figures_that_are_used_are_taken(folder):
    (folder / "mine.py").write_text("print('private')")
    (folder / "plots").mkdir()
    shutil.copyfile(folder / "learning_curve.png", folder / "plots" / "b.png")
    figures = '![a](./learning_curve.png "T") <img width=3 src="plots/b.png"> ![c](data:image/png;base64,AA) ![d](http://x/y.png)'
    with (folder / "README.md").open("a") as card:
        card.write(figures)
    target, left_out = stage(folder)
    assert {"learning_curve.png", "plots/b.png", "version.py"} <= set(contents(target))
    assert "mine.py" not in contents(target) and "mine.py" in left_out and "plots/" not in left_out


def test_all_reasons_are_told_at_once(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "learning_curve.png").unlink()
    with pytest.raises(PublishError, match=r"(?s)learning_curve.png.*no tokenizer"):
        stage(folder)


def test_sharded_weights_must_be_complete(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PublishError, match="model-00002-of-00002.safetensors, a part of the weights, is missing"):
        stage(folder)


def test_half_precision_short_models_and_tokenizers_without_padding_are_compared(tmp_path, monkeypatch, forked_checks):
    folder = tmp_path / "model"
    config = tiny_config(vocab_size=300, astrocyte_code="learned", max_position_embeddings=8)
    AstroformerForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = train_bpe_tokenizer(TEXTS * 20, 290, 8)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    compared = []
    monkeypatch.setattr(publish, "load_file", lambda path: compared.append(load_file(path)) or load_numpy(path))
    publish.check_answers(folder)
    package, without = compared
    assert package.keys() == without.keys() >= {"random.input_ids", "random.logits", "example.input_ids"}
    assert package["random.logits"].shape == (3, 8, 300) and package["example.logits"].shape == (1, 8, 300)
    for name, tensor in package.items():
        assert torch.equal(tensor, without[name]), name
    assert torch.equal(package["random.logits"], package["random.logits"].bfloat16().float())
    assert package["random.logits"].std() > 0.1


def test_code_that_answers_otherwise_than_the_package_is_refused(folder, forked_checks):
    path = folder / "modeling_astroformer.py"
    text = path.read_text()
    changed = text.replace("= self.classifier(self.dropout(pooled))\n", "= self.classifier(pooled) + 1\n")
    assert changed != text
    path.write_text(changed)
    with pytest.raises(PublishError, match="does not answer as the package does: .*random.logits"):
        publish.check_answers(stage(folder)[0])
    path.write_text(text.replace("class AstroformerForSequenceClassification(", "class Renamed("))
    with pytest.raises(PublishError, match=r"(?s)does not load with the code in it:.*AstroformerForSequenceClassif"):
        publish.check_answers(stage(folder)[0])


def test_a_dry_run_checks_everything_and_sends_nothing(hub, folder, monkeypatch, capsys):
    checked = []
    monkeypatch.setattr(publish, "check_answers", lambda staged: checked.append(set(contents(staged))))
    monkeypatch.setattr(sys, "argv", ["publish.py", "--model", str(folder), "--repo_id", "user/text", "--dry_run"])
    publish.main()
    assert len(checked) == 1 and {"config.json", "model.safetensors", "README.md"} <= checked[0]
    printed = capsys.readouterr().out
    assert "Nothing was sent" in printed and "model.safetensors" in printed and "training_args.bin" in printed
    assert not hub.repositories and not hub.requests


# --------------------------------------------------------------------------------------------------------------------
# The stranger
# --------------------------------------------------------------------------------------------------------------------

PUSH = """
import sys
import astroformer_hf
from transformers import AutoModelForSequenceClassification, AutoTokenizer
AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).push_to_hub("user/pushed")
AutoTokenizer.from_pretrained(sys.argv[1]).push_to_hub("user/pushed")
"""
STRANGER = """
import json, pathlib, sys
from transformers import AutoModelForSequenceClassification, pipeline
import torch
torch.set_num_threads(1)
try:
    import astroformer_hf
except ImportError:
    pass
else:
    raise SystemExit("the package must not be importable here")
asked, answers = json.loads(sys.argv[1]), {}
for name, (task, inputs, loading, more) in asked.items():
    try:
        answers[name] = pipeline(task, trust_remote_code=True, **loading)(inputs, **more)
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


CONVERTED = {"embedder": "BertModel", "converted": "LlamaForCausalLM"}


@pytest.fixture(scope="module")
def converted(trained, scripts):
    """Beside the trained ones, folders of library models that `convert.py` gave another attention, briefly."""
    options = ["--num_transfer", "8", "--num_distillation", "8", "--num_validation", "4", "--batch_size", "4"]
    options += ["--max_length", "16", "--window_size", "3", "--text", trained / "reviews"]
    for name, of in CONVERTED.items():
        model = next(model for model in SUPPORTED if model.name == of).make("sdpa")
        tokenizer = AutoTokenizer.from_pretrained(trained / ("text" if name == "embedder" else "causal"))
        model.resize_token_embeddings(len(tokenizer))
        for part in (model, tokenizer):
            part.save_pretrained(trained / f"{name}_original")
        scripts.run(
            ROOT / "scripts/convert.py",
            *("--model", trained / f"{name}_original", "--output_dir", trained / name),
            *options,
        )


def by_hand(hub, trained, name, tmp_path):
    """Puts what would be published of a model on the Hub."""
    folder = stage(Path(shutil.copytree(trained / name, tmp_path / name)), f"user/{name}")[0]
    hub.repositories["model", f"user/{name}"] = Repository(private=False)
    staged = {path: File(content, is_large=False) for path, content in contents(folder).items()}
    hub.repositories["model", f"user/{name}"].commit("main", staged, "upload")


def test_a_stranger_gets_the_same_answers(trained, converted, tmp_path):
    picture = tmp_path / "digit.png"
    from PIL import Image

    Image.effect_mandelbrot((30, 20), (-2, -1, 1, 1), 50).convert("RGB").save(picture)
    inputs = {
        "text": ("text-classification", TEXTS, {"top_k": None}),
        "image": ("image-classification", str(picture), {}),
        "causal": ("text-generation", "def", {"max_new_tokens": 8, "do_sample": False}),
        "embedder": ("feature-extraction", TEXTS[0], {}),
        "converted": ("text-generation", "a good", {"max_new_tokens": 8, "do_sample": False}),
    }
    with LoopbackHub() as hub:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment.update(hub.environment(tmp_path / "home"), HF_MODULES_CACHE=str(tmp_path / "modules"))
        server = ScriptServer(environment, tmp_path / "printed")
        model = ["--model", trained / "text", "--repo_id", "user/text"]
        done = server.run(ROOT / "scripts/publish.py", *model, cwd=tmp_path)
        first = re.search("at commit ([0-9a-f]{40})", done.stdout).group(1)
        for name in ("image", "causal", *CONVERTED):
            by_hand(hub, trained, name, tmp_path)
        for name, program in (("push.py", PUSH), ("stranger.py", HIDE_PACKAGE + STRANGER)):
            (tmp_path / name).write_text(program)
        server.run(tmp_path / "push.py", trained / "text", cwd=tmp_path)
        # a later commit with other weights, which who pinned the first does not get
        weights = load_file(trained / "text" / "model.safetensors")
        save_file({key: -tensor for key, tensor in weights.items()}, tmp_path / "other.safetensors", {"format": "pt"})
        repository = hub.repositories["model", "user/text"]
        changed = dict(repository.commits[first])
        changed["model.safetensors"] = File((tmp_path / "other.safetensors").read_bytes(), is_large=True)
        hub.objects[changed["model.safetensors"].sha256] = changed["model.safetensors"].content
        repository.commit("main", changed, "other weights")
        # a repository whose configuration names code outside
        evil = tmp_path / "evil.py"
        evil.write_text("print('EVIL CODE RAN')\n")
        config = json.loads(changed["config.json"].content)
        config["auto_map"]["AutoConfig"] = f"{tmp_path}/evil.AstroformerConfig"
        changed["config.json"] = File(json.dumps(config).encode(), is_large=False)
        hub.repositories["model", "user/evil"] = Repository(private=False)
        hub.repositories["model", "user/evil"].commit("main", changed, "evil")

        asked = {
            name: (task, given, {"model": f"user/{name}"}, more)
            for name, (task, given, more) in inputs.items()
            if name != "text"
        }
        task, given, more = inputs["text"]
        asked["text"] = (task, given, {"model": "user/text", "revision": first}, more)
        asked["later"] = (task, given, {"model": "user/text"}, more)
        asked["pushed"] = (task, given, {"model": "user/pushed"}, more)
        asked["evil"] = (task, given, {"model": "user/evil"}, more)
        python, more = os.environ.get("ASTROFORMER_STRANGER"), {"PYTHONPATH": "", "HF_TOKEN": ""}
        if python is None:
            more = {"environment": more, "cwd": tmp_path, "check": False}
            stranger = server.run(tmp_path / "stranger.py", json.dumps(asked), **more)
        else:
            command, more = [python, "-c", STRANGER, json.dumps(asked)], {"env": {**environment, **more}}
            stranger = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **more)
        server.close()
    assert stranger.returncode == 0, stranger.stderr
    assert "EVIL" not in stranger.stdout
    answers = json.loads(stranger.stdout.splitlines()[-1])
    evil_answer = answers.pop("evil")
    assert "Error" in evil_answer, evil_answer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    own = {name: pipeline(task, str(trained / name))(given, **more) for name, (task, given, more) in inputs.items()}
    torch.set_num_threads(threads)
    assert answers.pop("later") != answers["text"]
    assert answers.pop("pushed") == answers["text"]
    assert json.loads(json.dumps(own)) == answers
