# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What a `config.json` may hold beside a model's own fields: checked before the library acts on it, because a stranger
may have written it."""

import numbers
import re
from typing import Any

from packaging.version import InvalidVersion, Version
from transformers.utils import logging

from .version import __version__


logger = logging.get_logger(__name__)

DTYPES = ("float64", "float32", "float16", "bfloat16")
MOST_LABELS = 10**6


def check_saved_fields(fields: dict[str, Any]) -> None:
    """Checks the contents of a `config.json`, or a part of them; warns if a newer release wrote it.

    Raises:
        ValueError: an entry asks for too many labels, for another dtype than those of models here, for a kernel of a
            repository, for weights that are not in safetensors, for code elsewhere by a path, or names no release.
    """
    num_labels = fields.get("num_labels", 1)
    is_number = isinstance(num_labels, numbers.Integral) and not isinstance(num_labels, bool)
    if num_labels is not None and not (is_number and 0 < num_labels <= MOST_LABELS):
        raise ValueError(f"num_labels must be a number from 1 to {MOST_LABELS:,}, got {num_labels!r}")
    for dtype in (fields.get("dtype"), fields.get("torch_dtype")):
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    check_sources(fields)
    auto_map = fields.get("auto_map") or {}
    for auto_name, references in auto_map.items() if isinstance(auto_map, dict) else [(None, auto_map)]:
        for reference in references if isinstance(references, list | tuple) else [references]:
            # "user/name--module.Class" is code of another repository, which the library asks about before it runs
            module_and_class = str(reference).rpartition("--")[2]
            if reference is not None and not re.fullmatch(r"[^\W\d]\w*\.[^\W\d]\w*", module_and_class):
                raise ValueError(
                    f"auto_map must name classes as 'module.Class' of files beside it, got {auto_name!r}: {reference!r}"
                )
    version = fields.get("astroformer_version") or __version__
    try:
        is_newer = Version(version) > Version(__version__)
    except (InvalidVersion, TypeError):
        raise ValueError(f"astroformer_version must be a version, got {version!r}") from None
    if is_newer:
        logger.warning_once(
            f"This checkpoint was saved by Astroformer {version}; {__version__} is older and may not know all that it "
            "says. Update astroformer-hf, or load the code that came with it, by trust_remote_code=True where "
            "astroformer_hf is not imported."
        )


def check_sources(fields: dict[str, Any]) -> None:
    """Checks where kernels and weights come from, also of the configurations within one."""
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(fields.get(name)):  # the library would fetch and run a kernel from there
            raise ValueError(f"{name} must not name a repository, got {fields[name]!r}")
    weights = fields.get("transformers_weights")  # where the library looks for them first, in any format
    if weights is not None and not re.fullmatch(r"[\w.-]+\.safetensors", str(weights)):
        raise ValueError(f"transformers_weights must name a safetensors file beside it, got {weights!r}")
    for inner in fields.values():
        if isinstance(inner, dict):
            check_sources(inner)
