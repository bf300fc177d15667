# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Every code block of the README and of docs/ runs, each page from top to bottom in a folder of its own, and pages that
are written from the code agree with it.

Commands run as written but for what `STAND_INS` and `SHORTER` say. They run in this process, which has imported what
they import; so does the Python of a page, block after block, as a reader would type it.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import datasets
import pytest
import sklearn.datasets
from PIL import Image
from reporting import api_page
from reviews import write_reviews
from variants import ROOT, some_each_time

import astroformer_hf
from astroformer_hf.astrocyte_code import ASTROCYTE_CODES
from astroformer_hf.feature_maps import FEATURE_MAPS


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)

# What local data, or a small model, stands in for.
STAND_INS = {
    "--dataset_name stanfordnlp/imdb": "--dataset_dir my_data",
    "--dataset_name uoft-cs/cifar10": "--dataset_dir my_images",
    "outputs/reproduce/cpu/imdb/full_rate0.002_seed42": "outputs/quickstart",
}
# What makes a command of minutes or hours one of seconds: these arguments are appended, and the last value counts.
FEW = "--max_steps 2 --max_train_samples 32 --max_eval_samples 8 --report_to none"
SHORTER = {
    "scripts/train_text_classification.py": FEW,
    "scripts/train_image_classification.py": FEW,
    "scripts/train_language_model.py": f"{FEW} --block_size 32 --num_sample_tokens 2",
    "scripts/train_associative_recall.py": "--max_steps 1 --num_train_examples 64 --num_eval_examples 8",
    "scripts/listops_dataset.py": "--num_train 64 --num_validation 8 --num_test 8",
    "scripts/benchmark.py": "--sections operation --lengths 64 --rounds 1 --budget 0.01 --no_peers",
    "scripts/report.py": "--check",
    "scripts/report_api.py": "--check",
    "scripts/reproduce.py": "--list",
    "scripts/read_documents.py": "--length 64 --documents 1",
}
# What takes longest, and repeats another command of its page but for this option, which its own tests try each time:
# only the options of such a command are checked, but with --all it runs.
ON_DEMAND = {"scripts/export.py": "--quantize"}
# What starts several processes, as a module, each at a port of its own.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone"],
    "accelerate": ["accelerate.commands.launch", "--main_process_port", "0"],
}
# Pages whose blocks are records of what was done, with commands that take hours.
RECORDS = {"initialisation.md"}
# What a page needs beside the packages that training does.
NEEDS = {"demo.md": ("gradio",), "export.md": ("onnx", "onnxscript", "onnxruntime")}


def blocks(page):
    """The code blocks of a page, as (language, text)."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text):
    """The commands of a shell block, as lists of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_script(path, arguments):
    """Runs a script of the repository as `python path arguments` does, and returns what it printed."""
    printed, folder, argv, search_path = io.StringIO(), os.getcwd(), sys.argv, list(sys.path)
    sys.argv = [path, *arguments]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (path, arguments, end.code)
    finally:
        os.chdir(folder)
        sys.argv, sys.path[:] = argv, search_path
    return printed.getvalue()


def run_in_several_processes(words, scripts):
    """Runs a command of a page that starts several processes, on the CPU."""
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    program = [sys.executable, "-m", *LAUNCHERS[words[0]]]
    options = words[2 if words[0] == "accelerate" else 1 : start]
    shorter = [*shlex.split(SHORTER.get(words[start], "")), *(["--use_cpu"] if words[start] in SHORTER else [])]
    if words[:start] == ["torchrun", "--nproc-per-node", "2"]:
        scripts.run_in_two(*words[start:], *shorter)
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*program, *options, *words[start:], *shorter]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        # now and then torch's gloo aborts as a process leaves that has done all its work; any other failure counts
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]


def run_command(words, scripts):
    """Runs a command of a page. Those that make an environment are only read by the shell."""
    program, path, *arguments = words
    if program in LAUNCHERS:
        run_in_several_processes(words, scripts)
    elif ON_DEMAND.get(path) in arguments and os.environ.get("ASTROFORMER_TESTS") != "all":
        check_options(words)
    elif program == "python":
        run_script(path, [*arguments, *shlex.split(SHORTER.get(path, ""))])
    elif program == "bash":
        subprocess.run(["bash", "-n", path], check=True)
    else:
        raise AssertionError(f"no one knows how to test {shlex.join(words)}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with data to train on, and the trained classifier of the quickstart."""
    folder = tmp_path_factory.mktemp("workplace")
    write_reviews(folder / "my_data")
    (folder / "my_images").mkdir()
    digits = sklearn.datasets.load_digits()
    for split, rows in (("train", slice(0, 40)), ("validation", slice(40, 50))):
        images = [Image.fromarray((16 * pixels).clip(0, 255).astype("uint8")) for pixels in digits.images[rows]]
        columns = {"image": images, "label": digits.target[rows].tolist()}
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"my_images/{split}.parquet")
    (folder / "book.txt").write_text("A book that is read in pieces. " * 20)
    (folder / "my_texts").mkdir()
    for split in ("train", "validation"):
        (folder / f"my_texts/{split}.txt").write_text("The text of a model that reads the text of many.\n" * 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = f"--dataset_dir my_data --output_dir outputs/quickstart {FEW} --num_hidden_layers 1 --hidden_size 32"
        options += " --synaptic_decay none"  # which is exported in half the time
        run_script(str(ROOT / "scripts/train_text_classification.py"), options.split())
    return folder


@pytest.fixture
def scratch(workplace, tmp_path, monkeypatch):
    """The working folder of a page: a copy of the workplace, from which the repository's code is reached as usual, but
    not its records, lest a command overwrite them."""
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    for name in ("model_cards", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", list(sys.path))
    registries = [(registry, dict(registry)) for registry in (ASTROCYTE_CODES, FEATURE_MAPS)]
    yield
    for registry, before in registries:  # what a page adds to them is not for other tests
        registry.clear()
        registry.update(before)


RUN = [page for page in PAGES if page.name not in RECORDS]
# what this one starts in two processes takes long, and tests/training does the same
EACH_TIME = [page for page in RUN if page.name != "parallel.md"]


@pytest.mark.parametrize("page", some_each_time(RUN, EACH_TIME), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page, scratch, scripts, forked_checks, capsys):
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package)
    names = {"__name__": "__main__"}
    for language, text in blocks(page):
        for original, stand_in in STAND_INS.items():
            text = text.replace(original, stand_in)
        if language == "python":
            capsys.readouterr()
            exec(compile(text, page.name, "exec"), names)
            shown = re.findall(r"^ *print\(.*\)  # (True|torch\.Size\(.*\)|\w+ 0\.\d+)$", text, flags=re.MULTILINE)
            printed = capsys.readouterr().out.splitlines()
            assert not shown or printed == shown  # what a comment says is printed is printed
        elif language == "bash":
            for words in commands(text):
                run_command(words, scripts)
        elif language == "console":
            for words in commands(text):
                check_options(words)
        else:
            assert language in ("text", "json", "yaml"), f"{page.name}: a block in {language} would go untested"


def check_options(words):
    """Checks that a command which runs for hours, or for ever, names a script of the repository and its options."""
    program, path, *arguments = words
    if program in LAUNCHERS:
        start = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return check_options(["python", *words[start:]])
    if not path.startswith(("scripts/", "tests/")):  # another tool, or a file that the page has made
        return
    assert (ROOT / path).exists(), path
    if program == "python" and path.startswith("scripts/"):
        known = set(re.findall(r"--\w+", run_script(path, ["--help"])))
        assert {word for word in arguments if word.startswith("--")} <= known, words


def test_no_block_escapes_for_want_of_a_language():
    for page in PAGES:
        assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page)), page


def test_state_of_the_readme_does_not_grow(capsys):
    text = next(text for _, text in blocks(ROOT / "README.md") if "num_bytes" in text)
    exec(compile(text, "README.md", "exec"), {})
    (short, short_bytes), (long, long_bytes) = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (short, long) == ("15", "1005") and short_bytes == long_bytes


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = re.sub(BLOCK, "", page.read_text(encoding="utf-8"))
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def test_map_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "astroformer_hf").glob("*.py")} - {"__init__.py"}
    assert sorted(name for name in modules if name not in text) == []


def anchors(page):
    """The names under which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"]({page.name})" not in index and page.name != "README.md"] == []


def test_reference_is_what_the_code_says():
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page()


def test_reference_names_everything_exported():
    named = [name for names in api_page.GROUPS.values() for name in names]
    assert sorted([*named, "__version__"]) == sorted(astroformer_hf.__all__)
