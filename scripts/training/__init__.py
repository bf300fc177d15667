# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share."""
