"""Rounds whose embeddings are stored in bf16: half the bytes, named everywhere, nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pool_cases import ROWS, finished, spec

from rayal.engine.columns import (
    BF16,
    bf16_columns,
    column_array,
    column_tensor,
    open_columns,
    rows_by_key,
)
from rayal.engine.executor import open_share
from rayal.engine.project import Project
from rayal.engine.spec import ProjectSpec, SelectionOptions
from rayal.errors import SettingsError, StorageError
from rayal.evaluation.report import approximations
from rayal.ledger import Appearance
from rayal.pool.storage import write_part
from rayal.registry import strategies
from rayal.selection import KCenter, select_rows
from rayal.types import FORMAT_VERSION

NARROW = SelectionOptions(precision="bf16")
CARRIERS = ["coreset", "badge", "bait"]


def parts_of(project: Project) -> list[Path]:
    scan = project.rounds()[0].outputs["scan"]["columns"]
    found = project.ledger.columns(scan)
    return [project.root / found[part.part].file for part in project.pool.parts_of("pool")]


def picks(project: Project) -> list[tuple[str, float | None]]:
    selection = project.ledger.selection("p", 0)
    assert selection is not None
    return [(p.item, p.score) for p in selection.picks]


def provenance(project: Project) -> dict[str, Any]:
    selection = project.ledger.selection("p", 0)
    assert selection is not None
    return dict(selection.provenance)


def columns_of(project: Project, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    batches = [b for path in parts_of(project) for b in open_columns(path).to_batches()]
    return {n: torch.cat([column_tensor(b.column(n)) for b in batches]) for n in names}


def test_arrays_by_hand() -> None:
    # 1 + 2^-8 lies between 1 and 1 + 2^-7 and goes to the even one; 0x3f80 is 1 in bf16
    x = torch.tensor([[1.0, 1.0 + 2.0**-8], [1.0 + 3 * 2.0**-8, -2.0]])
    array = column_array(x, bf16=True)
    assert array.flatten().to_pylist() == [0x3F80, 0x3F80, 0x3F82, 0xC000]
    read = column_tensor(array)
    assert read.dtype == torch.bfloat16
    assert read.float().tolist() == [[1.0, 1.0], [1.0 + 2.0**-6, -2.0]]
    assert column_tensor(column_array(read)).equal(read)
    nested = torch.arange(24.0).reshape(2, 3, 4)
    assert column_tensor(column_array(nested, bf16=True)).float().equal(nested)


@pytest.mark.parametrize("name", CARRIERS)
def test_embeddings_are_half_as_large_and_all_else_is_as_it_was(name: str, tmp_path: Path) -> None:
    wide = finished(tmp_path / "wide", spec(strategies[name]()))
    project = finished(tmp_path / "narrow", spec(strategies[name](), selection=NARROW))
    assert picks(project) != picks(wide), "rounding moved nothing: a weak case"
    carried = strategies[name].carry
    before, after = columns_of(wide, carried), columns_of(project, carried)
    assert after["embedding"].dtype == torch.bfloat16
    assert after["embedding"].equal(before["embedding"].bfloat16())
    assert all(after[n].equal(before[n]) for n in carried if n != "embedding")
    assert [bf16_columns(p) for p in parts_of(project)] == [["embedding"]] * 3
    assert [bf16_columns(p) for p in parts_of(wide)] == [[]] * 3
    half = 3 * ROWS * before["embedding"].shape[1] * 2
    sizes = [sum(p.stat().st_size for p in parts_of(each)) for each in (wide, project)]
    assert sizes[0] - sizes[1] == pytest.approx(half, rel=0.1)
    names = [each.rounds()[0].outputs["scan"]["columns"] for each in (wide, project)]
    assert names[0] != names[1], "columns of other bits have another hash"


@pytest.mark.parametrize("name", CARRIERS)
def test_picks_do_not_depend_on_shards(name: str, tmp_path: Path) -> None:
    first = finished(tmp_path / "one", spec(strategies[name](), selection=NARROW))
    for shards in (2, 7):
        other = finished(
            tmp_path / str(shards), spec(strategies[name](), selection=NARROW, shards=shards)
        )
        assert picks(other) == picks(first)


def test_picks_are_those_of_the_kernel_on_the_rounded_column(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["coreset"](), selection=NARROW))
    initial = project.ledger.selection("p", -1)
    assert initial is not None
    known = {p.item for p in initial.picks}
    parts = project.pool.parts_of("pool")
    ids = [i for p in parts for i in project.pool.read(p).column("id").to_pylist()]
    rows = columns_of(project, ("embedding",))["embedding"].float()
    free = [n for n, i in enumerate(ids) if i not in known]
    held = [n for n, i in enumerate(ids) if i in known]
    oracle = select_rows(
        KCenter(),
        {"embedding": rows[free]},
        10,
        context={"embedding": rows[held]},
        ids=[ids[n] for n in free],
    )
    assert [item for item, _ in picks(project)] == list(oracle.ids)
    scores = np.array([score for _, score in picks(project)], dtype=np.float64)
    np.testing.assert_allclose(scores, oracle.scores, rtol=1e-12)


def test_rounding_is_named_in_record_why_and_report(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["badge"](), selection=NARROW))
    made = provenance(project)
    of = 3 * ROWS - 20
    named = {"precision": "bf16", "candidates": of, "of": of, "loss": None}
    assert made["approximation"] == named
    assert made["selection"] == {"precision": "bf16", "device": "cpu"}
    output = project.rounds()[0].outputs["select"]["approximation"]
    assert output == named
    item = picks(project)[0][0]
    rows = [r for r in project.ledger.why("p", item) if isinstance(r, Appearance) and r.round == 0]
    assert rows[0].provenance["approximation"] == named
    told = approximations([{"strategy": "badge", "approximation": output}])
    assert told == {"badge": "embeddings in bf16"}


def test_a_sample_in_bf16_is_named_and_measured(tmp_path: Path) -> None:
    strategy = strategies["coreset"](candidates=90)
    made = provenance(finished(tmp_path, spec(strategy, selection=NARROW)))["approximation"]
    assert made["precision"] == "bf16" and made["share"] < 1.0
    assert made["loss"]["measure"] == "covering radius" and made["loss"]["ratio"] < 2.5


def test_strategies_without_embeddings_are_not_touched(tmp_path: Path) -> None:
    wide = finished(tmp_path / "wide", spec(strategies["margin"]()))
    project = finished(tmp_path / "narrow", spec(strategies["margin"](), selection=NARROW))
    assert picks(project) == picks(wide)
    assert provenance(project)["approximation"] is None
    assert provenance(project)["columns"] == provenance(wide)["columns"]


def test_the_settings_are_kept_in_the_ledger(tmp_path: Path) -> None:
    given = spec(strategies["badge"](), selection=NARROW)
    stored = json.loads(json.dumps(given.to_json()))
    assert stored["selection"] == {"precision": "bf16", "device": "cpu"}
    assert ProjectSpec.from_json(stored).selection == NARROW
    plain = dataclasses.replace(given, selection=SelectionOptions()).to_json()
    assert "selection" not in plain  # a ledger from before has none either
    assert ProjectSpec.from_json(plain).selection == SelectionOptions()


def test_context_comes_as_float32(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["coreset"](), selection=NARROW))
    keys = open_columns(parts_of(project)[0]).column("key").to_numpy()[:5]
    rows = rows_by_key(parts_of(project), ("embedding",), keys)["embedding"]
    assert rows.dtype == np.float32 and len(rows) == 5


def test_tiles_map_the_bits_of_the_file(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["coreset"](), selection=NARROW))
    tiles = open_share(KCenter(), parts_of(project), np.zeros(0, np.uint64), 0)
    assert {t.stored["embedding"].dtype for t in tiles} == {torch.bfloat16}
    assert {t.columns["embedding"].dtype for t in tiles} == {torch.float32}


def test_16_bit_columns_that_nobody_declared_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.arrow"
    table = pa.table({"key": pa.array([1], pa.uint64()), "x": pa.array([3], pa.uint16())})
    write_part(path, table, {"version": FORMAT_VERSION})
    with pytest.raises(StorageError, match=r"16-bit columns \['x'\], its metadata says that \[\]"):
        open_columns(path)
    write_part(tmp_path / "good.arrow", table, {"version": FORMAT_VERSION, BF16: '["x"]'})
    assert open_columns(tmp_path / "good.arrow").num_rows == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_stops_the_round(tmp_path: Path) -> None:
    device = SelectionOptions(device="cuda")
    with pytest.raises(SettingsError, match="finds 0 CUDA devices"):
        finished(tmp_path, spec(strategies["coreset"](), selection=device))
