"""Rounds, models, predictions, and the jobs behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import httpx

from rayal.client.connection import ApiError, Pages
from rayal.client.labeling import LabelingCalls, of
from rayal.client.types import CurveInfo, JobInfo, ModelInfo, Prediction, Pushed, RoundInfo

Progress = Callable[[Mapping[str, Any]], None]
FINISHED = frozenset({"done", "failed", "cancelled"})


class RoundCalls(LabelingCalls):
    """Rounds, models and jobs of a project."""

    # -- rounds -----------------------------------------------------------------------------------

    def rounds(self, project: str) -> list[RoundInfo]:
        """Return the rounds in order; -1 is the initial choice."""
        answer = self.call("GET", f"{of(project)}/rounds").json()
        return cast(list[RoundInfo], answer["rounds"])

    def round(self, project: str, number: int) -> RoundInfo:
        """Return one round: its stage, what was asked and what came, its model and metrics."""
        return cast(RoundInfo, self.call("GET", f"{of(project)}/rounds/{number}").json())

    def close_round(
        self, project: str, *, reason: str | None = None, min_labels: int | None = None
    ) -> JobInfo:
        """Start the next round with the labels there are; while one is closing, return its job.

        Args:
            project: its name.
            reason: kept in the history.
            min_labels: least number of new labels; with fewer the call is refused.
        """
        body = {"reason": reason, "min_labels": min_labels}
        fields = {k: v for k, v in body.items() if v is not None}
        answer = self.call("POST", f"{of(project)}/rounds:close", json=fields)
        return cast(JobInfo, answer.json()["job"])

    def wait_for_round(
        self,
        project: str,
        number: int,
        *,
        timeout: float = 3600.0,
        progress: Progress | None = None,
        poll: float = 1.0,
    ) -> RoundInfo:
        """Wait until a round is evaluated and has offered its batch, or is the last one.

        Args:
            project: its name.
            number: number of the round; it need not have begun.
            timeout: seconds to wait.
            progress: called with the round each time it was asked for.
            poll: seconds between two questions.

        Raises:
            ApiError: the round failed, or is not done in time.
        """

        self.call("GET", of(project))  # from here on a missing round is one that has not begun
        end = time.monotonic() + timeout
        while True:
            row = self._begun(project, number)
            if row is not None and progress is not None:
                progress(row)
            if row is not None and row["stage"] == "failed":
                raise ApiError(f"round {number} of {project!r} failed: {row['error']}", "failed")
            if row is not None and row["stage"] in {"label", "done"}:
                return row
            _pause(end, poll, f"round {number} of {project!r} is not done after {timeout:.0f} s")

    def _begun(self, project: str, number: int) -> RoundInfo | None:
        try:
            return self.round(project, number)
        except ApiError as error:
            if error.type != "not-found":
                raise
            return None

    def metrics(self, project: str) -> CurveInfo:
        """Return the learning curve, the labels by annotator, and how far annotators agree."""
        return cast(CurveInfo, self.call("GET", f"{of(project)}/metrics").json())

    # -- models -----------------------------------------------------------------------------------

    def models(self, project: str) -> list[ModelInfo]:
        """Return the versions of the model, the oldest first."""
        answer = self.call("GET", f"{of(project)}/models").json()
        return cast(list[ModelInfo], answer["models"])

    def model(self, project: str, version: str) -> ModelInfo:
        """Return one version."""
        path = f"{of(project)}/models/{quote(version, safe='')}"
        return cast(ModelInfo, self.call("GET", path).json())

    def activate(self, project: str, version: str) -> ModelInfo:
        """Make this version the source of predictions and suggestions."""
        path = f"{of(project)}/models/{quote(version, safe='')}:activate"
        return cast(ModelInfo, self.call("POST", path, json={}).json())

    def predict(
        self,
        project: str,
        *,
        items: Sequence[str] | None = None,
        inputs: Sequence[Any] | None = None,
        model: str | None = None,
        timeout: float = 3600.0,
    ) -> list[Prediction]:
        """Return a model's predictions for items or inputs; for many of them it waits for a job.

        Args:
            project: its name.
            items: their ids.
            inputs: contents as an item is pushed with, one for each input, in place of items.
            model: version; by default the active one.
            timeout: seconds to wait for a job.
        """
        body = {"items": items, "inputs": inputs, "model": model}
        fields = {k: v for k, v in body.items() if v is not None}
        answer = self.call("POST", f"{of(project)}/predictions", json=fields)
        if answer.status_code != httpx.codes.ACCEPTED:
            return cast(list[Prediction], answer.json()["predictions"])
        job = self.wait(answer.json()["job"]["job"], timeout=timeout)
        return cast(list[Prediction], self.result(job["job"]))

    def push_file(
        self,
        project: str,
        file: Path,
        *,
        timeout: float = 3600.0,
        progress: Progress | None = None,
    ) -> Pushed:
        """Add the items of a file of JSON lines as one snapshot, the way to bring a large pool.

        Args:
            project: its name.
            file: an item a line, as ``push`` takes them; it is streamed.
            timeout: seconds to wait for the job that takes a long file.
            progress: called with that job each time it was asked for.
        """
        lines = {"Content-Type": "application/x-ndjson"}
        answer = self.call("POST", f"{of(project)}/items", content=file, headers=lines)
        if answer.status_code != httpx.codes.ACCEPTED:
            return cast(Pushed, answer.json())
        job = answer.json()["job"]["job"]
        return cast(Pushed, self.wait(job, timeout=timeout, progress=progress)["result"])

    # -- jobs -------------------------------------------------------------------------------------

    def jobs(
        self, project: str | None = None, *, state: str | None = None, limit: int | None = None
    ) -> Pages[JobInfo]:
        """Return jobs, in the order in which they were asked for.

        Args:
            project: its name; by default all projects that the token may see.
            state: queued, running, done, failed or cancelled.
            limit: rows of a page.
        """
        query = {"project": project, "state": state, "limit": limit}
        return cast(Pages[JobInfo], self.pages("/v1/jobs", "jobs", query))

    def job(self, job: str) -> JobInfo:
        """Return a job: its state, progress, and what it came to."""
        return cast(JobInfo, self.call("GET", _job(job)).json())

    def result(self, job: str) -> list[dict[str, Any]]:
        """Return the rows that a job has made, as one of many predictions does."""
        text = self.call("GET", f"{_job(job)}/result").text
        return [json.loads(line) for line in text.splitlines()]

    def cancel(self, job: str) -> JobInfo:
        """Cancel a job, which stops soon if it runs; committed results stay."""
        return cast(JobInfo, self.call("DELETE", _job(job)).json())

    def retry(self, job: str) -> JobInfo:
        """Queue a failed or cancelled job again."""
        return cast(JobInfo, self.call("POST", f"{_job(job)}:retry", json={}).json()["job"])

    def wait(
        self,
        job: str,
        *,
        timeout: float = 3600.0,
        progress: Progress | None = None,
        poll: float = 1.0,
    ) -> JobInfo:
        """Wait until a job is done.

        Args:
            job: its name.
            timeout: seconds to wait.
            progress: called with the job each time it was asked for.
            poll: seconds between two questions.

        Raises:
            ApiError: the job failed or was cancelled, or is not done in time.
        """
        end = time.monotonic() + timeout
        while True:
            row = self.job(job)
            if progress is not None:
                progress(row)
            if row["state"] == "done":
                return row
            if row["state"] in FINISHED:
                raise ApiError(f"job {job} is {row['state']}: {row['error']}", "failed")
            _pause(end, poll, f"job {job} is {row['state']} after {timeout:.0f} s")


def _job(job: str) -> str:
    return f"/v1/jobs/{quote(job, safe='')}"


def _pause(end: float, poll: float, late: str) -> None:
    """Wait for the next question, or raise ApiError with a sentence where time is over."""
    left = end - time.monotonic()
    if left <= 0.0:
        raise ApiError(f"{late}; it goes on in the service, ask again", "late")
    time.sleep(min(poll, left))
