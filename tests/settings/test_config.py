from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import pytest
import yaml
from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import BaseModel

from rayal.errors import SettingsError
from rayal.settings.parameters import ParameterInfo, build, parameters
from rayal.settings.run import Settings, example, load
from rayal.types import Seeds

BASE: dict[str, Any] = {"pool": {"source": "digits"}}

FULL = """
pool: {source: data/train, subset: 500, id: name, labels: truth.csv, features: [a, b],
       test: data/test, test_share: 0.2, duplicates: first, missing: quarantine}
task: {kind: table, classes: [cat, dog], size: [8, 9], channels: 3, flip: true}
model: {network: mlp, params: {widths: [32, 16]}, members: 3, threads_per_model: 2}
learner: {name: supervised, preset: strong, lr: 1e-3, schedule: constant, steps: 300}
strategies: [margin, {name: bald, passes: 20}, {name: bald, label: bald-50, passes: 50}]
initial: {strategy: random, count: 20, balanced: true}
rounds: 3
batch: 10
seeds: [4, {pool: 1, model: 2, query: 3}]
oracle: {name: hidden, noise: 0.1, cost: 2}
executor: local
storage: "1e3"
scan: {batch: 256, precision: bf16}
selection: {precision: bf16, device: cuda}
keep: picks
shards: 4
"""


def refusal(settings: Any, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(settings, overrides)
    return str(caught.value)


def test_every_key_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(FULL)
    s = load(path)
    assert s.pool.features == ("a", "b") and s.task.size == (8, 9)
    assert s.model.params == {"widths": (32, 16)}
    assert s.learner.params == {"lr": 0.001, "schedule": "constant", "steps": 300}
    assert [(x.shown, x.params) for x in s.strategies] == [
        ("margin", {}),
        ("bald", {"passes": 20}),
        ("bald-50", {"passes": 50}),
    ]
    assert s.oracle.cost == 2.0 and s.storage == "1e3" and s.scan.precision == "bf16"
    assert (s.selection.precision, s.selection.device) == ("bf16", "cuda")
    assert load(BASE).selection.model_dump() == {"precision": "fp32", "device": "cpu"}
    assert load(str(path)) == s


@pytest.mark.parametrize("text", [FULL, "pool: {source: digits}", example()])
def test_resolved_settings_load_back_equal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    settings = load(path)
    path.write_text(settings.to_yaml())
    assert load(path) == settings


def test_stored_settings_load_back_from_json_like_mappings() -> None:
    settings = load(yaml.safe_load(FULL), ["learner.lr=1e-3"])
    assert load(settings.model_dump(mode="json")) == settings


def test_settings_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load(BASE).rounds = 4


def test_cells_are_strategies_by_seeds_with_random_added() -> None:
    given = BASE | {"strategies": ["margin", {"name": "bald", "passes": 5}], "seeds": [0, 7]}
    cells = load(given).cells()
    assert [(c.label, c.name, c.params) for c in cells[:3]] == [
        ("random", "random", {}),
        ("margin", "margin", {}),
        ("bald", "bald", {"passes": 5}),
    ]
    assert [c.seeds for c in cells] == [Seeds(0, 0, 0)] * 3 + [Seeds(7, 7, 7)] * 3


def test_random_is_added_only_if_absent() -> None:
    assert [c.label for c in load(BASE).cells()] == ["random"]
    listed = load(BASE | {"strategies": ["margin", "random"]}).cells()
    assert [c.label for c in listed] == ["margin", "random"]


def test_separate_seeds_reach_their_cells() -> None:
    cells = load(BASE | {"seeds": [{"pool": 1, "model": 2, "query": 3}]}).cells()
    assert cells[0].seeds == Seeds(pool=1, model=2, query=3)


@pytest.mark.parametrize(
    ("key", "place", "hint"),
    [
        ("batchs", "batchs", "batch"),
        ("pool.sourse", "pool.sourse", "source"),
        ("scan.precison", "scan.precison", "precision"),
        ("oracle.nois", "oracle.nois", "noise"),
        ("initial.counts", "initial.counts", "count"),
    ],
)
def test_unknown_key_is_named_with_its_path_and_the_nearest(
    key: str, place: str, hint: str
) -> None:
    message = refusal(BASE | {"oracle": {}, "initial": {}, "scan": {}}, f"{key}=1")
    assert message.startswith(f"{place}: unknown key; did you mean {hint!r}? known: ")


def test_unknown_key_lists_all_of_its_level() -> None:
    assert refusal(BASE, "scan={bach: 3}").endswith("known: batch, compile, device, precision")
    assert "seeds.0.modell: unknown key" in refusal(BASE, "seeds=[{modell: 3}]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=0", "batch: given 0, allowed: greater than or equal to 1"),
        ("rounds=-1", "rounds: given -1, allowed: greater than or equal to 0"),
        ("initial.count=0", "initial.count: given 0, allowed: greater than or equal to 1"),
        ("pool.test_share=1.0", "pool.test_share: given 1.0, allowed: less than 1"),
        ("rounds=true", "rounds: given True, allowed: a valid integer"),
        ("rounds='3'", "rounds: given '3', allowed: a valid integer"),
        ("model.members=1.5", "model.members: given 1.5, allowed: a valid integer"),
        ("executor=rey", "executor: given 'rey', allowed: 'local', 'ray' or 'auto'"),
        ("ray.restarts=-1", "ray.restarts: given -1, allowed: greater than or equal to 0"),
        ("ray={adress: auto}", "ray.adress: unknown key; did you mean 'address'?"),
        ("keep=none", "keep: given 'none', allowed: 'last', 'all' or 'picks'"),
        ("oracle=me", "oracle.name: given 'me', allowed: 'hidden' or 'none'"),
        (
            "oracle.noise=1.5",
            "oracle.noise: given 1.5, allowed: a share from 0 to 1, or confidence",
        ),
        ("oracle.cost=.inf", "oracle.cost: given inf, allowed: a finite number"),
        ("strategies=margin", "strategies: given 'margin', allowed: a list"),
        ("strategies=[{label: a}]", "strategies.0.name: missing, and there is no default"),
        ("task=3", "task: given 3, allowed: a mapping"),
        ("task.channels=2", "task.channels: given 2, allowed: 1 or 3"),
        ("task.classes=[no, yes]", "task.classes.0: given False, allowed: text (quote it)"),
        ("seeds=[]", "seeds: 0 entries given, at least 1 needed"),
        ("seeds=[-1]", "seeds.0.pool: given -1, allowed: greater than or equal to 0"),
        ("seeds=[3, 3]", "seeds: Seeds(pool=3, model=3, query=3) stands 2 times"),
        ("pool.source=", "pool.source: given None, allowed: text"),
    ],
)
def test_refused_value_says_what_was_given_and_what_is_allowed(override: str, message: str) -> None:
    assert message in refusal(BASE, override)


def test_every_error_is_listed() -> None:
    lines = refusal({"batch": 0, "rounds": "x", "scan": {"batch": 0}}).splitlines()
    assert [line.split(":")[0] for line in lines] == ["pool", "rounds", "batch", "scan.batch"]


def test_entries_that_are_refused_are_not_called_missing() -> None:
    assert len(refusal(BASE, "seeds=[x]").splitlines()) == 1


def test_two_entries_of_one_strategy_need_labels() -> None:
    message = refusal(BASE, "strategies=[bald, {name: bald, passes: 5}]")
    assert "'bald' stands 2 times" in message and "label: bald-2" in message


@pytest.mark.parametrize("entry", ["{name: margin, label: random}", "{name: random, label: x}"])
def test_the_baseline_and_its_label_belong_together(entry: str) -> None:
    assert "belongs to the baseline 'random'" in refusal(BASE, f"strategies=[{entry}]")


def test_overrides_reach_mappings_lists_and_short_forms() -> None:
    given = {**BASE, "strategies": ["margin", {"name": "bald"}], "task": None, "oracle": "hidden"}
    s = load(
        given | {"task": {}},
        [
            "pool.source=a=b",
            "strategies.0.first=norm",
            "strategies.1.passes=50",
            "learner.lr=1e-4",
            "oracle.noise=0.2",
            "scan.batch=8",
            "scan.batch=9",
            "task.classes=[a, b]",
        ],
    )
    assert s.pool.source == "a=b" and s.learner.params == {"lr": 1e-4}
    assert [(x.name, x.params) for x in s.strategies] == [
        ("margin", {"first": "norm"}),
        ("bald", {"passes": 50}),
    ]
    assert (s.oracle.name, s.oracle.noise, s.scan.batch) == ("hidden", 0.2, 9)
    assert given["strategies"] == ["margin", {"name": "bald"}], "the caller's mapping is its own"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch", "allowed: key.key=value"),
        ("=3", "allowed: key.key=value"),
        ("pool..id=3", "allowed: key.key=value"),
        ("strategies.2.name=x", "given '2', allowed: 0 to 0"),
        ("strategies.name=x", "given 'name', allowed: 0 to 0"),
        ("batch.size=3", "'size' would stand inside 5"),
        ("batch=[", "override 'batch=[', line 1: not valid YAML"),
    ],
)
def test_override_that_fits_nowhere_is_refused(override: str, message: str) -> None:
    assert message in refusal(BASE | {"strategies": ["margin"], "batch": 5}, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool: {source: a}\nbatch: [1\nrounds: 2\n", "line 3: not valid YAML"),
        ("pool: {source: a}\nbatch: 1\nbatch: 2\n", "line 3: not valid YAML: key 'batch' stands"),
        ("pool: !!python/object:os.system {}", "line 1: not valid YAML"),
        ("- a\n", "given ['a'], allowed: a mapping"),
        ("", "given None, allowed: a mapping"),
    ],
)
def test_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert message in refusal(path) and str(path) in refusal(path)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"pool: {source: \xff}")
    assert "not UTF-8" in refusal(tmp_path / "latin.yaml")


def test_every_field_is_described_and_stands_in_the_example() -> None:
    def check(model: type[BaseModel], text: str) -> None:
        for name, info in model.model_fields.items():
            assert info.description and f"{name}: " in text and info.description in text

    for name, info in Settings.model_fields.items():
        section = getattr(load(BASE), name)
        if isinstance(section, BaseModel):
            check(type(section), example())
        assert info.description and info.description in example()
    assert all(len(line) <= 160 for line in example().splitlines())


@pytest.mark.processes
def test_importing_loads_neither_torch_nor_ray() -> None:
    modules = "rayal.settings.run, rayal.evaluation"
    code = f"import sys, {modules}; print({{'torch', 'ray'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"


@dataclass(frozen=True)
class Part:
    size: int = 1


@dataclass(frozen=True)
class Plug:
    source: ClassVar[str] = "a paper"
    steps: int
    passes: Annotated[int, Ge(2)] = 20
    rate: Annotated[float, Interval(gt=0, le=1)] | None = None
    form: Literal["mean", "vote"] = "mean"
    widths: Annotated[tuple[int, ...], MinLen(1)] = (8,)
    names: tuple[str, ...] = field(default_factory=tuple)
    part: Part = Part()
    derived: int = field(default=0, init=False)


def test_build_makes_the_dataclass() -> None:
    got = build(Plug, {"steps": 3, "rate": 1, "widths": [4, 5], "part": Part(2)}, "here")
    assert got == Plug(steps=3, rate=1.0, widths=(4, 5), part=Part(2))
    assert isinstance(got.rate, float)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"step": 3}, "here.step: Plug has no such parameter; did you mean 'steps'? known: form, "),
        ({"passes": 3}, "here.steps: missing, and there is no default"),
        ({"steps": True}, "here.steps: given True, allowed: a valid integer"),
        ({"steps": "3"}, "here.steps: given '3', allowed: a valid integer"),
        ({"passes": 1}, "here.passes: given 1, allowed: greater than or equal to 2"),
        ({"rate": 0.0}, "here.rate: given 0.0, allowed: greater than 0"),
        ({"form": "sum"}, "here.form: given 'sum', allowed: 'mean' or 'vote'"),
        ({"widths": []}, "here.widths: 0 entries given, at least 1 needed"),
        ({"widths": [1, "x"]}, "here.widths.1: given 'x', allowed: a valid integer"),
        ({"part": {"size": 2}}, "here.part: given {'size': 2}, allowed: "),
        ({"derived": 2}, "here.derived: Plug has no such parameter"),
        ({"source": "x"}, "here.source: Plug has no such parameter"),
    ],
)
def test_build_refuses(params: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(Plug, params, "here")
    assert message in str(caught.value)


def test_build_lists_every_error() -> None:
    with pytest.raises(SettingsError) as caught:
        build(Plug, {"step": 1, "passes": 0}, "here")
    assert len(str(caught.value).splitlines()) == 3


def test_parameters_are_listed_with_type_default_and_bounds() -> None:
    assert parameters(Plug) == [
        ParameterInfo("steps", "int", dataclasses.MISSING, ()),
        ParameterInfo("passes", "int", 20, ("≥ 2",)),
        ParameterInfo("rate", "float | null", None, ("> 0", "≤ 1")),
        ParameterInfo("form", "'mean' | 'vote'", "mean", ()),
        ParameterInfo("widths", "tuple[int, …]", (8,), ("length ≥ 1",)),
        ParameterInfo("names", "tuple[str, …]", (), ()),
    ]


def test_search_ranges_beside_bounds_do_no_harm() -> None:
    @dataclass(frozen=True)
    class Ranged:
        rate: Annotated[float, Gt(0), "log-uniform 1e-4 to 1e-1"] = 0.1

    assert [p.bounds for p in parameters(Ranged)] == [("> 0",)]
    assert build(Ranged, {"rate": 0.2}, "here").rate == 0.2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{frozen: true}", "model.frozen is True without a backbone"),
        ("{weights: random}", "model.weights is 'random' without a backbone"),
        ("{head: mlp}", "model.head is 'mlp' without a backbone"),
        ("{backbone: b, weights: random, frozen: true, network: mlp}", "are both given"),
        ("{backbone: b, weights: random}", "set model.frozen to true"),
        ("{backbone: b, frozen: true}", "say `weights: random`: nothing is downloaded"),
        ("{backbone: b, frozen: true, weights: random, head: deep}", "allowed: 'linear' or 'mlp'"),
    ],
)
def test_backbone_settings_that_do_not_fit_are_refused(model: str, message: str) -> None:
    assert message in refusal(BASE, f"model={model}")


def test_backbone_settings_load_back_equal() -> None:
    settings = load(BASE, ["model={backbone: b, frozen: true, weights: random, head: mlp}"])
    assert load(yaml.safe_load(settings.to_yaml())) == settings
