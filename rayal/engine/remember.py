"""Values that a round leaves for later ones: columns to read, rows made of picks, and memory.

A round's file of memory holds the memory with which its batch was chosen, the columns of the picks
by the committee that chose, and what the objective noted. From these, the labels that came and the
next committee, the next round computes its own memory: so nothing is kept anywhere else, and a
round that was killed computes the same value again.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.engine.columns import column_array, column_tensor, open_columns
from rayal.engine.scan import commit_columns, run_signals
from rayal.engine.spec import options_record
from rayal.engine.workspace import Workspace
from rayal.errors import NeedsError, ScoreError, StorageError
from rayal.failpoints import failpoint
from rayal.labels import Label
from rayal.learners.base import LabeledRows, TensorRows
from rayal.learners.checkpoint import read_checkpoint, write_checkpoint
from rayal.ledger import ColumnsPart, Pick
from rayal.models.committee import Committee, home_of
from rayal.models.dropout import evaluating
from rayal.pool.storage import ATTACHED, read_mapped, write_durably, write_part
from rayal.selection.devices import widened
from rayal.strategies.base import Memory, Outcome, Strategy
from rayal.types import Columns, digest, id_keys, key_sum, told


def names_read(workspace: Workspace) -> tuple[str, ...]:
    """Return the columns that the learner reads."""
    return tuple(name for signal in workspace.spec.learner.reads() for name in signal.names())


def hash_read(workspace: Workspace, round: int) -> str | None:
    """Return the hash of the columns that a round's training reads.

    None where the learner reads none, in the first round, and where the last round was scanned for
    a learner that did not want them, or by a model of other classes. What a round has recorded
    stands, also when the columns are gone: its committee's hash depends on it.
    """
    names = names_read(workspace)
    begun = workspace.ledger.stage(workspace.name, round, "prepare") if names else None
    if begun is not None and "reads" in begun.output:
        recorded: str | None = begun.output["reads"]
        return recorded
    stage = workspace.ledger.stage(workspace.name, round - 1, "scan") if names and round else None
    hash = None if stage is None else stage.output["columns"]
    if stage is None or hash is None:
        return None
    if stage.output.get("labels") != digest(workspace.task.labels.to_json()):
        return None
    for part in workspace.ledger.columns(hash).values():
        stored = open_columns(workspace.root / part.file).column_names
        return str(hash) if set(names) <= set(stored) else None
    return None


def columns_read(
    workspace: Workspace, hash: str | None, labeled: Collection[str]
) -> Columns | None:
    """Return the columns of the items that were scanned and are not labeled, sorted by id.

    Items that came to the pool since are not among them.

    Args:
        workspace: whose learner reads them.
        hash: what ``hash_read`` gave.
        labeled: ids of the training set.

    Raises:
        StorageError: they are gone.
    """
    if hash is None:
        return None
    names, pool = names_read(workspace), workspace.inputs.pool
    committed = workspace.ledger.columns(hash)
    if not committed:
        raise StorageError(
            f"columns {hash}, which the learner reads, are gone; set keep to last or all, and run "
            "the project anew"
        )
    ids: list[str] = []
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in pool.parts_of("pool"):
        if part.part not in committed:
            continue
        table = open_columns(workspace.root / committed[part.part].file).combine_chunks()
        here = pool.read(part).column("id").to_pylist()
        rows = [row for row, item in enumerate(here) if item not in labeled]
        ids += [here[row] for row in rows]
        for name in names:
            column = column_tensor(table.column(name).chunk(0))
            values[name].append(widened(column[torch.tensor(rows, dtype=torch.int64)]))
    order = torch.from_numpy(np.argsort(np.array(ids, dtype=object), kind="stable"))
    columns = {name: torch.cat(parts)[order] for name, parts in values.items()}
    return Columns(columns, [ids[i] for i in order.tolist()])


ROWS = "x"  # the column whose rows are trained on


def keep_attached(
    workspace: Workspace, round: int, committee: Committee, picks: Sequence[Pick]
) -> dict[str, str]:
    """Let the strategy attach columns to its picks, commit them once, and return their record.

    Args:
        workspace: whose round it is.
        round: its number.
        committee: that chose.
        picks: in pick order.

    Returns:
        ``{"attached": hash}``; nothing where the strategy attaches nothing.
    """
    strategy, ids = workspace.spec.strategy, [pick.item for pick in picks]
    hash = digest([ATTACHED, committee.hash, told(strategy), workspace.spec.scan.device, ids])
    if ATTACHED in workspace.ledger.columns(
        hash
    ):  # an earlier try ended before its selection was committed
        return {ATTACHED: hash}
    if not ids:
        return {}
    place = home_of(workspace.options.device)
    committee.move(place)
    raw = workspace.inputs.task.decode(workspace.inputs.pool.take(ids)).to(place)
    with evaluating(*committee.nets):
        attached = strategy.attach(committee, raw, ids)
    if not len(attached):
        return {}
    _check(type(strategy).__name__, attached, ids, raw)
    file = f"{ATTACHED}/{workspace.name}/{hash}.{uuid.uuid4().hex[:8]}.arrow"
    columns = {name: column_array(column) for name, column in attached.items()}
    table = pa.table({"id": pa.array(ids, pa.large_string()), **columns})
    write_part(workspace.root / file, table, {"columns": hash})
    part = ColumnsPart(hash, ATTACHED, file, len(ids), key_sum(id_keys(ids)))
    commit_columns(workspace, round, part)
    return {ATTACHED: hash}


def attached_columns(workspace: Workspace, round: int) -> tuple[str, Columns] | None:
    """Return what a round's strategy attached to its picks, with its hash; None for nothing."""
    selection = workspace.ledger.selection(workspace.name, round)
    hash = None if selection is None else selection.provenance.get(ATTACHED)
    if hash is None:
        return None
    part = workspace.ledger.columns(hash)[ATTACHED]
    table = read_mapped(workspace.root / part.file).combine_chunks()
    names = [name for name in table.column_names if name != "id"]
    columns = {name: column_tensor(table.column(name).chunk(0)) for name in names}
    return hash, Columns(columns, table.column("id").to_pylist())


def attached_rows(
    workspace: Workspace, round: int, labels: Mapping[str, Label]
) -> tuple[LabeledRows | None, list[Any] | None]:
    """Return the attached rows of earlier rounds whose items are labeled, and what names them.

    Args:
        workspace: whose rows they are.
        round: that is going to train.
        labels: of the round's training set; a row has its item's label.
    """
    rows: list[tuple[str, str, Tensor]] = []
    for earlier in range(round):
        earlier_columns = attached_columns(workspace, earlier)
        if earlier_columns is not None and ROWS in earlier_columns[1]:
            hash, columns = earlier_columns
            rows += [
                (item, hash, x) for item, x in zip(columns.ids, columns[ROWS], strict=True)
                if item in labels
            ]  # fmt: skip
    if not rows:
        return None, None
    rows.sort(key=lambda row: row[:2])
    ids = [item for item, _, _ in rows]
    targets = workspace.inputs.task.targets([labels[item] for item in ids])
    x = torch.stack([x for _, _, x in rows])
    return LabeledRows(TensorRows(ids, x), targets), [row[:2] for row in rows]


def _check(strategy: str, made: Columns, ids: Sequence[str], raw: Tensor) -> None:
    if list(made.ids) != list(ids):
        raise NeedsError(f"{strategy} attached columns of other items than its {len(ids)} picks")
    if ROWS in made and made[ROWS].shape != raw.shape:
        raise NeedsError(
            f"{strategy} attached rows of shape {list(made[ROWS].shape)}, its picks have "
            f"{list(raw.shape)}; attached rows are decoded rows"
        )
    for name, column in made.items():
        bad = torch.isnan(column.reshape(len(ids), -1)).any(dim=1).cpu().numpy()
        if bad.any():
            item = ids[int(np.flatnonzero(bad)[0])]
            raise ScoreError(f"{strategy} attached {name!r} of item {item!r} is NaN; look at it")


FOLDER = "memory"


@dataclass(frozen=True)
class Recalled:
    """The memory with which a round chooses.

    Attributes:
        memory: the value.
        source: hash of the last round's file that it was made of; None where there is none.
    """

    memory: Memory = field(default_factory=dict)
    source: str | None = None


def recall(workspace: Workspace, round: int, committee: Committee) -> Recalled:
    """Return the memory of a round: what the strategy makes of the last batch's outcome.

    It is empty in the first round, for a strategy that remembers nothing, and where the last batch
    was chosen by another strategy, with other hyperparameters, or among other classes.

    Args:
        workspace: whose round it is.
        round: its number.
        committee: that is going to choose.
    """
    strategy = workspace.spec.strategy
    last = workspace.ledger.selection(workspace.name, round - 1) if _remembers(strategy) else None
    hash = None if last is None else last.provenance.get(FOLDER)
    if last is None or hash is None:
        return Recalled()
    if digest(last.provenance["strategy"]) != digest(workspace.spec.to_json()["strategy"]):
        return Recalled()
    file = workspace.ledger.columns(hash)[FOLDER].file
    stored = read_checkpoint(workspace.root / file).tree
    if stored["labels"] != workspace.task.labels.to_json():
        return Recalled()
    outcome = _outcome(workspace, round, committee, stored)
    return Recalled(strategy.remember(stored["memory"], outcome), hash)


def _outcome(
    workspace: Workspace, round: int, committee: Committee, stored: Mapping[str, Any]
) -> Outcome:
    ids = stored["ids"]
    begun = workspace.ledger.rounds(workspace.name)[round]
    labels = workspace.ledger.resolved(workspace.name, begun.labels_seq)
    labeled = torch.tensor([i in labels for i in ids], dtype=torch.bool)
    known = workspace.task.targets([labels[i] for i in ids if i in labels])
    targets = known.new_zeros(len(ids))
    targets[labeled] = known
    return Outcome(
        round=stored["round"],
        seed=stored["seed"],
        ids=ids,
        labeled=labeled,
        targets=targets,
        before=Columns(stored["before"], ids),
        after=Columns(_columns(workspace, committee, ids), ids),
        notes=stored["notes"],
    )


def keep_memory(
    workspace: Workspace,
    round: int,
    committee: Committee,
    picks: Sequence[Pick],
    recalled: Recalled,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Write what the next round's memory will be made of, commit it once, and return its record.

    Args:
        workspace: whose round it is.
        round: its number.
        committee: that chose.
        picks: in pick order.
        recalled: the memory with which they were chosen.
        notes: the objective's.

    Returns:
        ``{"memory": hash, "recalled": hash of the last round's}``; nothing where the strategy
        remembers nothing.
    """
    strategy, ids = workspace.spec.strategy, [pick.item for pick in picks]
    if not _remembers(strategy):
        return {}
    how = [told(strategy), options_record(workspace.options), recalled.source]
    hash = digest([FOLDER, workspace.name, round, committee.hash, *how, ids])
    record = {FOLDER: hash, "recalled": recalled.source}
    if FOLDER in workspace.ledger.columns(hash):  # an earlier try ended before its selection
        return record
    tree = {
        "memory": dict(recalled.memory),
        "labels": workspace.task.labels.to_json(),
        "round": round,
        "seed": workspace.spec.query_seed(round),
        "ids": ids,
        "before": _columns(workspace, committee, ids),
        "notes": {name: torch.from_numpy(array) for name, array in notes.items()},
    }
    file = f"{FOLDER}/{workspace.name}/{hash}.{uuid.uuid4().hex[:8]}.safetensors"
    write_durably(workspace.root / file, partial(write_checkpoint, kind="memory", tree=tree))
    failpoint("memory")
    part = ColumnsPart(hash, FOLDER, file, len(ids), key_sum(id_keys(ids)))
    commit_columns(workspace, round, part)
    return record


def _columns(workspace: Workspace, committee: Committee, ids: Sequence[str]) -> dict[str, Tensor]:
    """Return what the strategy recalls of a few items, by a committee, ``[k, …]``."""
    options = replace(workspace.options, device=home_of(workspace.options.device))
    rows = workspace.inputs.pool.take(ids)
    signals = workspace.spec.strategy.recalls()
    return run_signals(committee, signals, rows, keys=id_keys(ids), options=options)


def _remembers(strategy: Strategy) -> bool:
    return type(strategy).remember is not Strategy.remember
