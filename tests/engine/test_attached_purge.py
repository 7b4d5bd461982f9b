"""Rows that strategies make of items are as good as their content, and go with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_cases import finish
from pool_cases import spec
from pools import blob_pool

from rayal.engine.project import Project
from rayal.engine.remember import attached_columns, attached_rows
from rayal.evaluation.oracle import Oracle
from rayal.ledger import Ledger
from rayal.pool.purge import purge
from rayal.registry import strategies


@pytest.mark.parametrize("keep", ["last", "all"])
def test_the_twin_of_a_forgotten_item_is_taken_out_too(keep: str, tmp_path: Path) -> None:
    what = spec(strategies["dfal"](), rounds=2, keep=keep)
    project = Project.create(Ledger(tmp_path), "p", blob_pool(tmp_path, 1), what)
    oracle = Oracle(project.pool)
    project.prepare()
    oracle.work(project)
    project.train(oracle.truth)
    found = attached_columns(project.workspace, 0)
    assert found is not None
    hash, before = found
    gone, kept = before.ids[0], list(before.ids[1:])
    assert before["x"].any(dim=1).all()
    project.ledger.forget_item("p", gone)
    assert purge(project.ledger, "rows") == 1
    again = attached_columns(project.workspace, 0)
    assert again is not None and again[0] == hash
    after = again[1]
    assert list(after.ids) == list(before.ids)
    assert not after["x"][0].any() and after["x"][1:].equal(before["x"][1:])
    (file,) = (tmp_path / "attached").rglob("*.arrow")
    content = file.read_bytes()
    assert before["x"][0].numpy().tobytes() not in content
    assert before["x"][1].numpy().tobytes() in content
    stamp = file.stat().st_mtime_ns
    assert purge(project.ledger, "rows") == 0 and file.stat().st_mtime_ns == stamp
    oracle.work(project)
    finish(project)
    _, named = attached_rows(project.workspace, 1, project.ledger.resolved("p"))
    assert named is not None and {item for item, _ in named} == set(kept)
