"""`rayal plan` and the check of `rayal run`, on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from torch import nn

from rayal.bench.results import write_results
from rayal.cli.app import main
from rayal.errors import SettingsError
from rayal.planning import feasible
from rayal.planning.runs import parse_size
from rayal.selection.threads import cores

Run = Callable[..., tuple[int, str, str]]
SMALL: dict[str, Any] = {
    "pool": {"source": "digits", "subset": 120},
    "model": {"network": "mlp", "params": {"widths": [16]}},
    "learner": {"steps": 4, "batch": 8},
    "strategies": ["margin"],
    "initial": {"count": 10},
    "rounds": 1,
    "batch": 5,
    "seeds": [0, 1],
}


def heavy() -> nn.Module:
    """A network of 8 x 8 images with 46 MB of weights, whose embedding has 512 columns."""
    trunk = nn.Sequential(nn.Flatten(1), nn.Linear(192, 60_000), nn.ReLU())
    return nn.Sequential(trunk, nn.AdaptiveAvgPool1d(512), nn.Linear(512, 5))


FROZEN = {"backbone": f"{__name__}:heavy", "weights": "random", "frozen": True}


@pytest.fixture(autouse=True)
def no_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let no bench have run on this machine; return where its figures would be."""
    path = tmp_path / "cache" / "bench.json"
    monkeypatch.setenv("RAYAL_BENCH", str(path))
    return path


@pytest.fixture
def rayal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayal", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return run


def settings(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "storage": str(folder / "run"), **changes}))
    return path


def planned(rayal: Run, *argv: str | Path) -> dict[str, Any]:
    code, out, err = rayal("plan", *argv, "--json")
    assert code == 0, err
    record: dict[str, Any] = json.loads(out)
    return record


def test_a_plan_writes_nothing_and_says_what_ingest_then_finds(rayal: Run, tmp_path: Path) -> None:
    config = settings(tmp_path)
    before = planned(rayal, config)
    assert not (tmp_path / "run").exists()
    assert rayal("run", config)[0] == 0
    after = planned(rayal, config)
    counted = {k: v for k, v in before["pool"].items() if k != "ingested"}
    assert counted == {k: v for k, v in after["pool"].items() if k != "ingested"}
    assert counted == {"items": 120, "test items": 400, "parts": 1, "classes": 10}
    assert (before["pool"]["ingested"], after["pool"]["ingested"]) == (False, True)
    assert [(c["strategy"], c["seeds"]) for c in after["cells"]] == [("margin", 2), ("random", 2)]
    assert before["refusals"] == []


def test_the_table_has_a_line_for_each_strategy(rayal: Run, tmp_path: Path) -> None:
    code, out, _ = rayal("plan", settings(tmp_path))
    assert code == 0
    assert "120 items" in out and "margin" in out and "random" in out


def test_what_if(rayal: Run, tmp_path: Path) -> None:
    config = settings(tmp_path, strategies=["coreset"])
    what = ("--rows", "40000000", "--width", "768", "--shards", "4", "--memory", "16GB")
    code, out, err = rayal("plan", config, *what, "--json")
    assert code == 2
    (text,) = json.loads(out)["refusals"]
    assert text.startswith(
        "k-center on 40,000,000 x 768 float32 holds 123 GB on 4 shards of 16 GB: use 8 shards, "
        "selection.precision=bf16, or candidates=200000"
    )
    assert err == f"error: {text}\n"
    code, out, _ = rayal("plan", config, *what[:-3], "8", *what[-2:])
    assert code == 0 and "bf16" not in out
    narrow = settings(tmp_path, strategies=["coreset"], selection={"precision": "bf16"})
    code, out, _ = rayal("plan", narrow, *what, "--json")
    assert code == 0
    (cell,) = [row for row in json.loads(out)["cells"] if row["strategy"] == "coreset"]
    assert cell["bf16"] and cell["mapped"] == 40_000_000 * 768 * 2
    assert "embeddings in bf16" in rayal("plan", narrow, *what)[1].replace("\n", " ")


def test_a_pool_that_is_nowhere(rayal: Run, tmp_path: Path) -> None:
    config = settings(tmp_path, pool={"source": "nowhere"})
    code, _, err = rayal("plan", config)
    assert code == 2 and "'nowhere' does not exist" in err and "--rows" in err
    code, _, err = rayal("plan", config, "--rows", "500", "--width", "6")
    assert code == 2 and "--classes" in err
    code, _, err = rayal("plan", config, "--rows", "500", "--classes", "3")
    assert code == 2 and "task.size" in err and "--width" in err
    made = planned(rayal, config, "--rows", "500", "--classes", "3", "--width", "6")
    assert made["pool"]["items"] == 500 and made["pool"]["classes"] == 3
    images = settings(tmp_path, pool={"source": "nowhere"}, task={"size": [8, 8]})
    assert planned(rayal, images, "--rows", "500", "--classes", "3")["pool"]["items"] == 500


def test_rows_are_counted_where_that_is_cheap(rayal: Run, tmp_path: Path) -> None:
    columns = {"x": np.arange(50.0), "y": np.arange(50) % 3}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    config = settings(
        tmp_path, pool={"source": str(tmp_path / "rows.parquet"), "label": "y", "test_share": 0.2}
    )
    made = planned(rayal, config)["pool"]
    assert (made["items"], made["test items"], made["classes"]) == (40, 10, 3)
    (tmp_path / "rows.csv").write_text("x,y\n1.5,a\n2.5,b\n")
    config = settings(tmp_path, pool={"source": str(tmp_path / "rows.csv"), "label": "y"})
    code, _, err = rayal("plan", config)
    assert code == 2 and "--rows" in err and "rayal ingest" in err


def test_a_run_that_would_not_fit_is_refused_before_it_starts(
    rayal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasible, "machine_memory", lambda: 10_000_000)
    config = settings(tmp_path)
    code, _, err = rayal("run", config)
    assert code == 2
    assert err.startswith("error: one process holds") and "in 10 MB" in err and "--no-plan" in err
    assert not (tmp_path / "run").exists()
    assert rayal("run", config, "--no-plan")[0] == 0


def test_a_frozen_backbone_embeds_once(
    rayal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasible, "base_now", lambda: 0)
    config = settings(tmp_path, model=FROZEN, strategies=["badge"], seeds=[0])
    before = planned(rayal, config)
    assert rayal("run", config)[0] == 0
    after = planned(rayal, config)
    width = 512
    assert before["disk"]["embeddings"] == (120 + 400) * (4 * width + 64)
    assert before["disk"]["embeddings"] == after["disk"]["embeddings"]
    assert before["seconds"]["embed"] > 0.0 and after["seconds"]["embed"] == 0.0
    weights = 4 * (192 + 1) * 60_000  # as read, and in the network that takes them
    assert before["memory"]["peak"] > 2 * weights > after["memory"]["peak"]
    stored = sum(p.stat().st_size for p in (tmp_path / "run" / "columns").glob("*/*.arrow"))
    by_label = {cell["strategy"]: cell for cell in after["cells"]}
    # a linear head's embedding is the pool's: columns are keys, scores and log-probabilities
    assert by_label["badge"]["columns"] == 120 * (16 + 10 * 4)
    assert by_label["badge"]["mapped"] == 120 * 4 * (width + 10)
    columns = after["disk"]["embeddings"] + by_label["badge"]["columns"]
    assert stored == pytest.approx(columns, rel=0.03)
    code, out, _ = rayal("plan", config)
    assert code == 0 and "embedding" not in out.split("time")[1].split("\n")[0]


def test_rates_are_those_of_the_last_bench(rayal: Run, tmp_path: Path, no_bench: Path) -> None:
    config = settings(tmp_path, strategies=["coreset"], seeds=[0])

    def select(*argv: str) -> float:
        large = ("--rows", "4000000", "--memory", "200GB")
        cells = planned(rayal, config, *large, *argv)["cells"]
        return float(next(c["seconds"]["select"] for c in cells if c["strategy"] == "coreset"))

    assumed = select()
    floors = {"gemm_gflops": 6.0, "read_gbps": 1.0, "log_gps": 0.05}
    write_results({"rates": floors}, no_bench)
    assert select() == pytest.approx(10 * assumed, rel=0.01)
    products = 2 * 4_000_000 * 16 * 5 / 6e9 / cores()
    write_results({"rates": {**floors, "kcenter_of_floor": 3.0}}, no_bench)
    assert select() == pytest.approx(3.0 * products, abs=1e-3)
    other = tmp_path / "other.json"
    write_results({"rates": {**floors, "kcenter_of_floor": 6.0}}, other)
    assert select("--rates", str(other)) == pytest.approx(6.0 * products, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "match"),
    [("{}", "no output of `rayal bench`"), ('{"rates": {"gemm_gflops": 0}}', "positive numbers")],
)
def test_rates_that_are_none_are_refused(
    rayal: Run, tmp_path: Path, no_bench: Path, text: str, match: str
) -> None:
    no_bench.parent.mkdir()
    no_bench.write_text(text)
    code, _, err = rayal("plan", settings(tmp_path))
    assert code == 2 and match in err and str(no_bench) in err


@pytest.mark.parametrize(
    ("text", "count"),
    [("16GB", 16 * 10**9), ("16 GiB", 16 << 30), ("1.5g", 1_500_000_000), ("500M", 5 * 10**8),
     ("12", 12)],
)  # fmt: skip
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "many", "-3GB", "0GB", "5XB", "3ib"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="16GB"):
        parse_size(text)
