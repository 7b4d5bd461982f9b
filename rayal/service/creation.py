"""Projects made and changed over HTTP: only what is registered, only what is allowed by now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayal.errors import (
    ConflictError,
    LedgerError,
    PreconditionError,
    SettingsError,
    UnknownNameError,
    nearest,
)
from rayal.labels import ClassLabel, NumberLabel
from rayal.ledger import Ledger, ProjectRow
from rayal.pool.push import create_empty
from rayal.pool.reader import Pool
from rayal.pool.readers import texts
from rayal.service.bodies import PoolBody, ProjectBody, merged, parsed
from rayal.service.settings import ServiceOptions
from rayal.service.uris import Prefixes
from rayal.types import digest

if TYPE_CHECKING:
    from rayal.engine.spec import ProjectSpec

WEIGHTS = 500_000_000  # of a committee, that a client may ask for


def create_project(ledger: Ledger, body: Mapping[str, Any], *, prefixes: Prefixes) -> ProjectRow:
    """Make a project, or return it where it is there with the same settings.

    Without ``pool`` it gets a pool of its own, which ``push_items`` fills; with a path the items
    are ingested here. On a pool with items its first round is asked for, unless ``auto.start`` is
    false.

    Args:
        ledger: the storage root's ledger.
        body: as ``ProjectBody`` describes it.
        prefixes: below which paths may lie.

    Raises:
        SettingsError: something in the body is unknown, out of bounds or not registered.
        ConflictError: the name is taken, with other settings.
        NeedsError: the strategy asks for what network and learner do not give.
        BudgetError: more labels are asked for than the pool has items.
        PoolError: the path holds no pool.
        UriError: the path is not below the prefixes.
    """
    asked = parsed(body)
    request = asked.model_dump(mode="json", exclude_unset=True)
    known = _existing(ledger, asked)
    if known is not None:
        return known
    spec = spec_of(asked)
    pool = _pool(ledger, asked, prefixes)
    check_fit(pool, spec, asked)
    settings = settings_of(asked, spec, request)
    try:
        ledger.create_project(asked.name, pool.name, settings)
    except (SettingsError, LedgerError) as error:  # somebody was quicker, or it was deleted
        raise ConflictError(str(error)) from None
    if asked.pool is not None and asked.auto.start:
        ledger.add_job(asked.name, "round", {})
    return ledger.project(asked.name)


def spec_of(asked: ProjectBody) -> ProjectSpec:
    """Return what a project's rounds do; raises SettingsError for what is not registered."""
    from rayal.engine.spec import spec_from
    from rayal.registry import networks, strategies

    named = [(strategies, asked.strategy.name), (strategies, asked.initial.strategy)]
    if asked.model.network is not None:  # a run may name a factory as well
        named.insert(0, (networks, asked.model.network))
    for table, name in named:
        table[name]  # raises UnknownNameError, which offers the nearest name
    return spec_from(asked, asked.cell())


def settings_of(
    asked: ProjectBody, spec: ProjectSpec, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the ledger keeps: the spec, and what concerns annotators and the service."""
    labeling = asked.labeling.model_dump(exclude_none=True)
    labeling["lease_ttl"] = labeling.pop("lease_ttl_s")
    service = ServiceOptions(
        **asked.auto.model_dump(), pushed=asked.pool is None, request=dict(request)
    )
    return {**spec.to_json(), "labeling": labeling, "service": service.to_json()}


def _existing(ledger: Ledger, asked: ProjectBody) -> ProjectRow | None:
    """Return the project of a request that comes again."""
    if asked.name not in ledger.projects():
        return None
    row = ledger.project(asked.name)
    known = ServiceOptions.of(row).request
    if known is None or parsed(known) != asked:
        raise ConflictError(
            f"project {asked.name!r} exists with other settings; change them by PATCH, or choose "
            "another name"
        )
    return row


def _pool(ledger: Ledger, asked: ProjectBody, prefixes: Prefixes) -> Pool:
    if isinstance(asked.pool, str):
        if asked.pool not in ledger.pools():
            raise UnknownNameError(
                f"pool {asked.pool!r} does not exist; {nearest(asked.pool, ledger.pools())}"
            )
        return Pool(ledger.root, ledger.snapshot(asked.pool))
    if asked.pool is not None:
        return _ingested(ledger, asked.pool, prefixes)
    return _own_pool(ledger, asked)


def _ingested(ledger: Ledger, asked: PoolBody, prefixes: Prefixes) -> Pool:
    from rayal.pool.from_settings import pool_name, pool_of
    from rayal.settings.run import PoolSettings

    options = asked.model_dump(exclude_none=True)
    source = prefixes.check(options.pop("path"))
    if "test" in options:
        options["test"] = str(prefixes.check(options["test"]))
    settings = PoolSettings(source=str(source), **options)
    return pool_of(settings, Path(ledger.root), seed=0, name=pool_name(settings, 0))


def _own_pool(ledger: Ledger, asked: ProjectBody) -> Pool:
    """Return the project's own pool, without items yet."""
    payload = _payload(asked)
    number = ["number"] if asked.task.target == "number" else []
    name = f"{asked.name}-{digest([asked.name, payload, *number], 4)}"
    if name not in ledger.pools():
        create_empty(ledger, name, payload, asked.task.classes)
    return Pool(ledger.root, ledger.snapshot(name))


def _payload(asked: ProjectBody) -> dict[str, Any]:
    """Return what the bytes of a pushed row are."""
    task = asked.task
    if task.kind != "table" and task.features is not None:
        raise SettingsError(f"task.features: rows of kind {task.kind} have none; leave it out")
    if task.kind == "table":
        if task.features is None or len(set(task.features)) < len(task.features):
            raise SettingsError(
                "task.features: name the numbers of a row, each once, where items are pushed"
            )
        return {"kind": "table", "features": list(task.features)}
    if task.kind == "text":
        return dict(texts.PAYLOAD)
    if task.size is None:
        raise SettingsError(
            "task.size: give [H, W], to which images are resized, where items are pushed: no image "
            "is there yet to tell it"
        )
    return {"kind": "image", "encoding": "file"}


def check_fit(pool: Pool, spec: ProjectSpec, asked: ProjectBody) -> None:
    """Check that network, learner and strategy fit the pool; one that grows has items later."""
    from rayal.engine.checks import check_initial, check_needs, check_spec, refuse_large
    from rayal.engine.tasks import task_of

    refuse_large(spec, task_of(pool, spec.task), most=WEIGHTS)
    if asked.pool is None:
        check_initial(spec)
        check_needs(pool, spec)
    else:
        if asked.task.features is not None:
            raise SettingsError("task.features: the pool says what they are; leave it out")
        check_spec(pool, spec)


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
        body: the sections that change.
        version: the version of the settings that the client has seen.

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
    before = ServiceOptions.of(row).request or {}
    old = parsed(before)
    request = merged(before, _unshortened(body, old))
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
        section = patch.get(name)
        if isinstance(section, str):
            section = {"name": section}
        was = getattr(old, name)
        if isinstance(section, Mapping) and section.get("name", was.name) != was.name:
            section = {**dict.fromkeys(was.params), **section}
        if section is not None:
            patch[name] = section
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
