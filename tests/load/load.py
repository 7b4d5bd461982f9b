"""How many annotators a service bears, on this machine alone: `python tests/load/load.py --help`.

Annotators lease, think, and label for a minute, then four times as many do. Afterwards the history
is read: every label that was accepted stands in it, and no item was held by more than it needs.
Exit code 1 unless every bar is met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from annotators import Load, Seen, quantile
from rich.console import Console
from rich.table import Table

from rayal.client import Client

SUCCESS, PER_SECOND = 0.99, 20.0
LATEST = 10.0  # seconds that an answer may take under four times the load
Bars = list[tuple[str, bool, str]]


def project_of(client: Client, items: int, labels_per_item: int) -> str:
    """Make a project whose items are all offered, and whose rounds nobody starts."""
    name = f"load-{uuid.uuid4().hex[:8]}"
    client.create_project(
        {
            "name": name,
            "task": {"kind": "table", "classes": ["a", "b"], "features": ["x", "y"]},
            "model": {"network": "mlp"},
            "strategy": "random",
            "initial": {"count": items},
            "labeling": {"labels_per_item": labels_per_item},
            "auto": {"start": False},
        }
    )
    rows = ({"id": f"row-{n:06d}", "features": [n / items, 0.5]} for n in range(items))
    client.push(name, rows)
    client.wait(client.close_round(name, reason="offer all items")["job"], poll=0.2)
    return name


def tokens_of(client: Client, project: str, count: int) -> list[str]:
    """Return a token of its own for every annotator."""
    scopes = [f"project:{project}:label"]
    made = [client.create_token(f"annotator {n}", scopes)["token"] for n in range(count)]
    return [text for text in made if text is not None]


def lost(client: Client, project: str, seens: Sequence[Seen], labels_per_item: int) -> list[str]:
    """Return what is wrong with the history, as sentences."""
    history = {(r["item"], r["annotator"]): r for r in client.labels(project)}
    filled: dict[str, int] = {}
    wrong = []
    for row in history.values():
        if row["status"] == "accepted":
            filled[row["item"]] = filled.get(row["item"], 0) + 1
    wrong += [f"{item} has {n} labels" for item, n in filled.items() if n > labels_per_item]
    for seen in seens:
        for (item, annotator), label_id in seen.accepted.items():
            there = history.get((item, annotator))
            if there is None or (there["label_id"], there["label"]) != (label_id, "a"):
                wrong.append(f"{annotator}'s label of {item} was accepted and is not there")
    return wrong


def figures(name: str, seen: Seen, seconds: float) -> dict[str, Any]:
    """Return one phase's figures."""
    calls = sum(seen.statuses.values())
    by_status: dict[str, int] = {}
    for (_, status), count in seen.statuses.items():
        by_status[str(status)] = by_status.get(str(status), 0) + count
    good = sum(n for (_, status), n in seen.statuses.items() if 200 <= status < 300)
    return {
        "phase": name,
        "seconds": round(seconds, 1),
        "calls": calls,
        "2xx": round(good / max(calls, 1), 5),
        "statuses": dict(sorted(by_status.items())),
        "refusals": dict(seen.refusals),
        "without Retry-After": seen.unexplained,
        "requests/s": round(calls / seconds, 1),
        "answered/s": round(good / seconds, 1),
        "accepted/s": round(len(seen.accepted) / seconds, 1),
        "accepted": len(seen.accepted),
        "empty leases": seen.empty,
        "outcomes": dict(seen.outcomes),
        **{
            f"{route} {key} ms": round(1000 * value, 1)
            for route, taken in sorted(seen.seconds.items())
            for key, value in (
                ("p50", quantile(taken, 0.5)),
                ("p99", quantile(taken, 0.99)),
                ("max", max(taken)),
            )
        },
    }


def bars_of_load(made: dict[str, Any]) -> Bars:
    rate = made["accepted/s"]
    return [
        ("calls answered 2xx", made["2xx"] >= SUCCESS, f"{made['2xx']:.2%} (>= {SUCCESS:.0%})"),
        ("accepted labels a second", rate >= PER_SECOND, f"{rate} (>= {PER_SECOND:g})"),
    ]


def bars_of_overload(made: dict[str, Any]) -> Bars:
    rate, p99 = made["accepted/s"], max(v for k, v in made.items() if k.endswith("p99 ms"))
    strange = {s: n for s, n in made["statuses"].items() if not s.startswith("2")}
    strange = {s: n for s, n in strange.items() if s not in ("429", "503")}
    return [
        ("the surplus gets 429 or 503 only", not strange, str(strange or made["statuses"])),
        ("each with Retry-After", not made["without Retry-After"], "all"),
        ("the rest holds: accepted labels/s", rate >= PER_SECOND, f"{rate} (>= {PER_SECOND:g})"),
        ("the rest holds: p99", p99 < 1000 * LATEST, f"{p99:.0f} ms (< {LATEST:g} s)"),
    ]


def measured(client: Client, given: argparse.Namespace) -> tuple[list[dict[str, Any]], Bars]:
    """Run the phases and read the history."""
    project = project_of(client, given.items, given.labels_per_item)
    tokens = tokens_of(client, project, given.annotators * max(given.times, 1))
    phases: list[dict[str, Any]] = []
    seens: list[Seen] = []
    bars: Bars = []
    for times, seconds in ((1, given.seconds), (given.times, given.overload_seconds)):
        if times < 1 or seconds <= 0:
            continue
        some, prefix = tokens[: given.annotators * times], f"x{times}"
        load = Load(given.url, project, some, given.think, seconds, prefix)
        seen, took = load.run()
        made = figures(f"{len(some)} annotators", seen, took)
        phases.append(made)
        seens.append(seen)
        bars += bars_of_load(made) if times == 1 else bars_of_overload(made)
        time.sleep(2.0)
    doubled = [item for seen in seens for item in seen.doubled(given.labels_per_item)]
    wrong = lost(client, project, seens, given.labels_per_item)
    bars.append(("double leases", not doubled, f"{len(doubled)} {doubled[:3] or ''}"))
    bars.append(("lost labels", not wrong, f"{len(wrong)} {wrong[:3] or ''}"))
    client.delete_project(project)
    return phases, bars


def table_of(phases: Sequence[dict[str, Any]]) -> Table:
    table = Table("figure", *(made["phase"] for made in phases))
    for name in dict.fromkeys(key for made in phases for key in made if key != "phase"):
        table.add_row(name, *(str(made.get(name, "")) for made in phases))
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--url", default=os.environ.get("RAYAL_URL", "http://127.0.0.1:8000"))
    add("--token", default=os.environ.get("RAYAL_TOKEN"), help="of an administrator")
    add("--annotators", type=int, default=64)
    add("--think", type=float, default=0.2, help="seconds between a lease and its label")
    add("--seconds", type=float, default=60.0)
    add("--times", type=int, default=4, help="as many annotators in the second phase")
    add("--overload-seconds", type=float, default=30.0)
    add("--items", type=int, default=20_000)
    add("--labels-per-item", type=int, default=1)
    add("--json", type=Path, help="file of the figures")
    return parser.parse_args()


def report(phases: Sequence[dict[str, Any]], bars: Bars, file: Path | None) -> int:
    """Print the figures and whether each bar is met; return the exit code."""
    out = Console()
    out.print(table_of(phases))
    for name, met, value in bars:
        out.print(f"{'ok  ' if met else 'FAIL'}  {name}: {value}", markup=False, highlight=False)
    if file is not None:
        rows = [{"bar": name, "met": met, "value": value} for name, met, value in bars]
        file.write_text(json.dumps({"phases": list(phases), "bars": rows}, indent=1))
    return 0 if all(met for _, met, _ in bars) else 1


def client_of(given: argparse.Namespace) -> Client:
    """Return the administrator's client of a service on this machine."""
    if urlsplit(given.url).hostname not in ("127.0.0.1", "localhost"):
        sys.exit(f"{given.url} is not on this machine; load is for 127.0.0.1 alone")
    if given.token is None:
        sys.exit("no token: set RAYAL_TOKEN, or say --token")
    return Client(given.url, given.token)


def main() -> int:
    given = arguments()
    with client_of(given) as client:
        phases, bars = measured(client, given)
    return report(phases, bars, given.json)


if __name__ == "__main__":
    sys.exit(main())
