"""k-center and k-means++ beside bmdal-reg, the form with one pass per pick, and a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.bench import baselines, child, data, peers
from rayal.bench.rows import Context, Measured, Quality, mean_and_error
from rayal.bench.timing import Runs, alternate
from rayal.selection import k_center, kmeans_plus_plus
from rayal.selection.threads import torch_threads

Positions = npt.NDArray[np.int64]
SAME = 1e-5  # by which radii may differ: the rounding of float32 distances


def kcenter(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure k-center; all forms start from the row with the largest norm."""
    sizes = context.sizes
    with torch_threads(1):
        x = data.mixture(sizes.rows, sizes.width, context.seed)
        for name, k in zip(("kcenter-60k-100", "kcenter-60k-1000"), sizes.picks, strict=True):
            if context.wants(name, f"{name}-one-pass"):
                yield from _kcenter(context, name, x, k)


def _kcenter(context: Context, name: str, x: Tensor, k: int) -> Iterator[tuple[str, Measured]]:
    first = int((x * x).sum(dim=1).argmax())
    runs, absent = _race(
        context,
        lambda: np.append(first, k_center(x, k - 1, labeled=x[first : first + 1])),
        lambda: baselines.one_pass_k_center(x, first, k),
        lambda: peers.bmdal([x], "MaxDist", k),
    )
    radii = {n: baselines.radius(x, r.result) for n, r in runs.items()}
    mine, exact = radii["rayal"], radii["one pass"]
    text = ", ".join(f"{n} {r:.4f}" for n, r in radii.items())
    equal = mine <= exact * (1 + SAME) and mine <= radii.get("peer", mine) * (1 + SAME)
    measured = Measured(
        seconds=runs["rayal"].cpu,
        floor=context.floors.gemm(2.0 * len(x) * x.shape[1] * k),
        quality=Quality(f"radius {text}", equal),
        figures={"radius": radii},
    )
    yield from _rows(name, measured, runs, absent)


def badge(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure k-means++ on residual ⊗ embedding, and its potential over seeds."""
    sizes = context.sizes
    with torch_threads(1):
        a = data.residuals(sizes.rows, sizes.classes, context.seed)
        h = data.mixture(sizes.rows, sizes.width, context.seed)
        for name, k in zip(("badge-60k-100", "badge-60k-1000"), sizes.picks, strict=True):
            if context.wants(name, f"{name}-one-pass"):
                yield from _badge(context, name, a, h, k=k)


def _badge(
    context: Context, name: str, a: Tensor, h: Tensor, *, k: int
) -> Iterator[tuple[str, Measured]]:
    runs, absent = _race(
        context,
        lambda: kmeans_plus_plus(a, h, k, seed=context.seed),
        lambda: baselines.one_pass_badge(a, h, k, context.seed),
        lambda: peers.bmdal([a, h], "Kmeanspp", k),
    )
    flops = 2.0 * len(a) * (a.shape[1] + h.shape[1]) * k
    measured = Measured(
        seconds=runs["rayal"].cpu,
        floor=context.floors.gemm(flops),
        quality=_potentials(
            context,
            a,
            h,
            mine=lambda seed: kmeans_plus_plus(a, h, k, seed=seed),
            exact=lambda seed: baselines.one_pass_badge(a, h, k, seed),
        ),
    )
    yield from _rows(name, measured, runs, absent)


def _potentials(
    context: Context,
    a: Tensor,
    h: Tensor,
    *,
    mine: Callable[[int], Positions],
    exact: Callable[[int], Positions],
) -> Quality:
    """Compare mean potentials over seeds with those of the exact sampler."""
    seeds = range(context.seed, context.seed + context.sizes.seeds)
    values = [
        mean_and_error([baselines.potential(a, h, draw(s)) for s in seeds])
        for draw in (mine, exact)
    ]
    (mean, error), (wanted, its) = values
    apart = (error**2 + its**2) ** 0.5
    text = (
        f"potential {mean:.5g} ± {error:.2g}, exact sampler {wanted:.5g} ± {its:.2g}, "
        f"{len(seeds)} seeds"
    )
    return Quality(text, mean - wanted <= apart)


def _race(
    context: Context,
    mine: Callable[[], Any],
    one_pass: Callable[[], Any],
    peer: Callable[[], Callable[[], Any]],
) -> tuple[dict[str, Runs], str]:
    absent = peers.missing("bmdal-reg")
    contenders = {"rayal": mine, "one pass": one_pass}
    if not absent:
        contenders["peer"] = peer()
    return alternate(contenders, context.repeats), absent


def _rows(
    name: str, made: Measured, runs: dict[str, Runs], absent: str
) -> Iterator[tuple[str, Measured]]:
    if absent:
        yield name, Measured(missing=absent)
    else:
        yield name, replace(made, peer_seconds=runs["peer"].cpu)
    yield f"{name}-one-pass", replace(made, peer_seconds=runs["one pass"].cpu)


def large(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure both kernels on a large pool against the floor of their matrix products."""
    sizes, k = context.sizes, context.sizes.picks[0]
    with torch_threads(1):
        h = data.mixture(sizes.big_rows, sizes.width, context.seed)
        a = data.residuals(sizes.big_rows, sizes.classes, context.seed)
        cases: dict[str, tuple[str, dict[str, Tensor], int, Callable[[], Any]]] = {
            "kcenter-1m-100": ("k_center", {"x": h}, 0, lambda: k_center(h, k)),
            "badge-1m-100": (
                "kmeans_plus_plus",
                {"a": a, "h": h},
                a.shape[1],
                lambda: kmeans_plus_plus(a, h, k),
            ),
        }
        for name, (kernel, arrays, width, run) in cases.items():
            if not context.wants(name):
                continue
            runs = alternate({"rayal": run}, context.repeats, warm=False)["rayal"]
            floor = context.floors.gemm(2.0 * len(h) * (h.shape[1] + width) * k)
            memory = child.peak(kernel, {n: t.numpy() for n, t in arrays.items()}, k=k)
            yield (
                name,
                Measured(
                    seconds=runs.cpu,
                    peer_seconds=(floor,),
                    floor=floor,
                    memory=memory.gigabytes,
                    note=memory.note,
                ),
            )


def approximations(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure what approximations lose and gain against the exact kernels."""
    sizes, k = context.sizes, context.sizes.picks[0]
    with torch_threads(1):
        h = data.mixture(sizes.rows, sizes.width, context.seed)
        a = data.residuals(sizes.rows, sizes.classes, context.seed)
        forms: dict[str, dict[str, Any]] = {
            "kcenter-candidates": {"candidates": sizes.rows // 10},
            "kcenter-two-round": {"method": "two_round"},
            "kcenter-bf16": {"precision": "bf16"},
        }
        for name, arguments in forms.items():
            if context.wants(name):
                yield (
                    name,
                    _approximated(
                        context,
                        k_center,
                        (h, k),
                        arguments,
                        measure="radius",
                        value=lambda p: baselines.radius(h, p),
                    ),
                )
        if context.wants("kmeans-parallel"):
            yield (
                "kmeans-parallel",
                _approximated(
                    context,
                    kmeans_plus_plus,
                    (a, h, k),
                    {"method": "kmeans||"},
                    measure="potential",
                    value=lambda p: baselines.potential(a, h, p),
                ),
            )


def _approximated(
    context: Context,
    kernel: Callable[..., Any],
    arguments: tuple[Any, ...],
    given: dict[str, Any],
    *,
    measure: str,
    value: Callable[[Positions], float],
) -> Measured:
    runs = alternate(
        {
            "rayal": lambda: kernel(*arguments, seed=context.seed, **given),
            "exact": lambda: kernel(*arguments, seed=context.seed),
        },
        context.repeats,
    )
    loss = value(runs["rayal"].result) / value(runs["exact"].result)
    return Measured(
        seconds=runs["rayal"].cpu,
        peer_seconds=runs["exact"].cpu,
        quality=Quality(f"{measure} x {loss:.4f} of the exact one's"),
        figures={"loss": loss},
    )


NEAR = 1e-3  # by which radius or potential may differ: near ties fall otherwise
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
        run = partial(_on_both, context, lambda h, d: k_center(h, k, seed=context.seed, device=d))
        yield "gpu-kcenter", run((h,), there, "radius", lambda p: baselines.radius(h, p))
    if context.wants("gpu-badge"):
        run = partial(
            _on_both,
            context,
            lambda a, h, d: kmeans_plus_plus(a, h, k, seed=context.seed, device=d),
        )
        yield "gpu-badge", run((a, h), there, "potential", lambda p: baselines.potential(a, h, p))


def _on_both(
    context: Context,
    kernel: Callable[..., Any],
    arrays: tuple[Tensor, ...],
    device: torch.device,
    measure: str,
    value: Callable[[Any], float],
) -> Measured:
    moved = [array.to(device) for array in arrays]
    runs = alternate(
        {"gpu": lambda: kernel(*moved, str(device)), "cpu": lambda: kernel(*arrays, "cpu")},
        context.repeats,
    )
    values = {n: value(r.result) for n, r in runs.items()}
    text = f"{measure} {values['gpu']:.5g}, on the CPU {values['cpu']:.5g}"
    return Measured(
        seconds=runs["gpu"].wall,
        peer_seconds=runs["cpu"].wall,
        quality=Quality(text, values["gpu"] <= values["cpu"] * (1 + NEAR)),
        note=f"clock; {torch.get_num_threads()} threads on the CPU, columns on the GPU before",
        figures={measure: values},
    )
