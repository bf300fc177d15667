# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Supported versions: the record of the tests at an end of the range, and docs/supported.md, written from them."""

import xml.etree.ElementTree
from collections import Counter

from training.files import ROOT, read_json, write_json
from training.provenance import hardware, versions

from astroformer_hf.library_compatibility import PRIVATE_NAMES
from reporting.tables import origin, table


RECORDS = ROOT / "results/supported"
ENDS = ("lowest", "highest")
NEWEST = "newest"  # what the index served on a day; recorded beside the ends where it was tested
PACKAGES = ("astroformer-hf", "torch", "transformers", "huggingface-hub", "safetensors", "packaging", "numpy")
COLUMNS = {"python": "Python", "torch": "torch", "transformers": "transformers"}
COLUMNS |= {"huggingface-hub": "huggingface-hub", "safetensors": "safetensors"}

HEAD = """# Supported versions

The range of versions in `pyproject.toml` is tested at both ends (where there is no upper limit, as for Python and
torch, with the release in the table): the wheel is built and installed with its dependencies into an empty environment,
and the library's tests run there. In between, development uses the releases in `constraints.txt`. Importing the
package, or code that came with a checkpoint, with a release outside the range is an error.

transformers publishes a new minor release about every nine days. All are accepted below 6; one newer than those tested
(`TESTED_TRANSFORMERS` in `astroformer_hf/version.py`) causes one warning on import. transformers 5.22 and later need
Python 3.11; with 3.10, pip installs 5.21.

"""
TAIL = """
```console
bash scripts/test_supported.sh lowest
bash scripts/test_supported.sh highest
bash scripts/test_supported.sh newest
```

"highest" installs the newest minor release of transformers marked as tested, and "newest" whatever the package index
serves, so it is the first to fail when a new release changes something.

The records are in [`results/supported`](../results/supported). They leave out export, the demo, the benchmark, the
comparison, the common tests of transformers, sentence-transformers and Triton's interpreter, which are tested
with the releases in `constraints.txt` only, and `torch.compile` with torch 2.6, which can trace neither these models
nor the library's own.

## Names without a stability guarantee

The package relies on some names in transformers and torch that are private or may change without notice. Here is what
would replace each; a test checks that they exist in the installed release:

"""


def outcome(junit):
    """What a JUnit XML file of pytest says: how many tests passed, which failed, why some were skipped, and seconds."""
    suite = xml.etree.ElementTree.parse(junit).getroot().find("testsuite")
    cases = suite.findall("testcase")
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.find("skipped") for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "skipped": dict(sorted(Counter(reason.get("message") for reason in skipped).items())),
        "seconds": round(float(suite.get("time"))),
    }


def page():
    """The text of docs/supported.md."""
    ends = [*ENDS, NEWEST] if (RECORDS / f"{NEWEST}.json").exists() else ENDS
    records = [read_json(RECORDS / f"{end}.json") for end in ends]
    rows = []
    for record in records:
        tests, found = record["tests"], record["versions"]
        numbers = [str(tests["passed"]), str(sum(tests["skipped"].values())), str(len(tests["failed"]))]
        rows.append([record["end"], *(found[name] for name in COLUMNS), *numbers])
    lines = table(["end", *COLUMNS.values(), "passed", "skipped", "failed"], rows)
    skipped = [
        f"- {reason} ({record['end']}, {n})" for record in records for reason, n in record["tests"]["skipped"].items()
    ]
    if skipped:
        lines += ["Skipped, and why:", "", *skipped, ""]
    lines += [f"All on {origin(records[0]).split(';')[0]}."]
    names = table(["name", "what would replace it"], [[f"`{name}`", what] for name, what in PRIVATE_NAMES.items()])
    return HEAD + "\n".join(lines) + "\n" + TAIL + "\n".join(names).rstrip() + "\n"


def record(end, junit):
    """Writes the record of tests at an end of the range, or at the newest releases.

    Args:
        end (`str`): one of `ENDS`, or `NEWEST`.
        junit (`str`): JUnit XML file that pytest wrote.

    Returns:
        `Path` of the record.
    """
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{end}.json"
    write_json(
        path,
        {
            "end": end,
            "tests": outcome(junit),
            "command": f"bash scripts/test_supported.sh {end}",
            "versions": versions(PACKAGES),
            "hardware": hardware(),
        },
    )
    return path
