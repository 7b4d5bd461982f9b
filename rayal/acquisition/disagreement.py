"""Disagreement of M members: trained networks, dropout masks, or both.

References:
    Houlsby, Huszár, Ghahramani & Lengyel, arXiv 1112.5745, 2011 (BALD);
    Gal, Islam & Ghahramani, ICML 2017, section 4 (MC-dropout forms, mean STD);
    Freeman, Elementary Applied Statistics, 1965 (variation ratios).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayal.acquisition.uncertainty import LEAST, probability_entropy

NOISE = 1e-14  # nats; rounding error of float64 where members are equal
CHUNK = 1 << 17  # probabilities at once


def bald(mean: Tensor, member_entropy: Tensor) -> Tensor:
    """Return the mutual information H[mean] - mean H ``[N]``; rounding noise (1e-14) is 0.

    Args:
        mean: mean probabilities of the members, ``[N, C]``.
        member_entropy: mean of the members' entropies in nats, ``[N]``.
    """
    gain = probability_entropy(mean) - member_entropy.double()
    return torch.where(gain > NOISE, gain, torch.zeros_like(gain))


def bald_of_members(member_log_probs: Tensor) -> Tensor:
    """Return the mutual information ``[N]`` of member log-probabilities ``[N, M, C]``."""
    gains = [member_log_probs.new_zeros(0, dtype=torch.float64)]
    rows = max(1, CHUNK // max(1, member_log_probs[0:1].numel()))  # they stay in the cache
    for start in range(0, len(member_log_probs), rows):
        some = member_log_probs[start : start + rows]
        logs = some.double().clamp_min(LEAST)  # [n, M, C]; 0 log 0 = 0
        probs = logs.exp()
        noise = -logs.mul_(probs).sum(dim=(1, 2)) / max(1, some.shape[1])
        gains.append(bald(probs.mean(dim=1), noise))
    return torch.cat(gains)


def variation_ratio_mean(mean: Tensor) -> Tensor:
    """Return 1 - max_c of the mean probabilities ``[N, C]``: the form of Gal et al., eq. 10.

    Computed as the sum of the others, which keeps its digits where the largest is close to 1.
    """
    wide = mean.double()
    return wide.scatter(1, wide.argmax(dim=1, keepdim=True), 0.0).sum(dim=1)


def variation_ratio_vote(votes: Tensor) -> Tensor:
    """Return 1 - the modal class's share of the votes ``[N, C]``: the form of Beluch et al."""
    return 1.0 - votes.amax(dim=1).double()


def mean_standard_deviation(variance: Tensor) -> Tensor:
    """Return the mean over classes of the members' standard deviation, ``[N]`` of ``[N, C]``."""
    return torch.sqrt(variance.double().clamp_min(0.0)).mean(dim=1)
