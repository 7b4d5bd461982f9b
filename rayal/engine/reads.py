"""What a learner reads of the previous round's scan: columns of items that are unlabeled now."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rayal.engine.shards import column_tensor, open_columns
from rayal.errors import StorageError
from rayal.selection.devices import widened
from rayal.types import Columns, digest

if TYPE_CHECKING:
    from rayal.engine.driver import Project


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
