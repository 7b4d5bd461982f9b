"""Task networks: stages, embedding, head and taps, for every way to name a network."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayal.errors import NeedsError, SettingsError, UnknownNameError
from rayal.models import HookedNet, TaskNet, build_network, evaluating
from rayal.registry import networks

CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("mlp", {}, (5,)),
    ("mlp", {"widths": [], "dropout": 0.0}, (5,)),
    ("mlp", {"widths": [8, 7, 6], "dropout": 0.2}, (1, 4, 4)),
    ("small_cnn", {}, (1, 28, 28)),
    ("small_cnn", {"widths": [4, 4, 4, 8], "dropout": 0.1}, (3, 9, 17)),
    ("resnet18_small", {"dropout": 0.3}, (1, 8, 8)),
    ("torchvision:shufflenet_v2_x0_5", {"dropout": 0.3}, (1, 32, 32)),
    ("test_networks:branching", {"width": 6}, (5,)),
    ("test_networks:staged", {}, (5,)),
]
STAGED = CASES[:6] + CASES[8:]
IDS = [f"{n}-{i}" for i, (n, _, _) in enumerate(CASES)]


class Branching(nn.Module):
    """Runs its layers in another order than it defines them, one of them unused."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.answer = nn.Linear(width, outputs)
        self.hidden = nn.Linear(inputs, width)
        self.unused = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.answer(torch.tanh(self.hidden(x)))
        return logits


class WithoutHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.answer = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x.mean(dim=(2, 3)))[:, :, None, None]
        logits: Tensor = self.answer(x * gates).mean(dim=(2, 3))
        return logits


def branching(input_shape: tuple[int, ...], n_outputs: int, width: int) -> nn.Module:
    return Branching(input_shape[0], n_outputs, width)


def staged(input_shape: tuple[int, ...], n_outputs: int) -> TaskNet:
    stages = {"in": nn.Linear(input_shape[0], 7), "tanh": nn.Tanh(), "out": nn.Linear(7, n_outputs)}
    return TaskNet(stages)


def deaf(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return nn.Linear(input_shape[0], 10)


def build(case: tuple[str, dict[str, Any], tuple[int, ...]], seed: int = 0) -> TaskNet:
    name, params, shape = case
    return build_network(name, params, input_shape=shape, n_outputs=4, seed=seed)


def rows(shape: tuple[int, ...], n: int = 6, seed: int = 0) -> Tensor:
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=IDS)
@torch.inference_mode()
def test_embedding_is_the_input_of_the_last_linear(case: tuple[str, dict[str, Any], Any]) -> None:
    net, x = build(case), rows(case[2])
    seen: list[Tensor] = []
    net.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with evaluating(net):
        logits = net(x)
        assert torch.equal(net.embed(x), seen[0])
        assert torch.equal(net.head(seen[0]), logits)
        both = net.answer(x)
    assert both[1] is not None and torch.equal(both[1], seen[0]) and torch.equal(both[0], logits)
    assert logits.shape == (6, 4) and net.n_outputs == 4
    assert seen[0].shape == (6, net.embedding_width)


@pytest.mark.parametrize("case", STAGED, ids=IDS[:6] + IDS[8:])
@torch.inference_mode()
def test_stages_compose_to_forward(case: tuple[str, dict[str, Any], Any]) -> None:
    net, x = build(case), rows(case[2])
    with evaluating(net):
        logits = net(x)
        for cut in range(len(net.stages) + 1):
            assert torch.equal(net.run(net.run(x, 0, cut), cut), logits)
        tapped = net.taps(x, net.stage_names)[1]
        for i, name in enumerate(net.stage_names):
            assert torch.equal(tapped[name], net.run(x, 0, i + 1))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_seed_fixes_the_weights_and_leaves_chance_alone(
    case: tuple[str, dict[str, Any], Any],
) -> None:
    before = torch.random.get_rng_state()
    one, same, other = build(case), build(case), build(case, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights, again, others = (n.head.weight for n in (one, same, other))
    assert torch.equal(weights, again) and not torch.equal(weights, others)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert all(m.training for m in one.modules())


@pytest.mark.parametrize("case", CASES, ids=IDS)
@torch.inference_mode()
def test_networks_pickle(case: tuple[str, dict[str, Any], Any]) -> None:
    net, x = build(case), rows(case[2])
    copy: TaskNet = pickle.loads(pickle.dumps(net))
    with evaluating(net, copy):
        assert torch.equal(copy.embed(x), net.embed(x))


def test_small_cnn_has_the_stated_size() -> None:
    net = build_network("small_cnn", {}, input_shape=(1, 28, 28), n_outputs=10, seed=0)
    layers = (9 * 16 + 16, 9 * 16 * 32 + 32, 32 * 7 * 7 * 96 + 96, 96 * 10 + 10)
    assert sum(p.numel() for p in net.parameters()) == sum(layers) == 156_394
    assert net.stage_names == ("conv1", "conv2", "hidden", "dropout", "head")


@pytest.mark.parametrize(
    ("case", "start"), list(zip(CASES, [None, None, 2, 3, 4, 6, 0, None, None], strict=True))
)
def test_the_first_stochastic_stage(
    case: tuple[str, dict[str, Any], Any], start: int | None
) -> None:
    assert build(case).stochastic_from == start


def test_resnet18_small_keeps_resolution_in_its_stem() -> None:
    net = build_network("resnet18_small", {}, input_shape=(3, 8, 8), n_outputs=4, seed=0)
    with evaluating(net), torch.inference_mode():
        tapped = net.taps(rows((3, 8, 8), 1), ["stem", "layer1", "layer2", "layer4"])[1]
    shapes = {name: tuple(t.shape[1:]) for name, t in tapped.items()}
    assert shapes == {
        "stem": (64, 8, 8),
        "layer1": (64, 8, 8),
        "layer2": (128, 4, 4),
        "layer4": (512, 1, 1),
    }
    assert net.stage_names[0] == "stem" and net.stage_names[-2:] == ("dropout", "head")


def test_torchvision_resnet_answers_as_torchvision_does() -> None:
    net = build_network("torchvision:resnet18", {}, input_shape=(3, 32, 32), n_outputs=4, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        from torchvision import models  # seconds, which only this test needs

        reference = models.resnet18(weights=None, num_classes=4)
    x = rows((3, 32, 32), 2)
    with evaluating(net, reference), torch.inference_mode():
        assert torch.equal(net(x), reference(x))
        assert torch.equal(net.embed(x), net.run(net.run(x, 0, 3), 3, -1))


def test_a_network_without_last_linear_predicts_and_has_no_embedding() -> None:
    for module in (WithoutHead(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softplus())):
        net = HookedNet(module, (4, 4, 4))
        assert net(rows((4, 4, 4))).shape == (6, 3)
        if isinstance(module, WithoutHead):
            assert not net.has_embedding and net.answer(rows((4, 4, 4)))[1] is None
            with pytest.raises(NeedsError, match=r"WithoutHead does not end in an nn\.Linear"):
                net.embed(rows((4, 4, 4)))
            with pytest.raises(NeedsError, match="log_probs"):
                _ = net.head


def test_the_probe_changes_nothing() -> None:
    module = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    HookedNet(module, (5,))
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert module.training and module[0].training and not module[2]._forward_hooks


def test_stages_must_end_in_a_linear_layer() -> None:
    with pytest.raises(NeedsError, match=r"must be an nn\.Linear, it is Sequential"):
        TaskNet({"all": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(NeedsError, match="it is missing"):
        TaskNet({})


def test_an_unknown_stage_is_named() -> None:
    net = build(CASES[3])
    with pytest.raises(NeedsError, match="did you mean 'hidden'"):
        net.taps(rows((1, 28, 28)), ["hiden"])
    with pytest.raises(NeedsError, match="no stages"):
        build(CASES[7]).run(rows((5,)), 0, -1)


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("small_cnn", {"width": 3}, r"no parameter 'width'; it takes: widths: .*dropout"),
        ("small_cnn", {"widths": 3}, "widths is 3"),
        ("small_cnn", {"widths": [3]}, "at least 2 items"),
        ("small_cnn", {"widths": [3, "a"]}, "valid integer"),
        ("mlp", {"dropout": 1.0}, "less than 1"),
        ("mlp", {"dropout": "0.5"}, "valid number"),
        ("mlp", {"dropout": 0.5, "widths": []}, "widths is empty"),
        ("small_cnn", {"widths": [4] * 7}, "cannot be halved 6 times"),
        ("torchvision:alexnet", {}, r"cannot run on rows of shape \[3, 32, 32\]: .*task.size"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "no parameter 'weights'"),
        ("test_networks:branching", {}, "wants width"),
        ("test_networks:branching", {"width": "six"}, "valid integer"),
    ],
)
def test_unfit_parameters_are_refused(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        build_network(name, params, input_shape=(3, 32, 32), n_outputs=4, seed=0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smal_cnn", "did you mean 'small_cnn'"),
        ("torchvision:resnet19", "did you mean 'resnet18'"),
        ("no_such_module:net", "No module named 'no_such_module'"),
        ("test_networks:branch", "did you mean 'branching'"),
    ],
)
def test_unknown_networks_are_named(name: str, says: str) -> None:
    with pytest.raises(UnknownNameError, match=says):
        build_network(name, {}, input_shape=(5,), n_outputs=4, seed=0)


def test_networks_that_do_not_fit_the_task_are_refused() -> None:
    with pytest.raises(SettingsError, match="has 10 outputs, the task has 4"):
        build_network("test_networks:deaf", {}, input_shape=(5,), n_outputs=4, seed=0)
    with pytest.raises(SettingsError, match="takes images"):
        build_network("small_cnn", {}, input_shape=(5,), n_outputs=4, seed=0)
    with pytest.raises(SettingsError, match="must give logits"):
        HookedNet(nn.Conv1d(2, 2, 1), (2, 4))


def test_registered_factories_say_what_they_take() -> None:
    assert set(networks) >= {"mlp", "small_cnn", "resnet18_small"}
    for name in networks:
        parameters = list(inspect.signature(networks[name]).parameters.values())
        assert [p.name for p in parameters[:2]] == ["input_shape", "n_outputs"]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
        assert networks[name].__doc__ and all(p.annotation is not p.empty for p in parameters)
