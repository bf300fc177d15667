# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Checks before a model is shared, and the folder of a demo Space."""
