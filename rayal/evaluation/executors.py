"""Open the executor of a run: the one that its settings name, or that an estimate chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rayal.engine.executor import Executor, RayOptions
from rayal.engine.project import Project
from rayal.errors import SettingsError
from rayal.models.committee import home_of
from rayal.planning.seconds import estimate
from rayal.ray_executor.open import open_executor
from rayal.settings.run import Settings


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
