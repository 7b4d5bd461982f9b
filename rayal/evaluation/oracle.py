"""A simulated annotator: it knows the hidden labels and has an annotator's rights only.

It leases and labels through the ledger like anybody else. The file of hidden labels is opened
here and nowhere else; training, scanning and selecting cannot see it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from rayal.engine.project import Project
from rayal.errors import LabelError, SettingsError
from rayal.labels import ClassLabel, Label, Labels
from rayal.pool.reader import Pool
from rayal.selection.draws import keyed_uniform
from rayal.types import Keys

_NOISY, _WRONG, _BALANCED = 101, 102, 103  # salts of independent draws


class Oracle:
    """Answers by the hidden labels of a pool.

    Args:
        pool: the pool whose labels file it reads.
        noise: share of items answered wrongly, the same ones each time: exactly round(noise * n)
            of the n items, each with a uniformly drawn other class. ``confidence`` answers each
            item wrongly with the probability that its annotators' confidence leaves; an item of
            which nobody said how sure he was is answered as it is labeled.
        cost: the cost of one label, in whatever unit the budget has.
        seed: seeds the noise.
        labels: the type of the labels; None takes the labels as they are known.

    Raises:
        LabelError: the pool has no known labels, or one that the task does not allow.
        SettingsError: the noise is not in [0, 1], no confidence is known of the pool's labels, or
            the pool has fewer than two classes.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        noise: float | Literal["confidence"] = 0.0,
        cost: float = 1.0,
        seed: int = 0,
        labels: Labels | None = None,
    ) -> None:
        file = pool.labels_file()
        if file is None:
            raise LabelError(
                f"pool {pool.name!r} came without labels, so no oracle can answer; ingest it with "
                "a label column or a labels file, or set `oracle: none` and label it yourself"
            )
        if not isinstance(noise, str) and not 0.0 <= noise <= 1.0:
            raise SettingsError(f"oracle noise is {noise}; it must lie in [0, 1]")
        with pa.OSFile(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._keys: Keys = table.column("key").to_numpy()
        order = np.argsort(self._keys)
        self._keys = self._keys[order]
        truth = np.asarray(table.column("label").to_pylist(), dtype=object)[order]
        self._rows = {i: r for r, i in enumerate(np.asarray(table.column("id"))[order].tolist())}
        self._classes = pool.classes or () if labels is None else _classes_of(labels)
        if labels is not None and not self._classes:
            for item, row in self._rows.items():
                truth[row] = labels.check(_number(truth[row]), item)
        self._truth = truth
        if isinstance(noise, str):
            doubt = 1.0 - _confidences(table, pool)[order]
            flipped = np.flatnonzero(keyed_uniform(self._keys, seed, _NOISY) < doubt)
        else:
            count = round(noise * len(truth))
            drawn = keyed_uniform(self._keys, seed, _NOISY)
            flipped = np.argsort(drawn, kind="stable")[:count]
        self._answers = _with_others(truth, self._keys, self._classes, flipped, seed)
        self.cost = cost

    def check(self, pool: Pool) -> None:
        """Raise LabelError if an item of the pool has no known label."""
        ids = [i for role in ("pool", "test") for i in pool.ids(role)]
        missing = [i for i in ids if i not in self._rows]
        if missing:
            raise LabelError(
                f"{len(missing)} of {len(ids)} items of pool {pool.name!r} have no known label, "
                f"the first is {missing[0]!r}; a simulation needs all of them: leave these items "
                "out, or set `oracle: none`"
            )

    def truth(self, ids: Sequence[str]) -> list[Label]:
        """Return the true labels of items: for the evaluation on test items."""
        return [self._truth[self._row(i)] for i in ids]

    def answer(self, item: str) -> Label:
        """Return what this annotator says of an item."""
        return self._answers[self._row(item)]

    def wrong(self, answers: Mapping[str, Label]) -> int:
        """Return how many answers, by item id, are not the true labels."""
        return sum(label != self._truth[self._row(item)] for item, label in answers.items())

    def balanced(self, pool: Pool, count: int, seed: int) -> list[str]:
        """Return ``count`` pool items, equally many of each class as far as they go.

        Args:
            pool: whose items to draw from.
            count: number of items; a remainder goes to the first classes.
            seed: seeds the draw.

        Raises:
            SettingsError: the labels are numbers.
        """
        if not self._classes:
            raise SettingsError(
                "initial.balanced wants equally many items of each class, and the labels are "
                "numbers; set it to false"
            )
        ids = np.array(list(pool.ids("pool")), dtype=object)
        rows = np.array([self._row(i) for i in ids])
        order = np.argsort(keyed_uniform(self._keys[rows], seed, _BALANCED))
        by_class: dict[Label, list[str]] = {c: [] for c in self._classes}
        for position in order.tolist():
            by_class[self._truth[rows[position]]].append(ids[position])
        turn = [items[depth] for depth in range(len(ids)) for items in by_class.values()
                if depth < len(items)]  # fmt: skip
        return turn[:count]

    def work(
        self,
        project: Project,
        *,
        annotator: str = "oracle",
        count: int = 100,
        ttl: float = 900.0,
        report: Callable[[int], None] | None = None,
    ) -> int:
        """Lease and label until nothing that is offered wants a label; return how many it gave.

        Items that another annotator holds are waited for: its lease ends by label or by expiry.
        """
        answered = 0
        while True:
            leases = project.lease(count, annotator=annotator, ttl=ttl)
            if not leases:
                if not project.waiting:
                    return answered
                time.sleep(0.05)
                continue
            leased = {lease.item: lease.lease for lease in leases}
            results = project.tell(
                {item: self.answer(item) for item in leased}, annotator=annotator, leases=leased
            )
            answered += sum(r.status == "accepted" for r in results)
            if report is not None:
                report(answered)

    def _row(self, item: str) -> int:
        if item not in self._rows:
            raise LabelError(f"item {item!r} has no known label; `oracle: none` hands it to people")
        return self._rows[item]


def _confidences(table: pa.Table, pool: Pool) -> Any:
    """Return how sure annotators were, ``[N]``; 1 where nobody says."""
    if "confidence" not in table.column_names:
        raise SettingsError(
            f"oracle noise is 'confidence', and of no label of pool {pool.name!r} it is known how "
            "sure its annotators were; name the column that says so (pool: {confidence: COLUMN}) "
            "in a new storage, or give the noise as a share"
        )
    return table.column("confidence").fill_null(1.0).to_numpy()


def _with_others(truth: Any, keys: Keys, classes: Sequence[str], flipped: Any, seed: int) -> Any:
    """Return the answers: truth, with another class, drawn uniformly, at ``flipped`` rows."""
    if not len(flipped):
        return truth
    if len(classes) < 2:
        raise SettingsError(
            f"oracle.noise gives some answers another class, and there are {len(classes)} classes; "
            "it needs two, so set it to 0"
        )
    answers = truth.copy()
    step = keyed_uniform(keys[flipped], seed, _WRONG) * (len(classes) - 1)
    for row, by in zip(flipped.tolist(), step.astype(int).tolist(), strict=True):
        answers[row] = classes[(classes.index(truth[row]) + 1 + by) % len(classes)]
    return answers


def _classes_of(labels: Labels) -> tuple[str, ...]:
    return labels.classes if isinstance(labels, ClassLabel) else ()


def _number(label: Label) -> Label:
    """Return the number that a known label is, which a file holds as text."""
    try:
        return float(label)
    except ValueError:
        return label
