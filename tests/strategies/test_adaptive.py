"""RAL: its episode, rewards and REINFORCE by hand; its memory and picks through real rounds."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from digit_cases import PLAIN, committee_of, digit_pool, digit_spec, items, picks, rounds_of
from loop_cases import finish
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

import rayal
from rayal.engine.project import Project
from rayal.engine.remember import recall
from rayal.errors import NeedsError, SettingsError
from rayal.learners import LabeledBatch, Supervised
from rayal.learners.checkpoint import read_checkpoint, write_checkpoint
from rayal.learners.supervised import NO_KEYS
from rayal.ledger import Ledger
from rayal.models.base import TaskNet
from rayal.models.moments import MomentNet, log_probit, one_against_all
from rayal.registry import strategies
from rayal.selection.draws import uniform
from rayal.selection.episode import Episode, candidates, replay
from rayal.selection.functions import select_rows
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.tiles import cut_tiles
from rayal.strategies.adaptive import (
    RAL,
    LearnedPolicy,
    MomentPropagation,
    PolicyNet,
    discounted,
    entropies,
    likelihood,
)
from rayal.strategies.base import Memory, Outcome
from rayal.types import Columns

SMALL = RAL(leading=60, stride=6, hidden=16)


def moments(rows: int, seed: int, classes: int = 4) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "logit_mean": torch.from_numpy(rng.normal(size=(rows, classes))).float(),
        "logit_variance": torch.from_numpy(rng.gamma(1.0, size=(rows, classes))).float(),
    }


# ---- entropies, losses ---------------------------------------------------------------------------


def test_entropies_by_hand() -> None:
    zero = torch.zeros(1, 3)
    made = entropies(torch.tensor([[0.0, 1.0, -1.0]]), zero).item()
    p = 0.8413447460685429
    assert made == pytest.approx(math.log(2) - 2 * (p * math.log(p) + (1 - p) * math.log(1 - p)))
    unknown = entropies(torch.randn(2, 7), torch.full((2, 7), 1e30))
    assert unknown.tolist() == pytest.approx([7 * math.log(2)] * 2)  # the maximum
    sure = entropies(torch.tensor([[40.0, -40.0]]), torch.zeros(1, 2)).item()
    assert 0.0 <= sure < 1e-12


def test_the_loss_is_a_binary_cross_entropy_of_each_class() -> None:
    z = torch.randn(6, 5).double()
    y = F.one_hot(torch.arange(6) % 5, 5).double()
    p = torch.special.ndtr(z)
    expected = F.binary_cross_entropy(p, y, reduction="none").sum(dim=1)
    torch.testing.assert_close(one_against_all(z, torch.zeros_like(z), y), expected)
    wide = one_against_all(2.0 * z, torch.full_like(z, 3.0), y)  # 2 z / sqrt(1 + 3)
    torch.testing.assert_close(wide, expected)
    wild = torch.tensor([[9.0, 30.0, -30.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 1.0]])
    one_against_all(wild, torch.zeros(1, 3), targets).sum().backward()  # type: ignore[no-untyped-call]
    assert wild.grad is not None and bool(torch.isfinite(wild.grad).all())


class Bias(TaskNet):
    """A network of one linear layer whose output is its bias."""

    def __init__(self, *bias: float) -> None:
        super().__init__({"head": nn.Linear(1, len(bias))})
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor(bias))


@pytest.mark.parametrize("z", [12.0, 14.0, 30.0, 3000.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_that_is_surely_wrong_still_has_a_gradient(z: float, smoothing: float) -> None:
    net = MomentNet(Bias(z, -z, 0.0))  # sure of class 0, and the label is 1
    batch = LabeledBatch((), NO_KEYS, (torch.zeros(1, 1),), torch.tensor([1]))
    losses = MomentPropagation()._losses(net, batch, 0.5, smoothing)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    head = net.stages[-1]
    made = next(p.grad for name, p in head.named_parameters() if name == "bias")
    assert made is not None
    hot = np.array([0.0, 1.0, 0.0]) * (1 - smoothing) + smoothing / 3
    at = np.array([z, -z, 0.0])
    hazard = np.exp(stats.norm.logpdf(at) - stats.norm.logcdf(at))  # d log Φ(z) / dz
    other = np.exp(stats.norm.logpdf(at) - stats.norm.logcdf(-at))
    np.testing.assert_allclose(made.numpy(), -hot * hazard + (1 - hot) * other, rtol=1e-5)
    assert made[0] > 0 > made[1]
    expected = -(hot * stats.norm.logcdf(at) + (1 - hot) * stats.norm.logcdf(-at)).sum()
    assert losses.item() == pytest.approx(expected, rel=1e-5)
    weighed = dataclasses.replace(batch, weight=torch.tensor([3.0]))
    made = MomentPropagation()._losses(net, weighed, 0.5, smoothing)
    assert made.item() == pytest.approx(3.0 * losses.item())


def test_likelihoods_are_probabilities_of_classes() -> None:
    # one-against-all probabilities need not sum to 1, so that each alone is none of a label
    made = moments(5, 0)
    each = torch.stack([likelihood(made, torch.full((5,), c)) for c in range(4)], dim=1)
    assert each.sum(dim=1).tolist() == pytest.approx([1.0] * 5)
    raw = log_probit(made["logit_mean"].double(), made["logit_variance"].double()).exp()
    assert (raw.sum(dim=1) - 1.0).abs().min() > 0.02
    torch.testing.assert_close(each, raw / raw.sum(dim=1, keepdim=True))


# ---- the episode ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Last:
    """Takes the last candidate, always, and notes how many there were."""

    seen: list[npt.NDArray[Any]] = dataclasses.field(default_factory=list)

    def __call__(self, mean: npt.NDArray[Any], variance: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self.seen.append(mean[:, 0].copy())
        return np.where(np.arange(len(mean)) == len(mean) - 1, 0.0, -np.inf)


def test_candidates_are_taken_anew_from_what_is_left() -> None:
    scores = np.arange(20.0)[::-1]
    columns = {
        "score": scores,
        "logit_mean": np.arange(40.0).reshape(20, 2),
        "logit_variance": np.ones((20, 2)),
    }
    policy = Last()
    made = select_rows(Episode(leading=9, stride=4, policy=policy), columns, 3)
    # of rows 0…8 those at 0, 4, 8; then 8 is gone, and 9 has moved up; then 9 is gone too
    assert made.positions.tolist() == [8, 9, 10]
    assert [seen.tolist() for seen in policy.seen] == [[0, 8, 16], [0, 8, 18], [0, 8, 20]]
    assert made.scores.tolist() == [11.0, 10.0, 9.0]


def episode(strategy: RAL, columns: dict[str, Tensor], k: int, memory: Memory | None = None) -> Any:
    """Return a choice over tiles, with its notes."""
    n = len(columns["logit_mean"])
    score = strategy.score(Columns(columns, [str(i) for i in range(n)]))
    ctx = rayal.strategies.Ctx(round=1, k=k, seed=5, n_candidates=n, memory=memory or {})
    objective = strategy.objective(ctx)
    held = {"score": score, **columns}
    tiles = cut_tiles(np.arange(n, dtype=np.uint64), {c: held[c] for c in objective.needs})
    return choose(objective, LocalShards([Shard(objective, tiles, 5)]), k, seed=5)


def test_what_is_labeled_is_what_the_policy_took() -> None:
    # an index into what was left after the first removal would name other rows than those credited
    columns = moments(300, 1)
    made = episode(SMALL, columns, 25)
    keys = made.keys.astype(np.int64)
    assert len(set(keys.tolist())) == 25
    order = np.lexsort((np.arange(300), -entropies(*columns.values()).numpy()))
    steps = replay(len(made.notes["mean"]), made.notes["slots"], 60, 6)
    assert len(made.notes["mean"]) == 60 + 25
    for step, (found, slot) in enumerate(zip(steps, made.notes["slots"], strict=True)):
        assert len(found) == 10
        assert order[found[slot]] == keys[step]
        own = made.notes["mean"][found[slot]]
        assert own.tolist() == columns["logit_mean"][keys[step]].tolist()
    assert candidates(list(range(100)), 60, 6) == steps[0]


def test_an_action_is_drawn_by_the_policys_chances() -> None:
    columns, count = moments(40, 2), Counter[int]()
    chances = np.array([0.5, 0.2, 0.3])

    @dataclasses.dataclass(frozen=True)
    class Fixed:
        def __call__(self, mean: Any, variance: Any) -> npt.NDArray[Any]:
            return np.asarray(np.log(chances))

    objective = Episode(leading=3, stride=1, policy=Fixed())
    held = {"score": np.arange(40.0)[::-1], **{n: c.numpy() for n, c in columns.items()}}
    for seed in range(2000):
        row = int(select_rows(objective, held, 1, seed=seed).positions[0])
        count[row] += 1
        edges = np.cumsum(chances)
        assert row == int(np.searchsorted(edges, uniform(seed, 0, 401) * edges[-1], side="right"))
    found = np.array([count[i] for i in range(3)]) / 2000
    assert found == pytest.approx(chances, abs=4 * 0.5 / math.sqrt(2000))


@pytest.mark.parametrize("classes", [2, 4, 13])
@pytest.mark.parametrize(("leading", "stride"), [(60, 6), (7, 3), (1, 1)])
def test_any_number_of_classes_and_candidates(classes: int, leading: int, stride: int) -> None:
    strategy = RAL(leading=leading, stride=stride, hidden=8)
    assert strategy.slots == math.ceil(leading / stride)
    made = episode(strategy, moments(30, 3, classes), 30)  # until fewer are left than candidates
    assert sorted(made.keys.tolist()) == list(range(30))


ENTROPY = RAL(policy="greedy", stride=1, ranking="entropy", moments="members", leading=10)


def test_without_a_policy_it_is_entropy() -> None:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "log_probs": np.log(rng.dirichlet(np.ones(4), size=5000)),
        **moments(5000, 4),
    }
    params = {n: getattr(ENTROPY, n) for n in ("policy", "stride", "ranking", "moments", "leading")}
    ours = rayal.select("adaptive", columns, 300, params=params)
    base = rayal.select("entropy", columns, 300)
    assert ours.positions.tolist() == base.positions.tolist()
    assert ours.scores.tobytes() == base.scores.tobytes()
    on = rayal.select("adaptive", columns, 300, params={**params, "policy": "learned", "stride": 3})
    assert on.positions.tolist() != base.positions.tolist()
    bootstrap = rayal.select("adaptive", columns, 300, params={"policy": "greedy"})
    own = entropies(*(torch.as_tensor(columns[n]) for n in ("logit_mean", "logit_variance")))
    assert bootstrap.positions.tolist() == torch.argsort(-own, stable=True)[:300].tolist()


# ---- rewards and REINFORCE -----------------------------------------------------------------------


def outcome(
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    targets: list[int],
    made: Any = None,
    **more: Any,
) -> Outcome:
    ids = [str(i) for i in range(len(targets))]
    notes = {} if made is None else {n: torch.from_numpy(a) for n, a in made.notes.items()}
    values: dict[str, Any] = {
        "labeled": torch.ones(len(ids), dtype=torch.bool), "targets": torch.tensor(targets),
        "before": Columns(before, ids), "after": Columns(after, ids),
    }  # fmt: skip
    return Outcome(round=0, seed=5, ids=ids, notes=notes, **{**values, **more})


def test_a_model_that_does_not_change_rewards_diversity_alone() -> None:
    same = moments(4, 5)
    assert SMALL.rewards(outcome(same, same, [2, 2, 2, 2])).tolist() == [0.0, 0.0, 0.0, 0.25]
    assert SMALL.rewards(outcome(same, same, [0, 1, 1, 3])).tolist() == [0.0, 0.0, 0.0, 0.75]
    none = dataclasses.replace(SMALL, diversity=0.0)
    assert none.rewards(outcome(same, same, [0, 1, 1, 3])).tolist() == [0.0] * 4


def test_a_reward_is_the_growth_of_the_labels_likelihood() -> None:
    before, after = moments(3, 6), moments(3, 7)
    made = SMALL.rewards(outcome(before, after, [1, 0, 3]))
    told = torch.tensor([1, 0, 3])
    expected = likelihood(after, told) - likelihood(before, told)
    expected[-1] += 1.0
    torch.testing.assert_close(made, expected)
    some = SMALL.rewards(
        outcome(before, after, [1, 0, 3], labeled=torch.tensor([True, False, True]))
    )
    assert some[0] == made[0] and some[1] == made[2]  # an unlabeled pick has none


def test_one_step_of_reinforce() -> None:
    made = episode(SMALL, moments(200, 8), 6)
    before, after = moments(6, 9), moments(6, 10)
    result = outcome(before, after, [0, 1, 2, 3, 0, 1], made)
    memory = SMALL.remember({}, result)
    returns = discounted(SMALL.rewards(result), 0.95)
    assert memory["returns"] == (pytest.approx(returns.sum().item()), 6) and memory["seed"] == 5
    start = LearnedPolicy(10, 16, 5).network(4)
    loss = -(returns * SMALL.log_chances(start, result)).sum() + SMALL.regularizer(start)
    optimizer = torch.optim.Adam(start.parameters(), SMALL.lr)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name, weight in start.state_dict().items():
        assert torch.equal(memory["policy"][name], weight)
    # the baseline is the mean of past returns, not of rewards
    second = SMALL.remember(memory, result)
    baseline = returns.mean()
    optimizer.zero_grad()
    loss = -((returns - baseline) * SMALL.log_chances(start, result)).sum() + SMALL.regularizer(
        start
    )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert abs(baseline - SMALL.rewards(result).mean()) > 0.1
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(second["policy"][name], weight)


def test_logged_chances_are_those_of_the_draws() -> None:
    columns = moments(200, 11)
    made = episode(SMALL, columns, 8)
    policy = LearnedPolicy(10, 16, 5)
    steps = replay(68, made.notes["slots"], 60, 6)
    drawn = [
        policy(made.notes["mean"][found], made.notes["variance"][found])[slot]
        for found, slot in zip(steps, made.notes["slots"], strict=True)
    ]
    some = moments(8, 12)
    logged = SMALL.log_chances(policy.network(4), outcome(some, some, [0] * 8, made))
    assert logged.tolist() == pytest.approx(drawn, rel=1e-5)


def test_a_memory_written_and_read_back_gives_the_same_picks(tmp_path: Path) -> None:
    eager = dataclasses.replace(SMALL, lr=0.3)  # so that one step changes the picks
    columns = moments(200, 13)
    some, more = moments(6, 14), moments(6, 15)
    memory = eager.remember({}, outcome(some, more, [0, 1, 2, 3, 0, 1], episode(eager, columns, 6)))
    write_checkpoint(tmp_path / "m", "memory", {"memory": dict(memory)})
    stored = read_checkpoint(tmp_path / "m").tree["memory"]
    first, second = (episode(eager, columns, 40, m) for m in (memory, stored))
    assert first.keys.tolist() == second.keys.tolist()
    assert first.keys.tolist() != episode(eager, columns, 40).keys.tolist()  # it has learned
    after = [
        eager.remember(m, outcome(some, more, [1] * 6, episode(eager, columns, 6)))
        for m in (memory, stored)
    ]
    for name, weight in after[0]["policy"].items():
        assert torch.equal(weight, after[1]["policy"][name])


def test_nothing_labeled_teaches_nothing() -> None:
    some = moments(3, 16)
    none = outcome(some, some, [0, 0, 0], labeled=torch.zeros(3, dtype=torch.bool))
    assert SMALL.remember({"seed": 3}, none) == {"seed": 3}
    assert RAL(policy="greedy").remember({}, outcome(some, some, [0, 0, 0])) == {}


def bandit(divergence: float, updates: int = 200) -> tuple[float, float]:
    """Return the probability mass on the first tenth of 50 candidates, before and after."""
    strategy = RAL(divergence=divergence)
    net = PolicyNet(50, 4, hidden=64, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), strategy.lr)
    draw, mass, past = torch.Generator().manual_seed(0), [], [0.0]
    for _ in range(updates):
        mean = torch.randn(5, 50, 4, generator=draw)
        logs = net(mean, torch.rand(5, 50, 4, generator=draw), torch.full((5,), 50))
        slots = torch.multinomial(logs.detach().exp(), 1, generator=draw)[:, 0]
        rewards = (slots < 5).double()
        advantage = rewards - sum(past) / len(past)
        loss = -(advantage * logs[torch.arange(5), slots]).sum() + strategy.regularizer(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        past += rewards.tolist()
        mass.append(float(logs.detach().exp()[:, :5].sum(dim=1).mean()))
    return mass[0], float(np.mean(mass[-20:]))


def test_a_bandit_is_learned_unless_the_prior_overrules_it() -> None:
    start, end = bandit(1.0)
    assert start == pytest.approx(0.1, abs=0.02) and end > 0.5
    weights = 50 * 4 * 64 + 64 * 50
    assert bandit(float(weights))[1] < 0.2  # the sum over all weights, as it is published


# ---- rounds --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return rounds_of(tmp_path_factory.mktemp("on"), SMALL, rounds=2, keep="all")


def test_rounds_train_the_policy_and_credit_what_was_labeled(on: Project) -> None:
    assert isinstance(on.spec.learner, MomentPropagation)
    net = committee_of(on, 0).net(0)
    assert isinstance(net, MomentNet)
    selection = on.ledger.selection("p", 0)
    assert selection is not None
    file = on.ledger.columns(selection.provenance["memory"])["memory"].file
    stored = read_checkpoint(on.root / file).tree
    steps = replay(80, stored["notes"]["slots"].numpy(), 60, 6)
    for step, (found, slot) in enumerate(
        zip(steps, stored["notes"]["slots"].tolist(), strict=True)
    ):
        own = stored["before"]["logit_mean"][step]
        assert torch.equal(stored["notes"]["mean"][found[slot]], own)
    memory = recall(on.workspace, 1, committee_of(on, 1)).memory
    assert memory["returns"][1] == 20 and set(memory) == {"seed", "policy", "optimizer", "returns"}
    first = LearnedPolicy(10, 16, on.spec.query_seed(0)).network(10).state_dict()
    assert all(not torch.equal(first[n], w) for n, w in memory["policy"].items() if "weight" in n)
    assert on.rounds()[-1].metrics["accuracy"] > 0.2


def test_picks_do_not_depend_on_shards_or_on_a_kill(on: Project, tmp_path: Path) -> None:
    other = rounds_of(tmp_path / "shards", SMALL, rounds=2, shards=7)
    assert picks(other) == picks(on)
    project = Project.create(
        Ledger(tmp_path / "kill"), "p", digit_pool(tmp_path / "kill"), digit_spec(SMALL, rounds=2)
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):

        def kill(self: Ledger, name: str, round: int, *more: Any, **named: Any) -> None:
            if round == 1:
                raise RuntimeError("killed")
            commit(self, name, round, *more, **named)

        commit = Ledger.commit_selection
        patch.setattr(Ledger, "commit_selection", kill)
        finish(project)
    assert picks(finish(Project.open(tmp_path / "kill", "p"))) == picks(on)


def test_a_project_without_a_policy_picks_as_entropy_does(tmp_path: Path) -> None:
    strategy = dataclasses.replace(ENTROPY, passes=3)
    assert strategy.trained_by(PLAIN) is PLAIN
    off = rounds_of(tmp_path / "off", strategy, rounds=1)
    base = rounds_of(tmp_path / "base", strategies["entropy"](), rounds=1)
    assert picks(off) == picks(base)
    on = rounds_of(
        tmp_path / "on",
        dataclasses.replace(strategy, policy="learned", leading=60, stride=6),
        rounds=1,
    )
    assert items(on) != items(off)


def test_fixed_heuristics_run_on_the_same_predictor(tmp_path: Path) -> None:
    learner = MomentPropagation(**dataclasses.asdict(PLAIN))
    for name in ("entropy", "coreset"):
        made = rounds_of(tmp_path / name, strategies[name](), learner=learner, rounds=1)
        assert len(set(items(made))) == 20
    with pytest.raises(NeedsError, match="MomentNet"):  # its probabilities are no softmax
        rounds_of(tmp_path / "badge", strategies["badge"](), learner=learner)


def test_what_does_not_fit_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="MomentPropagation"):
        rounds_of(tmp_path / "a", SMALL, learner=PLAIN)
    with pytest.raises(NeedsError, match="passes: 20"):
        rounds_of(tmp_path / "b", RAL(moments="members"))
    with pytest.raises(SettingsError, match="fp32"):
        MomentPropagation(precision="bf16")
    assert RAL().trained_by(Supervised(steps=7)) == MomentPropagation(steps=7)
