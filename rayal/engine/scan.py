"""The scan: a committee over the pool, part by part, each part committed once.

A part is opened, decoded, run through the network in batches of one fixed size (the last one is
padded), scored tile by tile, written under a unique name, and counts once the ledger has its row.
What is committed for (part, columns hash) is not computed again.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.engine.columns import BF16, BORROWED, borrowed_from, column_array, column_tensor
from rayal.engine.executor import PartJob
from rayal.engine.spec import ScanOptions
from rayal.engine.workspace import Workspace
from rayal.errors import NeedsError, ScoreError, StorageError
from rayal.failpoints import failpoint
from rayal.learners.base import Learner
from rayal.ledger import ColumnsPart
from rayal.models.committee import Committee
from rayal.models.compiled import check_compiles
from rayal.models.dropout import evaluating
from rayal.pool.reader import Part, Pool
from rayal.pool.storage import present, read_mapped, write_part
from rayal.signals import Forward, Signal, compute
from rayal.strategies.base import Strategy
from rayal.types import FORMAT_VERSION, TILE_ROWS, Columns, Keys, digest, key_sum, told


def reconcile(part: Part, result: ScannedPart) -> None:
    """Raise StorageError unless a result has the rows of its part."""
    if (result.rows, result.key_sum) != (part.rows, part.key_sum):
        raise StorageError(
            f"the work on part {part.part} gave {result.rows} rows, the part has {part.rows}; "
            "items were lost or doubled"
        )


def written_range(file: Path) -> tuple[float, float]:
    """Return the smallest and the largest score of a written column part; nan without scores."""
    table = read_mapped(file)
    if "score" not in table.column_names or not table.num_rows:
        return math.nan, math.nan
    lows, highs = [], []
    for chunk in table.column("score").chunks:
        lead = column_tensor(chunk).reshape(len(chunk), -1)[:, 0]
        lows.append(lead.min().item())
        highs.append(lead.max().item())
    return min(lows), max(highs)


def spread(ranges: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Return the scores' range over all parts, with a warning where all are equal."""
    known = [(low, high) for low, high in ranges if not math.isnan(low)]
    low = min((low for low, _ in known), default=None)
    high = max((high for _, high in known), default=None)
    if low is None or high is None:
        return {}
    scores = {"score_low": low, "score_high": high}
    finite: dict[str, Any] = {n: v for n, v in scores.items() if math.isfinite(v)}
    if low == high:
        finite["warning"] = "all scores are equal: the choice among them is by item key alone"
    return finite


NO_POOL: Any = None  # a scan's signals do not depend on its pool


def score_tiles(strategy: Strategy, columns: Columns) -> Tensor | None:
    """Score tile by tile, so that the bits do not depend on the scan's batch size."""
    if not columns:
        return None
    scores = []
    for start in range(0, len(columns.ids), TILE_ROWS):
        stop = start + TILE_ROWS
        tile = Columns({n: c[start:stop] for n, c in columns.items()}, columns.ids[start:stop])
        score = strategy.score(tile)
        if score is None:
            return None
        bad = torch.isnan(score.reshape(len(score), -1)).any(dim=1)
        if bad.any():
            item = tile.ids[int(torch.nonzero(bad)[0])]
            raise ScoreError(
                f"{type(strategy).__name__} scored item {item!r} NaN; look at its row with "
                "`rayal why`, and at the model's loss"
            )
        scores.append(score.double())
    return torch.cat(scores)


DECODED_BYTES = 4 << 20  # of rows decoded at once: they stay in the cache


def run_signals(
    committee: Committee,
    signals: Sequence[Signal],
    table: pa.Table,
    *,
    keys: Keys,
    options: ScanOptions,
    report: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Compute signals for the rows of a table, ``[N, …]`` each, in padded batches.

    Args:
        committee: the trained members.
        signals: what to compute.
        table: pool rows.
        keys: uint64 ``[N]``, the rows' id keys.
        options: batch size, precision, device.
        report: called with the rows of each finished batch.
    """
    collected: dict[str, list[Tensor]] = {}
    size = 4 * math.prod(committee.task.input_shape)
    width = max(1, DECODED_BYTES // (size * options.batch)) * options.batch
    for start in range(0, table.num_rows if signals else 0, width):
        rows = table.slice(start, width)
        raw, ids = committee.task.decode(rows), rows.column("id").to_pylist()
        here = keys[start : start + len(ids)]
        for name, value in signals_of(committee, signals, raw, ids, here, options=options).items():
            collected.setdefault(name, []).append(value)
        if report is not None:
            report(len(ids))
    return {name: whole(parts) for name, parts in collected.items()}


def signals_of(
    committee: Committee,
    signals: Sequence[Signal],
    raw: Tensor,
    ids: Sequence[str],
    keys: Keys,
    *,
    options: ScanOptions,
) -> dict[str, Tensor]:
    """Compute signals of decoded rows ``[N, …]``, in batches padded to one width."""
    width = options.width
    device = torch.device(options.device)
    bf16 = options.precision == "bf16"
    committee.move(options.device)
    collected: dict[str, list[Tensor]] = {}
    with evaluating(*committee.nets), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(ids), options.batch):
            at = slice(start, start + options.batch)
            count = len(ids[at])
            padded = padded_rows(raw[at], width).to(device)
            here = np.pad(keys[at], (0, width - count))
            with torch.inference_mode(not any(s.differentiates for s in signals)):
                x = committee.task.transform(padded, committee.statistics)
            batch = Forward(
                committee, x, ids[at], here, raw=padded, rows=count, compile=options.compile
            )
            for name, value in compute(signals, batch).items():
                collected.setdefault(name, []).append(value[:count].cpu())
    return {name: whole(parts) for name, parts in collected.items()}


def whole(parts: Sequence[Tensor]) -> Tensor:
    """Return parts of one column as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def padded_rows(x: Tensor, rows: int) -> Tensor:
    """Return ``rows`` rows, zeros behind those of ``x``."""
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])


@dataclass(frozen=True)
class ScannedPart:
    """The result of a scanned part: nothing that grows with its rows.

    Attributes:
        part: the pool part.
        file: the written column part, relative to the storage root.
        rows: rows written.
        key_sum: their fingerprint.
        low: the smallest score; nan without scores.
        high: the largest score.
    """

    part: str
    file: str
    rows: int
    key_sum: int
    low: float
    high: float


@dataclass(frozen=True)
class Scan:
    """Everything a worker needs to scan one part.

    Args:
        pool: the pool's snapshot.
        committee: the trained members.
        strategy: what to ask and how to score.
        learner: whose ``reads`` are kept for the next round's training.
        options: how the network is run.
        stored: precision in which embeddings are written for the joint choice: fp32 or bf16.
    """

    pool: Pool
    committee: Committee
    strategy: Strategy
    learner: Learner
    options: ScanOptions
    stored: str = "fp32"

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Each signal once: the strategy's, then the learner's."""
        return tuple(dict.fromkeys((*self.strategy.signals(), *self.learner.reads())))

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that are written besides the score."""
        reads = (name for signal in self.learner.reads() for name in signal.names())
        return tuple(dict.fromkeys((*self.strategy.carry, *self.strategy.context, *reads)))

    @property
    def narrow(self) -> tuple[str, ...]:
        """Kept columns that are written in bf16; what a learner reads is not among them."""
        if self.stored != "bf16":
            return ()
        asked = [s for s in self.strategy.signals() if s.narrow and s not in self.learner.reads()]
        return tuple(name for s in asked for name in s.names() if name in self.kept)

    @property
    def borrowed(self) -> tuple[str, ...]:
        """Kept columns that the pool's parts hold already: they are read there, not written.

        The parts hold float32, so that what is to be bf16 is written.
        """
        column = self.committee.task.column
        if (
            column not in self.kept
            or column in self.narrow
            or not self.committee.net(0).embeds_input
        ):
            return ()
        return (column,)

    def columns_hash(self) -> str:
        """Return the hash of everything that the columns' bits depend on."""
        return digest(
            {
                "committee": self.committee.hash,
                "signals": [told(s) for s in self.signals],
                "strategy": told(self.strategy),
                "kept": self.kept,
                "task": self.committee.task.to_json(),
                "precision": self.options.precision,
                "device": torch.device(self.options.device).type,
                **({"compile": True} if self.options.compile else {}),
                **({"bf16": self.narrow} if self.narrow else {}),
            }
        )

    def check(self) -> None:
        """Raise NeedsError if the strategy asks for what nobody gives, before anything runs."""
        check_learner(self.strategy, self.learner)
        for signal in self.signals:
            signal.check(self.committee)
        self.strategy.check(self.committee)
        for member in range(self.committee.size if self.options.compile else 0):
            check_compiles(self.committee.net(member))
        named = {name for signal in self.signals for name in signal.names()}
        for name in (*self.strategy.carry, *self.strategy.context):
            if name not in named:
                raise NeedsError(
                    f"{type(self.strategy).__name__} needs column {name!r}, which no signal "
                    f"gives; the signals give {sorted(named)}"
                )

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> ScannedPart:
        """Scan one part and write its columns; retry-safe, since the name is unique."""
        return self._write(part, self.columns_of(part, report))

    def columns_of(self, part: Part, report: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Return the part's keys, signals (but borrowed ones) and score, without writing them."""
        table = self.pool.read(part)
        keys = table.column("key").to_numpy()
        ask = partial(run_signals, self.committee, self.signals, options=self.options)
        tiles = []
        for start in range(0, len(keys), TILE_ROWS):  # so no more than a tile of them is held
            rows, here = table.slice(start, TILE_ROWS), keys[start : start + TILE_ROWS]
            tiles.append(self._scored(rows, ask(rows, keys=here, report=report)))
        return {"key": keys, **_joined(tiles)}

    # -- the same in three steps, where decoding and forward passes have workers of their own ------

    def decode(self, part: Part, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the decoded rows of a part, some at a time, each with its first row."""
        table = self.pool.read(part)
        for start in range(0, table.num_rows, rows):
            yield start, self.committee.task.decode(table.slice(start, rows))

    def forward(self, part: Part, start: int, raw: Tensor) -> str:
        """Compute the signals of decoded rows, write them as a piece and return its file."""
        rows = self.pool.read(part).slice(start, len(raw))
        ids, keys = rows.column("id").to_pylist(), rows.column("key").to_numpy()
        signals = signals_of(self.committee, self.signals, raw, ids, keys, options=self.options)
        table = pa.table({name: column_array(column) for name, column in signals.items()})
        file = self._name(part, f"{start}.piece")
        write_part(Path(self.pool.root) / file, table, {"part": part.part})
        return file

    def assemble(self, part: Part, pieces: Mapping[int, str]) -> ScannedPart:
        """Join the pieces of a part, by first row, to its columns; retry-safe, so they stay."""
        paths = [Path(self.pool.root) / pieces[start] for start in sorted(pieces)]
        joined = pa.concat_tables([read_mapped(path) for path in paths]).combine_chunks()
        signals = {n: column_tensor(joined.column(n).chunk(0)) for n in joined.column_names}
        table = self.pool.read(part)
        keys = table.column("key").to_numpy()
        return self._write(part, {"key": keys, **self._scored(table, signals)})

    def _scored(self, table: pa.Table, signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        score = score_tiles(self.strategy, Columns(signals, table.column("id").to_pylist()))
        written = {n: column for n, column in signals.items() if n not in self.borrowed}
        return written if score is None else {**written, "score": score}

    def _name(self, part: Part, kind: str) -> str:
        unique = uuid.uuid4().hex[:8]
        return f"columns/{self.pool.name}/{part.part}.{self.columns_hash()}.{kind}{unique}.arrow"

    def _write(self, part: Part, columns: dict[str, Any]) -> ScannedPart:
        score = columns.pop("score", None)
        keys = columns.pop("key")
        table = {"key": pa.array(keys)}
        if score is not None:
            table["score"] = column_array(score)
        written = [name for name in self.kept if name not in self.borrowed]
        table |= {n: column_array(columns[n], bf16=n in self.narrow) for n in written}
        file = self._name(part, "")
        failpoint("scan.write")
        metadata = {"version": FORMAT_VERSION, "part": part.part, "columns": self.columns_hash()}
        if self.borrowed:
            metadata[BORROWED] = borrowed_from(file, part.file, self.borrowed)
        if self.narrow:
            metadata[BF16] = json.dumps(self.narrow)
        write_part(Path(self.pool.root) / file, pa.table(table), metadata)
        low, high = (float("nan"),) * 2
        if score is not None and len(score):
            lead = score.reshape(len(score), -1)[:, 0]
            low, high = lead.min().item(), lead.max().item()
        return ScannedPart(part.part, file, len(keys), key_sum(keys), low, high)


def check_learner(strategy: Strategy, learner: Learner) -> None:
    """Raise NeedsError unless the learner is what the strategy prescribes and trains its rows."""
    own = strategy.prescribed
    if own is not None and not isinstance(learner, type(own)):
        raise NeedsError(
            f"{type(strategy).__name__} is defined with the learner {type(own).__name__}, and "
            f"{type(learner).__name__} was given; leave the learner's name out, or train by "
            f"`{type(strategy).__name__}.trained_by(…)`"
        )
    attaches = type(strategy).attach is not Strategy.attach
    if attaches and all(stream.source != "attached" for stream in learner.streams()):
        raise NeedsError(
            f"{type(strategy).__name__} attaches rows to its picks, and {type(learner).__name__} "
            "trains on none of them; use the learner supervised, or give yours a stream 'attached'"
        )


def _joined(tiles: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: whole([tile[name] for tile in tiles]) for name in tiles[0]}


class ColumnsJob(PartJob[ScannedPart], Protocol):
    """Work on a part that gives a file of columns."""

    def columns_hash(self) -> str:
        """Return the hash under which the ledger knows the columns."""


def scan_pool(workspace: Workspace, round: int, committee: Committee) -> tuple[Scan, list[Path]]:
    """Compute and commit the columns of every part; return where they lie.

    Args:
        workspace: whose round it is.
        round: its number.
        committee: of the round.
    """
    pool, spec, root = workspace.inputs.pool, workspace.spec, workspace.root
    how = (spec.strategy, spec.learner, workspace.options, spec.selection.precision)
    scan = Scan(pool, committee, *how)
    parts = pool.parts_of("pool")
    if not scan.signals:  # nothing is asked of the model: the pool's own keys suffice
        workspace.finish_once(round, "scan", {"columns": None, "rows": 0})
        return scan, [present(root / part.file) for part in parts]
    hash, started = scan.columns_hash(), time.perf_counter()
    done = workspace.ledger.columns(hash)
    missing = [part for part in parts if part.part not in done]
    results = list(commit_parts(workspace, round, "scan", scan, missing=missing, parts=parts))
    if workspace.stage(round, "scan") is None:
        before = [root / done[part.part].file for part in parts if part.part in done]
        new = [(result.low, result.high) for result in results]
        output = {
            "columns": hash,
            "rows": sum(part.rows for part in parts),
            "labels": digest(workspace.task.labels.to_json()),  # what the columns' classes are
            **spread([*map(written_range, before), *new]),
        }
        workspace.finish(round, "scan", output, started=started)
    committed = workspace.ledger.columns(hash)
    return scan, [root / committed[part.part].file for part in parts]


def commit_parts(
    workspace: Workspace,
    round: int,
    stage: str,
    job: ColumnsJob,
    *,
    missing: Sequence[Part],
    parts: Sequence[Part],
) -> Iterator[ScannedPart]:
    """Let the executor work on missing parts, commit each as it is done, and yield it.

    Args:
        workspace: whose round it is.
        round: its number.
        stage: its stage.
        job: the work on a part.
        missing: parts to work on.
        parts: all parts, for the progress.

    Raises:
        StorageError: a part came back with other rows than it has, or not at all.
    """
    hash, waiting = job.columns_hash(), {part.part: part for part in missing}
    for result in workspace.map_parts(stage, job, missing, parts):
        reconcile(waiting.pop(result.part), result)
        failpoint(f"{stage}.commit")
        row = ColumnsPart(hash, result.part, result.file, result.rows, result.key_sum)
        commit_columns(workspace, round, row)
        yield result
    if waiting:
        raise StorageError(f"the {stage} gave nothing for parts {sorted(waiting)}; run it again")


def commit_columns(workspace: Workspace, round: int, row: ColumnsPart) -> None:
    """Commit a file of columns; where another process was quicker, its file stands alone."""
    if workspace.ledger.commit_columns(workspace.name, round, row) != row.file:
        (workspace.root / row.file).unlink(missing_ok=True)
