"""Signals: questions to a committee, and one batch of rows with its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rayal.errors import NeedsError, ScoreError
from rayal.models.base import TaskNet, no_embedding
from rayal.models.committee import Committee
from rayal.models.dropout import dropout_masks, evaluating
from rayal.types import Keys

T = TypeVar("T")
SIDE_BY_SIDE = 10  # dropout masks for which the stages behind the trunk run at once


class Forward:
    """One batch of rows, on which each quantity of a committee is computed at most once.

    Every network runs in eval mode and comes back as it was. Images run in channels-last memory.

    Args:
        committee: the trained members.
        x: rows under the eval transform, ``[N, …]``; the last of them may be padding.
        ids: ids of the valid rows, in order.
        keys: uint64 ``[N]``, id keys of all rows (any for padding).
        raw: the same rows as they were decoded, for signals that normalise for themselves.
        rows: valid rows; None for all.
        compile: run the stages before the first dropout module as compiled code.

    Raises:
        ValueError: lengths that do not fit each other.
    """

    def __init__(
        self,
        committee: Committee,
        x: Tensor,
        ids: Sequence[str],
        keys: Keys,
        *,
        raw: Tensor | None = None,
        rows: int | None = None,
        compile: bool = False,
    ) -> None:
        self.rows = len(x) if rows is None else rows
        if len(ids) != self.rows or len(keys) != len(x):
            raise ValueError(
                f"a batch of {len(x)} rows, {self.rows} of them valid, needs as many ids as valid "
                f"rows and a key for each row; got {len(ids)} ids, {len(keys)} keys"
            )
        self.committee, self.ids, self.keys, self.raw = committee, ids, keys, raw
        self.compile = compile
        self.x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        self._known: dict[tuple[Any, ...], Any] = {}

    def log_probs(self, member: int) -> Tensor:
        """Return a member's log-probabilities ``[N, C]``."""
        return self._once(("log_probs", member), lambda: log_softmax(self._answer(member)[0]))

    def moments(self, member: int) -> Tensor:
        """Return a member's mean, model and noise variance of the number, float64 ``[N, 3]``."""
        task, statistics = self.committee.task, self.committee.statistics
        return self._once(
            ("moments", member), lambda: task.moments(self._answer(member)[0], statistics)
        )

    def embedding(self, member: int) -> Tensor:
        """Return the input of a member's last linear layer, ``[N, D]``.

        Raises:
            NeedsError: the network does not end in a linear layer.
        """
        embedding = self._answer(member)[1]
        if embedding is None:
            raise no_embedding(self.committee.net(member))
        return embedding

    def passes(self, member: int, count: int) -> Iterator[Tensor]:
        """Yield log-probabilities ``[P, N, C]`` under ``count`` dropout masks, some at a time.

        What stands before the first dropout module runs once; where its output is flat, the rest
        runs for several masks at once. Passes are not kept.

        Raises:
            NeedsError: the network has no dropout module.
        """
        net, trunk = self.committee.net(member), self._trunk(member)
        seed, round, start = self.committee.seed, self.committee.round, self.committee.trunk(member)
        most = SIDE_BY_SIDE if start and trunk.ndim == 2 else 1
        for first in range(0, count, most):
            n = min(most, count - first)
            x = trunk.expand(n, *trunk.shape).flatten(0, 1).clone()  # a stage may work in place
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            keys = {"seed": seed, "round": round, "member": member, "pass_": first}
            with dropout_masks(net, **keys, passes=n):
                logits = net.run(x, start)  # masks are hooks: not compiled
            yield log_softmax(logits).view(n, len(trunk), -1)

    def view(self, view: int, member: int) -> Tensor:
        """Return a member's log-probabilities ``[N, C]`` of an augmented view."""
        x = self._once(("view", view), lambda: self._view(view))
        net = self.committee.net(member)
        with evaluating(net):
            return log_softmax(net(as_weights(x, net).clone()))

    def extras(self) -> Mapping[str, Tensor]:
        """Return the learner's own columns ``[N, …]``, of member 0."""
        return self._once(("extras",), lambda: extras_of(self.committee, self.x))

    def _answer(self, member: int) -> tuple[Tensor, Tensor | None]:
        def answer() -> tuple[Tensor, Tensor | None]:
            net = self.committee.net(member)
            trunk = self._trunk(member)
            with evaluating(net):
                start = self.committee.trunk(member)
                if not self._compiles:
                    return net.answer(_own(trunk, net), start)
                embedding = self._run(member, trunk, start, -1)
                return net.linked(net.head(embedding)), embedding

        return self._once(("answer", member), answer)

    def _trunk(self, member: int) -> Tensor:
        """Return the output of the stages before the first dropout module, ``[N, …]``."""

        def trunk() -> Tensor:
            net = self.committee.net(member)
            with evaluating(net):
                x = _own(as_weights(self.x, net), net)
                return self._run(member, x, 0, self.committee.trunk(member))

        return self._once(("trunk", member), trunk)

    @property
    def _compiles(self) -> bool:
        return self.compile and not torch.is_grad_enabled()

    def _run(self, member: int, x: Tensor, start: int, stop: int | None) -> Tensor:
        net = self.committee.net(member)
        first, last, _ = slice(start, stop).indices(len(net.stages))
        if not self._compiles or first == last:
            return net.run(x, start, stop)
        return self.committee.stages(member, start, stop)(x)

    def _view(self, view: int) -> Tensor:
        rows = self.committee.task.view(self.x, self.keys, seed=self.committee.seed, view=view)
        return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        # tensors made in inference mode have no gradients, so the mode is part of the key
        key = (*key, torch.is_grad_enabled())
        if key not in self._known:
            self._known[key] = make()
        known: T = self._known[key]
        return known


@dataclass(frozen=True)
class Signal(ABC):
    """A quantity per row, asked of a committee; frozen, the same object on every worker."""

    #: what a committee must predict so that it can be asked
    targets: ClassVar[tuple[str, ...]] = ("class",)
    #: whether ``compute`` needs gradients; one backward pass for each class but one
    differentiates: ClassVar[bool] = False
    #: whether a joint choice may hold its columns in bf16: they are compared by distances
    narrow: ClassVar[bool] = False
    #: cost of such a pass in forward passes, measured of kim_cnn: for estimates
    backward: ClassVar[float] = 1.4

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return the columns that it yields."""

    def check(self, committee: Committee) -> None:
        """Raise NeedsError, with a remedy, if the committee cannot give it; runs no pool row."""

    @abstractmethod
    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the columns of one batch, name to ``[N, …]``."""


def compute(signals: Sequence[Signal], f: Forward) -> dict[str, Tensor]:
    """Return the columns of all signals, name to ``[N, …]``, detached.

    Gradients are enabled for signals that differentiate, and off for all others.

    Raises:
        NeedsError: a signal does not yield its names, or two yield the same.
        ScoreError: a valid row is NaN, which the message names, or a column is not ``[N, …]``;
            -inf is a legal log-probability.
    """
    columns: dict[str, Tensor] = {}
    for signal in signals:
        with evaluating(*f.committee.nets), _gradients(signal.differentiates):
            own = {name: column.detach() for name, column in signal.compute(f).items()}
        doubled = sorted(set(own) & set(columns))
        if doubled or set(own) != set(signal.names()):
            raise NeedsError(
                f"{signal} yields columns {sorted(own)}; it must yield {sorted(signal.names())}, "
                f"and other signals yield {sorted(columns)} already; ask for each column once"
            )
        for name, column in own.items():
            _check_column(name, column, f)
        columns |= own
    return columns


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities ``[N, C]``, at least float32, also of logits under autocast."""
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def extras_of(committee: Committee, x: Tensor) -> Mapping[str, Tensor]:
    """Return the learner's columns of transformed rows ``[N, …]``, of member 0, in eval mode.

    Raises:
        NeedsError: the learner gives none.
    """
    if committee.extras is None:
        raise NeedsError(
            "the committee's learner has no columns of its own; train by a learner that gives them"
        )
    nets = committee.nets[0]
    with evaluating(nets):
        return committee.extras(nets, as_weights(x, nets))


def as_weights(x: Tensor, net: torch.nn.Module) -> Tensor:
    """Return rows in the type of a network's weights."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), None)
    return x if weight is None else x.to(weight.dtype)


def _own(x: Tensor, net: TaskNet) -> Tensor:
    """Return a copy that a network's stages may work in place on; a linear model has none."""
    return x if net.embeds_input else x.clone(memory_format=torch.preserve_format)


@contextmanager
def _gradients(enabled: bool) -> Iterator[None]:
    with torch.inference_mode(not enabled), torch.set_grad_enabled(enabled):
        yield


def _check_column(name: str, column: Tensor, f: Forward) -> None:
    if column.ndim == 0 or len(column) != len(f.x):
        raise ScoreError(
            f"column {name!r} has shape {list(column.shape)} for a batch of {len(f.x)} rows; a "
            "signal gives one entry per row"
        )
    bad = torch.isnan(column[: f.rows])
    if bad.any():
        item = f.ids[int(bad.nonzero()[0, 0])]
        raise ScoreError(
            f"column {name!r} of item {item!r} is NaN; look at its row, and at the model's loss"
        )
