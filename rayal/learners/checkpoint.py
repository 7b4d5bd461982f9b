"""Checkpoint files: safetensors, with everything that is no tensor as JSON in their metadata.

A file holds either the whole state of an unfinished training, or what a finished one leaves: the
weights that answer and the constants of the eval transform. A strategy's memory is written in the
same way. Reading a file runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rayal.errors import StorageError
from rayal.types import FORMAT_VERSION

Kind = Literal["state", "predictor", "memory"]
T = TypeVar("T")


class CheckpointStore(Protocol):
    """A store of one member's checkpoints, which knows the ones that count."""

    def latest(self) -> tuple[int, Path] | None:
        """Return the last committed epoch and its file."""

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        """Write a file by ``write``, and commit it at once or not at all."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        kind: state (training goes on from it) | predictor (training is finished) | memory (of a
            strategy).
        tree: nested dictionaries, lists, tensors, numbers and text.
    """

    kind: Kind
    tree: dict[str, Any]


def write_checkpoint(path: Path, kind: Kind, tree: Mapping[str, Any]) -> None:
    """Write a tree of tensors, numbers and text.

    Raises:
        StorageError: the tree holds something else; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    shape = _pack(dict(tree), "", tensors)
    save_file(tensors, path, {"version": FORMAT_VERSION, "kind": kind, "tree": json.dumps(shape)})


def checkpoint_kind(path: Path) -> Kind:
    """Return the kind of a checkpoint file, from its header alone."""
    with _opened(path, "cpu") as (_, metadata):
        return _kind(metadata)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a file that ``write_checkpoint`` wrote, its tensors onto ``device``.

    Raises:
        StorageError: the file is missing, damaged, or of another format version.
    """
    with _opened(path, device) as (tensor, metadata):
        return Checkpoint(_kind(metadata), _unpack(json.loads(metadata["tree"]), tensor))


def latest_of(store: CheckpointStore, read: Callable[[Path], T]) -> T | None:
    """Return the result of ``read`` for a store's last committed file; None if there is none.

    A file that is gone because another process has committed a later epoch meanwhile is no error:
    that one is read.

    Raises:
        StorageError: the file is missing or damaged, and no other has come in its place.
    """
    while (latest := store.latest()) is not None:
        try:
            return read(latest[1])
        except StorageError:
            if store.latest() == latest:
                raise
    return None


def _kind(metadata: Mapping[str, str]) -> Kind:
    kinds: dict[str, Kind] = {"state": "state", "memory": "memory"}
    return kinds.get(metadata["kind"], "predictor")


@contextmanager
def _opened(
    path: Path, device: torch.device | str
) -> Iterator[tuple[Callable[[str], Tensor], Mapping[str, str]]]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != FORMAT_VERSION:
                raise StorageError(
                    f"checkpoint {path} has format version {metadata.get('version')}, this rayal "
                    f"reads {FORMAT_VERSION}; train again, or use the rayal that wrote it"
                )
            yield file.get_tensor, metadata
    except FileNotFoundError:
        raise StorageError(
            f"checkpoint {path} is missing; restore it, or remove its row to train again"
        ) from None
    except SafetensorError as error:
        raise StorageError(f"checkpoint {path} is damaged: {error}; restore it") from None


def _pack(node: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return the node as JSON, with its tensors moved to ``tensors`` under their place."""
    if isinstance(node, Tensor):
        # a copy of its own: tied weights share memory, which the format refuses
        tensors[place] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(node, dict):  # pairs, because optimisers count parameters by integers
        return {"dict": [[k, _pack(v, f"{place}/{k}", tensors)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        items = [_pack(v, f"{place}/{i}", tensors) for i, v in enumerate(node)]
        return {"tuple" if isinstance(node, tuple) else "list": items}
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise StorageError(
        f"{place[1:]} is a {type(node).__name__}, which a checkpoint cannot hold; keep tensors, "
        "numbers and text in the state"
    )


def _unpack(node: Any, tensor: Callable[[str], Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "dict":
        return {key: _unpack(item, tensor) for key, item in value}
    items = [_unpack(item, tensor) for item in value]
    return tuple(items) if kind == "tuple" else items
