"""The training of a member: the base class, the loop, and the learners by name."""

from __future__ import annotations

from rayal.learners.base import (
    Batches,
    LabeledBatch,
    LabeledRows,
    Learner,
    Rows,
    Stream,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
    UnlabeledBatch,
)
from rayal.learners.checkpoint import CheckpointStore
from rayal.learners.layerwise import LayerwisePretrained
from rayal.learners.loop import fit
from rayal.learners.supervised import PRESETS, Supervised

__all__ = [
    "Learner",
    "Supervised",
    "LayerwisePretrained",
    "PRESETS",
    "Stream",
    "Batches",
    "LabeledBatch",
    "UnlabeledBatch",
    "Rows",
    "TensorRows",
    "LabeledRows",
    "TrainData",
    "TrainContext",
    "TrainState",
    "CheckpointStore",
    "fit",
]
