#!/usr/bin/env bash
# The loop on Ray: prints the table of figures. About 50 minutes on 2 cores.
#   tests/acceptance/ray_loop.sh [FOLDER] [ROWS…]   FOLDER keeps the runs (default: a new one);
#                                                   ROWS: fashion scan faults start suite memory
set -euo pipefail
export UV_COMPILE_BYTECODE=1 # as other installers do: processes that start are measured
repo=$(cd "$(dirname "$0")/../.." && pwd)
here="$repo/tests/acceptance"
failed=0
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
shift || true
rows=" ${*:-fashion scan faults start suite memory} "
table="$work/figures.txt"
: > "$table"
note() { printf '%-46s %s\n' "$1" "$2" | tee -a "$table"; }
wanted() { [[ "$rows" == *" $1 "* ]]; }
measured() { # NAME COMMAND…: wall, CPU busy share, peak memory of the process tree
  local name=$1; shift
  local log="$work/${name//[ \/,:]/_}.log"
  if ! uv run -q python "$here/measure.py" --json "$work/measured" "$@" > "$log" 2>&1; then
    note "$name" "FAILED, see $log"; failed=1; return 0
  fi
  note "$name" "$(cat "$work/measured")"
}
cd "$repo"
python=$(uv run -q python -c 'import sys; print(sys.executable)')
rayal="$(dirname "$python")/rayal"

if wanted fashion; then
  for executor in local ray; do
    measured "fashion, $executor" "$rayal" run examples/fashion_mnist.yaml -v \
      --executor $executor --set storage="$work/fashion-$executor"
  done
  note "fashion, picks equal" "$("$python" "$here/same_picks.py" "$work/fashion-local" "$work/fashion-ray")"
fi
if wanted scan; then
  [ -d "$work/pool" ] || "$rayal" ingest fashion-mnist --storage "$work/pool" > /dev/null
  note "scan, plain loop and Ray Data" "$("$python" "$here/scan_overhead.py" "$work/pool" 10)"
fi
if wanted faults; then
  log="$work/faults.log"
  "$python" -m pytest -m slow tests/faults/test_ray_faults.py -q > "$log" 2>&1 || failed=1
  grep -aE "^(scan|train|shard|node|killed).* s|passed|failed" "$log" | while read -r line; do
    note "kill" "$line"
  done
fi
if wanted start; then
  note "start, digits" "$("$python" "$here/first_step.py" "$work/digits")"
fi
if wanted suite; then
  measured "pytest, the ray part" "$python" -m pytest -m "ray and not slow"
  measured "all of CI" bash .ci/run
fi
if wanted memory; then
  for count in 250000 1000000; do
    root="$work/rows-$count"
    [ -d "$root" ] || "$python" "$here/driver_memory.py" make "$root" $count
    for strategy in margin badge; do
      note "driver memory" "$("$python" "$here/driver_memory.py" round "$root" $strategy)"
    done
  done
fi
echo; echo "figures: $table"
exit $failed
