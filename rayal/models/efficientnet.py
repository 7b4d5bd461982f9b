"""EfficientNet-Lite0, for images: its modules bear the names of the published PyTorch weights.

Source: Tan & Le, ICML 2019, "EfficientNet: rethinking model scaling for convolutional neural
networks", table 1 (the B0 stages). Departures, which make it the Lite variant: no squeeze and
excitation, ReLU6 for swish; stem and head are not scaled, which at size 0 changes nothing.
Stochastic depth and dropout, which act in training alone, are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-3  # of BatchNorm, with which the published weights were trained
MEAN, DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels in [0, 1], for these weights


class _Stage(NamedTuple):
    """Blocks of one shape; the first one has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Maps normalised RGB images ``[N, 3, H, W]`` to ImageNet logits ``[N, 1000]``."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConvolution(3, _STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPSILON)
        self._blocks = nn.ModuleList()
        width = _STEM
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                self._blocks.append(_Block(width, stage, stage.stride if repeat == 0 else 1))
                width = stage.width
        self._conv_head = _SameConvolution(width, _HEAD, 1)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_EPSILON)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, 1000]``."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))  # [N, 1280, H / 32, W / 32]
        logits: Tensor = self._fc(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """An inverted residual: expand, convolve each channel apart, project."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        if stage.expansion > 1:
            self._expand_conv = _SameConvolution(inputs, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._depthwise_conv = _SameConvolution(
            inner, inner, stage.kernel, stride=stride, groups=inner
        )
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._project_conv = _SameConvolution(inner, stage.width, 1)
        self._bn2 = nn.BatchNorm2d(stage.width, eps=_EPSILON)
        self._expands, self._skips = stage.expansion > 1, stride == 1 and inputs == stage.width

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, width, H / stride, W / stride]``."""
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        projected: Tensor = self._bn2(self._project_conv(inner))
        return projected + x if self._skips else projected


class _SameConvolution(nn.Conv2d):
    """A convolution with ceil(side / stride) outputs a side; odd padding goes right and below."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the padded rows."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        below, right = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]
        )
        if below % 2 == 0 and right % 2 == 0:
            padding = (below // 2, right // 2)
            return F.conv2d(x, self.weight, None, self.stride, padding, 1, self.groups)
        left, top = right // 2, below // 2
        x = F.pad(x, (left, right - left, top, below - top))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)
