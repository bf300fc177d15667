# Sourced by the other scripts: makes the project's virtual environment with pinned versions and puts it on the path.
# ASTROFORMER_VENV names another folder for it, ASTROFORMER_PYTHON another Python (3.10 or newer).

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${ASTROFORMER_VENV:-.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

find_python() {
    local candidate
    for candidate in ${ASTROFORMER_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info)' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "No Python 3.10 or newer with venv and pip was found; name one with ASTROFORMER_PYTHON." >&2
    return 1
}

# Python keeps what it compiles: a process that compiles torch and transformers anew starts ten seconds later.
unset PYTHONDONTWRITEBYTECODE

# The mark is written last, so that an installation that was cut short is taken up again; and it holds what was asked
# for, so that a change of it is noticed.
asked_for=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$asked_for" ]; then
    python=$(find_python)
    echo "Installing pinned versions into $venv with $("$python" --version), once..."
    "$python" -m venv "$venv"
    # Not compiled ahead: most of the modules that pip would compile are never imported.
    pip_install() {
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt "$@"
    }
    # torch first and alone: what follows must find it, not choose another build. Meanwhile large packages that it does
    # not depend on are unpacked, which takes about as long.
    large='^(fonttools|gradio|matplotlib|mypy|numpy|onnx|onnxruntime|pandas|pillow|pyarrow|ruff|scikit-learn|scipy|selenium)=='
    pip_install --no-deps --requirement <(grep -E "$large" constraints.txt) &
    unpacking=$!
    pip_install torch
    wait "$unpacking"
    pip_install --editable '.[dev]'
    echo "$asked_for" > "$venv/.installed"
fi
export VIRTUAL_ENV=$venv PATH="$venv/bin:$PATH"
