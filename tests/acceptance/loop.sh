#!/usr/bin/env bash
# The active-learning loop on one machine: prints the table of figures. About 45 minutes on 2 cores.
#   tests/acceptance/loop.sh [FOLDER]     FOLDER keeps the runs (default: a new temporary folder)
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
failed=0
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
table="$work/figures.txt"
: > "$table"
note() { printf '%-58s %s\n' "$1" "$2" | tee -a "$table"; }
timed() { # NAME COMMAND…: wall seconds and peak memory of the process
  local name=$1; shift
  local log="$work/${name//[ \/]/_}.log"
  if ! /usr/bin/env time -f '%e s, peak %M kB' -o "$work/time" "$@" > "$log" 2>&1; then
    note "$name" "FAILED, see $log"; failed=1; return 0
  fi
  note "$name" "$(tail -n 1 "$work/time")"
}

rm -rf "$work/clone" "$work/venv"
git clone -q "$repo" "$work/clone"
cd "$work/clone"
timed "install (uv sync)" uv sync
timed "rayal demo" uv run rayal demo
timed "pytest, all of CI" uv run pytest --durations=10
timed "pytest, fast part" uv run pytest -m 'not slow and not ray and not processes'
timed "ruff" uv run ruff check .
timed "mypy --strict" uv run mypy
python3 -m venv "$work/venv"
timed "pip install . in a plain venv" "$work/venv/bin/pip" install -q .
timed "rayal from that venv" "$work/venv/bin/rayal" strategies --json
timed "import rayal" uv run python -c "import rayal"
timed "faults (every failpoint, 5 random moments)" uv run pytest -m slow tests/faults
timed "other slow tests" uv run pytest -m slow --ignore=tests/faults

timed "examples/fashion_mnist.yaml, 60,000 images" \
  uv run rayal run examples/fashion_mnist.yaml --set storage="$work/fashion"
halves() { # two processes, five seeds each, one thread each
  uv run rayal run examples/label_efficiency.yaml --set storage="$work/efficiency-a" \
    --set 'seeds=[0,1,2,3,4]' & local a=$!
  uv run rayal run examples/label_efficiency.yaml --set storage="$work/efficiency-b" \
    --set 'seeds=[5,6,7,8,9]' & local b=$!
  wait $a && wait $b
}
export -f halves; export work
timed "label efficiency, 10 seeds" bash -c halves
uv run python tests/acceptance/efficiency.py "$work"/efficiency-[ab]/curve.csv | tee -a "$table"
echo; echo "figures: $table"
exit $failed
