"""Create a storage root before a run begins, and remove it again when the run is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rayal.ledger import Ledger, has_ledger


@dataclass(frozen=True)
class Founding:
    """A storage root as it was before a run touched it.

    Args:
        root: its folder.
        there: whether that existed.
        ledger: whether it had a ledger.
        files: the files that lay in the folders of its pools.
    """

    root: Path
    there: bool
    ledger: bool
    files: frozenset[Path]

    @classmethod
    def of(cls, root: Path) -> Founding:
        """Look at a storage root."""
        return cls(root, root.exists(), has_ledger(root), frozenset(_pool_files(root)))

    def undo(self, ledger: Ledger) -> None:
        """Close the ledger, and take away what has come since, if nobody else has a share in it.

        A root that had a ledger stays as it is; so does one whose ledger another process has open,
        or has written to. Files go one by one, and folders only when they are empty.
        """
        if self.ledger:
            ledger.close()
            return
        pools = [self.root / "pools" / name for name in ledger.pools()]
        with ledger.withdrawn() as gone:
            if not gone:
                return
            for file in _pool_files(self.root):
                if file not in self.files and file.parent in pools:
                    file.unlink()
            kept = () if self.there else (self.root,)
            for folder in (*pools, self.root / "pools", *kept):
                with suppress(OSError):  # there is something else in it, or it was never made
                    folder.rmdir()


def _pool_files(root: Path) -> list[Path]:
    return [path for path in (root / "pools").glob("*/*") if path.is_file()]
