"""``rayal serve``: everything made on first start, the service up, and a clean end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayal.cli import console
from rayal.engine.executor import RayOptions
from rayal.errors import SettingsError
from rayal.ledger import Ledger
from rayal.pool.ingest import ingest
from rayal.pool.readers.builtin import builtin
from rayal.ray_executor.cluster import session
from rayal.service.auth import hash_of, new_token
from rayal.service.settings import ServiceSettings, service_settings

DEMO = "demo"
# Ray gives its workers the niceness 15, so that whatever else runs on the host comes before the
# answers of the service; the processes that train are niced by the service itself.
_PRIORITY = {"RAY_worker_niceness": "0"}
_DEMO_BODY: Mapping[str, Any] = {
    "name": DEMO,
    "pool": "digits",
    "task": {"kind": "image", "classes": [str(digit) for digit in range(10)]},
    "model": {"network": "mlp", "params": {"widths": [128, 128], "dropout": 0.2}},
    "learner": {"name": "supervised", "steps": 150, "batch": 32},
    "strategy": "margin",
    "initial": {"count": 20},
    "batch_size": 10,
}


def serve_settings(
    config: Path | None,
    storage: Path | None,
    database: str | None,
    overrides: Mapping[str, Any],
    *,
    applied: bool = True,
) -> tuple[ServiceSettings, dict[str, Any]]:
    """Return the service's settings and where it listens, from a file and the command line.

    Args:
        config: a Serve configuration; None for the defaults.
        storage: storage root, which the file's is overridden by.
        database: PostgreSQL URL, which the file's is overridden by.
        overrides: host and port, where they are given.
        applied: whether ``run_service`` gets them; false checks a file for ``serve run`` too.
    """
    where: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 60.0}
    config_values: dict[str, Any] = {}
    if config is not None:
        from rayal.service.deployment import read_config

        settings, http = read_config(config, applied=applied)
        where |= http
        config_values = settings.model_dump(mode="json")
    if storage is not None:
        config_values["storage"] = str(storage.absolute())
    if database is not None:
        config_values["database"] = database
    if "storage" not in config_values:
        raise SettingsError("no storage is given; say --storage DIR, or give a configuration file")
    return service_settings(config_values), where | dict(overrides)


def run_service(
    settings: ServiceSettings,
    where: Mapping[str, Any],
    *,
    address: str,
    demo: bool,
    token_file: Path | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight end first.

    Args:
        settings: the settings of the service.
        where: Serve's HTTP options, host and port among them.
        address: Ray cluster: local (one for this service), auto, or HOST:PORT.
        demo: make a project on scikit-learn's digits to try.
        token_file: where the first token goes, readable by the owner alone; None: the terminal.
    """
    root = Path(settings.storage)
    with Ledger(root, database=settings.database) as ledger:
        first_token(ledger, token_file)
        if demo:
            make_demo(ledger)
    with session(RayOptions(address=address), _PRIORITY):
        from rayal.service.deployment import start, stop

        start(settings, where)
        stopped = _until_signal()  # from here on: Ray's own handler would write its stack
        try:
            _greet(f"http://{where['host']}:{where['port']}", demo=demo)
            stopped.wait()
        finally:
            console.err.print("ending: requests in flight are answered first")
            stop()


def first_token(ledger: Ledger, file: Path | None) -> None:
    """Make the administrator's token of a ledger that has none, and tell it before it counts.

    Only its hash is kept, so it is told whatever becomes of the service then.
    """
    if ledger.tokens():
        return
    token = new_token()
    if file is None:
        _say(f"the administrator's token, shown this once: {token}")
    else:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(f"{token}\n")
        _say(f"the administrator's token is in {file}")
    ledger.add_token("first", ("admin",), hash_of(token))


def make_demo(ledger: Ledger) -> None:
    """Make the demonstration's pool and project, once."""
    from rayal.service.creation import create_project
    from rayal.service.uris import Prefixes

    if "digits" not in ledger.pools():
        ingest(ledger.root, "digits", builtin("digits"))
    if DEMO not in ledger.projects():
        create_project(ledger, dict(_DEMO_BODY), prefixes=Prefixes())


def _until_signal() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set; a second one ends the process at once."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return stopped


def _greet(url: str, *, demo: bool) -> None:
    _say(f"rayal serves {url}   (documentation: {url}/docs)")
    if demo:
        _say(_DEMO.format(url=url))


def _say(text: str) -> None:
    console.out.print(text, highlight=False, markup=False, soft_wrap=True)


_DEMO = """
Label the demo project from another shell:
  export RAYAL_URL={url} RAYAL_TOKEN=…      # the token above
  rayal remote lease demo --annotator me --count 5
  rayal remote label demo ITEM 7 --annotator me
  rayal remote rounds demo
A round trains once 20 items are labeled, then after every 10.
To ask for one now: rayal remote close demo"""
