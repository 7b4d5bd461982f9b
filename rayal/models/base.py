"""The network of a task: a list of named stages, the last of which is the final linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rayal.errors import NeedsError, SettingsError, nearest
from rayal.models.dropout import evaluating, stochastic_modules

ENCODER = "encoder"  # the stage whose weights come from elsewhere, and are trained on


class TaskNet(nn.Module):
    """Stages that run one after the other; ``forward`` gives logits ``[N, C]``.

    Where a number is predicted, its output is the moments ``[N, 3]`` of the standardised number.

    Args:
        stages: name to module, in order. The last one is exactly the final ``nn.Linear``; what
            stands before it, dropout too, belongs to earlier stages.

    Raises:
        NeedsError: the last stage is not an ``nn.Linear``.
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.stage_names = tuple(stages)
        self.stages = nn.ModuleList(stages.values())
        #: what makes logits of the last linear layer's output; a learner may set it
        self.link: nn.Module | None = None
        self._check_stages()

    #: whether it gives moments of a number by itself, without a ``link``
    has_moments: ClassVar[bool] = False

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        last = self.stages[-1]
        assert isinstance(last, nn.Linear)
        return last

    @property
    def ends_linear(self) -> bool:
        """True if the logits are the last linear layer's output itself."""
        return self.link is None

    @property
    def n_outputs(self) -> int:
        """Columns of the logits, C."""
        return self.head.out_features

    @property
    def embedding_width(self) -> int:
        """Columns of the embedding, D."""
        return self.head.in_features

    @property
    def has_embedding(self) -> bool:
        """True if the network has ``embed`` and ``head``."""
        return True

    @property
    def stochastic_from(self) -> int | None:
        """The index of the first stage with a dropout module of p > 0; None without any."""
        random = (i for i, stage in enumerate(self.stages) if stochastic_modules(stage))
        return next(random, None)

    @property
    def embeds_input(self) -> bool:
        """True if the embedding is the flat input itself: a linear model."""
        return all(isinstance(stage, nn.Flatten) for stage in list(self.stages)[:-1])

    @property
    def word_embedding(self) -> nn.Embedding | None:
        """The layer that turns token ids into vectors; None unless there is exactly one."""
        embeddings = [module for module in self.modules() if isinstance(module, nn.Embedding)]
        return embeddings[0] if len(embeddings) == 1 else None

    @property
    def encoder(self) -> nn.Module | None:
        """The stage named ``encoder``, whose weights come from elsewhere; None without one."""
        named = dict(zip(self.stage_names, self.stages, strict=True))
        return named.get(ENCODER)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the output of ``stages[start:stop]`` for ``x``, the output of the stage before."""
        for stage in list(self.stages)[start:stop]:
            x = stage(x)
        ends = slice(start, stop).indices(len(self.stages))[1] == len(self.stages)
        return self.linked(x) if ends else x

    def linked(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of the last linear layer's output: itself without a link."""
        return x if self.link is None else self.link(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]``."""
        return self.run(x)

    def embed(self, x: Tensor) -> Tensor:
        """Return the input of the last linear layer, ``[N, D]``."""
        return self.run(x, 0, -1)

    def answer(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Return logits ``[N, C]`` and embedding ``[N, D]`` of one pass from stage ``start`` on.

        The embedding is None for a network without one.
        """
        embedding = self.run(x, start, -1)
        return self.linked(self.head(embedding)), embedding

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The stages with weights before the last one: hidden layers worth a look."""
        stages = zip(self.stage_names[:-1], self.stages, strict=False)
        return tuple(name for name, stage in stages if any(True for _ in stage.parameters()))

    def taps(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits ``[N, C]`` and the outputs ``[N, …]`` of the named stages.

        Raises:
            NeedsError: there is no stage of that name.
        """
        self._check_names(names)
        tapped = {}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            if name in names:
                tapped[name] = x
        return self.linked(x), tapped

    def _check_stages(self) -> None:
        if not self.stages or not isinstance(self.stages[-1], nn.Linear):
            last = type(self.stages[-1]).__name__ if self.stages else "missing"
            raise NeedsError(
                f"the last stage of {type(self).__name__} must be an nn.Linear, it is {last}; give "
                "the final linear layer as a stage of its own, or wrap the module in HookedNet"
            )

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.stage_names:
                raise NeedsError(f"no stage {name!r} to tap; {nearest(name, self.stage_names)}")


class HookedNet(TaskNet):
    """Any module as a task network of one stage, which always runs in full.

    The last linear layer is the one that a probe forward in eval mode executes last; its input is
    the embedding. Without such a layer the network still predicts, and ``embed`` and ``head``
    raise NeedsError.

    Args:
        module: maps ``[N, *input_shape]`` to logits ``[N, C]``.
        input_shape: shape of one row.

    Raises:
        SettingsError: the module cannot run on rows of that shape, or gives no ``[N, C]``.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__({"network": module})
        self._head, self._n_outputs = linear_output(module, input_shape)

    @property
    def head(self) -> nn.Linear:
        """The linear layer that runs last."""
        if self._head is None:
            raise no_embedding(self)
        layer = self.module.get_submodule(self._head)
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        return self.stages[0]

    @property
    def n_outputs(self) -> int:
        """Columns of the logits, C."""
        return self._n_outputs

    @property
    def has_embedding(self) -> bool:
        """True if the network ends in a linear layer."""
        return self._head is not None

    @property
    def embeds_input(self) -> bool:
        """Not known of a wrapped module."""
        return False

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the output of ``stages[start:stop]`` for ``x``; there is one stage."""
        if stop is not None and stop < 0:
            raise NeedsError(f"{type(self.module).__name__} has no stages to stop between")
        return super().run(x, start, stop)

    def embed(self, x: Tensor) -> Tensor:
        """Return the input of the last linear layer, ``[N, D]``, by a full forward pass."""
        return self._hooked(x)[1]

    def answer(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Return logits ``[N, C]`` and embedding ``[N, D]`` or None, of one pass."""
        if not self.has_embedding:
            return self.run(x, start), None
        return self._hooked(x)

    def _hooked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.run(x)
        finally:
            hook.remove()
        return logits, seen[-1]

    def _check_stages(self) -> None:
        """A module whose stages are unknown is one stage."""


def no_embedding(net: nn.Module) -> NeedsError:
    """Return the error of asking a network for an embedding that it does not have."""
    name = type(net.module if isinstance(net, HookedNet) else net).__name__
    return NeedsError(
        f"{name} does not end in an nn.Linear, so it has no embedding; use a network that does, or "
        "a strategy that needs only log_probs"
    )


def linear_output(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[str | None, int]:
    """Return the path of the linear layer that makes the output, or None, and its columns C.

    A probe row runs through the module in eval mode.

    Raises:
        SettingsError: the module cannot run on rows of that shape, or gives no ``[N, C]``.
    """
    ran: list[tuple[str, tuple[int, ...], Any]] = []

    def watch(path: str, layer: nn.Linear) -> Any:
        return layer.register_forward_hook(
            lambda _, inputs, output: ran.append((path, tuple(inputs[0].shape), output.clone()))
        )

    layers = [(p, m) for p, m in module.named_modules() if isinstance(m, nn.Linear)]
    hooks = [watch(path, layer) for path, layer in layers]
    try:
        output = _through(module, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        raise SettingsError(
            f"{type(module).__name__} gave {getattr(output, 'shape', type(output).__name__)} for "
            "one row; a network must give logits [N, C]"
        )
    for path, shape, logits in reversed(ran):  # the layer whose output is the network's
        if len(shape) == 2 and logits.shape == output.shape and torch.equal(logits, output):
            return path, output.shape[1]
    return None, output.shape[1]


def _through(module: nn.Module, input_shape: tuple[int, ...]) -> Any:
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    chance = torch.Generator().manual_seed(0)  # zeros would not tell two layers apart
    row = torch.rand((1, *input_shape), generator=chance).to(weight.device, weight.dtype)
    try:
        with evaluating(module), torch.no_grad():
            return module(row)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SettingsError(
            f"{type(module).__name__} cannot run on rows of shape {list(input_shape)}: {error}; "
            "set task.size and task.channels to what it takes, or choose another network"
        ) from error


def pooled(tapped: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the mean over positions of each tapped layer, ``[N, D]``.

    Args:
        tapped: result of ``TaskNet.taps``: feature maps ``[N, D, H, W]``, the vectors of a
            sequence ``[N, T, D]`` (of padding too, which word embeddings make 0), or ``[N, D]``.
        names: the layers, in the order of the result.
    """
    return [_pooled(tapped[name]) for name in names]


def _pooled(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x.mean(dim=1)
    return x.flatten(2).mean(dim=2) if x.ndim > 3 else x


def chosen_taps(
    net: TaskNet, given: Sequence[str] | None, default: Sequence[str]
) -> tuple[str, ...]:
    """Return the layers to tap: the given ones, else the default.

    Raises:
        NeedsError: there are none, as in a network whose layers are not known.
    """
    names = tuple(default if given is None else given)
    if not names:
        raise NeedsError(
            f"{type(net).__name__} of stages {', '.join(net.stage_names)} has no hidden layers "
            "that can be tapped; use a network with more hidden layers, such as small_cnn or "
            "resnet18_small, or give your own as a TaskNet of stages"
        )
    return names


@torch.no_grad()
def tap_widths(net: TaskNet, names: Sequence[str], input_shape: tuple[int, ...]) -> list[int]:
    """Return the columns D of each tapped layer when pooled, by a probe row in eval mode."""
    weight = next(net.parameters())
    row = torch.zeros((1, *input_shape), device=weight.device, dtype=weight.dtype)
    with evaluating(net):
        _, tapped = net.taps(row, names)
    return [features.shape[1] for features in pooled(tapped, names)]
