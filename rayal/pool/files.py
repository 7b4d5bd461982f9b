"""Files of a storage root that may go: what rounds have left behind, and what nothing refers to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayal.errors import PoolError
from rayal.ledger import Ledger
from rayal.ledger.records import StageRow
from rayal.pool.ingest import remove_stray_files, stray_files

FOLDERS = ("columns", "models", "attached", "memory")
YOUNG = 600.0  # seconds within which a file may belong to a run that has not committed it yet


def drop_files(ledger: Ledger, project: str, *, keep: str, dry_run: bool = False) -> dict[str, int]:
    """Remove columns, weights and memories that no later round of the project reads.

    Weights of a model that the ledger knows by a version stay: it may be asked at any time. So do
    columns that another project of the root reads now, or may be about to: those of round 0 are
    shared by strategies, which other processes may run.

    Args:
        ledger: the storage root's ledger.
        project: the project.
        keep: "all" removes nothing, "last" keeps the last round's, "picks" keeps no columns.
        dry_run: only tell.

    Returns:
        Removed path, relative to the root, to its bytes.
    """
    if keep == "all":
        return {}
    stages = ledger.stages(project)
    last = max((s.round for s in stages), default=-1)
    chosen = {s.round for s in stages if s.stage == "select"}
    versions = ledger.versioned([s.output["model"] for s in stages if s.stage == "train"])
    files = _spent_pretraining(ledger, stages)
    others = _Others.of(ledger, project)
    for stage in stages:
        old = stage.round < last
        spent = (old or (keep == "picks" and stage.round in chosen)) and not others.read(stage)
        if stage.stage in ("scan", "auxiliary") and stage.output.get("columns") and spent:
            files += [p.file for p in ledger.columns(stage.output["columns"]).values()]
        read = stage.round == max(chosen, default=-1)  # by the next round, whenever it comes
        if stage.stage == "select" and stage.output.get("memory") and not read:
            files += [p.file for p in ledger.columns(stage.output["memory"]).values()]
        spent = old and stage.round > 0  # round 0 is shared by strategies
        if stage.stage == "train" and spent and stage.output["model"] not in versions:
            for member in range(stage.output["members"]):
                row = ledger.checkpoint(stage.output["model"], member)
                files += [] if row is None else [row.file]
    paths = {file: Path(ledger.root) / file for file in files}
    sizes = {f: p.stat().st_size if p.exists() else 0 for f, p in paths.items()}
    if files and not dry_run:
        ledger.forget_files(files)
        for path in paths.values():
            path.unlink(missing_ok=True)
    return sizes


@dataclass(frozen=True)
class _Others:
    """Needs of a root's other projects for columns that they may share.

    Args:
        present: hashes of the columns of their last rounds.
        beginning: whether one of them is within its round 0.
    """

    present: frozenset[str]
    beginning: bool

    @classmethod
    def of(cls, ledger: Ledger, project: str) -> _Others:
        """Ask the ledger; a project on another pool has columns of its own."""
        pool, present, beginning = ledger.project(project).pool, set[str](), False
        for other in ledger.projects():
            row = ledger.project(other)
            stages = ledger.stages(other) if other != project and row.pool == pool else []
            if not stages:
                continue
            last = stages[-1].round
            chosen = any(s.stage == "select" for s in stages) or row.settings.get("rounds") == 0
            beginning |= last == 0 and not chosen
            present |= {
                s.output["columns"] for s in stages if s.round == last and s.output.get("columns")
            }
        return cls(frozenset(present), beginning)

    def read(self, stage: StageRow) -> bool:
        """Return whether they need the columns that a stage has made."""
        early = stage.round == 0 and self.beginning
        return early or stage.output.get("columns") in self.present


def _spent_pretraining(ledger: Ledger, stages: Sequence[StageRow]) -> list[str]:
    """Return the weights of pre-trainings on a pool that has grown since."""
    models = {s.round: str(s.output["model"]) for s in stages if s.stage == "pretrain"}
    spent = set(models.values()) - {models[max(models)]} if models else ()
    rows = [ledger.checkpoint(model, 0) for model in sorted(spent)]
    return [row.file for row in rows if row is not None]


def collect_files(ledger: Ledger, *, dry_run: bool, age: float = YOUNG) -> dict[str, int]:
    """Remove files that no ledger row commits, or that a project's ``keep`` no longer keeps.

    A pool that is being ingested is left alone.

    Args:
        ledger: the storage root's ledger.
        dry_run: only tell.
        age: uncommitted columns and weights younger than this many seconds stay: a run may be
            about to commit them.

    Returns:
        Removed path, relative to the root, to its bytes.
    """
    root = Path(ledger.root)
    removed: dict[str, int] = {}
    for project in ledger.projects():
        keep = ledger.project(project).settings.get("keep", "last")
        removed |= drop_files(ledger, project, keep=keep, dry_run=dry_run)
    for folder in sorted((root / "pools").glob("*")):
        sizes = {path: path.stat().st_size for path in stray_files(ledger, folder.name)}
        try:
            gone = list(sizes) if dry_run else remove_stray_files(ledger, folder.name)
        except PoolError:  # an ingest writes to it now
            continue
        removed |= {path.relative_to(root).as_posix(): sizes.get(path, 0) for path in gone}
    stored = ledger.files()
    for folder in (root / name for name in FOLDERS):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and name not in stored and time.time() - path.stat().st_mtime > age:
                removed[name] = path.stat().st_size
                if not dry_run:
                    path.unlink()
    return removed
