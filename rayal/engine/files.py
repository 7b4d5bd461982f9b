"""Files of a storage root that may go: what rounds have left behind, and what nothing refers to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rayal.project import Ledger

FOLDERS = ("pools", "columns", "models")
YOUNG = 600.0  # seconds within which a file may belong to a run that has not committed it yet


def drop_files(ledger: Ledger, project: str, *, keep: str) -> None:
    """Remove columns and weights that no later round of the project reads.

    Args:
        ledger: the storage root's ledger.
        project: the project.
        keep: "all" removes nothing, "last" keeps the last round's, "picks" keeps no columns.
    """
    if keep == "all":
        return
    stages = ledger.stages(project)
    last = max((s.round for s in stages), default=-1)
    files: list[str] = []
    for stage in stages:
        old = stage.round < last
        if stage.stage == "scan" and stage.output.get("columns") and (old or keep == "picks"):
            files += [p.file for p in ledger.columns(stage.output["columns"]).values()]
        if stage.stage == "train" and old and stage.round > 0:  # round 0 is shared by strategies
            rows = (ledger.checkpoint(stage.output["model"], m) for m in
                    range(stage.output["members"]))  # fmt: skip
            files += [row.file for row in rows if row is not None]
    if files:
        ledger.forget_files(files)
    for file in files:
        (Path(ledger.root) / file).unlink(missing_ok=True)


def collect_files(ledger: Ledger, *, dry_run: bool, age: float = YOUNG) -> dict[str, int]:
    """Remove what no ledger row commits and what each project's ``keep`` lets go.

    Args:
        ledger: the storage root's ledger.
        dry_run: only tell.
        age: uncommitted files younger than this many seconds stay: a run may be writing them.

    Returns:
        Removed path, relative to the root, to its bytes.
    """
    root = Path(ledger.root)
    if not dry_run:
        for project in ledger.projects():
            drop_files(ledger, project, keep=ledger.project(project).settings.get("keep", "last"))
    held = ledger.files() | set(_label_files(ledger))
    removed = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and name not in held and time.time() - path.stat().st_mtime > age:
                removed[name] = path.stat().st_size
                if not dry_run:
                    path.unlink()
    return removed


def _label_files(ledger: Ledger) -> Iterator[str]:
    for pool in ledger.pools():
        for number in range(1, ledger.snapshot(pool).number + 1):
            info = ledger.snapshot(pool, number).info
            if "labels" in info:
                yield info["labels"]
