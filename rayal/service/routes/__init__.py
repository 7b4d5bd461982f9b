"""The routes of the API, one module for each kind of thing."""

from __future__ import annotations

from rayal.service.routes import (
    health,
    items,
    jobs,
    labels,
    leases,
    models,
    projects,
    pushes,
    query,
    rounds,
    tokens,
)
from rayal.service.routing import Section

SECTIONS: tuple[Section, ...] = (
    health.routes,
    projects.routes,
    items.routes,
    pushes.routes,
    items.content,
    query.routes,
    leases.routes,
    labels.routes,
    rounds.routes,
    models.routes,
    jobs.routes,
    tokens.routes,
)
