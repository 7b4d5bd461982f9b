"""What a committee's weights depend on, as one digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayal.registry import hashed_name
from rayal.types import FORMAT_VERSION, digest, stated

if TYPE_CHECKING:
    from rayal.engine.train import NetworkSpec
    from rayal.learners.base import Learner
    from rayal.tasks.base import Task


def model_hash(
    *,
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    labels: Mapping[str, Any],
    members: int,
    seed: int,
    round: int,
    threads_per_model: int = 1,
    unlabeled: tuple[int, int] | None = None,
    attached: Sequence[Any] | None = None,
    reads: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
) -> str:
    """Return the digest of everything that a committee's weights depend on.

    Args:
        learner: with its hyperparameters.
        network: with its parameters.
        task: with its target and input shape.
        labels: the labeled items: id -> label and hash of the content, in any order.
        members: committee size.
        seed: the model seed.
        round: the round.
        threads_per_model: torch threads, which decide the order of sums.
        unlabeled: (rows, digest) of the unlabeled rows, where the learner reads them.
        attached: what names the rows that strategies attached to labeled items; None without any.
        reads: hash of the columns that the learner reads; None without any.
        pretrained: hash of the pre-training that members start from; None without one.
        device: type of the device, whose sums differ.
    """
    return digest(
        {
            "version": FORMAT_VERSION,
            "learner": [*hashed_name(learner), stated(learner)],
            "network": network.identity,
            "task": task.to_json(),
            "labels": sorted(labels.items()),
            "members": members,
            "seed": seed,
            "round": round,
            "threads": threads_per_model,
            "unlabeled": unlabeled,
            **({} if attached is None else {"attached": attached}),
            **({} if reads is None else {"reads": reads}),
            **({} if pretrained is None else {"pretrained": pretrained}),
            **({} if device == "cpu" else {"device": device}),
        }
    )
