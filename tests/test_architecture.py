"""Who may import whom, and what must stay light; read from the source, not from memory."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rayal"
LAYERS = [
    {
        "types",
        "errors",
        "labels",
        "yamlfile",
        "parameters",
        "sections",
        "execution",
        "inputs",
        "config",
        "registry",
        "failpoints",
    },
    {"acquisition", "selection", "models", "tasks"},
    {"learners", "signals"},
    {"strategies", "project"},
    {"engine"},
    {"evaluation"},
    {"bench"},
    {
        "cli",
        "client",
        "commands",
        "console",
        "display",
        "jobs",
        "maintenance",
        "remote",
        "remote_files",
        "remote_lines",
        "service",
        "testing",
        "__main__",
    },
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
RAY = {"engine", "evaluation/sweep", "service/deployment"}
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


@functools.cache
def imported(path: Path, *, everywhere: bool = True) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(_at_import(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = f"{node.module}" == "rayal"
            names |= {f"rayal.{a.name}" for a in node.names} if whole else {node.module}
    return names


def _at_import(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements that run when the module is imported."""
    return [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]


def test_imports_point_downwards() -> None:
    wrong = [line for path in FILES for line in _upwards(path)]
    assert not wrong, "\n".join(wrong)


def _upwards(path: Path) -> list[str]:
    """Return what a file imports although it must not, a sentence each."""
    here, wrong = module(path).split("/")[0], []
    if here == "__init__":
        return []
    for name in imported(path):
        if name.startswith("rayal.") and name != "rayal.__version__":
            there = name.split(".")[1]
            if there not in LEVEL:
                wrong.append(f"{module(path)} imports {name}, which has no layer")
            elif LEVEL[there] > LEVEL[here]:
                wrong.append(f"{module(path)} imports {name} from a layer above")
            elif {here, there} == {"strategies", "project"}:
                wrong.append(f"{module(path)} imports {name}")
    return wrong


def test_every_file_has_a_layer() -> None:
    assert {module(path).split("/")[0] for path in FILES} <= {"__init__", *LEVEL}


def test_ray_is_an_adapter() -> None:
    users = [module(p) for p in FILES if any(n.split(".")[0] == "ray" for n in imported(p))]
    assert [u for u in users if not any(u.startswith(place) for place in RAY)] == []


def test_the_ledger_and_the_pool_need_no_torch() -> None:
    files = [p for p in FILES if module(p).startswith("project") or module(p) == "engine/pool"]
    light = {module(p): {n.split(".")[0] for n in imported(p, everywhere=False)} for p in files}
    heavy = {"torch", "ray", "torchvision"}
    assert {name: found & heavy for name, found in light.items() if found & heavy} == {}


def test_hidden_labels_are_read_by_the_oracle_alone() -> None:
    readers = [module(p) for p in FILES if "labels_file(" in p.read_text()]
    assert set(readers) <= {"engine/pool", "evaluation/oracle"}


@pytest.mark.processes
def test_importing_rayal_is_light() -> None:
    code = (
        "import time, sys; t = time.process_time(); import rayal; "
        "s = time.process_time() - t; "
        "heavy = ('torch', 'ray', 'sqlalchemy', 'pyarrow', 'httpx'); "
        "print(s, [m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = out.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.3


def test_sizes() -> None:
    lines = {module(path): path.read_text().count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > 500} == {}
