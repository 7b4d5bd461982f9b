"""The driver's memory in a round on Ray must not grow with the pool.

python tests/acceptance/driver_memory.py make ROOT ROWS
python tests/acceptance/driver_memory.py round ROOT STRATEGY     prints the process's peaks
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np

from rayal.engine.executor import RayOptions
from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.ray_executor.cluster import connect
from rayal.registry import strategies

FEATURES, CLASSES, CHUNK = 64, 10, 125_000


def make(root: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        x = rng.normal(size=(min(CHUNK, rows - start), FEATURES)).astype(np.float32)
        ids = [f"row-{start + i}" for i in range(len(x))]
        Pool.ingest(root, "rows", [array_source(x, ids=ids)])


class Peak(threading.Thread):
    """Samples what this process holds: all of it, and the anonymous part."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.rss = self.anonymous = 0

    def run(self) -> None:
        while not self.over.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = {k: v for k, _, v in (line.partition(":") for line in lines)}
            self.rss = max(self.rss, int(sizes["VmRSS"].split()[0]))
            self.anonymous = max(self.anonymous, int(sizes["RssAnon"].split()[0]))


def one_round(root: Path, name: str) -> None:
    spec = ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (128, FEATURES)}),
        learner=Supervised(steps=100, batch=32),
        strategy=strategies[name](),
        task={"classes": tuple(f"c{i}" for i in range(CLASSES))},
        initial=Initial(count=100),
        batch=100,
    )
    peak = Peak()
    peak.start()
    with connect(RayOptions()) as executor, Ledger(root) as ledger:
        pool = Pool.open(root, "rows")
        project = Project.create(ledger, name, pool, spec, executor=executor)
        leases = project.ask(100)
        project.tell({lease.item: f"c{i % CLASSES}" for i, lease in enumerate(leases)})
        seconds = dict(project.train().seconds)
    peak.over.set()
    peak.join()
    figures = {
        "rows": len(pool),
        "strategy": name,
        "peak_rss_mib": round(peak.rss / 1024, 1),
        "peak_anonymous_mib": round(peak.anonymous / 1024, 1),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    verb, where, what = sys.argv[1:]
    if verb == "make":
        make(Path(where), int(what))
    else:
        one_round(Path(where), what)
