"""What a strategy remembers from round to round: a value stored with each round's picks.

A round's file holds the memory with which its batch was chosen, the columns of the picks by the
committee that chose, and what the objective noted. From these, the labels that came and the next
committee, the next round computes its own memory: so nothing is kept anywhere else, and a round
that was killed computes the same value again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayal.engine.forward import run_signals
from rayal.engine.scan_options import options_record
from rayal.failpoints import failpoint
from rayal.learners.checkpoint import read_checkpoint, write_checkpoint
from rayal.ledger import ColumnsPart, Pick
from rayal.models.committee import Committee, home_of
from rayal.pool.storage import write_durably
from rayal.strategies.base import Memory, Outcome, Strategy
from rayal.types import Columns, digest, id_keys, key_sum, told

if TYPE_CHECKING:
    from rayal.engine.rounds import Stages

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
