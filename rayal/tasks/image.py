"""Images: raw bytes of fixed shape, or files that Pillow decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rayal.errors import PoolError
from rayal.labels import label_kind
from rayal.pixels import decode_file
from rayal.tasks.base import Task, column_of, item_of, keyed_uniforms
from rayal.types import Keys, stated

Encoding = Literal["raw", "file"]


@dataclass(frozen=True)
class ImageTask(Task):
    """One class, or one number, for each image.

    Args:
        labels: the classes, or a number.
        encoding: raw (uint8 bytes, ``[H, W]`` or ``[H, W, C]``) | file (JPEG, PNG, …).
        channels: 1 (grey) | 3 (RGB) for files; of raw bytes whatever they have.
        size: (height, width).
        resize: whether files of another size are resized (bilinear) or refused.
        flip: whether augmentation mirrors left and right.
        stored: (height, width) of raw bytes that are resized (bilinear, antialiased) to ``size``;
            None where they have it already.
    """

    kind: ClassVar[str] = "image"
    encoding: Encoding
    channels: int
    size: tuple[int, int]
    resize: bool = False
    flip: bool = False
    stored: tuple[int, int] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return (self.channels, *self.size)

    def decode(self, rows: pa.Table) -> Tensor:
        """Return images in [0, 1], float32 ``[N, Ch, H, W]``, in channels-last memory.

        Files are turned upright by their EXIF orientation; transparency is dropped.

        Raises:
            PoolError: bytes of another length, an image that does not decode, of another size
                (unless ``resize``), or of more than 8 bits a channel.
        """
        column = column_of(rows, "data")
        size = self.stored or self.size
        pixels = np.empty((len(column), *size, self.channels), np.float32)  # [N, H, W, Ch]
        fill = self._fill_raw if self.encoding == "raw" else self._fill_files
        start = 0
        for chunk in column.chunks:
            fill(pixels[start : start + len(chunk)], chunk, rows, start)
            start += len(chunk)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if self.stored is None:
            return images
        return F.interpolate(images, self.size, mode="bilinear", antialias=True)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return random crops of reflection-padded images, mirrored at random where ``flip``.

        Padding is an eighth of a side: 4 pixels at 32. Pixels only move, so this commutes with
        ``transform`` bit for bit.
        """
        return self._moved(x, torch.rand((len(x), 3), generator=generator, dtype=torch.float64))

    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Return the crop and reflection that belong to (seed, view, id key)."""
        return self._moved(x, torch.from_numpy(keyed_uniforms(keys, 3, "image", seed, view)))

    def to_json(self) -> dict[str, Any]:
        """Return the kind and all settings as JSON."""
        values = {**stated(self), "labels": self.labels.to_json(), "size": list(self.size)}
        stored = values.pop("stored")
        return {"kind": self.kind, **values, **({"stored": list(stored)} if stored else {})}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ImageTask:
        """Return the task that ``to_json`` described."""
        values = {name: value for name, value in stored.items() if name != "kind"}
        values["labels"] = label_kind(stored["labels"])
        values |= {n: tuple(stored[n]) for n in ("size", "stored") if n in stored}
        return cls(**values)

    def _moved(self, x: Tensor, uniforms: Tensor) -> Tensor:
        """Shift and mirror images ``[N, Ch, H, W]`` as uniforms ``[N, 3]`` say: y, x, mirror."""
        rows = _shifted(x.shape[2], uniforms[:, 0])  # [N, H]
        columns = _shifted(x.shape[3], uniforms[:, 1])  # [N, W]
        if self.flip:
            mirrored = uniforms[:, 2:] < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = rows.to(x.device), columns.to(x.device)
        image = torch.arange(len(x), device=x.device)[:, None, None]
        moved = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)

    def _fill_raw(
        self, out: npt.NDArray[np.float32], chunk: pa.Array, rows: pa.Table, start: int
    ) -> None:
        """Scale bytes straight from the Arrow buffer into ``out [n, H, W, Ch]``."""
        wide = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        _, ends, data = chunk.buffers()
        stops = np.frombuffer(ends, wide)[chunk.offset : chunk.offset + len(chunk) + 1]
        height, width = self.stored or self.size
        wanted = self.channels * height * width
        lengths = np.diff(stops)
        if (lengths != wanted).any():
            row = int(np.flatnonzero(lengths != wanted)[0])
            raise PoolError(
                f"{item_of(rows, start + row)} has {lengths[row]} bytes, an image of shape "
                f"{[height, width, self.channels]} has {wanted}; ingest the pool again"
            )
        if len(chunk):
            flat = np.frombuffer(data, np.uint8)[stops[0] : stops[-1]]
            np.divide(flat.reshape(out.shape), np.float32(255), out=out)

    def _fill_files(
        self, out: npt.NDArray[np.float32], chunk: pa.Array, rows: pa.Table, start: int
    ) -> None:
        for row, value in enumerate(chunk):
            image = decode_file(value.as_buffer(), self.channels, item_of(rows, start + row))
            if image.size != self.size[::-1]:
                image = self._resized(image, item_of(rows, start + row))
            pixels = np.asarray(image, np.uint8).reshape(out.shape[1:])
            np.divide(pixels, np.float32(255), out=out[row])

    def _resized(self, image: Image.Image, item: str) -> Image.Image:
        if not self.resize:
            width, height = image.size
            raise PoolError(
                f"{item} is {height} x {width}, the first image is {self.size[0]} x "
                f"{self.size[1]}; set task: {{size: [H, W]}} to resize all images"
            )
        return image.resize(self.size[::-1], Image.Resampling.BILINEAR)


def _shifted(side: int, uniform: Tensor) -> Tensor:
    """Return the line that each line of a reflection-padded crop shows, int64 ``[N, side]``."""
    padding = (side + 4) // 8
    offset = (uniform * (2 * padding + 1)).long() - padding
    line = (torch.arange(side) + offset[:, None]).abs()
    return (side - 1) - ((side - 1) - line).abs()
