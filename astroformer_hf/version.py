# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The release, apart, so that building a package needs to import nothing else."""

__version__ = "0.1.0"
