"""Tasks: from pool rows to raw model input."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from task_cases import CLASSES, FILES, LABELS, pixels, png, raw_payload, rows

from rayal.errors import PoolError
from rayal.tasks import TableTask, task_for, task_from_json


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
    table = pa.concat_tables([table.slice(0, 3), table.slice(3)])
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


def test_raw_images_are_resized_where_a_size_is_given() -> None:
    """Halving averages with the triangle of width 4: weights 1, 3, 3, 1, cut off at the border."""
    task = task_for(raw_payload(4, 4), kind=None, classes=CLASSES, size=[2, 2])
    assert task.input_shape == (1, 2, 2)
    image = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    made = task.decode(rows([image.tobytes()] * 3))
    across = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    by_hand = across @ image @ across.T / 255
    np.testing.assert_allclose(made[1, 0].numpy(), by_hand, rtol=1e-5)
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task
    with pytest.raises(PoolError, match=r"image of shape \[4, 4, 1\] has 16"):
        task.decode(rows([b"123"]))
    same = task_for(raw_payload(4, 4), kind=None, classes=CLASSES, size=[4, 4])
    assert same == task_for(raw_payload(4, 4), kind=None, classes=CLASSES)
