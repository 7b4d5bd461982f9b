"""Arrays in memory, and IDX files, plain or gzipped, which are read in blocks."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayal.errors import PoolError
from rayal.pool.readers.table_columns import Missing
from rayal.pool.readers.tables import feature_rows
from rayal.pool.source import Kind, Role, Rows, Source, StrPath, Texts, label_texts
from rayal.types import TILE_ROWS

_UBYTE = 8  # the type byte of unsigned bytes in an IDX header
_BLOCK_BYTES = 8 << 20


def array_source(
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    ids: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    missing: Missing = "error",
    role: Role = "pool",
) -> Source:
    """Return the rows of arrays.

    Args:
        x: uint8 ``[N, H, W]`` or ``[N, H, W, C]`` images, or numbers ``[N, D]``.
        y: N labels: text, whole numbers (classes) or floats.
        ids: N ids; ``row:0``, ``row:1``, … by default.
        features: names of the D columns; ``x0``, ``x1``, … by default.
        missing: treatment of a NaN or inf: ``error`` or ``quarantine``.
        role: ``pool`` or ``test``.

    Raises:
        PoolError: shapes, types or lengths do not fit.
    """
    array = np.asarray(x)
    payload = _payload(array, features)
    count = len(array)
    names = [f"row:{i}" for i in range(count)] if ids is None else list(ids)
    labels = None if y is None else pa.array(np.asarray(y))
    for what, values in (("ids", names), ("y", labels)):
        if values is not None and len(values) != count:
            raise PoolError(f"{what} has {len(values)} entries, x has {count} rows; give one a row")
    read = partial(_read_array, array, names, labels, payload, missing)
    return Source(payload, read, role, count)


def idx_source(
    images: StrPath,
    labels: StrPath | None = None,
    *,
    prefix: str | None = None,
    role: Role = "pool",
) -> Source:
    """Return the images of an IDX file; ids are ``prefix:row``, by default of the file's name.

    Args:
        images: unsigned bytes ``[N, H, W]`` or ``[N, H, W, C]``, plain or ``.gz``.
        labels: unsigned bytes ``[N]``, plain or ``.gz``.
        prefix: the first half of the ids.
        role: ``pool`` or ``test``.

    Raises:
        PoolError: a file is missing, damaged, of another type or of another length.
    """
    path = Path(images)
    with _open(path) as file:
        count, *shape = _header(file, path, (3, 4))
    texts, kind = (None, None) if labels is None else _idx_labels(Path(labels), count)
    name = path.name.removesuffix(".gz") if prefix is None else prefix
    payload = {"kind": "image", "encoding": "raw", "dtype": "uint8", "shape": shape}
    return Source(payload, partial(_read_idx, path, name, texts, kind), role, count)


def _payload(array: npt.NDArray[Any], features: Sequence[str] | None) -> dict[str, Any]:
    if array.ndim in (3, 4) and array.dtype == np.uint8:
        shape = [int(n) for n in array.shape[1:]]
        return {"kind": "image", "encoding": "raw", "dtype": "uint8", "shape": shape}
    if array.ndim == 2 and array.dtype.kind in "iuf":
        width = array.shape[1]
        names = [f"x{i}" for i in range(width)] if features is None else list(features)
        if len(names) != width:
            raise PoolError(f"features has {len(names)} names, x has {width} columns")
        return {"kind": "table", "features": names}
    raise PoolError(
        f"x is {array.dtype} of shape {array.shape}; give images as uint8 [N, H, W] or "
        "[N, H, W, C], or numbers as [N, D]"
    )


def _read_array(
    array: npt.NDArray[Any],
    ids: list[str],
    labels: pa.Array | None,
    payload: dict[str, Any],
    missing: Missing,
) -> Iterator[Rows]:
    for start in range(0, len(array), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        texts, kind = (None, None) if labels is None else label_texts(labels[rows])
        if payload["kind"] == "table":
            features = np.ascontiguousarray(array[rows], dtype=np.float64)
            yield feature_rows(
                Rows(ids[rows], [], texts, kind), features, payload["features"], missing
            )
        else:
            yield Rows(ids[rows], [image.tobytes() for image in array[rows]], texts, kind)


def _read_idx(path: Path, prefix: str, labels: Texts | None, kind: Kind | None) -> Iterator[Rows]:
    with _open(path) as file:
        count, *shape = _header(file, path, (3, 4))
        size = int(np.prod(shape))
        block = max(1, _BLOCK_BYTES // size)
        for start in range(0, count, block):
            rows = range(start, min(count, start + block))
            data = memoryview(_exactly(file, path, size * len(rows)))
            yield Rows(
                [f"{prefix}:{row:05d}" for row in rows],
                [data[i * size : (i + 1) * size] for i in range(len(rows))],
                None if labels is None else labels[rows.start : rows.stop],
                kind,
            )
        _refuse_rest(file, path)


def _idx_labels(path: Path, count: int) -> tuple[Texts, Kind | None]:
    with _open(path) as file:
        (rows,) = _header(file, path, (1,))
        if rows != count:
            raise PoolError(f"{path} has {rows} labels for {count} images; give the matching file")
        data = _exactly(file, path, rows)
        _refuse_rest(file, path)
    return label_texts(pa.array(np.frombuffer(data, np.uint8)))


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise PoolError(f"{path} does not exist; give an IDX file, plain or gzipped (.gz)")
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _header(file: IO[bytes], path: Path, ranks: tuple[int, ...]) -> list[int]:
    magic = _exactly(file, path, 4)
    if magic[:3] != bytes((0, 0, _UBYTE)) or magic[3] not in ranks:
        raise PoolError(
            f"{path} begins with {magic.hex()}; an IDX file of unsigned bytes with "
            f"{' or '.join(map(str, ranks))} dimensions begins with 000008{ranks[0]:02x}"
        )
    shape = [int(n) for n in np.frombuffer(_exactly(file, path, 4 * magic[3]), ">u4")]
    if 0 in shape[1:]:
        raise PoolError(f"{path} holds images of shape {shape[1:]}, which have no pixels")
    return shape


def _exactly(file: IO[bytes], path: Path, size: int) -> bytes:
    try:
        data = file.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PoolError(f"{path} is damaged ({error}); fetch it again") from error
    if len(data) != size:
        raise PoolError(f"{path} ends before the rows that its header tells; fetch it again")
    return data


def _refuse_rest(file: IO[bytes], path: Path) -> None:
    if file.read(1):
        raise PoolError(f"{path} is longer than its header tells; fetch it again")
