"""Greedy layer-wise pre-training of dense networks, then supervised fine-tuning (AL-DL).

Source: Wang & Shang, IJCNN 2014, "A new method for deep active learning": the network is
pre-trained without labels on all items, as stacked restricted Boltzmann machines or stacked
autoencoders, then fine-tuned on the labeled ones in every round.

What the layers' training stands on is told in :mod:`rayal.learners.layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from rayal.errors import NeedsError, SettingsError, nearest
from rayal.learners.base import (
    Learner,
    TrainContext,
    TrainData,
    TrainState,
    Weights,
)
from rayal.learners.layers import Kind, LayerTraining, checked_layers
from rayal.learners.scaling import Inputs, Scale, take_in
from rayal.learners.supervised import Supervised
from rayal.models.dense import DenseLayer
from rayal.registry import learners

CHECKPOINT = 1000  # steps between checkpoints, at most
_CHOICES = {"kind": get_args(Kind), "inputs": get_args(Inputs)}


@learners.register("layerwise_pretrained")
@dataclass(frozen=True)
class LayerwisePretrained(Supervised):
    """Pre-train a dense network's layers on all pool rows without labels, then train as supervised.

    The pre-training runs once per pool snapshot, network and model seed, for all rounds and
    strategies. All members of a committee start from its hidden layers; their last layers differ.
    Rows are scaled by constants of the whole pool there, because the labeled rows' change with
    every round; the first layer then takes the difference in, so that fine-tuning sees rows under
    the ordinary eval transform. Networks: a stack of dense layers, as mlp is; rbm wants
    ``activation: sigmoid`` in its parameters.

    Args:
        kind: how a layer is trained: autoencoder (denoising, weights of decoders tied to the
            encoders') | rbm (restricted Boltzmann machines by contrastive divergence).
        pretrain_steps: steps of each layer; 0 leaves the pre-training out.
        pretrain_batch: pool rows of a step.
        pretrain_lr: learning rate of the pre-training. By default 1e-3 for autoencoders (Adam;
            Kingma & Ba, ICLR 2015), 0.1 for machines and 1e-3 for one with Gaussian visible units
            (Hinton 2010, sections 7 and 13.2).
        pretrain_momentum: momentum of machines (Hinton 2010, section 9: 0.9 after the start).
        pretrain_decay: norm penalty of machines' weights (Hinton 2010, section 10: from 1e-4).
        corruption: chance of each number to be set to 0 before an autoencoder encodes it (Vincent
            et al. 2010, section 6, tried 0, 0.1, 0.25 and 0.4); 0 trains plain autoencoders.
        inputs: how inputs are scaled. unit scales each feature or channel of the pool to [0, 1]:
            binary visible units, or the cross-entropy; standard scales it to mean 0 and deviation
            1: Gaussian visible units of unit variance, or the squared error. Behind a sigmoid layer
            inputs are in [0, 1].
        gibbs: Gibbs steps of contrastive divergence, k of CD-k.

    Raises:
        SettingsError: an unknown choice.
        NeedsError: the network is no stack of dense layers.
    """

    kind: Kind = "autoencoder"
    pretrain_steps: Annotated[int, Ge(0)] = 1000
    pretrain_batch: Annotated[int, Gt(0)] = 100
    pretrain_lr: Annotated[float, Gt(0)] | None = None
    pretrain_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    pretrain_decay: Annotated[float, Ge(0)] = 1e-4
    corruption: Annotated[float, Ge(0), Lt(1)] = 0.25
    inputs: Inputs = "unit"
    gibbs: Annotated[int, Gt(0)] = 1

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.learners.layerwise", "LayerwisePretrained")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = Supervised.presets
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Wang & Shang, IJCNN 2014, section III"
    departures: ClassVar[str] = (
        "layer sizes, steps and rates of the paper were not at hand: widths are the network's, the "
        "rest is from the works that the parameters name; members of a committee share their "
        "pre-trained layers"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            given = getattr(self, name)
            if given not in allowed:
                raise SettingsError(
                    f"layerwise_pretrained.{name}: {given!r} does not exist; "
                    f"{nearest(str(given), allowed)}"
                )

    def pretraining(self, ctx: TrainContext) -> Learner | None:
        """Return the training of the hidden layers; None without steps."""
        if self.pretrain_steps == 0:
            return None
        layers = len(checked_layers(ctx.build(0), self.kind))
        return LayerTraining(
            steps=layers * self.pretrain_steps,
            batch=self.pretrain_batch,
            epoch_steps=min(self.pretrain_steps, CHECKPOINT),
            kind=self.kind,
            layer_steps=self.pretrain_steps,
            inputs=self.inputs,
            lr=self.pretrain_lr,
            momentum=self.pretrain_momentum,
            weight_decay=self.pretrain_decay,
            corruption=self.corruption,
            gibbs=self.gibbs,
        )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the network, whose hidden layers are pre-trained ones where there are any."""
        networks = super().networks(ctx)
        layers = checked_layers(networks["task"], self.kind) if self.pretrain_steps else ()
        if ctx.weights is not None:
            _start_from(ctx.weights, networks["task"], layers, ctx)
        return networks

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        """Return the state of supervised training, from the pre-trained layers on.

        Raises:
            NeedsError: there are no pre-trained layers.
        """
        if self.pretrain_steps and ctx.weights is None:
            raise NeedsError(
                "layerwise_pretrained was given no pre-trained weights; train the learner that "
                "pretraining() returns first, or set pretrain_steps to 0"
            )
        return super().begin(ctx, data)


def _start_from(
    weights: Weights, net: nn.Module, layers: tuple[DenseLayer, ...], ctx: TrainContext
) -> None:
    """Copy pre-trained hidden layers; the first one then reads rows under the eval transform."""
    scale = Scale(ctx.task.input_shape)
    scale.load_state_dict({name: weights[f"scale.{name}"] for name in scale.state_dict()})
    trained = {n.removeprefix("task."): t for n, t in weights.items() if n.startswith("task.")}
    hidden = {id(p) for layer in layers for p in layer.linear.parameters()}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if id(parameter) in hidden:
                parameter.copy_(trained[name])
    take_in(layers[0].linear, scale, ctx)
