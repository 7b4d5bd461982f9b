"""Checkpoint files of a storage root: durable first, then recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from rayal.failpoints import failpoint
from rayal.pool.storage import write_durably


@dataclass(frozen=True)
class FolderStore:
    """Checkpoints of one member as files of a storage root, which count by somebody's record.

    Args:
        root: the storage root.
        folder: where the files go, relative to the root, such as ``projects/NAME/models``.
        model: the committee's hash.
        member: the member.
        committed: () -> the last recorded epoch and its file, relative to the root.
        commit: (epoch, file, final) -> nothing; records a file that is complete and durable.
    """

    root: Path
    folder: str
    model: str
    member: int
    committed: Callable[[], tuple[int, str] | None]
    commit: Callable[[int, str, bool], None]

    def unrecorded(self) -> FolderStore:
        """Return the same files without the record, for a process that does not keep it."""
        return replace(self, committed=_nothing, commit=_nowhere)

    def recorded_by(
        self,
        committed: Callable[[], tuple[int, str] | None],
        commit: Callable[[int, str, bool], None],
    ) -> FolderStore:
        """Return the same files with another record."""
        return replace(self, committed=committed, commit=commit)

    def latest(self) -> tuple[int, Path] | None:
        """Return the last recorded epoch and its file."""
        row = self.committed()
        return None if row is None else (row[0], self.root / row[1])

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        """Write a file under a unique name, durably, then record it."""
        name = f"{self.model}-{self.member}-{epoch}-{uuid4().hex}.safetensors"
        write_durably(self.root / self.folder / name, write)
        failpoint("train.epoch")
        self.commit(epoch, f"{self.folder}/{name}", final)


def _nothing() -> None:
    return None


def _nowhere(epoch: int, file: str, final: bool) -> None:
    raise RuntimeError(f"epoch {epoch} has no record to go to")
