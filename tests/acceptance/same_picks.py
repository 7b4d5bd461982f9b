"""Say whether two runs made the same picks, with the same scores: the exit code says it too."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq


def main() -> int:
    one, other = (pq.read_table(Path(folder) / "picks.parquet") for folder in sys.argv[1:])
    same = one.equals(other)
    sys.stdout.write(f"{'equal' if same else 'DIFFERENT'}, {len(one)} picks\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
