# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Fixtures that several folders share, and which tests a run leaves to `--all`."""

import atexit
import gc
import os
import shutil
import subprocess


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Shapes that are symbols cost torch more to look up than to compute: an export takes nearly twice as long with it.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

import pytest
import torch
from script_server import ScriptServer
from variants import COMPILER, EACH_TIME, HEADS, ROOT, VARIANTS, some_each_time


# Files that take longest, which two processes are given first, so that they end at about the same time.
LONG = (
    *("test_docs.py", "test_export.py", "test_triton.py", "test_parallel.py", "test_reproduce.py", "test_packaging.py"),
    *("test_transforms.py", "test_publish.py", "test_library_suites.py", "test_training.py", "test_generation.py"),
    *("test_attention_backends.py", "test_vision.py", "test_modeling.py", "test_sharing.py", "test_heads.py"),
    *("test_inspection.py", "test_safety.py", "test_packing.py", "test_demo.py", "test_native_library.py"),
    *("test_benchmark.py", "test_ecosystem.py"),
)


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        default=os.environ.get("ASTROFORMER_TESTS") == "all",
        help="also the tests marked on_demand; ASTROFORMER_TESTS=all does the same",
    )


def pytest_configure(config):
    if config.getoption("--all"):
        os.environ["ASTROFORMER_TESTS"] = "all"  # for what tests start, and what chooses its cases when it is imported
    # of the library's own tests, which test_library_suites.py runs: every release has others
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnknownMarkWarning")


def pytest_collection_modifyitems(config, items):
    skips = {}
    if not config.getoption("--all"):
        skips["on_demand"] = "runs with --all"
    if COMPILER is None:
        skips["compiler"] = "there is no C++ compiler on this machine, or it is not Linux"
    if not (shutil.which("chromedriver") and any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))):
        skips["browser"] = "there is no Chromium with its chromedriver on this machine"
    known = {line.split(":")[0].split("(")[0].strip() for line in config.getini("markers")}
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
    for item in items:
        unknown = {mark.name for mark in item.iter_markers()} - known
        if unknown and "test_library_suites" not in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has the mark {', '.join(sorted(unknown))}, which nothing declares")
        for mark, reason in skips.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session):
    gc.freeze()  # what is imported stays: each collection, and every training asks for some, would look through it
    atexit.register(gc.unfreeze)  # lest libraries take what is left at the end for leaked


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.compiler.reset()  # graphs of one test do not count against the next


@pytest.fixture(params=HEADS)
def head(request):
    """The name of a class."""
    return request.param


@pytest.fixture(params=some_each_time(VARIANTS, EACH_TIME), ids=lambda name: name.replace(", ", "_").replace(" ", "_"))
def variant(request):
    """Configuration fields of one variant of the attention."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of scripts that run in a process of their own."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # sums in the same order whatever else the machine does
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def strangers(environment, tmp_path_factory):
    """Starts scripts that find nothing of the package imported, and the code of checkpoints in a folder of its own."""
    folder = tmp_path_factory.mktemp("strangers")
    server = ScriptServer({**environment, "HF_MODULES_CACHE": str(folder / "modules")}, folder)
    yield server
    server.close()


@pytest.fixture(scope="session")
def scripts(environment, strangers, tmp_path_factory):
    """Starts scripts that have the package."""
    server = ScriptServer(environment, tmp_path_factory.mktemp("printed"), of=strangers)
    yield server
    server.close()


@pytest.fixture
def forked_checks(scripts, strangers, monkeypatch):
    """Has the two processes that `publish.check_answers` starts forked from those, instead of Python started anew."""
    start = subprocess.Popen

    class Forked:
        def __init__(self, command):
            server = strangers if "--without_package" in command else scripts
            self.script = server.start(*command[1:])
            self.kill = self.script.kill

        def communicate(self):
            return "".join(self.script.communicate()), None

        @property
        def returncode(self):
            return self.script.returncode

    def start_or_fork(command, *args, **options):
        is_check = isinstance(command, list) and command[1:2] == [str(ROOT / "scripts/sharing/compare_loading.py")]
        return Forked(command) if is_check else start(command, *args, **options)

    monkeypatch.setattr(subprocess, "Popen", start_or_fork)
