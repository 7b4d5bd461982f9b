"""Names and hashes under which data is stored stay what they were when it was stored."""

from __future__ import annotations

import dataclasses
import json
import pickle
from dataclasses import asdict, dataclass, make_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import stored_cases
from stored_cases import columns_hash_of, model_hash_of, spec_of

from rayal.engine.spec import ProjectSpec, ScanOptions
from rayal.learners import Supervised
from rayal.registry import hashed_name, learners, strategies
from rayal.strategies import Strategy
from rayal.types import later, later_fields, stated, told

RECORDED = Path(__file__).with_name("stored.json")
CHANGED = {
    "models": "a model that was trained under this hash would be trained again",
    "columns": "columns that were computed under this hash would be computed again",
    "embeddings": "the pool would be embedded again",
    "tasks": "tasks stand in hashes and in the ledger",
    "spec": "the ledger holds settings in this form",
    "networks": (
        "dropout masks are keyed by these paths, and checkpoints hold these keys: attributes of a "
        "network that is registered are stored data, and are never renamed"
    ),
    "learners": "checkpoints hold these keys: a learner's networks keep their names",
}


@lru_cache(maxsize=1)
def recorded() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text())
    return found


@lru_cache(maxsize=1)
def present() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(stored_cases.stored()))
    return found


@pytest.mark.parametrize("kind", CHANGED)
def test_what_is_stored_under_a_name_or_hash_stays(kind: str) -> None:
    """What is registered later is not recorded, and may be as it likes."""
    now = present()[kind]
    assert {name: now.get(name) for name in recorded()[kind]} == recorded()[kind], CHANGED[kind]


def test_fields_keep_their_names_and_their_order() -> None:
    """Settings are stored by the names of fields, and a strategy's repr is in columns hashes."""
    for name, names in recorded()["fields"].items():
        kind, _, registered = name.partition(" ")
        made = {"learner": learners, "strategy": strategies}[kind][registered]()
        assert [f.name for f in dataclasses.fields(made) if not f.metadata] == names, name


def test_only_learners_with_older_models_say_what_their_hashes_hold() -> None:
    saying = {name for name in learners if "hashed_as" in vars(learners[name])}
    assert saying == set(recorded()["models"])


# -- fields that come later -----------------------------------------------------------------------


@dataclass(frozen=True)
class Grown(Supervised):
    """A learner to which a field was added."""

    hashed_as = Supervised.hashed_as
    warmth: float = later(0.0)
    parts: tuple[int, ...] = later(default_factory=tuple)


@dataclass(frozen=True)
class GrownScan(ScanOptions):
    tiles: int = later(1)


@dataclass(frozen=True)
class GrownSpec(ProjectSpec):
    audit: int = later(0)


def grown_strategy(**fields: Any) -> Strategy:
    """Return margin with a field that came later, under the name that its repr has."""
    grown: Any = make_dataclass(
        "Margin", [("sharpness", float, later(1.0))], bases=(strategies["margin"],), frozen=True
    )
    made: Strategy = grown(**fields)
    return made


def test_a_later_field_of_a_learner_is_hashed_once_it_is_set() -> None:
    assert (
        model_hash_of(Grown()) == model_hash_of(Supervised()) == recorded()["models"]["supervised"]
    )
    set_ones = [model_hash_of(made) for made in (Grown(warmth=0.5), Grown(parts=(1,)))]
    assert len({*set_ones, model_hash_of(Grown())}) == 3


def test_a_later_field_of_a_strategy_is_hashed_once_it_is_set() -> None:
    assert columns_hash_of(grown_strategy()) == recorded()["columns"]["margin"]
    assert columns_hash_of(grown_strategy(sharpness=2.0)) != recorded()["columns"]["margin"]


def test_a_later_field_of_the_settings_is_stored_once_it_is_set() -> None:
    plain = spec_of()
    values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    grown = GrownSpec(**values)
    assert grown.to_json() == plain.to_json()
    assert GrownSpec.from_json(plain.to_json()) == grown
    audited = replace(grown, audit=5)
    assert audited.to_json() == {**plain.to_json(), "audit": 5}
    assert GrownSpec.from_json(audited.to_json()) == audited


def test_a_later_field_inside_the_settings_is_stored_once_it_is_set() -> None:
    plain = spec_of().to_json()
    assert spec_of(scan=GrownScan()).to_json() == plain
    assert spec_of(scan=GrownScan(tiles=2)).to_json()["scan"] == {**plain["scan"], "tiles": 2}


def test_stated_values_are_those_of_asdict() -> None:
    for made in (*(learners[n]() for n in learners), *(strategies[n]() for n in strategies)):
        assert stated(made) == asdict(made)
        assert told(made) == repr(made)
        assert list(later_fields(made)) == []
    nested = {"scan": [GrownScan(), (GrownScan(tiles=3),)]}
    assert stated(nested)["scan"][1][0]["tiles"] == 3
    assert "tiles" not in stated(nested)["scan"][0]
    assert (
        told((GrownScan(),))
        == "(GrownScan(batch=64, precision='fp32', device='cpu', compile=False),)"
    )


def test_stated_values_are_copies() -> None:
    params = {"widths": [1, 2]}
    stated(params)["widths"].append(3)
    assert params == {"widths": [1, 2]}


def test_a_later_field_is_a_field_like_others() -> None:
    grown = Grown(warmth=0.5, parts=(1,))
    assert pickle.loads(pickle.dumps(grown)) == grown
    assert list(later_fields(grown)) == ["warmth", "parts"]


# -- names in hashes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(Supervised):
    """A learner without models of an older day: its parent's name is not its own."""


@dataclass(frozen=True)
class Part(Supervised):
    """A pre-training of another learner, which has no name of its own."""


def test_a_new_learner_is_hashed_by_its_registered_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(learners._rows, "own", Own)
    assert hashed_name(Own()) == ["own"]
    assert hashed_name(Part(), of=Own()) == ["own", "Part"]
    before = model_hash_of(Own())
    monkeypatch.setattr(Own, "__module__", "elsewhere")
    assert model_hash_of(Own()) == before != model_hash_of(Supervised())


def test_a_learner_that_moves_keeps_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hash in recorded()["models"].items():
        monkeypatch.setattr(learners[name], "__module__", "rayal.elsewhere")
        assert model_hash_of(learners[name]()) == hash, name
