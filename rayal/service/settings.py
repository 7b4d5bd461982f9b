"""Settings of the service: what ``rayal serve`` takes, and what it keeps with each project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rayal.errors import SettingsError
from rayal.ledger import ProjectRow
from rayal.service.limits import Limits
from rayal.settings.parameters import explain
from rayal.settings.sections import Count, Section, Text, key
from rayal.settings.yamlfile import copied


class SourceSettings(Section):
    """Paths and URLs that the service may read on behalf of its clients; by default none."""

    paths: tuple[Text, ...] = key((), "Folders whose files items and pools may name.")
    urls: tuple[Text, ...] = key((), "Beginnings of the http(s) URLs that items may name.")
    private: bool = key(False, "Allow such URLs to lead to loopback and private addresses.")

    @model_validator(mode="after")
    def _absolute(self) -> SourceSettings:
        for path in self.paths:
            if not Path(path).is_absolute():
                raise SettingsError(f"sources.paths: {path!r} is relative; give absolute folders")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise SettingsError(
                    f"sources.urls: {url!r} begins with neither http:// nor https://"
                )
        return self


class LimitSettings(Section):
    """The most that a client may ask for; more is answered with 413, 429 or 503.

    The defaults are those of ``Limits``.
    """

    body_bytes: Count = key(Limits.body_bytes, "Most bytes of a request's body.")
    label_body_bytes: Count = key(Limits.label_body_bytes, "Most bytes of a body of labels.")
    rate: float = key(Limits.rate, "Requests a second of one token, on average.", gt=0)
    burst: Count = key(Limits.burst, "Requests of one token at once.")
    in_flight: Count = key(Limits.in_flight, "Requests that a replica holds; more get 503.")
    threads: Count = key(Limits.threads, "Requests that a replica works on at once.")
    image_bytes: Count = key(Limits.image_bytes, "Most bytes of an encoded image.")
    image_pixels: Count = key(Limits.image_pixels, "Most pixels of a decoded image.")
    text_bytes: Count = key(Limits.text_bytes, "Most bytes of a text in UTF-8.")


class IngressSettings(Section):
    """The replicas that answer HTTP; they hold no model."""

    replicas: Count = key(1, "Processes that answer; more than one needs PostgreSQL on a cluster.")
    grace: float = key(10.0, "Seconds that requests in flight get at shutdown.", gt=0)


class PredictorSettings(Section):
    """The replicas that run networks, apart from the ingress."""

    min_replicas: Count = key(1, "Replicas that are always there.")
    max_replicas: Count = key(2, "Most replicas under load.")
    cpus: float = key(0.0, "Cores that Ray reserves for one replica; 0: none.", ge=0)
    gpus: float = key(0.0, "GPUs of one replica.", ge=0)
    batch: Count = key(16, "Requests that one pass of the network answers.")
    wait: float = key(0.02, "Seconds that a request waits for others to join it.", ge=0)
    queue: Count = key(64, "Requests that may wait; more get 503.")
    deadline: float = key(20.0, "Seconds until an answer must be there, else 503.", gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> PredictorSettings:
        if self.max_replicas < self.min_replicas:
            raise SettingsError(
                f"predictors.max_replicas is {self.max_replicas}, below min_replicas "
                f"({self.min_replicas}); give at least that many"
            )
        return self


class RoundSettings(Section):
    """The rounds in the background."""

    jobs: Count | None = key(
        None, "Rounds at once; null: one less than there are cores, at least 1."
    )
    executor: Literal["local", "ray"] = key(
        "local", "A process of this host (local), or a cluster (ray)."
    )
    niceness: int = key(
        19, "Niceness of the processes that train, so that answers come first.", ge=0, le=19
    )


class ServiceSettings(Section):
    """All settings of the service but where it listens."""

    storage: Text = Field(
        description="Absolute path of the folder of the ledger, pools and models."
    )
    database: Text | None = key(None, "A URL postgresql+psycopg://…; null: SQLite in the storage.")
    sources: SourceSettings = key(SourceSettings(), "What may be read for clients.")
    limits: LimitSettings = key(LimitSettings(), "What a client may ask for.")
    ingress: IngressSettings = key(IngressSettings(), "The replicas that answer HTTP.")
    predictors: PredictorSettings = key(PredictorSettings(), "The replicas that run networks.")
    rounds: RoundSettings = key(RoundSettings(), "The rounds in the background.")

    @model_validator(mode="after")
    def _here(self) -> ServiceSettings:
        if not Path(self.storage).is_absolute():
            raise SettingsError(
                f"storage {self.storage!r} is relative, and replicas start in folders of their "
                "own; give an absolute path"
            )
        return self


def service_settings(given: Mapping[str, Any]) -> ServiceSettings:
    """Return the settings of a mapping; SettingsError has one line for each key that is refused."""
    try:
        return ServiceSettings.model_validate(copied(given, tuple))
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error))) from None


_AUTO = ("quorum", "ready", "start")
_KEPT = (*_AUTO, "pushed", "request")


@dataclass(frozen=True)
class ServiceOptions:
    """Options that the service stores with a project beside its spec; a run stores none of them.

    Args:
        quorum: new labels that close a round; None: as many as are asked for.
        ready: items that are offered beyond the first batch.
        start: whether rounds begin by themselves.
        pushed: whether the pool is the project's own, to which clients add items.
        request: the body that the project was made of, with its changes; None where it was not
            made over HTTP.
        auto: those of quorum, ready and start that are stored, as answers show them.
    """

    quorum: int | None = None
    ready: int = 0
    start: bool = False
    pushed: bool = False
    request: Mapping[str, Any] | None = None
    auto: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, row: ProjectRow) -> Self:
        """Return the options that are stored with a project."""
        stored: Mapping[str, Any] = row.settings.get("service", {})
        values = {name: stored[name] for name in _KEPT if name in stored}
        return cls(**values, auto={name: stored[name] for name in _AUTO if name in stored})

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored with a project."""
        return {name: getattr(self, name) for name in _KEPT}
