# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the README says of results is what the records say, and scripts explain themselves."""

import pytest
from variants import ROOT


def test_readme_agrees_with_the_records(scripts):
    scripts.run(ROOT / "scripts/report.py", "--check")


SCRIPTS = [path.stem for path in (ROOT / "scripts").glob("*.py")] + ["sharing/compare_loading"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(script, scripts):
    assert "usage" in scripts.run(ROOT / f"scripts/{script}.py", "--help").stdout


def test_docstrings_become_a_data_set(tmp_path):
    from training import docstrings

    package = tmp_path / "alpha"
    (package / "tests").mkdir(parents=True)
    (tmp_path / "beta").mkdir()
    (package / "a.py").write_text('"""Words of the module here."""\ndef f():\n    """Too short."""\n')
    (package / "tests/t.py").write_text('"""Words of a test module."""\n')
    (tmp_path / "beta/b.py").write_text(
        'class B:\n    """Words of a class here."""\n    def g():\n        "Said in both of them."\n'
    )
    (package / "b.py").write_text('def h():\n    "Said in both of them."\n')
    found = docstrings.collect(tmp_path, ("alpha", "beta", "missing"))
    assert found == {"Words of the module here.": "alpha", "Words of a class here.": "beta"}
    shares = [docstrings.is_validation(str(i)) for i in range(2000)]
    assert 0.17 < sum(shares) / 2000 < 0.23
