# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The common test suites of `transformers` itself, fetched from the source distribution of the installed release.

The library tests every model of its own with them. They are not part of what pip installs, and are not committed here:
`load` fetches them once into the user's cache.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import transformers
from filelock import FileLock


PACKAGE = "transformers_common_tests"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "astroformer_hf"


class Unavailable(Exception):
    """The package index could not be reached."""


def load():
    """Imports `test_modeling_common`, `test_configuration_common` and `test_training_mixin`, as a tuple of modules."""
    folder = CACHE / f"transformers-{transformers.__version__}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "suites.lock"):  # several processes of pytest collect the same files
        if not (folder / PACKAGE).exists():
            _fetch(folder)
    sys.path.insert(0, str(folder))
    _stub("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _stub("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    # what its namesake in the library's repository is for: fields of every configuration, with values not the default
    every_configuration = {
        "return_dict": False,
        "output_hidden_states": True,
        "dtype": "float16",
        "architectures": ["BertModel"],
        "id2label": {0: "label"},
        "label2id": {"label": "0"},
        "problem_type": "regression",
    }
    _stub("utils.test_configuration_utils", config_common_kwargs=every_configuration)
    modules = ("test_modeling_common", "test_configuration_common", "test_training_mixin")
    return tuple(importlib.import_module(f"{PACKAGE}.{name}") for name in modules)


def _fetch(folder):
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"),
            *("--dest", scratch, f"transformers=={transformers.__version__}"),
        ]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(str(error)) from error
        if result.returncode:
            raise Unavailable(result.stderr.strip()[-500:])
        (archive,) = Path(scratch).glob("*.tar.gz")
        package = Path(scratch) / "new" / PACKAGE
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                path = Path(member.name)
                if member.isfile() and path.parent.name == "tests" and len(path.parts) == 3 and path.suffix == ".py":
                    (package / path.name).write_bytes(tar.extractfile(member).read())
        os.replace(package.parent, folder)


def _stub(name, **contents):
    """Stands in for a module that the suites import and the source distribution lacks."""
    parent, _, _ = name.rpartition(".")
    for path in (parent, name):
        module = ModuleType(f"{PACKAGE}.{path}")
        module.__path__ = []
        sys.modules[module.__name__] = module
    sys.modules[f"{PACKAGE}.{name}"].__dict__.update(contents)
