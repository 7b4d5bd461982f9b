"""A frozen backbone: embedded once, whoever asks, and then as fast as a table."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from loop_cases import finish, picks_of
from pools import digit_rows, digit_source, pool_of
from torch import nn

from rayal.engine import embed
from rayal.engine.columns import column_tensor, open_columns, open_tiles
from rayal.engine.embed import Embed
from rayal.engine.executor import LOCAL, Executor, RayOptions
from rayal.engine.project import Project
from rayal.engine.scan import Scan, ScannedPart
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions, SelectionOptions
from rayal.errors import NeedsError, ScoreError, StorageError
from rayal.evaluation.oracle import Oracle
from rayal.evaluation.protocol import run
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.models.backbone import BackboneSpec
from rayal.planning.seconds import Speed, estimate
from rayal.pool.reader import Part, Pool
from rayal.pool.readers.arrays import array_source
from rayal.pool.source import Role
from rayal.registry import strategies
from rayal.settings.run import load
from rayal.strategies import Strategy

PART, TEST = 300, 80
LEARNER = Supervised(steps=20, batch=16, epoch_steps=10)
LINEAR = NetworkSpec("mlp", {"widths": ()})
MLP = NetworkSpec("mlp", {"widths": (16,), "dropout": 0.5})


def tiny() -> nn.Module:
    """A network of 8 x 8 images whose embedding has 12 columns."""
    first = nn.Conv2d(3, 12, 3, stride=2, padding=1)
    trunk = nn.Sequential(first, nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(trunk, nn.Flatten(1), nn.Dropout(0.2), nn.Linear(12, 5))


def broken() -> nn.Module:
    """A network whose embedding is infinite where an image's first row is white."""
    return Overflow()


class Overflow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(400 * x.mean(dim=1)[:, 0, :3] - 880)  # white is 2.44, grey at most 2.18


TINY = BackboneSpec(f"{__name__}:tiny", "random")


def grow(root: Path, start: int, count: int = PART) -> Pool:
    """Add digits as a part of their own."""
    return pool_of(root, "digits", digit_source(start, count))


def made(root: Path, parts: int = 2) -> Pool:
    """Ingest digits as several parts of the pool and one of the test."""
    sources = [digit_source(number * PART, PART) for number in range(parts)]
    return pool_of(root, "digits", *sources, digit_source(1700, TEST, "test"))


def spec(strategy: Strategy, **changes: Any) -> ProjectSpec:
    base = ProjectSpec(
        network=LINEAR,
        backbone=TINY,
        learner=LEARNER,
        strategy=strategy,
        initial=Initial(count=20),
        batch=10,
        rounds=2,
    )
    return dataclasses.replace(base, **changes)


def simulate(
    root: Path, pool: Pool, what: ProjectSpec, name: str = "p", executor: Executor = LOCAL
) -> Project:
    project = Project.create(Ledger(root), name, pool, what, executor=executor)
    return finish(project)


def picks(project: Project) -> list[tuple[str, float | None]]:
    return picks_of(project, -1, 0, 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The parts that were embedded, in order."""
    seen: list[str] = []
    real = Embed.part

    def part(self: Embed, part: Part, report: Any = None) -> ScannedPart:
        seen.append(part.part)
        return real(self, part, report)

    monkeypatch.setattr(embed.Embed, "part", part)
    yield seen


def test_a_grown_pool_embeds_its_new_parts_alone(tmp_path: Path, calls: list[str]) -> None:
    pool = made(tmp_path)
    project = Project.create(Ledger(tmp_path), "p", pool, spec(strategies["badge"](), rounds=None))
    oracle = Oracle(pool)
    project.prepare()
    for round in range(3):
        if round == 2:
            grow(tmp_path, 900)
        Oracle(Pool.open(tmp_path, "digits")).work(project)
        project.train(oracle.truth)
    old = [part.part for part in pool.parts]
    (new,) = {part.part for part in project.pool.parts} - set(old)
    assert calls == [*old, new]
    outputs = [r.outputs["embed"] for r in project.rounds()]
    assert [o["embedded"] for o in outputs] == [2 * PART + TEST, 0, PART]
    assert [o["rows"] for o in outputs] == [2 * PART + TEST] * 2 + [3 * PART + TEST]


def test_strategies_seeds_and_heads_of_a_storage_share_the_embeddings(
    tmp_path: Path, calls: list[str]
) -> None:
    pool = made(tmp_path)
    first = simulate(tmp_path, pool, spec(strategies["margin"]()))
    seeds = dataclasses.replace(first.spec.seeds, model=7, query=7)
    simulate(tmp_path, pool, spec(strategies["badge"](), seeds=seeds), "q")
    simulate(tmp_path, pool, spec(strategies["bald"](passes=3), network=MLP), "r")
    assert sorted(calls) == sorted(part.part for part in pool.parts)


def test_columns_are_those_of_a_full_pass_of_backbone_and_head(tmp_path: Path) -> None:
    pool = made(tmp_path)
    for name, network in (("linear", LINEAR), ("mlp", MLP)):
        what = spec(strategies["badge"](), network=network, keep="all")
        project = simulate(tmp_path, pool, what, name)
        committee = project.committee(1)
        scan = Scan(
            project.inputs.pool, committee, what.strategy, LEARNER, project.workspace.options
        )
        backbone = TINY.build(project.task.input_shape)
        for part, row in project.ledger.columns(scan.columns_hash()).items():
            items = pool.read(next(p for p in pool.parts if p.part == part))
            head = committee.net(0).eval()
            with torch.inference_mode():
                embedding = head.embed(backbone(project.task.decode(items)))
                log_probs = head.head(embedding).log_softmax(dim=1)
            (tile,) = open_tiles(tmp_path / row.file, scan.kept, np.zeros(0, np.uint64))
            count = items.num_rows
            assert tile.keys[:count].tolist() == items.column("key").to_pylist()
            torch.testing.assert_close(
                tile.columns["embedding"][:count], embedding, atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                tile.columns["log_probs.0"][:count], log_probs, atol=1e-5, rtol=1e-5
            )
            size = (tmp_path / row.file).stat().st_size
            assert scan.borrowed == (("embedding",) if network is LINEAR else ())
            assert (size < 12 * 4 * count + 10 * 4 * count) == (network is LINEAR)


@pytest.mark.parametrize("name", ["margin", "coreset", "badge"])
def test_shards_scan_batch_and_parts_do_not_change_a_bit(name: str, tmp_path: Path) -> None:
    strategy = strategies[name]()
    first = simulate(tmp_path / "a", made(tmp_path / "a"), spec(strategy))
    assert len(set(picks(first))) == 40
    for folder, shards, batch in (("b", 7, 256), ("c", 2, 1000)):
        root = tmp_path / folder
        changed = spec(strategy, shards=shards, scan=ScanOptions(batch=batch))
        other = simulate(root, made(root), changed)
        assert picks(other) == picks(first)
        for one, two in zip(first.inputs.pool.parts, other.inputs.pool.parts, strict=True):
            assert first.inputs.pool.read(one).equals(other.inputs.pool.read(two))


def test_bf16_is_written_beside_the_shared_embeddings(tmp_path: Path, calls: list[str]) -> None:
    pool, coreset = made(tmp_path), strategies["coreset"]()
    once = {"rounds": 1, "keep": "all"}
    wide = simulate(tmp_path, pool, spec(coreset, **once), "wide")
    embedded = len(calls)
    rounded = spec(coreset, selection=SelectionOptions(precision="bf16"), **once)
    narrow = simulate(tmp_path, pool, rounded, "narrow")
    assert len(calls) == embedded  # heads train on the same float32 embeddings
    hashes = [p.rounds()[0].outputs["scan"]["columns"] for p in (wide, narrow)]
    assert hashes[0] != hashes[1]
    before, after = (narrow.ledger.columns(hash) for hash in hashes)
    assert sorted(before) == sorted(after) and len(after) == 2
    for part, row in after.items():
        old, new = (
            column_tensor(open_columns(tmp_path / file).column("embedding").chunk(0))
            for file in (before[part].file, row.file)
        )
        assert new.dtype == torch.bfloat16 and old.dtype == torch.float32
        assert new.equal(old.bfloat16())


def test_dropout_of_an_mlp_head_answers_strategies_that_ask_for_it(tmp_path: Path) -> None:
    pool = made(tmp_path)
    with pytest.raises(NeedsError, match="dropout"):
        Project.create(Ledger(tmp_path), "p", pool, spec(strategies["bald"](passes=3)))
    project = simulate(tmp_path, pool, spec(strategies["bald"](passes=3), network=MLP))
    scores = [s for _, s in picks(project)[20:]]
    assert all(s is not None and s > 0 for s in scores)


def test_augmented_views_are_refused_before_anything_runs(tmp_path: Path) -> None:
    pool = made(tmp_path)
    learner = dataclasses.replace(LEARNER, augment=True)
    with pytest.raises(NeedsError, match=r"learner\.augment to false"):
        Project.create(Ledger(tmp_path), "p", pool, spec(strategies["margin"](), learner=learner))


def test_the_record_names_the_backbone(tmp_path: Path) -> None:
    project = simulate(tmp_path, made(tmp_path), spec(strategies["random"]()))
    chosen = project.ledger.selection("p", 0)
    assert chosen is not None and chosen.provenance["backbone"] == TINY.hash
    assert project.rounds()[1].outputs["embed"]["backbone"] == TINY.hash
    assert Project.open(tmp_path, "p").spec == project.spec


def test_other_weights_are_another_cache_and_another_model(
    tmp_path: Path, calls: list[str]
) -> None:
    pool = made(tmp_path)
    models = []
    for number in range(2):
        weights = tmp_path / f"{number}.pt"
        torch.manual_seed(number)
        torch.save(tiny().state_dict(), weights)
        backbone = dataclasses.replace(TINY, weights=str(weights))
        what = spec(strategies["margin"](), backbone=backbone)
        project = simulate(tmp_path, pool, what, f"p{number}")
        models.append(project.rounds()[0].outputs["train"]["model"])
    assert len(calls) == 2 * len(pool.parts)
    assert models[0] != models[1]


def test_an_embedding_that_is_not_finite_names_the_item(tmp_path: Path) -> None:
    x, y, ids = digit_rows(0, 40)
    x[7, 0, :] = 255
    pool = Pool.ingest(tmp_path, "digits", [array_source(x, y, ids=ids)])
    what = spec(
        strategies["margin"](),
        backbone=BackboneSpec(f"{__name__}:broken", "random"),
        initial=Initial(count=4),
        rounds=0,
    )
    with pytest.raises(ScoreError, match="item 'digit-0007' is not finite"):
        simulate(tmp_path, pool, what)


def test_a_lost_embedding_is_an_error(tmp_path: Path) -> None:
    project = simulate(tmp_path, made(tmp_path), spec(strategies["badge"](), keep="all"))
    columns = project.rounds()[1].outputs["scan"]["columns"]
    row = next(iter(project.ledger.columns(columns).values()))
    (tmp_path / project.inputs.pool.parts[0].file).unlink()
    (tmp_path / project.inputs.pool.parts[1].file).unlink()
    with pytest.raises(StorageError, match="missing"):
        open_columns(tmp_path / row.file)


def test_the_estimate_counts_the_embedding_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayal.planning.seconds.embedding_time", lambda spec, pool: 1.0)
    monkeypatch.setattr("rayal.planning.seconds.speed_of", lambda spec, task: Speed(0.0, 0.0, 0.0))
    pool = made(tmp_path)
    cells = [(spec(strategies[name]()), pool) for name in ("margin", "badge")]
    assert estimate(cells, RayOptions(cpus=3)).local == 2 * PART + TEST


SETTINGS: dict[str, Any] = {
    "pool": {"source": "digits-parts"},
    "model": {"backbone": "efficientnet_lite0", "weights": "random", "frozen": True},
    "learner": {"steps": 20, "batch": 16, "epoch_steps": 10},
    "strategies": ["badge"],
    "initial": {"count": 20},
    "rounds": 1,
    "batch": 10,
}


def settings_file(folder: Path) -> Path:
    """Ingest a pool of two parts and write the settings of a run on it."""
    root = folder / "run"
    parts: list[tuple[Role, int, int]] = [("pool", 0, 40), ("pool", 40, 40), ("test", 1700, 20)]
    for role, start, count in parts:
        pool_of(root, "digits-parts", digit_source(start, count, role))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "storage": str(root)}))
    return config


def picks_table(folder: Path) -> Any:
    table = pq.read_table(folder / "run" / "picks.parquet")
    return table.select(["project", "round", "rank", "item", "score"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the picks of a run in this process that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    run(load(settings_file(folder)))
    return picks_table(folder)


@pytest.mark.processes
@pytest.mark.parametrize("point", ["embed.write:2", "embed.commit:2"])
def test_a_run_killed_while_it_embeds_goes_on_to_the_same_picks(
    point: str, whole: Any, tmp_path: Path
) -> None:
    argv = ("-m", "rayal", "run", settings_file(tmp_path))
    killed = forked.run(*argv, env={**os.environ, "RAYAL_FAILPOINT": point}, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    forked.run(*argv)
    assert picks_table(tmp_path).equals(whole)
    with Ledger(tmp_path / "run", create=False) as ledger:
        output = ledger.stages("badge-s0")[1].output
        assert output["rows"] == 100 and "backbone" in output
        others = ledger.stages("random-s0")[1].output
    assert others["embedded"] < 100  # the part that was committed is not embedded again


@pytest.mark.ray
def test_ray_makes_the_same_picks(tmp_path: Path, on_ray: Executor) -> None:
    backbone = BackboneSpec("torchvision:shufflenet_v2_x0_5", "random")
    made_picks = []
    for executor in (LOCAL, on_ray):
        root = tmp_path / executor.name
        what = spec(strategies["badge"](), backbone=backbone, rounds=1)
        what = dataclasses.replace(what, task={"size": [32, 32]})
        made_picks.append(picks(simulate(root, made(root), what, executor=executor)))
    assert made_picks[0] == made_picks[1]
    assert len(made_picks[0]) == 30
