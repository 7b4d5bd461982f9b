"""The commands of the page on backups, as they stand there: what is restored goes on alike."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_cases import finish, picks_of
from postgres_server import PostgresServer
from revision_cases import later
from sklearn.datasets import load_digits

from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.ledger.upgrade import upgrade
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.registry import strategies

pytestmark = pytest.mark.processes
PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()
ROUNDS = (-1, 0, 1)


def blocks(heading: str) -> list[str]:
    """Return the blocks of commands under a heading of the page, "" for its beginning."""
    parts = re.split(r"^#+ (.*)\n", PAGE, flags=re.M)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[heading]
    return re.findall(r"```sh\n(.*?)```", text, re.S)


def follow(heading: str, names: dict[str, str | Path]) -> str:
    """Run the commands under a heading; blocks that only set names are the reader's to change."""
    commands = [block for block in blocks(heading) if not sets(block)]
    assert commands
    folder = Path(sys.executable).parent  # of the rayal command
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(commands)],
        env=environment | {name: str(value) for name, value in names.items()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def sets(block: str) -> bool:
    return all(re.fullmatch(r"[A-Z]+=\S+", line) for line in block.splitlines())


def spec(strategy: str) -> ProjectSpec:
    return ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (16,)}),
        learner=Supervised(steps=8, batch=8, epoch_steps=4),
        strategy=strategies[strategy](),
        initial=Initial(count=20),
        batch=5,
        rounds=2,
    )


def work_on(root: Path) -> None:
    """Fill a root with a finished project and one in the middle of a round, with work held."""
    x, y = load_digits(return_X_y=True)
    for role, at in (("pool", slice(0, 300)), ("test", slice(300, 360))):
        ids = [f"digit-{number}" for number in range(at.start, at.stop)]
        kind: Any = role
        pool = Pool.ingest(root, "digits", [array_source(x[at], y[at], ids=ids, role=kind)])
    with Ledger(root) as ledger:
        finish(Project.create(ledger, "finished", pool, spec("margin")))
        project = Project.create(ledger, "unfinished", pool, spec("badge"))
        project.prepare()
        oracle = Oracle(pool)
        oracle.work(project)
        project.train(oracle.truth)
        labeled, _ = project.ask(2, annotator="oracle")  # the other one stays held
        project.tell({labeled.item: oracle.answer(labeled.item)}, annotator="oracle")
        ledger.add_token("ann's", ["admin"], "0" * 64, expires=None)


def all_picks(root: Path, *, end: bool) -> dict[str, Sequence[Any]]:
    """Return the picks of both projects, brought to their ends first if ``end``."""
    with Ledger(root, create=False) as ledger:
        projects = [Project(ledger, name) for name in ("finished", "unfinished")]
        if end:
            for project in projects:
                finish(project)
        return {project.name: picks_of(project, *ROUNDS) for project in projects}


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("backup") / "root"
    work_on(root)
    return root


@pytest.fixture
def names(tmp_path: Path) -> dict[str, str | Path]:
    return {n: tmp_path / n.lower() for n in ("ROOT", "BACKUP", "RESTORED")}


@pytest.fixture
def root(names: dict[str, str | Path], worked: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(worked, names["ROOT"]))


def test_the_page_names_what_a_reader_sets() -> None:
    block = next(block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S))
    assert sets(block)
    assert re.findall(r"^[A-Z]+", block, re.M) == ["ROOT", "BACKUP", "RESTORED"]


@pytest.mark.parametrize("how", ["online", "offline"])
def test_a_restored_root_goes_on_to_the_same_picks(
    how: str, root: Path, names: dict[str, str | Path]
) -> None:
    if how == "online":
        with Ledger(root) as ledger:  # its last writes are in the -wal alone
            ledger.add_token("bob's", ["admin"], "1" * 64)
            assert follow("SQLite, online", names) == "ok\n"
            ledger.add_token("since", ["admin"], "2" * 64)
    else:
        follow("SQLite, offline", names)
    before = all_picks(root, end=False)
    expected = all_picks(root, end=True)
    assert expected != before
    shutil.rmtree(root)
    shown = follow("SQLite, restore", names)
    assert "finished" in shown and "unfinished" in shown
    restored = Path(names["RESTORED"])
    with Ledger(restored, create=False) as ledger:
        assert list(ledger.states("unfinished").values()).count("leased") == 1
        tokens = [token.name for token in ledger.tokens()]
        assert tokens == ["ann's", "bob's"][: 1 + (how == "online")]
    assert all_picks(restored, end=False) == before
    assert all_picks(restored, end=True) == expected


def test_a_restored_database_goes_on_to_the_same_picks(
    postgres: PostgresServer, names: dict[str, str | Path], tmp_path: Path
) -> None:
    root, restored = Path(names["ROOT"]), Path(names["RESTORED"])
    Ledger(root, database=postgres.database()).close()
    work_on(root)
    with Ledger(root):
        follow("PostgreSQL", names)
    before, expected = all_picks(root, end=False), all_picks(root, end=True)
    new = postgres.database()
    follow("PostgreSQL, restore", {**names, "NEW": new.replace("+psycopg", "")})
    assert (restored / "database").read_text().strip() == new
    assert (restored / "database").stat().st_mode & 0o777 == 0o600
    assert all_picks(restored, end=False) == before != expected
    assert all_picks(restored, end=True) == expected


def test_an_upgrade_may_be_taken_back(
    root: Path, names: dict[str, str | Path], tmp_path: Path
) -> None:
    before = all_picks(root, end=False)
    assert "nothing to do" in follow("Upgrade", names)
    done = upgrade(root, schema=later(tmp_path / "later"))
    assert done.backup is not None
    follow("Going back", {**names, "BEFORE": done.backup})
    assert all_picks(root, end=False) == before
