"""BatchBALD, BAIT and the scores of single rows beside their peers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayal import selection as kernels
from rayal.acquisition import bald_of_members, entropy, margin
from rayal.bench import baselines, child, data, peers
from rayal.bench.baselines import exhaustive_bait, naive_bait
from rayal.bench.rows import Context, Measured, Quality, mean_and_error, median
from rayal.bench.timing import alternate
from rayal.selection.threads import torch_threads

MEMBERS = 20
PUBLISHED_BAIT = 231.0  # seconds of the authors' code at 5,000 x 64, C=10, B=50
_STEPS = 3  # forward steps of the naive form that are timed, where all would take minutes
_ESTIMATE = 200_000  # label configurations of the estimate of joint information
_HOPELESS = 10  # times the fastest peer, from which a peer is called twice and no more
_REPEATED = 50  # most calls of a score of milliseconds that are one timed run


def batchbald(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure BatchBALD's seconds, memory and joint information against batchbald_redux."""
    absent = peers.missing("batchbald_redux")
    if absent:
        yield "batchbald-5k", Measured(missing=absent)
        return
    sizes, k = context.sizes, 10
    log_probs = data.member_log_probabilities(sizes.pool, MEMBERS, sizes.classes, context.seed)
    seeds = itertools.count(context.seed)

    def chosen() -> Any:
        return kernels.joint_entropy(log_probs, k, draws=sizes.draws, seed=next(seeds))

    with torch_threads(1):
        runs = alternate(
            {
                "rayal": chosen,
                "redux": peers.redux(log_probs, k, sizes.draws),
            },
            context.repeats,
            warm=False,
        )
        mine, error = _information(log_probs, runs["rayal"].results, context.seed)
        theirs, its = _information(log_probs, runs["redux"].results, context.seed)
    numbers = {"k": k, "draws": sizes.draws}
    arrays = {"log_probs": log_probs.numpy()}
    memory = child.peak("joint_entropy", arrays, **numbers)
    text = f"joint MI {mine:.4f} ± {error:.4f} nats, redux {theirs:.4f} ± {its:.4f}"
    yield (
        "batchbald-5k",
        Measured(
            seconds=runs["rayal"].cpu,
            peer_seconds=runs["redux"].cpu,
            quality=Quality(text, mine >= theirs - 2 * (error**2 + its**2) ** 0.5),
            memory=memory.gigabytes,
            peer_memory=child.peak("redux", arrays, **numbers).gigabytes,
            note=memory.note,
        ),
    )


def _information(log_probs: Tensor, batches: Sequence[Any], seed: int) -> tuple[float, float]:
    """Return the mean joint information of batches, and its standard error over them."""
    estimates = [
        baselines.joint_information(log_probs[torch.from_numpy(b)], _ESTIMATE, seed)
        for b in batches
    ]
    mean, error = mean_and_error([value for value, _ in estimates])
    return mean, max(error, estimates[0][1])


def bait(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure BAIT against its published form; on a small case, against explicit inverses."""
    sizes = context.sizes
    log_probs = data.log_probabilities(sizes.pool, sizes.classes, context.seed)
    h = data.mixture(sizes.pool, sizes.bait_width, context.seed)
    k, steps = sizes.bait_picks, min(_STEPS, 2 * sizes.bait_picks)
    seconds = []

    def naive() -> None:
        seconds.append(naive_bait(log_probs, h, k, steps=steps)[1] * 2 * k / steps)

    with torch_threads(1):
        runs = alternate(
            {"rayal": lambda: kernels.bait(log_probs, h, k), "naive": naive},
            context.repeats,
            warm=False,
        )
    mine = float(np.median(runs["rayal"].cpu))
    reference = "" if sizes.name != "full" else (
        f"; the authors' code: {PUBLISHED_BAIT:g} s published, x {PUBLISHED_BAIT / mine:.0f}"
    )  # fmt: skip
    yield (
        "bait-5k",
        Measured(
            seconds=runs["rayal"].cpu,
            peer_seconds=seconds,
            quality=_same_bait(context.seed),
            note=f"naive form extrapolated from {steps} of {2 * k} forward steps{reference}",
            figures={"published_seconds": PUBLISHED_BAIT},
        ),
    )


def _same_bait(seed: int) -> Quality:
    cases = 5
    same = 0
    for case in range(cases):
        log_probs = data.log_probabilities(30, 3, seed + case)
        h = data.mixture(30, 4, seed + case)
        mine, exact = kernels.bait(log_probs, h, 5, ridge=1.0), exhaustive_bait(log_probs, h, 5)
        same += set(np.asarray(mine).tolist()) == set(exact.tolist())
    return Quality(f"same picks as explicit inverses in {same} of {cases} cases", same == cases)


def scores(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure BALD, entropy and margin against the fastest of the peers, each on its own input."""
    sizes = context.sizes
    with torch_threads(1):
        if context.wants("entropy-60k", "margin-60k"):
            log_probs = data.log_probabilities(sizes.rows, sizes.classes, context.seed)
            yield (
                "entropy-60k",
                _fastest(context, lambda: entropy(log_probs), _entropies(log_probs)),
            )
            yield "margin-60k", _fastest(context, lambda: margin(log_probs), _margins(log_probs))
        if context.wants("bald-60k"):
            members = data.member_log_probabilities(
                sizes.rows, MEMBERS, sizes.classes, context.seed
            )
            yield (
                "bald-60k",
                _fastest(context, lambda: bald_of_members(members), _balds(members)),
            )


def _entropies(log_probs: Tensor) -> dict[str, Callable[[], Any]]:
    import scipy.stats

    probs = log_probs.exp().numpy()
    contenders: dict[str, Callable[[], Any]] = {"scipy": lambda: scipy.stats.entropy(probs, axis=1)}
    if not peers.missing("baal"):
        contenders["baal"] = peers.baal_score("Entropy", probs)
    if not peers.missing("batchbald_redux"):
        contenders["batchbald_redux"] = peers.redux_entropy(log_probs[:, None])
    return contenders


def _margins(log_probs: Tensor) -> dict[str, Callable[[], Any]]:
    probs = log_probs.exp().numpy()

    def partitioned() -> Any:
        top = -np.partition(-probs, 1, axis=1)[:, :2]
        return top[:, 1] - top[:, 0]

    contenders: dict[str, Callable[[], Any]] = {"NumPy": partitioned}
    if not peers.missing("baal"):
        score = peers.baal_score("Margin", probs)
        contenders["baal"] = lambda: -score()
    return contenders


def _balds(members: Tensor) -> dict[str, Callable[[], Any]]:
    contenders: dict[str, Callable[[], Any]] = {}
    if not peers.missing("baal"):
        contenders["baal"] = peers.baal_score("BALD", members.exp().permute(0, 2, 1).numpy())
    if not peers.missing("batchbald_redux"):
        contenders["batchbald_redux"] = peers.redux_bald(members)
    return contenders


def _fastest(
    context: Context, mine: Callable[[], Tensor], theirs: Mapping[str, Callable[[], Any]]
) -> Measured:
    """Compare with the fastest peer; short calls are timed some at a time."""
    absent = [why for peer in ("baal", "batchbald_redux") if (why := peers.missing(peer))]
    if not theirs or peers.missing("baal"):
        return Measured(missing="; ".join(absent))
    contenders = {"rayal": mine, **theirs}
    probes = {name: _probe(run) for name, run in contenders.items()}
    quickest = min(probes[name] for name in theirs)
    timed = [n for n in contenders if n == "rayal" or probes[n] <= _HOPELESS * quickest]
    times = {n: max(1, min(_REPEATED, int(0.1 / probes[n]))) for n in timed}
    runs = alternate({n: _often(contenders[n], times[n]) for n in timed}, context.repeats)
    each = {name: [s / times[name] for s in run.cpu] for name, run in runs.items()}
    fastest = min(timed[1:], key=lambda name: median(each[name]))
    wanted = runs["rayal"].result.numpy()
    apart = max(float(np.abs(np.asarray(runs[n].result) - wanted).max()) for n in timed[1:])
    return Measured(
        seconds=each["rayal"],
        peer_seconds=each[fastest],
        quality=Quality(f"scores differ by at most {apart:.1e}", apart < 1e-4),
        note=f"fastest: {fastest} of {', '.join(theirs)}; rayal computes in float64",
        figures={**probes, **{name: median(seconds) for name, seconds in each.items()}},
    )


def _probe(run: Callable[[], Any]) -> float:
    """Return the CPU seconds of a second call."""
    run()
    ticks = time.process_time()
    run()
    return max(time.process_time() - ticks, 1e-5)


def _often(run: Callable[[], Any], times: int) -> Callable[[], Any]:
    def several() -> Any:
        for _ in range(times):
            result = run()
        return result

    return several
