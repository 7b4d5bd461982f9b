"""How long /healthz takes while a round trains: `python tests/load/health.py --help`.

A round that trains for longer than the probes last is begun on a project of its own; once its
network is in training, the service is probed once a second, each time by a new connection.
Exit code 1 unless p99 < 400 ms and the largest < 1 s, and the round was in training all along.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
from annotators import quantile
from load import Bars, client_of, report

from rayal.client import Client

P99, LARGEST = 0.4, 1.0
WIDTHS, ROWS = [1024, 1024], 400


def begun(client: Client) -> tuple[str, str]:
    """Begin a round that trains for very long; return its project and its job."""
    name = f"health-{uuid.uuid4().hex[:8]}"
    client.create_project(
        {
            "name": name,
            "task": {"kind": "table", "classes": ["a", "b"], "features": ["x", "y"]},
            "model": {"network": "mlp", "params": {"widths": WIDTHS}},
            "learner": {"name": "supervised", "steps": 10_000_000, "batch": 64},
            "strategy": "margin",
            "initial": {"count": 100},
            "auto": {"start": False},
        }
    )
    rows: list[Any] = [
        {"id": f"row-{n}", "features": [n / ROWS, float(n % 2)]} for n in range(ROWS)
    ]
    client.push(name, rows)
    client.label(name, "ann", {row["id"]: "ab"[n % 2] for n, row in enumerate(rows[:100])})
    client.wait(client.close_round(name, reason="the first items")["job"], poll=0.2)
    job = client.close_round(name, reason="train")["job"]
    end = time.monotonic() + 120.0
    while stage_of(client, job) != "train":
        if time.monotonic() > end:
            sys.exit(f"job {job} of project {name} does not train: {client.job(job)}")
        time.sleep(0.5)
    return name, job


def stage_of(client: Client, job: str) -> str | None:
    """Return the stage that a running job works on."""
    row = client.job(job)
    return (row["progress"] or {}).get("stage") if row["state"] == "running" else None


def probe(url: str, seconds: float) -> tuple[list[float], int]:
    """Return what each probe took, one a second, and how many were not answered 200."""
    taken: list[float] = []
    failed = 0
    started = time.monotonic()
    for number in range(int(seconds)):
        time.sleep(max(0.0, started + number - time.monotonic()))
        sent = time.monotonic()
        try:
            answer = httpx.get(f"{url}/healthz", timeout=30.0, trust_env=False)
            failed += answer.status_code != 200
        except httpx.TransportError:
            failed += 1
        taken.append(time.monotonic() - sent)
    return taken, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--url", default=os.environ.get("RAYAL_URL", "http://127.0.0.1:8000"))
    add("--token", default=os.environ.get("RAYAL_TOKEN"), help="of an administrator")
    add("--seconds", type=float, default=120.0)
    add("--json", type=Path, help="file of the figures")
    given = parser.parse_args()
    with client_of(given) as client:
        project, job = begun(client)
        taken, failed = probe(given.url, given.seconds)
        stage = stage_of(client, job)
        client.cancel(job)
        client.delete_project(project)
    p99, largest = quantile(taken, 0.99), max(taken)
    made: dict[str, Any] = {
        "phase": f"{len(taken)} probes while a round trains",
        "p50 ms": round(1000 * quantile(taken, 0.5), 1),
        "p99 ms": round(1000 * p99, 1),
        "max ms": round(1000 * largest, 1),
        "failed": failed,
    }
    bars: Bars = [
        ("/healthz p99", p99 < P99, f"{made['p99 ms']} ms (< {1000 * P99:.0f})"),
        ("/healthz max", largest < LARGEST, f"{made['max ms']} ms (< {1000 * LARGEST:.0f})"),
        ("every probe answered 200", not failed, f"{failed} were not"),
        ("the round was still in training", stage == "train", str(stage)),
    ]
    return report([made], bars, given.json)


if __name__ == "__main__":
    sys.exit(main())
