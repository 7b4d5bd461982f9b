"""Image folders: every file is decoded once, and goes into the pool as it is encoded."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rayal.errors import PoolError
from rayal.pool.source import Role, Rows, Source, StrPath

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_CHUNK_BYTES = 8 << 20
_CHUNK_FILES = 1024


def image_source(folder: StrPath, *, role: Role = "pool", labeled: bool = True) -> Source:
    """Return the images of a folder; ids are paths relative to it, of test items below ``test/``.

    Files that do not decode, or to more than Pillow's ``MAX_IMAGE_PIXELS``, are quarantined.
    Hidden files and folders are left out.

    Args:
        folder: holds images, or one subfolder a class.
        role: ``pool`` or ``test``.
        labeled: whether the name of the subfolder is the label.

    Raises:
        PoolError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise PoolError(
            f"{path} is not a folder; give a folder of images ({', '.join(FORMATS)}), "
            "flat or with one subfolder a class"
        )
    read = partial(_read, path, "test/" if role == "test" else "", labeled)
    return Source({"kind": "image", "encoding": "file"}, read, role, sum(1 for _ in _files(path)))


def pixels_of(data: bytes) -> int:
    """Return the number of pixels that an encoded image's header states; nothing else is read.

    Raises:
        PoolError: it is none of the known formats, or says so many that it can only mean harm.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except UnidentifiedImageError:
        raise PoolError(f"not an image of the formats {', '.join(FORMATS)}") from None
    except _BROKEN as error:
        raise PoolError(f"{type(error).__name__}: {error}") from None


def why_broken(data: bytes) -> str | None:
    """Return why an encoded image cannot be used, None if it decodes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
    except UnidentifiedImageError:
        return f"not an image of the formats {', '.join(FORMATS)}"
    except _BROKEN as error:
        return f"{type(error).__name__}: {error}"
    return None


@dataclass(frozen=True)
class _File:
    id: str
    label: str | None
    data: bytes
    broken: str | None


def _read(folder: Path, prefix: str, labeled: bool) -> Iterator[Rows]:
    chunk: list[_File] = []
    size = 0
    for path in _files(folder):
        chunk.append(_load(path, path.relative_to(folder), prefix, labeled))
        size += len(chunk[-1].data)
        if size >= _CHUNK_BYTES or len(chunk) == _CHUNK_FILES:
            yield _rows(chunk)
            chunk, size = [], 0
    if chunk:
        yield _rows(chunk)


def _load(path: Path, relative: Path, prefix: str, labeled: bool) -> _File:
    name = prefix + relative.as_posix()
    try:
        name.encode()
        data = path.read_bytes()
    except UnicodeEncodeError:
        return _File(os.fsencode(name).decode(errors="replace"), None, b"", "name is not UTF-8")
    except OSError as error:
        return _File(name, None, b"", f"cannot be read: {error.strerror}")
    label = relative.parts[0] if labeled and len(relative.parts) > 1 else None
    return _File(name, label, data, why_broken(data))


def _rows(files: list[_File]) -> Rows:
    good = [f for f in files if f.broken is None]
    labels = [f.label for f in good]
    return Rows(
        [f.id for f in good],
        [f.data for f in good],
        labels,
        "class" if any(labels) else None,
        [(f.id, f.broken) for f in files if f.broken is not None],
    )


def _files(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(path, name) for name in sorted(names) if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise PoolError(
        f"the folder {error.filename} cannot be listed: {error.strerror}; allow it to be read"
    )
