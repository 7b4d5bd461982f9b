"""Write the generated pages: settings.md, strategies.md, learners.md and the README's list.

    uv run python docs/generate.py            rewrites what is out of date
    uv run python docs/generate.py --check    only says what is, and exits with 1

Every sentence comes from the code that it describes; nothing is described here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rayal.cli.console import registry_json
from rayal.service.bodies import ProjectBody
from rayal.service.settings import ServiceSettings
from rayal.settings.parameters import bounds_text, type_text
from rayal.settings.run import Settings
from rayal.settings.sections import Named, Section
from rayal.strategies.base import TAXONOMY

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
MARKS = "<!-- strategies -->\n", "<!-- /strategies -->"
_NOTE = "<!-- Written by docs/generate.py from the code; change the sentences there. -->"


class Row(NamedTuple):
    """A key of a settings file.

    Attributes:
        path: its name with those of its sections, such as ``pool.source``.
        type: as text.
        default: as YAML.
        bounds: such as ``≥ 1``.
        sentence: what it is.
    """

    path: str
    type: str
    default: str
    bounds: str
    sentence: str


# -- settings ---------------------------------------------------------------------------------


def rows_of(section: type[Section], front: str = "") -> Iterator[Row]:
    """Yield a row for each key of a section, and of the sections in it."""
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            yield from rows_of(inner, f"{front}{name}{_mark(field)}.")
            continue
        kind, bounds = type_text(_annotated(field)), bounds_text(_annotated(field))
        sentence = field.description or ""
        yield Row(f"{front}{name}", _kind(kind), _default(field), _bounds(bounds), sentence)


def sections_of(section: type[Section]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield heading, sentence and rows: of the keys at the top, and of each section below."""
    below = {n: s for n, f in section.model_fields.items() if (s := _section(f.annotation))}
    rows = list(rows_of(section))
    top = [r for r in rows if re.split(r"[.\[]", r.path)[0] not in below]
    yield "", "", top
    for name in below:
        field = section.model_fields[name]
        own = [r for r in rows if re.split(r"[.\[]", r.path)[0] == name]
        yield f"{name}", field.description or "", own


def _section(annotation: Any) -> type[Section] | None:
    """Return the section that a key holds, alone, or in a list, or beside other kinds."""
    parts = [annotation, *get_args(annotation)]
    found = [p for p in parts if isinstance(p, type) and issubclass(p, Section)]
    return found[0] if found else None


def _mark(field: FieldInfo) -> str:
    return "[]" if get_origin(field.annotation) is tuple else ""


def _annotated(field: FieldInfo) -> Any:
    """Return a field's type with its bounds."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value}"


def _kind(text: str) -> str:
    """Return a type in the words of a settings file."""
    for python, yaml in (("tuple[", "list["), ("dict[", "mapping["), ("str", "text")):
        text = re.sub(rf"\b{re.escape(python)}", yaml, text)
    return text


def _bounds(limits: Iterable[str]) -> str:
    text = ", ".join(dict.fromkeys(limits))
    return text.replace("length ≥ 1", "not empty").replace(str(2**63), "2^63")


def settings_page() -> str:
    """Return the page of all settings."""
    parts = [
        "# Settings",
        _NOTE,
        "Every key of a settings file, with a sentence, its type, its default and its bounds. A "
        "key without a default is needed. An unknown key, or a value that does not fit, is refused "
        "before anything starts, and the message names its path.",
        "[A run](#a-run) · [A project of the service](#a-project-of-the-service) · "
        "[The service](#the-service)",
        "## A run",
        "These are the keys of the file that `rayal run`, `rayal plan` and `--set a.b=c` take. A "
        "value in a list is reached by its place, as in `--set seeds.0=7`. `learner` and an entry "
        "of `strategies` may be a name alone; further keys there are "
        "[hyperparameters of the learner](learners.md) or [of the strategy](strategies.md).",
        *_section_parts(Settings),
        "## A project of the service",
        "These are the keys of a project that is made over HTTP, by `rayal remote create` or `POST "
        "/v1/projects`. [The service](service.md) takes registered names only: nothing in them "
        "names code or files.",
        *_section_parts(ProjectBody),
        "## The service",
        "These are the `args` of the application in the file that `rayal serve CONFIG` takes; see "
        "[the service](service.md).",
        *_section_parts(ServiceSettings),
    ]
    return _page(parts)


def _section_parts(section: type[Section]) -> Iterator[str]:
    for heading, sentence, rows in sections_of(section):
        if heading:
            yield f"### {heading}\n\n{sentence}{_short_form(section.model_fields[heading])}"
        if rows:
            yield _settings_table(rows)


def _short_form(field: FieldInfo) -> str:
    """Return what may be written instead of a mapping, and what is there without the section."""
    inner = _section(field.annotation)
    named = inner is not None and issubclass(inner, Named)
    return (" A name alone is enough." if named else "") + _absent(field)


def _absent(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    annotation: Any = field.annotation
    dumped = TypeAdapter(annotation).dump_python(field.default)
    return "" if isinstance(dumped, dict) else f" By default `{_yaml(dumped)}`."


def _settings_table(rows: Iterable[Row]) -> str:
    lines = ["| key | what it is | type | default | bounds |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.path}`", row.sentence, f"`{row.type}`", row.default, row.bounds)
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# -- the registry -----------------------------------------------------------------------------


def strategies_page() -> str:
    """Return the page of all strategies."""
    rows = registry_json()["strategies"]
    parts = [
        "# Strategies",
        _NOTE,
        "A strategy says which items should be labeled next. For each one this page names the "
        "source, where the program departs from the paper, what makes it approximate, the columns "
        "that it reads, and its parameters. `rayal strategies NAME` prints the same.",
        "*Columns* are what the scan computes for each item of the pool; *context* is what it also "
        "needs of labeled items. *Networks* is the number that the method asks for: the committee "
        "has at least as many. *Learner* is how they are trained: *any*, or the "
        "[learner](learners.md) that the method prescribes. Some "
        "[methods also train or remember](methods.md).",
    ]
    for group in TAXONOMY:
        names = [n for n, row in rows.items() if row["taxonomy"] == group]
        if names:
            parts.append(f"## {group[0].upper()}{group[1:]}")
        for name in names:
            parts += [f"### `{name}`", rows[name]["summary"], _facts(rows[name])]
            parts.append(_parameters(rows[name]["parameters"]))
    return _page(parts)


def learners_page() -> str:
    """Return the page of all learners and networks."""
    everything = registry_json()
    parts = [
        "# Learners and networks",
        _NOTE,
        "A learner says how a network is trained; settings choose it by `learner: {name: …}`, and "
        "further keys there are its parameters. A network is chosen by `model: {network: …}`, with "
        "its parameters under `params`. `rayal strategies NAME` prints the same.",
        "## Learners",
        _presets(),
    ]
    for name, row in everything["learners"].items():
        parts += [f"### `{name}`", row["summary"], _facts(row), _parameters(row["parameters"])]
    parts += [
        "## Networks",
        "Besides these, `torchvision:NAME` is a classifier of torchvision, and `module:factory` "
        "[one of your own](writing-your-own.md#a-network).",
    ]
    for name, row in everything["networks"].items():
        heading = f"### `{name}`" + (" (network)" if name in everything["learners"] else "")
        parts += [heading, row["summary"], _parameters(row["parameters"])]
    return _page(parts)


def _presets() -> str:
    from rayal.registry import learners

    lines = ["A preset is a recipe by name, which further keys override (`learner: {preset: …}`):"]
    recipes: dict[str, Mapping[str, Any]] = {}
    for name in learners:
        recipes |= learners[name].presets
    for name, recipe in recipes.items():
        values = ", ".join(f"{key}: {_yaml(value)}" for key, value in recipe.items())
        lines.append(f"- `{name}`: `{{{values}}}`")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _facts(row: Mapping[str, Any]) -> str:
    facts = {
        "Source": row["source"],
        "Departures": row["departures"],
        "Approximations": row.get("approximations"),
        "Columns": _names(row.get("columns")),
        "Context": _names(row.get("context")),
        "Networks": row.get("members"),
        "Learner": _prescribed(row.get("learner")),
    }
    shown = [f"- {key}: {value}" for key, value in facts.items() if value is not None]
    return "\n".join(shown)


def _names(columns: list[str] | None) -> str | None:
    if columns is None:
        return None
    return ", ".join(f"`{column}`" for column in columns) or "none"


def _prescribed(learner: str | None) -> str | None:
    return learner if learner in (None, "any") else f"[`{learner}`](learners.md#{learner})"


def _parameters(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "It has no parameters."
    lines = ["| parameter | what it is | type | default | bounds |", "|---|---|---|---|---|"]
    for row in rows:
        default, kind = f"`{_yaml(row['default'])}`", f"`{_kind(row['type'])}`"
        meaning = _capital(row["meaning"], row["type"])
        lines.append(_line((f"`{row['name']}`", meaning, kind, default, _bounds(row["bounds"]))))
    return "\n".join(lines)


def _capital(text: str, type: str) -> str:
    """Return a sentence with a capital, unless it opens with a value that is written small."""
    word = re.match(r"[\w|]*", text)
    plain = word is None or f"'{word[0]}'" not in type
    return text[:1].upper() + text[1:] if plain else text


def _page(parts: Iterable[str]) -> str:
    """Return paragraphs as a page; names in docstrings stand in two backquotes."""
    return "\n\n".join(parts).replace("``", "`") + "\n"


def strategy_list() -> str:
    """Return the README's list: a sentence for each strategy, and a link."""
    rows = registry_json()["strategies"]
    lines = []
    for group in TAXONOMY:
        for name in (n for n, row in rows.items() if row["taxonomy"] == group):
            said = rows[name]["summary"]
            lines.append(f"- [`{name}`](docs/strategies.md#{name}): {said}")
    return "\n".join(lines) + "\n"


# -- files ------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Return what each generated file should hold."""
    readme = README.read_text(encoding="utf-8")
    before, begin, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise SystemExit(f"{README.name} has no list between {MARKS[0].strip()} and {MARKS[1]}")
    return {
        DOCS / "settings.md": settings_page(),
        DOCS / "strategies.md": strategies_page(),
        DOCS / "learners.md": learners_page(),
        README: before + begin + strategy_list() + end + after,
    }


def main(arguments: list[str]) -> int:
    """Rewrite what is out of date, or with ``--check`` only say what is."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/generate.py [--check]\n")
        return 2
    stale = [
        (path, text)
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        sys.stdout.write(f"{path.relative_to(DOCS.parent)} is out of date\n")
        if not arguments:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
