"""What rounds pass on: columns that training reads, rows made of picks, and memory."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.engine.columns import column_array, column_tensor, open_columns
from rayal.engine.scan import options_record, run_signals
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

if TYPE_CHECKING:
    from rayal.engine.driver import Project
    from rayal.engine.rounds import Stages


def names_read(project: Project) -> tuple[str, ...]:
    """Return the columns that the learner reads."""
    return tuple(name for signal in project.spec.learner.reads() for name in signal.names())


def hash_read(project: Project, round: int) -> str | None:
    """Return the hash of the columns that a round's training reads.

    None where the learner reads none, in the first round, and where the last round was scanned for
    a learner that did not want them, or by a model of other classes. What a round has recorded
    stands, also when the columns are gone: its committee's hash depends on it.
    """
    names = names_read(project)
    begun = project.ledger.stage(project.name, round, "prepare") if names else None
    if begun is not None and "reads" in begun.output:
        recorded: str | None = begun.output["reads"]
        return recorded
    stage = project.ledger.stage(project.name, round - 1, "scan") if names and round else None
    hash = None if stage is None else stage.output["columns"]
    if stage is None or hash is None:
        return None
    if stage.output.get("labels") != digest(project.task.labels.to_json()):
        return None
    for part in project.ledger.columns(hash).values():
        held = open_columns(Path(project.root) / part.file).column_names
        return str(hash) if set(names) <= set(held) else None
    return None


def columns_read(project: Project, hash: str | None, labeled: Collection[str]) -> Columns | None:
    """Return the columns of the items that were scanned and are not labeled, sorted by id.

    Items that came to the pool since are not among them.

    Args:
        project: whose learner reads them.
        hash: what ``hash_read`` gave.
        labeled: ids of the training set.

    Raises:
        StorageError: they are gone.
    """
    if hash is None:
        return None
    names, pool = names_read(project), project.inputs.pool
    committed = project.ledger.columns(hash)
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
        table = open_columns(Path(project.root) / committed[part.part].file).combine_chunks()
        here = pool.read(part).column("id").to_pylist()
        rows = [row for row, item in enumerate(here) if item not in labeled]
        ids += [here[row] for row in rows]
        for name in names:
            column = column_tensor(table.column(name).chunk(0))
            values[name].append(widened(column[torch.tensor(rows, dtype=torch.int64)]))
    order = torch.from_numpy(np.argsort(np.array(ids, dtype=object), kind="stable"))
    made = {name: torch.cat(parts)[order] for name, parts in values.items()}
    return Columns(made, [ids[i] for i in order.tolist()])


ROWS = "x"  # the column whose rows are trained on


def attached_to(
    stages: Stages, round: int, committee: Committee, picks: Sequence[Pick]
) -> dict[str, str]:
    """Let the strategy attach columns to its picks, commit them once, and return their record.

    Args:
        stages: whose round it is.
        round: its number.
        committee: that chose.
        picks: in pick order.

    Returns:
        ``{"attached": hash}``; nothing where the strategy attaches nothing.
    """
    strategy, ids = stages.spec.strategy, [pick.item for pick in picks]
    hash = digest([ATTACHED, committee.hash, told(strategy), stages.spec.scan.device, ids])
    if hash_is_known(stages, hash):  # an earlier try ended before its selection was committed
        return {ATTACHED: hash}
    if not ids:
        return {}
    place = home_of(stages.options.device)
    committee.move(place)
    raw = stages.inputs.task.decode(stages.inputs.pool.take(ids)).to(place)
    with evaluating(*committee.nets):
        made = strategy.attach(committee, raw, ids)
    if not len(made):
        return {}
    _check(type(strategy).__name__, made, ids, raw)
    file = f"{ATTACHED}/{stages.name}/{hash}.{uuid.uuid4().hex[:8]}.arrow"
    columns = {name: column_array(column) for name, column in made.items()}
    table = pa.table({"id": pa.array(ids, pa.large_string()), **columns})
    write_part(Path(stages.root) / file, table, {"columns": hash})
    part = ColumnsPart(hash, ATTACHED, file, len(ids), key_sum(id_keys(ids)))
    stages.commit_columns(round, part)
    return {ATTACHED: hash}


def hash_is_known(stages: Stages, hash: str) -> bool:
    """Return whether attached columns are committed under a hash."""
    return ATTACHED in stages.ledger.columns(hash)


def attached_columns(stages: Stages, round: int) -> tuple[str, Columns] | None:
    """Return what a round's strategy attached to its picks, with its hash; None for nothing."""
    selection = stages.ledger.selection(stages.name, round)
    hash = None if selection is None else selection.provenance.get(ATTACHED)
    if hash is None:
        return None
    part = stages.ledger.columns(hash)[ATTACHED]
    table = read_mapped(Path(stages.root) / part.file).combine_chunks()
    names = [name for name in table.column_names if name != "id"]
    made = {name: column_tensor(table.column(name).chunk(0)) for name in names}
    return hash, Columns(made, table.column("id").to_pylist())


def attached_rows(
    project: Project, round: int, labels: Mapping[str, Label]
) -> tuple[LabeledRows | None, list[Any] | None]:
    """Return the attached rows of earlier rounds whose items are labeled, and what names them.

    Args:
        project: whose rows they are.
        round: that is going to train.
        labels: of the round's training set; a row has its item's label.
    """
    rows: list[tuple[str, str, Tensor]] = []
    for earlier in range(round):
        found = attached_columns(project, earlier)
        if found is not None and ROWS in found[1]:
            hash, made = found
            rows += [
                (item, hash, x) for item, x in zip(made.ids, made[ROWS], strict=True)
                if item in labels
            ]  # fmt: skip
    if not rows:
        return None, None
    rows.sort(key=lambda row: row[:2])
    ids = [item for item, _, _ in rows]
    targets = project.inputs.task.targets([labels[item] for item in ids])
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


def recall(stages: Stages, round: int, committee: Committee) -> Recalled:
    """Return the memory of a round: what the strategy makes of the last batch's outcome.

    It is empty in the first round, for a strategy that remembers nothing, and where the last batch
    was chosen by another strategy, with other hyperparameters, or among other classes.

    Args:
        stages: whose round it is.
        round: its number.
        committee: that is going to choose.
    """
    strategy = stages.spec.strategy
    last = stages.ledger.selection(stages.name, round - 1) if _remembers(strategy) else None
    hash = None if last is None else last.provenance.get(FOLDER)
    if last is None or hash is None:
        return Recalled()
    if digest(last.provenance["strategy"]) != digest(stages.spec.to_json()["strategy"]):
        return Recalled()
    file = stages.ledger.columns(hash)[FOLDER].file
    stored = read_checkpoint(Path(stages.root) / file).tree
    if stored["labels"] != stages.task.labels.to_json():
        return Recalled()
    outcome = _outcome(stages, round, committee, stored)
    return Recalled(strategy.remember(stored["memory"], outcome), hash)


def _outcome(
    stages: Stages, round: int, committee: Committee, stored: Mapping[str, Any]
) -> Outcome:
    ids = stored["ids"]
    begun = stages.ledger.rounds(stages.name)[round]
    labels = stages.ledger.resolved(stages.name, begun.labels_seq)
    labeled = torch.tensor([i in labels for i in ids], dtype=torch.bool)
    known = stages.task.targets([labels[i] for i in ids if i in labels])
    targets = known.new_zeros(len(ids))
    targets[labeled] = known
    return Outcome(
        round=stored["round"],
        seed=stored["seed"],
        ids=ids,
        labeled=labeled,
        targets=targets,
        before=Columns(stored["before"], ids),
        after=Columns(_columns(stages, committee, ids), ids),
        notes=stored["notes"],
    )


def keep_memory(
    stages: Stages,
    round: int,
    committee: Committee,
    picks: Sequence[Pick],
    recalled: Recalled,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Write what the next round's memory will be made of, commit it once, and return its record.

    Args:
        stages: whose round it is.
        round: its number.
        committee: that chose.
        picks: in pick order.
        recalled: the memory with which they were chosen.
        notes: the objective's.

    Returns:
        ``{"memory": hash, "recalled": hash of the last round's}``; nothing where the strategy
        remembers nothing.
    """
    strategy, ids = stages.spec.strategy, [pick.item for pick in picks]
    if not _remembers(strategy):
        return {}
    how = [told(strategy), options_record(stages.options), recalled.source]
    hash = digest([FOLDER, stages.name, round, committee.hash, *how, ids])
    record = {FOLDER: hash, "recalled": recalled.source}
    if FOLDER in stages.ledger.columns(hash):  # an earlier try ended before its selection
        return record
    tree = {
        "memory": dict(recalled.memory),
        "labels": stages.task.labels.to_json(),
        "round": round,
        "seed": stages.spec.query_seed(round),
        "ids": ids,
        "before": _columns(stages, committee, ids),
        "notes": {name: torch.from_numpy(array) for name, array in notes.items()},
    }
    file = f"{FOLDER}/{stages.name}/{hash}.{uuid.uuid4().hex[:8]}.safetensors"
    write_durably(Path(stages.root) / file, partial(write_checkpoint, kind="memory", tree=tree))
    failpoint("memory")
    part = ColumnsPart(hash, FOLDER, file, len(ids), key_sum(id_keys(ids)))
    stages.commit_columns(round, part)
    return record


def _columns(stages: Stages, committee: Committee, ids: Sequence[str]) -> dict[str, Tensor]:
    """Return what the strategy recalls of a few items, by a committee, ``[k, …]``."""
    options = replace(stages.options, device=home_of(stages.options.device))
    rows = stages.inputs.pool.take(ids)
    signals = stages.spec.strategy.recalls()
    return run_signals(committee, signals, rows, keys=id_keys(ids), options=options)


def _remembers(strategy: Strategy) -> bool:
    return type(strategy).remember is not Strategy.remember
