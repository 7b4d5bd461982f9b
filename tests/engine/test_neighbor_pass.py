"""The neighbour pass over a pool's parts: exact, repeatable, the same on Ray, and by HNSW."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_cases import ROWS, finished, spec

from rayal.engine.columns import column_tensor
from rayal.engine.executor import Executor
from rayal.engine.neighbors import NeighborColumns, neighbors
from rayal.engine.project import Project
from rayal.errors import BudgetError, NeedsError, SettingsError, UnknownNameError
from rayal.pool.storage import read_mapped
from rayal.registry import strategies
from rayal.selection import nearest_neighbors


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished(tmp_path_factory.mktemp("neighbors"), spec(strategies["coreset"]()))


def columns(project: Project) -> str:
    return str(project.rounds()[0].outputs["scan"]["columns"])


def read(paths: tuple[Path, ...], *names: str) -> tuple[Any, ...]:
    batches = [b for path in paths for b in read_mapped(path).to_batches()]
    return tuple(
        np.concatenate([column_tensor(b.column(n)).numpy() for b in batches]) for n in names
    )


def found(made: NeighborColumns) -> tuple[Any, ...]:
    return read(made.paths, "key", "neighbors", "neighbor_distances")


def test_the_pass_gives_every_item_its_exact_neighbours(scanned: Project) -> None:
    made = neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=6)
    keys, near, distances = found(made)
    source = scanned.ledger.columns(columns(scanned))
    paths = tuple(scanned.root / p.file for p in source.values())
    known, embedding = read(paths, "key", "embedding")
    assert len(keys) == 3 * ROWS and sorted(keys) == sorted(known)
    order = np.argsort(known)
    positions, gaps = nearest_neighbors(embedding[order], 6)  # in key order: ties by position
    rows = np.searchsorted(known[order], keys)
    assert (near == known[order][positions[rows]]).all()
    assert distances.tobytes() == gaps[rows].tobytes()
    assert near.dtype == np.uint64 and distances.dtype == np.float32
    assert made.record["approximation"] is None and made.record["rows"] == 3 * ROWS


def test_a_second_try_computes_what_is_missing_only(
    scanned: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayal.engine import neighbors as module

    done: list[str] = []
    work = module.Neighbors.part

    def part(self: Any, of: Any, report: Any = None) -> Any:
        done.append(of.part)
        if len(done) == 2:
            raise RuntimeError("killed")
        return work(self, of, report)

    monkeypatch.setattr(module.Neighbors, "part", part)
    with pytest.raises(RuntimeError, match="killed"):
        neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=3)
    made = neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=3)
    assert len(done) == 4 and len(set(done)) == 3  # the first part is not repeated
    assert neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=3) == made
    assert len(done) == 4


def test_what_cannot_be_done_is_said(scanned: Project) -> None:
    with pytest.raises(UnknownNameError, match="embeding"):
        neighbors(scanned.workspace, 0, columns(scanned), "embeding", k=3)
    with pytest.raises(UnknownNameError, match="not committed"):
        neighbors(scanned.workspace, 0, "0123", "embedding", k=3)
    with pytest.raises(BudgetError, match="between 1 and 899"):
        neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=900)
    with pytest.raises(SettingsError, match="annoy"):
        neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=3, method="annoy")  # type: ignore[arg-type]


def test_hnsw_without_faiss_says_how_to_get_it(
    scanned: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(NeedsError, match=r"rayal\[ann\]"):
        neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=4, method="hnsw")


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of faiss's own classes
def test_hnsw_is_named_measured_and_repeatable(scanned: Project) -> None:
    pytest.importorskip("faiss", exc_type=ImportError)
    exact = neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=5)
    made = neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=5, method="hnsw")
    assert made.record["columns"] != exact.record["columns"]
    loss = made.record["approximation"]["loss"]
    (keys, near, distances), (same, right, gaps) = found(made), found(exact)
    assert (keys == same).all() and not (near == keys[:, None]).any()
    recall = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(near, right, strict=True)])
    assert loss["measure"] == "recall" and 0.9 < loss["value"] <= 1.0 and recall > 0.9
    hit = near == right
    assert distances[hit].tobytes() == gaps[hit].tobytes()  # computed again, exactly
    assert not list(scanned.root.rglob("*.hnsw"))
    again = neighbors(scanned.workspace, 0, columns(scanned), "embedding", k=5, method="hnsw")
    assert again.paths == made.paths


@pytest.mark.ray
def test_ray_finds_the_same_bits(on_ray: Executor, tmp_path: Path) -> None:
    made = []
    for folder in ("local", "ray"):
        project = finished(tmp_path / folder, spec(strategies["coreset"]()))
        if folder == "ray":
            project.work_on(on_ray)
        made.append(found(neighbors(project.workspace, 0, columns(project), "embedding", k=6)))
    for local, remote in zip(*made, strict=True):
        assert local.tobytes() == remote.tobytes()
