"""Random histories of annotators, crashes and clocks, against the rules in plain Python."""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from postgres_server import PostgresServer
from rules_model import KEEP, Held, Model, Refused, Rules
from sqlalchemy import Engine, bindparam, create_engine

from rayal.errors import LeaseError, LedgerError
from rayal.ledger import LabelEntry, Ledger, Pick, SkipEntry
from rayal.ledger.ledger import rebuild, replay
from rayal.ledger.schema import UNTOLD, metadata

WHO = st.sampled_from(["ann", "bob", "cat", "dan", "eve"])
ITEMS = [f"i{n}" for n in range(6)]  # the last ones may never be offered
ITEM = st.sampled_from(ITEMS)
VALUES = [0, 0, 1, 1, True, "ä", math.nan]
NUMBERS = [0.2, 0.4, 0.6, 0.8, 0.8, 1.0, math.nan]  # 0.8 and 0.6 are 0.2 apart, as they are written
VALUE = st.integers(0, len(VALUES) - 1)
HOW = st.sampled_from(["plain"] * 5 + ["once", "once", "crash", "crash in once", "torn"])
OF_PROJECT = {
    name: table.select().where(table.c.project == bindparam("project"))
    for name, table in metadata.tables.items()
    if "project" in table.c
}
Rows = dict[str, list[dict[str, Any]]]
TTL = 10.0
STEPS = 25
FAST = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


class Crash(Exception):
    """The process ends here."""


@dataclass
class Message:
    """What an annotator sent once, and may be sent again."""

    who: str
    entries: list[LabelEntry | SkipEntry] = field(default_factory=list)


class Histories(RuleBasedStateMachine):
    """One project, many annotators; every answer of the ledger is compared with the model's."""

    ledger: Ledger  # of all histories: each is a project of its own

    def __init__(self) -> None:
        super().__init__()
        self.project = f"p{len(self.ledger.projects())}"
        self.rounds, self.keys, self.steps = 0, 0, 0
        drawn = itertools.count()  # lease ids in no order, but the same in each run

        def draw() -> SimpleNamespace:
            mixed = blake2b(b"%d" % next(drawn), digest_size=8).hexdigest()
            return SimpleNamespace(hex=f"{mixed} {self.project}")

        self.ids = patch("rayal.ledger.leases.uuid.uuid4", draw)
        self.ids.start()
        self.sent: list[Message] = []
        self.requests: list[tuple[str, str]] = []  # key, answer
        self.given: dict[tuple[str, str, int], Any] = {}  # who, item, seq -> value

    @initialize(
        base=st.integers(1, 3),
        agreement=st.sampled_from(["first", "majority", "majority", "all"]),
        more=st.integers(0, 2),
        skips=st.integers(1, 3),
        offered=st.integers(1, 4),
        tolerance=st.sampled_from([0.0, 0.0, 0.2, 0.4]),
    )
    def begin(
        self, base: int, agreement: str, more: int, skips: int, offered: int, tolerance: float
    ) -> None:
        self.model = Model(Rules(base, agreement, base + more, skips, TTL, tolerance))
        self.values = NUMBERS if tolerance else VALUES
        self.ledger.create_project(self.project, "digits", {"labeling": self.labeling()})
        self.offer(ITEMS[:offered])

    def labeling(self) -> dict[str, Any]:
        names = (
            "labels_per_item",
            "agreement",
            "max_labels",
            "max_skips",
            "lease_ttl",
            "tolerance",
        )
        return dict(zip(names, self.model.rules, strict=True))

    def offer(self, items: list[str]) -> None:
        picks = [Pick(item, n, n, n / 4, None) for n, item in enumerate(items)]
        stage = None
        if self.rounds:  # the first selection is the initial choice
            number = self.rounds - 1
            seq = self.ledger.labels_seq(self.project)
            self.ledger.begin_round(self.project, number, snapshot=1, labels_seq=seq, seeds={})
            stage = "select"
        self.ledger.commit_selection(
            self.project, self.rounds - 1, picks, [], {}, stage=stage, output={}, seconds=0.0
        )
        self.model.offer(self.rounds - 1, items)
        self.rounds += 1

    # -- how a request comes ---------------------------------------------------------------------

    def send(self, how: str, call: Callable[[], Any]) -> Any:
        """Make a call; return its answer, or None if it ended in a crash and nothing is left."""
        if how == "plain":
            return call()
        self.keys += 1
        key = f"k{self.keys}"
        try:
            with self.dying(how):
                if how in ("crash", "torn"):
                    with self.ledger.transaction():
                        call()
                        raise Crash
                with self.ledger.once(
                    self.project, key, f"of {key}", now=self.model.now
                ) as request:
                    self.drop_old()
                    made = call()
                    body = json.dumps(made)
                    request.store(200, body.encode(), {"n": key})
                    if how == "crash in once":
                        raise Crash
        except Crash:
            return None
        self.model.kept[key] = (self.model.now, body)
        self.requests.append((key, body))
        self.repeat(key)  # its first answer was lost
        return made

    @contextmanager
    def dying(self, how: str) -> Iterator[None]:
        """Let the process die between two statements of a write, if that is how."""

        def die(_name: str) -> None:
            raise Crash

        if how == "torn":
            with patch("rayal.ledger.label_transaction.failpoint", die):
                yield
        else:
            yield

    def drop_old(self) -> None:
        kept = self.model.kept.items()
        self.model.kept = {k: v for k, v in kept if v[0] > self.model.now - KEEP}

    def repeat(self, key: str) -> None:
        """Send a request once more: it is answered as before, and does nothing."""
        with self.ledger.once(self.project, key, f"of {key}", now=self.model.now) as request:
            self.drop_old()
            known = self.model.kept.get(key)
            if known is None:
                assert request.replay is None
            else:
                assert request.replay is not None
                assert astuple(request.replay) == (200, known[1].encode(), {"n": key})

    # -- rules -----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([-25, -9, 1, 5, 9, 10, 10, 25, 40_000, 90_000]))
    def clock_jumps(self, seconds: int) -> None:
        self.model.now += seconds

    @rule(who=WHO, count=st.integers(0, 4), how=HOW)
    def lease(self, who: str, count: int, how: str) -> None:
        def call() -> Any:
            return [
                astuple(x) for x in self.ledger.lease(self.project, who, count, now=self.model.now)
            ]

        got = self.send(how, call)
        if got is None:
            return
        mine, new = self.model.offers(who, count)
        assert [x[0] for x in got[: len(mine)]] == mine
        assert [x[1] for x in got[len(mine) :]] == new
        for name, item, annotator, round, rank, score, expires in got:
            if name not in self.model.leases:
                held = self.model.active(item)
                assert who not in {h.who for _, h in held}  # no item twice to one annotator
                assert who not in {a.who for a in self.model.standing(item)}
                now = self.model.now
                self.model.leases[name] = Held(item, who, "active", now, now + TTL)
            assert (annotator, expires) == (who, self.model.leases[name].expires)
            assert ((round, rank), score) == (self.model.places[item], rank / 4)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), who=st.none() | WHO, how=HOW)
    def extend(self, data: st.DataObject, who: str | None, how: str) -> None:
        lease = data.draw(st.sampled_from(list(self.model.leases)))

        def call() -> Any:
            try:
                return self.ledger.extend(self.project, lease, TTL, who, now=self.model.now).expires
            except LeaseError:
                return "refused"

        got = self.send(how, call)
        if got is not None:
            try:
                assert got == self.model.extend(lease, who)
            except Refused:
                assert got == "refused"

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), how=HOW)
    def give_back(self, data: st.DataObject, how: str) -> None:
        lease = data.draw(st.sampled_from(list(self.model.leases)))

        def call() -> Any:
            self.ledger.give_back(self.project, lease, now=self.model.now)
            return True

        if self.send(how, call):
            self.model.give_back(lease)

    @rule(data=st.data(), who=WHO, how=HOW, size=st.integers(1, 3))
    def answer(self, data: st.DataObject, who: str, how: str, size: int) -> None:
        """Labels and skips, leased, late, unleased, or under leases of others."""
        entries: list[LabelEntry | SkipEntry] = []
        for _ in range(size):
            item = data.draw(ITEM)
            mine = [n for n, h in self.model.leases.items() if (h.item, h.who) == (item, who)]
            some = [None, *sorted(mine), *sorted(mine), *[*self.model.leases][:1], "none"]
            lease = data.draw(st.sampled_from(some))
            if data.draw(st.integers(0, 3)):
                entries.append(LabelEntry(item, self.values[data.draw(VALUE)], lease))
            else:
                entries.append(SkipEntry(item, data.draw(st.sampled_from([None, "dark"])), lease))
        self.sent.append(Message(who, entries))
        self.say(self.sent[-1], how)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), how=HOW)
    def answer_comes_again(self, data: st.DataObject, how: str) -> None:
        self.say(data.draw(st.sampled_from(self.sent)), how)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), value=VALUE, how=HOW)
    def answer_to_a_lease(self, data: st.DataObject, value: int, how: str) -> None:
        name = data.draw(st.sampled_from(list(self.model.leases)))
        held = self.model.leases[name]
        self.sent.append(Message(held.who, [LabelEntry(held.item, self.values[value], name)]))
        self.say(self.sent[-1], how)

    def say(self, message: Message, how: str) -> None:
        def call() -> Any:
            made = self.ledger.label(self.project, message.who, message.entries, now=self.model.now)
            assert all((r.detail is None) == (r.status != "rejected") for r in made)
            return [(r.item, r.status, r.late, r.seq) for r in made]

        got = self.send(how, call)
        if got is None:
            return
        for entry, result in zip(message.entries, got, strict=True):
            if isinstance(entry, SkipEntry):
                wanted = self.model.skip(message.who, entry.item, entry.reason, entry.lease)
            else:
                wanted = self.model.label(message.who, entry.item, entry.value, entry.lease)
            assert tuple(result) == wanted
            if wanted[1] in ("accepted", "surplus", "updated", "conflict"):
                assert isinstance(entry, LabelEntry) and wanted[3] is not None
                self.given[message.who, entry.item, wanted[3]] = entry.value

    @rule(who=WHO, item=ITEM, how=HOW)
    def retract(self, who: str, item: str, how: str) -> None:
        def call() -> Any:
            result = self.ledger.retract(self.project, who, item, now=self.model.now)
            return (result.item, result.status, result.late, result.seq)

        got = self.send(how, call)
        if got is not None:
            assert tuple(got) == self.model.retract(who, item)

    @precondition(lambda self: self.rounds < 3)
    @rule(items=st.lists(ITEM, min_size=1, max_size=3, unique=True))
    def next_round(self, items: list[str]) -> None:
        again = [i for i in items if i in self.model.places and i not in self.model.gone]
        if again:
            with (
                pytest.raises(LedgerError, match="was offered in round"),
                self.ledger.transaction(),
            ):
                self.offer(items)
        else:
            self.offer(items)

    @rule(item=ITEM, chance=st.integers(0, 5))
    def forget(self, item: str, chance: int) -> None:
        if chance == 0:
            self.ledger.forget_item(self.project, item, now=self.model.now)
            self.model.forget(item)
            kept = self.model.kept.items()  # answers that name it are forgotten too
            self.model.kept = {k: v for k, v in kept if f'"{item}"' not in v[1]}
            self.given = {key: value for key, value in self.given.items() if key[1] != item}

    @rule(skips=st.integers(1, 3))
    def other_max_skips(self, skips: int) -> None:
        version = self.ledger.project(self.project).version
        self.model.rules = self.model.rules._replace(skips=skips)
        changed = {"labeling": self.labeling()}
        self.ledger.update_project(self.project, changed, version=version, now=self.model.now)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def request_comes_again(self, data: st.DataObject) -> None:
        self.repeat(data.draw(st.sampled_from(self.requests))[0])

    @rule()
    def connections_end(self) -> None:
        self.ledger.engine.dispose()

    # -- what holds always -------------------------------------------------------------------------

    @precondition(lambda self: self.rounds)
    @invariant()
    def the_rules_hold(self) -> None:
        rows = self.rows("items", "leases", "labels")
        self.slots_hold_and_nothing_is_lost(rows)
        self.the_ledger_is_what_the_rules_say(rows)

    def slots_hold_and_nothing_is_lost(self, rows: Rows) -> None:
        active = [row for row in rows["leases"] if row["state"] == "active"]
        twice = Counter((row["annotator"], row["item"]) for row in active)
        assert set(twice.values()) <= {1}
        held = Counter(row["item"] for row in active)
        filled = Counter(
            row["item"]
            for row in rows["labels"]
            if row["slot"] is not None and row["superseded_by"] is None
        )
        for row in rows["items"]:
            assert row["accepted"] == filled[row["item"]]
            assert held[row["item"]] + filled[row["item"]] <= row["need"]
            assert row["need"] <= self.model.rules.most
        kept = {(r["annotator"], r["item"], r["seq"]): r["value"] for r in rows["labels"]}
        assert all(repr(kept[key]) == repr(value) for key, value in self.given.items())

    def the_ledger_is_what_the_rules_say(self, rows: Rows) -> None:
        model = self.model
        states = {item: model.state(item) for item in model.touched()}
        assert self.ledger.states(self.project, now=model.now) == states
        assert {
            r["lease"]: (r["item"], r["annotator"], r["state"], r["granted"], r["expires"])
            for r in rows["leases"]
        } == {name: astuple(held) for name, held in model.leases.items()}
        names = ("item", "annotator", "value", "status", "slot", "late", "lease", "reason")
        told = sorted(rows["labels"], key=lambda row: row["seq"])
        answers = [tuple(row[name] for name in names) for row in told]
        assert repr(answers) == repr([astuple(a)[:-1] for a in model.history])
        self.steps += 1
        if self.steps % 5 == 0:
            self.views_are_what_the_rules_say(states)

    def views_are_what_the_rules_say(self, states: dict[str, str]) -> None:
        model, ledger, now = self.model, self.ledger, self.model.now
        history = [(r.seq, r.value, r.status) for r in ledger.labels(self.project)]
        wanted_history = [(n, a.value, a.status) for n, a in enumerate(model.history, 1)]
        assert repr(history) == repr(wanted_history)
        for up_to in {0, len(model.history) // 2, len(model.history)}:
            assert repr(ledger.resolved(self.project, up_to)) == repr(model.resolved(up_to))
        place = model.places.__getitem__
        free = sorted((i for i in model.places if model.has_free_slot(i, now)), key=place)
        assert [r.item for r in ledger.offered(self.project, now=now)] == free
        assert ledger.ready(self.project, now=now) == len(free)
        open_items = sorted(filter(model.is_open, model.places), key=place)
        assert ledger.open_items(self.project) == open_items
        counts = Counter(states.values())
        wanted = sum(i not in model.gone for i in model.places)
        shown = ("offered", "leased", "labeled", "skipped", "conflict")
        assert ledger.counts(self.project, now=now) == {"wanted": wanted} | {
            s: counts[s] for s in shown
        }
        page = ledger.items_page(self.project, now=now)
        alive = [i for i in model.touched() if i not in model.gone]
        assert [(r.item, r.state, r.need, r.accepted) for r in page] == [
            (i, states[i], model.need(i), model.filled(i)) for i in alive
        ]

    def teardown(self) -> None:
        """Build the project's tables again from its events."""
        self.ids.stop()
        told = rebuild(self.ledger.events(project=self.project)) if self.rounds else {}
        for name, found in self.rows(*told).items():
            assert sorted(map(_text, told[name])) == sorted(map(_text, found)), name

    def rows(self, *names: str) -> Rows:
        of_project = {"project": self.project}
        with self.ledger.engine.connect() as conn:
            return {
                name: [dict(row) for row in conn.execute(OF_PROJECT[name], of_project).mappings()]
                for name in names
                if name in OF_PROJECT
            }


def _text(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def run(count: int, ledger: Ledger, empty: Engine) -> None:
    """Run random histories, then build all tables again in an empty database."""
    ledger.commit_snapshot("digits", [], {})
    machine = type("OnLedger", (Histories,), {"ledger": ledger})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # so few steps are short enough, shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert len(ledger.projects()) >= count
    replay(ledger.events(), empty)
    for name in metadata.tables.keys() - {*UNTOLD} | {"events"}:
        one, other = (_all(engine, name) for engine in (ledger.engine, empty))
        assert one == other, name
    empty.dispose()


def _all(engine: Engine, name: str) -> list[str]:
    with engine.connect() as conn:
        rows = conn.execute(metadata.tables[name].select()).mappings()
        return sorted(_text(dict(row)) for row in rows)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder in memory, where commits cost nothing, if there is memory to lie in."""
    with tempfile.TemporaryDirectory(dir=FAST) as name:
        yield Path(name)


def histories(few: int) -> int:
    """Return how many histories to run: RAYAL_HISTORIES overrides."""
    return int(os.environ.get("RAYAL_HISTORIES", few))


def test_histories(folder: Path) -> None:
    with Ledger(folder) as ledger:
        run(60, ledger, create_engine(f"sqlite:///{folder}/copy.sqlite"))


@pytest.mark.slow
def test_many_histories(folder: Path) -> None:
    with Ledger(folder) as ledger:
        run(histories(2000), ledger, create_engine(f"sqlite:///{folder}/copy.sqlite"))


def test_histories_on_postgresql(postgres: PostgresServer, tmp_path: Path) -> None:
    with Ledger(tmp_path, database=postgres.database()) as ledger:
        run(10, ledger, create_engine(postgres.database()))


@pytest.mark.slow
def test_many_histories_on_postgresql(postgres: PostgresServer, tmp_path: Path) -> None:
    with Ledger(tmp_path, database=postgres.database()) as ledger:
        run(histories(200), ledger, create_engine(postgres.database()))
