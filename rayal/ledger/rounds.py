"""Rounds with their stages, and the files that count: checkpoints and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, select

from rayal.errors import LedgerError
from rayal.ledger.columns import plain
from rayal.ledger.pools import find_snapshot
from rayal.ledger.records import Checkpoint, ColumnsPart, RoundRow, StageRow
from rayal.ledger.schema import (
    STAGES,
    checkpoints,
    column_parts,
    labels,
    parts,
    projects,
    rounds,
    stages,
)
from rayal.ledger.store import (
    Row,
    Store,
    Transaction,
    chunks,
    known_round,
    relative_file,
    unsigned,
)

FILES = ("files",)  # projects share files of the same hash, so their writers take turns


class Rounds(Store):
    """The part of the ledger that keeps rounds and their stages."""

    def begin_round(
        self,
        project: str,
        round: int,
        *,
        snapshot: int,
        labels_seq: int,
        seeds: Mapping[str, Any],
    ) -> RoundRow:
        """Begin a round, or return it unchanged if it was begun before, even with other arguments.

        Args:
            project: its name.
            round: 0, 1, ….
            snapshot: the pool's snapshot that the round scans.
            labels_seq: the last label of its training set.
            seeds: its sources of chance.

        Raises:
            UnknownNameError: the pool has no such snapshot.
            LedgerError: ``labels_seq`` lies beyond the history.
        """
        with self._write("round", project) as tx:
            begun = _row(tx.conn, rounds, {"project": project, "round": round})
            if begun is None:
                begun = {
                    "project": project,
                    "round": round,
                    "snapshot": snapshot,
                    "labels_seq": labels_seq,
                    "seeds": plain(dict(seeds), f"seeds of round {round}"),
                    "begun": tx.time,
                }
                _check_round(tx.conn, begun)
                tx.insert(rounds, [begun])
        return RoundRow(**begun)

    def rounds(self, project: str) -> list[RoundRow]:
        """Return the rounds that were begun, in order."""
        with self._read(project) as conn:
            query = rounds.select().where(rounds.c.project == project).order_by(rounds.c["round"])
            return [RoundRow(**row) for row in conn.execute(query).mappings()]

    def finish_stage(
        self, project: str, round: int, stage: str, output: Mapping[str, Any], *, seconds: float
    ) -> None:
        """Record that a stage is done, with its output.

        Raises:
            LedgerError: the stage is finished already, unknown, or its round was not begun.
        """
        with self._write("stage", project) as tx:
            write_stage(tx, project, {"round": round, "stage": stage}, output, seconds=seconds)

    def stage(self, project: str, round: int, stage: str) -> StageRow | None:
        """Return a finished stage, None if it is not finished."""
        check_stage(stage)
        with self._read(project) as conn:
            row = _row(conn, stages, {"project": project, "round": round, "stage": stage})
        return None if row is None else StageRow(**row)

    def stages(self, project: str) -> list[StageRow]:
        """Return the finished stages, by round and in the order of a round."""
        with self._read(project) as conn:
            rows = conn.execute(stages.select().where(stages.c.project == project)).mappings()
            finished = [StageRow(**row) for row in rows]
        return sorted(finished, key=lambda s: (s.round, STAGES.index(s.stage)))


class Files(Store):
    """The checkpoints and columns that count. A file that no row names may be removed."""

    def commit_checkpoint(
        self,
        project: str,
        round: int,
        *,
        model: str,
        member: int,
        epoch: int,
        file: str,
        final: bool,
    ) -> Checkpoint:
        """Record a checkpoint if it is further than all recorded ones, and return the furthest one.

        Equal model hashes mean equal weights, so the first file of an epoch stands, and one that
        comes behind a later epoch, or behind the end, is not needed. Only a final one replaces one
        of its epoch that was not.
        """
        key = {"model": model, "member": member, "epoch": epoch}
        values = {"project": project, "round": round, "file": relative_file(file), "final": final}
        with self._write("checkpoint", project, locks=FILES) as tx:
            known_round(tx.conn, project, round)
            last = next(iter(_checkpoints(tx.conn, model, member)), None)
            if last is not None and (last.final or (last.epoch, last.final) >= (epoch, final)):
                return last
            row: dict[str, Any] = {**key, **values, "committed": tx.time}
            if last is not None and last.epoch == epoch:
                tx.update(checkpoints, [row])
            else:
                tx.insert(checkpoints, [row])
        return Checkpoint(**row)

    def checkpoint(self, model: str, member: int) -> Checkpoint | None:
        """Return the latest epoch of a member of a model, whatever project wrote it."""
        return next(iter(self.checkpoints(model, member)), None)

    def checkpoints(self, model: str, member: int) -> list[Checkpoint]:
        """Return the epochs of a member of a model, the latest first, whatever project wrote them.

        Those before the latest are about to be forgotten.
        """
        with self._read() as conn:
            return _checkpoints(conn, model, member)

    def commit_columns(self, project: str, round: int, part: ColumnsPart) -> str:
        """Make the columns of a part count, and return the file that does: the first one stands.

        Raises:
            LedgerError: the columns of this part are known with other rows.
        """
        row = {
            "columns": part.columns,
            "part": part.part,
            "file": relative_file(part.file),
            "rows": int(part.rows),
            "key_sum": unsigned(part.key_sum, f"the key sum of part {part.part!r}"),
        }
        with self._write("columns", project, locks=FILES) as tx:
            known_round(tx.conn, project, round)
            old = _row(tx.conn, column_parts, {"columns": part.columns, "part": part.part})
            if old is None:
                more = {"project": project, "round": round, "committed": tx.time}
                tx.insert(column_parts, [{**row, **more}])
            elif any(old[name] != row[name] for name in ("rows", "key_sum")):
                raise LedgerError(
                    f"columns {part.columns} of part {part.part!r} are known as {old['rows']} rows "
                    f"with key sum {old['key_sum']}, now {row['rows']} with {row['key_sum']}; one "
                    f"of {old['file']} and {part.file} is damaged: forget it and scan again"
                )
        return str(row["file"] if old is None else old["file"])

    def columns(self, columns: str) -> dict[str, ColumnsPart]:
        """Return the computed parts of these columns: part name to its row, sorted by name."""
        names = [column_parts.c[f] for f in ColumnsPart.__dataclass_fields__]
        query = select(*names).where(column_parts.c["columns"] == columns)
        with self._read() as conn:
            stored = [ColumnsPart(**row) for row in conn.execute(query).mappings()]
        return {part.part: part for part in sorted(stored, key=lambda p: p.part)}

    def columns_on(self, pool: str, part: str) -> list[ColumnsPart]:
        """Return the part of that name of all columns that projects of a pool have committed."""
        names = [column_parts.c[f] for f in ColumnsPart.__dataclass_fields__]
        mine = (column_parts.c.project == projects.c.project) & (projects.c.pool == pool)
        query = select(*names).join(projects, mine).where(column_parts.c.part == part)
        with self._read() as conn:
            stored = [ColumnsPart(**row) for row in conn.execute(query).mappings()]
        return sorted(stored, key=lambda computed: computed.columns)

    def forget_files(self, files: Sequence[str]) -> None:
        """Remove the rows of checkpoints and columns in these files; unknown files are skipped.

        Raises:
            LedgerError: a file is a part of a pool.
        """
        with self._write("forget", locks=FILES) as tx:
            for some in chunks(sorted(set(files))):
                pool = tx.conn.scalar(select(parts.c.file).where(parts.c.file.in_(some)).limit(1))
                if pool is not None:
                    raise LedgerError(
                        f"file {pool!r} is a part of a pool and cannot be forgotten; only files "
                        "of checkpoints and columns can"
                    )
                for table in (checkpoints, column_parts):
                    keys = select(*table.primary_key).where(table.c.file.in_(some))
                    tx.delete(table, [dict(row) for row in tx.conn.execute(keys).mappings()])

    def files(self) -> set[str]:
        """Return every file that counts: parts of pools, checkpoints, columns."""
        with self._read() as conn:
            tables = (parts, checkpoints, column_parts)
            return {file for table in tables for file in conn.scalars(select(table.c.file))}


def check_stage(stage: str) -> None:
    """Raise LedgerError unless a stage of that name exists."""
    if stage not in STAGES:
        raise LedgerError(f"stage {stage!r} does not exist; stages: {', '.join(STAGES)}")


def write_stage(
    tx: Transaction, project: str, key: Row, output: Mapping[str, Any], *, seconds: float
) -> None:
    """Finish a stage within a transaction; ``key`` holds its round and stage."""
    check_stage(key["stage"])
    known_round(tx.conn, project, key["round"])
    what = f"stage {key['stage']!r} of round {key['round']} of project {project!r}"
    if _row(tx.conn, stages, {"project": project, **key}) is not None:
        raise LedgerError(f"{what} is finished already; read it instead of doing it again")
    row = {
        "project": project,
        **key,
        "output": plain(dict(output), f"output of {what}"),
        "seconds": float(seconds),
        "finished": tx.time,
    }
    tx.insert(stages, [row])


def _checkpoints(conn: Connection, model: str, member: int) -> list[Checkpoint]:
    of_member = (checkpoints.c.model == model) & (checkpoints.c.member == member)
    query = checkpoints.select().where(of_member).order_by(checkpoints.c.epoch.desc())
    return [Checkpoint(**row) for row in conn.execute(query).mappings()]


def _check_round(conn: Connection, row: Row) -> None:
    pool = conn.scalar(select(projects.c.pool).where(projects.c.project == row["project"]))
    find_snapshot(conn, str(pool), row["snapshot"])
    of_project = labels.c.project == row["project"]
    last = conn.scalar(select(func.max(labels.c.seq)).where(of_project)) or 0
    if not 0 <= row["labels_seq"] <= last:
        raise LedgerError(
            f"labels_seq {row['labels_seq']} of round {row['round']} is not within 0 to {last}, "
            "the last label of the project"
        )


def _row(conn: Connection, table: Table, key: Row) -> dict[str, Any] | None:
    query = table.select().where(*(table.c[name] == value for name, value in key.items()))
    row = conn.execute(query).mappings().first()
    return None if row is None else dict(row)
