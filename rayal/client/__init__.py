"""A client of the HTTP service: one method per route, calls that may be repeated, plain answers.

```python
with rayal.Client("http://127.0.0.1:8000", token) as client:
    for lease in client.lease("birds", "ann", 10):
        client.label("birds", "ann", {lease["item"]["id"]: "sparrow"})
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

import httpx

from rayal.client.connection import ApiError as ApiError
from rayal.client.connection import Pages as Pages
from rayal.client.labeling import item_key as item_key
from rayal.client.labeling import of
from rayal.client.rounds import RoundCalls
from rayal.client.types import Picks, ProjectInfo, ProjectSummary, TokenInfo, TokenMade


class Client(RoundCalls):
    """A service's projects, labels, rounds, models, jobs and tokens.

    Calls are tried again until they are answered for good, and repeated without a second effect;
    what the service refuses is an ``ApiError``. One client may be shared by threads. Arguments are
    those of ``Connection``.
    """

    # -- projects ---------------------------------------------------------------------------------

    def projects(self, *, limit: int | None = None) -> Pages[ProjectSummary]:
        """Return the projects that the token may see, by name."""
        return cast(Pages[ProjectSummary], self.pages("/v1/projects", "projects", {"limit": limit}))

    def create_project(self, settings: Mapping[str, Any]) -> ProjectInfo:
        """Make a project, or return the existing one with the same settings.

        Args:
            settings: name, task, strategy and whatever else is not left at its default.

        Raises:
            ApiError: ``conflict`` where a project of that name has other settings.
        """
        return cast(ProjectInfo, self.call("POST", "/v1/projects", json=dict(settings)).json())

    def project(self, project: str) -> ProjectInfo:
        """Return a project with its settings and how it stands."""
        return cast(ProjectInfo, self.call("GET", of(project)).json())

    def change_project(
        self, project: str, changes: Mapping[str, Any], *, version: int
    ) -> ProjectInfo:
        """Change settings of a project that is still at a version.

        Args:
            project: its name.
            changes: the settings that become others.
            version: version from which the changes were made.

        Raises:
            ApiError: ``precondition-failed`` where somebody else changed it meanwhile.
        """
        headers = {"If-Match": f'"{version}"'}
        answer = self.call("PATCH", of(project), json=dict(changes), headers=headers)
        return cast(ProjectInfo, answer.json())

    def delete_project(self, project: str) -> None:
        """End a project; its name is not free again."""
        self.call("DELETE", of(project))

    # -- selection without a project --------------------------------------------------------------

    def query(
        self,
        strategy: str,
        columns: Mapping[str, Sequence[Any]],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        params: Mapping[str, Any] | None = None,
        labeled: Mapping[str, Sequence[Any]] | None = None,
        seed: int = 0,
    ) -> Picks:
        """Choose k rows of columns, as ``rayal.select`` does; at most 10,000 rows.

        Args:
            strategy: registered name.
            columns: name to rows, as lists.
            k: rows to choose.
            ids: ids of the rows; they break ties.
            params: hyperparameters of the strategy.
            labeled: the same columns of labeled rows, for strategies that look at them.
            seed: query seed.
        """
        body: dict[str, Any] = {
            "strategy": strategy,
            "columns": {name: list(rows) for name, rows in columns.items()},
            "k": k,
            "params": dict(params or {}),
            "seed": seed,
        }
        if ids is not None:
            body["ids"] = list(ids)
        if labeled is not None:
            body["labeled"] = {name: list(rows) for name, rows in labeled.items()}
        return cast(Picks, self.call("POST", "/v1/query", json=body).json())

    # -- tokens -----------------------------------------------------------------------------------

    def tokens(self) -> list[TokenInfo]:
        """Return the tokens in the order in which they were made, without their secrets."""
        return cast(list[TokenInfo], self.call("GET", "/v1/tokens").json()["tokens"])

    def create_token(
        self, name: str, scopes: Sequence[str], *, ttl: float | None = None
    ) -> TokenMade:
        """Make a token; the answer holds its text, which is shown this once.

        Args:
            name: purpose of the token.
            scopes: ``admin``, or ``project:NAME:write``, ``:label`` or ``:read``.
            ttl: seconds until it expires; None for never.
        """
        body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        if ttl is not None:
            body["ttl_s"] = ttl
        return cast(TokenMade, self.call("POST", "/v1/tokens", json=body).json())

    def token(self, token_id: str) -> TokenInfo:
        """Return a token's name, scopes and times."""
        return cast(TokenInfo, self.call("GET", _token(token_id)).json())

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token; it is refused from now on."""
        self.call("DELETE", _token(token_id))

    # -- the service ------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Return whether the service's storage and ledger answer now."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False


def _token(token_id: str) -> str:
    return f"/v1/tokens/{quote(token_id, safe='')}"
