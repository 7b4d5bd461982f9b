"""The rules of labeling in plain Python, computed anew from the whole history at each question.

Nothing of it is shared with the ledger: no counters are kept, no rows are updated but leases.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

Result = tuple[str, str, bool, int | None]  # item, status, late, seq
KEEP = 86400.0


class Rules(NamedTuple):
    """The settings of a project."""

    base: int
    agreement: str
    most: int
    skips: int
    ttl: float
    tolerance: float = 0.0


@dataclass
class Held:
    """A lease."""

    item: str
    who: str
    state: str
    granted: float
    expires: float


@dataclass
class Answer:
    """A row of the history, with the value that the item had after it."""

    item: str
    who: str
    value: Any
    status: str
    slot: int | None = None
    late: bool = False
    lease: str | None = None
    reason: str | None = None
    made: Any = None


class Refused(Exception):
    """The ledger should raise a LeaseError, and change nothing."""


@dataclass
class Model:
    """What a project should be."""

    rules: Rules
    now: float = 1000.0
    history: list[Answer] = field(default_factory=list)
    leases: dict[str, Held] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    kept: dict[str, tuple[float, str]] = field(default_factory=dict)  # key -> time, answer

    # -- what follows from the history -------------------------------------------------------

    def last(self, item: str) -> dict[str, tuple[int, Answer]]:
        """Return each annotator's last answer on an item, with its number."""
        return {a.who: (n, a) for n, a in enumerate(self.history, 1) if a.item == item}

    def standing(self, item: str) -> list[Answer]:
        return [a for _, a in self.last(item).values() if a.status not in ("skipped", "retracted")]

    def filled(self, item: str) -> int:
        return sum(a.slot is not None for a in self.standing(item))

    def verdict(self, item: str) -> tuple[int, list[Any], bool]:
        """Return the need, the value as a list of one or none, and whether labels disagree."""
        base = self.rules.base
        said = [_text(a.value) for a in self.standing(item)]
        slots = sorted((a.slot, _text(a.value)) for a in self.standing(item) if a.slot is not None)
        calm = max(base, len(slots))
        if self.rules.agreement == "first":
            return calm, [json.loads(text) for _, text in slots[:1]], False
        if len(slots) < (base if item in self.places else 1):
            return calm, [], False
        if self.rules.tolerance and "null" not in said:  # as it is where the item is forgotten
            value = self.near(said, slots)
            return (calm, value, False) if value else self.disagreement(len(slots))
        votes = Counter(said)
        agreed = {
            "majority": [v for v in votes if 2 * votes[v] > len(said)],
            "all": list(votes) if len(votes) == 1 else [],
        }[self.rules.agreement]
        agreed = [v for v in agreed if v in {text for _, text in slots}]
        if agreed:
            return calm, [json.loads(agreed[0])], False
        return self.disagreement(len(slots))

    def disagreement(self, slots: int) -> tuple[int, list[Any], bool]:
        return min(max(self.rules.base, slots + 1), self.rules.most), [], True

    def near(self, said: list[str], slots: list[tuple[int, str]]) -> list[Any]:
        """Return the number that enough numbers within the tolerance agree on, if there is one.

        Every choice of that many numbers is tried; all of them are whole hundredths.
        """
        whole = sorted(round(100 * float(text)) for text in said)
        filling = [round(100 * float(text)) for _, text in slots]
        fewest = len(whole) if self.rules.agreement == "all" else len(whole) // 2 + 1
        groups = []
        for size in range(fewest, len(whole) + 1):
            for some in combinations(whole, size):
                here = sorted(value for value in filling if value in some)
                entire = all(some.count(value) == whole.count(value) for value in some)
                wide = some[-1] - some[0]
                if here and entire and wide <= round(100 * self.rules.tolerance):
                    groups.append((-size, wide, some, here))
        if not groups:
            return []
        *_, here = min(groups)
        return [here[(len(here) - 1) // 2] / 100]

    def need(self, item: str) -> int:
        return self.verdict(item)[0]

    def hidden(self, item: str) -> bool:
        skips = [a for _, a in self.last(item).values() if a.status == "skipped"]
        return len(skips) >= self.rules.skips

    def active(self, item: str, moment: float | None = None) -> list[tuple[str, Held]]:
        return [
            (name, held)
            for name, held in self.leases.items()
            if held.item == item
            and held.state == "active"
            and (moment is None or held.expires > moment)
        ]

    def is_open(self, item: str) -> bool:
        return (
            item in self.places
            and item not in self.gone
            and not self.hidden(item)
            and self.filled(item) < self.need(item)
        )

    def has_free_slot(self, item: str, moment: float | None = None) -> bool:
        taken = self.filled(item) + len(self.active(item, moment))
        return self.is_open(item) and taken < self.need(item)

    def may_get(self, who: str, item: str) -> bool:
        answered = who in self.last(item) and self.last(item)[who][1].status != "retracted"
        holds = any(held.who == who for _, held in self.active(item))
        return self.has_free_slot(item) and not answered and not holds

    def state(self, item: str) -> str:
        need, _, conflict = self.verdict(item)
        filled, offered = self.filled(item), item in self.places
        if item in self.gone:
            return "forgotten"
        if conflict:
            return "conflict"
        if filled >= need or (filled and not offered):
            return "labeled"
        if self.active(item, self.now):
            return "leased"
        if self.hidden(item):
            return "skipped"
        return "offered" if offered else "unlabeled"

    def touched(self) -> list[str]:
        return sorted({*self.places, *self.gone, *(a.item for a in self.history)})

    def resolved(self, up_to: int) -> dict[str, Any]:
        made = {a.item: a.made for a in self.history[:up_to] if a.item not in self.gone}
        return {item: value[0] for item, value in sorted(made.items()) if value}

    # -- what annotators do --------------------------------------------------------------------

    def sweep(self) -> None:
        for held in self.leases.values():
            if held.state == "active" and held.expires <= self.now:
                held.state = "expired"

    def offers(self, who: str, count: int) -> tuple[list[str], list[str]]:
        """Return the leases that come back, and the items that are to be leased anew."""
        self.sweep()
        mine = [n for n, h in self.leases.items() if (h.who, h.state) == (who, "active")]
        mine = sorted(mine, key=lambda n: self.places[self.leases[n].item])[:count]
        wanted = [i for i in sorted(self.places, key=self.places.__getitem__)
                  if self.may_get(who, i)]  # fmt: skip
        return mine, wanted[: count - len(mine)]

    def extend(self, lease: str, who: str | None) -> float:
        held, before = self.leases[lease], {n: h.state for n, h in self.leases.items()}
        self.sweep()
        again = held.state == "expired" and self.may_get(held.who, held.item)
        if who not in (None, held.who) or not (held.state == "active" or again):
            for name, state in before.items():
                self.leases[name].state = state
            raise Refused
        held.state = "active"
        held.expires = max(held.expires, self.now + self.rules.ttl)
        return held.expires

    def give_back(self, lease: str) -> None:
        self.sweep()
        if self.leases[lease].state == "active":
            self.leases[lease].state = "returned"

    def label(self, who: str, item: str, value: Any, lease: str | None) -> Result:
        self.sweep()
        if self._wrong(who, item, lease) or value != value:
            return (item, "rejected", False, None)
        late, used = self._lease(who, item, lease)
        old = self.last(item).get(who)
        stands = old is not None and old[1].status not in ("skipped", "retracted")
        if old is not None and stands and _text(old[1].value) == _text(value):
            return (item, "duplicate", old[1].late, old[0])
        slot = old[1].slot if old is not None and stands else None
        if slot is None and self.filled(item) < self.need(item):
            slot = max((a.slot for a in self.standing(item) if a.slot), default=0) + 1
        status = "updated" if stands else "surplus" if slot is None else "accepted"
        self._answer(Answer(item, who, value, status, slot, late, used), "labeled")
        told = "conflict" if status == "accepted" and self.verdict(item)[2] else status
        return (item, told, late, len(self.history))

    def skip(self, who: str, item: str, reason: str | None, lease: str | None) -> Result:
        self.sweep()
        old = self.last(item).get(who)
        labeled = old is not None and old[1].status not in ("skipped", "retracted")
        if self._wrong(who, item, lease) or labeled:
            return (item, "rejected", False, None)
        if old is not None and old[1].status == "skipped":
            return (item, "duplicate", old[1].late, old[0])
        late, used = self._lease(who, item, lease)
        self._answer(Answer(item, who, None, "skipped", None, late, used, reason), "skipped")
        return (item, "skipped", late, len(self.history))

    def retract(self, who: str, item: str) -> Result:
        self.sweep()
        old = self.last(item).get(who)
        if old is None or item in self.gone:
            return (item, "rejected", False, None)
        if old[1].status == "retracted":
            return (item, "retracted", False, old[0])
        self._answer(Answer(item, who, None, "retracted"), "")
        return (item, "retracted", False, len(self.history))

    # -- what others do ------------------------------------------------------------------------

    def offer(self, round: int, items: list[str]) -> None:
        for rank, item in enumerate(items):
            if item not in self.gone:
                self.places[item] = (round, rank)

    def forget(self, item: str) -> None:
        self.sweep()
        self.gone.add(item)
        for _, held in self.active(item):
            held.state = "revoked"
        for answer in self.history:
            if answer.item == item:
                answer.value = answer.reason = None

    # -- within ---------------------------------------------------------------------------------

    def _wrong(self, who: str, item: str, lease: str | None) -> bool:
        if lease is not None:
            held = self.leases.get(lease)
            if held is None or (held.item, held.who) != (item, who):
                return True
        return item in self.gone

    def _lease(self, who: str, item: str, lease: str | None) -> tuple[bool, str | None]:
        """Return whether an answer is late, and under which lease it was given."""
        mine = [name for name, held in self.active(item) if held.who == who]
        if mine and (lease is None or self.leases[lease].state == "expired"):
            return False, mine[0]
        return lease is not None and self.leases[lease].state == "expired", lease

    def _answer(self, answer: Answer, ended: str) -> None:
        self.history.append(answer)
        for _, held in self.active(answer.item):
            if held.who == answer.who:
                held.state = ended
        need, value, _ = self.verdict(answer.item)
        answer.made = value
        held_by = sorted(self.active(answer.item), key=lambda x: (x[1].granted, x[0]))
        for _, held in held_by[need - self.filled(answer.item) :]:
            held.state = "revoked"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
