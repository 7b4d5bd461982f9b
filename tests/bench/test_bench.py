"""The command on tiny arrays, without peers, and what it leaves for others to read."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayal.bench import Rates, bars, child, load_results, peers, pools, results_path, scoring
from rayal.bench.data import subject
from rayal.bench.kernels import compared
from rayal.bench.results import rates_of, write_results
from rayal.bench.rows import Context
from rayal.bench.timing import Floors, measure_floors
from rayal.cli.app import main
from rayal.errors import SettingsError

pytestmark = pytest.mark.measured
TINY = replace(
    bars.QUICK, rows=400, width=8, classes=4, picks=(5, 8), big_rows=500, seeds=20, pool=40,
    draws=100, bait_width=3, bait_picks=3, images=(128, 4), masked=(64, 2), train_steps=2,
    floor_mb=4, floor_side=64,
)  # fmt: skip
FLOORS = Floors(10.0, 20.0, 8.0, 60.0, 100.0, 1.0)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shrink the arrays, hide the peers, and keep the figures in a folder of the test."""
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("bmdal-reg", "baal", "batchbald-redux"):
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(bars, "QUICK", TINY)
    monkeypatch.setenv("RAYAL_BENCH", str(tmp_path / "cache" / "bench.json"))
    return tmp_path


def bench(monkeypatch: pytest.MonkeyPatch, *argv: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["rayal", "bench", "--quick", *map(str, argv)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]}


def test_kernels_run_beside_the_one_pass_form(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny / "figures.json"
    code = bench(
        monkeypatch, "--only", "kcenter-60k", "--only", "badge-60k-100", "--repeats", "2",
        "--json", file,
    )  # fmt: skip
    assert code == 0
    rows = rows_of(file)
    assert rows["kcenter-60k-100"]["verdict"] == "not run"
    assert rows["kcenter-60k-100"]["why"].endswith("pip install bmdal-reg")
    for name in ("kcenter-60k-100-one-pass", "kcenter-60k-1000-one-pass"):
        assert rows[name]["ratio"] > 0
        assert rows[name]["of_floor"] > 0
        assert rows[name]["quality"]["equal"]
        assert len(rows[name]["runs_seconds"]) == len(rows[name]["runs_peer_seconds"]) == 2
    assert "20 seeds" in rows["badge-60k-100-one-pass"]["quality"]["text"]
    shown = capsys.readouterr()
    assert "pip install bmdal-reg" in shown.out
    assert "GEMM" in shown.out
    assert "smaller arrays" in shown.out
    assert "kcenter-60k-100 " in shown.err


def test_strict_fails_where_a_row_was_not_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(monkeypatch, "--only", "batchbald-5k", "--repeats", "1") == 0
    assert bench(monkeypatch, "--only", "batchbald-5k", "--repeats", "1", "--strict") == 1
    assert not results_path().exists()  # some rows are no bench of the machine


def test_scores_and_gpu_rows_say_what_is_missing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny / "figures.json"
    assert (
        bench(monkeypatch, "--only", "entropy-60k", "--gpu", "--repeats", "1", "--json", file) == 0
    )
    rows = rows_of(file)
    assert "pip install baal" in rows["entropy-60k"]["why"]
    if not torch.cuda.is_available():
        assert {rows[n]["why"] for n in ("gpu-kcenter", "gpu-badge")} == {"no CUDA device"}
        assert rows["gpu-badge"]["verdict"] == "not run"


def test_gpu_rows_compare_two_devices(tiny: Path) -> None:
    names = ("gpu-kcenter", "gpu-badge")
    context = Context(TINY, 2, 0, FLOORS, frozenset(names))
    measured = dict(compared(context, "cpu"))  # in the place of a GPU
    assert tuple(measured) == names
    for made in measured.values():
        assert len(made.seconds) == len(made.peer_seconds) == 2 and not made.missing
        assert made.quality is not None and made.quality.equal
        (values,) = made.figures.values()
        assert values["gpu"] == values["cpu"] > 0.0
    alone = Context(TINY, 1, 0, FLOORS, frozenset(names[1:]))
    assert [name for name, _ in compared(alone, "cpu")] == ["gpu-badge"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_rows_run_where_there_is_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny / "figures.json"
    assert bench(monkeypatch, "--only", "gpu-", "--repeats", "1", "--json", file) == 0
    assert {row["verdict"] for row in rows_of(file).values()} == {"ok"}


@pytest.mark.parametrize("argv", [("--only", "kcentre"), ("--repeats", "0")])
def test_wrong_input_is_refused(
    argv: tuple[str, ...], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench(monkeypatch, *argv) == 2


def test_scans_beside_a_plain_loop(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile  # of its three steps only the last is left out, the compiler's seconds

    def traced(run: Any, *, options: Any, **given: Any) -> Any:
        assert options == {"freezing": True}
        return real(run, backend="eager", **given)

    monkeypatch.setattr(torch, "compile", traced)
    names = frozenset({"scan-cnn-fp32", "scan-cnn-loop", "mc-cnn", "mc-cnn-pass"})
    context = Context(TINY, 1, 0, FLOORS, names)
    scans = dict(scoring.scan(context))
    assert scans["scan-cnn-fp32"].missing.endswith("pip install baal")
    assert scans["scan-cnn-loop"].figures["rank"] == pytest.approx(1.0)
    assert scans["scan-cnn-loop"].figures["rows_per_second"] > 0
    masked = dict(scoring.dropout(context))
    quality = masked["mc-cnn-pass"].quality
    assert quality is not None
    assert quality.equal, quality.text


def test_the_pool_is_scanned_as_the_plain_loop_scans_it(tmp_path: Path) -> None:
    context = Context(TINY, 1, 0, FLOORS, frozenset({"pool-local"}))
    job = pools.pool_job(tmp_path, 300, context)
    part = job.scan.pool.parts_of("pool")[0]
    made = job.scan.columns_of(part)
    table = job.scan.pool.read(part)
    pixels = np.frombuffer(b"".join(table.column("data").to_pylist()), np.uint8).copy()
    ordered = replace(job, x=torch.from_numpy(pixels).view(-1, 1, 28, 28))
    torch.testing.assert_close(pools.plain_pool(ordered), made["member_stats.mean"].float())
    assert pools.scanned(job, "local") == 300


def test_a_wrong_mask_would_be_seen() -> None:
    here = subject("cnn", 64, 0, 0)
    wrong = {
        "member_stats.mean": torch.full((64, 10), 0.1),
        "member_stats.entropy": torch.zeros(64, dtype=torch.float64),
    }
    assert scoring.mask_error(here, wrong, 8) > 1e-3


def test_a_peer_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setitem(peers._MODULES, "baal", "rayal.no_such_module")
    assert "does not import (ModuleNotFoundError" in peers.missing("baal")


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_what_a_kernel_adds() -> None:
    x = np.random.default_rng(0).normal(size=(500_000, 8)).astype(np.float32)
    peak = child.peak("k_center", {"x": x}, k=300)
    assert peak.gigabytes is not None
    assert 0.008 < peak.gigabytes < 0.3  # it keeps 20 bytes a row


@pytest.mark.processes
def test_a_failing_child_says_why() -> None:
    with pytest.raises(RuntimeError, match="k must lie between"):
        child.peak("k_center", {"x": np.zeros((3, 2), np.float32)}, k=9)


def test_floors_are_rates() -> None:
    rates = measure_floors(4, 64, repeats=1).to_json()
    assert all(0 < rate < 1e6 for rate in rates.values())
    assert FLOORS.gemm(120e9) == 2.0
    assert FLOORS.read(10e9) == 0.5
    assert FLOORS.log(3e9) == 3.0


def test_rates_come_from_the_last_bench(tiny: Path) -> None:
    assert load_results() == Rates()
    assert not load_results().measured
    row = {"verdict": "ok", "of_floor": 3.0, "figures": {"rows_per_second": 1234.0}}
    rows = [{"name": n, **row} for n in ("badge-60k-100", "scan-cnn-fp32")]
    rows.append({"name": "kcenter-1m-100", "verdict": "not run"})
    document = {"floors": FLOORS.to_json(), "rows": rows}
    write_results({**document, "rates": rates_of(document)}, results_path())
    found = load_results()
    assert found == replace(
        Rates(), copy_gbps=10.0, read_gbps=20.0, gemv_gbps=8.0, gemm_gflops=60.0,
        gemm_bf16_gflops=100.0, log_gps=1.0, badge_of_floor=3.0, scan_cnn_rows=1234.0,
        measured=True,
    )  # fmt: skip
    assert found == load_results(results_path())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "bench.json"
    broken.write_text("{}")
    with pytest.raises(SettingsError, match=r"bench\.json is no output of `rayal bench`"):
        load_results(broken)
    with pytest.raises(SettingsError, match="missing"):
        load_results(tmp_path / "missing.json")


def test_the_default_place_is_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAYAL_BENCH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert results_path() == tmp_path / "rayal" / "bench.json"
