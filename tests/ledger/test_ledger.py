from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayal.errors import LedgerError, SettingsError, StorageError, UnknownNameError
from rayal.ledger import Ledger, PoolPart, database

LARGE = 2**64 - 3


def part(name: str, *, key_sum: int = 7, file: str | None = None) -> PoolPart:
    return PoolPart(name, file or f"pools/digits/{name}.arrow", "pool", 10, key_sum, 4096)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        yield opened


def test_sqlite_is_set_for_durability(ledger: Ledger) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    with ledger.engine.connect() as conn:
        found = {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted}
    assert found == wanted


def test_opening_again_keeps_the_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new" / "root") as first:
        first.create_project("p", "digits", {})
    with Ledger(tmp_path / "new" / "root", create=False) as second:
        assert second.projects() == ["p"]
        assert second.root == tmp_path / "new" / "root"


def test_create_false_names_the_missing_file_and_makes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "nothing"
    with pytest.raises(StorageError, match=r"no ledger at .*nothing/ledger\.sqlite.*create=True"):
        Ledger(root, create=False)
    assert not root.exists()


def test_create_false_refuses_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()  # as a kill during the first opening leaves it
    with pytest.raises(StorageError, match="no ledger at"):
        Ledger(tmp_path, create=False)
    with Ledger(tmp_path) as made:
        assert made.pools() == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database at all " * 100)
    with pytest.raises(StorageError, match=r"ledger\.sqlite cannot be opened as a ledger"):
        Ledger(tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    with connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    connection.close()
    with pytest.raises(LedgerError, match="schema version 99, this rayal reads 1; open it with"):
        Ledger(tmp_path)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/far {kind} rw 0 0\n")
    monkeypatch.setattr(database, "MOUNTS", mounts)
    with pytest.raises(LedgerError, match=rf"{kind}.*database=.postgresql\+psycopg://"):
        Ledger(tmp_path / "far" / "root")
    assert not (tmp_path / "far").exists()
    Ledger(tmp_path / "near").close()


def test_file_system_is_that_of_the_innermost_last_mount() -> None:
    mounts = "\n".join(
        f"dev {point} {kind} rw 0 0"
        for point, kind in [
            ("/", "ext4"),
            ("/mnt", "nfs"),
            ("/mnt/my\\040disk", "xfs"),
            ("/over", "ext4"),
            ("/over", "nfs4"),
        ]
    )
    places = {"/mnt2/a": "ext4", "/mnt/a": "nfs", "/mnt/my disk/a": "xfs", "/over": "nfs4"}
    assert {p: database.file_system(Path(p), mounts) for p in places} == places


@pytest.mark.parametrize("url", ["mysql://u@h/n", "sqlite:///x.sqlite", "nonsense", "what://h/n"])
def test_other_databases_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(LedgerError, match=r"postgresql\+psycopg://"):
        Ledger(tmp_path, database=url)


def test_a_missing_driver_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="pip install"):
        Ledger(tmp_path, database="postgresql+pg8000://u@h/n")


def test_a_uri_needs_postgresql() -> None:
    with pytest.raises(LedgerError, match="is a URI"):
        Ledger("s3://bucket/root")


def test_a_writer_that_stays_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    with Ledger(tmp_path) as ledger:
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="another process held the ledger"):
            ledger.create_project("p", "digits", {})
        assert ledger.projects() == []  # readers do not wait
        other.execute("ROLLBACK")
        other.close()
        ledger.create_project("p", "digits", {})
        assert ledger.projects() == ["p"]


def test_many_threads_may_open_and_write(tmp_path: Path) -> None:
    def work(number: int) -> None:
        with Ledger(tmp_path) as ledger:
            ledger.create_project(f"p{number}", "digits", {})

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger(tmp_path) as ledger:
        assert ledger.projects() == [f"p{i}" for i in range(8)]
        assert [e.seq for e in ledger.events()] == list(range(1, 9))


def test_opening_waits_for_another_opener(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    opening = threading.Thread(target=lambda: Ledger(tmp_path).close())
    opening.start()
    opening.join(timeout=0.1)
    assert opening.is_alive()
    assert not (tmp_path / "ledger.sqlite").exists()
    os.close(descriptor)
    opening.join()
    assert (tmp_path / "ledger.sqlite").exists()


@pytest.mark.processes
def test_the_ledger_loads_neither_torch_nor_ray_nor_pyarrow() -> None:
    code = (
        "import sys, rayal.ledger; "
        "sys.exit(sum(m in sys.modules for m in ('torch', 'ray', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_snapshots_add_parts_in_commit_order(ledger: Ledger) -> None:
    assert ledger.commit_snapshot("digits", [part("b"), part("a")], {"classes": ["0"]}) == 1
    assert ledger.commit_snapshot("digits", [part("0", key_sum=LARGE)], {"classes": ["1"]}) == 2
    assert ledger.commit_snapshot("other", [part("a")], {}) == 1
    latest = ledger.snapshot("digits")
    assert (latest.number, latest.info) == (2, {"classes": ["1"]})
    assert latest.parts == (part("b"), part("a"), part("0", key_sum=LARGE))
    assert ledger.snapshot("digits", 1).parts == (part("b"), part("a"))
    assert ledger.pools() == ["digits", "other"]


def test_a_part_is_committed_once(ledger: Ledger) -> None:
    ledger.commit_snapshot("digits", [part("a")], {})
    for parts in ([part("a")], [part("b"), part("b")]):
        with pytest.raises(LedgerError, match=r"part '.' is in pool 'digits' already"):
            ledger.commit_snapshot("digits", parts, {})
    assert ledger.snapshot("digits").number == 1


@pytest.mark.parametrize("file", ["/etc/passwd", "../outside", ""])
def test_files_are_relative_to_the_root(ledger: Ledger, file: str) -> None:
    wrong = PoolPart("a", file, "pool", 1, 1, 1)
    with pytest.raises(LedgerError, match="relative to the storage root"):
        ledger.commit_snapshot("digits", [wrong], {})


def test_key_sums_are_unsigned(ledger: Ledger) -> None:
    for wrong in (-1, 2**64):
        with pytest.raises(LedgerError, match="unsigned 64-bit"):
            ledger.commit_snapshot("digits", [part("a", key_sum=wrong)], {})
    assert ledger.pools() == []


def test_unknown_pools_offer_the_nearest(ledger: Ledger) -> None:
    ledger.commit_snapshot("digits", [part("a")], {})
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        ledger.snapshot("digit")
    with pytest.raises(UnknownNameError, match="no snapshot 5; it has 1 to 1"):
        ledger.snapshot("digits", 5)


def test_a_project_is_made_once(ledger: Ledger) -> None:
    settings = {"learner": {"steps": 300}, "classes": ("a", "b")}
    ledger.create_project("p", "digits", settings)
    ledger.create_project("p", "digits", settings)
    row = ledger.project("p")
    assert (row.project, row.pool) == ("p", "digits")
    assert row.settings == {"learner": {"steps": 300}, "classes": ["a", "b"]}
    assert [(e.kind, e.project) for e in ledger.events()] == [("project", "p")]


def test_other_settings_name_the_first_differing_keys(ledger: Ledger) -> None:
    ledger.create_project("p", "digits", {"learner": {"steps": 300, "lr": 1}, "batch": 5})
    with pytest.raises(SettingsError) as error:
        ledger.create_project("p", "other", {"learner": {"steps": 200, "lr": 1.0}, "rounds": 2})
    message = str(error.value)
    assert 'pool was "digits", now "other"' in message
    assert "settings.learner.steps was 300, now 200" in message
    assert "settings.learner.lr was 1, now 1.0 and 2 more; use the settings" in message
    assert ledger.project("p").settings["batch"] == 5


@pytest.mark.parametrize("need", [0, 1.5, True, "2"])
def test_labels_per_item_is_checked(ledger: Ledger, need: object) -> None:
    with pytest.raises(SettingsError, match="labels_per_item"):
        ledger.create_project("p", "digits", {"labeling": {"labels_per_item": need}})


def test_settings_must_be_json(ledger: Ledger) -> None:
    for wrong in (float("nan"), object()):
        with pytest.raises(LedgerError, match="settings of project 'p' cannot be written as JSON"):
            ledger.create_project("p", "digits", {"x": wrong})


def test_unknown_projects_offer_the_nearest(ledger: Ledger) -> None:
    ledger.create_project("fashion", "digits", {})
    for call in (ledger.project, ledger.rounds, ledger.states, ledger.labels_seq, ledger.resolved):
        with pytest.raises(UnknownNameError, match="did you mean 'fashion'"):
            call("fashio")
    with pytest.raises(UnknownNameError, match="did you mean 'fashion'"):
        ledger.lease("fashio", "ann", 1)
