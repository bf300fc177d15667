# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Several processes give what a single one gives. The checks are in `parallel_checks.py`; two processes run them all,
once, and each check is a test here."""

import json
import os
import subprocess
import sys

import pytest
from parallel_checks import CHECKS
from variants import ROOT


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the checks raised, by their names, in each of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [*command, str(ROOT / "tests/models/parallel_checks.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    files = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), done.stderr[-5000:]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_are_as_one(results, name):
    for rank, raised in enumerate(results):
        assert raised[name] is None, f"process {rank}:\n{raised[name]}"
