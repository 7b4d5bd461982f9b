"""The simulated annotator: exact noise, balance, and two of them in two processes."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import forked
import numpy as np
import pyarrow.parquet
import pytest

from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec
from rayal.errors import LabelError, PoolError, SettingsError
from rayal.evaluation.oracle import Oracle
from rayal.evaluation.protocol import run
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.registry import strategies
from rayal.settings.run import load


def labeled(root: Path, rows: int = 100) -> Pool:
    y = np.array(["a", "b", "c", "d"])[np.arange(rows) % 4]
    return Pool.from_arrays(root, "rows", np.arange(rows * 2.0).reshape(rows, 2), y)


def test_noise_is_exact_deterministic_and_never_the_truth(tmp_path: Path) -> None:
    pool = labeled(tmp_path)
    ids = list(pool.ids())
    for noise in (0.0, 0.13, 1.0):
        oracle = Oracle(pool, noise=noise, seed=5)
        answers = [oracle.answer(i) for i in ids]
        wrong = [a != t for a, t in zip(answers, oracle.truth(ids), strict=True)]
        assert sum(wrong) == round(noise * 100)
        assert answers == [Oracle(pool, noise=noise, seed=5).answer(i) for i in reversed(ids)][::-1]
    assert [Oracle(pool, noise=0.5, seed=1).answer(i) for i in ids] != [
        Oracle(pool, noise=0.5, seed=2).answer(i) for i in ids
    ]
    with pytest.raises(SettingsError, match="must lie in"):
        Oracle(pool, noise=1.5)
    with pytest.raises(LabelError, match="no known label"):
        Oracle(pool).answer("row:900")


def rated(root: Path, rows: int = 4000) -> tuple[Pool, dict[str, float | None]]:
    """Return a pool of CSV rows, and how sure its annotators say they were; of some none says."""
    rng = np.random.default_rng(0)
    said = {f"i{n:04d}": float(c) for n, c in enumerate(np.round(rng.uniform(0, 1, rows), 3))}
    known = {item: None if n % 7 == 0 else c for n, (item, c) in enumerate(said.items())}
    lines = [
        f"{i},{n},{'abc'[n % 3]},{'' if c is None else c}" for n, (i, c) in enumerate(known.items())
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "t.csv").write_text("\n".join(["i,x,y,sure", *rng.permutation(lines), ""]))
    pool = Pool.from_csv(root, "p", root / "t.csv", id="i", label="y", confidence="sure")
    return pool, known


def test_by_confidence_an_item_is_answered_wrongly_as_often_as_it_leaves(tmp_path: Path) -> None:
    pool, known = rated(tmp_path)
    assert pool.payload["features"] == ["x"]
    ids = sorted(known)
    wrong, others = [], Counter[tuple[str, str]]()
    for seed in range(20):
        oracle = Oracle(pool, noise="confidence", seed=seed)
        answers, truth = [oracle.answer(i) for i in ids], oracle.truth(ids)
        wrong.append([a != t for a, t in zip(answers, truth, strict=True)])
        others.update((str(t), str(a)) for a, t in zip(answers, truth, strict=True) if a != t)
        assert oracle.wrong(dict(zip(ids, answers, strict=True))) == sum(wrong[-1])
    share = np.array(wrong).mean(axis=0)
    doubt = np.array([0.0 if (c := known[i]) is None else 1.0 - c for i in ids])
    assert (share[doubt == 0] == 0).all()
    assert share.mean() == pytest.approx(doubt.mean(), abs=0.005)
    for low in np.arange(0, 1, 0.25):  # item by item, not in the mean alone
        some = (doubt > low) & (doubt <= low + 0.25)
        assert share[some].mean() == pytest.approx(doubt[some].mean(), abs=0.02)
    counts = np.array(list(others.values()))
    assert len(counts) == 6 and (abs(counts / counts.mean() - 1) < 0.1).all()


def test_doubt_is_of_the_item_and_the_seed_whatever_else_the_pool_holds(tmp_path: Path) -> None:
    pool, known = rated(tmp_path / "a", 400)
    more = rated(tmp_path / "b", 500)[0]
    one, other = (Oracle(p, noise="confidence", seed=3) for p in (pool, more))
    assert all(one.answer(i) == other.answer(i) for i in known if known[i] is not None)
    again = Oracle(pool, noise="confidence", seed=3)
    assert [one.answer(i) for i in known] == [again.answer(i) for i in known]
    assert [one.answer(i) for i in known] != [
        Oracle(pool, noise="confidence", seed=4).answer(i) for i in known
    ]


def test_what_is_no_confidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"of no label .* name the column that says so"):
        Oracle(labeled(tmp_path), noise="confidence")
    path = tmp_path / "t.csv"
    path.write_text("x,y,sure\n1,a,0.5\n2,b,80\n")
    for columns, says in (
        ({"label": "y", "confidence": "sure"}, r"'t.csv:1' has sure 80.0; .* divide percentages"),
        ({"confidence": "sure"}, "no column of labels is named"),
        ({"label": "y", "confidence": "y"}, "confidences are numbers"),
        ({"label": "y", "confidence": "shure"}, "did you mean 'sure'"),
    ):
        with pytest.raises(PoolError, match=says):
            Pool.from_csv(tmp_path, "q", path, **columns)  # type: ignore[arg-type]


def test_labels_that_come_later_have_their_own_confidence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("i,x,y\na,1,n\nb,2,p\n")
    (tmp_path / "b.csv").write_text("i,x,y,sure\na,1,n,0.1\nc,3,n,0.0\n")
    Pool.from_csv(tmp_path, "p", tmp_path / "a.csv", id="i", label="y")
    pool = Pool.from_csv(tmp_path, "p", tmp_path / "b.csv", id="i", label="y", confidence="sure")
    oracle = Oracle(pool, noise="confidence")
    assert [oracle.answer(i) for i in "abc"] == ["n", "p", "p"]  # what is known stays as it came


def test_a_run_with_doubtful_labels_says_how_many_were_wrong(tmp_path: Path) -> None:
    rated(tmp_path, 300)
    settings = {
        "pool": {"source": str(tmp_path / "t.csv"), "id": "i", "label": "y", "confidence": "sure",
                 "test_share": 0.2},
        "model": {"network": "mlp", "params": {"widths": [4]}},
        "learner": {"name": "supervised", "steps": 5},
        "strategies": ["margin"], "initial": {"count": 40}, "rounds": 1, "batch": 20,
        "seeds": [0, 1], "oracle": {"noise": "confidence"}, "storage": str(tmp_path / "run"),
    }  # fmt: skip
    outcome = run(load(settings))
    rows = pyarrow.parquet.read_table(tmp_path / "run" / "rounds.parquet").to_pylist()
    assert len(rows) == 8
    with Ledger(tmp_path / "run") as ledger:
        for row in rows:
            project = Project(ledger, row["project"])
            labels = ledger.resolved(
                row["project"], ledger.rounds(row["project"])[row["round"]].labels_seq
            )
            truth = Oracle(project.pool).truth(list(labels))
            wrong = sum(a != t for a, t in zip(labels.values(), truth, strict=True))
            assert row["wrong"] == wrong and 0 < wrong < row["labels"]
    total = sum(r["wrong"] for r in rows if r["round"] == 1)
    assert outcome.remarks == (
        f"simulated annotators got {total:,} of 240 labels wrong ({total / 240:.1%})",
    )
    same = {(r["strategy"], r["seed"]): r["wrong"] for r in rows if r["round"] == 0}
    assert same["margin", "s0"] == same["random", "s0"]  # all strategies have the same annotators


def test_balanced_sets_hold_each_class_equally(tmp_path: Path) -> None:
    pool = labeled(tmp_path)
    oracle = Oracle(pool)
    ids = oracle.balanced(pool, 22, seed=1)
    assert len(set(ids)) == 22
    assert sorted(Counter(oracle.truth(ids)).values()) == [5, 5, 6, 6]
    assert ids != oracle.balanced(pool, 22, seed=2)


WORK = """
import sys
from rayal.engine.project import Project
from rayal.evaluation.oracle import Oracle
project = Project.open(sys.argv[1], "p")
Oracle(project.pool, noise=0.2).work(project, annotator=sys.argv[2], count=3, ttl=1.0)
"""
HOLD_AND_DIE = """
import os, signal, sys
from rayal.engine.project import Project
project = Project.open(sys.argv[1], "p")
assert len(project.lease(7, annotator="dead", ttl=1.0)) == 7
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
def test_two_oracles_one_killed_while_holding_leases_give_the_labels_of_one(
    tmp_path: Path,
) -> None:
    spec = ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (4,)}),
        learner=Supervised(steps=2),
        strategy=strategies["random"](),
        initial=Initial(count=40),
        rounds=None,
    )
    results = []
    for name in ("one", "two"):
        root = tmp_path / name
        pool = labeled(root)
        project = Project.create(Ledger(root), "p", pool, spec)
        project.prepare()
        if name == "one":
            Oracle(pool, noise=0.2).work(project)
        else:
            dead = forked.run("-c", HOLD_AND_DIE, root, check=False)
            assert dead.returncode == -signal.SIGKILL, dead.stderr
            both = [forked.start("-c", WORK, root, f"ann{n}") for n in range(2)]
            assert [process.wait() for process in both] == [0, 0]
        results.append(project.ledger.resolved("p"))
        history = [row.item for row in project.ledger.labels("p")]
        assert len(history) == len(set(history)) == 40
    assert results[0] == results[1]
