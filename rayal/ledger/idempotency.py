"""Several writes as one, and answers that are given once however often the request comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import delete

from rayal.errors import IdempotencyError, LedgerError
from rayal.ledger.columns import plain
from rayal.ledger.database import lock
from rayal.ledger.records import Stored
from rayal.ledger.schema import idempotency
from rayal.ledger.store import Store, clock


class Once:
    """One request under its idempotency key.

    Args:
        replay: the answer that the request got before; None the first time.
    """

    def __init__(self, replay: Stored | None) -> None:
        self.replay = replay
        self.stored: Stored | None = None

    def store(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Keep the answer, from the end of the block on.

        Raises:
            LedgerError: the request was answered before; give that answer, and do nothing.
        """
        if self.replay is not None:
            raise LedgerError("this request was answered before; give the answer in `replay`")
        self.stored = Stored(int(status), bytes(body), dict(headers or {}))


class Idempotency(Store):
    """Blocks in which all that this thread writes is one transaction."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run every write and read of this thread within the block in one transaction.

        It commits when the block ends, and rolls back on an exception. A write that raises is
        undone by itself, so its error may be caught within the block. On SQLite nobody else
        writes meanwhile: keep it short. On PostgreSQL, a block that writes to several projects
        should take them in a fixed order.
        """
        with self._open():
            yield

    @contextmanager
    def once(
        self,
        scope: str,
        key: str,
        fingerprint: str,
        *,
        now: float | None = None,
        keep: float = 86400.0,
    ) -> Iterator[Once]:
        """Run a transaction as ``transaction`` does, and store the answer under the key in it.

        A repetition that comes while the first is still at work waits for it. A block that ends
        without ``store`` keeps nothing of the key.

        Args:
            scope: caller and operation within which the key is unique.
            key: the client's idempotency key.
            fingerprint: digest of the request; a repetition has the same.
            now: seconds since the epoch; None takes the ledger's clock.
            keep: seconds after which the key is free again.

        Raises:
            IdempotencyError: the key came before, with another request.
            LedgerError: the thread is in such a block already.
        """
        if self._joined() is not None:
            raise LedgerError("once() must be the outermost block; write to the ledger within it")
        with self._open() as opened:
            conn = opened.conn
            lock(conn, f"key {scope} {key}")
            time = clock(conn) if now is None else float(now)
            conn.execute(delete(idempotency).where(idempotency.c.created <= time - keep))
            named = (idempotency.c.scope == scope) & (idempotency.c.key == key)
            row = conn.execute(idempotency.select().where(named)).mappings().first()
            if row is not None and row["fingerprint"] != fingerprint:
                raise IdempotencyError(
                    f"idempotency key {key!r} was used for another request; use a new key for "
                    "each request, and the same one only to repeat it unchanged"
                )
            known = None if row is None else (row["status"], row["body"], row["headers"])
            request = Once(None if known is None else Stored(known[0], bytes(known[1]), known[2]))
            yield request
            if request.stored is not None:
                values = {
                    "scope": scope,
                    "key": key,
                    "fingerprint": fingerprint,
                    "status": request.stored.status,
                    "body": request.stored.body,
                    "headers": plain(request.stored.headers, "the headers of the answer"),
                    "created": time,
                }
                conn.execute(idempotency.insert().values(values))
