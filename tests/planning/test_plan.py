"""The arithmetic of plans by hand, against files and parts, and the refusal with its remedies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayal.engine.checks import untrained
from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, SelectionOptions
from rayal.evaluation.oracle import Oracle
from rayal.learners import LayerwisePretrained, Supervised
from rayal.ledger import Ledger
from rayal.planning import demands
from rayal.planning.plan import WORKER, Place, listed, plan_cell, refusal, size
from rayal.planning.pools import shape_of
from rayal.planning.seconds import Rates, Speed
from rayal.planning.sizes import NetworkShape, PoolShape, network_shape
from rayal.pool import write_parts as place
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.registry import strategies
from rayal.selection.footprint import Footprint
from rayal.selection.kcenter import KCenter
from rayal.selection.kmeans import KMeansPP
from rayal.strategies import Strategy
from rayal.strategies.coreset import CoreSet
from rayal.tasks import task_for

TABLE = {"kind": "table", "features": [f"x{i}" for i in range(8)]}
CLASSES = ("a", "b", "c")
GB = 10**9


def spec(strategy: Strategy | None = None, **changes: Any) -> ProjectSpec:
    return ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (16,)}),
        learner=Supervised(steps=10, batch=4),
        strategy=strategy or strategies["coreset"](),
        **{"rounds": 3, "initial": Initial(count=10), "batch": 5, **changes},
    )


def pool(rows: int = 1_000, tests: int = 100, item: float = 64.0) -> PoolShape:
    return PoolShape(rows, tests, item, TABLE, CLASSES)


def network(given: ProjectSpec, width: int | None = None) -> NetworkShape:
    task = task_for(TABLE, kind=None, classes=CLASSES)
    return network_shape(given, task, untrained(given, task), width=width)


# ---- sizes ---------------------------------------------------------------------------------------


def test_a_network_by_hand() -> None:
    net = network(spec(strategies["badge"]()))
    assert net.weights == 4 * (8 * 16 + 16 + 16 * 3 + 3)
    # flatten 8, linear 16, ReLU 16, dropout 16, head 3
    assert net.activations == 4 * (8 + 16 + 16 + 16 + 3)
    assert net.widest == 4 * (16 + 16)
    assert net.row == 4 * 8
    assert net.signals == {"log_probs.0": ((3,), 12), "embedding": ((16,), 64)}
    assert net.size(("score", "embedding")) == 8 + 64


def test_the_width_of_another_network() -> None:
    assert network(spec(), width=768).signals["embedding"] == ((768,), 3_072)


@pytest.mark.parametrize("item", [64.0, 784.0, 20_000.0, 40e6, 90e6])
def test_parts_are_cut_as_ingest_cuts_them(item: float) -> None:
    shape = pool(50_000, item=item)
    cuts = list(place.cuts(np.full(50_000, int(item), np.int64)))
    assert shape.parts == len(cuts)
    assert shape.part_rows == cuts[0][1] - cuts[0][0]


def test_training_by_hand() -> None:
    net = NetworkShape(weights=1_000, activations=500, widest=300, row=40, signals={})
    adam = spec()
    # 25 rows stay, beside 2 x 3 weights and a checkpoint of three more ... or the statistics
    weights = 1_000 * (2 * (1 + 2) + 1)
    step = 4 * (2 * 500 + 3 * 40)
    assert demands.training(adam, net, 25) == 25 * 40 + weights + step
    assert demands.training(adam, net, 10_000) == 6 * 10_000 * 40
    sgd = replace(adam, learner=Supervised(steps=10, batch=4, optimizer="sgd", swa=0.25))
    assert demands.training(sgd, net, 25) == 25 * 40 + 1_000 * (2 * 2 + 2) + step


def test_scanning_by_hand() -> None:
    net = NetworkShape(10, 10, widest=300, row=40, signals={"log_probs": ((3,), 12)})
    given = replace(spec())
    batch = 64 * (3 * 40 + 2 * 300 + 4 * 12)
    # signals and score of all rows, beside the rows as decoded and copied, and a batch
    assert demands.scanning(given, net, 100) == 100 * 20 + 2 * 100 * 40 + batch
    decoded = 4_096 * 40  # no more than a tile at a time
    assert demands.scanning(given, net, 16_384) == 16_384 * 20 + 2 * decoded + batch
    assert demands.scanning(given, net, 65_536) == 2 * 65_536 * 20  # joined
    tile = 4_096 * 6 * 12_000
    wide = replace(net, signals={"embedding": ((3_000,), 12_000)})
    assert demands.scanning(given, wide, 4_096) == 4_096 * 12_008 + tile
    assert (
        demands.scanning(given, replace(wide, borrowed=("embedding",)), 4_096) == 8 * 4_096 + tile
    )
    assert demands.scanning(given, replace(net, signals={}), 100) == 0


def test_a_shard_works_on_a_tile_in_each_thread() -> None:
    made = Footprint(row=10, tile=100, part=1_000, transient=7_000, shard=50)
    one = demands.selecting(made, 10_000, 2, threads=1)
    assert one == 10_000 * (17 + 10) + 3 * 100 + 2 * 2 * 1_000 + 7_000 + 50
    assert demands.selecting(made, 10_000, 2, threads=2) == one + 7_000
    assert demands.selecting(made, 10_000, 2, threads=8) == one + 2 * 7_000  # of three tiles
    assert demands.selecting(made, 10_000, 2, threads=1, copied=64) == one + 640_000
    assert demands.deciding(replace(made, driver=5), 2) == 5 + 3 * 2 * 1_000


def test_sums_before_the_first_step_are_a_stage_of_their_own() -> None:
    made = Footprint(row=10, summing=9_000, shard=50)
    assert demands.summing(made, 10_000, threads=2) == 10_000 * 27 + 2 * 9_000
    assert demands.summing(made, 4_096, threads=2, copied=4) == 4_096 * 31 + 9_000
    given = spec(strategies["bait"]())
    shape, net = pool(400_000), network(given)
    made = demands.objective_of(given, 400_000).footprint(net.shapes(), 400_000, 5)
    for threads in (1, 64):
        plan = plan_cell(given, shape, net, Place("ray", 4, threads=threads))
        sums = demands.summing(made, 100_000, threads=threads)
        later = demands.selecting(made, 100_000, 7, threads=threads)
        assert plan.processes["shard"] == WORKER + max(sums, later)


def test_a_local_run_is_the_base_what_stays_and_the_largest_stage() -> None:
    given, shape = spec(), pool()
    net = network(given)
    objective = demands.objective_of(given, 1_000)
    assert (objective.needs, objective.title) == (("embedding",), "k-center")
    made = objective.footprint(net.shapes(), 1_000, 5)
    labels = 10 + 3 * 5
    stages = [
        demands.ingesting(shape),
        demands.training(given, net, labels),
        demands.scanning(given, net, 1_000),
        demands.evaluating(shape, given, net),
        demands.selecting(made, 1_000, 1, threads=1) + demands.deciding(made, 1),
    ]
    stays = demands.driving(shape, given, net, labels)
    plan = plan_cell(given, shape, net, Place(base=7))
    assert plan.processes == {"process": 7 + stays + max(stages)}
    assert plan.held == 1_000 * 64
    there = plan_cell(given, replace(shape, ingested=True), net, Place(base=7))
    assert there.peak == 7 + stays + max(stages[1:])


def test_shards_share_the_rows() -> None:
    given = spec()
    net = network(given)
    one, four = (plan_cell(given, pool(400_000), net, Place("ray", n)) for n in (1, 4))
    made = demands.objective_of(given, 400_000).footprint(net.shapes(), 400_000, 5)
    assert four.processes["shard"] == WORKER + demands.selecting(made, 100_000, 7, threads=1)
    assert one.processes["shard"] > four.processes["shard"]
    assert one.processes["member"] == four.processes["member"]
    assert one.held == four.held


# ---- disk ----------------------------------------------------------------------------------------


def test_what_keep_keeps_by_hand() -> None:
    columns, weights = 1_000, 10
    kept = {k: demands.rounds_on_disk(spec(keep=k), columns, weights) for k in ("last", "all")}
    assert kept["all"] == (3 * 1_000 + 4 * 10, 3 * 1_000 + 4 * 10)
    assert kept["last"] == (2 * 1_000 + 3 * 10, 2 * 10)
    assert demands.rounds_on_disk(spec(keep="picks"), columns, weights) == (1_030, 20)
    assert demands.rounds_on_disk(spec(keep="last", rounds=0), columns, weights) == (10, 10)


@pytest.mark.parametrize("keep", ["last", "all", "picks"])
def test_bytes_on_disk_are_those_of_the_files(tmp_path: Path, keep: str) -> None:
    x = np.random.default_rng(0).normal(size=(6_000, 8))
    labels = np.array(CLASSES)[np.arange(6_000) % 3]
    there = Pool.ingest(tmp_path, "rows", [array_source(x, labels)])
    given = spec(strategies["badge"](), rounds=2, keep=keep)
    shape = shape_of(there, CLASSES)
    plan = plan_cell(given, shape, network(given), Place())
    assert plan.columns == 6_000 * (16 + 12 + 64)
    most = 0
    with Ledger(tmp_path) as ledger:
        project = Project.create(ledger, "p", there, given, report=lambda *_: None)
        oracle = Oracle(there)
        project.prepare()
        while not project.finished:
            oracle.work(project)
            with _watched(tmp_path) as sizes:
                project.train(oracle.truth)
            most = max(most, *sizes)
    left = _stored(tmp_path)
    # files have a header of some kilobytes each
    assert left - 20_000 <= plan.left <= left
    assert most <= plan.disk + 20_000
    assert shape.bytes_on_disk == sum(p.stat().st_size for p in (tmp_path / "pools").rglob("*.*"))


def _stored(root: Path) -> int:
    folders = (root / "columns", root / "models")
    return sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())


@contextmanager
def _watched(root: Path) -> Iterator[list[int]]:
    """Note what is stored before columns are dropped."""
    sizes = [_stored(root)]
    real = torch.set_num_threads  # the last thing a round does before it drops files

    def note(count: int) -> None:
        sizes.append(_stored(root))
        real(count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", note)
        yield sizes


def test_a_pool_that_is_not_there_is_counted_as_large_as_it_becomes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20_000, 8))
    labels = np.array(CLASSES)[np.arange(20_000) % 3]
    there = shape_of(Pool.ingest(tmp_path, "rows", [array_source(x, labels)]), CLASSES)
    imagined = pool(20_000, tests=0)
    assert imagined.bytes_on_disk == pytest.approx(there.bytes_on_disk, rel=0.2)
    assert there.rows == 20_000 and there.ingested


def test_a_pretraining_by_hand() -> None:
    net = NetworkShape(weights=1_000, activations=500, widest=300, row=40, signals={})
    assert demands.pretraining(net, 10_000) == 0
    some = replace(net, pretrained=(50, 30))  # 1,500 rows: less than one pass
    step = 7 * 1_000 + 30 * (2 * 500 + 3 * 40)
    assert demands.pretraining(some, 10_000) == 10_000 * 8 * 3 + step
    assert demands.pretraining(some, 100) == 100 * 8 * (2 + 8) + step
    given = spec()
    wide = replace(network(given), pretrained=(10**8, 100))
    more = plan_cell(given, pool(10**8), wide, Place("ray", 4)).processes["member"]
    assert more > 10**8 * 8 * 10 > plan_cell(given, pool(), wide, Place("ray", 4)).peak / 4


def test_a_pretraining_is_read_from_the_learner_and_timed_once() -> None:
    learner = LayerwisePretrained(steps=10, batch=4, pretrain_steps=20, pretrain_batch=7)
    given = replace(spec(), learner=learner, network=NetworkSpec("mlp", {"widths": (8, 8, 8)}))
    assert network(given).pretrained == (60, 7)
    assert network(spec()).pretrained == (0, 0)
    plain, more = (
        plan_cell(given, pool(), network(given), Place(), speed=Speed(1e-3, 1e-4, 0.01, 2, first))
        for first in (0.0, 77.0)
    )
    assert more.total == pytest.approx(plain.total + 77.0)


# ---- seconds -------------------------------------------------------------------------------------


def test_seconds_by_hand() -> None:
    given = spec(strategies["margin"](), members=3)
    speed = Speed(row=1e-3, tail=1e-4, step=0.01)
    plan = plan_cell(given, pool(), network(given), Place(), speed=speed)
    assert plan.seconds["train"] == pytest.approx(3 * 10 * 0.01)
    assert plan.seconds["evaluate"] == pytest.approx(100 * 3 * 1e-3)
    assert plan.seconds["scan"] == pytest.approx(3.0 + plan.columns / Rates().write)
    assert plan.seconds["select"] == pytest.approx(8 * 1_000 / 10e9)
    once = plan.seconds["train"] + plan.seconds["evaluate"]
    assert plan.total == pytest.approx(3 * sum(plan.seconds.values()) + once)


def test_dropout_passes_cost_the_tail_alone() -> None:
    speed = Speed(row=1e-3, tail=1e-4, step=0.01)
    assert speed.scanned(spec(strategies["bald"](passes=20))) == pytest.approx(3e-3)
    assert speed.scanned(spec(strategies["margin"]())) == pytest.approx(1e-3)
    assert speed.scanned(spec(strategies["random"]())) == 0.0


def test_a_kernel_that_was_measured_takes_its_multiple_of_the_floor() -> None:
    speed = Speed(row=1e-3, tail=1e-4, step=0.01)
    net, where = network(spec()), Place(threads=2)
    rates = Rates(gemm=1e6, kernels={"k-center": 3.0})
    measured = plan_cell(spec(), pool(), net, where, speed=speed, rates=rates)
    # 1,000 rows of 16 by 5 picks, on two threads
    assert measured.seconds["select"] == pytest.approx(3.0 * 2 * 1_000 * 16 * 5 / 1e6 / 2)
    made = KCenter().footprint(net.shapes(), 1_000, 5)
    counted = plan_cell(spec(), pool(), net, where, speed=speed, rates=Rates(gemm=1e6))
    assert counted.seconds["select"] == pytest.approx((made.flops / 1e6 + made.read / 10e9) / 2)
    rounds = spec(CoreSet(method="two_round"))  # another choice, which was not measured
    other = plan_cell(rounds, pool(), net, where, speed=speed, rates=rates)
    assert other.seconds["select"] > made.flops / 1e6 / 2


# ---- refusals ------------------------------------------------------------------------------------


LARGE = pool(40_000_000, 0, 768.0)
FOUR = Place("ray", 4, 16 * GB, each=True)


def refused(given: ProjectSpec, where: Place, rows: PoolShape = LARGE) -> str | None:
    net = network(given, width=768)
    return refusal(given, rows, net, where, plan=plan_cell(given, rows, net, where))


def test_a_refusal_offers_what_would_fit() -> None:
    assert refused(spec(CoreSet()), FOUR) == (
        "k-center on 40,000,000 x 768 float32 holds 123 GB on 4 shards of 16 GB: "
        "use 8 shards, selection.precision=bf16, or candidates=200000"
    )


@pytest.mark.parametrize(("name", "title"), [("badge", "k-means++"), ("batchbald", "BatchBALD")])
def test_candidates_are_offered_where_a_strategy_has_them(name: str, title: str) -> None:
    network = NetworkSpec("mlp", {"widths": (16,), "dropout": 0.5})
    given = replace(spec(strategies[name]()), network=network)
    text = refused(given, replace(FOUR, memory=2 * GB), replace(LARGE, ingested=True))
    assert text is not None and text.startswith(f"{title} on 40,000,000 x")
    assert text.endswith("candidates=200000")


def test_a_strategy_that_chooses_among_all_items_is_not_offered_candidates() -> None:
    text = refused(spec(strategies["bait"]()), replace(FOUR, memory=64 * GB))
    assert text is not None and text.startswith("BAIT on 40,000,000 x 771 float32 holds 123 GB on")
    assert "candidates" not in text


@pytest.mark.parametrize(
    ("given", "where"),
    [(CoreSet(), replace(FOUR, workers=8)), (CoreSet(candidates=200_000), FOUR)],
)
def test_each_remedy_does(given: Strategy, where: Place) -> None:
    assert refused(spec(given), where) is None


def test_bf16_halves_what_shards_hold_and_is_a_remedy() -> None:
    narrow = SelectionOptions(precision="bf16")
    assert refused(spec(CoreSet(), selection=narrow), FOUR) is None
    # 61 GB on 4 shards of 12 GB: 8 bits are not enough, and are not offered twice
    there = replace(LARGE, ingested=True)
    text = refused(spec(CoreSet(), selection=narrow), replace(FOUR, memory=12 * GB), there)
    assert text is not None and text.startswith(
        "k-center on 40,000,000 x 768 bf16 holds 61 GB on 4 shards of 12 GB: use "
    )
    assert "precision" not in text


def test_bf16_by_hand() -> None:
    given = spec(strategies["badge"](), selection=SelectionOptions(precision="bf16"))
    net, shape = network(given), pool(10_000)
    plan, wide = (plan_cell(g, shape, net, Place()) for g in (given, spec(strategies["badge"]())))
    assert plan.bf16 and not wide.bf16
    assert wide.held == 10_000 * 4 * (3 + 16) and plan.held == 10_000 * (4 * 3 + 2 * 16)
    # on disk a key and a score besides
    assert wide.columns == 10_000 * (16 + 12 + 64) and plan.columns == 10_000 * (16 + 12 + 32)
    narrow = net.under(SelectionOptions(precision="bf16"))
    given = spec(strategies["margin"](), selection=given.selection)  # reads no embedding
    assert not plan_cell(given, shape, network(given), Place()).bf16
    made = demands.footprint_of(KMeansPP(log_probs="log_probs.0"), narrow, 10_000, 5)
    plain = KMeansPP(log_probs="log_probs.0").footprint(net.shapes(), 10_000, 5)
    assert made == replace(plain, transient=plain.transient + 4_096 * 4 * 16)


def test_one_shard_less_would_not_do() -> None:
    assert refused(spec(CoreSet()), replace(FOUR, workers=7)) is not None


def test_candidates_are_copies_in_the_shards() -> None:
    given = spec(CoreSet(candidates=100_000))
    net, shape = network(given), pool(400_000)
    plan = plan_cell(given, shape, net, Place("ray", 4))
    assert (plan.chosen, plan.held, plan.copied) == (100_000, 0, 100_000 * 64)
    made = KCenter().footprint(net.shapes(), 100_000, 5)
    shard = demands.selecting(made, 25_000, math.ceil(shape.parts / 4), threads=1, copied=64)
    assert plan.processes["shard"] == WORKER + shard
    sample = KCenter().footprint(net.shapes(), 20_000, 5)  # the loss is measured on 20,000 rows
    rows = 20_000 * (64 + 64 + 17 + sample.row) + 5 * sample.tile
    expected = rows + sample.transient + sample.shard + sample.driver
    assert demands.measuring(KCenter(share=0.25), net, 400_000, 5) == expected
    assert demands.measuring(KCenter(), net, 400_000, 5) == 0


def test_too_many_candidates_are_named_as_such() -> None:
    text = refused(spec(CoreSet(candidates=30_000_000)), FOUR)
    assert text is not None
    assert text.startswith("k-center on 30,000,000 x 768 float32 holds 92 GB on 4 shards of 16 GB")
    assert text.endswith("6 shards, selection.precision=bf16, or candidates=200000")


def test_what_a_strategy_does_not_have_is_not_offered() -> None:
    text = refused(spec(_Exact()), FOUR)
    assert text is not None and text.endswith("on 4 shards of 16 GB: use 8 shards")


@dataclass(frozen=True)
class _Exact(Strategy):
    def signals(self) -> Any:
        return CoreSet().signals()

    def objective(self, ctx: Any) -> Any:
        return CoreSet().objective(ctx)


def test_one_machine_needs_another_machine() -> None:
    text = refused(spec(_Exact()), Place(memory=64 * GB, base=GB))
    assert text is not None
    assert "holds 123 GB beside" in text and "use a machine with 1" in text
    assert "executor ray on several" in text


def test_a_process_that_is_too_large_by_itself() -> None:
    text = refused(spec(strategies["margin"]()), Place(memory=10**8, base=5 * 10**8), pool())
    assert text is not None
    assert text.startswith("one process holds 5") and "in 100 MB: lower learner.batch" in text


def test_unknown_memory_refuses_nothing() -> None:
    assert refused(spec(), Place("ray", 4, None)) is None


def test_text_of_sizes_and_lists() -> None:
    shown = [size(n) for n in (999, 1_000, 4_200_000, 123e9, 1.25e12)]
    assert shown == ["999 B", "1 kB", "4.2 MB", "123 GB", "1.2 TB"]
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b, or c",
    ]
