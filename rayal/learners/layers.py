"""Greedy layer-wise training of a dense network without labels: autoencoders or machines.

References:
    Hinton, Osindero & Teh, Neural Computation 18, 2006 (greedy layers, machines);
    Bengio, Lamblin, Popovici & Larochelle, NIPS 2006 (greedy layers, autoencoders);
    Vincent, Larochelle, Lajoie, Bengio & Manzagol, JMLR 11, 2010 (denoising);
    Hinton, UTML technical report 2010-003 (constants of the machines' training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from rayal.errors import NeedsError
from rayal.learners.base import (
    Batches,
    Learner,
    Stream,
    TrainContext,
    TrainData,
    TrainState,
)
from rayal.learners.boltzmann import Machine, Units, contrastive_divergence
from rayal.learners.scaling import Inputs, Scale, measure
from rayal.models.dense import DenseLayer, dense_layers

Kind = Literal["autoencoder", "rbm"]

_RATES = {"autoencoder": 1e-3, "bernoulli": 0.1, "gaussian": 1e-3}


@dataclass(frozen=True)
class LayerTraining(Learner):
    """Train the hidden layers of a dense network one after the other, without any label.

    Layer l is trained for ``layer_steps`` steps on what the finished layers below make of the
    rows, without dropout; nothing else moves meanwhile. ``steps`` is that times the layers.

    Args:
        kind: autoencoder | rbm.
        layer_steps: steps of each layer.
        inputs: scaling of the rows.
        lr: learning rate; None stands for the default of the kind.
        momentum: of machines.
        weight_decay: norm penalty of machines' weights.
        corruption: chance of each number of a row to be set to 0 before it is encoded.
        gibbs: Gibbs steps.
    """

    kind: Kind = "autoencoder"
    layer_steps: int = 1000
    inputs: Inputs = "unit"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    corruption: float = 0.25
    gibbs: int = 1

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.learners.layers", "LayerTraining")
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Wang & Shang, IJCNN 2014; a part of layerwise_pretrained"
    remedy: ClassVar[str] = (
        "this is the pre-training of layerwise_pretrained: set its pretrain_lr lower, and look for "
        "extreme values among all rows of the pool"
    )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the network, the scale of its input, and each layer's decoder or visible bias."""
        net = ctx.build(ctx.chance("network"))
        layers = checked_layers(net, self.kind)
        biases = [layer.linear.weight.new_zeros(layer.linear.in_features) for layer in layers]
        visible = nn.ParameterList(biases)
        scale = Scale(ctx.task.input_shape)
        made = nn.ModuleDict({"task": net, "scale": scale, "visible": visible})
        return made.to(ctx.device, ctx.dtype)

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        """Return fresh layers, with an optimiser each."""
        state = TrainState(self.networks(ctx))
        biases = cast(nn.ParameterList, state.networks["visible"])
        for i, layer in enumerate(dense_layers(state.networks["task"])):
            if self.kind == "rbm":
                nn.init.normal_(layer.linear.weight, std=0.01)
                nn.init.zeros_(layer.linear.bias)
            state.optimizers[_name(i)] = self._optimizer(layer, biases[i], i)
        return state

    def streams(self) -> tuple[Stream, ...]:
        """Return the pool's rows, raw and without labels."""
        return (Stream("unlabeled", "unlabeled", views=("raw",)),)

    def on_epoch_start(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Measure the scale of the rows, before the first step."""
        if state.step == 0 and data.unlabeled is not None:
            measure(cast(Scale, state.networks["scale"]), data.unlabeled, self.inputs)

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        """Train the layer whose turn it is, and return its reconstruction error."""
        layers = dense_layers(state.networks["task"])
        at = min(state.step // self.layer_steps, len(layers) - 1)
        with torch.no_grad():
            x = state.networks["scale"](batches["unlabeled"].x)  # [B, V]
            for below in layers[:at]:
                x = below(x)
        bias = cast(nn.ParameterList, state.networks["visible"])[at]
        bounded = self._units(layers, at) == "bernoulli"
        if self.kind == "autoencoder":
            loss = self._reconstruction(layers[at], bias, x, bounded=bounded)
            state.descend(_name(at), loss)
            return {"loss": loss.item()}
        return {"loss": self._diverge(state, layers[at], bias, x, at=at)}

    def predictor(self, state: TrainState) -> nn.ModuleDict:
        """Return the network and the scale that its first layer was trained under."""
        return nn.ModuleDict({name: state.networks[name] for name in ("task", "scale")})

    def _units(self, layers: tuple[DenseLayer, ...], at: int) -> Units:
        """Return whether a layer's input lies in [0, 1] or anywhere."""
        bounded = isinstance(layers[at - 1].unit, nn.Sigmoid) if at else self.inputs == "unit"
        return "bernoulli" if bounded else "gaussian"

    def _optimizer(self, layer: DenseLayer, bias: nn.Parameter, at: int) -> Optimizer:
        both = [layer.linear.bias, bias]
        if self.kind == "autoencoder":
            rate = _RATES["autoencoder"] if self.lr is None else self.lr
            return Adam([layer.linear.weight, *both], rate)
        units = "gaussian" if at == 0 and self.inputs == "standard" else "bernoulli"
        rate = _RATES[units] if self.lr is None else self.lr
        groups: list[dict[str, Any]] = [
            {"params": [layer.linear.weight], "weight_decay": self.weight_decay},
            {"params": both},
        ]
        return SGD(groups, rate, momentum=self.momentum)

    def _reconstruction(
        self, layer: DenseLayer, bias: Tensor, x: Tensor, *, bounded: bool
    ) -> Tensor:
        """Return the loss of decoding corrupted rows by the same weights, transposed."""
        kept = torch.rand_like(x) >= self.corruption
        decoded = layer(x * kept) @ layer.linear.weight + bias
        if bounded:
            return F.binary_cross_entropy_with_logits(decoded, x)
        return F.mse_loss(decoded, x)

    def _diverge(
        self, state: TrainState, layer: DenseLayer, bias: nn.Parameter, x: Tensor, *, at: int
    ) -> float:
        """Ascend by contrastive divergence, and return the error of the reconstruction."""
        weight, hidden = layer.linear.weight, layer.linear.bias
        units = self._units(dense_layers(state.networks["task"]), at)
        machine = Machine(weight.detach(), hidden.detach(), bias.detach(), units)
        made = contrastive_divergence(machine, x, steps=self.gibbs)
        weight.grad, hidden.grad, bias.grad = -made.weight, -made.hidden, -made.visible
        state.optimizers[_name(at)].step()
        return made.error.item()


def checked_layers(net: nn.Module, kind: Kind) -> tuple[DenseLayer, ...]:
    """Return the hidden layers that can be pre-trained so.

    Raises:
        NeedsError: the network is no stack of dense layers, or machines cannot have its units.
    """
    layers = dense_layers(net)
    other = next((layer for layer in layers if not isinstance(layer.unit, nn.Sigmoid)), None)
    if kind == "rbm" and other is not None:
        raise NeedsError(
            f"restricted Boltzmann machines have sigmoid units, stage {other.name!r} has "
            f"{type(other.unit).__name__}; set activation: sigmoid among the network's params, or "
            "kind: autoencoder"
        )
    return layers


def _name(layer: int) -> str:
    return f"layer{layer + 1}"
