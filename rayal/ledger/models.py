"""Versions of a project's model, and the suggestions of the active one for offered items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from rayal.errors import LedgerError, UnknownNameError, nearest
from rayal.ledger.columns import plain
from rayal.ledger.records import ModelRow, Suggestion
from rayal.ledger.schema import items, models, suggestions
from rayal.ledger.store import Row, Store, Transaction, chunks


def version_name(round: int, model: str) -> str:
    """Return the name of the model that a round made: ``r0003-9f2c``."""
    return f"r{round:04d}-{model[:4]}"


class Models(Store):
    """The part of the ledger that keeps model versions and their suggestions."""

    def commit_model(
        self,
        project: str,
        version: str,
        round: int,
        model: str,
        info: Mapping[str, Any],
        *,
        now: float | None = None,
    ) -> ModelRow:
        """Record a version and make it the active one; a second call changes nothing.

        Args:
            project: its name.
            version: its name, never used again (``version_name``).
            round: the round that trained it.
            model: hash of the committee.
            info: facts about it: metrics, number of labels, ….
            now: seconds since the epoch; None takes the ledger's clock.

        Raises:
            LedgerError: the version is another model's.
        """
        with self._write("model", project, now) as tx:
            known = {row["version"]: row for row in _versions(tx.conn, project)}
            if version not in known:
                row = {
                    "project": project,
                    "version": version,
                    "round": round,
                    "model": model,
                    "info": plain(dict(info), f"info of model {version!r}"),
                    "created": tx.time,
                    "active": False,
                }
                tx.insert(models, [row])
                _activate(tx, project, version)
                return ModelRow(**{**row, "active": True})
            if (known[version]["model"], known[version]["round"]) != (model, round):
                raise LedgerError(
                    f"version {version!r} of project {project!r} is model "
                    f"{known[version]['model']} of round {known[version]['round']}, now {model} "
                    f"of round {round}; versions never change, give another name"
                )
            return ModelRow(**known[version])

    def models(self, project: str) -> list[ModelRow]:
        """Return the versions, the oldest first."""
        with self._read(project) as conn:
            return [ModelRow(**row) for row in _versions(conn, project)]

    def versioned(self, hashes: Sequence[str]) -> set[str]:
        """Return those of these models that a version of any project stands for."""
        versioned: set[str] = set()
        with self._read() as conn:
            for some in chunks(sorted(set(hashes))):
                query = select(models.c.model).where(models.c.model.in_(some))
                versioned |= set(conn.scalars(query))
        return versioned

    def activate_model(self, project: str, version: str, *, now: float | None = None) -> ModelRow:
        """Make a version the active one, and return it.

        Raises:
            UnknownNameError: there is no such version.
        """
        with self._write("activate", project, now) as tx:
            known = _known(tx.conn, project, version)
            _activate(tx, project, version)
            return ModelRow(**{**known, "active": True})

    def commit_suggestions(
        self,
        project: str,
        version: str,
        said: Sequence[tuple[str, Any, Any]],
        *,
        now: float | None = None,
    ) -> None:
        """Record a version's suggestions for items; they replace its earlier ones.

        Args:
            project: its name.
            version: the model's version.
            said: item id and label of each, and the probabilities of its classes, or of a number
                an object with ``mean`` and ``variance``; forgotten items are left out.
            now: seconds since the epoch; None takes the ledger's clock.

        Raises:
            UnknownNameError: there is no such version.
        """
        rows = {
            item: {
                "project": project,
                "version": version,
                "item": item,
                "label": plain(label, f"the suggested label of item {item!r}"),
                "probs": plain(probs, f"the probabilities of item {item!r}"),
            }
            for item, label, probs in said
        }
        with self._write("suggestions", project, now) as tx:
            _known(tx.conn, project, version)
            known = set()
            gone = (items.c.project == project) & items.c.forgotten.is_(True)
            of_version = (suggestions.c.project == project) & (suggestions.c.version == version)
            for some in chunks(sorted(rows)):
                current = suggestions.select().where(of_version, suggestions.c.item.in_(some))
                known |= {row["item"] for row in tx.conn.execute(current).mappings()}
                dead = items.select().where(gone, items.c.item.in_(some))
                for row in tx.conn.execute(dead).mappings():
                    rows.pop(row["item"], None)
            tx.insert(suggestions, [row for item, row in rows.items() if item not in known])
            tx.update(suggestions, [row for item, row in rows.items() if item in known])

    def suggestions(self, project: str, wanted: Sequence[str]) -> dict[str, Suggestion]:
        """Return the active version's suggestions for those items for which it has one."""
        by_item: dict[str, Suggestion] = {}
        with self._read(project) as conn:
            version = next((r["version"] for r in _versions(conn, project) if r["active"]), None)
            if version is None:
                return by_item
            of_version = (suggestions.c.project == project) & (suggestions.c.version == version)
            for some in chunks(sorted(set(wanted))):
                query = suggestions.select().where(of_version, suggestions.c.item.in_(some))
                for row in conn.execute(query).mappings():
                    by_item[row["item"]] = Suggestion(row["label"], row["probs"], version)
        return by_item


def _versions(conn: Connection, project: str) -> list[dict[str, Any]]:
    query = models.select().where(models.c.project == project)
    rows = conn.execute(
        query.order_by(models.c["round"], models.c.created, models.c.version)
    ).mappings()
    return [dict(row) for row in rows]


def _known(conn: Connection, project: str, version: str) -> Row:
    known = {row["version"]: row for row in _versions(conn, project)}
    if version not in known:
        raise UnknownNameError(
            f"model {version!r} of project {project!r} does not exist; {nearest(version, known)}"
        )
    return known[version]


def _activate(tx: Transaction, project: str, version: str) -> None:
    """Make a version the only active one; what is so already is left as it is."""
    changed = [r for r in _versions(tx.conn, project) if r["active"] != (r["version"] == version)]
    key = {"project": project}
    tx.update(
        models, [{**key, "version": r["version"], "active": not r["active"]} for r in changed]
    )
