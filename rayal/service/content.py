"""Check the content of items that clients send: encoded images, texts, or features of rows."""

from __future__ import annotations

import base64
import binascii
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rayal.errors import PoolError, UriError, nearest
from rayal.pixels import as_png, check_image, media_type, promised_pixels, raw_pixels
from rayal.pool.readers.texts import encoded
from rayal.service.uris import Prefixes

_FIELDS = ("id", "data", "uri", "text", "features", "role")
ID_LENGTH = 1024
Features = Sequence[float] | Mapping[str, float]


@dataclass(frozen=True)
class ContentLimits:
    """The largest images and texts that are taken.

    Args:
        image_bytes: bytes of an encoded image.
        text_bytes: bytes of a text in UTF-8.
        image_pixels: pixels that an image's header may promise; checked before decoding.
        call_pixels: pixels of all images of one call that somebody waits for.
        call_seconds: seconds within which all files of such a call must be read.
    """

    image_bytes: int = 20 << 20
    image_pixels: int = 50_000_000
    call_pixels: int = 1_000_000_000
    call_seconds: float = 30.0
    text_bytes: int = 1 << 20


@dataclass(frozen=True)
class PushedItem:
    """An item as a client sends it: one of data, uri, text and features.

    Args:
        id: its id.
        data: the bytes of an encoded image, or of a text in UTF-8.
        uri: where the image or text lies, below the service's prefixes.
        text: the text itself.
        features: numbers by position, or by the names of the pool's features.
        role: ``pool`` for items to choose from, ``test`` for items to measure on.
    """

    id: str
    data: bytes | None = None
    uri: str | None = None
    features: Features | None = None
    text: str | None = None
    role: Literal["pool", "test"] = "pool"

    @classmethod
    def of(cls, given: Mapping[str, Any], *, named: bool = True) -> PushedItem:
        """Return the item that a JSON object describes; ``data`` is base64 there.

        Args:
            given: the object.
            named: whether it must have an id.

        Raises:
            PoolError: a key is unknown or missing, or a value is of the wrong type.
        """
        for key in given:
            if key not in _FIELDS:
                raise PoolError(f"{key!r} is no key of an item; {nearest(str(key), _FIELDS)}")
        item = cls(
            check_id(given.get("id")) if named or "id" in given else "",
            _decoded(given.get("data")),
            _text(given.get("uri"), "uri"),
            given.get("features"),
            _text(given.get("text"), "text"),
            given.get("role", "pool"),
        )
        contents = [c for c in (item.data, item.uri, item.text, item.features) if c is not None]
        if len(contents) != 1:
            raise PoolError("an item has one of data (base64), uri, text and features")
        if item.role not in ("pool", "test"):
            raise PoolError(f"role is {item.role!r}; it is pool or test")
        return item


def check_id(value: Any) -> str:
    """Return an item's id, or raise PoolError saying what an id is."""
    if not isinstance(value, str) or not 0 < len(value) <= ID_LENGTH or not value.isprintable():
        raise PoolError(
            f"id is {str(value)[:100]!r}; it is text of 1 to {ID_LENGTH} printable characters"
        )
    return value


class Reader:
    """Reads what a pool stores for items, within limits.

    Args:
        payload: the encoding of the pool's rows, as ingest records it.
        prefixes: below which a uri may lie.
        limits: the largest images and texts that are taken.
        waiting: whether somebody waits for the answer, so that all items together are limited.
    """

    def __init__(
        self,
        payload: Mapping[str, Any],
        prefixes: Prefixes,
        limits: ContentLimits,
        *,
        waiting: bool = True,
    ) -> None:
        self.payload, self.prefixes, self.limits = payload, prefixes, limits
        self._pixels = limits.call_pixels if waiting else None
        self._until = time.monotonic() + limits.call_seconds if waiting else None

    def read(self, item: PushedItem) -> bytes:
        """Return the bytes that the pool stores for an item.

        Raises:
            PoolError: the content is not of the pool's kind, damaged or too large.
            UriError: the uri is not allowed or cannot be read.
        """
        if self.payload["kind"] == "table":
            return _row(item.features, self.payload["features"])
        if self.payload["kind"] == "text":
            text = item.text if item.text is not None else self._bytes(item)
            return _written(text, self.limits.text_bytes)
        data = self._bytes(item)
        if data is None:
            raise PoolError("the items are images; give data (base64) or uri")
        self._spend(_promised(data, self.limits))
        check_image(data)
        if self.payload["encoding"] == "file":
            return data
        return raw_pixels(data, self.payload["shape"])

    def _bytes(self, item: PushedItem) -> bytes | None:
        """Return the bytes that an item was sent with, or that its uri leads to."""
        if item.data is not None or item.uri is None:
            return item.data
        self._check_time()
        text = self.payload["kind"] == "text"
        limit = self.limits.text_bytes if text else self.limits.image_bytes
        return self.prefixes.read(item.uri, limit)

    def _check_time(self) -> None:
        if self._until is not None and time.monotonic() > self._until:
            raise UriError(
                f"the files of this call took more than {self.limits.call_seconds:g} s to read; "
                "send fewer at once, or all as JSON lines"
            )

    def _spend(self, pixels: int) -> None:
        if self._pixels is None:
            return
        if pixels > self._pixels:
            raise PoolError(
                f"the images of this call have more than {self.limits.call_pixels} pixels; send "
                "fewer at once, or all as JSON lines"
            )
        self._pixels -= pixels


def _promised(data: bytes, limits: ContentLimits) -> int:
    """Return the pixels that an image's header promises, before anything is decoded."""
    if len(data) > limits.image_bytes:
        raise PoolError(f"{len(data)} bytes, at most {limits.image_bytes} are taken")
    pixels = promised_pixels(data)
    if pixels > limits.image_pixels:
        raise PoolError(f"{pixels} pixels, at most {limits.image_pixels} are taken")
    return pixels


def shown(data: Any, payload: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return what a pool stores for a row as something to look at, with its media type.

    Args:
        data: the bytes of a row; of a table its features.
        payload: what they are.
    """
    if payload["kind"] == "table":
        features = dict(zip(payload["features"], data, strict=True))
        return json.dumps({"features": features}).encode(), "application/json"
    if payload["kind"] == "text":
        return bytes(data), "text/plain; charset=utf-8"
    if payload["encoding"] == "file":
        return data, media_type(data)
    return as_png(np.frombuffer(data, np.uint8).reshape(payload["shape"])), "image/png"


def _written(given: str | bytes | None, most: int) -> bytes:
    """Return the bytes that a pool stores for a text, as ingest of the same text does."""
    if given is None:
        raise PoolError("the items are texts; give text, data (base64 of UTF-8) or uri")
    if len(given) > most:  # before anything is converted
        raise PoolError(f"the text is longer than {most} bytes, the most that are taken")
    payload, wrong = encoded(given)
    if wrong is not None:
        raise PoolError(wrong)
    if len(payload) > most:
        raise PoolError(f"the text has {len(payload)} bytes in UTF-8, at most {most} are taken")
    if b"\0" in payload:
        raise PoolError(f"the text holds a NUL, at byte {payload.index(0)}; leave it out")
    return payload


def _row(features: Any, names: Sequence[str]) -> bytes:
    if isinstance(features, Mapping):
        absent = [name for name in names if name not in features]
        strange = [name for name in features if name not in names]
        if absent or strange:
            raise PoolError(f"features miss {absent[:5]} and have {strange[:5]} besides")
        features = [features[name] for name in names]
    if (
        not isinstance(features, Sequence)
        or isinstance(features, str | bytes)
        or len(features) != len(names)
    ):
        raise PoolError(
            f"the items are rows; give features: {len(names)} numbers, in order or by name"
        )
    for name, value in zip(names, features, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise PoolError(f"feature {name!r} is {str(value)[:50]}; it must be a finite float32")
    return np.asarray(features, "<f8").tobytes()


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value) and abs(float(value)) <= float(np.finfo(np.float32).max)
    except OverflowError:
        return False


def _decoded(text: Any) -> bytes | None:
    base64_text = _text(text, "data")
    if base64_text is None:
        return None
    try:
        return base64.b64decode(base64_text, validate=True)
    except (binascii.Error, ValueError):
        raise PoolError("data is not base64; encode the bytes of the file") from None


def _text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise PoolError(f"{name} is {str(value)[:50]!r}; it must be text")
    return value
