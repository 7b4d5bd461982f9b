"""Tasks: decoding, the eval transform, augmentation, targets and metrics."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

from rayal.errors import LabelError, NeedsError, PoolError, ScoreError, SettingsError
from rayal.labels import ClassLabel
from rayal.tasks import ImageTask, TableTask, Task, task_for, task_from_json
from rayal.tasks.keyed import keyed_normals, keyed_uniforms
from rayal.types import id_keys

CLASSES = ("cat", "dog", "owl")
LABELS = ClassLabel(CLASSES)
FILES = {"kind": "image", "encoding": "file"}


def raw_payload(*shape: int) -> dict[str, Any]:
    return {"kind": "image", "encoding": "raw", "dtype": "uint8", "shape": list(shape)}


def rows(values: list[bytes], ids: list[str] | None = None) -> pa.Table:
    names = ids or [f"i{n}" for n in range(len(values))]
    return pa.table({"id": names, "data": pa.array(values, pa.binary())})


def png(pixels: npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def pixels(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def image_task(**changes: Any) -> ImageTask:
    given: dict[str, Any] = {"encoding": "raw", "channels": 3, "size": (16, 32), "flip": True}
    return ImageTask(LABELS, **{**given, **changes})


# ---- decode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_raw_bytes_decode_to_unit_images(shape: tuple[int, ...]) -> None:
    task = task_for(raw_payload(*shape), kind="image", classes=CLASSES)
    values = pixels(7, *shape)
    table = pa.concat_tables(
        [rows([v.tobytes() for v in values[s]]) for s in (slice(3), slice(3, 7))]
    )
    for cut in (slice(0, 7), slice(2, 6), slice(4, 7), slice(3, 3)):
        x = task.decode(table.slice(cut.start, cut.stop - cut.start))
        images = values[cut].reshape(-1, 4, 5, shape[2] if len(shape) == 3 else 1)
        expected = torch.from_numpy(images.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)
        assert x.dtype == torch.float32 and torch.equal(x, expected)
        assert tuple(x.shape[1:]) == task.input_shape
    assert task.decode(table).is_contiguous(memory_format=torch.channels_last)


def test_raw_bytes_of_another_length_are_named() -> None:
    task = task_for(raw_payload(2, 2), kind=None, classes=CLASSES)
    with pytest.raises(PoolError, match=r"item 'b' has 3 bytes, .*\[2, 2, 1\] has 4"):
        task.decode(rows([b"1234", b"123"], ["a", "b"]))
    with pytest.raises(PoolError, match="'data' of item 'i1' is null"):
        task.decode(rows([b"1234", None]))  # type: ignore[list-item]
    with pytest.raises(PoolError, match="no column 'data'"):
        task.decode(pa.table({"id": ["a"]}))


def test_files_decode_to_grey_or_colour() -> None:
    colour = pixels(6, 4, 3)
    example = rows([png(colour)])
    task = task_for(FILES, kind="image", classes=CLASSES, example=example)
    assert task.input_shape == (3, 6, 4)
    x = task.decode(example)
    assert torch.equal(x[0].permute(1, 2, 0), torch.from_numpy(colour / np.float32(255)))
    grey = task_for(FILES, kind="image", classes=CLASSES, channels=1, size=(6, 4))
    expected = np.asarray(Image.fromarray(colour).convert("L")) / np.float32(255)
    assert torch.equal(grey.decode(example)[0, 0], torch.from_numpy(expected))
    repeated = task.decode(rows([png(colour[:, :, 0])]))[0]
    assert torch.equal(repeated[0], repeated[2])


def test_files_are_resized_only_where_a_size_is_set() -> None:
    big = pixels(8, 10, 3)
    task = task_for(FILES, kind=None, classes=CLASSES, size=[4, 5])
    resized = np.asarray(Image.fromarray(big).resize((5, 4), Image.Resampling.BILINEAR))
    x = task.decode(rows([png(big)]))
    assert torch.equal(x[0].permute(1, 2, 0), torch.from_numpy(resized / np.float32(255)))
    fixed = task_for(FILES, kind=None, classes=CLASSES, example=rows([png(pixels(4, 5, 3))]))
    with pytest.raises(PoolError, match=r"item 'i0' is 8 x 10, the first image is 4 x 5; .*size: "):
        fixed.decode(rows([png(big)]))


def test_files_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to look at it
    task = task_for(FILES, kind=None, classes=CLASSES, size=(8, 4))
    lying = np.zeros((4, 8, 3), np.uint8)
    lying[:, 4:] = 255
    x = task.decode(rows([png(lying, exif=exif)]))
    assert x[0, 0, :4].eq(0).all() and x[0, 0, 4:].eq(1).all()


def test_files_that_do_not_decode_are_named() -> None:
    task = task_for(FILES, kind=None, classes=CLASSES, size=(4, 4))
    whole = png(pixels(40, 40, 3), "JPEG")
    with pytest.raises(PoolError, match="item 'i1' does not decode"):
        task.decode(rows([whole, whole[:300]]))
    with pytest.raises(PoolError, match="item 'i0' does not decode"):
        task.decode(rows([b"no image"]))
    with pytest.raises(PoolError, match="more than 8 bits"):
        task.decode(rows([png(np.full((4, 4), 40_000, np.uint16))]))


def test_tables_decode_to_float32() -> None:
    task = task_for({"kind": "table", "features": ["a", "b"]}, kind="table", classes=CLASSES)
    values = np.random.default_rng(0).normal(size=(5, 2))
    features = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 2)
    table = pa.table({"id": list("vwxyz"), "features": features})
    assert torch.equal(task.decode(table), torch.from_numpy(values.astype(np.float32)))
    assert torch.equal(task.decode(table.slice(2, 2)), task.decode(table)[2:4])
    assert task.input_shape == (2,) and task.decode(table.slice(0, 0)).shape == (0, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_number_that_float32_does_not_hold_is_named(value: float) -> None:
    features = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, value]), 2)
    with pytest.raises(PoolError, match="feature 'b' of item 'y' is"):
        TableTask(LABELS, ("a", "b")).decode(pa.table({"id": ["x", "y"], "features": features}))


def test_a_table_of_another_width_is_refused() -> None:
    features = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0]), 1)
    with pytest.raises(PoolError, match="the task has 2"):
        TableTask(LABELS, ("a", "b")).decode(pa.table({"id": ["x", "y"], "features": features}))


# ---- the eval transform --------------------------------------------------------------------------


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
        (raw_payload(8, 8), {"size": [9, 8]}, "have \\(8, 8\\); leave it out"),
        (raw_payload(8, 8), {"channels": 3}, "task.channels is 3, .* have 1"),
        (raw_payload(8), {}, "ingest uint8 images"),
        (raw_payload(8, 8), {"sise": [1, 2]}, "did you mean 'size'"),
        ({**FILES, "encoding": "zip"}, {}, "'zip'"),
        (FILES, {"channels": 2, "size": (4, 4)}, "allowed: 1"),
        ({"kind": "table", "features": ["a"]}, {"flip": True}, "flip is a setting of images"),
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
