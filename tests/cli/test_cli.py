"""The command line on real input, and every refusal: exit code 2, one sentence, nothing written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from rayal.cli.app import main
from rayal.cli.local import settings_of

Run = Callable[..., tuple[int, str, str]]
SMALL: dict[str, Any] = {
    "pool": {"source": "digits", "subset": 120},
    "model": {"network": "mlp", "params": {"widths": [16]}},
    "learner": {"steps": 8, "batch": 8, "epoch_steps": 4},
    "strategies": ["margin"],
    "initial": {"count": 10},
    "rounds": 1,
    "batch": 5,
}


@pytest.fixture
def rayal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayal", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return run


def settings(folder: Path, changes: Mapping[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "storage": str(folder / "run"), **changes}))
    return path


def table(folder: Path, rows: Mapping[str, list[Any]]) -> str:
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows(zip(*rows.values(), strict=True))
    return str(path)


def test_a_run_its_outputs_and_what_can_be_asked_afterwards(rayal: Run, tmp_path: Path) -> None:
    config = settings(tmp_path, {"seeds": [0, 1]})
    code, out, _ = rayal("run", config)
    assert code == 0
    assert "margin" in out and "random" in out and "curve.png" in out
    root = tmp_path / "run"
    names = ("curve.csv", "curve.png", "rounds.parquet", "picks.parquet", "settings.yaml")
    assert all((root / n).stat().st_size > 0 for n in (*names, "versions.json"))
    picks = pq.read_table(root / "picks.parquet").to_pylist()
    assert len(picks) == 2 * 2 * (10 + 5)

    code, _, _ = rayal("run", config)  # the same command, finished: nothing new
    assert code == 0 and pq.read_table(root / "picks.parquet").to_pylist() == picks

    code, out, _ = rayal("status", root, "--json")
    status = json.loads(out)
    assert code == 0 and {p["project"] for p in status["projects"]} == {
        f"{s}-s{n}" for s in ("random", "margin") for n in (0, 1)
    }
    query = next(p for p in picks if p["project"] == "margin-s0" and p["round"] == 0)
    code, out, _ = rayal("why", f"{root}#margin-s0", query["item"], "--json")
    story = json.loads(out)["story"]
    assert [row["what"] for row in story] == ["selection", "lease", "label"]
    assert story[0]["rank"] == query["rank"] and story[0]["provenance"]["model"]

    code, out, _ = rayal("export", f"{root}#margin-s0")
    assert code == 0 and len(out.splitlines()) == 1 + 15
    assert rayal("gc", root)[0] == 0
    assert rayal("status", f"{root}#margin-s0")[0] == 0


def test_paired_cells_start_alike(rayal: Run, tmp_path: Path) -> None:
    assert rayal("run", settings(tmp_path, {"strategies": ["margin", "badge"]}))[0] == 0
    rounds = pq.read_table(tmp_path / "run" / "rounds.parquet").to_pylist()
    first = [r for r in rounds if r["round"] == 0]
    assert len({r["model"] for r in first}) == 1
    assert len({r["metric.accuracy"] for r in first}) == 1


def test_people_label_between_two_runs_of_the_same_command(rayal: Run, tmp_path: Path) -> None:
    config = settings(tmp_path, {"oracle": "none", "initial": {"count": 6}})
    where = f"{tmp_path / 'run'}#margin-s0"
    code, out, _ = rayal("run", config)
    assert code == 0 and "6 items" in out and "rayal label" in out
    for count in (6, 5):
        offered = tmp_path / "offered.csv"
        assert rayal("export", where, "--what", "offered", "--out", offered)[0] == 0
        rows = list(csv.DictReader(offered.read_text().splitlines()))
        assert len(rows) == count
        labels = tmp_path / "labels.csv"
        labels.write_text(
            "id,label\n" + "".join(f"{r['id']},{i % 3}\n" for i, r in enumerate(rows))
        )
        code, out, _ = rayal("label", where, labels, "--json")
        assert code == 0 and json.loads(out)["accepted"] == count
        code, out, _ = rayal("run", config)
        assert code == 0
    assert json.loads(rayal("status", where, "--json")[1])["finished"]


def test_select_from_a_file_of_columns(rayal: Run, tmp_path: Path) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    columns = tmp_path / "columns.parquet"
    rows = {"id": [f"r{i}" for i in range(50)], "log_probs": list(np.log(probs))}
    pq.write_table(pa.table(rows), columns)
    code, out, _ = rayal("select", columns, "--strategy", "entropy", "-k", "4", "--json")
    expected = np.argsort((probs * np.log(probs)).sum(axis=1))[:4]
    assert code == 0 and [r["position"] for r in json.loads(out)] == expected.tolist()
    np.savez(tmp_path / "c.npz", embedding=np.eye(6), id=np.array(list("abcdef")))
    code, out, _ = rayal("select", tmp_path / "c.npz", "--strategy", "coreset", "-k", "2")
    assert code == 0 and "position" in out
    code, _, err = rayal("select", columns, "--strategy", "badge", "-k", "4")
    assert code == 2 and "embedding" in err


def test_strategies_are_listed_and_explained(rayal: Run) -> None:
    code, out, _ = rayal("strategies", "--json")
    listed = json.loads(out)
    assert code == 0 and set(listed) == {"strategies", "learners", "networks"}
    assert listed["strategies"]["badge"]["context"] == []
    assert [listed["strategies"][n]["learner"] for n in ("badge", "deal")] == ["any", "evidential"]
    assert "50 of the authors' 100 epochs" in listed["learners"]["evidential"]["departures"]
    assert "small_cnn" in listed["networks"] and "supervised" in listed["learners"]
    code, out, _ = rayal("strategies", "bald")
    assert code == 0 and "Gal" in out and "passes" in out
    code, _, err = rayal("strategies", "bagde")
    assert code == 2 and "did you mean 'badge'" in err


def test_ingest_reports_duplicates_and_quarantine_and_adds_only_what_is_new(
    rayal: Run, tmp_path: Path
) -> None:
    folder = images(tmp_path / "photos", broken=3)
    code, out, _ = rayal("ingest", folder, "--storage", tmp_path / "run", "--json")
    pool = json.loads(out)
    assert code == 0 and pool["items"] == 20 and pool["quarantined"]["count"] == 3
    assert pool["snapshot"] == 1 and pool["classes"] == ["cat", "dog"]
    assert json.loads(rayal("ingest", folder, "--storage", tmp_path / "run", "--json")[1]) == pool
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "cat" / "new.png")
    code, out, _ = rayal("ingest", folder, "--storage", tmp_path / "run", "--json")
    assert json.loads(out)["items"] == 21 and json.loads(out)["snapshot"] == 2


def images(folder: Path, *, broken: int = 0) -> Path:
    rng = np.random.default_rng(0)
    for number in range(20):
        of = folder / ("cat" if number % 2 else "dog")
        of.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, size=(8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(of / f"{number}.png")
    for number in range(broken):
        (folder / "cat" / f"broken{number}.png").write_bytes(b"\x89PNG not an image")
    return folder


def test_an_image_folder_with_broken_files_runs_on(rayal: Run, tmp_path: Path) -> None:
    folder = images(tmp_path / "photos", broken=3)
    pool = {"source": str(folder), "test_share": 0.2}
    config = settings(tmp_path, {"pool": pool, "initial": {"count": 4}, "batch": 2})
    code, _, err = rayal("run", config)
    assert code == 0, err
    status = json.loads(rayal("status", tmp_path / "run", "--json")[1])
    assert status["pools"][0]["quarantined"]["count"] == 3


ROWS: dict[str, list[Any]] = {
    "id": ["a", "b", "c", "d"],
    "w": [1.0, 2.0, 3.0, 4.0],
    "y": ["u", "v", "u", "v"],
}
TABLE = {"id": "id", "label": "y", "features": ["w"]}
TINY = {"initial": {"count": 1}, "rounds": 1, "batch": 1}
REFUSALS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "missing file": (lambda f: {"pool": {"source": str(f / "absent.csv")}}, "does not exist"),
    "empty pool": (
        lambda f: {"pool": {"source": table(f, {k: [] for k in ROWS}), **TABLE}},
        "no ",
    ),
    "duplicate ids with different content": (
        lambda f: {"pool": {"source": table(f, {**ROWS, "id": ["a", "a", "c", "d"]}), **TABLE}},
        "'a'",
    ),
    "budget": (lambda f: {"rounds": 99}, "505 labels are asked for"),
    "unknown strategy": (lambda f: {"strategies": ["bagde"]}, "did you mean 'badge'"),
    "unknown key": (lambda f: {"roundz": 3}, "did you mean 'rounds'"),
    "unknown learner parameter": (lambda f: {"learner": {"stepz": 3}}, "did you mean 'steps'"),
    "nan in features": (
        lambda f: {"pool": {"source": table(f, {**ROWS, "w": [1, "nan", 3, 4]}), **TABLE}, **TINY},
        "'w'",
    ),
    "bald without dropout": (lambda f: {"strategies": [{"name": "bald", "passes": 5}]}, "dropout"),
    "badge without embedding": (
        lambda f: {"strategies": ["badge"], "model": {"network": "nets:conv_only"}},
        "embedding",
    ),
    "unknown network": (lambda f: {"model": {"network": "small_cn"}}, "did you mean 'small_cnn'"),
    "class that is not there": (lambda f: {"task": {"classes": ["0", "1"]}}, "not among"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused(
    case: str, rayal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "def conv_only(input_shape, n_outputs):\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(input_shape[0], n_outputs, 3),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    make, message = REFUSALS[case]
    code, _, err = rayal("run", settings(tmp_path, make(tmp_path)))
    assert code == 2 and message in err and err.startswith("error: "), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_label_among_no_class_is_refused_before_anything_is_written(
    rayal: Run, tmp_path: Path
) -> None:
    config = settings(tmp_path, {"oracle": "none"})
    assert rayal("run", config)[0] == 0
    where = f"{tmp_path / 'run'}#margin-s0"
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\ndigits:0001,1\ndigits:0002,eleven\n")
    code, _, err = rayal("label", where, labels)
    assert code == 2 and ("eleven" in err or "digits:" in err)
    assert rayal("export", where)[1].splitlines() == ["id,label"]


def test_a_root_or_project_that_is_not_there(rayal: Run, tmp_path: Path) -> None:
    assert rayal("status", tmp_path / "absent")[0] == 2
    code, _, err = rayal("why", "no-project", "x")
    assert code == 2 and "ROOT#PROJECT" in err
    assert not (tmp_path / "absent").exists()


def test_ingest_again_adds_what_is_new_also_by_a_relative_path(
    rayal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "photos")
    first = json.loads(rayal("ingest", "photos", "--storage", "run", "--json")[1])
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "photos" / "cat" / "new.png")
    again = json.loads(rayal("ingest", "photos", "--storage", "run", "--json")[1])
    assert (first["items"], again["items"]) == (20, 21) and first["pool"] == again["pool"]
    code, _, err = rayal("ingest", first["pool"], "--storage", "run", "--set", "subset=5")
    assert code == 2 and "ingested already" in err


def test_two_files_of_one_name_are_two_pools(rayal: Run, tmp_path: Path) -> None:
    names = set()
    for year in ("2023", "2024"):
        (tmp_path / year).mkdir()
        source = table(tmp_path / year, {**ROWS, "w": [float(year), 1, 2, 3]})
        options = ("--set", "id=id", "--set", "label=y", "--set", "features=[w]")
        code, out, err = rayal("ingest", source, "--storage", tmp_path / "r", *options, "--json")
        assert code == 0, err
        names.add(json.loads(out)["pool"])
    assert len(names) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": {"count": 5, "strategy": "randm"}}, "did you mean 'random'"),
        ({"oracle": "none", "initial": {"count": 5, "balanced": True}}, "balanced"),
    ],
)
def test_an_initial_choice_that_cannot_be_made_is_refused(
    changes: dict[str, Any], message: str, rayal: Run, tmp_path: Path
) -> None:
    code, _, err = rayal("run", settings(tmp_path, changes))
    assert code == 2 and message in err
    assert not (tmp_path / "run").exists()


def test_a_partly_labeled_pool_cannot_be_simulated(rayal: Run, tmp_path: Path) -> None:
    source = table(tmp_path, {**ROWS, "y": ["u", "v", "", ""]})
    config = settings(tmp_path, {"pool": {"source": source, **TABLE}, **TINY})
    code, _, err = rayal("run", config)
    assert code == 2 and "have no known label" in err
    assert not (tmp_path / "run").exists()


def test_labels_in_another_encoding_or_with_a_byte_order_mark(rayal: Run, tmp_path: Path) -> None:
    assert rayal("run", settings(tmp_path, {"oracle": "none"}))[0] == 0
    where = f"{tmp_path / 'run'}#margin-s0"
    rows = rayal("export", where, "--what", "offered")[1].split()
    offered = [row.split(",")[0] for row in rows]
    labels = tmp_path / "labels.csv"
    labels.write_bytes(f"id,label\n{offered[1]},\xe9\n".encode("latin-1"))
    code, _, err = rayal("label", where, labels)
    assert code == 2 and "UTF-8" in err
    labels.write_text(f"id,label\n{offered[1]},3\n", encoding="utf-8-sig")
    assert rayal("label", where, labels)[0] == 0
    assert rayal("export", where, "--out", tmp_path / "absent" / "x.csv")[0] == 2


def test_offered_items_are_exported_in_the_order_of_their_rank(rayal: Run, tmp_path: Path) -> None:
    assert rayal("run", settings(tmp_path, {"oracle": "none"}))[0] == 0
    where = f"{tmp_path / 'run'}#margin-s0"
    rows = rayal("export", where, "--what", "offered")[1].split()
    offered = [row.split(",")[0] for row in rows]
    ranks = [
        json.loads(rayal("why", where, item, "--json")[1])["story"][0]["rank"]
        for item in offered[1:]
    ]
    assert ranks == sorted(ranks) and len(ranks) == 10


def test_executor_and_address_come_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, {"storage": "runs/mine"})
    assert settings_of(config, (), None, None).executor == "local"
    chosen = settings_of(config, (), None, "127.0.0.1:6379")
    assert (chosen.executor, chosen.ray.address) == ("ray", "127.0.0.1:6379")
    assert settings_of(config, ("executor=ray",), "auto", None).executor == "auto"
    assert settings_of(config, (), None, None).storage == "runs/mine"
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "copy"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert settings_of(config, (), None, None).storage == str(Path.home() / "runs" / "mine")
    assert "working folder of a job is a copy" in capsys.readouterr().err
    assert settings_of(config, (f"storage={tmp_path}",), None, None).storage == str(tmp_path)


def test_a_cluster_that_is_not_there_is_said(rayal: Run, tmp_path: Path) -> None:
    code, _, error = rayal("run", settings(tmp_path, {}), "--address", "127.0.0.1:1")
    assert code == 2
    assert "no Ray cluster at address '127.0.0.1:1'" in error and "ray start --head" in error


def test_a_run_with_nothing_to_do_needs_no_cluster(rayal: Run, tmp_path: Path) -> None:
    config = settings(tmp_path, {})
    assert rayal("run", config)[0] == 0
    code, out, _ = rayal("run", config, "--address", "127.0.0.1:1")
    assert code == 0 and "accuracy" in out
    code, _, error = rayal("run", config, "--address", "127.0.0.1:1", "--set", "seeds=[0, 1]")
    assert code == 2 and "no Ray cluster" in error
