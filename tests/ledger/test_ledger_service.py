"""What the service keeps in the ledger: answers, models, tokens, settings, tombstones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from rayal.errors import (
    IdempotencyError,
    LedgerError,
    PreconditionError,
    SettingsError,
    UnknownNameError,
)
from rayal.ledger import LabelEntry, Ledger, ModelRow, Pick, SkipEntry, Suggestion, version_name

HASH = "ab" * 32


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        opened.create_project("p", "digits", {})
        picks = [Pick(item, rank, rank, rank / 4, 0.5) for rank, item in enumerate("abc")]
        others = [Pick("z", 9, 9, 0.125, None)]
        opened.commit_selection("p", -1, picks, others, {}, stage=None, output={}, seconds=0)
        yield opened


def label(ledger: Ledger, item: str, value: object = 1) -> str:
    return ledger.label("p", "ann", [LabelEntry(item, value)], now=10)[0].status


# -- once, transaction -------------------------------------------------------------------------


def test_a_repeated_request_is_answered_as_before(ledger: Ledger) -> None:
    for _ in range(3):
        with ledger.once("ann", "k", "body", now=100) as request:
            if request.replay is None:
                leases = ledger.lease("p", "ann", 1, now=100)
                request.store(201, leases[0].lease.encode(), {"etag": "1"})
    assert request.replay is not None
    assert astuple(request.replay) == (201, leases[0].lease.encode(), {"etag": "1"})
    assert len([e for e in ledger.events() if e.kind == "lease"]) == 1
    with pytest.raises(LedgerError, match="was answered before"):
        request.store(200, b"")


def test_a_key_is_one_request_of_one_scope(ledger: Ledger) -> None:
    with ledger.once("ann", "k", "body", now=0) as request:
        request.store(200, b"1")
    with (
        pytest.raises(IdempotencyError, match="was used for another request"),
        ledger.once("ann", "k", "other", now=1),
    ):
        pass
    with ledger.once("bob", "k", "other", now=1) as request:
        assert request.replay is None


def test_keys_are_free_again_after_a_while(ledger: Ledger) -> None:
    with ledger.once("ann", "k", "body", now=0) as request:
        request.store(200, b"1")
    with ledger.once("ann", "k", "other", now=60, keep=60) as request:
        assert request.replay is None


def test_a_request_that_fails_leaves_nothing(ledger: Ledger) -> None:
    before = list(ledger.events())
    with pytest.raises(ZeroDivisionError), ledger.once("ann", "k", "body", now=0) as request:
        label(ledger, "a")
        request.store(200, b"1")
        raise ZeroDivisionError
    assert list(ledger.events()) == before
    assert ledger.labels("p") == []
    with ledger.once("ann", "k", "body", now=0) as request:
        assert request.replay is None


def test_a_request_without_an_answer_keeps_its_effect_and_no_key(ledger: Ledger) -> None:
    with ledger.once("ann", "k", "body", now=0):
        label(ledger, "a")
    with ledger.once("ann", "k", "other", now=0) as request:
        assert request.replay is None
    assert label(ledger, "a") == "duplicate"


def test_once_is_the_outermost_block(ledger: Ledger) -> None:
    with (
        ledger.transaction(),
        pytest.raises(LedgerError, match="must be the outermost"),
        ledger.once("ann", "k", "body", now=0),
    ):
        pass


def test_reads_see_the_writes_of_their_block_and_others_do_not(ledger: Ledger) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(ledger.labels_seq("p"))

    with ledger.transaction():
        label(ledger, "a")
        assert ledger.labels_seq("p") == 1
        other = threading.Thread(target=look)
        other.start()
        other.join()
    look()
    assert seen == [0, 1]


def test_a_refused_write_is_undone_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> None:
        raise LedgerError("too late")

    with ledger.transaction():
        label(ledger, "a")
        with monkeypatch.context() as broken:
            broken.setattr("rayal.ledger.label_transaction.failpoint", break_off)
            with pytest.raises(LedgerError, match="too late"):
                ledger.label("p", "ann", [LabelEntry("b", 1), LabelEntry("c", 1)], now=10)
        assert ledger.labels_seq("p") == 1
        label(ledger, "c")
    assert ledger.resolved("p") == {"a": 1, "c": 1}
    assert [e.kind for e in ledger.events()][-2:] == ["label", "label"]


def test_the_same_request_at_once_is_done_once(ledger: Ledger) -> None:
    barrier, answers = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait()
        with ledger.once("ann", "k", "body", now=0) as request:
            if request.replay is None:
                made = ledger.lease("p", "ann", 1, now=0)[0].lease.encode()
                request.store(200, made)
            else:
                made = request.replay.body
            answers.append(made)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1 and len(answers) == 4
    assert len([e for e in ledger.events() if e.kind == "lease"]) == 1


# -- models --------------------------------------------------------------------------------------


def test_versions_are_named_by_round_and_model() -> None:
    assert version_name(3, "9f2c11") == "r0003-9f2c"


def test_the_newest_model_is_active_until_another_is_chosen(ledger: Ledger) -> None:
    first = ledger.commit_model("p", "r0000-aaaa", 0, "aaaa1", {"accuracy": 0.5}, now=1)
    assert first == ModelRow("p", "r0000-aaaa", 0, "aaaa1", {"accuracy": 0.5}, 1, True)
    ledger.commit_model("p", "r0001-bbbb", 1, "bbbb1", {}, now=2)
    assert [(m.version, m.active) for m in ledger.models("p")] == [
        ("r0000-aaaa", False),
        ("r0001-bbbb", True),
    ]
    assert ledger.activate_model("p", "r0000-aaaa").active
    again = ledger.commit_model("p", "r0001-bbbb", 1, "bbbb1", {}, now=9)
    assert (again.created, again.active) == (2, False)
    with pytest.raises(LedgerError, match="versions never change"):
        ledger.commit_model("p", "r0001-bbbb", 1, "bbbb2", {})
    with pytest.raises(UnknownNameError, match="did you mean 'r0001-bbbb'"):
        ledger.activate_model("p", "r0001-bbb")


def test_suggestions_are_those_of_the_active_model(ledger: Ledger) -> None:
    assert ledger.suggestions("p", ["a"]) == {}
    for round, model in enumerate(("aaaa", "bbbb")):
        version = version_name(round, model)
        ledger.commit_model("p", version, round, model, {}, now=round)
        said = [(item, model, {"x": 0.25 + round}) for item in "ab"]
        ledger.commit_suggestions("p", version, said)
    assert ledger.suggestions("p", ["b", "c"]) == {
        "b": Suggestion("bbbb", {"x": 1.25}, "r0001-bbbb")
    }
    ledger.activate_model("p", "r0000-aaaa")
    assert ledger.suggestions("p", ["b"])["b"].label == "aaaa"
    ledger.commit_suggestions("p", "r0000-aaaa", [("b", "new", None), ("c", "new", None)])
    assert [s.label for s in ledger.suggestions("p", ["a", "b", "c"]).values()] == [
        "aaaa",
        "new",
        "new",
    ]
    with pytest.raises(UnknownNameError, match="model 'none' of project 'p' does not exist"):
        ledger.commit_suggestions("p", "none", [])


# -- tokens --------------------------------------------------------------------------------------


def test_tokens_are_found_by_hash(ledger: Ledger) -> None:
    token = ledger.add_token("ann", ["project:p:label", "admin"], HASH, expires=50, now=1)
    assert token.scopes == ("project:p:label", "admin")
    assert ledger.token_by_hash(HASH) == token
    assert ledger.token_by_hash("00" * 32) is None
    assert ledger.tokens() == [token]
    assert ledger.revoke_token(token.token_id, now=9).revoked == 9
    assert ledger.revoke_token(token.token_id, now=10).revoked == 9
    with pytest.raises(LedgerError, match="known already"):
        ledger.add_token("bob", ["admin"], HASH)
    with pytest.raises(UnknownNameError, match="token 'none' does not exist"):
        ledger.revoke_token("none")


@pytest.mark.parametrize("scope", ["root", "project:p", "project::read", "project:p:admin", ""])
def test_scopes_are_checked(ledger: Ledger, scope: str) -> None:
    with pytest.raises(SettingsError, match="scopes are"):
        ledger.add_token("ann", ["admin", scope], HASH)
    with pytest.raises(SettingsError, match="scopes are"):
        ledger.add_token("ann", [], HASH)
    with pytest.raises(SettingsError, match="64 lower-case hex"):
        ledger.add_token("ann", ["admin"], "secret")
    assert ledger.tokens() == []


# -- settings ------------------------------------------------------------------------------------


def test_settings_have_versions(ledger: Ledger) -> None:
    assert ledger.project("p").version == 1
    assert ledger.update_project("p", {"batch": 5}, version=1) == 2
    assert ledger.update_project("p", {"batch": 5}, version=2) == 2
    with pytest.raises(PreconditionError, match="has version 2, not 1"):
        ledger.update_project("p", {"batch": 6}, version=1)
    row = ledger.project("p")
    assert (row.version, row.settings, row.deleted) == (2, {"batch": 5}, None)


def test_settings_are_compared_as_values_not_as_text(ledger: Ledger) -> None:
    """A later version may write them in another order, which is no change."""
    nested = {"batch": 5, "scan": {"batch": 64, "device": "cpu"}}
    assert ledger.update_project("p", nested, version=1) == 2
    other_order = {"scan": {"device": "cpu", "batch": 64}, "batch": 5}
    assert ledger.update_project("p", other_order, version=2) == 2


@pytest.mark.parametrize("name", ["labels_per_item", "max_labels"])
def test_what_training_sets_rest_on_does_not_change(ledger: Ledger, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"labeling\.{name} .* cannot change"):
        ledger.update_project("p", {"labeling": {"max_labels": 3} | {name: 2}}, version=1)
    assert ledger.project("p").version == 1


def test_another_max_skips_holds_for_what_was_skipped(ledger: Ledger) -> None:
    for who in ("ann", "bob"):
        ledger.label("p", who, [SkipEntry("a")], now=1)
    ledger.update_project("p", {"labeling": {"max_skips": 2}}, version=1)
    assert ledger.states("p")["a"] == "skipped"
    ledger.update_project("p", {"labeling": {"max_skips": 3}}, version=2)
    assert ledger.states("p")["a"] == "offered"


def test_a_deleted_project_is_unknown_and_its_name_is_not_free(ledger: Ledger) -> None:
    ledger.delete_project("p", now=1)
    assert ledger.projects() == []
    for call in (ledger.project, ledger.states, ledger.labels, ledger.jobs, ledger.delete_project):
        with pytest.raises(UnknownNameError, match="project 'p' does not exist"):
            call("p")
    with pytest.raises(LedgerError, match="was deleted, and its name is not free"):
        ledger.create_project("p", "digits", {})


# -- forgetting ----------------------------------------------------------------------------------


def test_a_forgotten_item_is_purged_everywhere(ledger: Ledger) -> None:
    ledger.commit_model("p", "r0000-aaaa", 0, "aaaa", {}, now=1)
    ledger.commit_suggestions("p", "r0000-aaaa", [(i, f"hint {i}", [1]) for i in "ab"])
    secret = LabelEntry("a", "secret", provenance={"by": "secret"})
    with ledger.once("ann", "k", "body", now=5) as request:
        ledger.label("p", "bob", [SkipEntry("a", "secret")], now=5)
        ledger.label("p", "ann", [secret, LabelEntry("b", "open")], now=5)
        request.store(200, b'{"item":"a"}')
    before = len(list(ledger.events()))
    ledger.forget_item("p", "a", now=6)
    told = repr(list(ledger.events()))
    kept = b"".join(file.read_bytes() for file in ledger.root.iterdir())
    for word in ("secret", "hint a"):
        assert word not in told
        assert word.encode() not in kept
    assert "hint b" in told and b"hint b" in kept
    assert ledger.resolved("p") == {"b": "open"}
    rows = [r for r in ledger.labels("p") if r.item == "a"]
    assert [(r.value, r.reason, r.provenance) for r in rows] == [(None, None, {})] * 2
    assert ledger.suggestions("p", ["a", "b"])["b"].label == "hint b"
    assert ledger.suggestions("p", ["a"])["a"] == Suggestion(None, None, "r0000-aaaa")
    selection = ledger.selection("p", -1)
    assert selection is not None
    assert [(p.item, p.score, p.probability) for p in selection.picks[:2]] == [
        ("a", None, None),
        ("b", 0.25, 0.5),
    ]
    with ledger.once("ann", "k", "body", now=6) as request:
        assert request.replay is None
    assert len(list(ledger.events())) == before + 1
    ledger.forget_item("p", "a", now=7)
    assert ledger.states("p")["a"] == "forgotten"


def test_a_forgotten_item_is_never_worked_on_again(ledger: Ledger) -> None:
    (lease,) = ledger.lease("p", "ann", 1, now=0)
    ledger.forget_item("p", "a", now=1)
    ledger.forget_item("p", "never", now=1)
    with pytest.raises(LedgerError, match="is revoked"):
        ledger.extend("p", lease.lease, 10, now=2)
    assert [x.item for x in ledger.lease("p", "ann", 9, now=2)] == ["b", "c"]
    for entry in (LabelEntry("a", 1), LabelEntry("never", 1), SkipEntry("a")):
        (result,) = ledger.label("p", "bob", [entry], now=3)
        assert result.status == "rejected" and "is forgotten" in str(result.detail)
    assert ledger.retract("p", "ann", "a", now=3).status == "rejected"
    ledger.commit_snapshot("digits", [], {})
    ledger.begin_round("p", 0, snapshot=1, labels_seq=0, seeds={})
    picks = [Pick(i, n, n, 0.5, 0.5) for n, i in enumerate(("never", "d"))]
    ledger.commit_selection("p", 0, picks, [], {}, stage="select", output={}, seconds=0)
    assert [r.item for r in ledger.offered("p", now=9e9)] == ["b", "c", "d"]
    selection = ledger.selection("p", 0)
    assert selection is not None
    assert [(p.item, p.score) for p in selection.picks] == [("never", None), ("d", 0.5)]
    ledger.commit_model("p", "r0000-aaaa", 0, "aaaa", {})
    ledger.commit_suggestions("p", "r0000-aaaa", [("never", "x", None), ("d", "x", None)])
    assert list(ledger.suggestions("p", ["never", "d"])) == ["d"]
    assert [r.item for r in ledger.items_page("p")] == ["b", "c", "d"]
    assert [r.item for r in ledger.items_page("p", state="forgotten")] == ["a", "never"]
