"""torchvision's networks, from scratch: residual networks by stages, others as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, cast

from annotated_types import Ge, Lt
from torch import nn

from rayal.errors import UnknownNameError, nearest
from rayal.models.base import HookedNet, TaskNet
from rayal.models.image import image_shape
from rayal.registry import networks

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
