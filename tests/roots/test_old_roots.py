"""Roots of runs that an older version was killed in: they open, go on by the same command, and end.

``make_roots.py`` made them and tells how. Hashes that follow from what a root holds are the same on
every machine. What a round computes after the kill follows from arithmetic too, so that its picks,
and the hashes of what is trained on them, are compared only where CPU and torch are those that the
literals were recorded with; elsewhere rounds, stages and numbers of picks are.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from make_roots import ROOTS, ledger_of, machine

import rayal

HERE = Path(__file__).parent
#: what stages and provenance hold: later versions read it, so that no word is ever renamed
STAGES = {
    "prepare": {"labels"},
    "pretrain": {"model", "rows", "steps"},
    "train": {"model", "members"},
    "evaluate": {"metrics", "items"},
    "scan": {"columns", "rows", "labels", "score_low", "score_high"},
    "select": {"picks"},
    "label": {"labeled", "picks"},
}
PROVENANCE = {
    "model", "strategy", "seed", "columns", "snapshot", "scan", "selection", "candidates",
    "approximation",
}  # fmt: skip
INITIAL = {"initial", "seed", "candidates"}
WRITTEN = {  # the committed files, and when
    "checkpoints": "select model, member, epoch, file, committed from checkpoints where final",
    "columns": "select columns, part, file, committed from column_parts",
}

Rows = list[list[Any]]


@lru_cache(maxsize=1)
def literals() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "roots.json").read_text())
    return found


@dataclass(frozen=True)
class Resumed:
    """A root whose run has ended by the same command.

    Attributes:
        root: the root, as the command left it.
        killed: the recorded rows of its ledger when it was killed.
        ended: the recorded rows when the command had ended.
        before: the rows of this ledger, before the command.
        after: the same, after it.
        written: committed files of finished trainings and scans, before the command.
    """

    root: Path
    killed: dict[str, Rows]
    ended: dict[str, Rows]
    before: dict[str, Rows]
    after: dict[str, Rows]
    written: dict[str, Rows]

    def known(self, project: str, round: int) -> bool:
        """Whether a round's training set was stored when the run was killed."""
        return any(row[:2] == [project, round - 1] for row in self.killed["provenance"])

    def settled(self, rows: dict[str, Rows]) -> dict[Any, str]:
        """Return the hashes that follow from what the root held, by project, round and stage."""
        words = {"pretrain": "model", "train": "model", "scan": "columns"}
        return {
            (project, round, stage): output[words[stage]]
            for project, round, stage, output in rows["stages"]
            if stage in words and self.known(project, round)
        }


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(HERE / f"{name}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "root"


def run(folder: Path) -> None:
    """Run the killed run's command, in this process: it has loaded torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["rayal", "run", "run.yaml"])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("rayal", run_name="__main__")
    assert not end.value.code


def written(root: Path) -> dict[str, Rows]:
    with contextlib.closing(sqlite3.connect(root / "ledger.sqlite")) as at:
        return {name: [list(row) for row in at.execute(sql)] for name, sql in WRITTEN.items()}


@pytest.fixture(scope="module", params=ROOTS)
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    folder, told = tmp_path_factory.mktemp("root"), literals()[request.param]
    root = unpack(request.param, folder)
    before, files = ledger_of(root), written(root)
    run(folder)
    return Resumed(root, told["killed"], told["ended"], before, ledger_of(root), files)


def projects(resumed: Resumed) -> Iterator[tuple[rayal.Project, dict[str, Any]]]:
    for name, settings in resumed.ended["settings"]:
        with rayal.Project.open(resumed.root, name) as project:
            yield project, settings


def test_its_ledger_is_the_recorded_one(resumed: Resumed) -> None:
    assert resumed.before == resumed.killed
    assert [row[0] for row in resumed.before["settings"]] == ["badge-s3", "random-s3"]


def test_its_projects_are_the_same_values(resumed: Resumed) -> None:
    for project, settings in projects(resumed):
        assert project.spec.to_json() == settings
        assert type(project.spec).from_json(settings) == project.spec


def test_hashes_that_follow_from_it_are_the_recorded_ones(resumed: Resumed) -> None:
    """On every machine: nothing but stored data is in them."""
    hashes = resumed.settled(resumed.ended)
    assert hashes and resumed.settled(resumed.after) == hashes


def test_it_ends_as_it_did(resumed: Resumed) -> None:
    after, recorded = resumed.after, resumed.ended
    if literals()["machine"] == machine():
        assert after == recorded
        return
    for name, length in {"stages": 3, "provenance": 2, "picks": 3}.items():
        assert [row[:length] for row in after[name]] == [row[:length] for row in recorded[name]]
    assert len(after["checkpoints"]) == len(recorded["checkpoints"])


def test_its_outputs_tell_the_picks_of_the_ledger(resumed: Resumed) -> None:
    told = pq.read_table(resumed.root / "picks.parquet").to_pylist()
    names = ("project", "round", "rank", "item", "score")
    assert sorted([row[n] for n in names] for row in told) == sorted(resumed.after["picks"])


def test_what_was_finished_is_not_made_again(resumed: Resumed) -> None:
    now = written(resumed.root)
    for name, rows in resumed.written.items():
        assert [row for row in rows if row not in now[name]] == []


def test_finished_trainings_load_under_their_recorded_hashes(resumed: Resumed) -> None:
    before = written(resumed.root)
    models = {
        (p, r): out["model"] for p, r, stage, out in resumed.after["stages"] if stage == "train"
    }
    for project, _ in projects(resumed):
        for round in range(3):
            assert project.committee(round).hash == models[project.name, round]
    assert written(resumed.root) == before, "a model was trained again"


def test_the_words_of_stages_and_provenance_stay(resumed: Resumed) -> None:
    for _, _, stage, output in resumed.after["stages"]:
        asked = output.get("columns") is not None
        plain = STAGES[stage] if stage != "scan" or asked else {"columns", "rows"}
        assert plain <= set(output), stage
    for _, round, told in resumed.after["provenance"]:
        assert (INITIAL if round < 0 else PROVENANCE) <= set(told)


def test_settings_are_compared_as_values_not_as_text(tmp_path: Path) -> None:
    """A later version may write the fields of its settings in another order."""
    root = unpack("finished", tmp_path)
    with contextlib.closing(sqlite3.connect(root / "ledger.sqlite")) as at, at:
        for name, settings in at.execute("select project, settings from projects").fetchall():
            text = json.dumps(json.loads(settings), sort_keys=True)
            at.execute("update projects set settings = ? where project = ?", (text, name))
    before = written(root)
    run(tmp_path)
    assert written(root) == before


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    """So that the comparison is one: the roots' own command is not merely let through."""
    unpack("finished", tmp_path)
    settings = (tmp_path / "run.yaml").read_text()
    assert "batch: 6" in settings
    (tmp_path / "run.yaml").write_text(settings.replace("batch: 6", "batch: 7"))
    with pytest.raises(AssertionError):
        run(tmp_path)
