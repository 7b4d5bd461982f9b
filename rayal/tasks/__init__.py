"""Tasks: what a row of the pool is and what is predicted of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayal.errors import NeedsError, SettingsError, nearest
from rayal.labels import ClassLabel, Labels, NumberLabel
from rayal.pixels import decode_file
from rayal.tasks.base import Task
from rayal.tasks.image import ImageTask
from rayal.tasks.tabular import FeaturesTask, TableTask
from rayal.tasks.text import LENGTH, TextTask
from rayal.tasks.vocabulary import Vocabulary

__all__ = [
    "Task",
    "ImageTask",
    "TableTask",
    "TextTask",
    "FeaturesTask",
    "Vocabulary",
    "task_for",
    "task_from_json",
]

KINDS: Mapping[str, type[Task]] = {
    kind.kind: kind for kind in (ImageTask, TableTask, TextTask, FeaturesTask)
}
INGESTED = ("image", "table", "text")  # kinds of the rows that ingest writes


def task_for(
    payload: Mapping[str, Any],
    *,
    kind: str | None,
    classes: Sequence[str] = (),
    number: NumberLabel | None = None,
    **settings: Any,
) -> Task:
    """Return the task that fits a pool's rows.

    Args:
        payload: the pool's description of a row.
        kind: image | table | text; None takes the pool's.
        classes: at least two different names, in the order of the logits.
        number: what is predicted instead of a class.
        **settings: of images ``size`` (height, width), ``channels`` (1 | 3), ``flip``, and
            ``example`` (rows of the pool, the first of which tells the size of files where
            ``size`` is not set); of texts ``length`` and ``words`` (the tokeniser, which the
            settings ``tokenizer``, ``vocabulary`` and ``lowercase`` say how to make); None leaves
            one out. Tables have none.

    Raises:
        SettingsError: kind, classes or settings do not fit the pool.
        NeedsError: files without ``size`` and without ``example``.
    """
    stored = payload["kind"]
    if stored not in INGESTED or (kind is not None and kind != stored):
        raise SettingsError(
            f"task.kind is {kind!r} and the pool's rows are of kind {stored!r}; known: "
            f"{', '.join(INGESTED)}; leave task.kind out, or ingest another pool"
        )
    labels = _class_label(classes) if number is None else number
    chosen = {name: value for name, value in settings.items() if value is not None}
    makers: Mapping[str, Callable[..., Task]] = {
        "image": _image_task,
        "table": _table_task,
        "text": _text_task,
    }
    return makers[stored](payload, labels, chosen)


def task_from_json(stored: Mapping[str, Any]) -> Task:
    """Return the task that ``Task.to_json`` described."""
    kind = str(stored.get("kind"))
    if kind not in KINDS:
        raise SettingsError(f"task kind {kind!r} does not exist; {nearest(kind, KINDS)}")
    return KINDS[kind].from_json(stored)


def _class_label(classes: Sequence[str]) -> ClassLabel:
    names = tuple(map(str, classes))
    if len(names) < 2 or len(set(names)) < len(names):
        raise SettingsError(
            f"a task needs at least two different classes, got {list(names)}; list them all in "
            "task.classes"
        )
    return ClassLabel(names)


def _table_task(payload: Mapping[str, Any], labels: Labels, chosen: Mapping[str, Any]) -> TableTask:
    extra = sorted(set(chosen) - {"example"})
    if extra:
        raise SettingsError(f"task.{extra[0]} is no setting of tables, and the pool is a table")
    return TableTask(labels, tuple(payload["features"]))


def _text_task(payload: Mapping[str, Any], labels: Labels, chosen: Mapping[str, Any]) -> TextTask:
    known = ("length", "words", "tokenizer", "vocabulary", "lowercase")
    for name in chosen:
        if name not in known:
            raise SettingsError(
                f"task.{name} is no setting of texts, and the pool's rows are texts; leave it out"
            )
    if "words" not in chosen:
        raise NeedsError("texts have no tokeniser yet; give words=Vocabulary.trained(…)")
    return TextTask(labels, chosen.get("length", LENGTH), chosen["words"])


def _image_task(payload: Mapping[str, Any], labels: Labels, chosen: Mapping[str, Any]) -> ImageTask:
    known = ("size", "channels", "flip", "example")
    for name in chosen:
        if name not in known:
            raise SettingsError(f"task.{name} does not exist; {nearest(name, known)}")
    makers = {"raw": _raw_images, "file": _image_files}
    encoding = str(payload.get("encoding"))
    if encoding not in makers:
        raise SettingsError(f"images are encoded as {encoding!r}; {nearest(encoding, makers)}")
    return makers[encoding](payload, labels, chosen)


def _raw_images(payload: Mapping[str, Any], labels: Labels, chosen: Mapping[str, Any]) -> ImageTask:
    shape, dtype = list(payload["shape"]), payload["dtype"]
    if dtype != "uint8" or len(shape) not in (2, 3):
        raise SettingsError(
            f"raw images are {dtype} of shape {shape}; ingest uint8 images [H, W] or [H, W, C]"
        )
    height, width, channels = (*shape, 1)[:3]
    wanted = chosen.get("channels", channels)
    if wanted != channels:
        raise SettingsError(
            f"task.channels is {wanted}, the pool's raw images have {channels}; leave it out, or "
            "ingest them as files"
        )
    size = tuple(chosen.get("size", (height, width)))
    stored = None if size == (height, width) else (height, width)
    flip = bool(chosen.get("flip", channels == 3))
    return ImageTask(labels, "raw", channels, size, flip=flip, stored=stored)


def _image_files(
    payload: Mapping[str, Any], labels: Labels, chosen: Mapping[str, Any]
) -> ImageTask:
    channels = chosen.get("channels", 3)
    if channels not in (1, 3):
        raise SettingsError(f"task.channels is {channels}; allowed: 1 (grey), 3 (RGB)")
    size = chosen.get("size")
    if size is None:
        height, width = _size_of(chosen.get("example"), channels)
    else:
        height, width = size
    flip = bool(chosen.get("flip", channels == 3))
    resize = size is not None
    return ImageTask(labels, "file", channels, (height, width), resize=resize, flip=flip)


def _size_of(example: Any, channels: int) -> tuple[int, int]:
    if example is None or len(example) == 0:
        raise NeedsError(
            "images of a folder have no known size; set task: {size: [H, W]}, or give example="
            "rows of the pool"
        )
    first = decode_file(example.column("data")[0].as_buffer(), channels, "the first image")
    width, height = first.size
    return height, width
