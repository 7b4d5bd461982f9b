"""The part of a run's settings that says where it works and how, and not what it is about."""

from __future__ import annotations

from typing import Literal

from rayal.sections import Count, Section, Share, Text, key


class ScanSettings(Section):
    """How the committee is run over the pool."""

    batch: Count = key(64, "rows of a forward pass; the last one is padded to it")
    precision: Literal["fp32", "bf16"] = key("fp32", "fp32 | bf16")
    device: Literal["cpu", "cuda"] = key("cpu", "where networks train and run: cpu | cuda")
    compile: bool = key(False, "compile each committee's network: seconds first, then faster")


class SelectionSettings(Section):
    """How a joint choice holds the columns that it compares."""

    precision: Literal["fp32", "bf16"] = key("fp32", "of embeddings on disk and in shards")
    device: Literal["cpu", "cuda"] = key("cpu", "where shards compute: cpu | cuda")


class RaySettings(Section):
    """How ``executor: ray`` uses a cluster."""

    address: Text = key("local", "local (a cluster for this run) | auto | HOST:PORT of a head")
    cpus: Count | None = key(None, "cores of a local cluster; null: all")
    member_cpus: Share | None = key(None, "cores of a training member; null: threads_per_model")
    member_gpus: float = key(0.0, "GPUs of a training member; 0.25: four share one", ge=0)
    scanner_cpus: Share | None = key(None, "cores of a scanning worker; null: threads_per_model")
    scanner_gpus: float = key(0.0, "GPUs of a scanning worker", ge=0)
    staged: bool | None = key(None, "decode apart from the network; null: where a GPU scans")
    restarts: int = key(3, "times that a part's, member's or shard's worker may be lost", ge=0)
    stall: float = key(1800.0, "seconds without progress that end the run", gt=0)
