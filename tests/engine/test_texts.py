"""Texts end to end: rounds, the tokeniser kept with the pool, and what is refused beforehand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_cases import finish
from torch import Tensor, nn

from rayal.engine.checks import untrained
from rayal.engine.embed import head_task
from rayal.engine.project import Project
from rayal.engine.scan import Scan
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.engine.tasks import task_of, vocabulary_of
from rayal.errors import NeedsError, PoolError, SettingsError
from rayal.evaluation.oracle import Oracle
from rayal.evaluation.protocol import run
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.models.backbone import BackboneSpec
from rayal.planning.demands import scanning
from rayal.planning.sizes import PoolShape, network_shape
from rayal.pool.reader import Pool
from rayal.registry import strategies
from rayal.settings.run import load
from rayal.strategies import Strategy

WORDS = {"neg": ["bad", "awful", "schlecht"], "pos": ["good", "fine", "schön"]}
FILL = ["the", "film", "was", "a", "very", "long", "actor", "plot", "scene", "день", "夜"]
TASK = {"kind": "text", "length": 12, "vocabulary": 120}
LEARNER = Supervised(steps=20, batch=16, epoch_steps=10)


def table(count: int = 300, order: int | None = None) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = ("neg", "pos")[int(rng.integers(2))]
        said = [*rng.choice(FILL, int(rng.integers(2, 14))), str(rng.choice(WORDS[label]))]
        rows.append({"i": f"t{i:04d}", "t": " ".join(rng.permutation(said)), "y": label})
    at = range(count) if order is None else np.random.default_rng(order).permutation(count)
    return pa.Table.from_pylist([rows[i] for i in at])


def made(root: Path, order: int | None = None) -> Pool:
    whole = table(order=order)
    test = pa.Table.from_pylist([r for r in whole.to_pylist() if r["i"] >= "t0250"])
    rest = pa.Table.from_pylist([r for r in whole.to_pylist() if r["i"] < "t0250"])
    Pool.from_tables(root, "p", [rest], id="i", text="t", label="y")
    return Pool.from_tables(root, "p", [test], id="i", text="t", label="y", role="test")


def spec(strategy: Strategy, network: str = "kim_cnn", **changes: Any) -> ProjectSpec:
    params = {"width": 8, "filters": 6} if network == "kim_cnn" else {}
    base = ProjectSpec(
        network=NetworkSpec(network, params),
        learner=LEARNER,
        strategy=strategy,
        task=TASK,
        initial=Initial(count=20),
        batch=10,
        rounds=2,
    )
    return dataclasses.replace(base, **changes)


def simulate(root: Path, pool: Pool, what: ProjectSpec) -> Project:
    return finish(Project.create(Ledger(root), "p", pool, what))


def picks(project: Project) -> list[tuple[str, ...]]:
    made = [project.ledger.selection(project.name, round) for round in (0, 1)]
    return [tuple(p.item for p in s.picks) for s in made if s is not None]


@pytest.mark.parametrize("name", ["egl_word", "egl", "egl_sm", "egl_entropy_beta"])
def test_rounds_pick_the_same_for_any_batch_order_and_shards(tmp_path: Path, name: str) -> None:
    strategy = strategies[name]()
    first = simulate(tmp_path / "a", made(tmp_path / "a"), spec(strategy))
    changed = spec(strategy, scan=ScanOptions(batch=256), shards=2)
    other = simulate(tmp_path / "b", made(tmp_path / "b", order=3), changed)
    assert picks(first) == picks(other) and len(picks(first)) == 2
    assert first.rounds()[-1].metrics["accuracy"] == other.rounds()[-1].metrics["accuracy"]
    chosen = first.ledger.selection("p", 1)
    assert chosen is not None
    drawn = chosen.provenance.get("drawn")
    if name == "egl_entropy_beta":
        assert drawn is not None and 0.0 <= drawn["weight"] <= 1.0
        assert drawn["beta"] == pytest.approx([2.0, 0.2])
    else:
        assert drawn is None


def test_without_a_mixture_its_rounds_are_those_of_the_base(tmp_path: Path) -> None:
    """Weight 0 is entropy, 1 is egl_word, item by item; between them it is neither."""
    pool, ledger = made(tmp_path), Ledger(tmp_path)

    def first(name: str, **params: float) -> tuple[str, ...]:
        what = spec(strategies[name](**params), rounds=1)
        label = "-".join([name, *map(str, params.values())])
        project = Project.create(ledger, label, pool, what)
        project.prepare()
        Oracle(pool).work(project)
        project.train()
        (chosen,) = picks(project)
        return chosen

    entropy, words = first("entropy"), first("egl_word")
    assert first("egl_entropy_beta", weight=0.0) == entropy
    assert first("egl_entropy_beta", weight=1.0) == words
    assert set(entropy) != set(words)
    assert set(first("egl_entropy_beta", weight=0.5)) not in (set(entropy), set(words))


def test_scanned_columns_are_bit_equal_for_any_batch(tmp_path: Path) -> None:
    pool = made(tmp_path)
    what = spec(strategies["egl_entropy_beta"]())
    committee = untrained(what, task_of(pool, TASK))
    columns = []
    for batch in (64, 256, 1000):
        options = ScanOptions(batch=batch)
        scan = Scan(pool, committee, what.strategy, what.learner, options)
        columns.append(scan.columns_of(pool.parts_of("pool")[0])["score"])
    assert columns[0].shape == (250, 2) and columns[0].min() > 0
    assert torch.equal(columns[0], columns[1]) and torch.equal(columns[0], columns[2])


def test_a_tokeniser_is_trained_once_for_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayal.tasks import Vocabulary

    pool = made(tmp_path)
    first = vocabulary_of(pool, TASK)
    (file,) = (tmp_path / "pools" / "p").glob("vocabulary-*.json")
    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "trained", None)  # not asked again
        assert vocabulary_of(pool, TASK) == first
    assert not list((tmp_path / "pools" / "p").glob(".tmp-*"))
    assert vocabulary_of(made(tmp_path / "other", order=1), TASK) == first
    larger = vocabulary_of(pool, {**TASK, "vocabulary": 60})
    assert larger.size == 60 and file.is_file()
    grown = pa.table({"i": ["u1"], "t": ["quite another word"], "y": ["neg"]})
    pool = Pool.from_tables(tmp_path, "p", [grown], id="i", text="t", label="y")
    assert vocabulary_of(pool, TASK) != first


def test_words_of_test_items_are_not_in_the_tokeniser(tmp_path: Path) -> None:
    secret = pa.table({"i": ["x"], "t": ["zzzz " * 30], "y": ["neg"]})
    Pool.from_tables(tmp_path, "p", [table(50)], id="i", text="t", label="y")
    pool = Pool.from_tables(tmp_path, "p", [secret], id="i", text="t", label="y", role="test")
    words = vocabulary_of(pool, TASK)
    assert "zzzz" not in words.tokens(range(words.size))


def test_a_tokeniser_from_a_file(tmp_path: Path) -> None:
    import json

    pool = made(tmp_path)
    words = vocabulary_of(pool, TASK)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.loads(words.stored)["model"])
    read = vocabulary_of(pool, {"tokenizer": str(path)})
    assert read.encode(["a very good film"], 5).tolist() == words.encode(
        ["a very good film"], 5
    ).tolist()  # fmt: skip
    with pytest.raises(SettingsError, match=r"task.vocabulary belongs to a tokeniser that is trai"):
        vocabulary_of(pool, {"tokenizer": str(path), "vocabulary": 50})
    with pytest.raises(SettingsError, match="is no file; give wordpiece, bpe"):
        vocabulary_of(pool, {"tokenizer": str(tmp_path / "none.json")})


def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pool, ledger = made(tmp_path), Ledger(tmp_path)

    def create(strategy: str, network: str = "kim_cnn", **changes: Any) -> None:
        Project.create(ledger, "n", pool, spec(strategies[strategy](), network, **changes))

    with pytest.raises(NeedsError, match=r"no single nn.Embedding of words; use kim_cnn"):
        create("egl_word", "tfidf_linear")
    with pytest.raises(SettingsError, match="'mlp' does not read token ids"):
        create("entropy", "mlp")
    with pytest.raises(NeedsError, match="no augmented views"):
        create("entropy", learner=dataclasses.replace(LEARNER, augment=True))
    backbone = BackboneSpec(f"{__name__}:encoder", "random")
    with pytest.raises(NeedsError, match=r"head of a frozen encoder, use egl or egl_sm"):
        create("egl_word", "mlp", backbone=backbone)
    with pytest.raises(SettingsError, match="takes images, and rows are token ids; choose minilm"):
        create("entropy", "mlp", backbone=BackboneSpec("efficientnet_lite0", "random"))
    images = np.zeros((40, 8, 8), np.uint8)
    y = np.arange(40) % 2
    pictures = Pool.from_arrays(tmp_path, "pictures", images, y)
    what = spec(strategies["egl_word"](), "small_cnn", task={}, rounds=1)
    with pytest.raises(NeedsError, match="gradients of word vectors need texts"):
        Project.create(ledger, "n", pictures, what)
    assert ledger.projects() == [] or list(ledger.projects()) == []


class Bag(nn.Module):
    """A made-up frozen encoder: a fixed random vector for each token, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 6, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.table(x.long()).sum(dim=1)
        return added


def encoder() -> nn.Module:
    return Bag()


def test_a_frozen_encoder_of_texts_embeds_the_pool_once(tmp_path: Path) -> None:
    pool = made(tmp_path)
    backbone = BackboneSpec(f"{__name__}:encoder", "random")
    linear = NetworkSpec("mlp", {"widths": ()})
    what = dataclasses.replace(spec(strategies["badge"](), backbone=backbone), network=linear)
    project = simulate(tmp_path, pool, what)
    assert project.rounds()[0].outputs["embed"]["rows"] == 300
    task = project.inputs.task
    row = project.inputs.pool.take(["t0007"])
    own = backbone.network((12,))(task_of(pool, TASK).decode(pool.take(["t0007"])))
    torch.testing.assert_close(task.decode(row), own)


def test_memory_of_gradients_is_planned(tmp_path: Path) -> None:
    pool = made(tmp_path)
    shape = PoolShape(250, 50, 40.0, pool.payload, ("neg", "pos"))
    sizes = {}
    for name in ("entropy", "egl_word"):
        what = spec(strategies[name]())
        task = head_task(what, task_of(pool, TASK))
        net = network_shape(what, task, untrained(what, task))
        sizes[name] = scanning(what, net, shape.part_rows) - 6 * net.size(list(net.signals)) * 250
    assert sizes["egl_word"] > sizes["entropy"]


def test_a_run_of_settings(tmp_path: Path) -> None:
    import csv

    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["i", "t", "y"])
        out.writeheader()
        out.writerows(table(120).to_pylist())
    settings = {
        "pool": {"source": str(tmp_path / "t.csv"), "id": "i", "text": "t", "label": "y",
                 "test_share": 0.2},
        "task": TASK,
        "model": {"params": {"width": 8, "filters": 4}},
        "learner": {"name": "supervised", "steps": 10},
        "strategies": ["egl_word"], "initial": {"count": 10}, "rounds": 1, "batch": 5,
        "storage": str(tmp_path / "run"),
    }  # fmt: skip
    outcome = run(load(settings))
    assert {(p.strategy, p.labels) for p in outcome.points} == {
        (s, n) for s in ("random", "egl_word") for n in (10, 15)
    }
    with pytest.raises(PoolError, match="the text is empty"):
        (tmp_path / "t.csv").write_text("i,t,y\na,,pos\nb,fine,neg\n")
        run(load({**settings, "storage": str(tmp_path / "other")}))
