from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from rayal.engine.scan import signals_of
from rayal.engine.spec import ScanOptions, options_record
from rayal.errors import NeedsError
from rayal.labels import ClassLabel
from rayal.models import HookedNet
from rayal.models.base import TaskNet
from rayal.models.committee import Committee
from rayal.models.compiled import check_compiles
from rayal.models.image import small_cnn
from rayal.signals import Embedding, LogProbs, MemberStats
from rayal.tasks.image import ImageTask

ROWS = 130
SIGNALS = (LogProbs(), Embedding(), MemberStats(passes=3))


def committee(net: TaskNet) -> Committee:
    task = ImageTask(ClassLabel(("a", "b", "c")), "raw", 1, (12, 12))
    nets = (nn.ModuleDict({"task": net}),)
    return Committee(nets, task, {"mean": torch.zeros(1), "std": torch.ones(1)}, "h", 0, 0)


def columns(of: Committee, *, compile: bool = False) -> dict[str, torch.Tensor]:
    x = torch.rand((ROWS, 1, 12, 12), generator=torch.Generator().manual_seed(1))
    ids, keys = [str(i) for i in range(ROWS)], np.arange(ROWS, dtype=np.uint64)
    return signals_of(of, SIGNALS, x, ids, keys, options=ScanOptions(compile=compile))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_columns_are_those_of_the_network() -> None:
    of = committee(small_cnn((1, 12, 12), 3, widths=(4, 8, 16)))
    eager, compiled = columns(of), columns(of, compile=True)
    assert of._compiled, "nothing was compiled"
    for name, column in eager.items():
        if name != "member_stats.votes":
            torch.testing.assert_close(compiled[name], column, rtol=1e-4, atol=1e-5)
    copy: Committee = pickle.loads(pickle.dumps(of))
    assert copy._compiled == {}  # code stays on its machine


def test_a_module_without_stages_is_refused() -> None:
    net = HookedNet(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), (1, 12, 12))
    with pytest.raises(NeedsError, match=r"scan.compile needs a network of stages, Sequential"):
        check_compiles(net)


def test_the_record_says_what_the_settings_promise() -> None:
    assert options_record(ScanOptions())["tolerance"] == 0.0
    assert options_record(ScanOptions(compile=True))["tolerance"] == 1e-5
    assert options_record(ScanOptions(precision="bf16"))["tolerance"] == 1e-2
