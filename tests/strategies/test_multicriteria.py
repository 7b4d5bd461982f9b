"""MCADL: each criterion by hand and by brute force, its weights, and rounds on real digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_cases import PLAIN, committee_of, digit_spec, items, picks, pool_rows, rounds_of
from torch import Tensor

import rayal
from rayal.engine.project import Project
from rayal.engine.remember import recall
from rayal.learners import TrainContext, TrainData, TrainState
from rayal.registry import strategies
from rayal.selection import criteria
from rayal.selection.criteria import MultiCriteria, Weights, among
from rayal.selection.functions import select_rows
from rayal.strategies.base import Outcome
from rayal.strategies.multicriteria import (
    MCADL,
    CertainPseudoLabels,
    accuracies,
    class_weights,
    overall,
)
from rayal.types import Columns


def made_up(rows: int, seed: int, classes: int = 4, width: int = 6) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    probs = torch.from_numpy(rng.dirichlet(np.ones(classes), size=rows))
    return {
        "log_probs": probs.log().float(),
        "embedding": torch.from_numpy(rng.normal(size=(rows, width))).float(),
    }


def reference(
    pool: dict[str, Tensor], labeled: dict[str, Tensor], weights: Weights, neighbors: int = 5
) -> Tensor:
    """Return the sums by loops over all pairs, float64."""
    classes = pool["log_probs"].shape[1]
    theirs = labeled["log_probs"].argmax(dim=1).tolist()
    points = labeled["embedding"].double()
    values = []
    for x, log_p in zip(pool["embedding"].double(), pool["log_probs"].double(), strict=True):
        cosines = [float(x @ y / (x.norm() * y.norm())) for y in points]
        near = sorted(range(len(cosines)), key=lambda j: -cosines[j])[:neighbors]
        votes = [sum(1 + 0.01 * cosines[j] for j in near if theirs[j] == c) for c in range(classes)]
        own = int(np.argmax(votes))
        same = [c for c, t in zip(cosines, theirs, strict=True) if t == own]
        everyone = cosines if weights.among_all else same
        top = log_p.exp().sort(descending=True).values
        each = weights.classes or (1 / classes,) * classes
        values.append(
            weights.density * (1 - float(np.mean(everyone)))
            + weights.similarity * (1 - max(same))
            + weights.uncertainty * (1 - float(top[0] - top[1]))
            + weights.label * each[own]
        )
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("block", [3, 512])
def test_the_sum_equals_loops_over_all_pairs(
    block: int, everyone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "BLOCK", block)
    pool, labeled = made_up(150, 0), made_up(40, 1)
    weights = Weights(0.3, 0.25, 0.35, 0.5, (0.1, 0.2, 0.3, 0.4), among_all=everyone)
    made = select_rows(MultiCriteria(weights=weights), pool, 150, context=labeled)
    expected = reference(pool, labeled, weights)
    ours = torch.empty(150, dtype=torch.float64)
    ours[torch.from_numpy(made.positions)] = torch.from_numpy(made.scores)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def scores(
    pool: dict[str, Any], labeled: dict[str, Any] | None, weights: Weights, **more: Any
) -> list[float]:
    made = select_rows(
        MultiCriteria(weights=weights, **more), pool, len(pool["embedding"]), context=labeled
    )
    found = dict(zip(made.positions.tolist(), made.scores.tolist(), strict=True))
    return [found[i] for i in range(len(found))]


def test_density_and_similarity_by_hand() -> None:
    # labeled: two of class 0 along x and at 60 degrees, one of class 1 along -y
    half, root = 0.5, math.sqrt(0.75)
    labeled = {
        "embedding": torch.tensor([[2.0, 0.0], [half, root], [0.0, -3.0]]),
        "log_probs": torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]).log(),
    }
    pool = {
        "embedding": torch.tensor([[5.0, 0.0], [0.0, -1.0], [0.0, 1.0], [0.0, 0.0]]),
        "log_probs": torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9], [0.5, 0.5]]).log(),
    }
    similar = scores(pool, labeled, Weights(0, 1, 0, 0), neighbors=1)
    assert similar[:3] == pytest.approx([0.0, 0.0, 1 - root], abs=1e-6)  # copies are at 0
    dense = scores(pool, labeled, Weights(1, 0, 0, 0), neighbors=1)
    assert dense[:3] == pytest.approx([1 - 0.75, 0.0, 1 - root / 2], abs=1e-6)
    everyone = scores(pool, labeled, Weights(1, 0, 0, 0, among_all=True), neighbors=1)
    assert everyone[0] == pytest.approx(1 - 1.5 / 3, abs=1e-6)
    assert all(math.isfinite(s) for s in (*similar, *dense))  # a row of zeros has no direction
    weight = scores(pool, labeled, Weights(0, 0, 0, 1, (0.2, 0.8)), neighbors=1)
    assert weight[:3] == [0.2, 0.8, 0.2]  # the labeled rows decide, not the row's own prediction


def test_without_labeled_rows_density_and_similarity_are_one() -> None:
    pool = made_up(20, 2)
    assert scores(pool, None, Weights(1, 0, 0, 0)) == [1.0] * 20
    assert scores(pool, None, Weights(0, 1, 0, 0)) == [1.0] * 20
    own = pool["log_probs"].argmax(dim=1)
    each = (0.1, 0.2, 0.3, 0.4)
    assert scores(pool, None, Weights(0, 0, 0, 1, each)) == [each[c] for c in own.tolist()]


def test_equal_neighbors_all_vote() -> None:
    # a search by value would find the first of the equal ones again and again
    x = torch.tensor([[1.0, 0.0]])
    units = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    _, own = among(x, units, torch.tensor([2, 3]), 5)
    assert own.tolist() == [1]
    _, own = among(x, torch.tensor([[0.9, 0.1], [1.0, 0.0]]), torch.tensor([1, 1]), 2)
    assert own.tolist() == [1]  # of a tie the nearer side
    largest, own = among(x, torch.tensor([[-1.0, 0.0]]), torch.tensor([0, 1, 0]), 5)
    assert own.tolist() == [1] and largest.tolist() == [[-2.0, -1.0, -2.0]]


def test_a_confident_item_is_not_uncertain() -> None:
    # the printed measure takes the fewest classes that hold half of the mass, and their scatter:
    # of one class it is 0, so that every p_1 > 1/2 counts as 1
    probs = torch.tensor(
        [[0.97, 0.02, 0.01], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.6, 0.3, 0.1]]
    )
    made = MCADL().score(Columns({"log_probs": probs.log()}, list("abcd")))
    assert made.tolist() == pytest.approx([0.05, 1.0, 0.0, 0.7], abs=1e-6)


def remembered(
    rows: list[float], right: list[float], last: list[float] | None = None
) -> dict[str, Tensor]:
    made = {"rows": torch.tensor(rows).double(), "right": torch.tensor(right).double()}
    return made | ({} if last is None else {"last": torch.tensor(last).double()})


def test_adaptive_weights_fall_with_the_accuracy() -> None:
    first = MCADL().weights({})  # A = 0
    assert (first.density, first.similarity) == (0.45, 0.45)
    assert (first.uncertainty, first.label) == pytest.approx((0.09, 0.01))
    made = [MCADL().weights(remembered([10, 10], [a, a])) for a in (0.0, 2.0, 5.0, 10.0)]
    alphas = [w.density + w.similarity for w in made]
    betas = [w.uncertainty / (w.uncertainty + w.label) for w in made]
    assert alphas == sorted(alphas, reverse=True) and len(set(alphas)) == 4
    assert betas == pytest.approx(alphas) and alphas[3] == pytest.approx(0.9 * math.exp(-1.0))
    for w in made:
        assert w.density + w.similarity + w.uncertainty + w.label == pytest.approx(1.0)
    only = MCADL(alpha=1.0).weights({})
    assert (only.uncertainty, only.label) == (0.0, 0.0) and only.density == only.similarity == 0.5


def test_class_weights_follow_improvement_and_then_balance() -> None:
    poor = remembered([10, 10, 10], [2, 6, 8], [0.1, 0.6, 0.5])
    assert class_weights(poor).tolist() == pytest.approx([0.25, 0.0, 0.75])
    good = remembered([10, 10, 10], [5, 10, 10], [0.1, 0.6, 0.5])
    assert class_weights(good).tolist() == pytest.approx([0.5, 0.25, 0.25])
    # the authors' form looks at improvements alone
    assert class_weights(good, "script").tolist() == pytest.approx(
        [0.4 / 1.3, 0.4 / 1.3, 0.5 / 1.3]
    )
    equal = remembered([4, 8], [3, 6])
    assert class_weights(equal).tolist() == [0.5, 0.5]


def test_class_weights_are_of_any_number_of_classes_and_finite() -> None:
    for classes in (2, 3, 11):  # not ten
        zero = remembered([3] * classes, [0] * classes, [0.5] * classes)
        assert class_weights(zero).tolist() == pytest.approx([1 / classes] * classes)
        never = remembered([0] * classes, [0] * classes)
        assert class_weights(never).sum().item() == pytest.approx(1.0)
    unseen = remembered([4, 0], [3, 0])
    assert accuracies(unseen).tolist() == [0.75, 0.75] and overall(unseen) == 0.75


def outcome(predicted: list[int], targets: list[int], labeled: list[bool] | None = None) -> Outcome:
    log_probs = torch.log_softmax(5.0 * torch.nn.functional.one_hot(torch.tensor(predicted), 3), 1)
    ids = [str(i) for i in range(len(predicted))]
    told = torch.tensor(labeled or [True] * len(ids))
    before = Columns({"log_probs": log_probs}, ids)
    return Outcome(0, 0, ids, told, torch.tensor(targets), before, before, {})


def test_the_memory_counts_the_predictions_made_before_the_labels_came() -> None:
    first = MCADL().remember({}, outcome([0, 0, 1, 2], [0, 1, 1, 0], [True, True, True, False]))
    assert first["rows"].tolist() == [1, 2, 0] and first["right"].tolist() == [1, 1, 0]
    assert "last" not in first and accuracies(first)[:2].tolist() == [1.0, 0.5]
    second = MCADL().remember(first, outcome([1, 1], [1, 1]))
    assert second["rows"].tolist() == [0.5, 3, 0] and second["right"].tolist() == [0.5, 2.5, 0]
    assert second["last"].tolist() == accuracies(first).tolist()
    fresh = MCADL(keep=0.0).remember(first, outcome([1, 1], [1, 0]))
    assert fresh["rows"].tolist() == [1, 1, 0] and fresh["right"].tolist() == [0, 1, 0]


BASE = [{"form": "script", "alpha": 0.0}, {"alpha": 0.0, "beta": 1.0}]


@pytest.mark.parametrize("params", BASE)
def test_with_all_other_criteria_off_it_is_margin(params: dict[str, Any]) -> None:
    pool, labeled = made_up(3000, 3), made_up(50, 4)
    ours = rayal.select("multicriteria", pool, 200, labeled=labeled, params=params)
    base = rayal.select("margin", pool, 200)
    assert ours.positions.tolist() == base.positions.tolist()
    np.testing.assert_allclose(ours.scores - 1.0, base.scores, rtol=0, atol=1e-15)
    on = rayal.select("multicriteria", pool, 200, labeled=labeled)
    assert on.positions.tolist() != base.positions.tolist()


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_the_authors_form(share: float) -> None:
    pool, labeled = made_up(100, 5), made_up(30, 6)
    params = {"form": "script", "alpha": share}
    made = rayal.select("multicriteria", pool, 100, labeled=labeled, params=params)
    weights = Weights(share * (1 - share), 0.0, 1 - share, share * share, among_all=True)
    expected = reference(pool, labeled, weights)
    assert made.scores == pytest.approx(
        expected[torch.from_numpy(made.positions)].numpy(), abs=2e-6
    )


def test_the_share_of_labeled_items_weighs_the_authors_form() -> None:
    w = MCADL(form="script").weights({}, 0.25)
    assert (w.density, w.uncertainty, w.label) == (0.1875, 0.75, 0.0625)


def test_rounds_on_digits_remember_accuracies_that_do_not_saturate(tmp_path: Path) -> None:
    project = rounds_of(tmp_path / "one", MCADL(), rounds=3, keep="all")
    memory = recall(project.workspace, 2, committee_of(project, 2)).memory
    assert set(memory) == {"rows", "right", "last"}
    assert float(memory["rows"].sum()) == 0.5 * 20 + 20  # two batches of 20
    raw, y = pool_rows(project)
    ids = [f"digit-{i:04d}" for i in range(len(y))]
    first = [item for item, _ in picks(project)[:20]]
    at = [ids.index(item) for item in first]
    committee = committee_of(project, 0)
    with torch.inference_mode():
        x = committee.task.transform(raw[at], committee.statistics)
        right = committee.net(0).eval()(x).argmax(dim=1) == y[at]
    first_memory = recall(project.workspace, 1, committee_of(project, 1)).memory
    assert overall(first_memory) == pytest.approx(right.double().mean().item())
    assert overall(memory) < 0.9  # on its own training rows it is right everywhere
    selection = project.ledger.selection("p", 2)
    assert selection is not None
    stated = selection.provenance["drawn"]["weights"]
    assert stated["density"] == pytest.approx(0.45 * math.exp(-overall(memory)))
    assert sum(stated["classes"]) == pytest.approx(1.0) and len(stated["classes"]) == 10
    for shards in (2, 7):
        other = rounds_of(tmp_path / str(shards), MCADL(), rounds=3, keep="last", shards=shards)
        assert picks(other) == picks(project)


def test_a_project_with_all_other_criteria_off_picks_as_margin_does(tmp_path: Path) -> None:
    off = rounds_of(tmp_path / "off", MCADL(alpha=0.0, beta=1.0), rounds=2)
    base = rounds_of(tmp_path / "base", strategies["margin"](), rounds=2)
    on = rounds_of(tmp_path / "on", MCADL(), rounds=2)
    assert items(off) == items(base) != items(on)
    assert digit_spec(MCADL()).strategy.signals() == MCADL().signals()


# ---- pseudo-labels -------------------------------------------------------------------------------


def test_the_threshold_falls_with_the_labels() -> None:
    learner = CertainPseudoLabels()
    assert learner.limit(100) == pytest.approx(0.3)
    assert learner.limit(228) == pytest.approx(0.3 - 0.0375)
    assert learner.limit(2000) < 0.0


def weights(project: Project, round: int) -> list[Tensor]:
    return [p.detach() for p in committee_of(project, round).net(0).parameters()]


def test_certain_items_of_the_last_round_are_trained_on_for_one_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[int, tuple[TrainState, TrainData]] = {}

    def begin(self: CertainPseudoLabels, ctx: TrainContext, data: TrainData) -> TrainState:
        state = original(self, ctx, data)
        begun[ctx.round] = (state, data)
        return state

    original = CertainPseudoLabels.begin
    monkeypatch.setattr(CertainPseudoLabels, "begin", begin)
    given = dataclasses.asdict(PLAIN)
    learner = CertainPseudoLabels(**given, threshold=0.5, decline=0.0)
    on = rounds_of(tmp_path / "on", strategies["random"](), learner=learner, rounds=2, keep="picks")
    assert "rows.pseudo" not in begun[0][0].tables and on.spec.keep == "last"
    raw, y = pool_rows(on)
    known = on.ledger.resolved("p", on.ledger.rounds("p")[1].labels_seq)
    committee = committee_of(on, 0)
    with torch.inference_mode():
        x = committee.task.transform(raw, committee.statistics)
        log_probs = committee.net(0).eval()(x).log_softmax(dim=1).double()
    digits = -(log_probs.exp() * log_probs).sum(dim=1) / math.log(10)
    certain = [
        f"digit-{i:04d}" for i in torch.nonzero(digits < 0.5)[:, 0].tolist()
        if f"digit-{i:04d}" not in known
    ]  # fmt: skip
    state, data = begun[1]
    assert data.unlabeled is not None and certain
    assert [data.unlabeled.ids[i] for i in state.tables["rows.pseudo"].tolist()] == certain
    own = log_probs.argmax(dim=1)[[int(i.removeprefix("digit-")) for i in certain]]
    assert torch.equal(state.tables["targets.pseudo"], own)
    assert not torch.equal(own, y[[int(i.removeprefix("digit-")) for i in certain]])
    assert len(on.ledger.resolved("p")) == 60 + 2 * 20  # they are no labels

    none = CertainPseudoLabels(**given, threshold=0.0)
    off = rounds_of(tmp_path / "off", strategies["random"](), learner=none, rounds=2)
    base = rounds_of(tmp_path / "base", strategies["random"](), learner=PLAIN, rounds=2)
    for round in (0, 2):
        pairs = zip(weights(off, round), weights(base, round), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(weights(on, 2)[0], weights(base, 2)[0])
