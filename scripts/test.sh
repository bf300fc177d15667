#!/usr/bin/env bash
# Makes the environment and runs lint, format check and all tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
python -m pytest "$@"
