"""The learner pbp: checkpoints, passes and their order, and what it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from learner_cases import DirStore, same

from rayal.engine.spec import NetworkSpec
from rayal.labels import NumberLabel
from rayal.learners import LabeledRows, Supervised, TensorRows, TrainContext, TrainData, fit
from rayal.models import build_network
from rayal.models.probabilistic import ProbabilisticNet
from rayal.strategies.pbp import PBP, ProbabilisticBackpropagation
from rayal.tasks import TableTask

TASK = TableTask(NumberLabel(), ("a", "b"))
NET = NetworkSpec("pbp", {"hidden": (8,)})
QUICK = ProbabilisticBackpropagation(steps=6, epoch_steps=2)


def rows(n: int = 30) -> TrainData:
    """Return rows whose number is far from 0 and of another scale than 1."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 2, generator=draw)
    y = 500.0 + 40.0 * (x[:, 0] - x[:, 1] ** 2).double()
    return TrainData(LabeledRows(TensorRows([f"i{i:03d}" for i in range(n)], x), y))


def context(data: TrainData, learner: ProbabilisticBackpropagation, **changes: Any) -> TrainContext:
    x = data.labeled.rows.take(torch.arange(len(data.labeled)))
    values: dict[str, Any] = {
        "task": TASK,
        "statistics": TASK.fit(x) | TASK.fit_targets(data.labeled.targets),
        "n_labeled": len(data.labeled),
        "n_outputs": 1,
        "steps": learner.steps,
        "seed": 1,
        "round": 0,
        "member": 0,
        "build": lambda seed: NET.build(TASK, torch.device("cpu"), seed),
    }
    return TrainContext(**values | changes)


def trained(
    folder: Path, learner: ProbabilisticBackpropagation = QUICK, **changes: Any
) -> ProbabilisticNet:
    data = changes.pop("data", None) or rows()
    folder.mkdir(parents=True, exist_ok=True)
    ctx = context(data, learner, **changes)
    state = fit(learner, data, ctx, checkpoint=DirStore(folder))
    return cast(ProbabilisticNet, state.networks["task"])


def variance_at(net: ProbabilisticNet, *row: float) -> float:
    return float(net(torch.tensor([row]))[0, 1])


def test_a_pass_takes_every_row_in_an_order_of_the_seed(tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    @dataclasses.dataclass(frozen=True)
    class Watched(ProbabilisticBackpropagation):
        def step(self, state: Any, batches: Any, ctx: Any) -> dict[str, float]:
            seen.append(batches["labeled"].ids)
            return super().step(state, batches, ctx)

    data = rows(100)  # more than a batch of other learners
    first = trained(tmp_path / "a", Watched(steps=3), data=data)
    assert [sorted(ids) == list(data.labeled.rows.ids) for ids in seen] == [True] * 3
    assert len(set(seen)) == 3
    again = trained(tmp_path / "b", Watched(steps=3), data=data)
    assert same(first.state_dict(), again.state_dict()) and seen[3:] == seen[:3]
    other = trained(tmp_path / "c", Watched(steps=3), data=data, member=1)
    assert seen[6:] != seen[:3] and not same(first.state_dict(), other.state_dict())


def test_it_learns_in_units_of_the_standardised_number(tmp_path: Path) -> None:
    data = rows(60)
    learner = ProbabilisticBackpropagation(steps=30)
    net = trained(tmp_path, learner, data=data)
    ctx = context(data, learner)
    x = data.labeled.rows.take(torch.arange(60))
    moments = TASK.moments(net(TASK.transform(x, ctx.statistics)), ctx.statistics)
    y = data.labeled.targets
    rmse = (moments[:, 0] - y).square().mean().sqrt().item()
    assert rmse < 0.5 * y.std().item()
    noise = moments[0, 2].item()
    assert 0.2 * rmse**2 < noise < 5.0 * rmse**2
    assert (moments[:, 1] > 0).all() and moments.dtype == torch.float64


def test_passes_are_its_own_and_the_same_in_all_rounds() -> None:
    own = PBP().trained_by(Supervised(steps=300, batch=16))
    assert own == ProbabilisticBackpropagation(steps=40)
    chosen = ProbabilisticBackpropagation(steps=10)
    assert PBP().trained_by(chosen) is chosen


def test_every_pass_counts_the_rows_again(tmp_path: Path) -> None:
    few, many = (trained(tmp_path / str(n), ProbabilisticBackpropagation(steps=n)) for n in (2, 40))
    assert variance_at(many, 0.0, 0.0) < variance_at(few, 0.0, 0.0)


def test_initial_weights_are_as_published(tmp_path: Path) -> None:
    net = build_network("pbp", {"hidden": (400,)}, input_shape=(24,), n_outputs=1, seed=0)
    assert isinstance(net, ProbabilisticNet)
    first = net.means[0]
    assert first.shape == (400, 25) and first.std().item() == pytest.approx(0.2, rel=0.02)
    assert all((v == 1.2).all() for v in net.variances)
    assert net.noise.tolist() == [6.0, 6.0] == net.prior.tolist()
