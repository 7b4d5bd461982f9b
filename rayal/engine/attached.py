"""Rows that a strategy makes of its picks: stored with the round, trained on from the next one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.engine.shards import column_array, column_tensor
from rayal.errors import NeedsError, ScoreError
from rayal.labels import Label
from rayal.learners.base import LabeledRows, TensorRows
from rayal.ledger import ColumnsPart, Pick
from rayal.models.committee import Committee, home_of
from rayal.models.dropout import evaluating
from rayal.pool.storage import ATTACHED, read_mapped, write_part
from rayal.types import Columns, digest, id_keys, key_sum, told

if TYPE_CHECKING:
    from rayal.engine.driver import Project
    from rayal.engine.rounds import Stages

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
