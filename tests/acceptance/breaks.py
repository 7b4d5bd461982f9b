"""Break single lines of rayal, one at a time, and see whether the tests go red.

    python tests/acceptance/breaks.py choose --seed 15 --count 20 --out breaks.json
    python tests/acceptance/breaks.py run breaks.json --tree CHECKOUT --out results.json

A break is named by module, qualified name of the function and number of the syntax node within it,
so that a list chosen at one commit is made at another one, too, as long as the function stands
unchanged. ``run`` works in a checkout that it may write to (a worktree with an environment of its
own). First come the mirrored tests: those of the file's own name, else those that import its
module; where these stay green, the whole fast part, up to the first failure.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPERATORS: dict[type, tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
Span = Callable[[ast.AST], tuple[int, int]]  # a node -> where its text begins and ends
FAST = "not slow and not ray and not processes"


@dataclass(frozen=True)
class Break:
    """One line to break.

    Attributes:
        module: path of the file below the checkout.
        function: qualified name.
        node: number of the syntax node among those of the function that can be broken.
        kind: operator, constant or dropped line.
        before: the text of the node.
        after: the text that takes its place.
    """

    module: str
    function: str
    node: int
    kind: str
    before: str
    after: str


def main() -> None:
    """Choose breaks, or make them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    choosing = commands.add_parser("choose")
    choosing.add_argument("--seed", type=int, required=True)
    choosing.add_argument("--count", type=int, default=20)
    choosing.add_argument("--tree", type=Path, default=Path())
    choosing.add_argument("--out", type=Path, required=True)
    running = commands.add_parser("run")
    running.add_argument("breaks", type=Path)
    running.add_argument("--tree", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--timeout", type=float, default=1800.0)
    given = parser.parse_args()
    if given.command == "choose":
        chosen = choose(given.tree, given.seed, given.count)
        given.out.write_text(json.dumps([asdict(one) for one in chosen], indent=1) + "\n")
        return
    breaks = [Break(**row) for row in json.loads(given.breaks.read_text())]
    rows = []
    for one in breaks:
        rows.append({**asdict(one), **attempt(one, given.tree, given.timeout)})
        given.out.write_text(json.dumps(rows, indent=1))
        found = f"{rows[-1]['result']:6} {one.module} {one.function}: {one.before} -> {one.after}\n"
        sys.stdout.write(found)
        sys.stdout.flush()
    red = sum(row["result"] != "green" for row in rows)
    sys.stdout.write(f"{red} of {len(rows)} breaks were found\n")


def choose(tree: Path, seed: int, count: int) -> list[Break]:
    """Draw functions uniformly, and in each one a node."""
    files = sorted((tree / "rayal").rglob("*.py"))
    functions = []
    for file in files:
        module = file.relative_to(tree).as_posix()
        text = file.read_text()
        for name, function in _functions(ast.parse(text)):
            sites = list(_sites(function, text))
            if sites:
                functions.append((module, name, sites))
    rng = random.Random(seed)
    chosen = []
    for module, name, sites in rng.sample(functions, count):
        node = rng.randrange(len(sites))
        kind, (start, end), after = sites[node]
        before = (tree / module).read_text()[start:end]
        chosen.append(Break(module, name, node, kind, before, after))
    return chosen


def attempt(one: Break, tree: Path, timeout: float) -> dict[str, object]:
    """Make a break, run the tests, and undo it."""
    file = tree / one.module
    text = file.read_text()
    function = dict(_functions(ast.parse(text)))[one.function]
    _, (start, end), after = list(_sites(function, text))[one.node]
    if (text[start:end], after) != (one.before, one.after):
        raise SystemExit(f"{one.module} {one.function}: node {one.node} is {text[start:end]!r}")
    started = time.perf_counter()
    file.write_text(text[:start] + after + text[end:])
    try:
        line = text.count("\n", 0, start) + 1
        mirrored = _mirrored(one.module, tree)
        result, by = _tests(tree, mirrored, timeout) if mirrored else ("green", "")
        if result == "green":
            result, by = _tests(tree, ["tests"], timeout)
    finally:
        file.write_text(text)
    seconds = round(time.perf_counter() - started)
    return {"line": line, "result": result, "by": by, "seconds": seconds}


def _tests(tree: Path, paths: list[str], timeout: float) -> tuple[str, str]:
    """Run the fast tests of some files up to the first failure; return the result and its name."""
    argv = ["uv", "run", "pytest", "-x", "-q", "-m", FAST, *paths]
    try:
        done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "hang", f"more than {timeout:.0f} s"
    failed = re.search(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.M)
    if done.returncode in (0, 5):
        return "green", ""
    return "red", failed[1][:150] if failed else done.stdout[-200:] + done.stderr[-200:]


def _mirrored(module: str, tree: Path) -> list[str]:
    path = Path(module)
    name = ".".join(path.with_suffix("").parts)
    tests = sorted((tree / "tests").rglob("test_*.py"))
    same = [test for test in tests if test.stem == f"test_{path.stem}"]
    importing = [test for test in tests if re.search(rf"\b{re.escape(name)}\b", test.read_text())]
    return [test.relative_to(tree).as_posix() for test in dict.fromkeys(same + importing)]


def _functions(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If):
            yield from _functions(node, prefix)


def _sites(
    function: ast.FunctionDef | ast.AsyncFunctionDef, text: str
) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Yield what can be broken: its kind, where it stands in the text, and what it becomes."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = text.splitlines(keepends=True)

    def at(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def span(node: Any) -> tuple[int, int]:
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    for node in _inside(function):
        if isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp):
            yield from _operators(node, text, span)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            changed = not node.value if isinstance(node.value, bool) else node.value + 1
            yield "constant", span(node), repr(changed)
        elif isinstance(node, ast.AugAssign) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            yield "dropped", span(node), "pass"


def _operators(
    node: ast.Compare | ast.BinOp | ast.BoolOp, text: str, span: Span
) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Yield the operators between the operands of a node, each with one that is near to it."""
    cuts: list[tuple[ast.AST, ast.expr, ast.expr]]
    if isinstance(node, ast.Compare):
        pairs = zip([node.left, *node.comparators], node.comparators, strict=False)
        cuts = [(op, left, right) for op, (left, right) in zip(node.ops, pairs, strict=True)]
    elif isinstance(node, ast.BinOp):
        cuts = [(node.op, node.left, node.right)]
    else:
        cuts = [(node.op, a, b) for a, b in zip(node.values, node.values[1:], strict=False)]
    for op, left, right in cuts:
        if type(op) not in OPERATORS:
            continue
        sign, other = OPERATORS[type(op)]
        low, high = span(left)[1], span(right)[0]
        found = re.search(rf"(?<![<>=!*/\w]){re.escape(sign)}(?![<>=*/\w])", text[low:high])
        if found:
            yield "operator", (low + found.start(), low + found.end()), other


def _inside(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a body, without annotations and without what is said to people."""
    waiting: list[ast.AST] = list(reversed(function.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        yield node
        hidden = {id(getattr(node, "annotation", None)), id(getattr(node, "returns", None))}
        waiting += [n for n in reversed(list(ast.iter_child_nodes(node))) if id(n) not in hidden]


if __name__ == "__main__":
    main()
