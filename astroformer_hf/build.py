# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Builds the C++ libraries of the package in advance, for example for a container without a compiler:

    python -m astroformer_hf.build

Prints the path of each. If one cannot be built or stored, says why and exits with status 1.
"""

import argparse
import sys
from collections.abc import Sequence

from .hybrid_attention_cpu import LIBRARY as HYBRID_LIBRARY
from .neuron_astrocyte_cpu import LIBRARY


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m astroformer_hf.build", description=__doc__.split(",")[0] + ".")
    parser.add_argument(
        "--rebuild", action="store_true", help="build them even if they exist, for example with another CXX"
    )
    rebuild = parser.parse_args(arguments).rebuild
    try:
        for library in (LIBRARY, HYBRID_LIBRARY):
            print(library.build(rebuild))
    except (OSError, RuntimeError) as error:
        print(f"The C++ library could not be built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
