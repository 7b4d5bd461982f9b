"""What a folder or file on this machine holds for a service: items to push, labels to send."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayal.errors import LabelError, PoolError
from rayal.labels import ClassLabel, label_kind

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def items_of(source: Path, id_: str, text: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a folder of images or a CSV file holds, as items to push.

    Args:
        source: the folder or file.
        id_: column of the ids.
        text: column of the texts; all columns but the ids are numbers where it is None.
    """
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGES):
            data = base64.b64encode(path.read_bytes()).decode()
            yield {"id": path.relative_to(source).as_posix(), "data": data}
    elif source.suffix == ".csv" and text is not None:
        for row in _rows(source, id_, text):
            yield {"id": row[id_], "text": row[text] or ""}
    elif source.suffix == ".csv":
        for number, row in enumerate(_rows(source, id_), start=2):
            yield {"id": row.pop(id_), "features": _numbers(row, f"{source}, line {number}")}
    else:
        raise PoolError(f"{source} is neither a folder of images, nor a .csv or .jsonl file")


def answers_of(path: Path) -> dict[str, str]:
    """Return the labels of a CSV file by item."""
    answers: dict[str, str] = {}
    for row in _rows(path, "id", "label"):
        if row["id"] in answers:
            raise LabelError(f"{path} labels item {row['id']!r} twice; give one label")
        answers[row["id"]] = row["label"]
    return answers


def answers_to(project: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return labels that were written as texts as a project wants them: its numbers as numbers."""
    kind = label_kind(dict(project["labels"]))
    if isinstance(kind, ClassLabel):
        return dict(texts)  # what is no class is named by the service, label by label
    return {item: kind.read(text, item) for item, text in texts.items()}


def _rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise PoolError(f"{path} has no column {missing[0]!r}, but {reader.fieldnames}")
        yield from reader


def _numbers(row: Mapping[str, str], where: str) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in row.items()}
    except (TypeError, ValueError) as error:
        raise PoolError(f"{where}: {error}; features are numbers") from None
