"""Tasks and pool rows that the tests of tasks share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from rayal.labels import ClassLabel
from rayal.tasks import ImageTask

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
