"""What a selection says of itself: what it rests on, and what its stage gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayal.engine.scan import Scan
from rayal.engine.scan_options import options_record
from rayal.engine.spec import ProjectSpec
from rayal.ledger import Pick
from rayal.ledger.selections import INITIAL
from rayal.types import stated


def provenance_of(spec: ProjectSpec, round: int, scan: Scan, snapshot: int) -> dict[str, Any]:
    """Return what a round's choice rests on, before it is made."""
    backbone = {} if spec.backbone is None else {"backbone": spec.backbone.hash}
    return {
        "model": scan.committee.hash,
        "strategy": spec.to_json()["strategy"],
        "seed": spec.query_seed(round),
        "columns": scan.columns_hash() if scan.signals else None,
        "snapshot": snapshot,
        "scan": options_record(spec.scan),
        "selection": stated(spec.selection),
        **backbone,
    }


def output_of(round: int, picks: Sequence[Pick], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the output of the select stage; the initial choice has none."""
    if round == INITIAL:
        return {}
    found = {name: provenance.get(name) for name in ("approximation", "memory")}
    return {"picks": len(picks)} | {n: made for n, made in found.items() if made is not None}
