"""Signals: gradients where they are asked for, checked columns, and needs that are not met."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from signal_cases import EVERY, IMAGES, TABLE, Fixed, ask, cnns, committee, images
from torch import Tensor, nn

from rayal.errors import NeedsError, ScoreError
from rayal.models import Committee, HookedNet, evaluating
from rayal.signals import (
    Embedding,
    Extra,
    Forward,
    LogProbs,
    MemberLogProbs,
    MemberStats,
    Signal,
    ViewLogProbs,
    compute,
)
from rayal.types import id_keys


@dataclass(frozen=True)
class Sensitivity(Signal):
    """The gradient of the largest log-probability with respect to the row."""

    differentiates: ClassVar[bool] = True

    def names(self) -> tuple[str, ...]:
        return ("sensitivity",)

    def compute(self, f: Forward) -> dict[str, Tensor]:
        assert not f.committee.net(0).training
        f.x.requires_grad_()
        top = f.log_probs(0).amax(1).sum()
        return {"sensitivity": torch.autograd.grad(top, f.x)[0].flatten(1).norm(dim=1)}


@dataclass(frozen=True)
class Given(Signal):
    """A column that the test makes up."""

    value: Any
    declared: tuple[str, ...] = ("given",)

    def names(self) -> tuple[str, ...]:
        return self.declared

    def compute(self, f: Forward) -> dict[str, Tensor]:
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        return {"given": self.value}


def test_gradients_are_for_signals_that_differentiate() -> None:
    x = images(6)
    finite = torch.zeros(6)
    made = ask(cnns(), x, LogProbs(), Given(finite), Sensitivity())
    assert (made["sensitivity"] > 0).all() and not made["sensitivity"].requires_grad
    assert not made["log_probs"].requires_grad


def test_a_nan_names_its_item_and_padding_does_not_count() -> None:
    bad = torch.tensor([0.0, -math.inf, math.nan])
    with pytest.raises(ScoreError, match="'given' of item 'item/2' is NaN"):
        ask(cnns(), images(3), Given(bad))
    ids = ["a", "b"]
    f = Forward(cnns(), images(3), ids, id_keys([*ids, "padding"]), rows=2)
    assert compute([Given(bad)], f)["given"][1] == -math.inf
    with pytest.raises(ScoreError, match="column 'log_probs' of item 'item/1' is NaN"):
        ask(cnns(), images(2).index_fill(0, torch.tensor([1]), math.nan), LogProbs())


def test_a_column_must_fit_the_batch_and_its_name() -> None:
    with pytest.raises(ScoreError, match=r"shape \[2\] for a batch of 3 rows"):
        ask(cnns(), images(3), Given(torch.zeros(2)))
    with pytest.raises(ScoreError, match=r"shape \[\] for a batch"):
        ask(cnns(), images(3), Given(torch.tensor(1.0)))
    with pytest.raises(NeedsError, match="must yield \\['other'\\]"):
        ask(cnns(), images(3), Given(torch.zeros(3), declared=("other",)))
    with pytest.raises(NeedsError, match="ask for each column once"):
        ask(cnns(), images(3), MemberStats(passes=2), MemberStats(passes=3))


def test_a_batch_must_fit_its_ids() -> None:
    for ids, keys, rows in ((["a"], 2, None), (["a", "b"], 1, None), (["a", "b"], 2, 1)):
        with pytest.raises(ValueError, match="a batch of 2 rows"):
            Forward(cnns(), images(2), ids, np.zeros(keys, np.uint64), rows=rows)


def no_head() -> Any:
    return committee([HookedNet(Fixed(0.5, 0.5), (1,))], TABLE)


@pytest.mark.parametrize(
    ("signal", "asked", "says"),
    [
        (MemberStats(), cnns(1), "disagreement needs two; set members: 5"),
        (MemberStats(passes=1), cnns(1), r"make 1 prediction\(s\)"),
        (MemberLogProbs(), cnns(1), "disagreement needs two"),
        (MemberStats(passes=4), cnns(2, dropout=0.0), "TaskNet has no dropout module"),
        (MemberLogProbs(passes=4), no_head(), "HookedNet has no dropout module"),
        (LogProbs(member=2), cnns(2), "member 2 is asked for, .* members 0 to 1"),
        (Embedding(member=-1), cnns(2), "member -1 is asked for"),
        (Embedding(), no_head(), "Fixed does not end in an nn.Linear"),
        (ViewLogProbs(views=0), cnns(1), "views is 0"),
        (Extra("loss"), cnns(1), "learner has no columns of its own"),
    ],
)
def test_needs_are_checked_before_anything_runs(signal: Signal, asked: Any, says: str) -> None:
    with pytest.raises(NeedsError, match=says):
        signal.check(asked)


def test_met_needs_pass() -> None:
    for signal in EVERY:
        signal.check(cnns())
    LogProbs().check(no_head())
    assert ask(no_head(), torch.zeros(2, 1), LogProbs())["log_probs"].shape == (2, 2)
    with pytest.raises(NeedsError, match="Fixed does not end"):
        ask(no_head(), torch.zeros(2, 1), Embedding())


def test_extras_are_the_learners_columns_of_member_0() -> None:
    calls = []

    def extras(nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        assert not nets.training
        calls.append(len(x))
        return {"loss": nets["task"](x)[:, 0], "energy": x.flatten(1).norm(dim=1)}

    base = cnns()
    asked = committee([base.net(0), base.net(1)], extras=extras)
    Extra("loss").check(asked)
    with pytest.raises(NeedsError, match="no 'los'; did you mean 'loss'"):
        Extra("los").check(asked)
    calls.clear()
    made = ask(asked, images(3), Extra("loss"), Extra("energy"))
    assert calls == [3] and made["energy"].shape == (3,)
    with evaluating(base.net(0)):
        assert torch.equal(made["loss"], base.net(0)(images(3))[:, 0])


def test_a_committee_needs_task_networks() -> None:
    with pytest.raises(NeedsError, match="at least one member"):
        committee([])
    with pytest.raises(NeedsError, match=r"member 0 has networks \['other'\]"):
        Committee((nn.ModuleDict({"other": cnns().net(0)}),), IMAGES, {}, "", seed=0, round=0)
    with pytest.raises(NeedsError, match="wrap other modules in HookedNet"):
        Committee((nn.ModuleDict({"task": nn.Linear(2, 2)}),), IMAGES, {}, "", seed=0, round=0)
    assert cnns(3).size == 3 and cnns().n_outputs == 4
