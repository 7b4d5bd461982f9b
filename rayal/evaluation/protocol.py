"""A run: strategies x seeds over one shared pool, every cell a project of one ledger.

The same command goes on where an earlier one stopped. All strategies of a seed share the initial
items, the initial weights and the batch order, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from rayal.engine.checks import check_spec
from rayal.engine.executor import Executor, RayOptions
from rayal.engine.project import Project
from rayal.engine.spec import spec_from
from rayal.engine.tasks import number_of
from rayal.errors import RayalError, SettingsError
from rayal.evaluation.curves import CurvePoint
from rayal.evaluation.founding import Founding
from rayal.evaluation.observer import Observer
from rayal.evaluation.oracle import Oracle
from rayal.evaluation.outcomes import point_of, seeds_text, tables_of
from rayal.evaluation.report import approximations, remarks, versions, write_outputs
from rayal.ledger import Ledger
from rayal.models.committee import home_of
from rayal.planning.feasible import check_beforehand, refuse
from rayal.planning.seconds import estimate
from rayal.pool.from_settings import pool_of
from rayal.pool.reader import Pool
from rayal.ray_executor.open import open_executor
from rayal.settings.run import Cell, Settings


def executor_of(
    settings: Settings, projects: Sequence[Project], note: Callable[[str], None]
) -> AbstractContextManager[Executor]:
    """Return the executor that the settings name, or for ``auto`` the faster one by an estimate.

    Args:
        settings: of the run.
        projects: its cells.
        note: told which one ``auto`` chose, and why.

    Raises:
        SettingsError: the device is not to be had in this process.
    """
    options = RayOptions(**settings.ray.model_dump())
    people = settings.oracle.name == "none"
    if all(project.finished or (people and project.waiting) for project in projects):
        return open_executor("local", options)  # nothing to do: no cluster is started for it
    name: str = settings.executor
    if name == "auto":
        forecast = estimate([(project.spec, project.pool) for project in projects], options)
        name = forecast.executor
        note(str(forecast))
    if name == "local":
        for section, device, shares in (
            ("scan", settings.scan.device, "ray.member_gpus and ray.scanner_gpus"),
            ("selection", settings.selection.device, "ray.member_gpus"),
        ):
            if home_of(device) != device:
                raise SettingsError(
                    f"{section}.device is {device!r}, and torch sees none in this process; set it "
                    f"to cpu, or use executor ray with {shares}"
                )
    return open_executor(
        name,
        options,
        threads=settings.model.threads_per_model,
        members=max(project.spec.committee_size for project in projects),
        shared=Path(settings.storage),
    )


@dataclass(frozen=True)
class Outcome:
    """The results of a run.

    Attributes:
        folder: where its outputs lie.
        points: every evaluated round.
        waiting: projects that want labels from people, with the number of items.
        approximate: label of each strategy that chose approximately, to how and with what loss.
        remarks: remarks on the figures, such as equal scores, or wrong labels.
    """

    folder: Path
    points: list[CurvePoint]
    waiting: dict[str, int] = field(default_factory=dict)
    approximate: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def run(
    settings: Settings, *, out: Path | None = None, observer: Observer | None = None
) -> Outcome:
    """Run every cell, or go on where it stopped, and write the outputs after each.

    Args:
        settings: strategies, seeds, pool, model and budget.
        out: folder of the outputs; by default the storage root.
        observer: told what goes on.

    Raises:
        RayalError: for settings or data that do not fit; what this call made of a storage root
            without a ledger is removed again, unless another process has begun to use it.
    """
    observer = observer or Observer()
    root = Path(settings.storage)
    ledger, cells = _set_up(settings, root, observer)
    projects = [project for _, project in cells]
    with ledger, executor_of(settings, projects, observer.note) as executor:
        for project in projects:
            project.work_on(executor)
        return _run(settings, cells, out or root, observer)


def _run(
    settings: Settings, cells: Sequence[tuple[Cell, Project]], folder: Path, observer: Observer
) -> Outcome:
    """Run cell after cell, and write the outputs after each."""
    waiting: dict[str, int] = {}
    tables = [tables_of(project, cell, settings.oracle) for cell, project in cells]
    for index, (cell, project) in enumerate(cells):
        observer.cell(cell, index, len(cells))
        if settings.oracle.name == "hidden":
            _simulate(project, settings, cell, observer)
        else:
            waiting |= _live(project)
        tables[index] = tables_of(project, cell, settings.oracle)
        points, rounds, picks = (list(chain(*rows)) for rows in zip(*tables, strict=True))
        output: dict[str, Any] = {"points": points, "rounds": rounds, "picks": picks}
        write_outputs(folder, settings_yaml=settings.to_yaml(), versions=versions(), **output)
    return Outcome(folder, points, waiting, approximations(rounds), tuple(remarks(rounds)))


def project_name(cell: Cell) -> str:
    """Return a cell's project: the strategy's label and its seeds."""
    return f"{cell.label}-{seeds_text(cell.seeds)}"


def _set_up(
    settings: Settings, root: Path, observer: Observer
) -> tuple[Ledger, list[tuple[Cell, Project]]]:
    """Check everything that can be checked, ingest, and enter the projects."""
    if settings.oracle.name == "none" and settings.initial.balanced:
        raise SettingsError(
            "initial.balanced needs known labels, and with `oracle: none` people give them; set "
            "it to false"
        )
    cells = [c for c in settings.cells() if settings.oracle.name == "hidden" or _asked(settings, c)]
    specs = [spec_from(settings, cell) for cell in cells]
    check_beforehand(settings, cells, specs)
    founding, ledger = Founding.of(root), Ledger(root)  # open from here on: others see it in use
    try:
        pools = _ingested(settings, cells, ledger, observer)
        both = [
            (cell, spec, pools[cell.seeds.pool]) for cell, spec in zip(cells, specs, strict=True)
        ]
        for _, spec, pool in both:
            check_spec(pool, spec)
        refuse(settings, [(spec, pool) for _, spec, pool in both])
        return ledger, [
            (cell, Project.create(ledger, project_name(cell), pool, spec, report=observer.stage))
            for cell, spec, pool in both
        ]
    except RayalError:
        founding.undo(ledger)
        raise


def _ingested(
    settings: Settings, cells: Sequence[Cell], ledger: Ledger, observer: Observer
) -> dict[int, Pool]:
    """Return the pool of each pool seed, ingested where it is not there."""
    pools: dict[int, Pool] = {}
    for cell in cells:
        seed = cell.seeds.pool
        if seed in pools:
            continue
        pools[seed] = pool_of(
            settings.pool, ledger.root, seed=seed, progress=observer.pool, ledger=ledger
        )
        if settings.oracle.name == "hidden":
            _check_oracle(settings, pools[seed])
    return pools


def _check_oracle(settings: Settings, pool: Pool) -> None:
    """Check that an oracle knows all labels, and that the task allows them."""
    number = number_of(settings.task.model_dump(), pool.info.get("label_kind"))
    Oracle(pool, noise=settings.oracle.noise, labels=number).check(pool)
    if number is not None and settings.initial.balanced:
        raise SettingsError(
            "initial.balanced wants classes, and a number is predicted; set it to false"
        )


def _asked(settings: Settings, cell: Cell) -> bool:
    """Return whether a strategy was asked for; people do not label for a baseline unasked."""
    return cell.label in {s.shown for s in settings.strategies} or not settings.strategies


def _simulate(project: Project, settings: Settings, cell: Cell, observer: Observer) -> None:
    """Let an oracle label until the last round is evaluated."""
    oracle = Oracle(
        project.pool,
        noise=settings.oracle.noise,
        cost=settings.oracle.cost,
        seed=cell.seeds.pool,
        labels=project.task.labels if project.task.target == "number" else None,
    )
    initial = settings.initial
    chosen = None
    if initial.balanced:
        chosen = oracle.balanced(project.pool, initial.count, cell.seeds.pool)
    project.prepare(chosen)
    while not project.finished:
        oracle.work(project)
        summary = project.train(oracle.truth)
        observer.round(cell, point_of(cell, summary))
        warning = summary.outputs.get("scan", {}).get("warning")
        if warning is not None:
            observer.note(f"{project.name}, round {summary.round}: {warning}")


def _live(project: Project) -> dict[str, int]:
    """Go as far as the labels that came in allow; return what is still wanted."""
    project.prepare()
    while not project.waiting and not project.finished:
        project.train()
    open_items = len(project.ledger.open_items(project.name))
    return {project.name: open_items} if open_items else {}
