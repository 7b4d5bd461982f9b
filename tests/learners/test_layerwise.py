"""Layer-wise pre-training: what moves when, what it reaches, what it refuses, what it leaves."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import TASK, DirStore, Killed, same, tiny_context, tiny_data, tiny_net
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rayal.engine.spec import NetworkSpec
from rayal.engine.train import context
from rayal.errors import NeedsError, ScoreError, SettingsError
from rayal.labels import ClassLabel
from rayal.learners import LayerwisePretrained, Supervised, TensorRows, TrainContext, fit
from rayal.learners.checkpoint import read_checkpoint
from rayal.learners.data import LabeledRows, PoolData
from rayal.learners.layerwise import LayerTraining, dense_layers
from rayal.learners.scaling import Scale
from rayal.models import HookedNet, TaskNet
from rayal.models.build import build_network
from rayal.tasks import TableTask

PIXELS = TableTask(ClassLabel(tuple("0123456789")), tuple(f"p{i}" for i in range(64)))
SIGMOID = NetworkSpec("mlp", {"widths": [24, 12], "activation": "sigmoid", "dropout": 0.2})
KINDS = pytest.mark.parametrize("kind", ["autoencoder", "rbm"])


def digit_rows(n: int = 600) -> TensorRows:
    x = torch.from_numpy(load_digits(return_X_y=True)[0][:n]).float()
    return TensorRows([f"d{i:04d}" for i in range(n)], x)


def pretraining(network: NetworkSpec = SIGMOID, **changes: Any) -> tuple[Any, TrainContext]:
    given = {"pretrain_steps": 60, "pretrain_batch": 50, **changes}
    learner = LayerwisePretrained(**given)
    asked = learner.pretraining(context(learner, network, PIXELS))
    assert isinstance(asked, LayerTraining)
    return asked, context(asked, network, PIXELS, seed=1)


def pretrained(folder: Path, network: NetworkSpec = SIGMOID, **changes: Any) -> Any:
    """Return the final state, and the weights as members get them."""
    learner, ctx = pretraining(network, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    store = DirStore(folder)
    state = fit(learner, PoolData(unlabeled=digit_rows()), ctx, checkpoint=store)
    return state, weights_of(store)


def weights_of(store: DirStore) -> dict[str, Tensor]:
    latest = store.latest()
    assert latest is not None
    nets = read_checkpoint(latest[1]).tree["nets"]
    return {f"{net}.{name}": t for net, held in nets.items() for name, t in held.items()}


@KINDS
def test_one_layer_moves_at_a_time_and_the_head_never(kind: Any, tmp_path: Path) -> None:
    learner, ctx = pretraining(kind=kind, pretrain_steps=6)
    learner = replace(learner, epoch_steps=3)
    store = DirStore(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(ctx.chance("begin"))
        before = learner.begin(ctx, PoolData(unlabeled=digit_rows())).networks["task"].state_dict()
    nets = [{name: t.clone() for name, t in before.items()}]
    for epoch in range(1, 5):
        store.kill_after = epoch
        with pytest.raises(Killed):
            fit(learner, PoolData(unlabeled=digit_rows()), ctx, checkpoint=store)
        tree = read_checkpoint(store.rows[epoch][0]).tree
        nets.append(tree["nets" if epoch == 4 else "networks"])
    held = [{n.removeprefix("task."): t for n, t in net.items()} for net in nets[:-1]]
    held.append(nets[-1]["task"])
    moved = [{n for n in before if not torch.equal(a[n], b[n])} for a, b in pairwise(held)]
    first, second = (
        {"stages.1.0.weight", "stages.1.0.bias"},
        {"stages.3.0.weight", "stages.3.0.bias"},
    )
    assert moved == [first, first, second, second]


@KINDS
def test_a_killed_pretraining_goes_on_to_the_same_bits(kind: Any, tmp_path: Path) -> None:
    learner, ctx = pretraining(kind=kind, pretrain_steps=7)
    learner = replace(learner, epoch_steps=4)
    data = PoolData(unlabeled=digit_rows())
    whole = DirStore(tmp_path / "whole")
    whole.folder.mkdir()
    fit(learner, data, ctx, checkpoint=whole)
    for epoch in (1, 2, 3, 4):
        store = DirStore(tmp_path / str(epoch), kill_before=epoch)
        store.folder.mkdir()
        with pytest.raises(Killed):
            fit(learner, data, ctx, checkpoint=store)
        fit(learner, data, ctx, checkpoint=store)
        assert same(weights_of(store), weights_of(whole))


class Linear(TaskNet):
    """One linear hidden layer."""

    def __init__(self, width: int) -> None:
        hidden = nn.Sequential(nn.Linear(12, width), nn.Identity())
        super().__init__({"hidden": hidden, "head": nn.Linear(width, 3)})


@pytest.mark.parametrize(("width", "reached"), [(3, True), (2, False)])
def test_linear_units_reconstruct_data_of_their_rank(
    width: int, reached: bool, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn((400, 3), generator=draw) @ torch.randn((3, 12), generator=draw)
    task = TableTask(TASK.labels, tuple("abcdefghijkl"))
    learner = LayerTraining(
        steps=1000, layer_steps=1000, epoch_steps=500, batch=100, inputs="standard",
        corruption=0.0, lr=1e-2,
    )  # fmt: skip
    rows = TensorRows([f"{i:03d}" for i in range(400)], x)
    ctx = replace(tiny_context(learner, tiny_data(), build=lambda seed: Linear(width)), task=task)
    state = fit(learner, PoolData(unlabeled=rows), ctx, checkpoint=DirStore(tmp_path))
    (layer,) = dense_layers(state.networks["task"])
    scaled = state.networks["scale"](x)
    bias = next(iter(state.networks["visible"].parameters()))
    error = (layer(scaled) @ layer.linear.weight + bias - scaled).square().mean().item()
    _, values, _ = torch.linalg.svd(scaled - scaled.mean(dim=0))
    least = values[width:].square().sum().item() / scaled.numel()  # Eckart & Young
    if reached:
        assert error < 1e-3 and least < 1e-6
    else:
        assert 0.99 * least <= error < 1.1 * least and least > 0.05


@pytest.mark.parametrize("inputs", ["unit", "standard"])
@KINDS
def test_the_error_falls_in_every_layer(kind: Any, inputs: Any) -> None:
    rate, steps = (0.03, 400) if (kind, inputs) == ("rbm", "standard") else (None, 200)
    learner, ctx = pretraining(kind=kind, inputs=inputs, pretrain_steps=steps, pretrain_lr=rate)
    errors: list[float] = []

    class Watched(LayerTraining):
        def step(self, *given: Any) -> dict[str, float]:
            losses = super().step(*given)
            errors.append(losses["loss"])
            return losses

    watched = Watched(**{f.name: getattr(learner, f.name) for f in fields(learner)})

    class Nowhere(DirStore):
        def save(self, epoch: int, write: Any, final: bool) -> None:
            """Keep nothing."""

    fit(watched, PoolData(unlabeled=digit_rows()), ctx, checkpoint=Nowhere(Path()))
    for layer in (errors[:steps], errors[steps:]):
        assert sum(layer[-20:]) < 0.97 * sum(layer[:20])


@KINDS
def test_members_start_from_the_pretrained_features_of_raw_rows(kind: Any, tmp_path: Path) -> None:
    state, weights = pretrained(tmp_path, kind=kind)
    rows = digit_rows()
    labeled = rows.x[:40]
    learner = LayerwisePretrained(kind=kind, pretrain_steps=60)
    statistics = PIXELS.fit(labeled)
    ctx = replace(
        context(learner, SIGMOID, PIXELS, 40, seed=1), statistics=statistics, weights=weights
    )
    net, trained = learner.networks(ctx)["task"], state.networks["task"]
    scaled = state.networks["scale"](rows.x)
    for layer in dense_layers(trained):
        scaled = layer(scaled)
    net.eval()
    assert isinstance(net, TaskNet)
    found = net.embed(PIXELS.transform(rows.x, statistics))
    torch.testing.assert_close(found, scaled, rtol=1e-3, atol=1e-4)
    fresh = build_network(
        "mlp", SIGMOID.params, input_shape=(64,), n_outputs=10, seed=ctx.chance("network")
    )
    assert torch.equal(net.head.weight, fresh.head.weight)  # no label was there to train it
    other = learner.networks(replace(ctx, member=1))["task"]
    assert isinstance(other, TaskNet)
    assert torch.equal(other.stages[3][0].weight, net.stages[3][0].weight)  # type: ignore[index]
    assert not torch.equal(other.head.weight, net.head.weight)


def test_without_steps_it_is_supervised_bit_for_bit(tmp_path: Path) -> None:
    plain = Supervised(steps=12, epoch_steps=4, batch=8, augment=True)
    shared = {f.name: getattr(plain, f.name) for f in fields(plain)}
    none = LayerwisePretrained(**shared, pretrain_steps=0)
    mlp = partial(
        NetworkSpec("mlp", {"widths": [8], "dropout": 0.3}).build, TASK, torch.device("cpu")
    )
    states = []
    for name, learner in (("plain", plain), ("none", none)):
        data = tiny_data()
        ctx = tiny_context(learner, data, build=mlp)
        assert learner.pretraining(ctx) is None
        (tmp_path / name).mkdir()
        states.append(fit(learner, data, ctx, checkpoint=DirStore(tmp_path / name)))
    assert same(states[0].state_dict(), states[1].state_dict())


def test_the_batches_hold_no_label_and_a_pretraining_takes_none() -> None:
    learner, _ = pretraining()
    assert [s.source for s in learner.streams()] == ["unlabeled"]
    data = PoolData(unlabeled=digit_rows(5))
    assert len(data.labeled) == 0 and data.attached is None
    some = LabeledRows(digit_rows(2), torch.zeros(2))
    for given in (
        {"labeled": some, "unlabeled": digit_rows(2)},
        {"attached": some, "unlabeled": digit_rows(2)},
        {},
        {"unlabeled": digit_rows(0)},
    ):
        with pytest.raises(NeedsError, match="takes unlabeled rows alone"):
            PoolData(**given)


def test_a_missing_pretraining_is_refused() -> None:
    learner = LayerwisePretrained(steps=5)
    mlp = partial(NetworkSpec("mlp", {"widths": [8]}).build, TASK, torch.device("cpu"))
    data = tiny_data()
    with pytest.raises(NeedsError, match="no pre-trained weights"):
        learner.begin(tiny_context(learner, data, build=mlp), data)


def test_networks_that_are_no_dense_stack_are_refused() -> None:
    conv = build_network("small_cnn", {}, input_shape=(1, 8, 8), n_outputs=3, seed=0)
    linear = build_network("mlp", {"widths": []}, input_shape=(4,), n_outputs=3, seed=0)
    normed = TaskNet(
        {"h": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), "head": nn.Linear(8, 3)}
    )
    late = TaskNet(
        {
            "h": nn.Sequential(nn.Linear(4, 8), nn.ReLU()),
            "f": nn.Flatten(1),
            "head": nn.Linear(8, 3),
        }
    )
    bare = TaskNet(
        {"h": nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU()), "o": nn.Linear(8, 3)}
    )
    cases = [
        (conv, "stage 'conv1'"),
        (linear, "no hidden layer"),
        (HookedNet(tiny_net(0), (4,)), "no stages are known"),
        (normed, "stage 'h'"),
        (late, "stage 'f'"),
        (bare, "stage 'h'"),
    ]
    for net, reason in cases:
        with pytest.raises(NeedsError, match=f"{reason}.*network mlp"):
            dense_layers(net)


def test_machines_want_sigmoid_units() -> None:
    learner = LayerwisePretrained(kind="rbm")
    relu = NetworkSpec("mlp", {"widths": [8]})
    for ask in (learner.networks, learner.pretraining):
        with pytest.raises(NeedsError, match="activation: sigmoid"):
            ask(context(learner, relu, PIXELS))
    assert [
        layer.name for layer in dense_layers(SIGMOID.build(PIXELS, torch.device("cpu"), 0))
    ] == [
        "hidden1",
        "hidden2",
    ]


def test_choices_are_checked() -> None:
    for name in ("kind", "inputs"):
        with pytest.raises(SettingsError, match=f"layerwise_pretrained.{name}: 'x'"):
            given: dict[str, Any] = {name: "x"}
            LayerwisePretrained(**given)


def test_machines_start_as_published_and_binary_units_get_the_larger_rate() -> None:
    learner, ctx = pretraining(kind="rbm", inputs="standard")
    state = learner.begin(ctx, PoolData(unlabeled=digit_rows()))
    rates = [o.param_groups[0]["lr"] for o in state.optimizers.values()]
    assert rates == [1e-3, 0.1]
    first, _ = dense_layers(state.networks["task"])
    assert 0.008 < first.linear.weight.std().item() < 0.012
    assert first.linear.bias.abs().max().item() == 0.0
    decays = [g["weight_decay"] for g in state.optimizers["layer1"].param_groups]
    assert decays == [1e-4, 0]
    assert isinstance(state.networks["scale"], Scale)


def test_a_pretraining_that_diverges_names_its_own_remedy(tmp_path: Path) -> None:
    learner, ctx = pretraining(kind="rbm", inputs="standard", pretrain_lr=1e30)
    with pytest.raises(ScoreError, match=r"set its pretrain_lr lower.*all rows of the pool"):
        fit(learner, PoolData(unlabeled=digit_rows()), ctx, checkpoint=DirStore(tmp_path))
