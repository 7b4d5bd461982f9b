"""Tables with columns of categories: one feature of 0 and 1 for each value, and rounds on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayal.errors import NeedsError, PoolError
from rayal.evaluation.protocol import run
from rayal.pool.from_settings import pool_of
from rayal.pool.reader import Pool
from rayal.settings.run import PoolSettings, load

COLORS = ("blue", "green", "red")


def people(rows: int, seed: int) -> dict[str, Any]:
    """Return columns whose class follows a category and a number, and a number likewise."""
    rng = np.random.default_rng(seed)
    color, age = rng.choice(COLORS, rows), rng.normal(40.0, 12.0, rows)
    member = rng.random(rows) < 0.5
    effect = np.where(color == "red", 2.0, np.where(color == "blue", -2.0, 0.0))
    z = effect + (age - 40.0) / 6.0 + np.where(member, 1.0, -1.0)
    return {
        "id": [f"{seed}:{i:03d}" for i in range(rows)],
        "color": color.tolist(),
        "age": age.tolist(),
        "member": member.tolist(),
        "buys": np.where(z > 0, "yes", "no").tolist(),
        "pays": (100.0 + 10.0 * z).tolist(),
    }


def csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    pool = {
        "source": str(csv(folder / "pool.csv", people(300, 0))),
        "test": str(csv(folder / "test.csv", people(200, 1))),
        "id": "id",
        "label": "buys",
        "features": ["age"],
        "categorical": ["color", "member"],
    }
    return {
        "pool": pool,
        "task": {"kind": "table"},
        "model": {"params": {"widths": [16]}},
        "learner": {"steps": 150, "batch": 32, "lr": 1e-2},
        "strategies": ["margin"],
        "initial": {"count": 30},
        "rounds": 2,
        "batch": 20,
        "storage": str(folder / "run"),
        **changes,
    }


def test_rounds_on_categories_and_numbers_learn_the_class(tmp_path: Path) -> None:
    outcome = run(load(settings(tmp_path)))
    last = [p.metrics["accuracy"] for p in outcome.points if p.labels == 70]
    assert len(last) == 2 and min(last) > 0.85  # the number alone tells 3 of 4
    chosen = PoolSettings(**load(settings(tmp_path)).pool.model_dump())
    pool = pool_of(chosen, tmp_path / "run", seed=0)
    names = ["age", "color=blue", "color=green", "color=red", "member=False", "member=True"]
    assert pool.payload["features"] == names
    assert pool.payload["categories"] == {"color": list(COLORS), "member": ["False", "True"]}
    rows = pool.take(["0:007"]).column("features")[0].as_py()
    given = people(300, 0)
    assert rows[0] == pytest.approx(given["age"][7])
    assert rows[1:4] == [float(c == given["color"][7]) for c in COLORS]
    assert rows[4:] == [float(not given["member"][7]), float(given["member"][7])]


def test_rounds_on_categories_and_numbers_learn_a_number(tmp_path: Path) -> None:
    made = settings(tmp_path, strategies=["coreset"])
    made["pool"] |= {"label": "pays"}
    outcome = run(load(made))
    spread = float(np.std(people(200, 1)["pays"]))
    last = {p.strategy: p.metrics["rmse"] for p in outcome.points if p.labels == 70}
    assert set(last) == {"random", "coreset"} and max(last.values()) < 0.4 * spread


@pytest.mark.parametrize("target", ["number", None])
def test_a_strategy_of_numbers_starts_on_a_source_that_nobody_has_read(
    target: str | None, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "strategies": ["pbp"],
        "task": {"kind": "table", "target": target},
        "model": {"network": "pbp", "params": {"hidden": [4]}},
        "learner": {"name": "pbp", "steps": 3},
        "rounds": 1,
    }
    made = settings(tmp_path, **changes)
    with pytest.raises(NeedsError, match=r"predict a class.*task\.target"):
        run(load({**made, "task": {"kind": "table", "target": "class"}}))
    if target is None:  # the labels decide, once they are read
        with pytest.raises(NeedsError, match=r"predict a class.*task\.target"):
            run(load(made))
        assert not (tmp_path / "run").exists()
    made["pool"] |= {"label": "pays"}
    assert {p.strategy for p in run(load(made)).points} == {"random", "pbp"}


def test_a_value_that_is_not_known_counts_as_missing(tmp_path: Path) -> None:
    columns = {n: v for n, v in people(20, 0).items() if n in ("id", "color", "age")}
    source = csv(tmp_path / "pool.csv", columns)
    strange: dict[str, list[Any]] = {
        "id": ["a", "b", "c"],
        "color": ["red", "pink", ""],
        "age": [1.0, 2.0, 3.0],
    }
    test = csv(tmp_path / "test.csv", strange)
    given: Any = {"id": "id", "features": ["age"], "categorical": ["color"], "test": test}
    with pytest.raises(PoolError, match=r"row 'b': category 'color' is 'pink'.*quarantine"):
        Pool.from_csv(tmp_path / "one", "p", source, **given)
    pool = Pool.from_csv(tmp_path / "two", "p", source, **given, missing="quarantine")
    assert list(pool.ids("test")) == ["a"]
    said = dict(pool.info["quarantined"]["rows"])
    assert said["b"].startswith("category 'color' is 'pink'") and "is missing" in said["c"]


def test_values_may_be_given_and_are_then_the_same_for_every_source(tmp_path: Path) -> None:
    colors = {"color": [*COLORS, "pink"]}
    for number, rows in enumerate(
        ({"color": ["red"], "age": [1]}, {"color": ["pink"], "age": [2]})
    ):
        pq.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
        pool = Pool.from_parquet(
            tmp_path / "run", "p", tmp_path / f"{number}.parquet", categories=colors
        )
    assert len(pool) == 2
    assert pool.payload["features"] == ["age", *(f"color={v}" for v in colors["color"])]


def test_categories_of_every_kind_of_source(tmp_path: Path) -> None:
    rows = {"color": ["red", "blue"], "level": [3, 1], "member": [True, False]}
    table = pa.table(rows)
    (tmp_path / "p.jsonl").write_text(
        '{"color": "red", "level": 3, "member": true}\n'
        '{"color": "blue", "level": 1, "member": false}\n'
    )
    named: Any = {"categorical": ["color", "level", "member"]}
    pools = [
        Pool.from_tables(tmp_path / "a", "p", table, **named),
        Pool.from_jsonl(tmp_path / "b", "p", tmp_path / "p.jsonl", **named),
    ]
    names = ["color=blue", "color=red", "level=1", "level=3", "member=false", "member=true"]
    for pool in pools:
        assert pool.payload["features"] == names
        made = pool.take(list(pool.ids())).column("features").to_pylist()
        assert sorted(made) == [[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]
    with pytest.raises(PoolError, match="tables are read once"):
        Pool.from_tables(tmp_path / "c", "p", [table, table], **named)
    with pytest.raises(PoolError, match=r"'x' is double; categories are text, bool or whole"):
        Pool.from_tables(tmp_path / "d", "p", pa.table({"x": [0.5], "y": [1]}), categorical=["x"])
    with pytest.raises(PoolError, match=r"name columns of categories: categorical=\[…\]"):
        Pool.from_tables(tmp_path / "e", "p", pa.table({"x": ["a"], "y": [1]}))
