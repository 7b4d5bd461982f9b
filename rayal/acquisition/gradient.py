"""Expected lengths of gradients that have a closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from rayal.acquisition.uncertainty import least_confidence


def softmax_gradient_length(log_probs: Tensor, embeddings: Tensor) -> Tensor:
    """Return the expected gradient length of the softmax layer, weights and bias, ``[N]``.

    For the label k the gradient of the cross-entropy is (p - e_k) ⊗ (h, 1), so its expected length
    is sqrt(|h|² + 1) Σ_k p_k |p - e_k| (Settles, Craven & Ray, NIPS 2007, for this layer).

    Args:
        log_probs: ``[N, C]``.
        embeddings: inputs h of the layer, ``[N, D]``.
    """
    logs = log_probs.double()
    probs = logs.exp()
    squares = probs * probs  # [N, C]
    others = squares.sum(dim=1, keepdim=True) - squares
    top = squares.argmax(dim=1, keepdim=True)  # its difference would lose all digits
    others.scatter_(1, top, squares.scatter(1, top, 0.0).sum(dim=1, keepdim=True))
    missing = torch.expm1(logs)  # p_k - 1, which of the largest is minus the sum of the others
    missing.scatter_(1, top, -least_confidence(log_probs)[:, None])
    lengths = (probs * (missing * missing + others).sqrt()).sum(dim=1)
    h = embeddings.double()
    return ((h * h).sum(dim=1) + 1.0).sqrt() * lengths
