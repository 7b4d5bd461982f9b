from __future__ import annotations

import math
from pathlib import Path
from statistics import stdev
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rayal.errors import SettingsError, StorageError
from rayal.evaluation.curves import (
    CurvePoint,
    leading,
    plot,
    read_curve_csv,
    summary,
    write_curve_csv,
)
from rayal.evaluation.report import table
from rayal.evaluation.statistics import paired_bootstrap


def curve(strategy: str, seed: str, values: dict[int, float]) -> list[CurvePoint]:
    return [
        CurvePoint(strategy, seed, i, n, {"accuracy": v}, {"train": 1.5})
        for i, (n, v) in enumerate(values.items())
    ]


POINTS = [
    *curve("margin", "0", {100: 0.5, 200: 0.7, 300: 0.9}),
    *curve("random", "0", {100: 0.5, 200: 0.6, 300: 0.7}),
    *curve("margin", "1", {100: 0.4, 200: 0.7, 300: 0.7}),
    *curve("random", "1", {100: 0.4, 200: 0.5, 300: 0.6}),
    *curve("margin", "2", {100: 0.6, 200: 0.8, 300: 0.85}),
    *curve("random", "2", {100: 0.6, 200: 0.7, 300: 0.8}),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def record(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def test_csv_holds_the_points_exactly(tmp_path: Path) -> None:
    points = [
        CurvePoint("a, b", "0-1-2", 0, 100, {"accuracy": 1 / 3, "log_loss": 1e-17}, {}),
        CurvePoint("ü", "0", 1, 10**7, {"accuracy": float(np.float64(0.1))}, {"scan": 2.0}),
        CurvePoint("ü", "0", 2, 10**8, {"log_loss": 3.0}, {"train": 0.25, "scan": 1.0}),
    ]
    write_curve_csv(tmp_path / "curve.csv", points)
    assert read_curve_csv(tmp_path / "curve.csv") == points


def test_csv_has_one_line_per_point_and_plain_columns(tmp_path: Path) -> None:
    write_curve_csv(tmp_path / "curve.csv", curve("margin", "0", {100: 0.5, 200: 0.7}))
    assert (tmp_path / "curve.csv").read_text().splitlines() == [
        "strategy,seed,round,labels,accuracy,seconds.train",
        "margin,0,0,100,0.5,1.5",
        "margin,0,1,200,0.7,1.5",
    ]


def test_csv_of_no_points_is_a_header(tmp_path: Path) -> None:
    write_curve_csv(tmp_path / "curve.csv", [])
    assert read_curve_csv(tmp_path / "curve.csv") == []


@pytest.mark.parametrize("name", ["labels", "seconds.train"])
def test_metric_named_like_another_column_is_refused(tmp_path: Path, name: str) -> None:
    point = CurvePoint("a", "0", 0, 1, {name: 0.5}, {})
    with pytest.raises(SettingsError, match=f"'{name}'.*rename the metric"):
        write_curve_csv(tmp_path / "curve.csv", [point])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategy,seed,round\na,0,0\n", r"columns \['labels'\] are missing"),
        ("strategy,seed,round,labels,accuracy\na,0,0,100,high\n", "line 2 is not a point"),
        ("strategy,seed,round,labels,accuracy\na,0,0,100,.5\na,0,1\n", "line 3 is not a point"),
        ("strategy,seed,round,labels\na,0,0,100,7\n", "line 2 is not a point"),
        ('strategy,seed,round,labels\n"a,0,0,100', "is not a CSV file"),
    ],
)
def test_damaged_csv_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(StorageError, match=message):
        read_curve_csv(tmp_path / "curve.csv")


def test_missing_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"curve\.csv does not exist"):
        read_curve_csv(tmp_path / "curve.csv")


def test_summary_by_hand() -> None:
    random, margin = summary(POINTS)
    assert (random.label, random.n_seeds, random.difference) == ("random", 3, None)
    assert random.at == pytest.approx({100: 0.5, 200: 0.6, 300: 0.7})
    assert random.mean == pytest.approx(0.6)
    assert random.sd == pytest.approx(stdev([0.6, 0.5, 0.7]))
    assert (margin.label, margin.n_seeds) == ("margin", 3)
    means, base = [0.7, 0.6, 0.75], [0.6, 0.5, 0.7]
    assert margin.mean == pytest.approx(sum(means) / 3)
    assert margin.difference is not None
    assert margin.difference.mean == pytest.approx(0.25 / 3)
    expected = paired_bootstrap(means, base)
    assert margin.difference.low == pytest.approx(expected.low)
    assert margin.difference.high == pytest.approx(expected.high)


def test_summary_does_not_depend_on_the_order_of_points() -> None:
    shuffled = POINTS[::-1]
    assert {r.label: r for r in summary(shuffled)} == {r.label: r for r in summary(POINTS)}


def test_nothing_is_interpolated() -> None:
    rows = summary(POINTS, at=(50, 100, 150, 300, 400))
    assert [list(row.at) for row in rows] == [[100, 300], [100, 300]]


def test_a_count_that_one_seed_lacks_is_not_shown() -> None:
    points = [p for p in POINTS if (p.strategy, p.seed, p.labels) != ("margin", "2", 300)]
    random, margin = summary(points)
    assert list(random.at) == [100, 200, 300] and list(margin.at) == [100, 200]


def test_unfinished_curve_is_compared_over_its_own_stretch() -> None:
    points = [
        *curve("random", "0", {100: 0.5, 200: 0.6, 300: 1.0}),
        *curve("margin", "0", {100: 0.5, 200: 0.7}),
    ]
    difference = summary(points)[1].difference
    assert difference is not None and difference.mean == pytest.approx(0.05)


def test_pairs_are_by_seed_and_unpaired_seeds_are_left_out() -> None:
    points = [
        *curve("random", "0", {100: 0.5}),
        *curve("random", "1", {100: 0.1}),
        *curve("margin", "1", {100: 0.3}),
        *curve("margin", "9", {100: 0.9}),
        *curve("badge", "8", {100: 0.9}),
    ]
    _, margin, badge = summary(points)
    assert margin.difference is not None
    assert margin.difference.n == 1 and margin.difference.mean == pytest.approx(0.2)
    assert badge.difference is None and math.isnan(badge.sd)


def test_summary_without_random_has_no_differences() -> None:
    rows = summary([p for p in POINTS if p.strategy == "margin"])
    assert [(r.label, r.difference) for r in rows] == [("margin", None)]


def test_unknown_metric_and_doubled_rounds_are_refused() -> None:
    with pytest.raises(SettingsError, match="'acuracy'; did you mean 'accuracy'"):
        summary(POINTS, "acuracy")
    with pytest.raises(SettingsError, match="round 0 of 'margin' with seed '0' is given twice"):
        summary([*POINTS, POINTS[0]])


def test_picture_is_150_dpi_and_leaves_no_global_state(tmp_path: Path) -> None:
    backend = dict(matplotlib.rcParams)
    plot(tmp_path / "curve.png", POINTS, title="margin or not")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1200, 675) and picture.format == "PNG"
    assert dict(matplotlib.rcParams) == backend


def test_picture_draws_means_bands_and_random_first(tmp_path: Path, drawn: list[Figure]) -> None:
    plot(tmp_path / "curve.png", POINTS, title="margin or not")
    axes = drawn[0].axes[0]
    random, margin = axes.get_lines()
    np.testing.assert_allclose(random.get_xydata(), [[100, 0.5], [200, 0.6], [300, 0.7]])  # type: ignore[arg-type]
    assert random.get_linestyle() == "--" and margin.get_linestyle() == "-"
    assert random.get_color() != margin.get_color()
    low, high = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1].min(), 0.8
    assert low == pytest.approx(0.4) and len(axes.collections) == 2
    assert axes.collections[0].get_paths()[0].get_extents().y1 == pytest.approx(high)
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["random", "margin"]
    assert legend.get_title().get_text() == "mean of 3 seeds, ± sd"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("labels", "accuracy")
    assert axes.get_title() == "margin or not"


def test_legend_stands_outside_the_axes(tmp_path: Path, drawn: list[Figure]) -> None:
    plot(tmp_path / "curve.png", POINTS)
    figure = drawn[0]
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= figure.axes[0].get_window_extent().x1


def test_two_seeds_are_thin_lines_without_a_band(tmp_path: Path, drawn: list[Figure]) -> None:
    plot(tmp_path / "curve.png", [p for p in POINTS if p.seed != "2"])
    axes = drawn[0].axes[0]
    assert len(axes.get_lines()) == 2 * (2 + 1) and not axes.collections
    assert drawn[0].legends[0].get_title().get_text() == "mean of 2 seeds"


def test_mean_ends_where_a_seed_ends(tmp_path: Path, drawn: list[Figure]) -> None:
    unfinished = [p for p in POINTS if (p.strategy, p.seed, p.labels) != ("margin", "2", 300)]
    plot(tmp_path / "curve.png", unfinished)
    lines = drawn[0].axes[0].get_lines()
    mean = next(line for line in lines if line.get_label() == "margin")
    assert list(np.asarray(mean.get_xdata())) == [100, 200] and len(lines) == 2 + 3


def test_thirty_strategies_all_look_different(tmp_path: Path, drawn: list[Figure]) -> None:
    points = [p for i in range(30) for p in curve(f"s{i}", "0", {1: 0.01 * i, 2: 0.01 * i})]
    plot(tmp_path / "curve.png", points)
    lines = [li for li in drawn[0].axes[0].get_lines() if str(li.get_label()).startswith("s")]
    looks = {(li.get_color(), li.get_marker(), li.get_linestyle()) for li in lines}
    assert len(looks) == len(lines) == 30 and drawn[0].legends[0].get_title().get_text()


ERRORS = [
    CurvePoint(s, str(seed), i, 20 + i, {"rmse": value, "nll": 1.0}, {})
    for s, values in {"random": (5.0, 4.0), "pbp": (5.0, 3.0)}.items()
    for seed in range(3)
    for i, value in enumerate(v + 0.1 * seed for v in values)
]


def test_less_of_an_error_is_better() -> None:
    assert leading(ERRORS) == "rmse" and leading(POINTS) == "accuracy" == leading([])
    random, pbp = summary(ERRORS, at=(20, 21))
    assert random.difference is None and pbp.difference is not None
    assert pbp.difference.mean == pytest.approx(0.5)  # random has 0.5 more of it
    assert pbp.at == {20: pytest.approx(5.1), 21: pytest.approx(3.1)}
    worse = [CurvePoint(p.strategy, p.seed, p.round, p.labels, {"rmse": -p.metrics["rmse"]}, {})
             for p in ERRORS]  # fmt: skip
    other = summary(worse)[1].difference
    assert other is not None and other.mean == pytest.approx(-0.5)


def test_tables_and_pictures_of_an_error_tell_its_direction(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    view = table(ERRORS)
    assert view.title == "rmse (lower is better) by number of labels"
    assert "random minus it, 90 %" in [column.header for column in view.columns]
    assert "minus random, 90 %" in [column.header for column in table(POINTS).columns]
    plot(tmp_path / "curve.png", ERRORS)
    assert drawn[0].axes[0].get_ylabel() == "rmse (lower is better)"
