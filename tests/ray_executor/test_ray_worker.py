"""A worker of the crew as a plain object, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayal.pool.storage import write_part
from rayal.ray_executor.crew import Worker
from rayal.selection import TopK


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_shard_is_worked_on_by_the_threads_of_its_run(tmp_path: Path) -> None:
    keys = pa.array(np.arange(5, dtype=np.uint64))
    columns = {"key": keys, "score": pa.array(np.zeros(5, dtype=np.float32))}
    write_part(tmp_path / "part.arrow", pa.table(columns), {})
    worker = Worker()
    worker.open(TopK(), [tmp_path / "part.arrow"], np.zeros(0, dtype=np.uint64), 0, 1, "cpu")
    assert torch.get_num_threads() == 1
    worker.close()
    with pytest.raises(RuntimeError, match="no shard is open"):
        worker.answer(b"")
