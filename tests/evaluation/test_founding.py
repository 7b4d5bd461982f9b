"""What a run takes back when it is refused after its ingest: what it made itself, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayal.engine.checks import check_spec
from rayal.errors import BudgetError
from rayal.evaluation.protocol import run
from rayal.ledger import Ledger
from rayal.settings.run import Settings, load


def settings(root: Path, source: Path, **changes: Any) -> Settings:
    """Return settings of a run; more items are asked for than there are."""
    given = {
        "pool": {"source": str(source), "id": "id", "label": "label"},
        "model": {"network": "mlp", "params": {"widths": [4]}},
        "initial": {"count": 10},
        "batch": 1000,
        "rounds": 2,
        "storage": str(root),
    }
    return load({**given, **changes})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(30, 2)).round(3)
    rows = [f"r{i:02d},{'ab'[i % 2]},{u},{v}" for i, (u, v) in enumerate(x.tolist())]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["id,label,u,v", *rows]) + "\n")
    return path


def refused(root: Path, source: Path, **changes: Any) -> None:
    with pytest.raises(BudgetError, match="labels are asked for"):
        run(settings(root, source, **changes))


def test_a_root_that_it_made_goes(source: Path, tmp_path: Path) -> None:
    refused(tmp_path / "run", source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv"]


def test_the_tokeniser_of_a_pool_of_texts_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    lines = [f"{i},{'ab'[i % 2]},some words of row {i}" for i in range(30)]
    path.write_text("\n".join(["id,label,text", *lines]) + "\n")
    pool = {"source": str(path), "id": "id", "label": "label", "text": "text"}
    refused(
        tmp_path / "run", path,
        pool=pool, task={"kind": "text"}, model={"network": "kim_cnn", "params": {"width": 4}},
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_what_lay_in_a_folder_stays(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    mine = [root / "notes.txt", root / "pools" / "mine" / "notes.txt"]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    refused(root, source)
    assert sorted(p for p in root.rglob("*") if p.is_file()) == mine


def test_a_root_that_had_a_ledger_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    run(settings(root, source, batch=2, rounds=0))
    refused(root, source)
    with Ledger(root, create=False) as ledger:
        (pool,) = ledger.pools()
        assert ledger.projects() == ["random-s0"]
        assert all((root / part.file).exists() for part in ledger.snapshot(pool).parts)
    assert (root / "picks.parquet").exists()


def test_a_root_that_somebody_else_has_opened_meanwhile_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    opened: list[Ledger] = []

    def meanwhile(*given: Any) -> None:
        opened.append(Ledger(root))
        check_spec(*given)

    monkeypatch.setattr("rayal.evaluation.protocol.check_spec", meanwhile)
    refused(root, source)
    (other,) = opened
    with other:
        (pool,) = other.pools()
        assert all((root / part.file).exists() for part in other.snapshot(pool).parts)
