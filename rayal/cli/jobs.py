"""The settings of a run as the command line gives them, here or in a Ray job."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from rayal.bench.results import load_results, results_path
from rayal.cli.app import console
from rayal.errors import ResourceError, SettingsError
from rayal.planning.machine import Rates
from rayal.planning.runs import as_lines, plan_run
from rayal.planning.unread import WhatIf
from rayal.settings.run import Settings, load


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


def plan_settings(settings: Settings, given: WhatIf, rates: Path | None, *, as_json: bool) -> None:
    """Print what a run would need; raise ResourceError with the remedies where it does not fit."""
    made = plan_run(settings, given, measured_rates(rates))
    console.show(made.record if as_json else as_lines(made.record), as_json=as_json)
    if made.refusals:
        raise ResourceError("\n       ".join(made.refusals))


def measured_rates(path: Path | None) -> Rates:
    """Return what ``rayal bench`` measured of this machine; assumed rates where it never ran.

    Args:
        path: a file that the bench wrote; None for that of the last whole one.

    Raises:
        SettingsError: the file is missing, no output of the bench, or holds a rate of 0.
    """
    found = load_results(path)
    rates = {"gemm": found.gemm_gflops, "read": found.read_gbps, "log": found.log_gps}
    kernels = {"k-center": found.kcenter_of_floor, "k-means++": found.badge_of_floor}
    measured = {title: of for title, of in kernels.items() if of is not None}
    bad = {name: rate for name, rate in (rates | measured).items() if not 0 < rate < math.inf}
    if bad:
        raise SettingsError(
            f"{path or results_path()}: rates {bad} must be positive numbers; run `rayal bench` "
            "again"
        )
    return Rates(**{name: rate * 1e9 for name, rate in rates.items()}, kernels=measured)


def _in_ray_job() -> bool:
    return "runtime_resources" in Path.cwd().parts and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
