"""Records and rows on standard output, as JSON or as tables; loads neither torch nor the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console()


def show(value: Any, *, as_json: bool) -> None:
    """Print a record or rows, as JSON or as tables."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, default=str))
        return
    rows = value if isinstance(value, list) else [value]
    flat = [_flat(row) for row in rows]
    nested = {k: v for row in rows for k, v in row.items() if _is_rows(v)}
    names = list(dict.fromkeys(k for row in flat for k in row))
    if isinstance(value, list) and all(row.keys() == flat[0].keys() for row in flat):
        out.print(_rows_table(names, flat))
    else:
        for row in flat:
            table = Table.grid(padding=(0, 2))
            for name, text in row.items():
                table.add_row(name, Text(text))
            out.print(table, "")
    for name, inner in nested.items():
        out.print(name, style="bold")
        show(inner, as_json=False)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _flat(row: Mapping[str, Any]) -> dict[str, str]:
    flat = {}
    for name, value in row.items():
        if not _is_rows(value):
            plain = isinstance(value, Mapping | list | tuple)
            flat[name] = json.dumps(value, default=str) if plain else str(value)
    return flat


def _rows_table(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    table = plain_table(*names)
    for row in rows:
        table.add_row(*(Text(row.get(name, "")) for name in names))
    return table


def plain_table(*headings: str) -> Table:
    """Return a table without frames, its first column unbroken."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0)
    return table
