"""The backend of the API: the ledger, the pools, and the processes in which networks run."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayal.labels import ClassLabel, NumberLabel, number_label
from rayal.ledger import Ledger, ProjectRow
from rayal.service.content import ContentLimits
from rayal.service.limits import Limits
from rayal.service.pools import pool_of
from rayal.service.uris import Prefixes

if TYPE_CHECKING:
    from rayal.service.settings import ServiceSettings

SECRET = "secret"  # the file of the key that signs URLs

Ask = Callable[[Mapping[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Backend:
    """The objects that the handlers of the API use.

    Args:
        ledger: the ledger of the storage root.
        limits: the most that a client may ask for.
        prefixes: the paths and URLs that may be read on behalf of clients.
        secret: the key that signs URLs and cursors.
        predict: forwards a prediction to a process that holds committees.
        query: forwards a stateless selection to the same place.
        clock: seconds since the epoch, for tokens and signed URLs.
    """

    ledger: Ledger
    limits: Limits
    prefixes: Prefixes
    secret: bytes
    predict: Ask
    query: Ask
    clock: Callable[[], float] = time.time

    def labels(self, project: ProjectRow) -> ClassLabel | NumberLabel:
        """Return what the answers of a project look like: as its task says, or its pool."""
        task = project.settings.get("task", {})
        target, classes = task.get("target"), task.get("classes")
        if target == "number":
            return number_label(task.get("low"), task.get("high"))
        if classes:
            return ClassLabel(tuple(classes))
        pool = pool_of(self.ledger, project.project, ())
        if target is None and pool.info.get("label_kind") == "number":
            return number_label(task.get("low"), task.get("high"))
        return ClassLabel(pool.classes or ())

    @property
    def content_limits(self) -> ContentLimits:
        """The largest images and texts that clients may push."""
        limits = self.limits
        return ContentLimits(limits.image_bytes, limits.image_pixels, text_bytes=limits.text_bytes)


def open_backend(settings: ServiceSettings, *, predict: Ask, query: Ask) -> Backend:
    """Return the backend of a storage root, which is made on first use."""
    root = Path(settings.storage)
    ledger = Ledger(root, database=settings.database)
    sources, limits = settings.sources, settings.limits
    return Backend(
        ledger=ledger,
        limits=Limits(**limits.model_dump()),
        prefixes=Prefixes(sources.paths, sources.urls, sources.private),
        secret=read_secret(root),
        predict=predict,
        query=query,
    )


def read_secret(root: Path) -> bytes:
    """Return the key of a storage root, made by whoever asks first; only its owner may read it."""
    path = root / SECRET
    if not path.exists():
        draft = root / f".{SECRET}-{secrets.token_hex(8)}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_bytes(32))
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, path)  # the first one stands
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
