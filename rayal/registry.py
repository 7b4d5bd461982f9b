"""Three tables of names: strategies, learners, networks.

A table imports the package that fills it when it is first asked, so that ``import rayal`` stays
light. Installed packages add strategies by the entry point group ``rayal.strategies``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from rayal.errors import UnknownNameError, nearest

T = TypeVar("T")


class Table(Generic[T]):
    """The names of one kind, each with its class or function.

    Args:
        kind: the noun used in messages.
        package: the package whose import registers the built-in names.
        group: entry point group of further names; each entry point is called without arguments.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._group = group
        self._rows: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a class or factory under ``name``."""

        def enter(row: T) -> T:
            if self._rows.setdefault(name, row) is not row:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            return row

        return enter

    def add(self, name: str, row: T) -> T:
        """Enter a row under ``name`` and return it."""
        return self.register(name)(row)

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._rows:
            raise UnknownNameError(
                f"{self.kind} {name!r} does not exist; {nearest(name, self._rows)}"
            )
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._rows))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._rows

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        importlib.import_module(self._package)
        for point in entry_points(group=self._group) if self._group else ():
            point.load()()


def hashed_name(learner: Any, of: Any = None) -> list[str]:
    """Return a learner's name for the hashes of its models: without the module, which may move.

    A class whose models are older says itself what their hashes hold: ``hashed_as``. Others go by
    their registered name, or, where they are a part of another learner, by its name and their own.

    Args:
        learner: what trains.
        of: the learner that it is a part of, as a pre-training is.
    """
    kind = type(learner)
    if "hashed_as" in vars(kind):  # not that of a parent
        return list(kind.hashed_as)
    for name in learners:
        if learners[name] is kind:
            return [name]
    return [*(() if of is None else hashed_name(of)), kind.__qualname__]


strategies: Table[Any] = Table("strategy", "rayal.strategies", "rayal.strategies")
learners: Table[Any] = Table("learner", "rayal.strategies")  # a paper's own stands beside its rule
networks: Table[Any] = Table("network", "rayal.models")
