# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The release, and the releases of other packages that it works with.

Importing this module checks them. The configuration imports it before anything of those packages, so that code which
came with a checkpoint fails with a clear message on a machine that it was not made for.
"""

import importlib.metadata
import warnings

from packaging.specifiers import SpecifierSet
from packaging.version import Version


__version__ = "0.2.0"

# What pyproject.toml declares; pip does not see it where the code comes with a checkpoint.
REQUIREMENTS = {
    "huggingface-hub": ">=1.31,<3",
    "packaging": ">=24",
    "safetensors": ">=0.8",
    "torch": ">=2.6,!=2.7.*",  # transformers 5.20 fails to import with 2.7
    "transformers": ">=5.20,<6",
}
TESTED_TRANSFORMERS = "5.24"  # the newest minor release that the tests ran with; a newer one is a warning


def check_requirements(requirements=REQUIREMENTS):
    """Raises ImportError, with what to install, unless each package is there in a release within its range."""
    misfits = []
    for package, specifier in requirements.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not SpecifierSet(specifier).contains(found, prereleases=True):
            misfits.append((package + specifier, "is not installed" if found is None else f"has version {found}"))
    if misfits:
        wanted = ", ".join(f"{requirement} (here it {state})" for requirement, state in misfits)
        command = "pip install " + " ".join(f"'{requirement}'" for requirement, _ in misfits)
        raise ImportError(f"Astroformer {__version__} needs {wanted}; install it with\n    {command}")


def warn_of_untested(tested=TESTED_TRANSFORMERS):
    """Warns if the installed transformers is of a newer minor release than the newest tested one."""
    found = importlib.metadata.version("transformers")
    if Version(found).release[:2] > Version(tested).release[:2]:
        warnings.warn(
            f"Astroformer {__version__} was tested with transformers up to {tested}, and here it has version {found}. "
            "Where something fails or looks wrong, a newer astroformer-hf may help, or\n"
            f"    pip install 'transformers=={tested}.*'",
            stacklevel=2,
        )


check_requirements()
warn_of_untested()
