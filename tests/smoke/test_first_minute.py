"""A newcomer's first minute: one table of flowers goes through every layer, from its ids to HTTP.

Each test is a step of one story and stands on the steps before it; the rest of the suite asks
whether each layer does all that it promises.
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_iris

import rayal
from rayal.acquisition import entropy, margin
from rayal.cli.app import main
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec
from rayal.labels import ClassLabel
from rayal.learners import LabeledRows, Supervised, TensorRows, TrainContext, TrainData, fit
from rayal.models.base import TaskNet
from rayal.registry import strategies
from rayal.selection import k_center
from rayal.service.app import create_app
from rayal.service.auth import hash_of, new_token
from rayal.service.backend import Backend
from rayal.service.limits import Limits
from rayal.service.uris import Prefixes
from rayal.tasks import TableTask
from rayal.types import id_keys

SPECIES = ("setosa", "versicolor", "virginica")
SIZES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
LEARNER = Supervised(steps=120, batch=16, epoch_steps=40, schedule="constant", lr=1e-2)
SETTINGS: dict[str, Any] = {
    "model": {"network": "mlp", "params": {"widths": [16]}},
    "learner": {"steps": 60, "batch": 16, "epoch_steps": 20},
    "strategies": ["margin"],
    "initial": {"count": 9},
    "rounds": 1,
    "batch": 6,
}
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def flowers() -> dict[str, tuple[list[float], str]]:
    """Return the sizes of 150 flowers and their species, by id."""
    x, y = load_iris(return_X_y=True)
    return {f"flower-{i:03d}": (row.tolist(), SPECIES[y[i]]) for i, row in enumerate(x)}


@pytest.fixture(scope="module")
def table(flowers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the flowers as a CSV file."""
    path: Path = tmp_path_factory.mktemp("flowers") / "flowers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["flower", *SIZES, "species"])
        writer.writerows([name, *sizes, species] for name, (sizes, species) in flowers.items())
    return path


@pytest.fixture(scope="module")
def root(table: Path) -> Path:
    """Return a storage root whose pool is the table."""
    root = table.parent / "root"
    rayal.Pool.from_csv(root, "flowers", table, id="flower", label="species")
    return root


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the ``rayal`` command in this process."""

    def run(*argv: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rayal", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return run


@dataclass(frozen=True)
class Files:
    """Checkpoints as files of a folder, none of which is gone on from."""

    folder: Path

    def latest(self) -> None:
        return None

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        write(self.folder / f"{epoch}.safetensors")


def spec(**changes: Any) -> ProjectSpec:
    return ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (16,)}),
        learner=LEARNER,
        strategy=strategies["margin"](),
        initial=Initial(count=15),
        batch=10,
        **changes,
    )


def test_an_item_has_a_key_of_its_own(flowers: dict[str, Any]) -> None:
    keys = id_keys(flowers)
    assert keys.dtype == np.uint64 and len(set(keys.tolist())) == len(flowers)
    assert id_keys(["flower-000"])[0] == keys[0]


def test_doubt_is_scored_higher_than_certainty() -> None:
    log_probs = torch.tensor([[0.98, 0.01, 0.01], [0.5, 0.49, 0.01], [1 / 3, 1 / 3, 1 / 3]]).log()
    assert entropy(log_probs)[2] == pytest.approx(math.log(3))
    for scores in (entropy(log_probs), margin(log_probs)):
        assert scores.argmin() == 0
    picks = rayal.select("margin", {"log_probs": log_probs.numpy()}, 2, ids=["sure", "torn", "no"])
    assert set(picks.ids) == {"torn", "no"}


def test_three_picks_that_cover_three_heaps_are_one_of_each() -> None:
    heaps = np.repeat(10.0 * np.eye(3), 20, axis=0)
    heaps += np.random.default_rng(0).normal(size=heaps.shape)
    assert sorted(k_center(heaps, 3, seed=0) // 20) == [0, 1, 2]


def test_a_learner_learns(flowers: dict[str, tuple[list[float], str]], tmp_path: Path) -> None:
    x = torch.tensor([sizes for sizes, _ in flowers.values()])
    y = torch.tensor([SPECIES.index(species) for _, species in flowers.values()])
    task = TableTask(ClassLabel(SPECIES), SIZES)
    data = TrainData(LabeledRows(TensorRows(list(flowers), x), y))
    context = TrainContext(
        task=task, statistics=task.fit(x), n_labeled=len(y), n_outputs=3, steps=LEARNER.steps,
        seed=0, round=0, member=0, build=lambda seed: TaskNet({"head": torch.nn.Linear(4, 3)}),
    )  # fmt: skip
    state = fit(LEARNER, data, context, checkpoint=Files(tmp_path))
    found = state.networks["task"](task.transform(x, context.statistics)).argmax(dim=1)
    assert (found == y).float().mean() > 0.8
    assert list(tmp_path.iterdir())


def test_labels_become_a_model_and_the_next_batch(
    root: Path, flowers: dict[str, tuple[list[float], str]]
) -> None:
    with rayal.Ledger(root) as ledger:
        pool = rayal.Pool.open(root, "flowers")
        assert len(pool) == 150 and pool.classes == SPECIES
        project = rayal.Project.create(ledger, "by-hand", pool, spec())
        batch = project.ask(15)
        assert len({lease.item for lease in batch}) == 15
        told = project.tell({lease.item: flowers[lease.item][1] for lease in batch})
        assert {result.status for result in told} == {"accepted"}
        project.train()
        offered = ledger.open_items("by-hand")
        assert len(offered) == 10 and not {lease.item for lease in batch} & set(offered)
        selection = ledger.selection("by-hand", 0)
        assert selection is not None and selection.provenance["strategy"]
    again = rayal.Project.open(root, "by-hand")  # all of it was in the ledger
    assert {lease.item for lease in again.ask(4)} < set(offered)


def test_a_command_simulates_rounds_and_tells_what_it_did(shell: Run, table: Path) -> None:
    pool = {"source": str(table), "id": "flower", "label": "species", "test_share": 0.3}
    config, storage = table.parent / "mine.yaml", table.parent / "run"
    config.write_text(yaml.safe_dump({**SETTINGS, "pool": pool, "storage": str(storage)}))
    code, shown = shell("plan", config, "--rows", "105", "--classes", "3")
    assert code == 0 and "memory" in shown and not storage.exists(), shown
    code, shown = shell("run", config)
    assert code == 0 and "margin" in shown and "random" in shown, shown
    assert (storage / "curve.png").stat().st_size > 10_000
    code, shown = shell("status", storage, "--json")
    projects = json.loads(shown)["projects"]
    assert code == 0 and {p["project"] for p in projects} == {"margin-s0", "random-s0"}
    with (storage / "curve.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 4  # two strategies, two points each


def test_a_mistyped_strategy_is_answered_with_the_right_one(shell: Run, table: Path) -> None:
    config = table.parent / "typo.yaml"
    config.write_text(
        yaml.safe_dump({**SETTINGS, "pool": {"source": "digits"}, "strategies": ["margn"]})
    )
    code, shown = shell("run", config)
    assert code == 2 and "did you mean 'margin'" in shown


def test_annotators_work_over_http(root: Path, flowers: dict[str, tuple[list[float], str]]) -> None:
    token = new_token()

    async def nobody(body: Any) -> Any:
        raise AssertionError(f"no prediction was asked for: {body}")

    async def work(ledger: rayal.Ledger) -> None:
        backend = Backend(
            ledger, Limits(rate=1e6, burst=10**6), Prefixes(), b"s" * 32, nobody, nobody
        )
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(backend)), base_url="http://service"
        ) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/v1/projects/by-hand")).status_code == 401
            client.headers["Authorization"] = f"Bearer {token}"
            asked = {"annotator": "ann", "count": 3}
            leased = await client.post("/v1/projects/by-hand/leases", json=asked)
            labels = [
                {"item": lease["item"]["id"], "lease_id": lease["lease_id"], "annotator": "ann",
                 "label": flowers[lease["item"]["id"]][1]}
                for lease in leased.json()["leases"]
            ]  # fmt: skip
            answer = await client.post("/v1/projects/by-hand/labels", json={"labels": labels})
            results = answer.json()["results"]
            assert [row["status"] for row in results] == ["accepted"] * 3

    with rayal.Ledger(root) as ledger:
        before = len(ledger.labels("by-hand"))
        ledger.add_token("ann", ["admin"], hash_of(token), expires=None)
        asyncio.run(work(ledger))
        assert len(ledger.labels("by-hand")) == before + 3
