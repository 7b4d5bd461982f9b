"""YAML of settings: a file, and ``a.b=c`` overrides set into what it holds."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rayal.errors import SettingsError


class Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice."""
        seen: list[Any] = []  # of key nodes, whose values need not be hashable
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Its counterpart, which quotes the text 1e-3."""


for _side in (Loader, Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"),
        list("-+.0123456789"),
    )


def parse(text: str, what: str) -> Any:
    """Return what YAML text holds, or raise SettingsError naming ``what`` and the line."""
    try:
        return yaml.load(text, Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{what}, line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{what}: not valid YAML: {error}") from None


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Return the mapping in a YAML file, or raise SettingsError saying why there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(
            f"settings file {str(path)!r} cannot be read: {reason}; give the path of a YAML file"
        ) from None
    content = parse(text, str(path))
    if not isinstance(content, Mapping):
        raise SettingsError(
            f"{path}: given {reprlib.repr(content)}, allowed: a mapping of settings such as "
            "`pool: {source: fashion-mnist}`"
        )
    return content


def copied(value: Any, sequence: Callable[[Iterable[Any]], Any]) -> Any:
    """Copy JSON-like data, its lists and tuples as ``sequence``: settings hold tuples."""
    if isinstance(value, Mapping):
        return {key: copied(item, sequence) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return sequence(copied(item, sequence) for item in value)
    return value


def override(raw: dict[str, Any], text: str) -> None:
    """Set one ``a.b=c`` in place; missing mappings are made, a name alone opens to a mapping."""
    path, equals, value = text.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        raise SettingsError(f"override {text!r}: allowed: key.key=value, such as batch=50")
    node: Any = raw
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        key = _place(node, step, text)
        if following is None:
            node[key] = parse(value, f"override {text!r}")
            return
        inside = node[key] if isinstance(node, list) else node.get(key)
        if inside is None or isinstance(inside, str):
            inside = node[key] = {} if inside is None else {"name": inside}
        node = inside


def _place(node: Any, step: str, text: str) -> Any:
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SettingsError(f"override {text!r}: {step!r} would stand inside {node!r}, no mapping")
    if not step.isdecimal() or int(step) >= len(node):
        raise SettingsError(
            f"override {text!r}: given {step!r}, allowed: 0 to {len(node) - 1}, places in the list"
        )
    return int(step)
