"""Ray Datasets as sources: of numbers, images or texts. Nothing of Ray is imported here.

A dataset gives its rows in no fixed order, so they need ids of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayal.errors import PoolError, nearest
from rayal.pixels import why_broken
from rayal.pool.readers.table_columns import Missing, TableColumns
from rayal.pool.readers.tables import table_source
from rayal.pool.source import Role, Rows, Source, label_texts
from rayal.types import TILE_ROWS


def dataset_source(
    dataset: Any,
    *,
    id: str | None = None,
    label: str | None = None,
    features: Sequence[str] | None = None,
    image: str | None = None,
    text: str | None = None,
    missing: Missing = "error",
    role: Role = "pool",
) -> Source:
    """Return the rows of a ``ray.data.Dataset``, streamed block by block.

    Args:
        dataset: the dataset; it is executed once.
        id: column of the ids, text or whole numbers.
        label: column of the known labels.
        features: numeric columns; by default all but id and label.
        image: column of images instead: encoded files as bytes, or uint8 arrays ``[H, W]`` or
            ``[H, W, C]`` of one shape.
        text: column of texts instead.
        missing: treatment of a NaN, inf or null feature or a missing text: ``error`` or
            ``quarantine``.
        role: ``pool`` or ``test``.

    Raises:
        PoolError: a column is missing or of a type that does not fit.
    """
    names = list(dataset.schema().names)
    if id is None:
        raise PoolError(
            "a Ray Dataset gives its rows in no fixed order, so ids by row would change; name a "
            f"column of ids: id=…, one of {names}"
        )
    for name in (id, label, image, text, *(features or ())):
        if name is not None and name not in names:
            raise PoolError(f"the dataset has no column {name!r}; {nearest(name, names)}")
    if image is None:
        named = None if features is None else tuple(features)
        columns = TableColumns(id, label, named, missing, text)
        return table_source(dataset.iter_batches(batch_format="pyarrow"), columns, role=role)
    wanted = [name for name in (id, label, image) if name is not None]
    chosen = dataset.select_columns(wanted)
    first = next(iter(chosen.iter_batches(batch_format="numpy", batch_size=1)), None)
    if first is None:
        raise PoolError("the dataset has no rows; give one with images")
    payload = _payload(first[image][0], image)
    return Source(payload, partial(_images, chosen, id, label, image, payload), role, None)


def _payload(example: Any, column: str) -> dict[str, Any]:
    if isinstance(example, bytes):
        return {"kind": "image", "encoding": "file"}
    array = np.asarray(example)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise PoolError(
            f"column {column!r} holds {array.dtype} of shape {list(array.shape)}; images are bytes "
            "of an encoded file, or uint8 arrays [H, W] or [H, W, C]"
        )
    shape = [int(size) for size in array.shape]
    return {"kind": "image", "encoding": "raw", "dtype": "uint8", "shape": shape}


def _images(
    dataset: Any, id: str, label: str | None, image: str, payload: dict[str, Any]
) -> Iterator[Rows]:
    for batch in dataset.iter_batches(batch_format="numpy", batch_size=TILE_ROWS):
        ids = [str(value) for value in batch[id].tolist()]
        known = None if label is None else label_texts(pa.array(batch[label].tolist()))
        texts, kind = known or (None, None)
        if payload["encoding"] == "raw":
            yield Rows(ids, _raw(batch[image], ids, payload["shape"]), texts, kind)
            continue
        reasons = [why_broken(data) for data in batch[image]]
        good = [row for row, reason in enumerate(reasons) if reason is None]
        yield Rows(
            [ids[row] for row in good],
            [batch[image][row] for row in good],
            None if texts is None else [texts[row] for row in good],
            kind,
            [(ids[row], reason) for row, reason in enumerate(reasons) if reason is not None],
        )


def _raw(images: npt.NDArray[Any], ids: Sequence[str], shape: list[int]) -> list[bytes]:
    for name, image in zip(ids, images, strict=True):
        array = np.asarray(image)
        if list(array.shape) != shape or array.dtype != np.uint8:
            raise PoolError(
                f"image {name!r} is {array.dtype} of shape {list(array.shape)}, the first one "
                f"uint8 of {shape}; give images of one shape, or encoded files"
            )
    return [np.asarray(image).tobytes() for image in images]
