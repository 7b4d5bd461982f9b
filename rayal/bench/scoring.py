"""Images per second through the scanner, beside baal and a plain loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayal.acquisition import entropy, probability_entropy
from rayal.bench import baselines, peers
from rayal.bench.data import Subject, subject
from rayal.bench.rows import Context, Measured, Quality, median
from rayal.bench.timing import Runs, alternate
from rayal.engine.scan import signals_of
from rayal.engine.spec import ScanOptions
from rayal.models.dropout import dropout_masks
from rayal.selection.threads import torch_threads
from rayal.signals.predictions import LogProbs, MemberStats

PASSES = 20
RANKING = 0.99  # rank correlation with float32 from which a setting's scores are taken
_BATCH = 64
_ABSENT = "baal"


def settings() -> dict[str, ScanOptions]:
    """Return every setting of the scanner that this version has, float32 first."""
    compiled = (False, True) if "compile" in {f.name for f in fields(ScanOptions)} else (False,)
    options: dict[str, ScanOptions] = {}
    for compile_, precision in itertools.product(compiled, ("fp32", "bf16")):
        compiling: dict[str, Any] = {"compile": True} if compile_ else {}
        name = f"{precision} compiled" if compile_ else precision
        options[name] = ScanOptions(batch=_BATCH, precision=precision, **compiling)
    return options


def has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 itself; elsewhere it is no faster."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16", "bf16 "))


def scan(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure one pass: each setting of the scanner, a plain loop, and baal."""
    for place, kind in enumerate(("cnn", "resnet")):
        names = [f"scan-{kind}-{what}" for what in ("fp32", "best", "loop")]
        if context.wants(*names):
            sizes = context.sizes
            with torch_threads(1):
                here = subject(kind, sizes.images[place], sizes.train_steps, context.seed)
                yield from zip(names, _scans(context, here), strict=True)


def _scans(context: Context, here: Subject) -> tuple[Measured, Measured, Measured]:
    absent = peers.missing(_ABSENT)
    contenders: dict[str, Callable[[], Any]] = {
        name: _scanner(here, options) for name, options in settings().items()
    }
    contenders["loop"] = lambda: plain_loop(here)
    if not absent:
        contenders["baal"] = peers.baal_predict(
            here.plain, here.normalised.contiguous(), batch=_BATCH
        )
    runs = alternate(contenders, context.repeats)
    wanted = entropy(runs["loop"].result)
    ranks = {n: baselines.spearman(wanted, _score(runs[n])) for n in settings()}
    rows = {n: len(here.x) / median(r.cpu) for n, r in runs.items()}
    holding = [n for n, rank in ranks.items() if rank >= RANKING]
    best = min(holding, key=lambda n: median(runs[n].cpu), default="fp32")
    text = ", ".join(f"{n} {rank:.4f}" for n, rank in ranks.items())
    speeds = ", ".join(f"{n} {rate:,.0f}" for n, rate in rows.items())

    def measured(setting: str, peer: str, **rest: Any) -> Measured:
        if peer == "baal" and absent:
            return Measured(missing=absent)
        return Measured(
            seconds=runs[setting].cpu,
            peer_seconds=runs[peer].cpu,
            figures={"rows_per_second": rows[setting], "rank": ranks[setting], "setting": setting},
            **rest,
        )

    quality = Quality(f"rank correlation {text}", ranks["fp32"] >= RANKING)
    lacking = "" if has_bf16() else "; this CPU has no bf16, so the bar does not hold"
    return (
        measured("fp32", "baal", quality=quality, note=f"images/s: {speeds}"),
        measured(best, "baal", note=f"{best}{lacking}", barred=has_bf16()),
        measured("fp32", "loop"),
    )


def _scanner(here: Subject, options: ScanOptions) -> Callable[[], Any]:
    signals = (LogProbs(),)

    def run() -> Any:
        columns = signals_of(here.committee, signals, here.x, here.ids, here.keys, options=options)
        return columns["log_probs"]

    return run


def _score(runs: Runs) -> Tensor:
    return entropy(runs.result)


def plain_loop(here: Subject) -> Tensor:
    """Return log-probabilities ``[N, C]`` by the loop that one writes by hand.

    Images and weights lie in channels-last memory.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(here.normalised), _BATCH):
            parts.append(here.fast(here.normalised[start : start + _BATCH]).log_softmax(dim=1))
    return torch.cat(parts)


def dropout(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure 20 dropout passes against baal, per image, and against one plain pass."""
    for place, kind in enumerate(("cnn", "resnet")):
        names = (f"mc-{kind}", f"mc-{kind}-pass")
        if context.wants(*names):
            sizes = context.sizes
            with torch_threads(1):
                here = subject(kind, sizes.images[place], sizes.train_steps, context.seed)
                yield from zip(names, _masked(context, here, sizes.masked[place]), strict=True)


def _masked(context: Context, here: Subject, few: int) -> tuple[Measured, Measured]:
    absent = peers.missing(_ABSENT)
    signals = (MemberStats(passes=PASSES),)
    options = ScanOptions(batch=_BATCH)

    def mine() -> dict[str, Tensor]:
        return signals_of(here.committee, signals, here.x, here.ids, here.keys, options=options)

    contenders: dict[str, Callable[[], Any]] = {"rayal": mine, "loop": lambda: plain_loop(here)}
    if not absent:  # on few images, since it takes so long; its seconds go by the image
        few_images = here.normalised[:few].contiguous()
        batch = min(_BATCH, few)
        contenders["baal"] = peers.baal_predict(here.plain, few_images, passes=PASSES, batch=batch)
    runs = alternate(contenders, context.repeats)
    apart = mask_error(here, runs["rayal"].result, few)
    quality = Quality(f"scores within {apart:.1e} of 20 naive passes", apart <= 1e-5)
    rate = len(here.x) / median(runs["rayal"].cpu)
    common: dict[str, Any] = {
        "seconds": runs["rayal"].cpu,
        "quality": quality,
        "figures": {"rows_per_second": rate},
    }
    against = Measured(missing=absent)
    if not absent:
        scale = len(here.x) / few
        against = Measured(
            peer_seconds=[s * scale for s in runs["baal"].cpu],
            note=f"baal on {few} of {len(here.x)} images, scaled; {rate:,.0f} images/s",
            **common,
        )
    return against, Measured(peer_seconds=runs["loop"].cpu, **common)


def mask_error(here: Subject, made: dict[str, Tensor], few: int) -> float:
    """Return how far BALD and the mean are from whole passes, one after the other, on few rows."""
    committee, net = here.committee, here.net
    passes = []
    for number in range(PASSES):
        with (
            torch.inference_mode(),
            dropout_masks(net, seed=committee.seed, round=committee.round, member=0, pass_=number),
        ):
            passes.append(net(here.normalised[:few]).double().softmax(dim=1))
    probs = torch.stack(passes, dim=1)  # [n, S, C]
    mean, noise = probs.mean(dim=1), probability_entropy(probs).mean(dim=1)
    score = probability_entropy(mean) - noise
    averages = made["member_stats.mean"][:few].double()
    gain = probability_entropy(averages) - made["member_stats.entropy"][:few]
    errors = ((averages - mean).abs().max(), (gain - score).abs().max())
    worst = max(float(np.asarray(e)) for e in errors)
    return worst if math.isfinite(worst) else math.inf
