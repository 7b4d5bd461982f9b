"""Who may import whom, and what must stay light; read from the source, not from memory."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rayal"
BASE = {"errors", "failpoints", "labels", "pixels", "registry", "types"}
NAMES = {"acquisition", "learners", "models", "selection", "signals", "strategies", "tasks"}
ENGINE = NAMES | {"engine", "ledger", "pool", "settings"}
SERVICE = ENGINE | {"evaluation", "planning", "ray_executor"}
MAY_IMPORT = {  # besides BASE and the room itself
    **{name: set() for name in BASE},
    "settings": set(),
    "acquisition": set(),
    "selection": {"acquisition"},
    "tasks": set(),
    "models": set(),
    "signals": {"acquisition", "models", "selection"},
    "learners": {"models", "signals", "tasks"},
    "strategies": NAMES,
    "ledger": set(),
    "pool": {"ledger", "settings"},
    "engine": ENGINE,
    "ray_executor": ENGINE,
    "planning": ENGINE,
    "testing": ENGINE,
    "bench": ENGINE | {"ray_executor"},
    "evaluation": ENGINE | {"planning", "ray_executor"},
    "client": set(),
    "service": SERVICE | {"client"},
    "cli": SERVICE | {"bench", "client", "service"},
    "__main__": {"cli"},
}
ALLOWED_MODULES = {"settings.parameters"}  # bounds of hyperparameters: for NAMES too
RAY = {"ray_executor", "evaluation/sweep", "service/deployment"}
# no torch when they are imported
LIGHT = ("client", "ledger", "pixels", "pool", "settings", "service")
HEAVY = ("service/deployment", "service/predictor", "service/worker")
OPEN = {"self", "cls", "os", "torch", "ray"}  # whose private names may be read
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


def test_imports_stay_within_the_rules() -> None:
    wrong = [line for path in FILES for line in _forbidden(path)]
    assert not wrong, "\n".join(wrong)


def _forbidden(path: Path) -> list[str]:
    """Return what a file imports although it must not, a sentence each."""
    here, wrong = module(path).split("/")[0], []
    if here == "__init__":
        return []
    for name in imported(path):
        if name.startswith("rayal.") and name != "rayal.__version__":
            there = name.split(".")[1]
            bounds = here in NAMES and name.removeprefix("rayal.") in ALLOWED_MODULES
            if there not in BASE | {here} | MAY_IMPORT[here] and not bounds:
                wrong.append(f"{module(path)} imports {name}")
    return wrong


def test_there_are_no_circles() -> None:
    """Imports within functions and for types alone count too."""
    names = {dotted(path): path for path in FILES}
    graph = graphlib.TopologicalSorter[str]()
    for name, path in names.items():
        graph.add(name, *(modules_of(path, names) - {name, "rayal"}))
    graph.prepare()  # raises graphlib.CycleError, which names the circle


def dotted(path: Path) -> str:
    return f"rayal.{module(path)}".replace("/", ".").removesuffix(".__init__")


def modules_of(path: Path, names: Collection[str]) -> set[str]:
    """Return those of some modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in names else node.module)
    return found & set(names)


def test_every_room_has_rules() -> None:
    assert {module(path).split("/")[0] for path in FILES} == {"__init__", *MAY_IMPORT}


def test_rooms_are_small() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in FILES)
    most = {"selection": 28, "engine": 20, "strategies": 1_000}
    assert {n: count for n, count in counts.items() if count > most.get(n, 24)} == {}


def test_ray_is_an_adapter() -> None:
    users = [module(p) for p in FILES if any(n.split(".")[0] == "ray" for n in imported(p))]
    assert [u for u in users if not any(u.startswith(place) for place in RAY)] == []


def test_what_stays_light_loads_neither_torch_nor_ray() -> None:
    files = [p for p in FILES if module(p).startswith(LIGHT) and not module(p).startswith(HEAVY)]
    light = {module(p): {n.split(".")[0] for n in imported(p, everywhere=False)} for p in files}
    heavy = {"torch", "ray", "torchvision"}
    assert {name: found & heavy for name, found in light.items() if found & heavy} == {}


def test_hidden_labels_are_read_by_the_oracle_alone() -> None:
    readers = [module(p) for p in FILES if "labels_file(" in p.read_text()]
    assert set(readers) <= {"pool/reader", "evaluation/oracle"}


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
    assert len(FILES) <= 265


def test_stages_take_a_workspace() -> None:
    """A project writes itself alone; what works for its rounds does not see it."""
    inside = [p for p in FILES if module(p).startswith("engine/") and module(p) != "engine/project"]
    takers = [
        f"{module(path)}.{node.name}"
        for path in inside
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and ast.unparse(argument.annotation) == "Project"
    ]
    assert takers == []


def test_nobody_reads_what_is_private_to_another_module() -> None:
    strange = [line for path in FILES for line in _private_reads(path)]
    assert strange == []


def _private_reads(path: Path) -> list[str]:
    """Return the private names that a file reads and does not define."""
    tree = ast.parse(path.read_text())
    own, reads = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            of = ast.unparse(node.value)
            if node.attr not in {*own, "_asdict"} and of not in {
                "self",
                "cls",
                "os",
                "torch",
                "ray",
            }:
                reads.append(f"{module(path)}: {of}.{node.attr}")
    return reads


def test_docstrings_open_with_what_a_thing_is() -> None:
    opened = [line for path in FILES for line in _questions(path)]
    assert opened == []


def _questions(path: Path) -> list[str]:
    """Return the modules and classes of a file whose docstring opens with a question word."""
    tree = ast.parse(path.read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    texts = [ast.get_docstring(tree) or "", *(ast.get_docstring(node) or "" for node in classes)]
    return [f"{module(path)}: {t[:50]}" for t in texts if re.match("(What|Whether|Which|How) ", t)]
