# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The dynamics behind the attention: neurons, synapses and astrocyte as differential equations."""
