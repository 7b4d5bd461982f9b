"""Access tokens: made, listed, revoked; shown once."""

from __future__ import annotations

from typing import Any

from rayal.ledger.records import TokenRow
from rayal.service import auth
from rayal.service.auth import ADMIN
from rayal.service.call import Answer, Here
from rayal.service.problems import ProblemError
from rayal.service.routing import Section
from rayal.service.schemas.base import TokenId
from rayal.service.schemas.projects import TokenBody, TokenInfo, TokenList, TokenMade

routes = Section("tokens")


@routes.route("POST", "/v1/tokens", ADMIN, answers=TokenMade, status=201)
def create_token(call: Here, body: TokenBody) -> Answer:
    """Make a token.

    Its text is in this answer alone: what is kept is a hash. A repeated request is answered
    without the text.
    """
    scopes = auth.check_scopes(body.scopes)
    text = auth.new_token()
    expires = None if body.ttl_s is None else call.backend.clock() + body.ttl_s
    row = call.backend.ledger.add_token(body.name, scopes, auth.hash_of(text), expires=expires)
    shown = _shown(row)
    return Answer(
        TokenMade(**shown, token=text),
        201,
        {"Location": f"/v1/tokens/{row.token_id}"},
        stored=TokenMade(**shown, token=None),
    )


@routes.route("GET", "/v1/tokens", ADMIN, answers=TokenList)
def list_tokens(call: Here) -> TokenList:
    """List all tokens, without their texts."""
    return TokenList(tokens=[TokenInfo(**_shown(row)) for row in call.backend.ledger.tokens()])


@routes.route("GET", "/v1/tokens/{token}", ADMIN, answers=TokenInfo)
def get_token(call: Here, token: TokenId) -> TokenInfo:
    """Return a token, without its text."""
    tokens = [row for row in call.backend.ledger.tokens() if row.token_id == token]
    if not tokens:
        raise ProblemError("not-found", f"token {token!r} does not exist")
    return TokenInfo(**_shown(tokens[0]))


@routes.route("DELETE", "/v1/tokens/{token}", ADMIN, status=204)
def revoke_token(call: Here, token: TokenId) -> Answer:
    """Make a token worth nothing from now on."""
    call.backend.ledger.revoke_token(token)
    return Answer(None, 204)


def _shown(row: TokenRow) -> dict[str, Any]:
    return {
        "token_id": row.token_id,
        "name": row.name,
        "scopes": list(row.scopes),
        "created_at": row.created,
        "expires_at": row.expires,
        "revoked_at": row.revoked,
    }
