"""Scaling by constants of all rows, and a first layer that takes it in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import TASK
from torch import nn

from rayal.engine.spec import NetworkSpec
from rayal.engine.train import context
from rayal.labels import ClassLabel
from rayal.learners import Supervised, TensorRows
from rayal.learners.scaling import ROWS, Scale, measure, take_in
from rayal.tasks import ImageTask

IMAGES = ImageTask(ClassLabel(tuple("abc")), "raw", 2, (3, 4))


def rows(n: int = 2 * ROWS + 77) -> TensorRows:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((n, 2, 3, 4), generator=draw) * torch.tensor([3.0, 0.5])[:, None, None] + 7.0
    return TensorRows([str(i) for i in range(n)], x)


def test_the_constants_are_those_of_all_rows_at_once() -> None:
    given = rows()
    x = given.x.double().numpy()
    unit, standard = Scale((2, 3, 4)), Scale((2, 3, 4))
    measure(unit, given, "unit")
    measure(standard, given, "standard")
    low, high = x.min(axis=(0, 2, 3)), x.max(axis=(0, 2, 3))
    np.testing.assert_allclose(unit.shift.view(2, 12), np.repeat(low[:, None], 12, 1), rtol=1e-6)
    np.testing.assert_allclose(
        unit.width.view(2, 12), np.repeat((high - low)[:, None], 12, 1), rtol=1e-6
    )
    mean, std = x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3))
    np.testing.assert_allclose(standard.shift.view(2, 12)[:, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(standard.width.view(2, 12)[:, 5], std, rtol=1e-6)
    scaled = unit(given.x)
    assert scaled.shape == (len(given), 24) and scaled.min() >= 0.0 and scaled.max() <= 1.0 + 1e-5


def test_what_does_not_vary_is_shifted_alone() -> None:
    given = TensorRows(["a", "b"], torch.tensor([[5.0, 1.0], [5.0, 3.0]]))
    for inputs, second in (("unit", (1.0, 2.0)), ("standard", (2.0, 1.0))):
        scale = Scale((2,))
        measure(scale, given, inputs)  # type: ignore[arg-type]
        assert (scale.shift.tolist(), scale.width.tolist()) == ([5.0, second[0]], [1.0, second[1]])


@pytest.mark.parametrize("task", [IMAGES, TASK], ids=["images", "table"])
def test_the_layer_gives_of_transformed_rows_what_it_gave_of_scaled_ones(task: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    raw = torch.rand((40, *task.input_shape), generator=draw) * 3.0 + 2.0
    scale = Scale(task.input_shape)
    measure(scale, TensorRows([str(i) for i in range(40)], raw), "unit")
    layer = nn.Linear(scale.shift.numel(), 6)
    before = layer(scale(raw))
    statistics = task.fit(raw[:7] * 0.5)  # of other rows
    ctx = context(Supervised(), NetworkSpec("mlp"), task)
    changed = type(ctx)(**{**vars(ctx), "statistics": statistics})
    take_in(layer, scale, changed)
    after = layer(task.transform(raw, statistics).flatten(1))
    assert not torch.equal(before, layer(scale(raw)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_numbers_that_are_large_beside_their_spread_keep_their_digits() -> None:
    """Seconds since 1970 within an hour: the transform at 0 and 1 would be two equal numbers."""
    draw = torch.Generator().manual_seed(2)
    raw = torch.rand((60, 4), generator=draw) * torch.tensor([1e3, 1e3, 1.0, 1.0])
    raw += torch.tensor([1.7e9, -4e7, 0.0, 1e3])
    scale = Scale((4,))
    measure(scale, TensorRows([str(i) for i in range(60)], raw), "standard")
    layer = nn.Linear(4, 6)
    before = layer(scale(raw))
    ctx = context(Supervised(), NetworkSpec("mlp"), TASK)
    statistics = TASK.fit(raw[:30])
    take_in(layer, scale, type(ctx)(**{**vars(ctx), "statistics": statistics}))
    after = layer(TASK.transform(raw, statistics).flatten(1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
