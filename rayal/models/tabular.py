"""Networks for rows of numbers; they take images too, flattened."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from torch import nn

from rayal.errors import SettingsError
from rayal.models.base import TaskNet
from rayal.registry import networks

Activation = Literal["relu", "sigmoid"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


@networks.register("mlp")
def mlp(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: tuple[Annotated[int, Gt(0)], ...] = (256, 256),
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    activation: Activation = "relu",
) -> TaskNet:
    """Return a perceptron with dense hidden layers, for rows of any shape.

    Args:
        input_shape: shape of a row; it is flattened.
        n_outputs: columns of the logits.
        widths: widths of the hidden layers; none gives a linear model.
        dropout: dropout probability behind every hidden layer.
        activation: activation of the hidden layers: relu | sigmoid.

    Raises:
        SettingsError: dropout without a hidden layer.
    """
    if dropout > 0 and not widths:
        raise SettingsError(
            f"mlp: dropout {dropout} stands behind hidden layers, and widths is empty; give widths "
            "or set dropout to 0"
        )
    stages: dict[str, nn.Module] = {"flatten": nn.Flatten(1)}
    inputs = prod(input_shape)
    for i, width in enumerate(widths, start=1):
        stages[f"hidden{i}"] = nn.Sequential(nn.Linear(inputs, width), _ACTIVATIONS[activation]())
        stages[f"dropout{i}"] = nn.Dropout(dropout)
        inputs = width
    return TaskNet({**stages, "head": nn.Linear(inputs, n_outputs)})
