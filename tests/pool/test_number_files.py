"""Numbers in CSV files: labels in, labels and history out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from number_cases import number_pool, number_spec

from rayal.cli.local import export_csv, label_from
from rayal.engine.project import Project
from rayal.errors import LabelError
from rayal.ledger import Ledger
from rayal.registry import strategies

ASKED = ["house:000", "house:001", "house:002"]


@pytest.fixture
def where(tmp_path: Path) -> str:
    with Ledger(tmp_path) as ledger:
        spec = number_spec(strategies["random"](), task={"low": 0.0, "high": 5000.0})
        Project.create(ledger, "p", number_pool(tmp_path), spec).prepare(ASKED)
    return f"{tmp_path}#p"


def test_numbers_go_in_and_come_out_as_they_are(where: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,label\nhouse:000,1e3\nhouse:001, 12.25 \nhouse:002,0.1\n")
    assert label_from(where, file, "ann") == {"project": "p", "accepted": 3}
    assert label_from(where, file, "ann") == {"project": "p", "duplicate": 3}
    out = export_csv(where, "labels")
    assert out == "id,label\nhouse:000,1000.0\nhouse:001,12.25\nhouse:002,0.1\n"
    file.write_text(out)
    assert label_from(where, file, "ann") == {"project": "p", "duplicate": 3}
    history = list(csv.DictReader(io.StringIO(export_csv(where, "history"))))
    assert [row["value"] for row in history] == ["1000.0", "12.25", "0.1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("house:001,cat", "label 'cat' of item 'house:001' is no number"),
        ("house:001,", "label '' of item 'house:001' is no number"),
        ("house:001,nan", "label nan of item 'house:001' is out of bounds"),
        ("house:001,-1", "label -1.0 of item 'house:001' is out of bounds"),
        ("house:000,7", "line 3: item 'house:000' has two labels"),
    ],
)
def test_a_line_that_does_not_fit_is_named_before_one_is_written(
    where: str, tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\nhouse:000,1\n{line}\n")
    with pytest.raises(LabelError, match=message):
        label_from(where, file, "ann")
    assert export_csv(where, "labels") == "id,label\n"
    file.write_text("id,label\nhouse:000,1\nhouse:000,1.0\n")  # the same number twice
    assert label_from(where, file, "ann") == {"project": "p", "accepted": 1}
