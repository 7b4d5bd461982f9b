"""The service on Ray Serve: stateless ingress, predictors apart from it, rounds in the background.

``build`` is what ``serve run`` and ``serve deploy`` import. The ingress reads the ledger alone, so
that health and labels never wait for a network; predictions go to replicas that batch them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import ray
from pydantic import BaseModel
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from rayal.errors import LedgerError, SettingsError, nearest
from rayal.ledger import Ledger
from rayal.ledger.location import POSTGRESQL
from rayal.service.content import ContentLimits
from rayal.service.limits import OVERLOADED_SECONDS
from rayal.service.predictor import answer_all, answered, outcome_of
from rayal.service.settings import ServiceSettings, service_settings
from rayal.service.uris import Prefixes
from rayal.settings.yamlfile import read_mapping

APP = "rayal"
IMPORT_PATH = "rayal.service.deployment:build"
_REFUSING = 32  # requests that a replica holds for no longer than it takes to refuse them
_APPLIED = {"proxy_location", "http_options", "applications"}  # of a file, by `rayal serve`
_OF_APPLICATION = {"name", "route_prefix", "import_path", "args"}


def build(args: Mapping[str, Any]) -> serve.Application:
    """Return the application of these settings; see ``ServiceSettings``.

    Raises:
        SettingsError: a key or value that the settings do not have.
    """
    settings = service_settings(args)
    config = settings.model_dump(mode="json")
    ask, ingress = settings.predictors, settings.ingress
    cores = {"num_cpus": ask.cpus, "num_gpus": ask.gpus}
    predictors = _deployed(
        Predictors,
        cores,
        max_ongoing_requests=2 * ask.batch,
        max_queued_requests=ask.queue,
        autoscaling_config=AutoscalingConfig(
            min_replicas=ask.min_replicas,
            max_replicas=ask.max_replicas,
            target_ongoing_requests=ask.batch,
        ),
    ).bind(config)
    rounds = _deployed(Rounds, {"num_cpus": 0}, graceful_shutdown_timeout_s=15.0).bind(config)
    return _deployed(
        serve.ingress()(Ingress),
        {"num_cpus": 0},
        num_replicas=ingress.replicas,
        # the application counts and answers 503 itself; what is beyond that the proxy refuses
        max_ongoing_requests=settings.limits.in_flight + _REFUSING,
        max_queued_requests=_REFUSING,
        backpressure_config={"status_code": 503, "retry_after_s": OVERLOADED_SECONDS},
        graceful_shutdown_timeout_s=ingress.grace,
    ).bind(config, predictors, rounds)


def _deployed(replica: type, resources: Mapping[str, float], **options: Any) -> Any:
    return serve.deployment(replica, ray_actor_options=dict(resources), **options)


class Predictors:
    """Replicas that run committees over items, and objectives over columns that a client sent."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        import torch

        from rayal.service.predictor import Predictor

        torch.set_num_threads(1)
        os.nice(5)  # labels come before predictions
        settings = service_settings(given)
        self._predictor = Predictor(
            Path(settings.storage), prefixes=_prefixes(settings), limits=_content(settings)
        )
        self.predict.set_max_batch_size(settings.predictors.batch)
        self.predict.set_batch_wait_timeout_s(settings.predictors.wait)

    @serve.batch  # type: ignore[untyped-decorator]
    async def predict(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return an outcome per request of any project; those of one model share a pass."""
        return await asyncio.to_thread(answer_all, self._predictor.answer, requests)

    async def query(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outcome of choosing among columns that the request holds."""
        return await asyncio.to_thread(outcome_of, self._predictor.query, request)


class Rounds:
    """The one replica that starts and watches the processes of jobs on its node."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        from rayal.service.worker.runner import Runner

        settings = service_settings(given)
        address = ray.get_runtime_context().gcs_address
        runner = Runner(
            Path(settings.storage),
            jobs=settings.rounds.jobs,
            executor=settings.rounds.executor,
            address=address,
            niceness=settings.rounds.niceness,
            prefixes=_prefixes(settings),
            limits=_content(settings),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=runner.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Fail where the runner has ended: Serve then starts another replica."""
        if not self._thread.is_alive():
            raise RuntimeError("the runner of jobs has ended")

    def __del__(self) -> None:
        self._stop.set()
        self._thread.join(timeout=12.0)


class Ingress:
    """The HTTP API over the ledger; it holds no state that a restart could lose."""

    def __init__(self, given: Mapping[str, Any], predictors: Any, rounds: Any) -> None:
        sys.setswitchinterval(0.0005)  # a writer gives the interpreter away at every statement
        self._settings = service_settings(given)
        self._predictors = predictors
        self._rounds = rounds  # held so that Serve deploys it
        _refuse_nodes(self._settings)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application; Serve calls this once the replica stands."""
        from rayal.service.app import create_app
        from rayal.service.backend import open_backend

        ask = self._predictors
        deadline = self._settings.predictors.deadline

        async def predict(request: Mapping[str, Any]) -> Any:
            return answered(await asyncio.wait_for(ask.predict.remote(request), deadline))

        async def query(request: Mapping[str, Any]) -> Any:
            return answered(await asyncio.wait_for(ask.query.remote(request), deadline))

        return create_app(open_backend(self._settings, predict=predict, query=query))


def _prefixes(settings: ServiceSettings) -> Prefixes:
    sources = settings.sources
    return Prefixes(sources.paths, sources.urls, sources.private)


def _content(settings: ServiceSettings) -> ContentLimits:
    limits = settings.limits
    return ContentLimits(limits.image_bytes, limits.image_pixels, text_bytes=limits.text_bytes)


def _refuse_nodes(settings: ServiceSettings) -> None:
    """Raise LedgerError where replicas on several nodes would share a SQLite file."""
    with Ledger(settings.storage, database=settings.database) as ledger:
        dialect = ledger.engine.dialect.name
    alive = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    if dialect == "sqlite" and alive > 1:
        raise LedgerError(
            f"the cluster has {alive} nodes, and the ledger is a SQLite file of one host; keep it "
            f"in PostgreSQL: {POSTGRESQL}"
        )


def read_config(path: Path, *, applied: bool) -> tuple[ServiceSettings, dict[str, Any]]:
    """Return the settings of a Serve configuration file, and its HTTP options.

    Serve itself takes keys that it does not know; here they are refused at every level.

    Args:
        path: the file.
        applied: whether ``start`` is to apply it, which leaves no deployment to the file.

    Raises:
        SettingsError: an unknown key, another application, a value that Serve refuses, or one
            that only ``serve run`` and ``serve deploy`` apply.
    """
    raw = dict(read_mapping(path))
    _known_keys(raw, ServeDeploySchema, "")
    try:
        checked = ServeDeploySchema.model_validate(raw)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    for i, application in enumerate(checked.applications):
        if application.import_path != IMPORT_PATH:
            raise SettingsError(
                f"{path}: applications.{i}.import_path is {application.import_path!r}; this "
                f"service is {IMPORT_PATH!r}"
            )
    if len(checked.applications) != 1:
        raise SettingsError(f"{path} holds {len(checked.applications)} applications; give one")
    if applied:
        _refuse_unapplied(raw, path)
    return service_settings(raw["applications"][0].get("args", {})), dict(
        raw.get("http_options", {})
    )


def _refuse_unapplied(raw: Mapping[str, Any], path: Path) -> None:
    """Raise SettingsError for what ``start`` would leave out."""
    application = raw["applications"][0]
    left = [*(raw.keys() - _APPLIED), *(application.keys() - _OF_APPLICATION)]
    left += ["proxy_location"] * (raw.get("proxy_location", "HeadOnly") != "HeadOnly")
    left += ["route_prefix"] * (application.get("route_prefix", "/") != "/")
    if left:
        raise SettingsError(
            f"{path}: {', '.join(sorted(left))}: `rayal serve` does not apply this; deploy the "
            "file by `serve run` or `serve deploy`, or leave it out"
        )


def _known_keys(given: Any, schema: type[BaseModel], path: str) -> None:
    """Raise SettingsError at the first key that a section of a Serve configuration lacks."""
    if isinstance(given, list):
        for i, row in enumerate(given):
            _known_keys(row, schema, f"{path}{i}.")
    if not isinstance(given, Mapping):
        return  # of another type: Serve's own check says so
    for name, value in given.items():
        if name not in schema.model_fields:
            hint = nearest(str(name), schema.model_fields)
            raise SettingsError(f"{path}{name}: unknown key; {hint}")
        for inner in _sections(schema.model_fields[name].annotation):
            _known_keys(value, inner, f"{path}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a field of Serve's schema holds; none of an open mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def start(settings: ServiceSettings, http: Mapping[str, Any]) -> None:
    """Deploy the service on the Ray cluster that this process is connected to, and wait for it.

    Args:
        settings: of the service.
        http: Serve's HTTP options: host, port, ….
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options=dict(http), logging_config=quiet)
    application = build(settings.model_dump(mode="json"))
    serve.run(application, name=APP, route_prefix="/", logging_config=quiet)


def stop() -> None:
    """Let requests in flight end, then end the replicas."""
    serve.delete(APP)
