"""Networks that are a stack of dense layers, which can be pre-trained one layer after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.models.base import HookedNet, TaskNet

UNITS = (nn.ReLU, nn.Sigmoid, nn.Identity)


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A hidden layer: unit(W x + b).

    Attributes:
        name: name of its stage.
        linear: W ``[H, V]`` and b ``[H]``.
        unit: elementwise nn.ReLU | nn.Sigmoid | nn.Identity.
    """

    name: str
    linear: nn.Linear
    unit: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output ``[N, H]`` of its input ``[N, V]``."""
        hidden: Tensor = self.unit(self.linear(x))
        return hidden


def dense_layers(net: nn.Module) -> tuple[DenseLayer, ...]:
    """Return the hidden layers of a stack of dense layers, in order.

    Such a stack has stages of four kinds: a first nn.Flatten(1), nn.Sequential(nn.Linear with bias,
    unit), nn.Dropout, and the last nn.Linear.

    Raises:
        NeedsError: the network has another stage, or no hidden layer.
    """
    if not isinstance(net, TaskNet) or isinstance(net, HookedNet):
        raise _refused(f"({type(net).__name__}) no stages are known")
    layers = []
    for place, (name, stage) in enumerate(zip(net.stage_names[:-1], net.stages, strict=False)):
        layer = _layer(name, stage)
        if layer is not None:
            layers.append(layer)
        elif not isinstance(stage, nn.Dropout) and not (place == 0 and _flattens(stage)):
            raise _refused(f"stage {name!r} is a {type(stage).__name__}, no dense layer")
    if not layers:
        raise _refused("there is no hidden layer")
    return tuple(layers)


def _layer(name: str, stage: nn.Module) -> DenseLayer | None:
    if not isinstance(stage, nn.Sequential) or len(stage) != 2:
        return None
    linear, unit = stage
    fits = isinstance(linear, nn.Linear) and linear.bias is not None and isinstance(unit, UNITS)
    return DenseLayer(name, linear, unit) if fits and isinstance(linear, nn.Linear) else None


def _flattens(stage: nn.Module) -> bool:
    return isinstance(stage, nn.Flatten) and stage.start_dim == 1


def _refused(reason: str) -> NeedsError:
    return NeedsError(
        f"layer-wise pre-training wants a stack of dense layers, of the given network {reason}; "
        "choose network mlp with at least one of widths, or learner supervised"
    )
