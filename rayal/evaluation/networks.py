"""The ``model`` section of the settings: a network, or a frozen backbone with a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayal.engine.spec import NetworkSpec
from rayal.models.backbone import BackboneSpec
from rayal.models.weights import RANDOM
from rayal.settings.run import ModelSettings, Settings

_ENCODER = "minilm"
_HEADS: dict[str, dict[str, Any]] = {
    "linear": {"widths": []},
    "mlp": {"widths": [256], "dropout": 0.5},  # dropout, which some strategies ask for
}


def network_of(chosen: ModelSettings, kind: str | None = None) -> NetworkSpec:
    """Return the network that is trained: the chosen one, or the head of a backbone.

    Args:
        chosen: the section of the settings.
        kind: of the task, where it is said; it decides the default.
    """
    if chosen.backbone is not None:
        return NetworkSpec("mlp", _HEADS[chosen.head or "linear"])
    default = {"text": "kim_cnn", "table": "mlp"}.get(kind or "", "small_cnn")
    return NetworkSpec(chosen.network or default, chosen.params)


def backbone_of(chosen: ModelSettings) -> BackboneSpec | None:
    """Return the frozen backbone, if there is one."""
    if chosen.backbone is None or chosen.weights is None:
        return None
    return BackboneSpec(chosen.backbone, chosen.weights, chosen.params)


def task_settings(settings: Settings) -> dict[str, Any]:
    """Return the ``task`` section without what is not set, and with the tokeniser of an encoder.

    A sentence encoder with published weights, frozen or trained on, reads the token ids of its own
    ``tokenizer.json``, which lies beside them.
    """
    given = {k: v for k, v in settings.task.model_dump().items() if v is not None}
    weights = _encoder_weights(settings.model)
    if weights is not None and "tokenizer" not in given:
        given["tokenizer"] = str(Path(weights).with_name("tokenizer.json"))
    return given


def _encoder_weights(chosen: ModelSettings) -> str | None:
    """Return the file of a sentence encoder's published weights."""
    if chosen.backbone == _ENCODER:
        return chosen.weights
    weights = chosen.params.get("weights", RANDOM) if chosen.network == _ENCODER else RANDOM
    return None if weights == RANDOM else str(weights)
