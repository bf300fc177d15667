# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The package as users get it: what sdist and wheel hold, the wheel in an environment, its types, its metadata."""

import inspect
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from reporting import supported
from training.files import read_json
from variants import ROOT

import astroformer_hf
from astroformer_hf.version import REQUIREMENTS, TESTED_TRANSFORMERS


MODULES = {f"astroformer_hf/{path.name}" for path in (ROOT / "astroformer_hf").glob("*.py")} | {
    "astroformer_hf/py.typed"
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
IMPORT_FORWARD_SAVE_LOAD = """
import sys, torch, astroformer_hf
from transformers import AutoModelForSequenceClassification

assert astroformer_hf.__file__.startswith(sys.prefix), astroformer_hf.__file__
config = astroformer_hf.AstroformerConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
)
model = AutoModelForSequenceClassification.from_config(config).eval()
model.save_pretrained("model")
again = AutoModelForSequenceClassification.from_pretrained("model")
assert type(again) is astroformer_hf.AstroformerForSequenceClassification
ids = torch.arange(1, 11)[None]
assert torch.equal(model(ids).logits, again(ids).logits)
"""
# Where a line has an ignored error, mypy reports an ignore without one if the types do not reach it.
TYPED_PROGRAM = """
import torch
from typing_extensions import assert_type

from astroformer_hf import AstroformerConfig, AstroformerForCausalLM, NeuronAstrocyteState, SynapseRecord
from astroformer_hf import attention_backend, look_inside, neuron_astrocyte_attention

x = torch.randn(1, 2, 5, 4)
with attention_backend("plain"):
    assert_type(neuron_astrocyte_attention(x, x, x, alpha=0.5), torch.Tensor)
output, state = neuron_astrocyte_attention(x, x, x, output_final_state=True)
assert_type(state, NeuronAstrocyteState)
neuron_astrocyte_attention(x, x, x, alpha="0.5")  # type: ignore[call-overload]

config = AstroformerConfig(vocab_size=100, presynaptic_alpha=0.5)
assert_type(config.astrocyte_code, str)
AstroformerConfig(vocab_size="100")  # type: ignore[arg-type]

model = AstroformerForCausalLM(config)
assert_type(model.config, AstroformerConfig)
assert_type(look_inside(model, input_ids=torch.ones(1, 3).long())[1], list[SynapseRecord])
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Paths of the sdist, and of the wheel that was built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("distributions")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """The Python of an environment that holds the wheel, and sees the packages of this one but not its own install."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin/python"
    install = ["install", "--quiet", "--no-index", "--no-deps", str(distributions[1])]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    # a path in a .pth file is searched, but the .pth files in it, which would find an editable install, are not read
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_distributions_hold_what_they_should_and_nothing_else(distributions):
    sdist, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == MODULES
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    names = {name for name in names if not name.startswith("astroformer_hf.egg-info/")}
    others = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"}
    assert names == MODULES | others | {"pyproject.toml", "setup.cfg"}


def test_wheel_works_without_the_repository(installed, tmp_path):
    command = [str(installed), "-c", IMPORT_FORWARD_SAVE_LOAD]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_types_hold_and_reach_users(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(TYPED_PROGRAM)
    command = [
        *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
        *("--python-executable", str(installed), "--cache-dir", str(ROOT / ".mypy_cache")),
        *("--package", "astroformer_hf", "--module", "program"),
    ]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def public_functions():
    """Every exported function, and of every exported class what is written for users: (name, function)."""
    for name in astroformer_hf.__all__:
        exported = getattr(astroformer_hf, name)
        if inspect.isfunction(exported):
            yield name, exported
        elif inspect.isclass(exported) and "forward" in vars(exported):
            yield f"{name}.forward", inspect.unwrap(exported.forward)


@pytest.mark.parametrize(("name", "function"), [pytest.param(*pair, id=pair[0]) for pair in public_functions()])
def test_public_functions_are_annotated(name, function):
    signature = inspect.signature(inspect.unwrap(function))
    assert signature.return_annotation is not signature.empty
    untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert not untyped


def test_versions_agree():
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest[1] == citation["version"] == astroformer_hf.__version__


def test_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["license"] == "Apache-2.0"
    assert citation["message"] and citation["title"]
    for work in (citation, *citation["references"]):
        assert work["title"] and all(author.keys() & {"name", "family-names"} for author in work["authors"])
        assert all(identifier["type"] in ("doi", "other", "swh", "url") for identifier in work.get("identifiers", []))


def test_supported_range_is_said_once_and_was_tested_at_both_ends():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert {name: declared[name] for name in REQUIREMENTS} == {
        name: Requirement(f"{name}{specifier}").specifier for name, specifier in REQUIREMENTS.items()
    }
    lines = [line for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    floors = {name: next(s.version for s in declared[name] if s.operator == ">=") for name in REQUIREMENTS}
    assert {name: Version(version) for name, version in pinned.items()} == {n: Version(v) for n, v in floors.items()}
    tested = Version(TESTED_TRANSFORMERS)
    assert declared["transformers"].contains(f"{tested}.0") and declared["transformers"].contains(
        f"5.{tested.minor + 1}.0"
    )
    assert not declared["transformers"].contains("6.0.0")
    pinned_for_development = re.findall(
        r"^transformers==(\S+?)(?:;|$)", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert pinned_for_development and all(Version(v).release[:2] <= tested.release for v in pinned_for_development)
    for end in supported.ENDS:
        record = read_json(supported.RECORDS / f"{end}.json")
        assert record["tests"]["passed"] > 1000 and not record["tests"]["failed"]
        for name, specifier in declared.items():
            if name in record["versions"]:
                assert specifier.contains(record["versions"][name].partition("+")[0], prereleases=True)
        if end == "lowest":
            found = {name: record["versions"][name].partition("+")[0] for name in pinned if name in record["versions"]}
            assert found.items() <= pinned.items() and len(found) >= 4
            assert record["versions"]["python"].startswith(project["requires-python"][2:])
