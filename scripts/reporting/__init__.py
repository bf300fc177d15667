# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Tables, figures, pages and model cards that are written from the records and the code."""
