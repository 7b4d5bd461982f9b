"""Approximate choices in a project: the same for any shards, named and measured in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_cases import ROWS, finished, spec

from rayal.engine.executor import Executor, open_share
from rayal.engine.project import Project
from rayal.ledger import Appearance
from rayal.registry import strategies
from rayal.selection.kcenter import KCenter
from rayal.selection.sampling import candidates_of
from rayal.types import Seeds, id_keys

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two-round": ("coreset", {"method": "two_round"}),
    "coreset": ("coreset", {"candidates": 90}),
    "both": ("coreset", {"candidates": 90, "method": "two_round"}),
    "badge": ("badge", {"candidates": 90}),
    "kmeans||": ("badge", {"method": "kmeans||", "rounds": 2, "oversampling": 1.5}),
    "batchbald": ("batchbald", {"candidates": 90, "passes": 4, "draws": 100}),
}


def picks(project: Project) -> list[tuple[str, float | None]]:
    selection = project.ledger.selection("p", 0)
    assert selection is not None
    return [(p.item, p.score) for p in selection.picks]


def approximation(project: Project) -> dict[str, Any]:
    selection = project.ledger.selection("p", 0)
    assert selection is not None
    return dict(selection.provenance["approximation"])


@pytest.mark.parametrize("case", CASES)
def test_picks_do_not_depend_on_shards_and_the_record_names_what_was_done(
    case: str, tmp_path: Path
) -> None:
    name, params = CASES[case]
    strategy = strategies[name](**params)
    first = finished(tmp_path / "one", spec(strategy))
    assert len({item for item, _ in picks(first)}) == 10
    for shards in (2, 7):
        other = finished(tmp_path / str(shards), spec(strategy, shards=shards))
        assert picks(other) == picks(first)
        assert approximation(other) == approximation(first)
    made = approximation(first)
    assert first.rounds()[0].outputs["select"]["approximation"] == made
    assert made["of"] == 3 * ROWS - 20
    assert made.get("method") == params.get("method")
    if "candidates" in params:
        assert made["share"] == 90 / made["of"]
        keys = id_keys(item for item, _ in picks(first))
        assert candidates_of(keys, made["share"], first.spec.query_seed(0)).all()
        assert 60 < made["candidates"] < 120
    loss = made["loss"]
    wanted = {"coreset": "covering radius", "badge": "potential", "batchbald": "joint information"}
    assert loss["measure"] == wanted[name]
    assert loss["rows"] == made["of"]
    assert loss["ratio"] == loss["value"] / loss["reference"]
    assert (0.3 < loss["ratio"] < 1.0) if name == "batchbald" else (0.7 < loss["ratio"] < 2.5)


def test_an_exact_choice_names_no_approximation(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["coreset"](candidates=5000)))  # more than there is
    selection = project.ledger.selection("p", 0)
    assert selection is not None and selection.provenance["approximation"] is None
    assert "approximation" not in project.rounds()[0].outputs["select"]


def test_why_shows_the_approximation_of_an_item(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["coreset"](method="two_round")))
    item = picks(project)[0][0]
    rows = [r for r in project.ledger.why("p", item) if isinstance(r, Appearance) and r.round == 0]
    assert rows[0].provenance["approximation"]["method"] == "two_round"


def test_rows_that_are_no_candidates_are_not_held(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["coreset"]()))
    scan = project.rounds()[0].outputs["scan"]["columns"]
    paths = [project.root / p.file for p in project.ledger.columns(scan).values()]
    excluded = project.workspace.excluded()
    tiles = open_share(KCenter(share=0.1), paths, excluded, 5)
    held = np.concatenate([t.keys[t.eligible] for t in tiles])
    every = np.concatenate([t.keys[t.eligible] for t in open_share(KCenter(), paths, excluded, 5)])
    assert sorted(held) == sorted(every[candidates_of(every, 0.1, 5)])
    assert sum(len(t.columns["embedding"]) for t in tiles) < len(held) + 3 * 64


def test_chance_never_makes_a_batch_smaller(tmp_path: Path) -> None:
    """With as many candidates as picks, chance gives fewer in every second round."""
    made = []
    for seed in range(4):
        strategy = strategies["coreset"](candidates=10)
        project = finished(tmp_path / str(seed), spec(strategy, seeds=Seeds(0, 0, seed)))
        assert len(picks(project)) == 10
        made.append(approximation(project)["share"] * approximation(project)["of"])
    assert any(candidates > 15.0 for candidates in made)


@pytest.mark.ray
@pytest.mark.parametrize("case", ["both", "kmeans||"])
def test_ray_makes_the_same_picks(case: str, on_ray: Executor, tmp_path: Path) -> None:
    name, params = CASES[case]
    strategy = strategies[name](**params)
    local = finished(tmp_path / "local", spec(strategy))
    remote = finished(tmp_path / "ray", spec(strategy), executor=on_ray)
    assert picks(remote) == picks(local)
    assert approximation(remote) == approximation(local)
