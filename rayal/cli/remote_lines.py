"""Answers of a service as lines of a table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with readable times and metrics, and nothing for what is not there."""
    line: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_at"):
            line[name.removesuffix("_at")] = "" if value is None else _moment(value)
        elif name == "metrics":
            line |= _metrics(value)
        else:
            line[name] = "" if value is None else value
    return line


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _metrics(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else f"{value:.4f}" for name, value in given.items()}


def lease_line(row: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return a lease: its item, what the model says of it, and where it can be seen."""
    said = row["suggestion"]
    return {
        "item": row["item"]["id"],
        "rank": row["rank"],
        "round": row["round"],
        "suggestion": "" if said is None else said["label"],
        "lease": row["lease_id"],
        "content": url + row["item"]["content"],
    }


def job_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job: what it is, how far it is, when it came, and why it failed."""
    progress = ", ".join(str(value) for value in row["progress"].values())
    shown = {name: row[name] for name in ("job", "project", "kind", "state")}
    asked = _moment(row["created_at"])
    return {**shown, "progress": progress, "asked": asked, "error": row["error"] or ""}


def round_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round: its stage, its labels, its model and metrics."""
    names = ("n", "stage", "wanted", "labeled", "labels", "model")
    failed = {} if row["error"] is None else {"error": row["error"]}
    return {**{name: row[name] for name in names}, **_metrics(row["metrics"]), **failed}


def prediction_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prediction: a class with its probability, or a number with its deviation."""
    shown = {"item": row["item"], "label": row["label"]}
    if row["probs"] is not None:
        return {**shown, "probability": f"{max(row['probs']):.4f}"}
    return {**shown, "mean": f"{row['mean']:.6g}", "deviation": f"{row['variance'] ** 0.5:.4g}"}
