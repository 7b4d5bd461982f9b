"""Bearer tokens and their rights. The ledger stores only the hashes of tokens."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from rayal.errors import LedgerError, SettingsError, UnknownNameError
from rayal.ledger.records import TokenRow
from rayal.ledger.schema import tokens
from rayal.ledger.store import Row, Store

SCOPE = re.compile(r"admin|project:.+:(write|label|read)", re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{64}")


class Tokens(Store):
    """The part of the ledger that keeps tokens."""

    def add_token(
        self,
        name: str,
        scopes: Sequence[str],
        hash: str,
        *,
        expires: float | None = None,
        now: float | None = None,
    ) -> TokenRow:
        """Record a token.

        Args:
            name: its purpose, as text for people.
            scopes: ``admin``, or ``project:NAME:write``, ``:label``, ``:read``.
            hash: SHA-256 of the token's text, 64 hex digits.
            expires: end of its validity in seconds since the epoch; None: it never ends.
            now: seconds since the epoch; None takes the ledger's clock.

        Raises:
            SettingsError: a scope or the hash is not of that form.
            LedgerError: the hash is known already.
        """
        wrong = [scope for scope in scopes if not SCOPE.fullmatch(scope)]
        if wrong or not scopes:
            raise SettingsError(
                f"scopes are {list(scopes)}, wrong: {wrong}; give `admin`, or "
                "`project:NAME:write`, `project:NAME:label`, `project:NAME:read`"
            )
        if not _HASH.fullmatch(hash):
            raise SettingsError("a token's hash is its SHA-256, 64 lower-case hex digits")
        with self._write("token", now=now, locks=("tokens",)) as tx:
            known = tx.conn.execute(tokens.select().where(tokens.c.hash == hash)).first()
            if known is not None:
                raise LedgerError("a token of this hash is known already; draw another secret")
            row = {
                "token_id": uuid.uuid4().hex[:12],
                "name": name,
                "scopes": list(scopes),
                "hash": hash,
                "created": tx.time,
                "expires": expires,
                "revoked": None,
            }
            tx.insert(tokens, [row])
        return _token(dict(row))

    def token_by_hash(self, hash: str) -> TokenRow | None:
        """Return the token of a hash, expired and revoked ones too; None if there is none."""
        with self._read() as conn:
            row = conn.execute(tokens.select().where(tokens.c.hash == hash)).mappings().first()
        return None if row is None else _token(dict(row))

    def tokens(self) -> list[TokenRow]:
        """Return all tokens, the oldest first."""
        with self._read() as conn:
            query = tokens.select().order_by(tokens.c.created, tokens.c.token_id)
            return [_token(dict(row)) for row in conn.execute(query).mappings()]

    def revoke_token(self, token_id: str, *, now: float | None = None) -> TokenRow:
        """Make a token invalid from now on; a second call changes nothing.

        Raises:
            UnknownNameError: there is no such token.
        """
        with self._write("token", now=now, locks=("tokens",)) as tx:
            query = tokens.select().where(tokens.c.token_id == token_id)
            row = tx.conn.execute(query).mappings().first()
            if row is None:
                raise UnknownNameError(f"token {token_id!r} does not exist; list them by tokens()")
            if row["revoked"] is None:
                tx.update(tokens, [{"token_id": token_id, "revoked": tx.time}])
                return _token({**row, "revoked": tx.time})
            return _token(dict(row))


def _token(row: Row) -> TokenRow:
    values: dict[str, Any] = {**row, "scopes": tuple(row["scopes"])}
    return TokenRow(**values)
