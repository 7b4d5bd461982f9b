from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from rayal.errors import SettingsError
from rayal.service import signing
from rayal.service.auth import ADMIN, LABEL, READ, WRITE, allows, check_scopes
from rayal.service.limits import Rates
from rayal.service.problems import ProblemError
from rayal.service.requests import MAX_DEPTH, parse_json
from rayal.service.routes.rounds import agreement_of


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": [1, -2.5, 1e300, None, True, 'ä\n\\"[{']},
        {"text": "\\u0000 is not NUL"},
        {"emoji": "\U0001f600"},
        2**63 - 1,
        -(2**63),
        [[] for _ in range(100)],
        json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH),
    ],
)
def test_json_is_read_as_the_library_reads_it(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a": "\x00"}', "not JSON"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'["\\ud800"]', "surrogate"),
        (b'[["\\uDFFF x"]]', "surrogate"),
        (b"NaN", "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b"1e999", "double"),
        (b"[1" + b"0" * 400 + b".0]", "double"),
        (b"9223372036854775808", "64 bits"),
        (b"1" * 5000, "64 bits"),
        (b"[" * 33 + b"]" * 33, "deeper"),
        (b'{"a":[' * 17 + b"]}" * 17, "deeper"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper"),
    ],
)
def test_what_is_no_json_is_refused(raw: bytes, told: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_json(raw)
    assert caught.value.kind.name == "validation"
    assert told in caught.value.detail


def test_brackets_within_strings_do_not_nest() -> None:
    assert parse_json(json.dumps(["[{" * 100]).encode()) == ["[{" * 100]


def test_a_large_body_is_parsed_in_linear_time() -> None:
    raw = json.dumps({"items": [{"data": "A" * 10_000} for _ in range(500)]}).encode()
    started = time.perf_counter()
    parse_json(raw)
    assert time.perf_counter() - started < 2.0


def test_a_bucket_refills_with_time() -> None:
    now = 0.0
    rates = Rates(2.0, 3, lambda: now)
    assert [rates.take(b"a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rates.take(b"a") == pytest.approx(0.5)
    assert rates.take(b"b") == 0.0
    now = 0.5
    assert rates.take(b"a") == 0.0
    assert rates.take(b"a") > 0.0
    now = 100.0
    assert [rates.take(b"a") > 0 for _ in range(4)] == [False, False, False, True]


def test_a_signed_path_opens_itself_alone() -> None:
    path = signing.content_path(b"k", "birds", "00" * 8, 1000.9)
    signature = path.rpartition("signature=")[2]
    assert path.startswith("/v1/projects/birds/items/0000000000000000/content?expires=1000&")
    good: dict[str, Any] = {
        "secret": b"k",
        "project": "birds",
        "key": "00" * 8,
        "expires": 1000,
        "signature": signature,
        "now": 999.0,
    }
    signing.check_content(**good)
    for change in (
        {"secret": b"x"},
        {"project": "cats"},
        {"key": "01" * 8},
        {"expires": 2000},
        {"signature": "é" + signature[1:]},
        {"now": 1000.0},
    ):
        with pytest.raises(ProblemError) as caught:
            signing.check_content(**{**good, **change})
        assert caught.value.kind.name == "forbidden"


def test_a_cursor_leads_on_in_its_own_list() -> None:
    made = signing.cursor(b"k", "/v1/a", [3, "x"])
    assert signing.position(b"k", "/v1/a", made) == [3, "x"]
    assert signing.position(b"k", "/v1/a", None) is None
    for secret, scope, text in [
        (b"x", "/v1/a", made),
        (b"k", "/v1/b", made),
        (b"k", "/v1/a", made[:-2]),
        (b"k", "/v1/a", "A"),
        (b"k", "/v1/a", "ä"),
    ]:
        with pytest.raises(ProblemError):
            signing.position(secret, scope, text)


def test_scopes_include_smaller_ones_of_their_project() -> None:
    assert allows(["admin"], ADMIN, None)
    assert allows(["admin"], WRITE, "birds")
    for held, allowed in [("write", (1, 1, 1)), ("label", (0, 1, 1)), ("read", (0, 0, 1))]:
        scopes = [f"project:birds:{held}"]
        assert tuple(allows(scopes, n, "birds") for n in (WRITE, LABEL, READ)) == allowed
        assert not any(allows(scopes, n, "cats") for n in (WRITE, LABEL, READ))
        assert not allows(scopes, ADMIN, None)
        assert not allows(scopes, READ, None)


@pytest.mark.parametrize(
    "scope", ["", "root", "project:a:own", "project::read", "project:a/b:read", "admin\n"]
)
def test_a_scope_that_does_not_exist_is_refused(scope: str) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        check_scopes([scope])


def test_agreement_of_the_example_of_the_paper() -> None:
    # the reliability data of Krippendorff (2011), section C: four observers, twelve units
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    labels = [
        (f"unit {unit}", value)
        for row in observers
        for unit, value in enumerate(row)
        if value is not None
    ]
    made = agreement_of(labels)
    assert made["alpha"] == pytest.approx(0.743, abs=5e-4)
    interval = agreement_of(labels, numbers=True)  # section D
    assert interval["alpha"] == pytest.approx(0.849, abs=5e-4)
    assert interval["observed"] == made["observed"]
    assert made["items"] == 11


def test_agreement_at_its_limits() -> None:
    assert agreement_of([]) == {"items": 0, "pairs": 0, "observed": None, "alpha": None}
    assert agreement_of([("a", "x"), ("b", "y")])["pairs"] == 0
    same = agreement_of([("a", "x"), ("a", "x"), ("b", "y"), ("b", "y")])
    assert (same["observed"], same["alpha"]) == (1.0, 1.0)
    split = agreement_of([("a", "x"), ("a", "y"), ("b", "y"), ("b", "x")])
    assert split["observed"] == 0.0
    assert math.isclose(split["alpha"], -0.5)  # by hand: 1 - 3 * 4 / 8
