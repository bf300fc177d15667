# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The checks of `matrix.py` over every feature map and every astrocyte code of the package."""

import matrix
import pytest

from astroformer_hf.astrocyte_code import ASTROCYTE_CODES
from astroformer_hf.feature_maps import FEATURE_MAPS


PAIRS = [
    *((name, "activity") for name in FEATURE_MAPS),
    *(("elu", code) for code in ASTROCYTE_CODES if code != "activity"),
]


@pytest.mark.parametrize("backend", matrix.BACKENDS)
@pytest.mark.parametrize("check", matrix.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("feature_map, code", PAIRS)
def test_it_passes(feature_map, code, check, backend):
    check(feature_map, code, backend)


@pytest.mark.parametrize("feature_map, code", PAIRS)
def test_it_is_saved_and_loaded(feature_map, code, tmp_path):
    matrix.check_saving(feature_map, code, matrix.BACKENDS[-1], tmp_path)
