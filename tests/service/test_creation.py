"""Projects over HTTP: what gets in, what is refused by name, what may change later."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_cases import (
    CLASSES,
    FEATURES,
    NOTHING,
    answer,
    body,
    patch_project,
    project,
    rows,
    table_pool,
    work,
)

from rayal.engine.driver import Project
from rayal.engine.spec import ProjectSpec
from rayal.errors import (
    BudgetError,
    ConflictError,
    NeedsError,
    PreconditionError,
    SettingsError,
    UnknownNameError,
    UriError,
)
from rayal.ledger import Ledger
from rayal.registry import learners, strategies
from rayal.service.creation import create_project
from rayal.service.uris import Prefixes


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def test_a_project_has_what_was_asked_for(ledger: Ledger) -> None:
    asked = body(
        strategy={"name": "badge"},
        model={"network": "mlp", "params": {"widths": [8], "dropout": 0.25}, "members": 2},
        learner={"name": "supervised", "preset": "strong", "steps": 7},
        rounds=4,
        seeds={"pool": 1, "model": 2, "query": 3},
        scan={"batch": 128},
        labeling={"labels_per_item": 2, "agreement": "majority", "lease_ttl_s": 60},
        auto={"quorum": 5, "ready": 4},
    )
    row = create_project(ledger, asked, prefixes=NOTHING)
    spec = ProjectSpec.from_json(row.settings)
    assert spec.strategy == strategies["badge"]()
    assert spec.learner == learners["supervised"](
        **learners["supervised"].presets["strong"] | {"steps": 7}
    )
    assert spec.network.name == "mlp" and spec.network.params == {"widths": [8], "dropout": 0.25}
    assert (spec.members, spec.batch, spec.rounds, spec.initial.count) == (2, 6, 4, 12)
    assert (spec.seeds.pool, spec.seeds.model, spec.seeds.query) == (1, 2, 3)
    assert spec.scan.batch == 128 and spec.scan.device == "cpu"
    assert row.settings["labeling"] == {
        "labels_per_item": 2,
        "agreement": "majority",
        "max_skips": 3,
        "lease_ttl": 60.0,
        "tolerance": 0.0,
    }
    service = row.settings["service"]
    assert (service["quorum"], service["ready"], service["start"], service["pushed"]) == (
        5,
        4,
        True,
        True,
    )
    pool = Project(ledger, "p").pool
    assert len(pool) == 0 and pool.classes == tuple(CLASSES)
    assert pool.payload == {"kind": "table", "features": FEATURES}
    assert pool.contains(["row-0001"]) == [False]
    assert ledger.jobs("p") == []


def test_the_same_request_again_is_the_same_project(ledger: Ledger) -> None:
    first = create_project(ledger, body(), prefixes=NOTHING)
    assert create_project(ledger, body(strategy={"name": "margin"}), prefixes=NOTHING) == first
    with pytest.raises(ConflictError, match="exists with other settings"):
        create_project(ledger, body(batch_size=7), prefixes=NOTHING)
    ledger.delete_project("p")
    with pytest.raises(ConflictError, match="not free again"):
        create_project(ledger, body(), prefixes=NOTHING)


NUMBER = {"kind": "table", "target": "number", "features": FEATURES}
FORBIDDEN: list[tuple[dict[str, Any], str]] = [
    ({"model": {"network": "os:system"}}, "model.network"),
    ({"model": {"network": "torchvision:resnet18"}}, "model.network"),
    ({"model": {"network": "resnet"}}, "network 'resnet' does not exist"),
    ({"model": {"network": "mlp", "params": {"weights": "/etc/passwd"}}}, "names a file"),
    ({"model": {"backbone": "efficientnet_lite0"}}, "model.backbone: unknown key"),
    ({"model": {"weights": "/etc/passwd"}}, "model.weights: unknown key"),
    ({"model": {"frozen": True}}, "model.frozen: unknown key"),
    ({"model": {"members": 65}}, "model.members"),
    ({"model": {"network": "mlp", "params": {"widths": [10**6, 10**6]}}}, "weights, at most"),
    ({"model": {"network": "mlp", "params": {"widths": [1] * 65}}}, "more than 64 entries"),
    ({"model": {"quorum": 1}}, "model.quorum: unknown key"),
    ({"learner": "os:system"}, "learner.name"),
    ({"learner": "magic"}, "learner 'magic' does not exist"),
    ({"learner": {"name": "supervised", "weights": "x"}}, "weights: Supervised has no such"),
    ({"learner": {"name": "supervised", "preset": "x"}}, "no preset 'x'"),
    ({"strategy": "os:system"}, "strategy.name"),
    ({"strategy": "magic"}, "strategy 'magic' does not exist"),
    ({"strategy": {"name": "margin", "module": "os"}}, "module: "),
    ({"strategy": {"name": "margin", "learner": {"name": "x"}}}, "learner: "),
    ({"initial": {"strategy": "os:system"}}, "initial.strategy"),
    ({"initial": {"strategy": "magic"}}, "strategy 'magic' does not exist"),
    ({"initial": {"balanced": True}}, "initial.balanced: unknown key"),
    ({"initial": {"count": 0}}, "initial.count"),
    ({"scan": {"device": "cuda"}}, "scan.device: unknown key"),
    ({"scan": {"compile": True}}, "scan.compile: unknown key"),
    ({"executor": "ray"}, "executor: unknown key"),
    ({"storage": "/tmp"}, "storage: unknown key"),
    ({"keep": "all"}, "keep: unknown key"),
    ({"pool": {"path": "/x", "data": "/etc"}}, "pool"),
    ({"name": "../../etc/passwd"}, "name"),
    ({"name": "a/b"}, "name"),
    ({"name": "a\0b"}, "name"),
    ({"name": "x" * 81}, "name"),
    ({"task": {"kind": "video", "classes": CLASSES}}, "task.kind"),
    ({"task": {"kind": "text", "classes": CLASSES, "size": [8, 8]}}, "task.size"),
    ({"task": {"kind": "text", "classes": CLASSES, "features": FEATURES}}, "task.features"),
    ({"task": {"kind": "text", "classes": CLASSES, "tokenizer": "/etc/passwd"}}, "task.tokenizer"),
    ({"task": {"kind": "text", "classes": CLASSES, "vocabulary": 10**9}}, "task.vocabulary"),
    ({"task": {"kind": "table", "features": FEATURES}}, "task.classes: name the classes"),
    ({"task": {**NUMBER, "classes": CLASSES}}, "task.classes: target is number"),
    ({"task": {**NUMBER, "low": 2, "high": 1}}, "low must be below high"),
    ({"task": {**NUMBER, "low": "0"}}, "task.low"),
    ({"task": {**NUMBER, "target": "class", "high": 1, "classes": CLASSES}}, "task.high: it"),
    ({"task": {**NUMBER, "target": "vector"}}, "task.target"),
    ({"labeling": {"tolerance": -1}}, "labeling.tolerance"),
    ({"task": {"kind": "table", "classes": ["one"], "features": FEATURES}}, "two different"),
    ({"task": {"kind": "table", "classes": CLASSES}}, "task.features"),
    ({"task": {"kind": "table", "classes": CLASSES, "features": ["a", "a"]}}, "task.features"),
    ({"task": {"kind": "image", "classes": CLASSES}}, "task.size"),
    ({"task": {"kind": "image", "classes": CLASSES, "size": [9999, 8]}}, "task.size"),
    ({"task": {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 4}}, "channels"),
    ({"labeling": {"agreement": "best"}}, "labeling.agreement"),
    ({"labeling": {"labels_per_item": 3, "max_labels": 2}}, "max_labels"),
    ({"auto": {"quorum": 0}}, "auto.quorum"),
    ({"seeds": -1}, "seeds"),
    ({"batch_size": "10"}, "batch_size"),
]


@pytest.mark.parametrize(("given", "named"), FORBIDDEN, ids=lambda v: str(v)[:60])
def test_what_is_not_allowed_is_refused_by_name(
    given: dict[str, Any], named: str, ledger: Ledger
) -> None:
    with pytest.raises(SettingsError) as refused:
        create_project(ledger, body(**given), prefixes=NOTHING)
    assert named in str(refused.value)
    assert ledger.projects() == []


def test_a_strategy_that_gets_not_what_it_needs_is_refused(ledger: Ledger) -> None:
    with pytest.raises(NeedsError, match="dropout"):
        create_project(ledger, body(strategy="bald"), prefixes=NOTHING)
    with pytest.raises(NeedsError, match="asks a model that is not trained yet"):
        create_project(ledger, body(initial={"strategy": "margin"}), prefixes=NOTHING)


def test_a_project_on_a_pool_that_is_there_begins_by_itself(tmp_path: Path) -> None:
    table_pool(tmp_path, "rows", rows(40))
    ledger = Ledger(tmp_path)
    task = {"kind": "table", "classes": CLASSES}
    create_project(ledger, body(pool="rows", task=task), prefixes=NOTHING)
    assert [(j.kind, j.state) for j in ledger.jobs("p")] == [("round", "queued")]
    waits = body("later", pool="rows", task=task, auto={"start": False})
    create_project(ledger, waits, prefixes=NOTHING)
    assert ledger.jobs("later") == []
    with pytest.raises(UnknownNameError, match="did you mean 'rows'"):
        create_project(ledger, body("x", pool="row", task=task), prefixes=NOTHING)
    with pytest.raises(BudgetError, match="42 labels"):
        create_project(ledger, body("x", pool="rows", task=task, rounds=5), prefixes=NOTHING)
    with pytest.raises(SettingsError, match=r"task\.features"):
        create_project(ledger, body("x", pool="rows"), prefixes=NOTHING)


def test_a_pool_may_be_a_path_below_a_prefix(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    names = ",".join(["key", *FEATURES])
    lines = [f"{i},{','.join(map(repr, x))}" for i, (x, _) in rows(30).items()]
    (data / "rows.csv").write_text("\n".join([names, *lines]))
    (tmp_path / "secret.csv").write_text("\n".join([names, *lines]))
    (data / "link.csv").symlink_to(tmp_path / "secret.csv")
    ledger, allowed = Ledger(tmp_path / "root"), Prefixes(paths=(str(data),))
    task = {"kind": "table", "classes": CLASSES}
    for path in ("/etc/passwd", f"{data}/../secret.csv", f"{data}/link.csv", "rows.csv"):
        with pytest.raises(UriError):
            asked = body(pool={"path": path, "id": "key"}, task=task)
            create_project(ledger, asked, prefixes=allowed)
    given = {"path": str(data / "rows.csv"), "id": "key"}
    with pytest.raises(UriError):
        asked = body(pool={**given, "test": str(tmp_path / "secret.csv")}, task=task)
        create_project(ledger, asked, prefixes=allowed)
    row = create_project(ledger, body(pool=given, task=task), prefixes=allowed)
    assert Project(ledger, "p").pool.contains(["row-0007"]) == [True]
    assert create_project(ledger, body(pool=given, task=task), prefixes=allowed) == row


@pytest.mark.processes
def test_what_the_ingress_imports_is_light() -> None:
    worker = ("worker.runner", "worker.process", "worker.kinds", "worker.due")
    names = ("inbox", "creation", "predictor", "uris", *worker)
    code = (
        f"import sys, {', '.join(f'rayal.service.{n}' for n in names)}; "
        "print([m for m in ('torch', 'ray', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_numpy_files_with_objects_are_not_unpickled(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "x.npz", x=np.array([{"a": 1}], object), allow_pickle=True)
    asked = body(pool={"path": str(data / "x.npz")}, task={"kind": "table", "classes": CLASSES})
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        create_project(Ledger(tmp_path / "root"), asked, prefixes=Prefixes(paths=(str(data),)))
    shutil.rmtree(data)


def test_before_the_first_round_most_may_change(ledger: Ledger) -> None:
    first = create_project(ledger, body(), prefixes=NOTHING)
    model = {"params": {"widths": [4]}, "members": 2}
    row = patch_project(ledger, "p", {"model": model, "initial": {"count": 5}}, version=1)
    assert row.version == 2
    assert row.settings["network"] == {"name": "mlp", "params": {"widths": [4]}}
    assert row.settings["members"] == 2 and row.settings["initial"]["count"] == 5
    assert row.settings["learner"] == first.settings["learner"]
    with pytest.raises(PreconditionError):
        patch_project(ledger, "p", {"batch_size": 3}, version=1)


@pytest.mark.parametrize(
    ("patch", "named"),
    [
        ({"name": "q"}, "name"),
        ({"pool": "rows"}, "pool"),
        ({"task": {"kind": "image", "size": [8, 8], "features": None}}, "task.kind"),
        ({"task": {"features": ["a"]}}, "task.features"),
        ({"task": {"classes": ["yes", "no", "maybe"]}}, "task.classes"),
        ({"task": {"classes": ["no", "yes"]}}, "task.classes"),
        ({"labeling": {"labels_per_item": 2}}, "labeling.labels_per_item"),
    ],
)
def test_what_never_changes(patch: dict[str, Any], named: str, ledger: Ledger) -> None:
    create_project(ledger, body(), prefixes=NOTHING)
    with pytest.raises(ConflictError, match=named):
        patch_project(ledger, "p", patch, version=1)
    assert ledger.project("p").version == 1


def test_once_trained_the_model_stays_and_the_choice_may_change(tmp_path: Path) -> None:
    items = rows(60)
    ledger = project(tmp_path, items)
    work(ledger)
    answer(ledger, items)
    assert work(ledger).state == "done"
    for patch in (
        {"model": {"params": {"widths": [4]}}},
        {"learner": {"steps": 30}},
        {"initial": {"count": 3}},
        {"seeds": 4},
        {"scan": {"batch": 256}},
    ):
        with pytest.raises(ConflictError, match=next(iter(patch))):
            patch_project(ledger, "p", patch, version=1)
    changes: dict[str, Any] = {
        "strategy": {"name": "badge", "candidates": 30},
        "batch_size": 4,
        "rounds": 7,
        "auto": {"quorum": 2, "start": False},
        "labeling": {"lease_ttl_s": 30, "max_skips": 1},
        "task": {"classes": [*CLASSES, "never"]},
    }
    row = patch_project(ledger, "p", changes, version=1)
    assert row.version == 2
    spec = ProjectSpec.from_json(row.settings)
    assert spec.strategy == strategies["badge"](candidates=30) and spec.batch == 4
    assert row.settings["labeling"]["lease_ttl"] == 30.0
    assert row.settings["service"]["start"] is False
    back = patch_project(ledger, "p", {"strategy": "margin"}, version=2)
    assert ProjectSpec.from_json(back.settings).strategy == strategies["margin"]()
    answer(ledger, items)
    assert work(ledger).state == "done"
    newest = ledger.models("p")[-1]
    assert newest.info["task"]["labels"]["classes"] == [*CLASSES, "never"]
