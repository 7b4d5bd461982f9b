"""The task of a pool's items, with the tokeniser of its texts.

A tokeniser is made once for a snapshot, and kept with the pool by its hash.
"""

from __future__ import annotations

import hashlib
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers

from rayal.errors import SettingsError
from rayal.labels import NumberLabel
from rayal.pool.reader import Pool
from rayal.pool.storage import TEMPORARY
from rayal.tasks import Task, task_for
from rayal.tasks.text import SIZE
from rayal.tasks.vocabulary import KINDS, Vocabulary
from rayal.types import FORMAT_VERSION, digest

TRAINED_ON = 200_000  # texts: the first of the snapshot, whose order is that of their id keys


def task_of(pool: Pool, settings: Mapping[str, Any]) -> Task:
    """Return the task of a pool's items.

    Raises:
        SettingsError: the pool has no classes and none are given, or kind or target do not fit.
    """
    options = dict(settings)
    kind = options.pop("kind", None)
    number = number_of(options, pool.info.get("label_kind"))
    classes = options.pop("classes", None) or pool.classes or ()
    for name in ("target", "low", "high"):
        options.pop(name, None)
    if not classes and number is None:
        raise SettingsError(
            f"pool {pool.name!r} has no known classes; name them: task: {{classes: [cat, dog]}}, "
            "or predict a number: task: {target: number}"
        )
    payload = pool.payload
    if payload.get("encoding") == "file" and "size" not in options:
        options["example"] = pool.read(pool.parts[0]).slice(0, 1)
    if payload["kind"] == "text":
        options["words"] = vocabulary_of(pool, options)
    return task_for(payload, kind=kind, classes=tuple(classes), number=number, **options)


def number_of(settings: Mapping[str, Any], known: str | None) -> NumberLabel | None:
    """Return the number that is predicted, with its bounds; None where classes are.

    Args:
        settings: of the task.
        known: what the known labels of the pool are: class | number; None without labels.

    Raises:
        SettingsError: bounds of a number are given, and classes are predicted.
    """
    target = settings.get("target")
    low, high = settings.get("low"), settings.get("high")
    if target is None:
        target = "number" if known == "number" and not settings.get("classes") else "class"
    if target == "number":
        return NumberLabel(-math.inf if low is None else low, math.inf if high is None else high)
    if low is not None or high is not None:
        raise SettingsError(
            "task.low and task.high bound a number, and classes are predicted; leave them out, or "
            "set task.target to number"
        )
    return None


def vocabulary_of(pool: Pool, given: Mapping[str, Any]) -> Vocabulary:
    """Return the tokeniser of a pool's texts; it is trained, and kept, where it is not there yet.

    A pool without items has an imagined one, of the size that is set, for plans and checks.

    Test items are not among what it is trained on, and of more than 200,000 texts only the first
    are: parts are in id-key order, so these are a draw of them.

    Args:
        pool: the snapshot.
        given: settings of the task: ``tokenizer``, ``vocabulary``, ``lowercase``.

    Raises:
        SettingsError: a setting does not fit, or there is no such tokeniser.
    """
    kind, model = tokenizer_of(given)
    if not pool.parts_of("pool"):
        return Vocabulary.imagined(given.get("vocabulary", SIZE))
    settings = {"size": given.get("vocabulary", SIZE), "lowercase": given.get("lowercase", True)}
    made_of = {
        "version": FORMAT_VERSION,
        "tokenizers": tokenizers.__version__,
        "parts": [part.part for part in pool.parts_of("pool")],
        "of": hashlib.blake2b(model.encode(), digest_size=16).hexdigest() if model else settings,
        "kind": kind,
        "texts": TRAINED_ON,
    }
    path = Path(pool.root) / "pools" / pool.name / f"vocabulary-{digest(made_of)}.json"
    if path.is_file():
        return Vocabulary(path.read_text(encoding="utf-8"))
    texts = islice(_texts(pool), TRAINED_ON)
    vocabulary = (
        Vocabulary.counted(model, texts)
        if model
        else Vocabulary.trained(texts, kind=kind, **settings)
    )
    waiting = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
    waiting.write_text(vocabulary.stored, encoding="utf-8")
    os.replace(waiting, path)
    return vocabulary


def tokenizer_of(given: Mapping[str, Any]) -> tuple[str, str]:
    """Return the kind of tokeniser to train, or the contents of the file that holds one.

    Raises:
        SettingsError: it is neither a kind nor a file, or settings of training go with a file.
    """
    name = str(given.get("tokenizer", KINDS[0]))
    if name in KINDS:
        return name, ""
    path = Path(name)
    if not path.is_file():
        raise SettingsError(
            f"task.tokenizer: {name!r} is no file; give {', '.join(KINDS)}, or the path of a "
            "tokenizer.json; nothing is downloaded"
        )
    for key in ("vocabulary", "lowercase"):
        if key in given:
            raise SettingsError(
                f"task.{key} belongs to a tokeniser that is trained, and {name} is one already; "
                "leave it out"
            )
    try:
        return "file", path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"task.tokenizer: {name} is no tokenizer.json ({error})") from None


def _texts(pool: Pool) -> Iterator[str]:
    for part in pool.parts_of("pool"):
        for batch in pool.read(part).select(["data"]).to_batches():
            yield from (bytes.decode(data, "utf-8") for data in batch.column(0).to_pylist())
