#!/usr/bin/env bash
# From nothing to a trained, saved and reloaded classifier: one command, a few minutes on two cores, no Hub needed.
#
#   bash scripts/quickstart.sh          trains on the docstrings of Python's standard library
#   bash scripts/quickstart.sh --imdb   trains on IMDB from the Hub
set -euo pipefail

case ${1:-} in
    "" | --imdb) ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ "$1" = --help ] && exit 0 || exit 2 ;;
esac
choice=${1:-}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

hub_answers() {
    python -c 'from huggingface_hub import HfApi; HfApi().dataset_info("stanfordnlp/imdb", timeout=5)' 2>/dev/null
}

if [ "$choice" = --imdb ]; then
    model=outputs/quickstart_imdb
    python scripts/train_text_classification.py --dataset_name stanfordnlp/imdb --output_dir "$model"
    python scripts/predict.py --model "$model" --text "What a lovely film." --text "Two hours of my life, gone."
else
    model=outputs/quickstart data=outputs/data/docstrings
    echo "1. Data: which package of Python's standard library is a docstring from?"
    python scripts/docstrings_dataset.py --output_dir "$data"
    echo "2. Training a neuron-astrocyte classifier"
    python scripts/train_text_classification.py --dataset_dir "$data" --output_dir "$model" --max_length 96 \
        --vocab_size 4000 --num_train_epochs 6 --per_device_train_batch_size 16 --learning_rate 2e-3 --dropout 0.2
    echo "3. Loading it again in a new process, through the Auto classes"
    python scripts/predict.py --model "$model" --dataset_dir "$data" --max_length 96
fi

cat <<TEXT

Done. The model, its figures (results.json, learning_curve.png) and its card (README.md) are in $model.
Next, after  source $VIRTUAL_ENV/bin/activate
  ask it:           python scripts/predict.py --model $model --text "..."
  your own data:    python scripts/train_text_classification.py --dataset_dir FOLDER --output_dir outputs/mine
  the other arms:   add --attention_type softmax, or --attention_type linear
  see its calcium:  python scripts/demo.py --model $model
  share it:         python scripts/publish.py --model $model --repo_id USER/NAME --dry_run
TEXT
if [ "$choice" != --imdb ] && hub_answers; then
    echo "  IMDB (the Hub answers):  bash scripts/quickstart.sh --imdb"
fi
