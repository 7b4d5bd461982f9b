"""Projects changed over HTTP: first the change is checked, which may take long, then written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rayal.errors import ConflictError, PreconditionError
from rayal.labels import ClassLabel, NumberLabel
from rayal.ledger import Ledger, ProjectRow
from rayal.pool.reader import Pool
from rayal.service.bodies import ProjectBody, merged, parsed
from rayal.service.creation import check_fit, settings_of, spec_of

_FIXED = ("name", "pool")
_RESTS = ("labels_per_item", "agreement", "max_labels", "tolerance")  # training sets rest on them
_TASK_ONCE_TRAINED = ("size", "channels", "length", "vocabulary", "tokenizer", "lowercase")
_FIXED_ONCE_TRAINED = ("model", "learner", "initial", "seeds", "scan")


def checked_patch(
    ledger: Ledger, project: str, body: Mapping[str, Any], *, version: int
) -> Callable[[], ProjectRow]:
    """Check a merge patch (RFC 7396) of a project's settings, and return what writes it.

    The check loads torch and builds the network: no transaction may be open while it lasts, since
    annotators would wait for it. Writing is short. It looks again at what may have changed: the
    settings, by their version, and whether a first round has begun.

    The strategy, batch, rounds, labeling and when rounds begin may change at any time, and classes
    may be added behind the others, and bounds of a number widened; network, learner, first choice,
    seeds, scan and tokeniser only before the first round.

    Args:
        ledger: the storage root's ledger.
        project: its name.
        body: what changes.
        version: of the settings that the client has seen.

    Raises:
        SettingsError: something in the body is unknown, out of bounds or not registered.
        ConflictError: it may not change, or not any more; raised by writing too.
        PreconditionError: the settings have changed since; raised by writing too.
        NeedsError: the new strategy asks for what network and learner do not give.
    """
    row = ledger.project(project)
    if row.version != version:
        raise PreconditionError(
            f"project {project!r} has version {row.version}, not {version}; read it again, and "
            "repeat the change on what it is now"
        )
    old = parsed(row.settings["service"]["request"])
    request = merged(row.settings["service"]["request"], _unshortened(body, old))
    new = parsed(request)
    _refuse_fixed(old, new, trained=bool(ledger.rounds(project)))
    spec = spec_of(new)
    check_fit(Pool(ledger.root, ledger.snapshot(row.pool)), spec, new)
    settings = settings_of(new, spec, request)

    def write() -> ProjectRow:
        with ledger.transaction():
            _refuse_fixed(old, new, trained=bool(ledger.rounds(project)))
            ledger.update_project(project, settings, version=version)
            return ledger.project(project)

    return write


def _unshortened(body: Mapping[str, Any], old: ProjectBody) -> dict[str, Any]:
    """Return a patch in which a strategy or learner of another name stands for itself."""
    patch = dict(body)
    for name in ("strategy", "learner"):
        given = patch.get(name)
        if isinstance(given, str):
            given = {"name": given}
        was = getattr(old, name)
        if isinstance(given, Mapping) and given.get("name", was.name) != was.name:
            given = {**dict.fromkeys(was.params), **given}
        if given is not None:
            patch[name] = given
    return patch


def _refuse_fixed(old: ProjectBody, new: ProjectBody, *, trained: bool) -> None:
    fixed = [*_FIXED, *(_FIXED_ONCE_TRAINED if trained else ())]
    changed = [name for name in fixed if getattr(old, name) != getattr(new, name)]
    task = ("kind", "features", *(_TASK_ONCE_TRAINED if trained else ()))
    for section, names in (("task", task), ("labeling", _RESTS)):
        was, now = getattr(old, section), getattr(new, section)
        changed += [f"{section}.{n}" for n in names if getattr(was, n) != getattr(now, n)]
    changed += _narrowed(old.task.labels(), new.task.labels())
    if changed:
        raise ConflictError(
            f"{', '.join(changed)} cannot change any more; make another project, or leave it"
        )


def _narrowed(old: ClassLabel | NumberLabel, new: ClassLabel | NumberLabel) -> list[str]:
    """Return what of the labels changes so that an answer which was given would not stay one."""
    if isinstance(old, ClassLabel) and isinstance(new, ClassLabel):
        grown = new.classes[: len(old.classes)] == old.classes
        return [] if grown else ["task.classes (they may only be added to, at the end)"]
    if isinstance(old, NumberLabel) and isinstance(new, NumberLabel):
        lower, higher = new.low <= old.low, new.high >= old.high
        narrowed = [name for name, wide in (("low", lower), ("high", higher)) if not wide]
        return [f"task.{name} (the bounds may only be widened)" for name in narrowed]
    return ["task.target"]
