"""Signals: hand-computed statistics, one pass per quantity, and nothing changed by asking."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from signal_cases import (
    EVERY,
    IMAGES,
    TABLE,
    Normed,
    ask,
    cnns,
    committee,
    count_calls,
    fixed,
    images,
)
from torch import Tensor, nn

from rayal import acquisition
from rayal.errors import NeedsError
from rayal.labels import ClassLabel
from rayal.models import HookedNet, dropout_masks, evaluating
from rayal.signals import (
    Embedding,
    Forward,
    LogProbs,
    MemberLogProbs,
    MemberMoments,
    MemberStats,
    ViewLogProbs,
    compute,
)
from rayal.tasks import TableTask
from rayal.types import id_keys


def test_statistics_of_opposite_members() -> None:
    made = ask(fixed((1.0, 0.0), (0.0, 1.0)), torch.zeros(3, 1), MemberStats())
    assert made["member_stats.mean"].tolist() == [[0.5, 0.5]] * 3
    assert made["member_stats.entropy"].tolist() == [0.0] * 3
    assert made["member_stats.votes"].tolist() == [[0.5, 0.5]] * 3
    assert made["member_stats.variance"].tolist() == [[0.25, 0.25]] * 3
    mutual = acquisition.bald(made["member_stats.mean"], made["member_stats.entropy"])
    assert mutual.tolist() == [math.log(2)] * 3


def test_statistics_of_unsure_members() -> None:
    made = ask(fixed((0.9, 0.1), (0.1, 0.9)), torch.zeros(1, 1), MemberStats())
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert made["member_stats.entropy"].item() == pytest.approx(entropy, abs=1e-7)
    assert made["member_stats.variance"][0].tolist() == pytest.approx([0.16, 0.16])
    mutual = acquisition.bald(made["member_stats.mean"], made["member_stats.entropy"])
    assert mutual.item() == pytest.approx(0.368064, abs=1e-6)
    deviation = acquisition.mean_standard_deviation(made["member_stats.variance"])
    assert deviation.item() == pytest.approx(0.4)


def test_votes_and_means_differ() -> None:
    even = ask(fixed(*[(0.51, 0.49)] * 3), torch.zeros(1, 1), MemberStats())
    split = ask(fixed((0.9, 0.1), (0.9, 0.1), (0.1, 0.9)), torch.zeros(1, 1), MemberStats())
    assert even["member_stats.votes"].tolist() == [[1.0, 0.0]]
    assert split["member_stats.votes"][0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert split["member_stats.mean"][0].tolist() == pytest.approx([1.9 / 3, 1.1 / 3])


@pytest.mark.parametrize("probs", [(0.3, 0.7), (1 / 3, 2 / 3), (1.0, 0.0), (1e-9, 1 - 1e-9)])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_members_have_nothing_to_tell(probs: tuple[float, ...], size: int) -> None:
    made = ask(fixed(*[probs] * size), torch.zeros(65, 1), MemberStats())
    mean = made["member_stats.mean"]
    assert (made["member_stats.variance"] == 0).all()
    assert torch.equal(acquisition.probability_entropy(mean), made["member_stats.entropy"])
    assert (acquisition.bald(mean, made["member_stats.entropy"]) == 0).all()


class Logits(nn.Module):
    """Answers (s x, 0) in float32."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.scale * x, torch.zeros_like(x)], dim=1)


def test_members_that_nearly_agree_rank_by_their_true_mutual_information() -> None:
    """A float32 mean would leave its rounding, 3e-8 nats, of disagreements below 1e-9."""
    scales = (0.9999, 1.0001)
    nets = [HookedNet(Logits(s), (1,)) for s in scales]
    x = torch.linspace(5.0, 9.0, 300)[:, None]
    made = ask(committee(nets, TABLE), x, MemberStats())
    found = acquisition.bald(made["member_stats.mean"], made["member_stats.entropy"]).numpy()
    logits = np.array([(n(x)[:, 0]).detach().double().numpy() for n in nets], dtype=np.longdouble)
    q = 1 / (1 + np.exp(logits))  # [2, N], of the class that is not expected
    mean = q.mean(axis=0)
    true = (q * np.log(q / mean) + (1 - q) * (np.log1p(-q) - np.log1p(-mean))).mean(axis=0)
    assert 1e-13 < true.min() < true.max() < 1e-8
    assert spearmanr(found, true.astype(float)).statistic > 0.999
    np.testing.assert_allclose(found, true.astype(float), rtol=0.05, atol=1e-13)


@pytest.mark.parametrize("classes", [2, 5])
def test_confident_rows_are_told_apart_through_float32_log_probs(classes: int) -> None:
    """For two classes the three measures rank alike; with more, none of them has ties."""

    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.others = nn.Parameter(torch.zeros(classes - 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.others.expand(len(x), -1)], dim=1)

    task = TableTask(ClassLabel(tuple("abcde"[:classes])), ("f",))
    x = torch.linspace(10.0, 30.0, 400)[torch.randperm(400), None]
    log_probs = ask(committee([HookedNet(Sure(), (1,))], task), x, LogProbs())["log_probs"]
    assert log_probs.dtype == torch.float32
    expected = x[:, 0].argsort(descending=True).tolist()
    for measure in (acquisition.least_confidence, acquisition.margin, acquisition.entropy):
        scores = measure(log_probs)
        assert scores.argsort().tolist() == expected and len(set(scores.tolist())) == 400


def test_log_probs_are_the_log_of_the_mean() -> None:
    asked = fixed((1.0, 0.0), (0.5, 0.5), (0.75, 0.25))
    made = ask(asked, torch.zeros(2, 1), LogProbs(), LogProbs(member=2))
    assert made["log_probs"].exp()[0].tolist() == pytest.approx([0.75, 0.25])
    assert made["log_probs.2"].exp()[0].tolist() == pytest.approx([0.75, 0.25])
    certain = ask(fixed((1.0, 0.0), (1.0, 0.0)), torch.zeros(1, 1), LogProbs())["log_probs"]
    assert certain.tolist() == [[0.0, -math.inf]]


def test_streamed_statistics_agree_with_all_members() -> None:
    asked, x = cnns(), images(64)
    made = ask(asked, x, MemberStats(passes=6), MemberLogProbs(passes=6))
    probs = made["member_log_probs"].double().exp()  # [N, 12, C]
    assert probs.shape == (64, 12, 4)
    close: dict[str, Any] = {"atol": 1e-7, "rtol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(made["member_stats.mean"], probs.mean(1), **close)
    torch.testing.assert_close(made["member_stats.variance"], probs.var(1, correction=0), **close)
    entropies = -(probs * probs.log()).sum(2)
    torch.testing.assert_close(made["member_stats.entropy"], entropies.mean(1), **close)
    votes = nn.functional.one_hot(probs.argmax(2), 4).double().mean(1)
    torch.testing.assert_close(made["member_stats.votes"], votes, **close)
    assert (probs.std(1) > 0).all()


def test_members_and_passes_have_masks_of_their_own() -> None:
    twins = committee([cnns(1).net(0)] * 2)
    made = ask(twins, images(4), MemberLogProbs(passes=3))["member_log_probs"]
    for i in range(6):
        for j in range(i):
            assert not torch.equal(made[:, i], made[:, j])


def test_columns_have_their_shapes_and_types() -> None:
    made = ask(cnns(), images(5), *EVERY)
    shapes = {name: tuple(column.shape) for name, column in made.items()}
    assert shapes == {
        "log_probs": (5, 4),
        "log_probs.1": (5, 4),
        "embedding": (5, 96),
        "member_stats.mean": (5, 4),
        "member_stats.entropy": (5,),
        "member_stats.votes": (5, 4),
        "member_stats.variance": (5, 4),
        "view_log_probs": (5, 2, 4),
        "member_log_probs": (5, 4, 4),
        "logit_mean": (5, 4),
        "logit_variance": (5, 4),
    }
    wide = {n for n, column in made.items() if column.dtype != torch.float32}
    assert wide == {"member_stats.mean", "member_stats.entropy"} and not any(
        c.requires_grad for c in made.values()
    )


def test_embedding_belongs_to_the_log_probs() -> None:
    asked = cnns()
    made = ask(asked, images(8), LogProbs(member=1), Embedding(member=1))
    with torch.inference_mode():
        logits = asked.net(1).head(made["embedding"])
    assert torch.equal(logits.log_softmax(1), made["log_probs.1"])


# ---- sameness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [256, 1000])
def test_columns_do_not_depend_on_the_batch(batch: int) -> None:
    asked, x = cnns(), images(1000)

    def scan(size: int, order: Tensor) -> dict[str, Tensor]:
        parts = []
        for rows in (order[s : s + size] for s in range(0, 1000, size)):
            ids = [f"item/{i}" for i in rows.tolist()]
            padded = torch.cat([x[rows], x.new_zeros(size - len(rows), 1, 8, 8)])
            keys = np.pad(id_keys(ids), (0, size - len(rows)))
            f = Forward(asked, padded, ids, keys, rows=len(rows))
            parts.append({n: c[: len(rows)] for n, c in compute(EVERY, f).items()})
        back = order.argsort()
        return {n: torch.cat([p[n] for p in parts])[back] for n in parts[0]}

    ordered = scan(64, torch.arange(1000))
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for name, column in scan(batch, shuffled).items():
        assert torch.equal(column, ordered[name]), name


def test_the_trunk_runs_once_and_changes_no_bit() -> None:
    asked, x = cnns(1), images(64)
    trunk = [count_calls(stage) for stage in asked.net(0).stages]
    made = ask(asked, x, LogProbs(), Embedding(), MemberLogProbs(passes=5), MemberStats(passes=4))
    assert trunk == [[1]] * 3 + [[3]] * 2  # eval, and masks side by side for each signal
    full = committee([HookedNet(asked.net(0), (1, 8, 8))])
    with evaluating(asked.net(0)):
        assert torch.equal(made["log_probs"], asked.net(0)(x).log_softmax(1))
    assert torch.equal(ask(full, x, LogProbs())["log_probs"], made["log_probs"])
    whole = list(_full_passes(asked, x, 5))
    assert torch.equal(torch.stack(whole, 1), made["member_log_probs"])


def _full_passes(asked: Any, x: Tensor, count: int) -> Iterator[Tensor]:
    for i in range(count):
        with (
            dropout_masks(asked.net(0), seed=5, round=2, member=0, pass_=i),
            torch.inference_mode(),
        ):
            yield asked.net(0)(x).log_softmax(1)


def test_each_quantity_is_computed_once() -> None:
    asked = committee([HookedNet(Normed(), (1, 8, 8)) for _ in range(2)])
    calls = [count_calls(asked.net(m)) for m in range(2)]
    inner = [count_calls(asked.net(m).module) for m in range(2)]
    ask(asked, images(4), LogProbs(), LogProbs(member=0), Embedding(), MemberStats())
    assert inner == [[1], [1]] and calls == [[0], [0]]


def test_views_are_shared_by_members_and_belong_to_rows() -> None:
    asked, x = cnns(), images(64)
    made = ask(asked, x, ViewLogProbs(views=3))["view_log_probs"]
    keys = id_keys(f"item/{i}" for i in range(64))
    seen = [IMAGES.view(x, keys, seed=5, view=k) for k in range(3)]
    for k, view in enumerate(seen):
        assert torch.equal(made[:, k], ask(asked, view, LogProbs())["log_probs"])
    assert not torch.equal(made[:, 0], made[:, 1])


@pytest.mark.parametrize("training", [True, False])
def test_scoring_changes_nothing(training: bool) -> None:
    asked = committee([HookedNet(Normed(), (1, 8, 8)), cnns(1).net(0)])
    for nets in asked.nets:
        nets.train(training)
    before = [{n: t.clone() for n, t in nets.state_dict().items()} for nets in asked.nets]
    chance, x = torch.random.get_rng_state(), images(16)
    kept = x.clone()
    first, second = ask(asked, x, *EVERY), ask(asked, x, *EVERY)
    assert all(torch.equal(first[n], second[n]) for n in first)
    for nets, state in zip(asked.nets, before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in nets.state_dict().items())
        assert all(m.training == training for m in nets.modules())
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in nets.modules())
        assert all(p.grad is None for p in nets.parameters())
    assert torch.equal(torch.random.get_rng_state(), chance) and torch.equal(x, kept)


def test_networks_of_double_precision_are_asked_in_theirs() -> None:
    asked = cnns()
    for nets in asked.nets:
        nets.double()
    made = ask(asked, images(4), *EVERY)
    assert made["log_probs"].dtype == made["embedding"].dtype == torch.float32


def test_autocast_keeps_columns_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = ask(cnns(), images(4), *EVERY)
    exact = ask(cnns(), images(4), *EVERY)
    assert made["log_probs"].dtype == made["embedding"].dtype == torch.float32
    total = made["log_probs.1"].exp().sum(1)
    torch.testing.assert_close(total, torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(made["log_probs"], exact["log_probs"], atol=0.02, rtol=0)


def test_moments_of_logits_by_hand() -> None:
    # of (1/2, 1/2) and (4/5, 1/5): centred logits 0 and ±log 2
    made = ask(fixed((0.5, 0.5), (0.8, 0.2)), torch.zeros(3, 1), MemberMoments())
    half = math.log(2.0) / 2
    for row in range(3):
        assert made["logit_mean"][row].tolist() == pytest.approx([half, -half])
        assert made["logit_variance"][row].tolist() == pytest.approx([half**2] * 2)
    same = ask(fixed((0.3, 0.7), (0.3, 0.7)), torch.zeros(1, 1), MemberMoments())
    assert same["logit_variance"].tolist() == [[0.0, 0.0]]
    sure = ask(fixed((1.0, 0.0), (1.0, 0.0)), torch.zeros(1, 1), MemberMoments())
    assert sure["logit_mean"].tolist() == [[50.0, -50.0]]  # log 0 counts -100


def test_moments_of_logits_are_those_of_the_passes() -> None:
    asked = cnns(2, dropout=0.5)
    made = ask(asked, images(5), MemberMoments(passes=4), MemberLogProbs(passes=4))
    logits = made["member_log_probs"].double()
    logits = logits - logits.mean(dim=2, keepdim=True)
    torch.testing.assert_close(made["logit_mean"].double(), logits.mean(dim=1), rtol=0, atol=1e-6)
    spread = logits.var(dim=1, correction=0)
    torch.testing.assert_close(made["logit_variance"].double(), spread, rtol=1e-5, atol=1e-7)
    with pytest.raises(NeedsError, match="disagreement needs two"):
        MemberMoments().check(cnns(1))
