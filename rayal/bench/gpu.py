"""k-center and k-means++ on a GPU beside the same on the CPU, in seconds of the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rayal.bench import baselines, data
from rayal.bench.context import Context
from rayal.bench.rows import Measured, Quality
from rayal.bench.timing import alternate
from rayal.selection import k_center, kmeans_plus_plus

SAME = 1e-3  # by which radius or potential may differ: near ties fall otherwise
ABSENT = "no CUDA device"


def gpu(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure both kernels on cuda, where there is one."""
    if not torch.cuda.is_available():
        yield from ((name, Measured(missing=ABSENT)) for name in ("gpu-kcenter", "gpu-badge"))
        return
    yield from compared(context, "cuda")


def compared(context: Context, device: str) -> Iterator[tuple[str, Measured]]:
    """Measure both kernels on a device that holds their columns already, and on the CPU.

    Args:
        context: sizes, repeats and seed.
        device: where.
    """
    sizes, k = context.sizes, context.sizes.picks[0]
    h = data.mixture(sizes.rows, sizes.width, context.seed)
    a = data.residuals(sizes.rows, sizes.classes, context.seed)
    there = torch.device(device)
    if context.wants("gpu-kcenter"):
        run = partial(_race, context, lambda h, d: k_center(h, k, seed=context.seed, device=d))
        yield "gpu-kcenter", run((h,), there, "radius", lambda p: baselines.radius(h, p))
    if context.wants("gpu-badge"):
        run = partial(
            _race, context, lambda a, h, d: kmeans_plus_plus(a, h, k, seed=context.seed, device=d)
        )
        yield "gpu-badge", run((a, h), there, "potential", lambda p: baselines.potential(a, h, p))


def _race(
    context: Context,
    kernel: Callable[..., Any],
    arrays: tuple[Tensor, ...],
    device: torch.device,
    measure: str,
    value: Callable[[Any], float],
) -> Measured:
    held = [array.to(device) for array in arrays]
    runs = alternate(
        {"gpu": lambda: kernel(*held, str(device)), "cpu": lambda: kernel(*arrays, "cpu")},
        context.repeats,
    )
    found = {n: value(r.result) for n, r in runs.items()}
    text = f"{measure} {found['gpu']:.5g}, on the CPU {found['cpu']:.5g}"
    return Measured(
        seconds=runs["gpu"].wall,
        peer_seconds=runs["cpu"].wall,
        quality=Quality(text, found["gpu"] <= found["cpu"] * (1 + SAME)),
        note=f"clock; {torch.get_num_threads()} threads on the CPU, columns on the GPU before",
        figures={measure: found},
    )
