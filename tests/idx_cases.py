"""Small IDX files, as Fashion-MNIST has them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_folder(folder: Path) -> Path:
    """Write a small Fashion-MNIST: the same files, 400 + 100 images."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 400), ("t10k", 100)):
        labels = rng.integers(0, 10, size=count).astype(np.uint8)
        pixels = rng.integers(0, 60, size=(count, 28, 28)).astype(np.uint8)
        for row, label in enumerate(labels):
            pixels[row, label * 2 : label * 2 + 4] = 250
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        known = struct.pack(">II", 2049, count) + labels.tobytes()
        for name, data in (
            (f"{stem}-images-idx3-ubyte", images),
            (f"{stem}-labels-idx1-ubyte", known),
        ):
            with gzip.open(folder / f"{name}.gz", "wb") as file:
                file.write(data)
    return folder
