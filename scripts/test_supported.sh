#!/usr/bin/env bash
# Installs the built wheel with its dependencies into an empty environment at one end of the supported range, runs the
# library's tests there, and records the outcome in results/supported.
#
#   bash scripts/test_supported.sh lowest     Python 3.10 and the releases in constraints-lowest.txt
#   bash scripts/test_supported.sh highest    Python 3.13 and the newest releases, of transformers the newest minor that
#                                             astroformer_hf/version.py calls tested
#   bash scripts/test_supported.sh newest     Python 3.13 and the newest releases that the index serves today
#
# More arguments go to pytest, and nothing is recorded then. ASTROFORMER_PYTHON names the Python, ASTROFORMER_VENV the
# folder of the environment (by default .venv-lowest and so on), which is used again if it is there.
set -euo pipefail
usage() { sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
transformers=transformers
case ${1:-} in
    lowest) python=${ASTROFORMER_PYTHON:-python3.10} constraints="--constraint constraints-lowest.txt" ;;
    highest) python=${ASTROFORMER_PYTHON:-python3.13} constraints="--upgrade" transformers=tested ;;
    newest) python=${ASTROFORMER_PYTHON:-python3.13} constraints="--upgrade" ;;
    --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
end=$1
shift
script=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$script")/.."
if [ "$transformers" = tested ]; then
    transformers="transformers==$(sed -n 's/^TESTED_TRANSFORMERS = "\(.*\)".*/\1/p' astroformer_hf/version.py).*"
fi
venv=$(realpath -m "${ASTROFORMER_VENV:-.venv-$end}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

[ -e "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check build
"$venv/bin/python" -m build --outdir "$scratch" . >"$scratch/build.log" || { cat "$scratch/build.log" >&2; exit 1; }
# torch first and alone: what follows must find it, not choose another build
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check $constraints torch
"$venv/bin/python" -m pip uninstall --quiet --disable-pip-version-check --yes astroformer-hf
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check $constraints \
    "$(echo "$scratch"/*.whl)[train]" "$transformers" peft pytest scipy

# Not here: what needs other libraries, and the common tests of transformers; constraints.txt pins their releases.
# Nor, with torch 2.6, torch.compile: it traces neither these models nor the library's own.
tests="operation/astrocyte_code operation/attention_backends operation/attention_operation operation/covariance
    operation/hybrid_attention operation/switches models/configuration models/generation models/heads models/keywords
    models/library_attention models/modeling models/packing models/peft models/releases_of_transformers models/segments
    models/swapped_attention models/swapped_misuse models/transfer models/vision looking/inspection sharing/publish
    sharing/safety sharing/sharing"
untraced=
if "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.__version__ >= "2.7")'; then
    untraced="compiles_to_one_graph or compiled or one_graph or (cannot_ask and compile)"
fi
status=0
PATH="$venv/bin:$PATH" "$venv/bin/pytest" --quiet --junitxml "$scratch/junit.xml" \
    $(printf 'tests/%s.py ' ${tests//\//\/test_}) ${untraced:+-k "not ($untraced)"} "$@" || status=$?
[ "$status" -le 1 ] || exit "$status"  # the tests did not run to their end
[ $# -gt 0 ] || "$venv/bin/python" scripts/report.py --record "$end" --junit "$scratch/junit.xml"
exit "$status"
