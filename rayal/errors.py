"""One family of errors; every child is also a builtin, so callers may catch either.

A message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RayalError(Exception):
    """Base of every error that rayal raises on purpose."""


class SettingsError(RayalError, ValueError):
    """A setting is unknown, out of bounds, or does not fit another one."""


class UnknownNameError(SettingsError):
    """A strategy, learner, network, project or item of that name does not exist."""


class ConflictError(SettingsError):
    """A request that contradicts stored data: a name is taken, a setting is fixed by now."""


class UriError(RayalError, ValueError):
    """A path or URL is not allowed, or cannot be read within its limits."""


class PoolError(RayalError, ValueError):
    """A source cannot be read, or its rows do not form a pool."""


class NeedsError(RayalError, TypeError):
    """A strategy asks for something that the model, learner or data do not give."""


class ScoreError(RayalError, ArithmeticError):
    """A signal or a score is not a number; the message names the item."""


class LabelError(RayalError, ValueError):
    """A label does not fit the task."""


class BudgetError(RayalError, ValueError):
    """More labels are asked for than the pool has items."""


class ResourceError(RayalError, RuntimeError):
    """A run needs more memory than there is; the message names what would do."""


class LedgerError(RayalError, RuntimeError):
    """The ledger refuses: a wrong version, a missing row, a second writer."""


class LeaseError(LedgerError):
    """A lease is over, and its slot is taken."""


class UnknownLeaseError(LeaseError):
    """No lease of that name is in the project, or it is another annotator's."""


class PreconditionError(LedgerError):
    """The state to be changed is not the one that the caller had seen."""


class IdempotencyError(RayalError, ValueError):
    """An idempotency key came again with another request."""


class BusyError(LedgerError):
    """Another writer held the ledger for too long; nothing was written, and it may be repeated."""


class StorageError(RayalError, OSError):
    """A committed file is missing, damaged or of another format version."""


class ClusterError(RayalError, RuntimeError):
    """A Ray cluster cannot be reached, or has not what the work asks for."""


class WorkerError(RayalError, RuntimeError):
    """Workers were lost more often than the settings allow."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the nearest known name, and lists all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"
