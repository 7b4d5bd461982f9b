"""Where a run works, and that a device which is not there is said before anything runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayal.errors import SettingsError
from rayal.evaluation.protocol import executor_of
from rayal.settings.run import load

WAITING: Any = SimpleNamespace(
    finished=False, waiting=False, spec=SimpleNamespace(committee_size=1)
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("section", "shares"),
    [("scan", "ray.member_gpus and ray.scanner_gpus"), ("selection", "ray.member_gpus")],
)
def test_a_device_that_is_not_there(section: str, shares: str) -> None:
    settings = load({"pool": {"source": "digits"}, section: {"device": "cuda"}})
    with pytest.raises(SettingsError) as caught:
        executor_of(settings, [WAITING], lambda text: None)
    assert str(caught.value) == (
        f"{section}.device is 'cuda', and torch sees none in this process; set it to cpu, or use "
        f"executor ray with {shares}"
    )


def test_the_cpu_is_there() -> None:
    settings = load({"pool": {"source": "digits"}, "selection": {"precision": "bf16"}})
    with executor_of(settings, [WAITING], lambda text: None) as executor:
        assert executor.name == "local"
