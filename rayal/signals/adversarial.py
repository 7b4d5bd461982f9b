"""Distance of an item from the nearest class boundary, by the DeepFool perturbation.

References:
    Moosavi-Dezfooli, Fawzi & Frossard, CVPR 2016, "DeepFool", algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rayal.errors import NeedsError
from rayal.models.committee import Committee
from rayal.models.dropout import evaluating
from rayal.selection.tiles import PAD
from rayal.signals.base import Forward, Signal
from rayal.signals.predictions import check_member

FLAT = 1e-18  # norm of a gradient that shows no direction: its square is still a float32


class Perturbed(NamedTuple):
    """The perturbations that DeepFool finds for B rows.

    Attributes:
        r: the perturbation without overshoot, ``[B, …]``.
        distance: its Euclidean norm ``[B]``; inf where the network is flat around the row, NaN
            where its logits or their gradients are.
        flipped: whether x + (1 + overshoot) r has another class, bool ``[B]``.
    """

    r: Tensor
    distance: Tensor
    flipped: Tensor


def deepfool(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    classes: int = 10,
    steps: int = 50,
    overshoot: float = 0.02,
) -> Perturbed:
    """Return the smallest perturbations that DeepFool finds, of all rows at once.

    Rows do not interact; those that are done are frozen. A row is done, too, with a step that is
    lost in the rounding of the coordinates that it moves. One gradient of a class is held at a
    time, so memory is O(B |x|).

    Args:
        logits: rows ``[B, …]`` to logits ``[B, C]``, differentiable.
        x: rows.
        classes: number of classes, the most probable at the start, whose boundaries count.
        steps: most linearisations of a row.
        overshoot: share by which the perturbation is lengthened, > 0, so that the class changes.
    """
    x = x.detach()
    r = torch.zeros_like(x)
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    flat, broken, order = ~active, ~active, None
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for _ in range(steps):
            here = (x + (1.0 + overshoot) * r).requires_grad_()
            f = logits(here.clone())  # [B, C]; a stage may work in place, and not on a leaf
            if order is None:
                order = f.detach().topk(min(classes, f.shape[1]), dim=1).indices
            active = active & (f.detach().argmax(dim=1) == order[:, 0])
            if not active.any():
                break
            nearest, step = _nearest(f, here, order)
            flat = flat | (active & nearest.isinf() & (_norms(r) == 0.0))
            broken = broken | (active & nearest.isnan())
            active = active & nearest.isfinite()
            r = torch.where(_wide(active, r), r + step, r)
            active = active & (nearest > _rounding(x, step))
        last = logits(x + (1.0 + overshoot) * r)
    assert order is not None
    broken = broken | last.isnan().any(dim=1)
    distance = _norms(r).masked_fill(flat, torch.inf).masked_fill(broken, torch.nan)
    return Perturbed(r, distance, (last.argmax(dim=1) != order[:, 0]) & ~broken)


def _rounding(x: Tensor, step: Tensor) -> Tensor:
    """Return the length of a row's rounding along a step, ``[B]``: Σ |w_i| ε |x_i| / |w|.

    It is at most ε |x|, and far less where the large coordinates are not those that move.
    """
    moved = (step.abs() * x.abs()).flatten(1).sum(dim=1)
    return torch.finfo(x.dtype).eps * moved / _norms(step).clamp_min(torch.finfo(x.dtype).tiny)


def _nearest(f: Tensor, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance to the nearest boundary of the linearised logits, and the step there.

    The distance is inf where no boundary shows, and NaN where a gradient or a gap is NaN.

    Args:
        f: logits ``[B, C]`` with their graph.
        x: rows ``[B, …]`` that gave the logits.
        order: classes ``[B, m]``, the row's own first.
    """

    def gradient(rank: int) -> tuple[Tensor, Tensor]:
        own = f.gather(1, order[:, rank : rank + 1])[:, 0]  # [B]
        (slope,) = torch.autograd.grad(own.sum(), x, retain_graph=True)
        return own.detach(), slope

    value, base = gradient(0)
    nearest = torch.full_like(value, torch.inf)
    step = torch.zeros_like(x)
    for rank in range(1, order.shape[1]):
        other, slope = gradient(rank)
        w = slope - base
        gap, norm = (other - value).abs(), _norms(w)
        distance = torch.where(norm <= FLAT, torch.inf, gap / norm.clamp_min(FLAT))
        closer = (distance < nearest) | distance.isnan()  # a NaN stays, whatever class comes later
        nearest = torch.where(closer, distance, nearest)
        step = torch.where(_wide(closer, w), w * _wide(gap / norm.clamp_min(FLAT) ** 2, w), step)
    return nearest, step.detach()


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms


def _wide(column: Tensor, like: Tensor) -> Tensor:
    """Return a column ``[B]`` as ``[B, 1, …]``."""
    return column.view(-1, *(1 for _ in like.shape[1:]))


def perturbed_rows(
    committee: Committee, raw: Tensor, member: int, *, classes: int, steps: int, overshoot: float
) -> Perturbed:
    """Return ``deepfool`` of decoded rows ``[N, …]`` under a member's network, 64 at a time.

    The last rows are padded by zeros: what a row gives does not depend on how many there are.
    """
    net, task = committee.net(member), committee.task
    weight = next(net.parameters())

    def logits(x: Tensor) -> Tensor:
        seen = task.transform(x, committee.statistics)
        images = seen.ndim == 4
        f: Tensor = net(seen.contiguous(memory_format=torch.channels_last) if images else seen)
        return f

    rows = raw.to(weight.dtype)
    missing = -len(rows) % PAD
    padded = torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])
    options = {"classes": classes, "steps": steps, "overshoot": overshoot}
    with evaluating(net):
        parts = [deepfool(logits, x, **options) for x in torch.split(padded, PAD)]  # type: ignore[arg-type]
    return Perturbed(*(torch.cat(column)[: len(rows)] for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class AdversarialDistance(Signal):
    """The length of the DeepFool perturbation of decoded rows, ``adversarial_distance`` ``[N]``.

    It is inf where the network is flat around a row: that is not near a boundary. A row that
    keeps its class for all steps has the length it came to. Lengths are Euclidean in the units of
    decoded rows: those of a table's columns, whatever their scales.

    Args:
        classes: number of classes, the most probable ones, whose boundaries count.
        steps: most linearisations of a row.
        overshoot: share by which the perturbation is lengthened to change the class.
        member: the member whose network is asked.
    """

    classes: int = 10
    steps: int = 50
    overshoot: float = 0.02
    member: int = 0

    differentiates: ClassVar[bool] = True

    def names(self) -> tuple[str, ...]:
        """Return ``adversarial_distance``."""
        return ("adversarial_distance",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless the network is a differentiable function of its rows."""
        check_member(self.member, committee)
        net = committee.net(self.member)
        weight = next(net.parameters())
        shape = (1, *committee.task.input_shape)
        row = torch.zeros(shape, device=weight.device, dtype=weight.dtype, requires_grad=True)
        try:
            with evaluating(net), torch.enable_grad():
                torch.autograd.grad(net(row.clone()).sum(), row)
        except RuntimeError as error:
            raise NeedsError(
                f"the adversarial distance needs a network that is differentiable in its rows, as "
                f"for images or numbers, and {type(net).__name__} is not ({error}); for texts use "
                "egl_word"
            ) from None

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the distances; padding rows are left out, and have 0."""
        raw = f.x if f.raw is None else f.raw
        perturbed = perturbed_rows(
            f.committee,
            raw[: f.rows],
            self.member,
            classes=self.classes,
            steps=self.steps,
            overshoot=self.overshoot,
        )
        distance = perturbed.distance.new_zeros(len(f.x), dtype=torch.float32)
        distance[: f.rows] = perturbed.distance
        return {"adversarial_distance": distance}
