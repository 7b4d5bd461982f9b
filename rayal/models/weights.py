"""Weights of published networks, read from local files; nothing is downloaded."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rayal.errors import SettingsError

RANDOM = "random"  # the weights of a network that was never trained
_SHOWN = 5  # names of weights in a message


def _file(weights: str) -> tuple[str, int, int]:
    """Return a file with its time and size, by which its digest is remembered."""
    path = Path(weights).absolute()
    if not path.is_file():
        raise SettingsError(
            f"weights: {weights!r} is no file; give local weights (*.safetensors, or a state "
            f"dictionary by torch.save), or say `weights: {RANDOM}`; nothing is downloaded"
        )
    state = path.stat()
    return str(path), state.st_mtime_ns, state.st_size


def weights_digest(weights: str) -> str:
    """Return the digest of a file of weights, or raise SettingsError where there is none."""
    return _file_digest(*_file(weights))


@lru_cache(maxsize=8)
def _file_digest(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def load_weights(network: nn.Module, path: Path, without: tuple[str, ...] = ()) -> None:
    """Load weights strictly, without some names, such as those of a classifier that was removed.

    Args:
        network: the network whose weights they become.
        path: ``*.safetensors``, or a state dictionary by ``torch.save``.
        without: beginnings of names that the file may hold beside them.

    Raises:
        SettingsError: the file cannot be read, or does not fit; the message names what.
    """
    stored = {n: v for n, v in _read(path).items() if not n.startswith(without)}
    wanted = network.state_dict()
    missing, strange = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    shapes = [
        f"{n} {list(stored[n].shape)} for {list(v.shape)}"
        for n, v in wanted.items()
        if n in stored and stored[n].shape != v.shape
    ]
    wrong = {"missing": missing, "unknown": strange, "of another shape": shapes}
    parts = [f"{len(v)} {n} ({', '.join(v[:_SHOWN])})" for n, v in wrong.items() if v]
    if parts:
        raise SettingsError(
            f"the weights {path} do not fit {type(network).__name__}: {'; '.join(parts)}; give the "
            "weights of this very network"
        )
    network.load_state_dict(stored)


def _read(path: Path) -> dict[str, Tensor]:
    _file(str(path))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever their parsers do
        raise SettingsError(
            f"the weights {path} cannot be read ({error}); give *.safetensors, or a state "
            "dictionary that torch.save wrote"
        ) from error
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise SettingsError(
            f"{path} holds a {type(stored).__name__} that is no state dictionary; save "
            "network.state_dict() alone"
        )
    return stored
