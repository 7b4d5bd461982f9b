"""Options of a job's process, and how its work tells what it has done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rayal.service.content import ContentLimits
from rayal.service.uris import Prefixes


@dataclass(frozen=True)
class WorkOptions:
    """Resources that a job may use.

    Args:
        executor: where rounds work: local (this process) | ray.
        address: the address of the Ray cluster; None for one of its own.
        prefixes: below which uris may lie.
        limits: the largest images and texts that are taken.
        parent: the process with which this one is to end; None for no one.
    """

    executor: str = "local"
    address: str | None = None
    prefixes: Prefixes = field(default_factory=Prefixes)
    limits: ContentLimits = field(default_factory=ContentLimits)
    parent: int | None = None

    def to_json(self) -> str:
        """Return the options as text, for the command line of a child."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the options that ``to_json`` wrote."""
        values = json.loads(text)
        prefixes = values.pop("prefixes")
        lists = {name: tuple(prefixes[name]) for name in ("paths", "urls")}
        limits = ContentLimits(**values.pop("limits"))
        return cls(**values, prefixes=Prefixes(**{**prefixes, **lists}), limits=limits)


Tell = Callable[[Mapping[str, Any]], None]
