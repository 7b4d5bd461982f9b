"""Networks for images: a small one, and torchvision's from scratch, residual networks by stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, cast

from annotated_types import Ge, Gt, Lt, MinLen
from torch import nn

from rayal.errors import SettingsError, UnknownNameError, nearest
from rayal.models.base import HookedNet, TaskNet
from rayal.registry import networks


@networks.register("small_cnn")
def small_cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(2)] = (16, 32, 96),
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
) -> TaskNet:
    """Return a small convolutional network: convolutions, a hidden layer, dropout, a linear layer.

    Convolutions are 3 x 3 with padding 1; ReLU and 2 x 2 max-pooling follow each.

    Args:
        input_shape: ``(channels, height, width)`` of an image.
        n_outputs: columns of the logits.
        widths: channels of the convolutions, and last the width of the hidden layer.
        dropout: dropout probability behind the hidden layer.

    Raises:
        SettingsError: rows are no images, or too small to be halved that often.
    """
    channels, height, width = image_shape("small_cnn", input_shape)
    *convolutions, hidden = widths
    halvings = len(convolutions)
    if min(height, width) >> halvings == 0:
        raise SettingsError(
            f"small_cnn: images of {height} x {width} cannot be halved {halvings} times; give "
            "fewer widths, or a larger task.size"
        )
    stages: dict[str, nn.Module] = {}
    for i, outputs in enumerate(convolutions, start=1):
        convolution = nn.Conv2d(channels, outputs, 3, padding=1)
        # the largest is rectified: the same numbers, from a quarter of the rectifications
        stages[f"conv{i}"] = nn.Sequential(convolution, nn.MaxPool2d(2), nn.ReLU(inplace=True))
        channels = outputs
    flat = channels * (height >> halvings) * (width >> halvings)
    stages["hidden"] = nn.Sequential(nn.Flatten(1), nn.Linear(flat, hidden), nn.ReLU(inplace=True))
    stages["dropout"] = nn.Dropout(dropout)
    return TaskNet({**stages, "head": nn.Linear(hidden, n_outputs)})


def image_shape(network: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width), or raise SettingsError where rows are no images."""
    if len(input_shape) != 3:
        raise SettingsError(
            f"{network} takes images [channels, height, width], rows have shape "
            f"{list(input_shape)}; use the network mlp"
        )
    channels, height, width = input_shape
    return channels, height, width


# torchvision is imported where it is used: it takes seconds, which mlp and small_cnn spare

Probability = Annotated[float, Ge(0), Lt(1)]

# arguments without which these two answer with side outputs, or warn
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@networks.register("resnet18_small")
def resnet18_small(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    dropout: Probability = 0.0,
) -> TaskNet:
    """Return ResNet-18 for images of about 32 pixels: a 3 x 3 stem of stride 1, no max-pooling.

    Source: He, Zhang, Ren & Sun, CVPR 2016; the block layout is that of their ImageNet networks.

    Args:
        input_shape: ``(channels, height, width)`` of an image.
        n_outputs: columns of the logits.
        dropout: dropout probability before the last linear layer.

    Raises:
        SettingsError: rows are no images.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    channels, _, _ = image_shape("resnet18_small", input_shape)
    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=n_outputs)
    net.conv1 = _convolution(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    return TaskNet(_residual_stages(net, [net.conv1, net.bn1, net.relu], dropout))


def torchvision_factory(name: str) -> Callable[..., TaskNet]:
    """Return the factory of a torchvision classification network, without weights.

    Raises:
        UnknownNameError: torchvision has none of that name.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UnknownNameError(
            f"torchvision has no classification network {name!r}; {nearest(name, known)}"
        )

    def build(
        input_shape: tuple[int, ...], n_outputs: int, *, dropout: Probability = 0.0
    ) -> TaskNet:
        channels, _, _ = image_shape(f"torchvision:{name}", input_shape)
        arguments = _ARGUMENTS.get(name, {})
        net = models.get_model(name, weights=None, num_classes=n_outputs, **arguments)
        _take_channels(net, channels)
        if isinstance(net, models.ResNet):
            stem = [net.conv1, net.bn1, net.relu, net.maxpool]
            return TaskNet(_residual_stages(net, stem, dropout))
        return _with_dropout(HookedNet(net, input_shape), dropout, input_shape)

    return build


def _residual_stages(net: Any, stem: list[nn.Module], dropout: float) -> dict[str, nn.Module]:
    layers = {f"layer{i}": getattr(net, f"layer{i}") for i in range(1, 5)}
    pool = nn.Sequential(net.avgpool, nn.Flatten(1))
    return {
        "stem": nn.Sequential(*stem),
        **layers,
        "pool": pool,
        "dropout": nn.Dropout(dropout),
        "head": net.fc,
    }


def _with_dropout(net: HookedNet, dropout: float, input_shape: tuple[int, ...]) -> HookedNet:
    """Put dropout before the last linear layer, beside what the network has of its own."""
    if dropout == 0:
        return net
    head = net.head
    path = next(p for p, m in net.module.named_modules() if m is head)
    net.module.set_submodule(path, nn.Sequential(nn.Dropout(dropout), head))
    return HookedNet(net.module, input_shape)


def _take_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution where images have not the three channels it expects."""
    path, first = next((p, m) for p, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == channels:
        return
    own = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    arguments = {name: getattr(first, name) for name in own}
    fitting = _convolution(channels, first.out_channels, bias=first.bias is not None, **arguments)
    net.set_submodule(path, fitting)


def _convolution(inputs: int, outputs: int, **arguments: Any) -> nn.Conv2d:
    """Return a convolution, initialised like those of torchvision's residual networks."""
    convolution = nn.Conv2d(inputs, outputs, **arguments)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(cast(nn.Parameter, convolution.bias))
    return convolution
