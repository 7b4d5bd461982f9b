from __future__ import annotations

import pytest
import torch

from rayal.selection.threads import Team, torch_threads


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_a_tile_is_worked_on_by_one_core_however_many_there_are(threads: int, tiles: int) -> None:
    team = Team(threads)
    with torch_threads(2):
        assert team.map(lambda tile: (tile, torch.get_num_threads()), range(tiles)) == [
            (tile, 1) for tile in range(tiles)
        ]
        assert torch.get_num_threads() == 2
    team.close()


def test_the_threads_that_were_set_before_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError), torch_threads(1):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
