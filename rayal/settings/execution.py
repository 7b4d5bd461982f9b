"""The part of a run's settings that says where it works and how, and not what it is about."""

from __future__ import annotations

from typing import Literal

from rayal.settings.sections import Count, Section, Share, Text, key


class ScanSettings(Section):
    """How the committee is run over the pool."""

    batch: Count = key(64, "Rows of one forward pass; the last pass is padded to it.")
    precision: Literal["fp32", "bf16"] = key(
        "fp32", "Number format of the forward passes: fp32 or bf16."
    )
    device: Literal["cpu", "cuda"] = key("cpu", "Where networks train and run: cpu or cuda.")
    compile: bool = key(
        False, "Compile each committee's networks: that takes seconds, then scans run faster."
    )


class SelectionSettings(Section):
    """How a joint choice holds the columns that it compares."""

    precision: Literal["fp32", "bf16"] = key(
        "fp32", "Number format of embeddings on disk and in shards: fp32 or bf16."
    )
    device: Literal["cpu", "cuda"] = key("cpu", "Where shards compute: cpu or cuda.")


class RaySettings(Section):
    """How ``executor: ray`` uses a cluster."""

    address: Text = key("local", "The cluster: local (one for this run), auto, or HOST:PORT.")
    cpus: Count | None = key(None, "Cores of a local cluster; null: all.")
    member_cpus: Share | None = key(
        None, "Cores of one member in training; null: model.threads_per_model."
    )
    member_gpus: float = key(0.0, "GPUs of one member in training; with 0.25 four share one.", ge=0)
    scanner_cpus: Share | None = key(
        None, "Cores of one scanning worker; null: model.threads_per_model."
    )
    scanner_gpus: float = key(0.0, "GPUs of one scanning worker.", ge=0)
    staged: bool | None = key(
        None, "Decode rows in workers apart from the network; null: where a GPU scans."
    )
    restarts: int = key(3, "How often the worker of one part, member or shard may be lost.", ge=0)
    stall: float = key(1800.0, "Seconds without any progress after which the run ends.", gt=0)
