from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console

import rayal.evaluation.report as report
from rayal.errors import SettingsError, StorageError
from rayal.evaluation.curves import CurvePoint, read_curve_csv
from rayal.evaluation.report import approximations, remarks, table, versions, write_outputs
from rayal.settings.run import load

read_parquet: Any = pyarrow.parquet.read_table  # Arrow carries no types
FILES = {
    "curve.csv",
    "curve.png",
    "rounds.parquet",
    "picks.parquet",
    "settings.yaml",
    "versions.json",
}
POINTS = [
    CurvePoint(name, str(seed), r, 100 * (r + 1), {"accuracy": 0.5 + gain * r + 0.02 * seed}, {})
    for name, gain in (("margin", 0.1), ("random", 0.05))
    for seed in range(3)
    for r in range(4)
]
ROUNDS = [{"round": 0, "labels": 100}, {"round": 1, "labels": 200, "note": {"b": 1, "a": [2]}}]
PICKS = [{"item": "a", "key": 2**64 - 1, "score": 0.5}, {"item": "b", "key": 3, "score": None}]


def write(folder: Path, **changed: Any) -> None:
    given: dict[str, Any] = {
        "settings_yaml": load({"pool": {"source": "digits"}}).to_yaml(),
        "points": POINTS,
        "rounds": ROUNDS,
        "picks": PICKS,
        "versions": versions(),
    }
    write_outputs(folder, **given | changed)


def text(view: Any) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=140).print(view)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    start = next(n for n, line in enumerate(lines) if line.startswith("strategy"))
    rows = [
        line for line in lines[start:] if line and line[0] not in "─" and "n: seeds" not in line
    ]
    return [re.split(r"\s{2,}", row) for row in rows]


def test_all_files_are_written_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    write(folder)
    assert {p.name for p in folder.iterdir()} == FILES
    assert read_curve_csv(folder / "curve.csv") == POINTS
    assert load(folder / "settings.yaml").pool.source == "digits"
    assert json.loads((folder / "versions.json").read_text()) == versions()
    assert read_parquet(folder / "picks.parquet").to_pylist() == PICKS
    assert read_parquet(folder / "rounds.parquet").to_pylist() == [
        {"round": 0, "labels": 100, "note": None},
        {"round": 1, "labels": 200, "note": '{"a": [2], "b": 1}'},
    ]
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_written_again_the_files_are_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, points=POINTS[:2], picks=[])
    assert {p.name for p in tmp_path.iterdir()} == FILES
    assert len(read_curve_csv(tmp_path / "curve.csv")) == 2
    assert read_parquet(tmp_path / "picks.parquet").num_rows == 0


def test_failure_leaves_the_old_file_whole_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    before = (tmp_path / "curve.csv").read_bytes()

    def break_off(path: Path, points: Any) -> None:
        path.write_text("strategy,se")
        raise OSError("disk full")

    monkeypatch.setattr(report, "write_curve_csv", break_off)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, points=POINTS[:2])
    assert (tmp_path / "curve.csv").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == FILES


def test_without_points_there_is_no_picture(tmp_path: Path) -> None:
    write(tmp_path, points=[], rounds=[], picks=[])
    assert {p.name for p in tmp_path.iterdir()} == FILES - {"curve.png"}


def test_column_of_mixed_types_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"picks\.parquet: column 'score' mixes types"):
        write(tmp_path, picks=[{"score": 1.0}, {"score": "high"}])


def test_key_columns_with_negative_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="column 'key' mixes types"):
        write(tmp_path, picks=[{"key": 2**64 - 1}, {"key": -1}])


def test_other_metric_is_drawn_on_demand(tmp_path: Path) -> None:
    points = [CurvePoint("random", "0", 0, 10, {"rmse": 0.3}, {})]
    write(tmp_path, points=points, metric="rmse")
    write(tmp_path, points=points)  # the leading one that there is
    with pytest.raises(SettingsError, match="no point has the metric 'accuracy'"):
        write(tmp_path, points=points, metric="accuracy")


def test_table_lists_random_first_with_differences() -> None:
    header, random, margin = text(table(POINTS))
    assert header[:5] == ["strategy", "100", "200", "300", "400"]
    assert header[5:] == ["curve mean", "minus random, 90 %", "n"]
    # mean over 4 rounds: 0.5 + 1.5 gain, and 0.02 more on the mean of three seeds
    assert random[:5] == ["random", "0.520", "0.570", "0.620", "0.670"]
    assert random[5:] == ["0.595 ± 0.020", "–", "3"]
    assert margin[0] == "margin" and margin[5:] == [
        "0.670 ± 0.020",
        "+0.075 [+0.075 +0.075]",
        "3",
    ]


def test_table_shows_four_counts_evenly_spread_or_those_asked_for() -> None:
    points = [CurvePoint("random", "0", r, 10 + r, {"accuracy": 0.5}, {}) for r in range(10)]
    assert text(table(points))[0][1:5] == ["10", "13", "16", "19"]
    assert text(table(points, at=(11, 12, 99)))[0][1:4] == ["11", "12", "curve mean"]


def test_table_of_one_seed_shows_no_interval() -> None:
    points = [p for p in POINTS if p.seed == "0"]
    assert text(table(points))[2][5:] == ["0.650", "+0.075", "1"]


def test_approximate_strategies_are_marked_with_their_loss() -> None:
    loss = {"measure": "covering radius", "value": 3.0, "reference": 2.0, "rows": 900}
    made = {"method": "two_round", "candidates": 90, "of": 1000}
    rounds: list[dict[str, Any]] = [
        {"strategy": "margin", "approximation": {**made, "loss": {**loss, "ratio": 1.5}}},
        {"strategy": "margin", "approximation": {**made, "loss": {**loss, "ratio": 1.1}}},
        {"strategy": "random", "approximation": None},
    ]
    how = approximations(rounds)
    assert how == {
        "margin": "two_round; 90 candidates of 1,000; covering radius 1.300 x exact on 900 rows, "
        "mean of 2"
    }
    view = table(POINTS, approximate=how)
    assert list(view.columns[0].cells) == ["random", "≈ margin"]
    assert "≈ margin: two_round" in str(view.caption)
    assert "≈" not in str(table(POINTS).caption)


def test_versions_are_those_that_run() -> None:
    found = versions()
    assert found["numpy"] == numpy.__version__
    assert found["machine"]["cpus"] >= 1 and found["python"].count(".") == 2
    assert yaml.safe_load(yaml.safe_dump(found)) == found, "plain values only"


def test_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_PACKAGES", ("numpy", "not-a-package"))
    assert versions()["not-a-package"] is None


def test_equal_scores_and_wrong_labels_stand_below_the_table() -> None:
    rounds = [
        {"project": f"{name}-s0", "strategy": name, "seed": "s0", "round": n, "labels": 100 + n,
         "warning": "equal" if name == "margin" and n else None, "wrong": 10 + n}
        for name in ("margin", "random") for n in range(3)
    ]  # fmt: skip
    said = remarks(rounds)
    assert said == [
        "! margin: all scores were equal, so the choice was by item key alone: s0 round 1, "
        "s0 round 2",
        "simulated annotators got 24 of 204 labels wrong (11.8%)",
    ]
    assert remarks([{"project": "p", "strategy": "margin", "warning": None, "wrong": None}]) == []
    out = io.StringIO()
    Console(file=out, width=140).print(table(POINTS, remarks=said))
    shown = " ".join(out.getvalue().split())  # the caption is as wide as the table
    assert all(line in shown for line in said)
