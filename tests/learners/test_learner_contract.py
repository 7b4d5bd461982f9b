"""Every registered learner fulfils the contract; and the contract notices who does not."""

from __future__ import annotations

from typing import Any

import pytest

from rayal.engine.train import NetworkSpec
from rayal.registry import learners
from rayal.testing import LEARNER_CHECKS, Trial

SHIPPED = [name for name in learners if learners[name].__module__.startswith("rayal.")]
SHORT: dict[str, dict[str, Any]] = {"layerwise_pretrained": {"pretrain_steps": 12}}
TRIALS: dict[str, Trial] = {
    "pbp": Trial(NetworkSpec("pbp", {"hidden": (6,)}), refused=NetworkSpec("mlp")),
}


@pytest.mark.parametrize("check", LEARNER_CHECKS)
@pytest.mark.parametrize("name", SHIPPED)
def test_contract(name: str, check: str) -> None:
    LEARNER_CHECKS[check](learners[name](**SHORT.get(name, {})), TRIALS.get(name, Trial()))
