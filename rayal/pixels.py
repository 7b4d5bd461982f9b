"""Image files: how an encoded image is looked at, checked and turned into pixels."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from rayal.errors import PoolError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_WIDE_MODES = ("I", "F")  # 16 and 32 bits a channel: Pillow would clip them to 255
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


@contextmanager
def opened(data: Any) -> Iterator[Image.Image]:
    """Open an encoded image of the known formats; nothing but its header is read yet.

    Args:
        data: bytes, or an Arrow buffer.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        yield image


def promised_pixels(data: bytes) -> int:
    """Return how many pixels an encoded image says it has; its header alone is read.

    Raises:
        PoolError: it is none of the known formats, or says so many that it can only mean harm.
    """
    try:
        with opened(data) as image:
            return image.width * image.height
    except _BROKEN as error:
        raise PoolError(_reason(error)) from None


def why_broken(data: bytes) -> str | None:
    """Return why an encoded image cannot be used, None if it decodes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(data) as image:
                image.load()
    except _BROKEN as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of the formats {', '.join(FORMATS)}"
    return f"{type(error).__name__}: {error}"


def check_image(data: bytes) -> None:
    """Raise PoolError where an encoded image does not decode, or has too deep channels."""
    broken = why_broken(data)
    if broken is not None:
        raise PoolError(broken)
    with opened(data) as image:
        if image.mode.startswith(_WIDE_MODES):
            raise PoolError(f"more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")


def decode_file(data: Any, channels: int, item: str) -> Image.Image:
    """Return an encoded image, upright, in 8-bit grey or RGB.

    Args:
        data: bytes, or an Arrow buffer.
        channels: 1 | 3.
        item: how a message names it.

    Raises:
        PoolError: it does not decode, or has more than 8 bits a channel.
    """
    try:
        with opened(data) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except _BROKEN as error:
        raise PoolError(f"{item} does not decode: {error}; replace it and ingest again") from error
    if upright.mode.startswith(_WIDE_MODES):
        raise PoolError(
            f"{item} has more than 8 bits a channel (mode {upright.mode}); convert it to 8 bits "
            "and ingest again"
        )
    return upright.convert("L" if channels == 1 else "RGB")


def raw_pixels(data: bytes, shape: Sequence[int]) -> bytes:
    """Return the pixels of an encoded image that has the shape of a pool of raw images.

    Args:
        data: the encoded image.
        shape: ``[H, W]`` or ``[H, W, C]``.

    Raises:
        PoolError: the image has another height or width.
    """
    with opened(data) as image:
        plain = image.convert("RGB" if list(shape[2:]) == [3] else "L")
    if [plain.height, plain.width] != list(shape[:2]):
        raise PoolError(
            f"the image is {plain.height} x {plain.width}, the pool's are {shape[0]} x {shape[1]}"
        )
    return plain.tobytes()


def media_type(data: bytes) -> str:
    """Return the media type of an encoded image, such as ``image/png``."""
    with opened(data) as image:
        return Image.MIME[str(image.format)]


def as_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return pixels ``[H, W]`` or ``[H, W, C]`` as a PNG file."""
    return _written(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def blackened(data: bytes) -> bytes:
    """Return a PNG file of the same size and kind as an encoded image, which shows nothing."""
    with opened(data) as image:
        size, mode = image.size, "L" if image.mode in ("1", "L") else "RGB"
    return _written(Image.new(mode, size))


def _written(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
