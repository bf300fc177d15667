# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The README runs as written, and what it says of results is what the records say."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
README = (ROOT / "README.md").read_text()


def test_the_examples_of_the_readme_run_as_written(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    outputs = [
        subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        for example in examples
    ]
    assert all(output.returncode == 0 for output in outputs), [output.stderr for output in outputs]
    assert outputs[0].stdout == "torch.Size([2, 2])\n"
    (short, short_bytes), (long, long_bytes) = (line.split() for line in outputs[1].stdout.splitlines())
    assert (short, long) == ("15", "1005") and short_bytes == long_bytes
    assert outputs[2].stdout == "True\n"


def test_readme_agrees_with_the_records():
    subprocess.run([sys.executable, str(ROOT / "scripts/report.py"), "--check"], env=ENVIRONMENT, check=True)


def test_files_that_the_readme_names_exist():
    named = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"(?:bash|python) (scripts/\w+\.\w+)", README)
    assert len(named) > 5
    for path in named:
        assert (ROOT / path).exists(), path


SCRIPTS = [path.stem for path in (ROOT / "scripts").glob("*.py") if "def main" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(script):
    command = [sys.executable, str(ROOT / f"scripts/{script}.py"), "--help"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0 and "usage" in result.stdout, result.stderr


def test_docstrings_become_a_data_set(tmp_path):
    import docstrings_dataset

    package = tmp_path / "alpha"
    (package / "tests").mkdir(parents=True)
    (tmp_path / "beta").mkdir()
    (package / "a.py").write_text('"""Words of the module here."""\ndef f():\n    """Too short."""\n')
    (package / "tests/t.py").write_text('"""Words of a test module."""\n')
    (tmp_path / "beta/b.py").write_text(
        'class B:\n    """Words of a class here."""\n    def g():\n        "Said in both of them."\n'
    )
    (package / "b.py").write_text('def h():\n    "Said in both of them."\n')
    found = docstrings_dataset.collect(tmp_path, ("alpha", "beta", "missing"))
    assert found == {"Words of the module here.": "alpha", "Words of a class here.": "beta"}
    shares = [docstrings_dataset.is_validation(str(i)) for i in range(2000)]
    assert 0.17 < sum(shares) / 2000 < 0.23
