"""Submit a run as a job to the cluster of this machine, and follow it.

On the head node of a cluster:

    ray submit cluster.yaml examples/submit_job.py -- examples/fashion_mnist.yaml

Submitted again after a failure, the run goes on where it stopped: its ledger and files lie in the
storage root. A relative root is taken from the home folder of the head node.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

COPY = Path.home() / "rayal"  # where cluster.yaml puts this repository
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


def main() -> int:
    parser = argparse.ArgumentParser(description="Submit `rayal run CONFIG` as a Ray job.")
    parser.add_argument("config", help="settings, relative to the working folder")
    parser.add_argument("options", nargs="*", help="further options of rayal run, such as --set")
    parser.add_argument("--dashboard", default=os.environ.get("RAY_API_SERVER_ADDRESS"))
    parser.add_argument("--working-dir", default=str(COPY if COPY.is_dir() else Path.cwd()))
    parsed, further = parser.parse_known_args()
    client = JobSubmissionClient(parsed.dashboard or "http://127.0.0.1:8265")
    options = " ".join([*parsed.options, *further])
    job = client.submit_job(
        entrypoint=f"python -m rayal run {parsed.config} --address auto {options}".strip(),
        runtime_env={"working_dir": parsed.working_dir},
    )
    shown = 0
    while True:
        status = client.get_job_status(job)
        log = client.get_job_logs(job)
        print(log[shown:], end="", flush=True)
        shown = len(log)
        if status in ENDED:
            print(f"job {job}: {status.value.lower()}")
            return 0 if status == JobStatus.SUCCEEDED else 1
        time.sleep(1.0)


if __name__ == "__main__":
    raise SystemExit(main())
