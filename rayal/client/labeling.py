"""Calls of an annotator's tool: push items, lease, label, skip, correct, read back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

import httpx

from rayal.client.connection import Connection, Pages, asked_pause
from rayal.client.types import (
    ItemInfo,
    LabelInfo,
    LabelOutcome,
    LeaseInfo,
    LeaseList,
    Pushed,
    Ranked,
    ResolvedLabel,
)

MOST_ROWS = 1000  # of one body of items or labels
MOST_BYTES = {"items": 6 << 20, "labels": 3 << 17}  # of one body; the service takes 10 MiB, 512 KiB


class LabelingCalls(Connection):
    """Items, leases and labels of a project."""

    # -- items ----------------------------------------------------------------------------------

    def push(self, project: str, items: Iterable[Mapping[str, Any]]) -> Pushed:
        """Add items; those that are there with the same content stay as they are.

        Args:
            project: its name.
            items: each with ``id`` and one of ``data`` (an encoded image, base64), ``uri``,
                ``text`` or ``features``, and ``role: test`` if it is only measured on; sent in
                bodies of a bounded size.

        Returns:
            The numbers of items created and unchanged, and the refused ones with reasons.
        """
        whole: Pushed = {"created": 0, "unchanged": 0, "conflicts": [], "rejected": []}
        for body in bodies("items", items):
            path = f"{of(project)}/items"
            answer = self.call("POST", path, content=body, headers=_JSON).json()
            whole["created"] += answer["created"]
            whole["unchanged"] += answer["unchanged"]
            whole["conflicts"] += answer["conflicts"]
            whole["rejected"] += answer["rejected"]
        return whole

    def put_item(self, project: str, item: Mapping[str, Any]) -> Pushed:
        """Add one item, or find it there with the same content."""
        path = f"{of(project)}/items/{item_key(item['id'])}"
        return cast(Pushed, self.call("PUT", path, json=dict(item)).json())

    def items(
        self, project: str, *, state: str | None = None, limit: int | None = None
    ) -> Pages[ItemInfo]:
        """Return the items that something happened to, by state where one is given.

        Args:
            project: its name.
            state: unlabeled, offered, leased, labeled, skipped or conflict.
            limit: rows of a page.
        """
        query = {"state": state, "limit": limit}
        return cast(Pages[ItemInfo], self.pages(f"{of(project)}/items", "items", query))

    def item(self, project: str, item: str) -> ItemInfo:
        """Return the known facts of an item."""
        path = f"{of(project)}/items/{item_key(item)}"
        return cast(ItemInfo, self.call("GET", path).json())

    def forget(self, project: str, item: str) -> None:
        """Purge what was said of an item, for privacy; it is never offered or trained on again."""
        self.call("DELETE", f"{of(project)}/items/{item_key(item)}")

    def content(self, project: str, item: str) -> bytes:
        """Return an item as its annotator sees it: an image file, a text, or a row as JSON."""
        return self.fetch(self.item(project, item)["content"])

    def fetch(self, content: str) -> bytes:
        """Return the content behind an item's signed path."""
        return self.call("GET", content).content

    def why(self, project: str, item: str) -> dict[str, Any]:
        """Return why an item was picked, or not: scores, ranks, models, seed, leases, labels."""
        answer = self.call("GET", f"{of(project)}/items/{item_key(item)}/why")
        return cast(dict[str, Any], answer.json())

    # -- leases -----------------------------------------------------------------------------------

    def ranked(self, project: str, *, count: int = 100) -> Pages[Ranked]:
        """Return the offered items in the order of their ranks; nothing is leased by that.

        Args:
            project: its name.
            count: rows of a page.
        """

        def fetch(cursor: str | None) -> tuple[list[Ranked], str | None]:
            body = {"count": count} | ({} if cursor is None else {"cursor": cursor})
            page = self.call("POST", f"{of(project)}/query", json=body).json()
            return page["items"], page.get("next")

        return Pages(fetch)

    def lease(
        self,
        project: str,
        annotator: str,
        count: int = 1,
        *,
        ttl: float | None = None,
        wait: float = 0.0,
    ) -> list[LeaseInfo]:
        """Lease the next offered items to an annotator, whose open leases come back first.

        Args:
            project: its name.
            annotator: annotator who gets the leases.
            count: most items to lease, at most 100.
            ttl: seconds until a lease expires; by default the project's.
            wait: seconds to go on asking while nothing is ready, as often as the service says;
                a project that is finished is not waited for.
        """
        end = time.monotonic() + wait
        while True:
            answer = self._leases(project, annotator, count, ttl)
            offered: LeaseList = answer.json()
            left = end - time.monotonic()
            if offered["leases"] or left <= 0.0 or offered.get("reason") == "finished":
                return offered["leases"]
            time.sleep(min(max(asked_pause(answer), 0.2), left))

    def lease_or_reason(
        self, project: str, annotator: str, count: int = 1, *, ttl: float | None = None
    ) -> LeaseList:
        """Hold items as ``lease`` does, or say why there are none."""
        return cast(LeaseList, self._leases(project, annotator, count, ttl).json())

    def _leases(
        self, project: str, annotator: str, count: int, ttl: float | None
    ) -> httpx.Response:
        body: dict[str, Any] = {"annotator": annotator, "count": count}
        if ttl is not None:
            body["ttl_s"] = ttl
        return self.call("POST", f"{of(project)}/leases", json=body)

    def extend(self, project: str, lease: str, ttl: float) -> LeaseInfo:
        """Extend a lease to a number of seconds from now.

        Raises:
            ApiError: ``lease-expired`` where the lease ended and another annotator has the item.
        """
        path = f"{of(project)}/leases/{quote(lease, safe='')}:extend"
        return cast(LeaseInfo, self.call("POST", path, json={"ttl_s": ttl}).json())

    def give_back(self, project: str, lease: str) -> None:
        """End a lease without a label; its item is offered again."""
        self.call("DELETE", f"{of(project)}/leases/{quote(lease, safe='')}")

    # -- labels -----------------------------------------------------------------------------------

    def label(
        self,
        project: str,
        annotator: str,
        labels: Mapping[str, Any],
        *,
        leases: Mapping[str, str] | None = None,
    ) -> list[LabelOutcome]:
        """Record labels by item id; one that does not fit is rejected, and the others are kept.

        Args:
            project: its name.
            annotator: annotator who gives the labels.
            labels: item id to label.
            leases: item id to the lease under which it was labeled, where there is one.
        """
        lease_ids = leases or {}
        rows = (_entry(i, annotator, lease_ids.get(i), label=value) for i, value in labels.items())
        return self.label_rows(project, rows)

    def label_rows(self, project: str, rows: Iterable[Mapping[str, Any]]) -> list[LabelOutcome]:
        """Record labels and skips of several annotators, as the route ``labels`` takes them.

        Args:
            project: its name.
            rows: each with item, annotator, and label or skip; sent in bodies of a bounded size.
        """
        results: list[LabelOutcome] = []
        for body in bodies("labels", rows):
            answer = self.call("POST", f"{of(project)}/labels", content=body, headers=_JSON)
            results += answer.json()["results"]
        return results

    def skip(
        self,
        project: str,
        annotator: str,
        item: str,
        *,
        reason: str | None = None,
        lease: str | None = None,
    ) -> LabelOutcome:
        """Skip an item for an annotator, to whom it is not shown again."""
        more: dict[str, Any] = {"skip": True}
        if reason is not None:
            more["reason"] = reason
        return self.label_rows(project, [_entry(item, annotator, lease, **more)])[0]

    def relabel(self, project: str, annotator: str, item: str, label: Any) -> LabelOutcome:
        """Set an annotator's label of an item; what it said before stays in the history."""
        answer = self.call("PUT", _label_path(project, annotator, item), json={"label": label})
        return cast(LabelOutcome, answer.json())

    def retract(self, project: str, annotator: str, item: str) -> None:
        """Take an annotator's label of an item back; the history keeps it."""
        self.call("DELETE", _label_path(project, annotator, item))

    def labels(
        self, project: str, *, since: int = 0, state: str | None = None, limit: int | None = None
    ) -> Pages[LabelInfo]:
        """Return the label history in the order in which it came.

        Args:
            project: its name.
            since: only rows after this label.
            state: only rows of this status.
            limit: rows of a page.
        """
        query = {"since": since or None, "state": state, "limit": limit}
        return cast(Pages[LabelInfo], self.pages(f"{of(project)}/labels", "labels", query))

    def resolved(self, project: str, *, limit: int | None = None) -> Pages[ResolvedLabel]:
        """Return the labels that training sees: one of each item, by the project's agreement."""
        query = {"view": "resolved", "limit": limit}
        return cast(Pages[ResolvedLabel], self.pages(f"{of(project)}/labels", "labels", query))


_JSON = {"Content-Type": "application/json"}


def of(project: str) -> str:
    """Return the path of a project."""
    return f"/v1/projects/{quote(project, safe='')}"


def item_key(item: str) -> str:
    """Return an item's key in URLs: the 64-bit hash of its id as 16 hexadecimal digits."""
    digest = hashlib.blake2b(item.encode(), digest_size=8).digest()
    return f"{int.from_bytes(digest, 'little'):016x}"


def bodies(member: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Yield bodies that hold the rows under a member, none too many and none too large."""
    texts: list[bytes] = []
    size = 0
    for row in rows:
        text = json.dumps(dict(row)).encode()
        if texts and (len(texts) == MOST_ROWS or size + len(text) > MOST_BYTES[member]):
            yield _body(member, texts)
            texts, size = [], 0
        texts.append(text)
        size += len(text) + 1
    if texts:
        yield _body(member, texts)


def _body(member: str, texts: Sequence[bytes]) -> bytes:
    return b'{"%s":[%s]}' % (member.encode(), b",".join(texts))


def _entry(item: str, annotator: str, lease: str | None, **more: Any) -> dict[str, Any]:
    reference = {} if lease is None else {"lease_id": lease}
    return {"item": item, "annotator": annotator, **reference, **more}


def _label_path(project: str, annotator: str, item: str) -> str:
    return f"{of(project)}/labels/{item_key(item)}/{quote(annotator, safe='')}"
