"""Run settings on three nodes of one host, and kill one of them in a stage.

python node_loss.py CONFIG train|scan|select
"""

from __future__ import annotations

import os
import sys
import threading
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

import ray
from ray.cluster_utils import Cluster

from rayal.evaluation.observer import Observer
from rayal.evaluation.protocol import run
from rayal.settings.run import load


class Watch(Observer):
    """Kills a node when a stage of the second round has begun."""

    def __init__(self, cluster: Cluster, victim: object, stage: str) -> None:
        self.cluster, self.victim, self.wanted = cluster, victim, stage
        self.evaluated = 0
        self.killed = ""

    def round(self, cell: object, point: object) -> None:
        self.evaluated += 1

    def stage(self, stage: str, done: int, total: int) -> None:
        ready = self.evaluated >= 1 and (stage != "select" or done > 0)
        if stage == self.wanted and ready and not self.killed:
            self.killed = stage
            started = time.perf_counter()
            self.cluster.remove_node(self.victim, allow_graceful=False)
            sys.stdout.write(
                f"killed in {stage}, which took {time.perf_counter() - started:.1f} s\n"
            )


def main() -> None:
    config, stage = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    path = os.pathsep.join([os.getcwd(), *sys.path])
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    watch = Watch(cluster, nodes[0], stage)
    settings = load(config, ["executor=ray", "ray.address=auto"])
    try:
        run(settings, observer=watch)
    finally:
        ray.shutdown()
        threading.Timer(60, os._exit, (1,)).start()
        cluster.shutdown()
    if not watch.killed:
        raise SystemExit("the stage was not met")
    os._exit(0)


if __name__ == "__main__":
    main()
