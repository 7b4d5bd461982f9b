"""The settings of a run as the command line gives them, here or in a Ray job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rayal import console
from rayal.config import Settings, load


def settings_of(
    config: Path, overrides: Sequence[str], executor: str | None, address: str | None
) -> Settings:
    """Read settings, with the executor of the command line, and a storage that outlives a job.

    A Ray job runs in a copy of the working folder, which goes with the cluster's session; a
    relative storage root is taken from the home folder of the head node there, and said.
    """
    given = [*overrides]
    given += [] if address is None else [f"ray.address={address}", "executor=ray"]
    given += [] if executor is None else [f"executor={executor}"]
    settings = load(config, given)
    if not _in_ray_job() or Path(settings.storage).is_absolute():
        return settings
    home = Path.home() / settings.storage
    console.err.print(
        f"storage {settings.storage!r} is relative, and the working folder of a job is a copy: "
        f"taken as {home}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return load(config, [*given, f"storage={home}"])


def _in_ray_job() -> bool:
    return "runtime_resources" in Path.cwd().parts and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
