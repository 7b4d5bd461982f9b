"""The table of measurements: their inputs, their contenders, and the speed that rayal must reach.

A bar is stated for the full sizes. ``--quick`` measures the same rows on smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One row of the bench.

    Args:
        name: the name of the row, on the command line too.
        size: the input of the measurement, at full size.
        peer: the contender with which rayal's seconds are compared.
        at_least: the ratio that is enough; None where the ratio is only stated.
        aim: the ratio that is hoped for.
        lower: the ratio is rayal / peer, to stay below the bar; else it is peer / rayal, to reach
            it.
        memory: most GB the call may take beyond its input; None where no bound is stated.
    """

    name: str
    size: str
    peer: str
    at_least: float | None = None
    aim: float | None = None
    lower: bool = False
    memory: float | None = None


_BMDAL = "bmdal-reg"
_ONE_PASS = "one pass per pick"
_FLOOR = "GEMM floor"

BARS: tuple[Bar, ...] = (
    Bar("kcenter-60k-100", "60,000 x 512, B=100", _BMDAL, 6, 10),
    Bar("kcenter-60k-100-one-pass", "60,000 x 512, B=100", _ONE_PASS),
    Bar("kcenter-60k-1000", "60,000 x 512, B=1000", _BMDAL, 6, 12),
    Bar("kcenter-60k-1000-one-pass", "60,000 x 512, B=1000", _ONE_PASS),
    Bar("badge-60k-100", "60,000 x (10, 512), B=100", _BMDAL, 5, 10),
    Bar("badge-60k-100-one-pass", "60,000 x (10, 512), B=100", _ONE_PASS),
    Bar("badge-60k-1000", "60,000 x (10, 512), B=1000", _BMDAL, 8, 20),
    Bar("badge-60k-1000-one-pass", "60,000 x (10, 512), B=1000", _ONE_PASS),
    Bar("kcenter-1m-100", "1,000,000 x 512, B=100", _FLOOR, 4, 2, lower=True, memory=0.5),
    Bar("badge-1m-100", "1,000,000 x (10, 512), B=100", _FLOOR, 4, 2, lower=True, memory=0.5),
    Bar(
        "batchbald-5k",
        "5,000, S=20, C=10, B=10, 10,000 configurations",
        "batchbald_redux",
        20,
        40,
        memory=0.5,
    ),
    Bar("bait-5k", "5,000, D=64, C=10, B=50", "naive inverse form", 40, 100),
    Bar("bald-60k", "60,000, S=20, C=10", "fastest peer", 1),
    Bar("entropy-60k", "60,000, C=10", "fastest peer", 1),
    Bar("margin-60k", "60,000, C=10", "fastest peer", 1),
    Bar("kcenter-candidates", "60,000 x 512, B=100, 6,000 candidates", "exact k-center"),
    Bar("kcenter-two-round", "60,000 x 512, B=100", "exact k-center"),
    Bar("kcenter-bf16", "60,000 x 512, B=100, embeddings in bf16", "float32 k-center"),
    Bar("kmeans-parallel", "60,000 x (10, 512), B=100", "exact k-means++"),
    Bar("scan-cnn-fp32", "small CNN 28x28, float32", "baal", 3),
    Bar("scan-cnn-best", "small CNN 28x28, best setting", "baal", 4),
    Bar("scan-cnn-loop", "small CNN 28x28, float32", "plain torch loop"),
    Bar("scan-resnet-fp32", "ResNet-18 64x64, float32", "baal", 1.1),
    Bar("scan-resnet-best", "ResNet-18 64x64, best setting", "baal", 2),
    Bar("scan-resnet-loop", "ResNet-18 64x64, float32", "plain torch loop"),
    Bar("mc-cnn", "small CNN 28x28, dropout S=20", "baal", 20),
    Bar("mc-cnn-pass", "small CNN 28x28, dropout S=20", "one plain pass", 2.2, lower=True),
    Bar("mc-resnet", "ResNet-18 64x64, dropout S=20", "baal", 20),
    Bar("mc-resnet-pass", "ResNet-18 64x64, dropout S=20", "one plain pass", 1.2, lower=True),
    Bar("pool-local", "60,000 images 28x28", "plain loop x 1.1 + 10 s", 1, lower=True),
    Bar("pool-ray", "60,000 images 28x28, all cores", "plain loop x 1.1 + 10 s", 1, lower=True),
    Bar("gpu-kcenter", "60,000 x 512, B=100, cuda", "the same on the CPU"),
    Bar("gpu-badge", "60,000 x (10, 512), B=100, cuda", "the same on the CPU"),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the arrays that the rows measure.

    Args:
        name: full or quick.
        rows: N of the kernels.
        width: D.
        classes: C.
        picks: the two batches B.
        big_rows: N of the large kernels.
        seeds: draws of a random kernel over which its potential is averaged.
        pool: N of BatchBALD and BAIT.
        draws: configurations of BatchBALD.
        bait_width: D of BAIT.
        bait_picks: B of BAIT.
        images: (small CNN, ResNet-18) images per timed scan.
        masked: (small CNN, ResNet-18) images per timed scan by dropout passes of the peer.
        train_steps: optimisation steps behind the networks that are scanned.
        scan_rows: images of the pool that is scanned as a whole; 0 leaves that out.
        floor_mb: megabytes of the arrays by which memory is measured.
        floor_side: side of the square matrices by which products are measured.
    """

    name: str
    rows: int
    width: int
    classes: int
    picks: tuple[int, int]
    big_rows: int
    seeds: int
    pool: int
    draws: int
    bait_width: int
    bait_picks: int
    images: tuple[int, int]
    masked: tuple[int, int]
    train_steps: int
    scan_rows: int
    floor_mb: int
    floor_side: int


FULL = Sizes(
    "full", 60_000, 512, 10, (100, 1000), 1_000_000, 20, 5_000, 10_000, 64, 50,
    images=(8_192, 512), masked=(512, 32), train_steps=60, scan_rows=60_000, floor_mb=512,
    floor_side=2048,
)  # fmt: skip
QUICK = Sizes(
    "quick", 4_000, 512, 10, (32, 64), 20_000, 20, 200, 500, 16, 10,
    images=(512, 32), masked=(64, 4), train_steps=8, scan_rows=0, floor_mb=128, floor_side=1024,
)  # fmt: skip
