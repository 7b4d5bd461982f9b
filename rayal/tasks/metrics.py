"""Metrics of predictions, of classes and of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rayal.errors import ScoreError

ECE_BINS = 15


def classification_metrics(log_probs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return accuracy, nll and ece of predictions; sums run in float64.

    The expected calibration error has 15 bins of equal width, each open below and closed above
    (Guo, Pleiss, Sun & Weinberger, ICML 2017, equation 3).

    Args:
        log_probs: ``[N, C]``.
        targets: int64 ``[N]``.

    Raises:
        ScoreError: there are no rows.
    """
    _check_rows(targets)
    logs = log_probs.double()
    best, predicted = logs.max(dim=1)
    hits = (predicted == targets).double()
    nll = -logs.gather(1, targets[:, None]).mean()
    return {
        "accuracy": hits.mean().item(),
        "nll": nll.item(),
        "ece": _calibration_error(best.exp(), hits),
    }


def regression_metrics(moments: Tensor, targets: Tensor) -> dict[str, float]:
    """Return rmse, in units of the target, and nll, in nats, of Gaussian predictions, in float64.

    Args:
        moments: mean, model variance and noise variance, ``[N, 3]``; the density's variance is the
            sum of both.
        targets: ``[N]``.

    Raises:
        ScoreError: there are no rows, or a variance is not positive.
    """
    _check_rows(targets)
    mean, variance, noise = moments.double().unbind(dim=1)
    total, errors = variance + noise, (targets.double() - mean).square()
    if not (total > 0).all():
        raise ScoreError(
            f"row {int((~(total > 0)).nonzero()[0, 0])} of the predictions has no positive "
            "variance; a learner of numbers gives the noise a variance"
        )
    nll = 0.5 * ((2.0 * math.pi * total).log() + errors / total)
    return {"rmse": errors.mean().sqrt().item(), "nll": nll.mean().item()}


def _check_rows(targets: Tensor) -> None:
    if len(targets) == 0:
        raise ScoreError("metrics of 0 rows are not defined; give the pool items of the role test")


def _calibration_error(confidence: Tensor, hits: Tensor) -> float:
    """Return the mean over rows of |hits - confidence| averaged within bins, both ``[N]``."""
    places = ((confidence * ECE_BINS).ceil().long() - 1).clamp(0, ECE_BINS - 1)
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, places, hits - confidence)
    return gaps.abs().sum().item() / len(hits)
