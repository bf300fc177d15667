# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Models of the library with another attention."""
