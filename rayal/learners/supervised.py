"""The ordinary learner: cross-entropy or squared error of labeled rows, with regularisers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from rayal.errors import NeedsError, SettingsError, nearest
from rayal.learners.base import (
    Batches,
    LabeledBatch,
    LabeledRows,
    Learner,
    Stream,
    TrainContext,
    TrainData,
    TrainState,
)
from rayal.learners.data import balanced_weights
from rayal.learners.loop import batchnorms, check_finite, plain_batches
from rayal.models.base import TaskNet
from rayal.models.moments import ConstantNoise
from rayal.registry import learners
from rayal.types import id_keys

if TYPE_CHECKING:
    from rayal.tasks.base import Task

OptimizerName = Literal["adam", "adamw", "sgd"]


def trained_groups(net: nn.Module, encoder_lr: float) -> Sequence[Any]:
    """Return a network's trained weights, in groups where it has an encoder.

    Args:
        net: the network.
        encoder_lr: learning rate of the encoder's weights.
    """
    everything = [p for p in net.parameters() if p.requires_grad]
    encoder = net.encoder if isinstance(net, TaskNet) else None
    own = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]
    if not own:
        return everything
    apart = {id(p) for p in own}
    rest = [p for p in everything if id(p) not in apart]
    return [{"params": rest}, {"params": own, "lr": encoder_lr}]


def make_optimizer(
    name: OptimizerName, weights: Sequence[Any], *, lr: float, weight_decay: float, momentum: float
) -> Optimizer:
    """Return the optimiser; fused, which saves a tenth of a step of a small network.

    Args:
        name: adam (weight decay as a norm penalty) | adamw (decoupled) | sgd.
        weights: groups of weights as ``trained_groups`` returns them.
        lr: learning rate of groups that name none.
        weight_decay: its strength.
        momentum: momentum of sgd.
    """
    if name == "sgd":
        return SGD(weights, lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    kind = Adam if name == "adam" else AdamW
    return kind(weights, lr, weight_decay=weight_decay, fused=True)


def average_of(kind: str, name: str) -> str:
    """Return the key under which ``TrainState.averages`` holds a network's average."""
    return kind if name == "task" else f"{kind}_{name}"


def averaged(state: TrainState, name: str) -> AveragedModel:
    """Return the average of a network's weights."""
    average = state.averages[average_of("swa", name)]
    assert isinstance(average, AveragedModel)
    return average


@torch.no_grad()
def refresh_batchnorm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of BatchNorm to the mean over the batches of one pass.

    Other modules stay in eval mode: statistics belong to the network as it answers, without
    dropout. A batch of one row is passed over, since it has no variance.
    """
    norms = batchnorms(net)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    net.eval()
    batches = [x for x in batches if len(x) > 1]
    for norm in norms if batches else ():
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, each with the same weight
        norm.train()
    for x in batches:
        net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


LEAST = 1e-6  # variance of the noise, of that of the labeled numbers: a fit through all of them


def fit_noise(
    net: nn.Module, data: TrainData, rows: Tensor, ctx: TrainContext, *, size: int
) -> None:
    """Set a network's noise variance to its mean squared error on some labeled rows, of numbers.

    Rows that it was trained on show less than its error on others; held-out rows do not.

    Args:
        net: a trained TaskNet.
        data: training data with the labeled rows.
        rows: int64 ``[n]``, positions of the rows that measure the error.
        ctx: the member.
        size: rows of a batch.
    """
    link = cast(TaskNet, net).link if ctx.task.target == "number" else None
    if not isinstance(link, ConstantNoise):
        return
    net.eval()
    y = ctx.task.standardised(data.labeled.targets[rows], ctx.statistics)
    with torch.inference_mode():
        outputs = [
            net(x)[:, 0].double() for x in plain_batches(data.labeled.rows, rows, ctx, size=size)
        ]
        error = (torch.cat(outputs).cpu() - y).square().mean()
    with torch.no_grad():
        link.variance.fill_(max(LEAST, error.item()))


def check_supervised(
    task: Task, net: nn.Module, class_weights: str, label_smoothing: float
) -> None:
    """Raise NeedsError where nothing descends a gradient, or numbers are treated as classes."""
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise NeedsError(
            f"{type(net).__name__} has no weights that descend a gradient; train it by its own "
            "learner (network pbp: learner pbp), or choose another network, such as mlp"
        )
    settings = {"class_weights": class_weights != "none", "label_smoothing": label_smoothing > 0}
    for name, wrong in settings.items():
        if wrong and task.target == "number":
            raise NeedsError(
                f"learner.{name} is set, and the task predicts a number, which has no classes; "
                "leave it out"
            )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # plain training without a regulariser: differences between strategies show as they are
    "fashion-protocol": {
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "constant",
        "steps": 300,
        "batch": 64,
        "augment": False,
    },
    # small labeled sets gain most from these; photographs want augment: true as well, whereas
    # centred grey images lose by it (Fashion-MNIST, 1,000 labels: 0.836 without, 0.793 with it)
    "strong": {
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 1e-2,
        "schedule": "cosine",
        "warmup": 0.05,
        "steps": 600,
        "batch": 64,
        "augment": False,
        "label_smoothing": 0.05,
        "swa": 0.25,
    },
}


Schedule = Literal["cosine", "constant"]
ClassWeights = Literal["none", "balanced"]
Precision = Literal["fp32", "bf16"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(Schedule),
    "class_weights": get_args(ClassWeights),
    "precision": get_args(Precision),
}

TWINS: Literal["attached"] = "attached"  # rows that a strategy made of its picks
NO_KEYS = np.zeros(0, np.uint64)


@learners.register("supervised")
@dataclass(frozen=True)
class Supervised(Learner):
    """Train on the labeled rows alone: by cross-entropy, or numbers by their squared error.

    Args:
        optimizer: the optimiser: adam (weight decay as a norm penalty) | adamw (decoupled) | sgd.
        lr: largest learning rate.
        weight_decay: strength of the weight decay.
        momentum: momentum of sgd.
        schedule: course of the learning rate: cosine (down to 0 at the last step) | constant.
        warmup: share of the steps in which the learning rate rises linearly.
        label_smoothing: mass moved from the label to all classes alike.
        augment: train on weakly augmented rows.
        class_weights: weights of rows; balanced is n / (classes present x rows of its class).
        early_stopping: share of the labeled rows, those of the smallest id keys, that is held out;
            the weights of the epoch with the smallest loss on them answer. At least one row is
            held out and one is trained on; a single labeled row is trained on for all steps.
        patience: epochs without improvement before training stops.
        swa: last share of the steps whose weights are averaged; BatchNorm statistics are then
            computed anew on the labeled rows.
        precision: number format of training; bf16 runs forward passes under autocast.
        encoder_lr: largest learning rate of an encoder whose published weights are trained on.

    Raises:
        SettingsError: an unknown choice, or early stopping together with averaging.
    """

    optimizer: OptimizerName = "adam"
    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    schedule: Schedule = "cosine"
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    augment: bool = False
    class_weights: ClassWeights = "none"
    early_stopping: Annotated[float, Ge(0), Lt(1)] = 0.0
    patience: Annotated[int, Gt(0)] = 5
    swa: Annotated[float, Ge(0), Le(1)] = 0.0
    precision: Precision = "fp32"
    encoder_lr: Annotated[float, Gt(0)] = 5e-5

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.learners.supervised", "Supervised")
    targets: ClassVar[tuple[str, ...]] = ("class", "number")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    taxonomy: ClassVar[str] = "baseline"
    source: ClassVar[str] = (
        "cosine schedule: Loshchilov & Hutter, ICLR 2017, equation 5; label smoothing: Szegedy et "
        "al., CVPR 2016, section 7; weight averaging: Izmailov et al., UAI 2018, algorithm 1; the "
        "encoder's learning rate: Devlin et al., NAACL 2019, appendix A.3"
    )
    departures: ClassVar[str] = "weights are averaged at every step, under the same schedule"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            choice = getattr(self, name)
            if choice not in allowed:
                raise SettingsError(
                    f"supervised.{name}: {choice!r} does not exist; {nearest(str(choice), allowed)}"
                )
        if self.swa and self.early_stopping:
            raise SettingsError(
                f"supervised: swa {self.swa} and early_stopping {self.early_stopping} both decide "
                "which weights answer; set one of them to 0"
            )

    def check(self, task: Task, networks: nn.ModuleDict) -> None:
        """Raise NeedsError where nothing descends, or numbers are given what belongs to classes."""
        check_supervised(task, networks["task"], self.class_weights, self.label_smoothing)

    #: the networks that answer, by their key; the first is the task's
    answers: ClassVar[tuple[str, ...]] = ("task",)

    def streams(self) -> tuple[Stream, ...]:
        """Return the labeled rows, augmented or plain, and those that a strategy attached."""
        views = ("weak" if self.augment else "plain",)
        return (Stream("labeled", "labeled", views=views), Stream(TWINS, TWINS, views=views))

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        """Return the networks with an optimiser each, the rows to train on, and their weights."""
        networks = self.networks(ctx)
        state = TrainState(networks)
        for name in networks:
            trained = trained_groups(networks[name], self.encoder_lr)
            if not trained:
                continue
            optimizer = make_optimizer(
                self.optimizer,
                trained,
                lr=self.lr,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
            )
            state.optimizers[name] = optimizer
            state.schedulers[name] = LambdaLR(optimizer, lambda step: self.factor(step, ctx.steps))
        for name in self.answers if self.swa else ():
            state.averages[average_of("swa", name)] = AveragedModel(networks[name])
        train, held_out = self._split(data)
        if len(held_out):
            for name in self.answers:
                state.averages[average_of("best", name)] = deepcopy(networks[name])
            state.tables |= {"rows.labeled": train, "held": held_out}
            state.scalars |= {"best": math.inf, "waited": 0.0}
        if self.class_weights == "balanced":
            weights = data.labeled.weights
            balanced = balanced_weights(data.labeled.targets[train])
            own = 1.0 if weights is None else weights[train]
            state.tables["weights.labeled"] = balanced * own
        if data.attached is not None:
            self._attach(state, data, data.attached, train)
        return state

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        """Descend the mean loss of the batch, each row times its weight."""
        net, done = state.networks["task"], state.step / ctx.steps
        losses = self._losses(net, batches["labeled"], done, self.label_smoothing)
        loss = self.joined(losses.mean(), state, batches, ctx)
        state.descend("task", loss)
        self.average(state, ctx)
        return {"loss": loss.item()}

    def joined(
        self, loss: Tensor, state: TrainState, batches: Batches, ctx: TrainContext
    ) -> Tensor:
        """Return the loss of labeled rows joined by that of attached rows, and the penalty.

        Each has the weight of its rows in the training set, as if batches were drawn from both.
        """
        net = state.networks["task"]
        if TWINS in batches:
            share = state.scalars["attached"]
            twins = self._losses(net, batches[TWINS], state.step / ctx.steps, self.label_smoothing)
            loss = (1.0 - share) * loss + share * twins.mean()
        penalty = self.penalty(net)
        return loss if penalty is None else loss + penalty

    def row_losses(self, logits: Tensor, y: Tensor, *, smoothing: float, done: float) -> Tensor:
        """Return the loss of each row, ``[B]``.

        Args:
            logits: the network's output, ``[B, C]``; of numbers the moments ``[B, 3]``.
            y: targets ``[B]``, int64 of classes.
            smoothing: mass moved from the label to all classes alike.
            done: the share of the training that is over; 1 where a trained network is judged.
        """
        if y.is_floating_point():
            return (logits[:, 0] - y).square()
        return F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="none")

    def penalty(self, net: nn.Module) -> Tensor | None:
        """Return the term that a step adds to the loss for the weights alone; None for nothing."""
        return None

    def average(self, state: TrainState, ctx: TrainContext) -> None:
        """Take the weights of this step into the average, where it is among the last ones."""
        if self.swa and state.step >= ctx.steps - math.ceil(self.swa * ctx.steps):
            for name in self.answers:
                averaged(state, name).update_parameters(state.networks[name])

    def on_epoch_end(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Keep the weights of the best epoch, and stop when it lies ``patience`` epochs back."""
        held_out = state.tables.get("held")
        if held_out is None:
            return
        loss = self._held_out_loss(state.networks["task"], held_out, ctx, data)
        check_finite({"held-out loss": loss}, self, state, ctx)
        if loss < state.scalars["best"]:
            for name in self.answers:
                best = state.averages[average_of("best", name)]
                best.load_state_dict(state.networks[name].state_dict())
            state.scalars |= {"best": loss, "waited": 0.0}
        else:
            state.scalars["waited"] += 1
        state.stopped = state.scalars["waited"] >= self.patience

    def on_end(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Compute the BatchNorm statistics of averaged weights, and the variance of the noise."""
        rows, everything = data.labeled.rows, torch.arange(len(data.labeled))
        if self.swa:
            batches = plain_batches(rows, everything, ctx, size=self.batch)
            refresh_batchnorm(averaged(state, "task"), batches)
        judged = state.tables.get("held", everything)
        fit_noise(self.predictor(state)["task"], data, judged, ctx, size=self.batch)

    def predictor(self, state: TrainState) -> nn.ModuleDict:
        """Return the averaged weights, those of the best epoch, or the last ones."""
        if self.swa:
            return nn.ModuleDict({name: averaged(state, name).module for name in self.answers})
        best = {name: average_of("best", name) for name in self.answers}
        nets = state.averages if best["task"] in state.averages else state.networks
        return nn.ModuleDict({n: nets[b if nets is state.averages else n] for n, b in best.items()})

    def factor(self, step: int, steps: int) -> float:
        """Return the share of ``lr`` that holds at a step."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def _attach(
        self, state: TrainState, data: TrainData, attached: LabeledRows, train: Tensor
    ) -> None:
        """Leave out what belongs to held-out rows, and note the share of attached rows."""
        ids = {data.labeled.rows.ids[i] for i in train.tolist()}
        rows = torch.tensor([i for i, id in enumerate(attached.rows.ids) if id in ids]).long()
        state.tables[f"rows.{TWINS}"] = rows
        state.scalars["attached"] = len(rows) / (len(rows) + len(train))
        if self.class_weights == "balanced" and len(rows):
            state.tables[f"weights.{TWINS}"] = balanced_weights(attached.targets[rows])

    def _split(self, data: TrainData) -> tuple[Tensor, Tensor]:
        """Return the positions to train on and those held out, each in row order."""
        n = len(data.labeled)
        wanted = max(1, round(self.early_stopping * n)) if self.early_stopping else 0
        order = torch.from_numpy(id_keys(data.labeled.rows.ids).argsort())
        count = min(wanted, n - 1)
        return order[count:].sort().values, order[:count].sort().values

    def _losses(
        self, net: nn.Module, batch: LabeledBatch, done: float, smoothing: float = 0.0
    ) -> Tensor:
        """Return the loss of each row times its weight, ``[B]``, in at least float32."""
        bf16 = self.precision == "bf16"
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = net(batch.x)  # [B, C]
        logits = logits.float() if bf16 else logits
        losses = self.row_losses(logits, batch.y, smoothing=smoothing, done=done)
        return losses if batch.weight is None else losses * batch.weight

    def _held_out_loss(
        self, net: nn.Module, rows: Tensor, ctx: TrainContext, data: TrainData
    ) -> float:
        net.eval()
        targets = ctx.task.standardised(data.labeled.targets, ctx.statistics)
        total, done = 0.0, 0
        with torch.inference_mode():
            for x in plain_batches(data.labeled.rows, rows, ctx, size=self.batch):
                y = targets[rows[done : done + len(x)]].to(ctx.device)
                total += self._losses(net, LabeledBatch((), NO_KEYS, (x,), y), 1.0).sum().item()
                done += len(x)
        return total / done
