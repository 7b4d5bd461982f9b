"""The kinds of jobs: a round, items from a staged file, predictions into a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rayal.errors import BudgetError, RayalError
from rayal.ledger import JobRow, Ledger
from rayal.service.inbox import LISTED, RESULTS, ingest_file, objects, staged
from rayal.service.predictor import Prediction, Predictor
from rayal.service.worker.options import Tell, WorkOptions
from rayal.service.worker.scrub import scrub

_BATCH = 256  # items that are predicted at once
_Result = dict[str, Any]


def work_round(ledger: Ledger, job: JobRow, options: WorkOptions, tell: Tell) -> _Result:
    """Choose the first items if none are chosen yet, else do one round and commit its model.

    Args:
        ledger: the storage root's ledger.
        job: a job of kind ``round``, without arguments.
        options: where it works.
        tell: told stage, round, and how far.

    Raises:
        BudgetError: the pool has no items.
        LabelError: nothing is labeled, or no label is new.
        RayalError: as the stages say.
    """
    from rayal.service.worker.round import ServedRounds

    rounds = ServedRounds(ledger, job.project, tell)
    if not rounds.chosen:
        if not len(rounds.project.pool):
            raise BudgetError(
                f"project {job.project!r} has no items yet; push items, then close the round"
            )
        return {"offered": rounds.choose_first()}
    return rounds.work(options)


def ingest(ledger: Ledger, job: JobRow, options: WorkOptions, tell: Tell) -> _Result:
    """Add the items of a staged file to the project's pool.

    Args:
        ledger: the storage root's ledger.
        job: a job of kind ``ingest``, with the name of the staged ``file``.
        options: the URIs that are allowed and the largest images and texts.
        tell: told how many items were read.
    """

    def progress(done: int, total: int | None) -> None:
        tell({"stage": "ingest", "done": done, "total": total})

    file = str(job.args["file"])
    result = ingest_file(
        ledger,
        job.project,
        file,
        prefixes=options.prefixes,
        limits=options.limits,
        progress=progress,
    )
    return {
        "created": result.created,
        "unchanged": result.unchanged,
        **{f"{n}_count": len(getattr(result, n)) for n in ("conflicts", "rejected")},
        **{
            name: [refused._asdict() for refused in getattr(result, name)[:LISTED]]
            for name in ("conflicts", "rejected")
        },
        "snapshot": result.snapshot,
    }


def predict(ledger: Ledger, job: JobRow, options: WorkOptions, tell: Tell) -> _Result:
    """Write what a version of the model says of items to a file of JSON lines.

    Args:
        ledger: the storage root's ledger.
        job: of kind ``predict``, with ``items`` (ids), or ``file``: a staged one whose lines are
            inputs, or name an ``item`` of the pool; and ``model``, a version or null.
        options: the URIs that are allowed and the largest images and texts.
        tell: told how many were predicted.

    Returns:
        ``file``, relative to the storage root, with one object a line, in order: item, label and
        probs, or an ``error``; ``rows``, ``errors`` and ``model``.
    """
    root = Path(ledger.root)
    model = job.args.get("model")
    predictor = Predictor(root, prefixes=options.prefixes, limits=options.limits)
    try:
        version = predictor.version(job.project, None if model == "active" else model).name
        name = f"{RESULTS}/{job.job}.jsonl"
        wanted, total = _wanted(root, job.args)
        rows = errors = 0
        (root / RESULTS).mkdir(mode=0o700, exist_ok=True)
        temporary = root / f"{name}.{os.getpid()}"
        with temporary.open("w", encoding="utf-8") as file:
            while batch := list(islice(wanted, _BATCH)):
                for line in _lines(predictor, job.project, version, batch):
                    file.write(f"{json.dumps(line)}\n")
                    rows, errors = rows + 1, errors + ("error" in line)
                tell({"stage": "predict", "done": rows, "total": total})
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(root / name)
    finally:
        predictor.close()
    return {"file": name, "rows": rows, "errors": errors, "model": version}


def _wanted(root: Path, args: Mapping[str, Any]) -> tuple[Iterator[dict[str, Any]], int | None]:
    """Yield what is to be predicted, each as an object; None where the total is not known."""
    if "items" in args:
        return iter([{"item": i} for i in args["items"]]), len(args["items"])
    path = staged(root, str(args["file"]))
    return ({} if value is None else value for _, value in objects(path)), None


def _lines(
    predictor: Predictor, project: str, version: str, batch: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the predictions of a batch; where one fails, each by itself."""
    try:
        yield from map(_line, _predictions(predictor, project, version, batch))
    except RayalError:
        for one in batch:
            try:
                yield from map(_line, _predictions(predictor, project, version, [one]))
            except RayalError as error:
                yield {"item": one.get("item", one.get("id")), "error": str(error)}


def _predictions(
    predictor: Predictor, project: str, version: str, batch: list[dict[str, Any]]
) -> list[Prediction]:
    items = [str(one["item"]) for one in batch if "item" in one]
    inputs = [one for one in batch if "item" not in one]
    named = iter(predictor.predict(project, version, items=items))
    sent = iter(predictor.predict(project, version, inputs=inputs))
    return [next(named if "item" in one else sent) for one in batch]


def _line(made: Prediction) -> dict[str, Any]:
    return asdict(made)


def purge_content(ledger: Ledger, job: JobRow, options: WorkOptions, tell: Tell) -> _Result:
    """Take the content of forgotten items out of the files of the project's own pool.

    Args:
        ledger: the storage root's ledger.
        job: a job of kind ``purge``, without arguments.
        options: not used.
        tell: told that it has begun.

    Returns:
        ``purged``, how many items were still there.
    """
    from rayal.pool.purge import purge

    tell({"stage": "purge", "done": 0, "total": None})
    pool = ledger.project(job.project).pool
    scrub(Path(ledger.root), ledger.forgotten_items(pool))
    return {"purged": purge(ledger, pool)}


KINDS: Mapping[str, Callable[[Ledger, JobRow, WorkOptions, Tell], _Result]] = {
    "round": work_round,
    "ingest": ingest,
    "predict": predict,
    "purge": purge_content,
}
