# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The version of this package, and the versions of other packages that it works with.

Importing this module checks them. The configuration imports it before anything from those packages, so that code that
came with a checkpoint fails with a clear message if the installed versions do not fit.
"""

import importlib.metadata
import warnings

from packaging.specifiers import SpecifierSet
from packaging.version import Version


__version__ = "0.3.0"

# As in pyproject.toml, which pip does not see where the code comes with a checkpoint.
REQUIREMENTS = {
    "huggingface-hub": ">=1.31,<3",
    "packaging": ">=24",
    "safetensors": ">=0.8",
    "torch": ">=2.6,!=2.7.*",  # transformers 5.20 fails to import with 2.7
    "transformers": ">=5.20,<6",
}
TESTED_TRANSFORMERS = "5.24"  # the newest minor release that was tested; a newer one causes a warning


def check_requirements(requirements: dict[str, str] = REQUIREMENTS) -> None:
    """Raises an ImportError that says what to install, unless each package is installed in a supported version."""
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


def warn_of_untested(tested: str = TESTED_TRANSFORMERS) -> None:
    """Warns if the installed transformers is newer than the newest tested minor release."""
    found = importlib.metadata.version("transformers")
    if Version(found).release[:2] > Version(tested).release[:2]:
        warnings.warn(
            f"Astroformer {__version__} was tested with transformers up to {tested}, and here it has version {found}. "
            "If something fails or looks wrong, upgrade astroformer-hf, or\n"
            f"    pip install 'transformers=={tested}.*'",
            stacklevel=2,
        )


check_requirements()
warn_of_untested()
