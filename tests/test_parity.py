"""The parity script: what it calls different, what it writes, and what it may know of rayal."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ACCEPTANCE = Path(__file__).parent / "acceptance"
sys.path.insert(0, str(ACCEPTANCE))

import parity  # noqa: E402

REFERENCE: dict[str, Any] = {
    "commit": "0" * 40,
    "cpu": "a",
    "torch": "b",
    "renewed": [],
    "jobs": {
        "one": {"exits": [0], "picks": {"round 0": [["x", 0.25, None]]}},
        "two": {"exits": [0, 2], "curve": [{"accuracy": "0.5"}]},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reference.json"
    parity.write(path, REFERENCE)
    return path


def test_a_reference_is_read_as_it_was_written(file: Path) -> None:
    assert json.loads(file.read_text()) == REFERENCE


@pytest.mark.parametrize(
    ("changed", "path", "old", "new"),
    [
        ({"exits": [1]}, "exits[0]", 0, 1),
        ({"exits": [0, 0]}, "exits", [0], [0, 0]),
        ({"exits": [0.0]}, "exits[0]", 0, 0.0),
        ({"picks": {"round 0": [["x", 0.25000000000000006, None]]}}, "picks, round 0[0][1]",
         0.25, 0.25000000000000006),
        ({"picks": {}}, "picks, round 0", [["x", 0.25, None]], "absent"),
        ({"more": 1}, "more", "absent", 1),
    ],
)  # fmt: skip
def test_a_difference_is_named_with_both_values(
    changed: dict[str, Any], path: str, old: Any, new: Any
) -> None:
    one = REFERENCE["jobs"]["one"]
    assert list(parity.differences(one, {**one, **changed})) == [(path, old, new)]


def test_equal_values_have_no_difference() -> None:
    told = {"nan": float("nan"), "list": [1, [2.5, None]]}
    assert list(parity.differences(told, json.loads(json.dumps(told)))) == []


def test_jobs_that_differ_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = REFERENCE["jobs"]
    later = {"one": jobs["one"], "two": {**jobs["two"], "exits": [0, 0]}, "three": {}}
    assert parity.compare(jobs, later) == 1
    told = capsys.readouterr().out
    assert "three: not in the reference" in told
    assert "two: exits[1]" in told and "1 differ: two" in told
    assert parity.compare(jobs, jobs) == 0


def test_renewed_jobs_are_told_with_their_reason(file: Path) -> None:
    parity.renew(file, {"two": {"exits": [3]}}, "another exit code")
    renewed = json.loads(file.read_text())
    assert renewed["jobs"] == {"one": REFERENCE["jobs"]["one"], "two": {"exits": [3]}}
    (entry,) = renewed["renewed"]
    assert (entry["jobs"], entry["because"]) == (["two"], "another exit code")
    assert renewed["commit"] == REFERENCE["commit"]


def test_a_renewed_job_is_remade_from_the_commit_that_renewed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*argv: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *own, *argv], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    monkeypatch.setattr(parity, "REPOSITORY", tmp_path)
    path = tmp_path / "reference.json"
    commits: list[str] = []
    parity.write(path, REFERENCE)
    for because in (None, "first", "second", None):
        if because is None:
            (tmp_path / f"other-{len(commits)}").touch()
        else:
            parity.renew(path, {"two": {"exits": [len(commits)]}}, because)
        git("add", "-A")
        git("commit", "-qm", "x")
        commits.append(git("rev-parse", "HEAD"))
    reference = json.loads(path.read_text())
    assert parity.commit_of("one", reference, path) == REFERENCE["commit"]
    assert parity.commit_of("two", reference, path) == commits[2]
    reference["renewed"].append({"jobs": ["one"], "because": "not yet"})
    with pytest.raises(parity.JobError, match="not committed yet"):
        parity.commit_of("one", reference, path)


def test_one_that_fails_in_a_group_does_not_take_the_others_with_it() -> None:
    def make(place: parity.Place, names: Any) -> dict[str, Any]:
        if "bad" in names:
            raise parity.JobError(f"no good in {place.folder}")
        return {name: {"value": name} for name in names}

    told = parity.attempted(parity.Job(("a", "bad", "b"), make), sys.executable)
    assert told["a"] == {"exits": [], "value": "a"} and told["b"]["value"] == "b"
    assert told["bad"] == {"exits": [], "failed": "no good in FOLDER"}


def test_it_imports_nothing_of_rayal() -> None:
    """Modules move; it runs under checkouts before and after that."""
    trees = [ast.parse((ACCEPTANCE / "parity.py").read_text())]
    trees += [ast.parse(text) for text in (parity.ASKING, parity.CHOOSING, parity.MACHINE)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    froms = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    assert not [name for name in froms if name.partition(".")[0] == "rayal"]
    assert {name for name in names if name.partition(".")[0] == "rayal"} == {"rayal"}


def test_the_reference_that_is_kept_says_where_it_was_made() -> None:
    kept = json.loads((ACCEPTANCE / "parity.json").read_text())
    assert list(kept) == ["commit", "cpu", "torch", "renewed", "jobs"]
    assert not [name for name, values in kept["jobs"].items() if "failed" in values]
    assert len(kept["commit"]) == 40
