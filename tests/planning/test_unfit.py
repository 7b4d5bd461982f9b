"""Every strategy on projects that cannot give what it asks for: an error before anything starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.evaluation import protocol
from rayal.registry import strategies
from rayal.settings.run import load

# what a strategy asks of rows and network: words, that is texts and one table of word vectors;
# dropout; an embedding before a last linear layer; a hidden layer, or two; rows that differentiate;
# layers through which means and variances go; a task that predicts a number
NEEDS: dict[str, frozenset[str]] = {
    "random": frozenset(),
    "least_confidence": frozenset(),
    "margin": frozenset(),
    "entropy": frozenset(),
    "deal": frozenset(),
    "ensemble_variation_ratio": frozenset(),
    "ensemble_entropy": frozenset(),
    "ensemble_bald": frozenset(),
    "egl": frozenset(),
    "bald": frozenset({"dropout"}),
    "mc_entropy": frozenset({"dropout"}),
    "variation_ratio": frozenset({"dropout"}),
    "mean_std": frozenset({"dropout"}),
    "batchbald": frozenset({"dropout"}),
    "badge": frozenset({"embedding"}),
    "bait": frozenset({"embedding"}),
    "coreset": frozenset({"embedding"}),
    "egl_sm": frozenset({"embedding"}),
    "egl_word": frozenset({"words"}),
    "egl_entropy_beta": frozenset({"words"}),
    "dfal": frozenset({"smooth rows"}),
    "learning_loss": frozenset({"hidden"}),
    "multiview": frozenset({"two hidden"}),
    "multicriteria": frozenset({"embedding"}),
    "bait_regression": frozenset({"embedding"}),
    "adaptive": frozenset({"moments"}),
    "pbp": frozenset({"number"}),
}
REMEDY = {  # what an error says would work
    "dropout": r"use a network with dropout > 0 \(head: mlp .*members: 5",
    "embedding": r"no embedding; use a network that does, or a strategy that needs only log_probs",
    "words": r"such as kim_cnn; .*use egl or egl_sm|use kim_cnn, or choose egl or egl_sm",
    "smooth rows": r"differentiable in its rows.*(choose|use) ",
    "hidden": r"use a network with more hidden layers, such as small_cnn",
    "two hidden": r"use a network with more hidden layers, such as small_cnn",
    "moments": r"such as small_cnn or mlp, or have them measured over members or dropout masks",
    "number": r"the task predicts a class \(task.target\); strategies for it: ",
}


class Pooled(nn.Module):
    """Convolutions alone: the largest value of each channel is a logit."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        largest: Tensor = self.convolution(x).amax(dim=(2, 3))
        return largest


def pooled(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return Pooled(n_outputs)


def unbiased(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), n_outputs, bias=False))


def backbone() -> nn.Module:
    """Return the frozen network of images."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


FROZEN = {"backbone": f"{__name__}:backbone", "weights": "random", "frozen": True}
CNN = {"widths": [4, 4, 8]}
PROJECTS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "images": ("images", {"network": "small_cnn", "params": CNN}, {"words"}),
    "without dropout": (
        "images",
        {"network": "small_cnn", "params": {**CNN, "dropout": 0.0}},
        {"words", "dropout"},
    ),
    "no last linear layer": (
        "images",
        {"network": f"{__name__}:pooled"},
        {"words", "dropout", "embedding", "hidden", "two hidden", "moments"},
    ),
    "frozen, linear head": ("images", FROZEN, {"words", "dropout", "hidden", "two hidden"}),
    "frozen, perceptron": ("images", {**FROZEN, "head": "mlp"}, {"words", "two hidden"}),
    "counts of words": (
        "texts",
        {"network": "tfidf_linear"},
        {"words", "dropout", "hidden", "two hidden", "smooth rows", "moments"},
    ),
    "texts": ("texts", {"network": "kim_cnn", "params": {"width": 4}}, {"smooth rows", "moments"}),
    "numbers": ("numbers", {"network": "mlp", "params": {"widths": [8, 8]}}, {"words", "dropout"}),
}


class Started(Exception):
    """A run got as far as reading its source."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    np.savez(folder / "i.npz", x=rng.integers(0, 255, (40, 8, 8), np.uint8), y=y)
    np.savez(folder / "n.npz", x=rng.normal(size=(40, 5)), y=y)
    lines = [f'"the film {n} was {"good" if n % 2 else "bad"}",{n % 2}' for n in range(40)]
    (folder / "t.csv").write_text("\n".join(["t,y", *lines, ""]))
    return {
        "images": {"source": str(folder / "i.npz")},
        "numbers": {"source": str(folder / "n.npz")},
        "texts": {"source": str(folder / "t.csv"), "text": "t", "label": "y"},
    }


def settings(
    pool: dict[str, str],
    model: dict[str, Any],
    name: str,
    storage: Path,
    learner: str = "supervised",
) -> Any:
    given = {
        "pool": pool,
        "model": model,
        "learner": {"name": learner, "steps": 2},
        "strategies": [name] if name != "random" else [],
        "initial": {"count": 10},
        "rounds": 1,
        "batch": 5,
        "storage": str(storage),
    }
    if pool["source"].endswith(".csv"):
        given["task"] = {"kind": "text", "length": 12, "vocabulary": 60}
    return load(given)


def test_every_strategy_is_in_the_table_of_needs() -> None:
    own = {name for name in strategies if strategies[name].__module__.startswith("rayal.")}
    assert own == set(NEEDS)


@pytest.mark.parametrize("project", PROJECTS)
def test_what_does_not_fit_is_refused_before_the_source_is_read(
    project: str,
    sources: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    def start(*arguments: Any, **named: Any) -> None:
        raise Started

    monkeypatch.setattr(protocol, "pool_of", start)
    kind, model, lacks = PROJECTS[project]
    for name, needs in NEEDS.items():
        storage = tmp_path / name
        asked = settings(sources[kind], model, name, storage)
        unmet = needs & (lacks | {"number"})  # all of them predict a class
        with subtests.test(name):
            if not unmet:
                with pytest.raises(Started):
                    protocol.run(asked)
                continue
            with pytest.raises(NeedsError, match=REMEDY[min(unmet)]):
                protocol.run(asked)
            assert not storage.exists()


# a learner whose probabilities are no softmax of the last linear layer, and what is behind it
UNLIKE = {"evidential": "LogConcentration", "moment_propagation": "MomentNet"}


@pytest.mark.parametrize("learner", ["supervised", *UNLIKE])
@pytest.mark.parametrize("name", ["bait", "badge", "egl_sm", "coreset", "margin"])
def test_closed_forms_of_the_softmax_layer_are_refused_of_learners_without_it(
    name: str,
    learner: str,
    sources: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*arguments: Any, **named: Any) -> None:
        raise Started

    monkeypatch.setattr(protocol, "pool_of", start)
    _, model, _ = PROJECTS["images"]
    asked = settings(sources["images"], model, name, tmp_path / "storage", learner)
    if learner not in UNLIKE or name in ("coreset", "margin"):  # what the refusal names
        with pytest.raises(Started):
            protocol.run(asked)
        return
    remedy = rf"\({UNLIKE[learner]}\); use the learner supervised.*margin, entropy or coreset"
    with pytest.raises(NeedsError, match=remedy):
        protocol.run(asked)
    assert not (tmp_path / "storage").exists()


def test_no_strategy_is_recommended_that_is_refused_of_normal_weights(
    sources: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    _, model, _ = PROJECTS["images"]
    asked = settings(sources["images"], model, "egl", tmp_path / "storage", "moment_propagation")
    with pytest.raises(NeedsError, match=r"NormalConv2d.*or margin or entropy, which need none"):
        protocol.run(asked)
    assert not (tmp_path / "storage").exists()


def test_a_last_layer_without_bias_is_refused_where_the_closed_form_counts_one(
    sources: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    model = {"network": f"{__name__}:unbiased"}
    asked = settings(sources["images"], model, "egl_sm", tmp_path / "storage")
    with pytest.raises(NeedsError, match=r"last linear layer's bias.*give it a bias, or use egl"):
        protocol.run(asked)
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("name", ["bald", "egl_word"])
def test_it_is_refused_of_a_pool_that_is_there_as_well(
    name: str, sources: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    _, model, _ = PROJECTS["without dropout"]
    storage = tmp_path / "storage"
    protocol.run(settings(sources["images"], model, "random", storage))
    before = sorted(storage.rglob("*"))
    with pytest.raises(NeedsError, match=REMEDY[next(iter(NEEDS[name]))]):
        protocol.run(settings(sources["images"], model, name, storage))
    assert sorted(storage.rglob("*")) == before  # nothing was made, and nothing removed


def test_an_initial_strategy_that_asks_a_model_is_refused_as_early(
    sources: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = PROJECTS["images"]
    asked = settings(sources["images"], model, "margin", tmp_path / "storage")
    asked = load({**asked.model_dump(mode="python"), "initial": {"strategy": "margin"}})
    with pytest.raises(NeedsError, match="asks a model that is not trained yet; use random"):
        protocol.run(asked)
    assert not (tmp_path / "storage").exists()


def test_a_network_of_convolutions_has_logits_for_each_class() -> None:
    assert pooled((1, 8, 8), 3)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
