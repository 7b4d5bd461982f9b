"""Items pushed over HTTP: as one JSON body, or as a stream of JSON lines that may become a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO

from anyio.to_thread import run_sync
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from rayal.errors import PoolError
from rayal.pool.push import Pushed
from rayal.service.auth import WRITE
from rayal.service.call import Answer, Call, Here
from rayal.service.inbox import PushedItem, ingest_file, push_items, stage, staged
from rayal.service.problems import ProblemError
from rayal.service.requests import parse_json
from rayal.service.routes.jobs import accepted
from rayal.service.routing import Section
from rayal.service.schemas.base import ItemKey, ProjectName, key_of
from rayal.service.schemas.items import (
    ItemPush,
    ItemPut,
    ItemsBody,
    ItemsPushed,
    Refused,
)

routes = Section("items")
_JSON, _LINES = "application/json", "application/x-ndjson"
_BLOCK = 1 << 20
_BODY = {
    "required": True,
    "content": {
        _JSON: {"schema": {"$ref": "#/components/schemas/ItemsBody"}},
        _LINES: {"schema": {"type": "string", "description": "one item a line"}},
    },
}
_ACCEPTED = {
    "description": "too many for an answer at once: the job at Location takes them",
    "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Accepted"}}},
}


@dataclass(frozen=True)
class _Sent:
    """A body as it came: its bytes in a file, their hash, and whether they are JSON lines."""

    file: IO[bytes]
    size: int
    hash: str
    lines: bool


@routes.route(
    "POST",
    "/v1/projects/{project}/items",
    WRITE,
    answers=ItemsPushed,
    more={202: _ACCEPTED},
    problems=["conflict"],
    limit="stream_bytes",
    types=(_JSON, _LINES),
    once="after",
    body=_BODY,
)
async def add_items(call: Here, project: ProjectName) -> Response:
    """Add items, and tell what became of them; the same id with the same content is unchanged.

    A body is JSON of up to 1000 items, or JSON lines of any number: more than 1000, or more
    than the limit of a body, are taken by a job.
    """
    limits = call.backend.limits
    lines = call.request.headers["content-type"].lower().startswith(_LINES)
    call.request.limit = limits.stream_bytes if lines else limits.body_bytes
    folder = str(call.backend.ledger.root)
    with SpooledTemporaryFile(max_size=limits.body_bytes, dir=folder) as file:
        size, hashed = 0, sha256()
        async for piece in call.request.stream():
            size += len(piece)
            hashed.update(piece)
            await run_sync(file.write, piece) if size > limits.body_bytes else file.write(piece)
        sent = _Sent(file, size, hashed.hexdigest(), lines)
        return await run_sync(
            lambda: call.perform_then_store(lambda: _take(call, project, sent), sent.hash)
        )


@routes.route(
    "PUT",
    "/v1/projects/{project}/items/{item}",
    WRITE,
    answers=ItemsPushed,
    problems=["conflict"],
    limit="body_bytes",
)
def put_item(call: Here, project: ProjectName, item: ItemKey, body: ItemPut) -> Answer:
    """Add one item under the key of its id; once more with the same content, nothing happens."""
    if key_of(body.id) != item:
        raise ProblemError(
            "validation", f"id {body.id!r} has the key {key_of(body.id)}, not {item}"
        )
    answer = _push(call, project, [ItemPush(**body.model_dump())])
    for kind, refused in (("conflict", answer.conflicts), ("validation", answer.rejected)):
        if refused:
            raise ProblemError(kind, refused[0].detail)
    return Answer(answer)


def _take(call: Call, project: str, sent: _Sent) -> Answer:
    if not sent.lines:
        sent.file.seek(0)
        return Answer(_push(call, project, _parsed(sent.file.read()).items))
    ledger, limits = call.backend.ledger, call.backend.limits
    call.project(project)
    name = stage(ledger.root, _blocks(sent.file), limit=limits.stream_bytes)
    if sent.size > limits.body_bytes or _lines(sent.file, limits.page) > limits.page:
        return accepted(ledger.add_job(project, "ingest", {"file": name}, once=False))
    try:
        return Answer(
            _shown(
                ingest_file(
                    ledger,
                    project,
                    name,
                    prefixes=call.backend.prefixes,
                    limits=call.backend.content_limits,
                )
            )
        )
    finally:
        staged(ledger.root, name).unlink()


def _push(call: Call, project: str, items: Sequence[ItemPush]) -> ItemsPushed:
    """Push items; one that is no item is rejected, and the others go on."""
    good: list[PushedItem] = []
    wrong: list[Refused] = []
    for number, item in enumerate(items):
        try:
            good.append(_pushed(item))
        except PoolError as error:
            wrong.append(_refused(item.id or f"item {number}", str(error)))
    backend = call.backend
    result = push_items(
        backend.ledger, project, good, prefixes=backend.prefixes, limits=backend.content_limits
    )
    return _shown(result, wrong)


def _pushed(item: ItemPush) -> PushedItem:
    fields = item.model_dump(exclude_none=True)
    pushed = PushedItem.of(fields, named=False)
    if item.id is None and pushed.data is not None:
        return replace(pushed, id=f"sha256:{sha256(pushed.data).hexdigest()}")
    return pushed


def _parsed(raw: bytes) -> ItemsBody:
    try:
        return ItemsBody.model_validate(parse_json(raw))
    except ValidationError as error:
        errors = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(_BLOCK):
        yield block


def _lines(file: IO[bytes], most: int) -> int:
    """Return the number of lines, counted no further than just above ``most``."""
    count = 0
    for block in _blocks(file):
        count += block.count(b"\n")
        if count > most:
            break
    return count


def _shown(made: Pushed, wrong: Sequence[Refused] = ()) -> ItemsPushed:
    return ItemsPushed(
        created=made.created,
        unchanged=made.unchanged,
        conflicts=[_refused(*refused) for refused in made.conflicts],
        rejected=[*(_refused(*refused) for refused in made.rejected), *wrong],
    )


def _refused(item: str, detail: str) -> Refused:
    return Refused(id=item, key=key_of(item), detail=detail)
