"""Metrics for Prometheus: requests of this process, and the ledger's state at the moment."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayal.ledger import Ledger

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
STATES = ("offered", "leased", "labeled", "skipped", "conflict")


class Metrics:
    """The counters of one application, in a registry of their own.

    Args:
        ledger: read when somebody asks for the metrics.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.registry = CollectorRegistry()
        names = ["method", "route", "status"]
        text = "HTTP requests answered by this process"
        self.requests = Counter("rayal_http_requests", text, names, registry=self.registry)
        self.seconds = Histogram(
            "rayal_http_request_seconds",
            "seconds from the first byte of a request to the end of its answer",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        text = "answers of annotators that this process took, by what became of them"
        self.labels = Counter("rayal_labels", text, ["status"], registry=self.registry)
        text = "leases by what this process did with them"
        self.leases = Counter("rayal_leases", text, ["event"], registry=self.registry)
        self.registry.register(_LedgerState(ledger))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _LedgerState(Collector):
    """Gauges over all projects; projects are not named, since any token may read them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: that would read the ledger."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Read the ledger."""
        projects = self._ledger.projects()
        states: Tally[str] = Tally(dict.fromkeys(STATES, 0))
        ready = 0
        for project in projects:
            counts = self._ledger.counts(project)
            states.update({state: counts[state] for state in STATES})
            ready += self._ledger.ready(project)
        jobs = Tally(job.state for job in self._ledger.jobs(limit=_JOBS))
        yield _gauge("rayal_items", "items that were ever offered or labeled", "state", states)
        yield _gauge("rayal_jobs", f"the latest {_JOBS} jobs", "state", jobs)
        yield GaugeMetricFamily("rayal_projects", "projects", value=len(projects))
        yield GaugeMetricFamily("rayal_ready_items", "items that can be leased now", value=ready)


_JOBS = 1000


def _gauge(name: str, text: str, label: str, values: Tally[str]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        gauge.add_metric([value], count)
    return gauge
