"""Evaluation: the predictions of a committee on the test items, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayal.engine.scan import run_signals
from rayal.engine.spec import ScanOptions
from rayal.engine.workspace import Workspace
from rayal.failpoints import failpoint
from rayal.labels import Label
from rayal.models.committee import Committee
from rayal.pool.reader import Part, Pool
from rayal.signals import prediction_of

Truth = Callable[[Sequence[str]], Sequence[Label]]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a committee on the test items, for the worker of one part.

    Args:
        pool: the pool's snapshot.
        committee: the trained members.
        options: how the network is run.
    """

    pool: Pool
    committee: Committee
    options: ScanOptions

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> tuple[str, Tensor]:
        """Return the part's name, and log-probabilities ``[N, C]`` or moments ``[N, 3]``."""
        table = self.pool.read(part)
        keys = table.column("key").to_numpy()
        self.committee.move(self.options.device)
        signal = prediction_of(self.committee.task.target)
        predictions = run_signals(
            self.committee, (signal,), table, keys=keys, options=self.options, report=report
        )
        return part.part, predictions[signal.names()[0]]


def evaluate(
    workspace: Workspace, round: int, committee: Committee, truth: Truth | None = None
) -> None:
    """Measure a round's committee on the test items, once, and record the metrics.

    Args:
        workspace: whose round it is.
        round: its number.
        committee: of the round.
        truth: labels of test items by id; by default those in the ledger, if all are there.
    """
    if workspace.stage(round, "evaluate") is not None:
        return
    started = time.perf_counter()
    known = truth or _ledger_truth(workspace)
    parts = () if known is None else workspace.inputs.pool.parts_of("test")
    job = Evaluation(workspace.inputs.pool, committee, workspace.options)
    of_part = dict(workspace.map_parts("evaluate", job, parts, parts))
    predictions, targets = [], []
    for part in parts:
        ids = workspace.pool.read(part).column("id").to_pylist()
        predictions.append(of_part[part.part])
        targets.append(workspace.task.targets(list(known(ids)) if known else []))
    failpoint("evaluate")
    metrics: Mapping[str, float] = {}
    if targets:
        metrics = workspace.task.metrics(torch.cat(predictions), torch.cat(targets))
    output = {"metrics": dict(metrics), "items": sum(part.rows for part in parts)}
    workspace.finish(round, "evaluate", output, started=started)


def _ledger_truth(workspace: Workspace) -> Truth | None:
    """Return the ledger's labels of the test items, if it has all of them."""
    resolved = workspace.ledger.resolved(workspace.name)
    for part in workspace.pool.parts_of("test"):
        ids = workspace.pool.read(part).column("id").to_pylist()
        if any(i not in resolved for i in ids):
            return None
    return lambda ids: [resolved[i] for i in ids]
