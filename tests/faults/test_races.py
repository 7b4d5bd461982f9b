"""Two processes at one storage root: neither takes from the other, and both end as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from race_cases import Running, start, wait_for
from race_work import EPOCHS, cell, command

from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source

pytestmark = pytest.mark.processes
SETTINGS: dict[str, Any] = {
    "model": {"network": "mlp", "params": {"widths": [8]}},
    "learner": {"name": "supervised", "steps": 10, "batch": 16, "epoch_steps": 5},
    "strategies": ["random"],
    "initial": {"count": 10},
    "rounds": 1,
    "batch": 5,
}
FEATURES = 3


def rows(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, size=count)
    return rng.normal(size=(count, FEATURES)) + y[:, None], y


def csv(path: Path, *, gap: bool = False) -> Path:
    """Write a table; with ``gap`` a number of its last row is missing, which ingest refuses."""
    x, y = rows(80)
    lines = [f"r{i:03d},{y[i]},{','.join(map(str, x[i].round(4)))}" for i in range(len(y))]
    if gap:
        lines.append("r080,1,0.5,nan,0.5")
    path.write_text("\n".join(["id,label,a,b,c", *lines]) + "\n")
    return path


def settings(folder: Path, source: Path, root: Path, name: str) -> Path:
    """Write the settings of a run."""
    path = folder / f"{name}.yaml"
    pool = {"source": str(source), "id": "id", "label": "label", "test_share": 0.25}
    path.write_text(yaml.safe_dump({**SETTINGS, "pool": pool, "storage": str(root)}))
    return path


def picks(root: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(root / "picks.parquet")
    names = ("project", "round", "rank", "item", "score")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


# ---- a fresh root --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Return the picks of the good run where nobody else is."""
    folder = tmp_path_factory.mktemp("alone")
    config = settings(folder, csv(folder / "good.csv"), folder / "run", "good")
    assert start(command, "run", str(config), log=folder / "log").end()[0] == 0
    return picks(folder / "run")


def two_runs(folder: Path, *, at: str) -> tuple[Path, Running, Running, Path]:
    """Start a run that ingest will refuse, and a good one that is further than it at ``at``.

    Returns:
        The root, the refused run, which waits within its ingest, the good one, and the file that
        lets the refused one go on.
    """
    root, go = folder / "run", folder / "go"
    bad = settings(folder, csv(folder / "bad.csv", gap=True), root, "bad")
    good = settings(folder, csv(folder / "good.csv"), root, "good")
    first = start(
        command, "run", str(bad), log=folder / "bad.log", RAYAL_WAITPOINT=f"ingest.begin:1@{go}"
    )
    wait_for(Path(f"{go}.here"), first)
    stop = folder / "stop"
    second = start(
        command, "run", str(good), log=folder / "good.log", RAYAL_WAITPOINT=f"{at}:1@{stop}"
    )
    if at != "end":
        wait_for(Path(f"{stop}.here"), second)
    return root, first, second, go


def refused_beside_another(folder: Path, alone: list[tuple[Any, ...]], *, at: str) -> None:
    folder.mkdir(exist_ok=True)
    root, first, second, go = two_runs(folder, at=at)
    if at == "end":
        assert second.end()[0] == 0
    go.touch()
    code, says = first.end()
    assert code == 2 and "r080" in says, says
    (folder / "stop").touch()
    code, says = second.end()
    assert code == 0, says
    assert picks(root) == alone
    with Ledger(root, create=False) as ledger:
        (pool,) = ledger.pools()
        assert ledger.projects() == ["random-s0"]
        assert [path.name for path in sorted((root / "pools").iterdir())] == [pool]


MOMENTS = ("ingest.begin", "ingest.part", "ingest.commit", "train.begin", "end")


@pytest.mark.parametrize("at", ["ingest.commit", "end"])
def test_a_refused_run_leaves_what_another_made_of_the_root(
    at: str, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    refused_beside_another(tmp_path, alone, at=at)


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
def test_a_refused_run_leaves_what_another_made_again_and_again(
    repetition: int, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    refused_beside_another(tmp_path, alone, at=MOMENTS[repetition % len(MOMENTS)])


@pytest.mark.slow
@pytest.mark.parametrize("first", ["founder", "guest"])
def test_of_two_refused_runs_each_takes_back_what_it_made(first: str, tmp_path: Path) -> None:
    root, both = tmp_path / "run", dict[str, Running]()
    for name in ("founder", "guest"):
        source = csv(tmp_path / f"{name}.csv", gap=True)
        config, log = settings(tmp_path, source, root, name), tmp_path / f"{name}.log"
        point = f"ingest.begin:1@{tmp_path / name}"
        both[name] = start(command, "run", str(config), log=log, RAYAL_WAITPOINT=point)
        wait_for(tmp_path / f"{name}.here", both[name])
    for name in sorted(both, key=lambda name: name != first):
        (tmp_path / name).touch()
        assert both[name].end()[0] == 2
    if first == "guest":
        assert not root.exists()
        return
    # the founder's ledger was in use, and was not the guest's to take away
    assert [path.name for path in root.iterdir() if path.is_file()] == ["ledger.sqlite"]
    with Ledger(root, create=False) as ledger:
        assert list(ledger.events()) == []


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(5))
def test_two_runs_make_one_pool_of_the_same_source(
    repetition: int, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    root, go, source = tmp_path / "run", tmp_path / "go", csv(tmp_path / "good.csv")
    config = settings(tmp_path, source, root, "good")
    first = start(
        command, "run", str(config),
        log=tmp_path / "first.log", RAYAL_WAITPOINT=f"ingest.commit:1@{go}",
    )  # fmt: skip
    wait_for(Path(f"{go}.here"), first)
    seeds = "seeds=[{pool: 0, model: 0, query: 7}]"
    out = tmp_path / "out"
    argv = ("run", str(config), "--set", seeds, "--out", str(out))
    second = start(command, *argv, log=tmp_path / "second.log")
    go.touch()
    assert [running.end()[0] for running in (first, second)] == [0, 0]
    assert picks(root) == alone
    with Ledger(root, create=False) as ledger:
        (pool,) = ledger.pools()
        assert ledger.snapshot(pool).number == 1 and len(ledger.projects()) == 2


# ---- a shared model ------------------------------------------------------------------------------

STRATEGIES = ("margin", "entropy")


def ingested(root: Path) -> None:
    x, y = rows(120)
    ids = [f"r{i:03d}" for i in range(120)]
    parts = (("pool", slice(0, 90)), ("test", slice(90, None)))
    sources = [array_source(x[at], y[at], ids=ids[at], role=role) for role, at in parts]  # type: ignore[arg-type]
    Pool.ingest(root, "rows", sources)


def chosen(root: Path) -> dict[str, list[tuple[str, float | None]]]:
    """Return the picks of every cell, of all rounds."""
    with Ledger(root, create=False) as ledger:
        made = {}
        for project in ledger.projects():
            rounds = [ledger.selection(project, round) for round in (-1, 0, 1)]
            made[project] = [(p.item, p.score) for r in rounds if r is not None for p in r.picks]
        return made


@pytest.fixture(scope="module")
def each_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return the picks of each cell in a root of its own."""
    made: dict[str, list[Any]] = {}
    for strategy in STRATEGIES:
        folder = tmp_path_factory.mktemp(strategy)
        ingested(folder / "run")
        assert start(cell, folder / "run", strategy, log=folder / "log").end()[0] == 0
        made |= chosen(folder / "run")
    return made


def side_by_side(folder: Path, each_alone: dict[str, list[Any]], *, at: str, apart: bool) -> None:
    """Run two cells that share the model of round 0.

    Args:
        folder: of this try.
        each_alone: what they pick where nobody else is.
        at: where the first one waits.
        apart: whether the second one ends before the first goes on; else both go on at once.
    """
    root, go = folder / "run", folder / "go"
    ingested(root)
    late, early = STRATEGIES
    first = start(cell, root, late, log=folder / "late.log", RAYAL_WAITPOINT=f"{at}@{go}")
    wait_for(Path(f"{go}.here"), first)
    second = start(cell, root, early, log=folder / "early.log")
    if apart:
        assert second.end() == (0, "")
    go.touch()
    assert first.end() == (0, "")
    assert second.end() == (0, "")
    assert chosen(root) == each_alone
    with Ledger(root, create=False) as ledger:
        lying = {
            path.relative_to(root).as_posix()
            for kind in ("models", "columns", "pools")
            for path in (root / kind).rglob("*")
            if path.is_file()
        }
        named = ledger.files() | {ledger.snapshot("rows").info["labels"]}
        assert lying == named, "a file that nothing names, or a name without a file"
        model = {p: ledger.stages(p)[1].output.get("model") for p in STRATEGIES}
        assert len(set(model.values())) == 1 and None not in model.values()


POINTS = ("train.begin:1", *(f"train.epoch:{n}" for n in range(1, EPOCHS + 1)), "scan.commit:1")


@pytest.mark.parametrize("at", ["train.begin:1", "train.epoch:2"])
def test_a_cell_goes_on_with_what_another_has_finished_of_the_same_model(
    at: str, each_alone: dict[str, list[Any]], tmp_path: Path
) -> None:
    side_by_side(tmp_path, each_alone, at=at, apart=True)


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
def test_cells_of_one_model_make_their_picks_again_and_again(
    repetition: int, each_alone: dict[str, list[Any]], tmp_path: Path
) -> None:
    at = POINTS[repetition % len(POINTS)]
    side_by_side(tmp_path, each_alone, at=at, apart=repetition < len(POINTS))
