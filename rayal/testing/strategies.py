"""The contract of strategies: what is chosen does not depend on how rows are held."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rayal.acquisition import probability_entropy
from rayal.selection.functions import select_rows
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.tiles import cut_tiles
from rayal.strategies.base import TAXONOMY, Ctx, Strategy
from rayal.types import Columns, Selection

CLASSES, WIDTH, MEMBERS = 4, 6, 5
MakeColumns = Callable[[int, np.random.Generator], Mapping[str, npt.NDArray[Any]]]


def make_columns(rows: int, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Return every column that rayal's own signals and learners give, of a made-up committee."""
    probs = rng.dirichlet(np.ones(CLASSES), size=(rows, MEMBERS))
    tensor = torch.from_numpy(probs)
    votes = np.eye(CLASSES)[probs.argmax(axis=2)].mean(axis=1)
    return {
        "log_probs": np.log(probs.mean(axis=1)),
        "log_probs.0": np.log(probs[:, 0]),
        "embedding": rng.normal(size=(rows, WIDTH)),
        "member_log_probs": np.log(probs),
        "view_log_probs": np.log(probs),
        "member_stats.mean": probs.mean(axis=1),
        "member_stats.entropy": probability_entropy(tensor).mean(dim=1).numpy(),
        "member_stats.votes": votes,
        "member_stats.variance": probs.var(axis=1),
        "gradient_length": rng.gamma(2.0, size=rows),
        "word_gradient_length": rng.gamma(2.0, size=rows),
        "vacuity": rng.uniform(0.5, 3.0, size=rows),
        "predicted_loss": rng.normal(size=rows),
        "hidden_log_probs": np.log(probs),
        "view_accuracy": np.tile(np.linspace(0.3, 0.9, MEMBERS), (rows, 1)),
        "logit_mean": rng.normal(size=(rows, CLASSES)),
        "logit_variance": rng.gamma(2.0, size=(rows, CLASSES)),
        "moments": rng.gamma(2.0, size=(rows, 3)),
        "adversarial_distance": rng.exponential(size=rows),
    }


def run(
    strategy: Strategy,
    columns: Mapping[str, npt.NDArray[Any]],
    k: int,
    *,
    ids: Sequence[str],
    seed: int = 0,
    shards: int = 1,
) -> Selection:
    """Score and choose as a project does: score the columns, then run the objective on shards."""
    needed = dict.fromkeys(c for s in strategy.signals() for c in s.names())
    tensors = {n: torch.from_numpy(np.asarray(columns[n], dtype=np.float32)) for n in needed}
    score = strategy.score(Columns(tensors, ids)) if tensors else None
    rng = np.random.default_rng(len(ids))
    context = {n: rng.normal(size=(3, *columns[n].shape[1:])) for n in strategy.context}
    ctx = Ctx(round=1, k=k, seed=seed, n_candidates=len(ids), context=context)
    objective = strategy.objective(ctx)
    used: dict[str, Any] = {n: tensors[n] for n in objective.needs if n in tensors}
    if score is not None and "score" in objective.needs:
        used["score"] = score
    used = used or {"score": torch.zeros(len(ids))}
    return select_rows(objective, used, k, context=context, ids=ids, seed=seed, shards=shards)


def _ids(n: int) -> list[str]:
    return [f"item/{i}" for i in range(n)]


def distinct(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """K picks are k distinct items with finite scores behind the first."""
    rows = columns(200, np.random.default_rng(0))
    picks = run(strategy, rows, 20, ids=_ids(200))
    assert len(set(picks.ids)) == 20, f"{len(set(picks.ids))} distinct picks of 20"
    assert np.isfinite(picks.scores[1:]).all(), f"scores {picks.scores}"


def all_of_the_rest(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """If k is the number of rows, each row is picked once."""
    picks = run(strategy, columns(9, np.random.default_rng(1)), 9, ids=_ids(9))
    assert sorted(picks.ids) == sorted(_ids(9)), f"picked {picks.ids}"


def more_than_the_rest(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """If fewer than k rows may be picked, exactly those are, and the choice ends."""
    rows = columns(12, np.random.default_rng(2))
    needed = dict.fromkeys(c for s in strategy.signals() for c in s.names())
    tensors = {n: torch.from_numpy(np.asarray(rows[n], dtype=np.float32)) for n in needed}
    score = strategy.score(Columns(tensors, _ids(12))) if tensors else None
    tensors["score"] = torch.zeros(12) if score is None else score
    objective = strategy.objective(Ctx(round=1, k=30, seed=0, n_candidates=5))
    needs = {n: tensors[n] for n in objective.needs or ("score",)}
    eligible = np.arange(12) < 5
    tiles = cut_tiles(np.arange(100, 112, dtype=np.uint64), needs, eligible)
    chosen = choose(objective, LocalShards([Shard(objective, tiles, 0)]), 30)
    assert sorted(chosen.keys.tolist()) == [100, 101, 102, 103, 104], f"picked {chosen.keys}"


def empty_pool(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """An empty pool gives an empty choice."""
    assert run(strategy, columns(0, np.random.default_rng(3)), 0, ids=[]).ids == ()


def equal_rows(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """Rows that are all alike are still k distinct picks, the same for any order."""
    one = columns(1, np.random.default_rng(4))
    rows = {n: np.repeat(a, 50, axis=0) for n, a in one.items()}
    ids = _ids(50)
    picks = run(strategy, rows, 10, ids=ids)
    assert len(set(picks.ids)) == 10, f"picked {picks.ids}"
    assert run(strategy, rows, 10, ids=ids[::-1]).ids == picks.ids, "order decided between equals"


def certain_rows(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """One-hot predictions (probability 0 elsewhere) are scored without NaN."""
    rows = dict(columns(30, np.random.default_rng(5)))
    for name in [n for n in rows if n.endswith("log_probs") or n.endswith("log_probs.0")]:
        rows[name] = np.where(rows[name] == rows[name].max(axis=-1, keepdims=True), 0.0, -np.inf)
    picks = run(strategy, rows, 5, ids=_ids(30))
    assert len(set(picks.ids)) == 5, f"picked {picks.ids}"


def one_class(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """Predictions that all name the same class are no special case."""
    rows = {
        n: np.sort(a, axis=-1) if a.ndim > 1 else a
        for n, a in columns(60, np.random.default_rng(6)).items()
    }
    assert len(set(run(strategy, rows, 15, ids=_ids(60)).ids)) == 15


def sharding(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """1, 2 and 7 shards, and rows in another order, give the same bits."""
    n, k = 9000, 12
    rows, ids = columns(n, np.random.default_rng(7)), _ids(n)
    first = run(strategy, rows, k, ids=ids, seed=3)
    order = np.random.default_rng(8).permutation(n)
    shuffled = {name: a[order] for name, a in rows.items()}
    for shards in (2, 7):
        other = run(strategy, shuffled, k, ids=[ids[i] for i in order], seed=3, shards=shards)
        assert other.ids == first.ids, f"{shards} shards picked other items"
        assert other.scores.tobytes() == first.scores.tobytes(), f"{shards} shards: other scores"


def repeatable(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """The same seed gives the same picks, also after pickling."""
    rows, ids = columns(300, np.random.default_rng(9)), _ids(300)
    copy = pickle.loads(pickle.dumps(strategy))
    assert copy == strategy, "a pickled copy differs"
    assert run(copy, rows, 20, ids=ids, seed=2).ids == run(strategy, rows, 20, ids=ids, seed=2).ids


def stated(strategy: Strategy, columns: MakeColumns = make_columns) -> None:
    """Source, taxonomy, departures and a docstring are there, and the strategy is frozen."""
    cls = type(strategy)
    try:
        strategy.members = 2  # type: ignore[misc]
    except FrozenInstanceError:
        pass
    else:
        raise AssertionError("must be a frozen dataclass")
    assert cls.taxonomy in TAXONOMY, f"taxonomy {cls.taxonomy!r} is not one of {TAXONOMY}"
    assert len(cls.source) > 10 and cls.departures, "source and departures must be stated"
    assert cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "("), "a docstring is missing"


STRATEGY_CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        distinct,
        all_of_the_rest,
        more_than_the_rest,
        empty_pool,
        equal_rows,
        certain_rows,
        one_class,
        sharding,
        repeatable,
        stated,
    )
}
