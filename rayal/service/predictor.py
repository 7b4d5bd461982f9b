"""Prediction outside of rounds: a version of a project's model on items, or on what is sent.

The committees that were asked last stay loaded. It loads torch, so it lives in prediction replicas
and in jobs, not in the ingress.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from rayal import errors
from rayal.errors import (
    NeedsError,
    PoolError,
    RayalError,
    SettingsError,
    UnknownNameError,
    nearest,
)
from rayal.labels import ClassLabel, Label, NumberLabel
from rayal.ledger import Ledger, ModelRow
from rayal.service.bodies import query_of
from rayal.service.content import ContentLimits, PushedItem, Reader
from rayal.service.pools import pool_of
from rayal.service.uris import Prefixes
from rayal.types import id_keys

if TYPE_CHECKING:
    from rayal.engine.versions import Answer, Version

Body = Mapping[str, Any]
Respond = Callable[[Body], dict[str, Any]]  # the answer to a request, or RayalError


def answer_all(answer: Respond, bodies: Sequence[Body]) -> list[dict[str, Any]]:
    """Return an outcome per request, in order; those of one model and project share a pass.

    Where the shared pass is refused, each of its requests is answered alone, so that one with an
    unknown item spoils no other.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, body in enumerate(bodies):
        named = body.get("items") is not None
        alone = None if named else at
        groups.setdefault((body.get("project"), body.get("model"), alone), []).append(at)
    outcomes: dict[int, dict[str, Any]] = {}
    for rows in groups.values():
        together = [bodies[at] for at in rows]
        joint = _shared(answer, together) if len(rows) > 1 else None
        answers = joint or [outcome_of(answer, body) for body in together]
        outcomes |= zip(rows, answers, strict=True)
    return [outcomes[at] for at in range(len(bodies))]


def outcome_of(answer: Respond, body: Body) -> dict[str, Any]:
    """Return {"answer": …}, or {"error": …} for what ``answered`` raises again."""
    try:
        return {"answer": answer(body)}
    except RayalError as error:
        return {"error": {"name": type(error).__name__, "message": str(error)}}


def answered(outcome: Mapping[str, Any]) -> Any:
    """Return the answer of an outcome, or raise the error that it tells of.

    Errors travel as data: Ray would put a traceback into their messages.
    """
    if "error" not in outcome:
        return outcome["answer"]
    kind = getattr(errors, outcome["error"]["name"], RayalError)
    raise kind(outcome["error"]["message"])


def _shared(answer: Respond, bodies: Sequence[Body]) -> list[dict[str, Any]] | None:
    """Return the outcomes of requests for items by one pass; None where it is refused."""
    items = [item for body in bodies for item in body["items"]]
    try:
        joint = answer({**bodies[0], "items": items})
    except RayalError:
        return None
    outcomes, start = [], 0
    for body in bodies:
        end = start + len(body["items"])
        outcomes.append({"answer": {**joint, "predictions": joint["predictions"][start:end]}})
        start = end
    return outcomes


Said = tuple[Label, tuple[float, ...] | None, float | None, float | None]
# what arithmetic on shapes that do not fit may raise
_MISFITS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
LOADED = 4  # committees that stay in memory


@dataclass(frozen=True)
class Prediction:
    """The prediction of a version of a model for an item.

    Args:
        item: the id of the item; None of an input that was sent without one.
        label: the most probable class; of a number the mean, brought within its bounds.
        probs: the probability of each class, in the order of the task's classes; None of a number.
        mean: the mean of the predicted number; None of a class.
        variance: the variance about that mean, of model and noise, in squared units; None of a
            class.
    """

    item: str | None
    label: Label
    probs: tuple[float, ...] | None = None
    mean: float | None = None
    variance: float | None = None


class Predictor:
    """Answers from trained models of a storage root; any number of threads may ask.

    Args:
        root: the storage root.
        prefixes: below which uris of inputs may lie.
        limits: the largest images and texts that are taken.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        prefixes: Prefixes | None = None,
        limits: ContentLimits | None = None,
    ) -> None:
        self.ledger = Ledger(root, create=False)
        self._prefixes, self._limits = prefixes or Prefixes(), limits or ContentLimits()
        self._loaded: LRUCache[tuple[str, str], Version] = LRUCache(LOADED)
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # torch's threads are set for the whole process

    def close(self) -> None:
        """Close the ledger and let go of the committees."""
        self._loaded.clear()
        self.ledger.close()

    def predict(
        self,
        project: str,
        version: str | None = None,
        items: Sequence[str] | None = None,
        inputs: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Prediction]:
        """Return what a version says of items or inputs, in their order.

        Args:
            project: its name.
            version: the version of its model; None for the active one.
            items: ids of items of its pool.
            inputs: objects with ``data``, ``uri`` or ``features``, as items are pushed.

        Raises:
            UnknownNameError: there is no such project, version or item.
            NeedsError: the project has no model yet.
            SettingsError: not exactly one of items and inputs is given.
            PoolError: an input cannot be used; the message tells its position.
            UriError: a uri is not allowed or cannot be read.
        """
        if (items is None) == (inputs is None):
            raise SettingsError("give either items or inputs")
        chosen = self.version(project, version)
        ids: list[str | None]
        if items is not None:
            pool = pool_of(self.ledger, project, items)
            ids, rows = list(items), pool.take(items) if items else None
        else:
            ids, rows = self._rows(project, inputs or ())
        if rows is None:
            return []
        with self._turn:
            answers = chosen.answers(rows)
        kind = chosen.committee.task.labels
        return [Prediction(i, *said(kind, a)) for i, a in zip(ids, answers, strict=True)]

    def version(self, project: str, version: str | None) -> Version:
        """Return a version of a project's model, loaded; None for the active one."""
        from rayal.engine.versions import load

        row = self._row(project, version)
        key = (project, row.version)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load(self.ledger, row)
            return self._loaded[key]

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``predict`` of a JSON object with project, model, items and inputs, as JSON."""
        model = body.get("model")
        project, version = str(body["project"]), None if model in (None, "active") else str(model)
        row = self._row(project, version)
        predictions = self.predict(project, row.version, body.get("items"), body.get("inputs"))
        return {"model": row.version, "predictions": [asdict(p) for p in predictions]}

    def query(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the picks of ``rayal.select`` on the columns that a JSON object holds, as JSON.

        Args:
            body: as ``QueryBody`` describes it.

        Raises:
            SettingsError: a key is unknown or missing, or the columns are no arrays.
            RayalError: as ``rayal.select`` says.
        """
        from rayal.strategies import select

        asked = query_of(body)
        columns = _arrays(asked.columns)
        labeled = None if asked.labeled is None else _arrays(asked.labeled)
        name, params = asked.strategy.name, {**asked.strategy.params, **asked.params}
        rest: Any = {"ids": asked.ids, "labeled": labeled, "params": params, "seed": asked.seed}
        try:
            with self._turn:
                chosen = select(name, columns, asked.k, **rest)
        except RayalError:
            raise
        except _MISFITS as error:
            shapes = {column: list(array.shape) for column, array in columns.items()}
            raise SettingsError(
                f"columns of shapes {shapes} do not fit strategy {name!r} ({error}); "
                f"`rayal strategies {name}` says what it takes"
            ) from None
        picks = [
            {"position": int(p), "id": i, "score": float(s) if np.isfinite(s) else None}
            for p, i, s in zip(chosen.positions, chosen.ids, chosen.scores, strict=True)
        ]
        return {"picks": picks, "approximation": chosen.approximation}

    def _row(self, project: str, version: str | None) -> ModelRow:
        rows = {row.version: row for row in self.ledger.models(project)}
        if not rows:
            raise NeedsError(
                f"project {project!r} has no model yet; label items and close a round first"
            )
        if version is None:
            return next(row for row in rows.values() if row.active)
        if version not in rows:
            raise UnknownNameError(f"model {version!r} does not exist; {nearest(version, rows)}")
        return rows[version]

    def _rows(
        self, project: str, inputs: Sequence[Mapping[str, Any]]
    ) -> tuple[list[str | None], pa.Table | None]:
        """Return inputs as rows of the project's pool."""
        payload = pool_of(self.ledger, project, ()).payload
        reader = Reader(payload, self._prefixes, self._limits)
        ids: list[str | None] = []
        data = []
        for position, content in enumerate(inputs):
            try:
                item = PushedItem.of(content, named=False)
                data.append(reader.read(item))
            except PoolError as error:
                raise PoolError(f"inputs[{position}]: {error}") from None
            ids.append(item.id or None)
        return ids, rows_of(data, payload) if data else None


def said(kind: ClassLabel | NumberLabel, made: Answer) -> Said:
    """Return label, probs, mean and variance of what a committee says of a row.

    The label is one that an annotator could give.
    """
    if isinstance(kind, ClassLabel):
        return made.label, made.probs, None, None
    mean = float(made.label)
    return min(max(mean, kind.low), kind.high), None, mean, made.variance


def rows_of(data: Sequence[bytes], payload: Mapping[str, Any]) -> pa.Table:
    """Return payloads as a table that has the columns of a pool's parts.

    Args:
        data: the bytes of each row.
        payload: what they are.
    """
    names = [f"input-{row}" for row in range(len(data))]
    columns = {"id": pa.array(names), "key": pa.array(id_keys(names))}
    if payload["kind"] == "table":
        values = pa.array(np.frombuffer(b"".join(data), "<f8"))
        columns["features"] = pa.FixedSizeListArray.from_arrays(values, len(payload["features"]))
    else:
        columns["data"] = pa.array(data, pa.binary())
    return pa.table(columns)


def _arrays(given: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {}
    for name, rows in given.items():
        try:
            array = np.asarray(rows, np.float64)
        except (TypeError, ValueError):
            raise SettingsError(
                f"columns.{name}: rows of numbers of one shape are needed"
            ) from None
        if array.ndim == 0:
            raise SettingsError(f"columns.{name}: rows of numbers are needed")
        arrays[str(name)] = array
    return arrays
