"""The Ray executor: the same bits as in one process, whoever dies."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import ray
import torch
from loop_cases import finish, picks_of
from pools import blob_pool, blob_rows, pool_of

from rayal.engine.columns import open_tiles
from rayal.engine.evaluate import Evaluation
from rayal.engine.executor import LOCAL, Executor, RayOptions
from rayal.engine.pretrain import member_store
from rayal.engine.project import Project
from rayal.engine.scan import Scan
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.engine.train import FolderStore
from rayal.errors import ClusterError, RayalError, ScoreError, WorkerError
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised, TrainContext, TrainState
from rayal.learners.base import Batches
from rayal.ledger import Ledger
from rayal.pool.reader import Part, Pool
from rayal.pool.readers.arrays import array_source
from rayal.ray_executor.cluster import connect
from rayal.ray_executor.scan import map_parts, sent
from rayal.registry import learners, strategies
from rayal.selection.greedy import choose
from rayal.selection.kcenter import KCenter, KCenterShard
from rayal.selection.objective import Commit
from rayal.selection.tiles import Tile
from rayal.signals import LogProbs, Signal
from rayal.strategies import Strategy
from rayal.types import Columns

pytestmark = pytest.mark.ray

LEARNER = Supervised(steps=20, batch=16, epoch_steps=10)
NETWORK = NetworkSpec("mlp", {"widths": (24, 12), "dropout": 0.3})
ROWS = 300  # of each of the pool's parts


def spec(strategy: Strategy, **changes: Any) -> ProjectSpec:
    base = ProjectSpec(
        network=NETWORK,
        learner=LEARNER,
        strategy=strategy,
        initial=Initial(count=20),
        batch=10,
        rounds=1,
        scan=ScanOptions(batch=64),
    )
    return dataclasses.replace(base, **changes)


def simulated(project: Project) -> list[tuple[str, float | None]]:
    """Run a project to its end and return its picks with their scores."""
    return picks_of(finish(project), -1, 0)


def both(root: Path, on_ray: Executor, what: ProjectSpec) -> tuple[Project, Project]:
    """Run the same project in one process and on Ray, in roots of their own."""
    made = []
    for executor in (LOCAL, on_ray):
        folder = root / executor.name
        project = Project.create(Ledger(folder), "p", blob_pool(folder), what, executor=executor)
        simulated(project)
        made.append(project)
    return made[0], made[1]


@pytest.mark.parametrize("name", ["margin", "coreset", "badge", "batchbald", "ensemble_bald"])
def test_picks_scores_and_metrics_are_the_same_bits(
    name: str, tmp_path: Path, on_ray: Executor
) -> None:
    params = {"batchbald": {"passes": 4}, "ensemble_bald": {"members": 3}}.get(name, {})
    local, remote = both(tmp_path, on_ray, spec(strategies[name](**params)))
    for round in (-1, 0):
        one, other = (p.ledger.selection(p.name, round) for p in (local, remote))
        assert one is not None and other is not None
        assert one.picks == other.picks
        assert one.runners_up == other.runners_up
    assert [r.metrics for r in local.rounds()] == [r.metrics for r in remote.rounds()]
    assert len(local.rounds()) == 2


def test_a_member_whose_file_another_run_has_replaced_is_begun_once_more(
    tmp_path: Path, on_ray: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def overtaken(stages: Any, round: int, hash: str, member: int) -> FolderStore:
        """Return the checkpoints; a worker is sent to a file that is gone when it looks."""
        store = member_store(stages, round, hash, member)
        times = itertools.count()

        def committed() -> tuple[int, str] | None:
            asked.append(next(times))
            return (1, "models/gone.safetensors") if asked[-1] == 1 else store.committed()

        return store.recorded_by(committed, store.commit)

    local, remote = tmp_path / "local", tmp_path / "remote"
    whole = Project.create(Ledger(local), "p", blob_pool(local), spec(strategies["margin"]()))
    expected = simulated(whole)
    pool = blob_pool(remote)
    project = Project.create(
        Ledger(remote), "p", pool, spec(strategies["margin"]()), executor=on_ray
    )
    monkeypatch.setattr("rayal.engine.trainset.member_store", overtaken)
    assert simulated(project) == expected
    assert asked.count(1) == 2  # in each of two rounds


@pytest.mark.parametrize("name", ["multicriteria", "adaptive"])
def test_what_is_remembered_is_the_same(name: str, tmp_path: Path, on_ray: Executor) -> None:
    params = {"leading": 60, "stride": 6, "hidden": 8} if name == "adaptive" else {}
    strategy = strategies[name](**params)
    what = spec(strategy, rounds=3, learner=strategy.trained_by(LEARNER))
    local, remote = both(tmp_path, on_ray, what)
    for round in range(3):
        one, other = (p.ledger.selection(p.name, round) for p in (local, remote))
        assert one is not None and other is not None
        assert one.picks == other.picks
        assert one.provenance["memory"] == other.provenance["memory"]


def test_a_cluster_of_our_own_listens_on_loopback_with_tokens(on_ray: Executor) -> None:
    (node,) = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    environment = ray.get(ray.remote(num_cpus=0)(_environment).remote())
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"


def _environment() -> dict[str, str]:
    return dict(os.environ)


def test_a_second_cluster_in_one_process_is_refused(on_ray: Executor) -> None:
    with pytest.raises(ClusterError, match="connected to Ray already"), connect():
        pass


def test_a_connection_that_was_there_is_used_and_left(on_ray: Executor, tmp_path: Path) -> None:
    with connect(RayOptions(address="auto"), shared=tmp_path) as executor:
        assert executor.workers == on_ray.workers
    assert ray.is_initialized()


def test_a_node_that_does_not_see_the_storage_root_is_refused(
    on_ray: Executor, tmp_path: Path
) -> None:
    missing = tmp_path / "elsewhere"
    with (
        pytest.raises(ClusterError, match=r"does not see the storage root .*all nodes share"),
        connect(RayOptions(address="auto"), shared=missing),
    ):
        pass


# ---- parts --------------------------------------------------------------------------------------


def once(file: Path) -> bool:
    """Return whether this is the first process that asks."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Counting:
    """Returns a part's name, and how many of its rows it has seen."""

    pool: Pool
    fatal: Path | None = None
    always: bool = False

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> tuple[str, int]:
        if self.fatal is not None and (self.always or once(self.fatal)):
            os.kill(os.getpid(), signal.SIGKILL)
        return part.part, self.pool.read(part).num_rows


def test_a_lost_scanning_worker_costs_its_part_only(on_ray: Executor, tmp_path: Path) -> None:
    pool = blob_pool(tmp_path)
    ticks: list[int] = []
    job = Counting(pool, tmp_path / "killed")
    parts = pool.parts_of("pool")
    made = dict(on_ray.map_parts(job, parts, threads=1, report=ticks.append))
    assert (tmp_path / "killed").exists()
    assert made == {part.part: part.rows for part in parts}
    assert sorted(ticks) == [ROWS] * 3


def test_a_part_whose_workers_die_again_and_again_ends_the_run(
    on_ray: Executor, tmp_path: Path
) -> None:
    pool = blob_pool(tmp_path, 1)
    job = Counting(pool, tmp_path / "killed", always=True)
    options = RayOptions(restarts=0)
    made = map_parts(options, job, pool.parts_of("pool"), threads=1, report=lambda rows: None)
    with pytest.raises(WorkerError, match=r"lost 1 times, 0 are allowed.*finished parts are kept"):
        list(made)


@dataclass(frozen=True)
class Failing:
    """Raises what a bad score raises."""

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> None:
        raise ScoreError("item 'x' scored NaN")


def test_an_error_of_ours_comes_back_as_itself(on_ray: Executor, tmp_path: Path) -> None:
    pool = blob_pool(tmp_path, 1)
    with pytest.raises(ScoreError, match="item 'x' scored NaN"):
        list(
            on_ray.map_parts(Failing(), pool.parts_of("pool"), threads=1, report=lambda rows: None)
        )


def test_what_no_node_has_is_said_at_once(on_ray: Executor, tmp_path: Path) -> None:
    pool = blob_pool(tmp_path, 1)
    job, parts = Counting(pool), pool.parts_of("pool")
    for options, match in (
        (RayOptions(scanner_cpus=64), "needs 64 CPUs and 0 GPUs, and no node has them"),
        (RayOptions(scanner_gpus=1), "needs 1 CPUs and 1 GPUs"),
    ):
        with pytest.raises(ClusterError, match=match):
            list(map_parts(options, job, parts, threads=1, report=lambda rows: None))
    with (
        pytest.raises(ClusterError, match="a worker needs 64 CPUs"),
        connect(RayOptions(address="auto", member_cpus=64)),
    ):
        pass


@dataclass(frozen=True)
class Broken(Strategy):
    """Scores every item NaN."""

    taxonomy = "baseline"
    source = "none"

    def signals(self) -> tuple[Signal, ...]:
        return (LogProbs(),)

    def score(self, s: Columns) -> torch.Tensor:
        return torch.full((len(s.ids),), float("nan"))


def test_two_stages_write_the_same_columns_as_one(on_ray: Executor, tmp_path: Path) -> None:
    what = spec(strategies["badge"](), rounds=0)
    pool = blob_pool(tmp_path)
    project = Project.create(Ledger(tmp_path), "p", pool, what)
    simulated(project)
    scan = Scan(pool, project.committee(0), what.strategy, LEARNER, what.scan)
    parts = pool.parts_of("pool")
    ticks: list[int] = []
    options = RayOptions(staged=True, scanner_cpus=0.6)  # two workers beside the decoding
    staged = {
        made.part: made for made in map_parts(options, scan, parts, threads=1, report=ticks.append)
    }
    assert sorted(ticks) == [ROWS] * 3
    for part in parts:
        fused = scan.part(part)
        assert (fused.rows, fused.key_sum) == (staged[part.part].rows, staged[part.part].key_sum)
        one, other = (
            open_tiles(tmp_path / made.file, scan.kept, np.zeros(0, np.uint64))
            for made in (fused, staged[part.part])
        )
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(a.columns[n], b.columns[n]) for n in scan.kept)
    assert not list(tmp_path.rglob("*piece*"))
    broken = dataclasses.replace(scan, strategy=Broken())
    options = RayOptions(staged=True, scanner_cpus=1.0)
    with pytest.raises(ScoreError, match="scored item 'row-"):
        list(map_parts(options, broken, parts[:1], threads=1, report=lambda rows: None))
    with pytest.raises(ClusterError, match="decoding needs 1 CPUs beside the 2"):
        options = RayOptions(staged=True, scanner_cpus=2)
        list(map_parts(options, scan, parts, threads=1, report=lambda rows: None))


def test_the_weights_of_a_round_are_sent_once(on_ray: Executor, tmp_path: Path) -> None:
    project = Project.create(
        Ledger(tmp_path), "p", blob_pool(tmp_path, 1), spec(strategies["margin"](), rounds=0)
    )
    simulated(project)
    committee = project.committee(0)
    scan = Scan(project.pool, committee, project.spec.strategy, LEARNER, project.spec.scan)
    test = Evaluation(project.pool, committee, project.spec.scan)
    (job, weights), (other, same) = sent(scan), sent(test)
    assert weights == same and job != other
    assert ray.get(job).committee is None
    assert ray.get(weights).hash == committee.hash


# ---- members ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fragile(Supervised):
    """Member 1's worker dies at step 15, once or each time."""

    killed: str = ""
    always: bool = False

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        fatal = ctx.member == 1 and state.step == 15
        if fatal and (self.always or once(Path(self.killed))):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(state, batches, ctx)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(learners._rows, "fragile", Fragile)


def trained(root: Path, executor: Executor, **changes: Any) -> Project:
    learner = Fragile(steps=20, batch=16, epoch_steps=10, killed=str(root / "killed"))
    learner = dataclasses.replace(learner, **changes.pop("learner", {}))
    what = spec(strategies["margin"](), members=3, learner=learner, **changes)
    project = Project.create(Ledger(root), "p", blob_pool(root), what, executor=executor)
    project.prepare()
    oracle = Oracle(project.pool)
    oracle.work(project)
    project.train(oracle.truth)
    return project


def test_a_lost_member_goes_on_from_its_last_epoch(
    on_ray: Executor, fragile: None, tmp_path: Path
) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "killed").touch()
    local = trained(tmp_path / "local", LOCAL, learner={"killed": str(tmp_path / "local/killed")})
    remote = trained(tmp_path / "ray", on_ray)
    assert (tmp_path / "ray" / "killed").exists()
    one, other = (p.ledger.selection(p.name, 0) for p in (local, remote))
    assert one is not None and other is not None
    assert [(p.item, p.score) for p in one.picks] == [(p.item, p.score) for p in other.picks]
    epochs = [
        row["epoch"]
        for event in remote.ledger.events()
        for op, table, *written in event.payload
        for row in written
        if op == "insert" and table == "checkpoints" and row["member"] == 1
    ]
    assert epochs == [1, 2], "an epoch that was committed ran again"


def test_a_quorum_goes_on_without_a_member_and_says_so(
    fragile: None, on_ray: Executor, tmp_path: Path
) -> None:
    with connect(RayOptions(address="auto", restarts=0), shared=tmp_path) as executor:
        project = trained(tmp_path, executor, quorum=2, learner={"always": True})
        output = project.rounds()[0].outputs["train"]
        assert output["used"] == [0, 2] and output["members"] == 3
        chosen = project.ledger.selection("p", 0)
        assert chosen is not None
        assert chosen.provenance["model"] != output["model"]
        again = Project.open(tmp_path, "p", executor=executor)
        assert again.committee(0).members == (0, 2)
        with pytest.raises(WorkerError, match=r"members \[1\] of 3 were lost.*model.quorum"):
            trained(tmp_path / "all", executor, learner={"always": True})


# ---- shards -------------------------------------------------------------------------------------


@dataclass(slots=True)
class MortalShard(KCenterShard):
    """Counts commits besides."""

    commits: int = 0


@dataclass(frozen=True)
class Mortal(KCenter):
    """K-center, of which one shard dies in the middle of a selection."""

    shard_kind: ClassVar[type[KCenterShard]] = MortalShard

    killed: str = ""

    def commit(self, tile: Tile, commit: Commit) -> None:
        shard = tile.shared.state_as(MortalShard)
        shard.commits += 1
        if self.killed and shard.commits == 5 and once(Path(self.killed)):
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit(tile, commit)


def columns(root: Path, parts: int) -> list[Path]:
    """Scan a pool and return its column parts."""
    what = spec(strategies["coreset"](), rounds=1, keep="all")
    project = Project.create(Ledger(root), "p", blob_pool(root, parts), what)
    simulated(project)
    return sorted((root / "columns").rglob("*.arrow"))


def test_a_lost_shard_is_rebuilt_and_the_picks_are_the_same(
    on_ray: Executor, tmp_path: Path
) -> None:
    paths = columns(tmp_path, 4)
    none = np.zeros(0, np.uint64)
    made = {}
    for executor, killed in ((LOCAL, ""), (on_ray, str(tmp_path / "killed"))):
        objective = Mortal(rows=8, killed=killed)
        shards = executor.start_shards(objective, paths, none, seed=1, count=1, threads=1)
        made[executor.name, killed] = choose(objective, shards, 60, seed=1)
        shards.close()
    assert (tmp_path / "killed").exists()
    first, other = made.values()
    assert len(first.keys) == 60
    assert first.keys.tobytes() == other.keys.tobytes()
    assert first.scores.tobytes() == other.scores.tobytes()
    assert first.runners_up.keys.tobytes() == other.runners_up.keys.tobytes()


# ---- growing pools, pending items ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["coreset", "badge"])
def test_a_pool_grows_between_rounds_and_pending_items_are_context(
    name: str, on_ray: Executor, tmp_path: Path
) -> None:
    made: list[Sequence[str]] = []
    snapshots: list[Mapping[str, Any]] = []
    for executor in (LOCAL, on_ray):
        root = tmp_path / executor.name
        what = spec(strategies[name](), rounds=None)
        project = Project.create(Ledger(root), "p", blob_pool(root, 2), what, executor=executor)
        oracle = Oracle(project.pool)
        project.prepare()
        oracle.work(project)
        project.train(oracle.truth)
        pending = [lease.item for lease in project.lease(10)]
        x, y, ids = blob_rows(5000, ROWS)
        pool_of(root, "rows", array_source(x + 2.0, y, ids=ids))
        oracle = Oracle(Pool.open(root, "rows"))
        project.tell({item: oracle.answer(item) for item in pending[:4]})
        project.train(oracle.truth)  # six items are pending: offered, not labeled
        chosen = project.ledger.selection("p", 1)
        assert chosen is not None
        picks = [p.item for p in chosen.picks]
        assert not set(picks) & set(pending)
        assert any(item in ids for item in picks), "nothing of what came later was chosen"
        made.append(picks)
        snapshots.append(chosen.provenance)
    assert made[0] == made[1]
    assert snapshots[0]["snapshot"] == snapshots[1]["snapshot"] == 4
    assert snapshots[0]["candidates"] == 3 * ROWS - 30


def test_every_error_of_the_executor_is_ours() -> None:
    assert issubclass(ClusterError, RayalError) and issubclass(WorkerError, RuntimeError)
