"""Tasks: the eval transform, augmentation, targets, metrics and settings."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from task_cases import CLASSES, FILES, LABELS, image_task, raw_payload

from rayal.errors import LabelError, NeedsError, ScoreError, SettingsError
from rayal.tasks import ImageTask, TableTask, Task, task_for, task_from_json
from rayal.tasks.base import keyed_normals, keyed_uniforms
from rayal.types import id_keys


@pytest.mark.parametrize("task", [image_task(), TableTask(LABELS, ("a", "b", "c"))])
def test_statistics_standardise_the_labeled_rows(task: Task) -> None:
    x = torch.rand((9, *task.input_shape), generator=torch.Generator().manual_seed(0)) * 3 + 1
    z = task.transform(x, task.fit(x)).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(z.mean(1), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(3).double())


def test_statistics_know_only_the_rows_they_are_given() -> None:
    task = TableTask(LABELS, ("a", "b"))
    statistics = task.fit(torch.tensor([[1.0, 0.1], [3.0, 0.1], [5.0, 0.1]]))
    assert statistics["mean"].tolist() == pytest.approx([3.0, 0.1])
    assert statistics["std"].tolist() == pytest.approx([(8 / 3) ** 0.5, 1.0])
    far = task.transform(torch.tensor([[100.0, 7.0]]), statistics)
    assert far.tolist()[0] == pytest.approx([97 / (8 / 3) ** 0.5, 6.9])
    assert task.fit(torch.tensor([[4.0, 5.0]]))["std"].tolist() == [1.0, 1.0]
    with pytest.raises(NeedsError, match="0 labeled rows"):
        task.fit(torch.zeros(0, 2))


# ---- augmentation --------------------------------------------------------------------------------


def test_crops_move_by_at_most_an_eighth_and_reflect() -> None:
    task = image_task(flip=False)
    lines = torch.arange(16.0)[:, None] * 100 + torch.arange(32.0)  # [H, W] tells where it was
    x = lines.expand(400, 3, 16, 32)
    out = task.augment(x, torch.Generator().manual_seed(0))
    centre_row = (out[:, 0, 8, 16] // 100 - 8).long()
    centre_column = (out[:, 0, 8, 16] % 100 - 16).long()
    assert sorted(set(centre_row.tolist())) == list(range(-2, 3))
    assert sorted(set(centre_column.tolist())) == list(range(-4, 5))
    padded = torch.nn.functional.pad(x[:1], (4, 4, 2, 2), mode="reflect")[0, 0]
    for n in range(20):
        top, left = 2 + int(centre_row[n]), 4 + int(centre_column[n])
        assert torch.equal(out[n, 0], padded[top : top + 16, left : left + 32])
    assert torch.equal(out[:, 0], out[:, 2])


def test_mirroring_is_a_setting() -> None:
    x = torch.arange(32.0).expand(300, 3, 16, 32)
    rises = [
        (out[:, 0, 8, 20] > out[:, 0, 8, 12]).float().mean().item()
        for flip in (True, False)
        for out in [image_task(flip=flip).augment(x, torch.Generator().manual_seed(0))]
    ]
    assert rises[0] == pytest.approx(0.5, abs=0.1) and rises[1] == 1.0


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_small_images_are_augmented_too(side: int) -> None:
    x = torch.rand(8, 1, side, side)
    out = image_task(size=(side, side), channels=1).augment(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape and set(out.flatten().tolist()) <= set(x.flatten().tolist())


def test_image_augmentation_commutes_with_the_transform() -> None:
    task = image_task()
    x = torch.rand((10, *task.input_shape), generator=torch.Generator().manual_seed(0))
    s = task.fit(x)
    before, after = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    moved = task.transform(task.augment(x, before), s)
    assert torch.equal(moved, task.augment(task.transform(x, s), after))
    assert not torch.equal(moved, task.transform(x, s))


def test_table_jitter_is_a_tenth_of_a_deviation() -> None:
    task = TableTask(LABELS, tuple("abcd"))
    x = torch.randn((5000, 4), generator=torch.Generator().manual_seed(0))
    keys = id_keys(str(i) for i in range(5000))
    for out in (
        task.augment(x, torch.Generator().manual_seed(1)),
        task.view(x, keys, seed=0, view=0),
    ):
        noise = out - x
        assert noise.std(0).tolist() == pytest.approx([0.1] * 4, rel=0.05)
        assert noise.mean(0).abs().max() < 0.01
        assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.05


@pytest.mark.parametrize("task", [image_task(), TableTask(LABELS, tuple("abcdefg"))])
def test_views_belong_to_rows(task: Task) -> None:
    n = 101
    x = torch.randn((n, *task.input_shape), generator=torch.Generator().manual_seed(0))
    keys = id_keys(f"item/{i}" for i in range(n))
    whole = task.view(x, keys, seed=3, view=1)
    for size in (1, 7, 64):
        cuts = range(0, n, size)
        parts = [task.view(x[s : s + size], keys[s : s + size], seed=3, view=1) for s in cuts]
        assert torch.equal(torch.cat(parts), whole)
    order = np.random.default_rng(0).permutation(n)
    assert torch.equal(task.view(x[order], keys[order], seed=3, view=1), whole[order])
    assert not torch.equal(task.view(x, keys, seed=3, view=2), whole)
    assert not torch.equal(task.view(x, keys, seed=4, view=1), whole)


def test_keyed_draws_are_uniform_and_normal() -> None:
    keys = id_keys(str(i) for i in range(20_000))
    u = keyed_uniforms(keys, 3, "test", 0)
    assert u.shape == (20_000, 3) and u.min() > 0 and u.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in u.T])
    assert (((counts - 1000) ** 2 / 1000).sum(axis=1) < 43.8).all()  # chi², 19 df: p = 0.001
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03
    z = keyed_normals(keys, 1, "test", 1)
    assert abs(z.mean()) < 0.03 and z.std() == pytest.approx(1, abs=0.02)


# ---- targets, metrics, settings ------------------------------------------------------------------


def test_targets_are_columns() -> None:
    task = image_task()
    assert task.targets(["owl", "cat", "owl"]).tolist() == [2, 0, 2]
    assert task.targets([]).dtype == torch.int64 and task.n_outputs == 3
    with pytest.raises(LabelError, match="'dgo' is not among the 3 classes; did you mean 'dog'"):
        task.targets(["cat", "dgo"])


def test_metrics_agree_with_scikit_learn_and_by_hand() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 500)
    truth = rng.integers(0, 3, 500)
    made = image_task().metrics(torch.from_numpy(np.log(probs)), torch.from_numpy(truth))
    assert made["accuracy"] == pytest.approx(accuracy_score(truth, probs.argmax(1)))
    assert made["nll"] == pytest.approx(log_loss(truth, probs))
    top, hit = probs.max(1), probs.argmax(1) == truth
    ece = 0.0
    for k in range(15):
        inside = (top > k / 15) & (top <= (k + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(hit[inside].mean() - top[inside].mean())
    assert made["ece"] == pytest.approx(ece)


def test_metrics_of_sure_predictions() -> None:
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 4)
    right = image_task().metrics(certain, torch.tensor([0, 0, 0, 0]))
    assert right == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0}
    wrong = image_task().metrics(certain, torch.tensor([0, 1, 1, 1]))
    assert wrong == {"accuracy": 0.25, "nll": torch.inf, "ece": 0.75}
    with pytest.raises(ScoreError, match="0 rows"):
        image_task().metrics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "task",
    [
        image_task(),
        image_task(encoding="file", resize=True, channels=1, flip=False),
        TableTask(LABELS, ("a", "b")),
    ],
)
def test_tasks_go_through_json(task: Task) -> None:
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


def test_flip_is_for_colour_by_default() -> None:
    def flips(payload: dict[str, Any], **settings: Any) -> bool:
        task = task_for(payload, kind=None, classes=CLASSES, **settings)
        assert isinstance(task, ImageTask)
        return task.flip

    assert flips(raw_payload(8, 8, 3)) and not flips(raw_payload(8, 8))
    assert flips(FILES, size=(8, 8)) and not flips(FILES, size=(8, 8), channels=1)
    assert flips(raw_payload(8, 8), flip=True) and not flips(raw_payload(8, 8, 3), flip=False)
    assert flips(raw_payload(8, 8, 3), flip=None, size=None, channels=None, example=None)


@pytest.mark.parametrize(
    ("payload", "settings", "says"),
    [
        (raw_payload(8, 8), {"kind": "table"}, "'table' and the pool's rows are of kind 'image'"),
        ({"kind": "sound"}, {}, "kind 'sound'; known: image, table"),
        (raw_payload(8, 8), {"classes": ["a"]}, "at least two different classes"),
        (raw_payload(8, 8), {"classes": ["a", "a"]}, "at least two different classes"),
        (raw_payload(8, 8), {"channels": 3}, "task.channels is 3, .* have 1"),
        (raw_payload(8), {}, "ingest uint8 images"),
        (raw_payload(8, 8), {"sise": [1, 2]}, "did you mean 'size'"),
        ({**FILES, "encoding": "zip"}, {}, "'zip'"),
        (FILES, {"channels": 2, "size": (4, 4)}, "allowed: 1"),
        ({"kind": "table", "features": ["a"]}, {"flip": True}, "flip is no setting of tables"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    payload: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {"kind": None, "classes": CLASSES, **settings}
    with pytest.raises(SettingsError, match=says):
        task_for(payload, **given)


def test_files_of_unknown_size_ask_for_one() -> None:
    with pytest.raises(NeedsError, match=r"task: \{size: \[H, W\]\}"):
        task_for(FILES, kind=None, classes=CLASSES)
