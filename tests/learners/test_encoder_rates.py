"""The learning rate of an encoder's weights, beside that of all others."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.engine.spec import NetworkSpec
from rayal.engine.train import TrainRequest, context
from rayal.labels import ClassLabel
from rayal.learners import LabeledRows, Supervised, TensorRows, TrainContext, TrainData, TrainState
from rayal.learners.loop import keyed
from rayal.learners.supervised import OptimizerName, trained_groups
from rayal.models import TaskNet
from rayal.tasks import TableTask

ROWS = 6
PLAIN = Supervised(
    steps=4,
    batch=ROWS,
    epoch_steps=2,
    optimizer="sgd",
    momentum=0.0,
    weight_decay=0.0,
    schedule="constant",
    lr=0.1,
    encoder_lr=0.003,
)
TASK = TableTask(ClassLabel(("a", "b")), ("p", "q", "r"))


def network(seed: int, *, named: str = "encoder") -> TaskNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TaskNet({named: nn.Linear(3, 4), "act": nn.Tanh(), "head": nn.Linear(4, 2)})


def begun(learner: Supervised, named: str = "encoder") -> tuple[TrainState, TrainContext, Any]:
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(ROWS) % 2
    ids = tuple(f"i{n}" for n in range(ROWS))
    data = TrainData(LabeledRows(TensorRows(ids, x), y))
    base = context(learner, NetworkSpec("mlp"), TASK, ROWS)
    statistics = {"mean": torch.zeros(3), "std": torch.ones(3)}
    ctx = dataclasses.replace(base, statistics=statistics, build=partial(network, named=named))
    with keyed(ctx, "begin"):
        return learner.begin(ctx, data), ctx, data


def stepped(learner: Supervised, named: str = "encoder", steps: int = 1) -> TrainState:
    from rayal.learners import LabeledBatch
    from rayal.types import id_keys

    state, ctx, data = begun(learner, named)
    rows, y = data.labeled.rows, data.labeled.targets
    for step in range(steps):
        state.step = step
        batch = LabeledBatch(rows.ids, id_keys(rows.ids), (rows.x,), y)
        learner.step(state, {"labeled": batch}, ctx)
    return state


def moves(before: TrainState, after: TrainState) -> dict[str, Tensor]:
    new = dict(after.networks["task"].named_parameters())
    old = before.networks["task"].named_parameters()
    return {name: (new[name] - p).detach() for name, p in old}


def test_each_part_moves_by_its_own_rate() -> None:
    start, _, data = begun(PLAIN)
    net = start.networks["task"]
    loss = F.cross_entropy(net(data.labeled.rows.x), data.labeled.targets)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    made = moves(start, stepped(PLAIN))
    for (name, _), gradient in zip(net.named_parameters(), gradients, strict=True):
        rate = 0.003 if name.startswith("stages.0.") else 0.1
        torch.testing.assert_close(made[name], -rate * gradient, rtol=1e-4, atol=1e-7)


def test_the_schedule_is_that_of_both_rates() -> None:
    learner = dataclasses.replace(PLAIN, schedule="cosine", warmup=0.5)
    state, _, _ = begun(learner)
    (optimizer,) = state.optimizers.values()
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        state.schedulers["task"].step()
    for step, (others, encoder) in enumerate(rates):
        assert others == pytest.approx(0.1 * learner.factor(step, 4))
        assert encoder == pytest.approx(0.003 * learner.factor(step, 4))


def test_a_network_without_an_encoder_knows_one_rate() -> None:
    same = [
        stepped(dataclasses.replace(PLAIN, encoder_lr=rate), named="first", steps=3)
        for rate in (0.003, 0.9)
    ]
    assert all(move.eq(0).all() for move in moves(*same).values())
    assert all(isinstance(p, nn.Parameter) for p in trained_groups(network(0, named="first"), 1.0))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_training_goes_on_from_a_checkpoint_with_both_rates(optimizer: OptimizerName) -> None:
    learner = dataclasses.replace(PLAIN, optimizer=optimizer, momentum=0.9)
    whole, ctx, data = begun(learner)
    resumed, _, _ = begun(learner)
    from rayal.learners import LabeledBatch
    from rayal.types import id_keys

    rows = data.labeled.rows
    batch = LabeledBatch(rows.ids, id_keys(rows.ids), (rows.x,), data.labeled.targets)
    for step in range(4):
        whole.step = step
        if step == 2:
            resumed.load_state_dict(deepcopy(whole.state_dict()))
        learner.step(whole, {"labeled": batch}, ctx)
        if step >= 2:
            resumed.step = step
            learner.step(resumed, {"labeled": batch}, ctx)
    assert all(move.eq(0).all() for move in moves(whole, resumed).values())


def test_a_frozen_encoder_is_in_no_group() -> None:
    net = network(0)
    assert net.encoder is not None
    net.encoder.requires_grad_(False)
    assert len(trained_groups(net, 1.0)) == 2  # weight and bias of the head


def test_weights_count_by_their_contents_and_not_by_their_place(tmp_path: Path) -> None:
    def hash(file: Path) -> str:
        network = NetworkSpec("minilm", {"weights": str(file)})
        return TrainRequest(
            learner=PLAIN, network=network, task=TASK, labels={}, members=1, seed=0, round=0
        ).hash

    places = [tmp_path / name for name in ("a.bin", "b.bin", "c.bin")]
    for place, contents in zip(places, (b"one", b"one", b"two"), strict=True):
        place.write_bytes(contents)
    hashes = [hash(place) for place in places]
    assert hashes[0] == hashes[1] != hashes[2]
