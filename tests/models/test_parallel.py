# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Several processes give what a single one gives. The checks are in `parallel_checks.py`; two processes run them all,
once, and each check is a test here."""

import json

import pytest
from parallel_checks import CHECKS
from variants import ROOT


@pytest.fixture(scope="module")
def results(tmp_path_factory, scripts):
    """What the checks raised, by their names, in each of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    scripts.run_in_two(ROOT / "tests/models/parallel_checks.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_are_as_one(results, name):
    for rank, raised in enumerate(results):
        assert raised[name] is None, f"process {rank}:\n{raised[name]}"
