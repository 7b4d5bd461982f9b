"""The ledger: the durable record of pools, projects, rounds, selections, leases and labels.

Every method is one short transaction, or a part of the one that its thread is in (``transaction``,
``once``). A write commits together with one event that tells all it wrote, so the tables can be
built again from the events (``rayal.ledger.replay``). Writers take turns, on PostgreSQL those of
one project; readers see the last commit and never wait. A ledger may be used from several threads,
and the same storage root may be opened by many processes of one machine, or of many with
PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rayal.ledger.database import withdrawn
from rayal.ledger.idempotency import Idempotency
from rayal.ledger.items import Forgetting, Items
from rayal.ledger.jobs import Jobs
from rayal.ledger.labels import Labels
from rayal.ledger.leases import Leases
from rayal.ledger.models import Models
from rayal.ledger.pools import Pools
from rayal.ledger.projects import Projects
from rayal.ledger.records import Event
from rayal.ledger.rounds import Files, Rounds
from rayal.ledger.schema import events
from rayal.ledger.selections import Selections
from rayal.ledger.tokens import Tokens

_PAGE = 500  # events read at once


class Ledger(
    Pools,
    Projects,
    Rounds,
    Files,
    Selections,
    Leases,
    Labels,
    Items,
    Forgetting,
    Models,
    Jobs,
    Tokens,
    Idempotency,
):
    """The ledger of a storage root, open; a context manager that closes it.

    Times are seconds since the epoch. Where a method takes ``now``, None means the clock of the
    database's host.

    Args:
        root: the storage root, a local folder; the file is ``ROOT/ledger.sqlite``.
        database: a PostgreSQL URL, ``postgresql+psycopg://…``, written to ``ROOT/database`` when
            the ledger is made; None for the one that is written there, else SQLite.
        create: make the ledger where there is none.

    Raises:
        LedgerError: a dialect, file system or schema version that does not fit.
        StorageError: no ledger is there and ``create`` is false.
    """

    def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        self.engine.dispose()

    @contextmanager
    def withdrawn(self) -> Iterator[bool]:
        """Remove the ledger's file, unless somebody else uses it; nobody can open one meanwhile.

        It stays where others have it open, where an event of it was not written through this
        ledger, and where it is in PostgreSQL. This one is closed.

        Yields:
            Whether the file is gone.
        """
        with withdrawn(self.root, self.engine, self.told) as gone:
            yield gone

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the ledger."""
        self.close()

    def events(self, since: int = 0, project: str | None = None) -> Iterator[Event]:
        """Yield the events after number ``since``, in order; of one project if it is named.

        Events of pools and of forgotten files belong to no project. The ledger may be written
        to meanwhile; what is committed before the end is reached is yielded too.
        """
        of_project = [] if project is None else [events.c.project == project]
        while True:
            query = events.select().where(events.c.seq > since, *of_project)
            with self._read(project) as conn:
                page = conn.execute(query.order_by(events.c.seq).limit(_PAGE)).mappings().all()
            yield from (Event(**row) for row in page)
            if len(page) < _PAGE:
                return
            since = page[-1]["seq"]
