#!/usr/bin/env bash
# The service on one machine: prints the table of figures. About 40 minutes on 2 cores.
#   tests/acceptance/service.sh [FOLDER]   FOLDER keeps logs and storage (default: a new temporary one)
# Wants Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist) and, for its part, PostgreSQL.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
cd "$repo"
export OMP_NUM_THREADS=1 PYTHONPATH="$repo/tests/load:$repo/tests/acceptance"
failed=0
work=${1:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
table="$work/figures.txt"
: > "$table"
note() { printf '%-60s %s\n' "$1" "$2" | tee -a "$table"; }
timed() { # NAME COMMAND…: wall seconds, and the last line of what it says
  local name=$1; shift
  local log="$work/${name//[ \/]/_}.log" began=$SECONDS
  if "$@" > "$log" 2>&1; then
    note "$name" "$((SECONDS - began)) s, $(tail -n 1 "$log")"
  else
    note "$name" "FAILED after $((SECONDS - began)) s, see $log"; failed=1
  fi
}
barred() { # NAME COMMAND…: the bars that a program states
  local name=$1; shift
  local log="$work/${name//[ \/]/_}.log"
  "$@" > "$log" 2>&1 || failed=1
  note "$name" ""
  grep -E '^(ok|FAIL)|/s |p50|p99|statuses' "$log" | sed 's/^/    /' | tee -a "$table"
}
run() { uv run -q python "$@"; }
pid=
start() { # FOLDER PORT: a service, until it is ready
  (exec uv run -q python -m rayal serve --storage "$1" --port "$2" --token-file "$work/token") \
    > "$work/serve.log" 2>&1 &
  pid=$!
  for _ in $(seq 120); do
    if curl -sf --noproxy '*' "http://127.0.0.1:$2/readyz" > "$work/ready"; then return 0; fi
    sleep 1
  done
  note "rayal serve" "does not answer, see $work/serve.log"
  return 1
}
stop() { if [ -n "$pid" ]; then kill "$pid" 2> "$work/kill.log" || true; wait "$pid" || true; pid=; fi; }
trap stop EXIT
port=${PORT:-8431}

timed "2,000 and 200 random histories, replayed" \
  uv run -q pytest -q -m 'slow or not slow' tests/ledger/test_histories.py
timed "requests from the OpenAPI document, 25 an operation" \
  uv run -q pytest -q -m slow tests/service/test_openapi.py
timed "security, problems, limits, every route" \
  uv run -q pytest -q -m 'not ray' tests/service --ignore=tests/service/test_openapi.py

run -m rayal ingest fashion-mnist --storage "$work/served" --set subset=2000 > "$work/ingest.log"
start "$work/served" "$port"
export RAYAL_URL="http://127.0.0.1:$port" RAYAL_TOKEN
RAYAL_TOKEN=$(cat "$work/token")
barred "64 annotators, then 256" run tests/load/load.py --json "$work/load.json"
barred "/healthz while a round trains" run tests/load/health.py --json "$work/health.json"
timed "Fashion-MNIST labeled over HTTP" run examples/label_over_http.py \
  --pool fashion-mnist-2000-s0 --rounds 3 --steps 300 --out "$work/over.json"
stop
timed "the same in one process" run -m rayal run tests/acceptance/over_http.yaml \
  --set storage="$work/run"
timed "picks and curve of both" run tests/acceptance/over_http.py "$work/over.json" "$work/run"

timed "kills of replicas and of the tree, full disk, PostgreSQL" \
  uv run -q pytest -q -m slow tests/faults/test_service_faults.py
echo; echo "figures: $table"
exit $failed
