"""Annotators that lease, think and label over HTTP, and what they saw."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp  # parses answers in C: the annotators share the cores with the service

LATE = 30.0  # seconds that a call may take


@dataclass
class Seen:
    """What annotators saw of a service, added up.

    Attributes:
        statuses: answers by route and status; 0 where no answer came.
        refusals: what other answers said, by type of problem.
        seconds: what answers of 2xx took, by route.
        unexplained: answers of 429 and 503 without Retry-After.
        holders: item to the leases it was given under, by annotator.
        accepted: item to annotator and label_id, of answers with the status accepted.
        outcomes: answers to labels by their status.
        empty: answers without a lease.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unexplained: int = 0
    holders: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    accepted: dict[tuple[str, str], int] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    empty: int = 0

    def hold(self, annotator: str, lease: Mapping[str, Any]) -> None:
        """Note a lease."""
        held = self.holders.setdefault(lease["item"]["id"], {})
        held.setdefault(annotator, set()).add(lease["lease_id"])

    def doubled(self, labels_per_item: int) -> list[str]:
        """Return the items that more annotators held than they need, or one held twice.

        No lease expires within a run and none is given back, so an item that was held is either
        still held or labeled.
        """
        return [
            item
            for item, by in self.holders.items()
            if len(by) > labels_per_item or any(len(leases) > 1 for leases in by.values())
        ]


@dataclass(frozen=True)
class Load:
    """How annotators work.

    Args:
        url: of the service.
        project: its name.
        tokens: one for each annotator.
        think: seconds between a lease and its label.
        seconds: how long they work.
        prefix: of the annotators' names.
        value: the label that everybody gives.
    """

    url: str
    project: str
    tokens: Sequence[str]
    think: float
    seconds: float
    prefix: str = "annotator"
    value: str = "a"

    def run(self) -> tuple[Seen, float]:
        """Let all annotators work at once; return what they saw and the seconds it took."""
        return asyncio.run(self._run())

    async def _run(self) -> tuple[Seen, float]:
        seen = Seen()
        started = time.monotonic()
        end = started + self.seconds
        every, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=LATE)
        async with aiohttp.ClientSession(self.url, connector=every, timeout=patience) as http:
            people = [
                Annotator(http, f"{self.prefix}-{n}", token, seen)
                for n, token in enumerate(self.tokens)
            ]
            await asyncio.gather(*(self._annotate(one, end) for one in people))
        return seen, time.monotonic() - started

    async def _annotate(self, one: Annotator, end: float) -> None:
        await asyncio.sleep(random.uniform(0.0, min(2.0, self.seconds / 4)))  # not all at once
        while time.monotonic() < end:
            leases = await one.lease(self.project, end)
            await asyncio.sleep(self.think * random.uniform(0.5, 1.5))
            if leases:
                await one.label(self.project, leases, self.value)


@dataclass(frozen=True)
class Annotator:
    """One annotator.

    Args:
        http: carries its calls.
        name: its name.
        token: its own.
        seen: where it notes what it sees.
    """

    http: aiohttp.ClientSession
    name: str
    token: str
    seen: Seen

    async def lease(self, project: str, end: float) -> Sequence[Any]:
        """Hold the next item."""
        body: dict[str, Any] = {"annotator": self.name, "count": 1}
        answer = await self._tried("lease", f"/v1/projects/{project}/leases", body, end)
        leases: Sequence[Any] = answer["leases"] if answer else []
        if answer and not leases:
            self.seen.empty += 1
        for lease in leases:
            self.seen.hold(self.name, lease)
        return leases

    async def label(self, project: str, leases: Sequence[Any], value: str) -> None:
        """Label what is held; whoever holds something also says it, even when time is over."""
        path = f"/v1/projects/{project}/labels"
        told = [
            {
                "item": lease["item"]["id"],
                "label": value,
                "annotator": self.name,
                "lease_id": lease["lease_id"],
            }
            for lease in leases
        ]
        over = time.monotonic() + LATE
        answer = await self._tried("label", path, {"labels": told}, over)
        for result in answer["results"] if answer else []:
            self.seen.outcomes[result["status"]] += 1
            if result["status"] == "accepted":
                self.seen.accepted[result["item"], self.name] = result["label_id"]

    async def _tried(self, route: str, path: str, body: Any, end: float) -> Any:
        """Return the answer to one call, tried again with one key until time is over."""
        seen = self.seen
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Idempotency-Key": uuid.uuid4().hex,
        }
        while True:
            started = time.monotonic()
            try:
                async with self.http.post(path, json=body, headers=headers) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError):
                seen.statuses[route, 0] += 1
                pause = 1.0
            else:
                seen.statuses[route, answer.status] += 1
                if answer.ok:
                    seen.seconds[route].append(time.monotonic() - started)
                    return json.loads(text)
                asked = answer.headers.get("Retry-After")
                problem = "json" in answer.content_type
                seen.refusals[json.loads(text)["type"] if problem else text[:60]] += 1
                seen.unexplained += answer.status in (429, 503) and asked is None
                pause = float(asked or 1.0)
            if time.monotonic() + pause > end:
                return None
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else math.nan
