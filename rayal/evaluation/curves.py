"""Learning curves: one table of points, its CSV, its summary against random, its picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rayal.errors import SettingsError, StorageError, nearest
from rayal.evaluation.statistics import Interval, curve_mean, paired_bootstrap
from rayal.settings.run import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KEYS = ("strategy", "seed", "round", "labels")
_SECONDS = "seconds."  # prefix of the columns that hold times
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe & Ito, 2008
_RANDOM = {"color": "#444444", "linestyle": "--", "linewidth": 2.2, "marker": ".", "zorder": 2.4}
_MARKERS = "os^DvPX"  # 7 to 6 colors, so that no pair comes back within 42 curves

#: metrics of which less is better
LOWER = frozenset({"rmse", "nll", "ece"})
LEADING = ("accuracy", "rmse")  # what curves show, the first of them that there is

Curve = Mapping[int, float]  # label count -> metric, in the order of rounds


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: a model trained on so many labels.

    Attributes:
        strategy: the label of the strategy.
        seed: the seeds of the repetition, as text; curves of equal seed are paired.
        round: 0 is the round of the initial labels.
        labels: the number of labels that the model was trained on.
        metrics: name to value on the test items.
        seconds: stage to wall seconds.
    """

    strategy: str
    seed: str
    round: int
    labels: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class SummaryRow:
    """The summary of the curves of one strategy.

    Attributes:
        label: the label of the strategy.
        n_seeds: the number of its curves.
        at: label count to mean over the seeds, where each of its curves has a point.
        mean: mean over seeds of the mean over the curve.
        sd: standard deviation of the latter over seeds (n - 1); nan for one seed.
        difference: the difference to random, of the mean over the curve, paired by seed, with its
            90 % interval; above 0 where the strategy is better, also where less of the metric is.
            None for random itself and without a common seed.
    """

    label: str
    n_seeds: int
    at: Mapping[int, float]
    mean: float
    sd: float
    difference: Interval | None


def write_curve_csv(path: str | Path, points: Sequence[CurvePoint]) -> None:
    """Write one line per point; a metric or stage that a point lacks is an empty cell.

    Raises:
        SettingsError: if a metric is named like another column.
    """
    metrics = list(dict.fromkeys(name for p in points for name in p.metrics))
    stages = list(dict.fromkeys(name for p in points for name in p.seconds))
    wrong = [name for name in metrics if name in _KEYS or name.startswith(_SECONDS)]
    if wrong:
        raise SettingsError(
            f"metrics {wrong} given; {', '.join(_KEYS)} and {_SECONDS}… name other columns: "
            "rename the metric"
        )
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_KEYS, *metrics, *(_SECONDS + stage for stage in stages)])
        for p in points:
            values = [p.metrics.get(m) for m in metrics] + [p.seconds.get(s) for s in stages]
            cells = ["" if v is None else repr(float(v)) for v in values]
            writer.writerow([p.strategy, p.seed, p.round, p.labels, *cells])


def read_curve_csv(path: str | Path) -> list[CurvePoint]:
    """Read what ``write_curve_csv`` wrote.

    Raises:
        StorageError: if the file is missing, or a line is not a point; the message names it.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [key for key in _KEYS if key not in (reader.fieldnames or ())]
            if missing:
                raise StorageError(f"{path}: columns {missing} are missing; is it a curve.csv?")
            return [_point(row, f"{path}, line {reader.line_num}") for row in reader]
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist; a run writes it into its folder") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is not a CSV file: {error}") from None


def _point(row: Mapping[str, str], where: str) -> CurvePoint:
    try:
        cells = {n: float(v) for n, v in row.items() if n not in _KEYS and v != ""}
        metrics = {n: v for n, v in cells.items() if not n.startswith(_SECONDS)}
        seconds = {n.removeprefix(_SECONDS): v for n, v in cells.items() if n not in metrics}
        numbers = int(row["round"]), int(row["labels"])
    except (TypeError, ValueError, AttributeError):  # a text, too few cells, too many cells
        raise StorageError(f"{where} is not a point of a curve: {dict(row)}") from None
    return CurvePoint(row["strategy"], row["seed"], *numbers, metrics, seconds)


def curves(points: Iterable[CurvePoint], metric: str) -> dict[str, dict[str, Curve]]:
    """Return strategy label to seed to curve, random first, the others in order of appearance.

    Where two rounds of a curve have as many labels, the later one counts.

    Raises:
        SettingsError: if no point has the metric, or two points are of one round.
    """
    rows = sorted(points, key=lambda p: p.round)
    order = dict.fromkeys([BASELINE, *(p.strategy for p in points)])
    seen: set[tuple[str, str, int]] = set()
    table: dict[str, dict[str, dict[int, float]]] = {label: {} for label in order}
    for p in rows:
        key = (p.strategy, p.seed, p.round)
        if key in seen:
            raise SettingsError(
                f"round {p.round} of {p.strategy!r} with seed {p.seed!r} is given twice; "
                "each strategy, seed and round has one point"
            )
        seen.add(key)
        if metric in p.metrics:
            table[p.strategy].setdefault(p.seed, {})[p.labels] = p.metrics[metric]
    if not any(table.values()):
        known = {name for p in rows for name in p.metrics}
        raise SettingsError(f"no point has the metric {metric!r}; {nearest(metric, known)}")
    return {label: dict(by_seed) for label, by_seed in table.items() if by_seed}


def leading(points: Iterable[CurvePoint]) -> str:
    """Return the metric that curves show: accuracy, or rmse where numbers are predicted."""
    known = dict.fromkeys(name for p in points for name in p.metrics)
    return next((name for name in LEADING if name in known), next(iter(known), LEADING[0]))


def summary(
    points: Sequence[CurvePoint],
    metric: str | None = None,
    at: Sequence[int] = (50, 100, 200, 300),
) -> list[SummaryRow]:
    """Return one row per strategy, random first. Nothing is interpolated.

    A difference to random is taken over the label counts that both curves of a pair have, so that
    an unfinished curve is compared with the same stretch of the baseline's.

    Args:
        points: the learning curves.
        metric: the metric that is compared; None for the leading one.
        at: label counts whose mean over the seeds is given.
    """
    metric = metric or leading(points)
    by_label = curves(points, metric)
    baseline = by_label.get(BASELINE, {})
    rows = []
    for label, by_seed in by_label.items():
        means = [curve_mean(list(curve.values())) for curve in by_seed.values()]
        shared = _shared(by_seed.values())
        rows.append(
            SummaryRow(
                label=label,
                n_seeds=len(by_seed),
                at={n: fmean(c[n] for c in by_seed.values()) for n in at if n in shared},
                mean=fmean(means),
                sd=stdev(means) if len(means) > 1 else math.nan,
                difference=None
                if label == BASELINE
                else _difference(by_seed, baseline, lower=metric in LOWER),
            )
        )
    return rows


def _difference(
    ours: Mapping[str, Curve], baseline: Mapping[str, Curve], *, lower: bool
) -> Interval | None:
    """Return by how much ours is better, over the pairs that both have."""
    pairs = []
    for seed in sorted(ours.keys() & baseline.keys()):
        stretch = _shared([ours[seed], baseline[seed]])
        if stretch:
            pairs.append(
                [curve_mean([c[n] for n in stretch]) for c in (ours[seed], baseline[seed])]
            )
    if not pairs:
        return None
    means, others = ([pair[i] for pair in pairs] for i in (0, 1))
    return paired_bootstrap(others, means) if lower else paired_bootstrap(means, others)


def _shared(all_curves: Iterable[Curve]) -> list[int]:
    """Return the label counts that every curve has, in ascending order."""
    return sorted(set.intersection(*(set(curve) for curve in all_curves)))


def plot(
    path: str | Path, points: Sequence[CurvePoint], metric: str | None = None, title: str = ""
) -> None:
    """Draw the curves into an image file of 150 dpi, whose suffix names the format.

    The line is the mean over seeds where all have a point, the band one standard deviation over
    them; with fewer than 3 seeds, or where they differ in their label counts, each is a thin line.
    """
    from matplotlib.figure import Figure  # 0.3 s, which a command without a picture need not wait

    metric = metric or leading(points)
    by_label = curves(points, metric)
    figure = Figure(figsize=(8.0, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    others = [label for label in by_label if label != BASELINE]
    for label, by_seed in by_label.items():
        _draw(axes, label, by_seed, _RANDOM if label == BASELINE else _style(others.index(label)))
    axes.set(xlabel="labels", ylabel=shown(metric), title=title)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    counts = {n for by_seed in by_label.values() for curve in by_seed.values() for n in curve}
    if len(counts) <= 10:
        axes.set_xticks(sorted(counts))
    seeds = [len(by_seed) for by_seed in by_label.values()]
    heading = _heading(min(seeds), max(seeds))
    figure.legend(
        loc="outside right upper", frameon=False, fontsize=9, title=heading, title_fontsize=8
    )
    figure.savefig(path)


def shown(metric: str) -> str:
    """Return a metric's name, with its direction where less of it is better."""
    name = metric.replace("_", " ")
    return f"{name} (lower is better)" if metric in LOWER else name


def _style(i: int) -> dict[str, Any]:
    """Return the look of the i-th strategy; colors come back with another line and marker."""
    return {
        "color": _COLORS[i % len(_COLORS)],
        "linestyle": ("-", "-.", ":")[i // len(_COLORS) % 3],
        "linewidth": 1.6,
        "marker": _MARKERS[i % len(_MARKERS)],
        "zorder": 2.2,
    }


def _heading(fewest: int, most: int) -> str:
    if most == 1:
        return "one seed"
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"mean of {number} seeds" + (", ± sd" if most >= 3 else "")


def _draw(axes: Axes, label: str, by_seed: Mapping[str, Curve], style: dict[str, Any]) -> None:
    shared = _shared(by_seed.values())
    color = style["color"]
    if len(by_seed) < 3 or any(len(curve) > len(shared) for curve in by_seed.values()):
        for curve in by_seed.values():
            x = sorted(curve)
            axes.plot(x, [curve[n] for n in x], color=color, linewidth=0.7, alpha=0.5)
    values = [[curve[n] for curve in by_seed.values()] for n in shared]  # [counts, seeds]
    means = [fmean(column) for column in values]
    if len(by_seed) >= 3:
        spread = [stdev(column) for column in values]
        low = [m - s for m, s in zip(means, spread, strict=True)]
        high = [m + s for m, s in zip(means, spread, strict=True)]
        axes.fill_between(shared, low, high, color=color, alpha=0.13, linewidth=0)
    axes.plot(shared, means, label=label, markersize=4.5, **style)
