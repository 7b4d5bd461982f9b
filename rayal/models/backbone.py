"""Backbones: networks whose embeddings are computed once, with weights read from local files.

A backbone is a classification network without its classifier: the embedding is the input of the
last linear layer. Its input are images in [0, 1]; a grey image is repeated over three channels, and
what normalises pixels belongs to the backbone. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayal.errors import NeedsError, SettingsError, UnknownNameError, nearest
from rayal.models import efficientnet
from rayal.models.base import linear_output
from rayal.models.build import checked_parameters, imported
from rayal.models.image import image_shape
from rayal.models.sentence import NOT_LOADED, SentenceEncoder, check_tokens, minilm
from rayal.models.weights import RANDOM, load_weights, weights_digest
from rayal.types import FORMAT_VERSION, digest, stated

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of pixels


class Backbone(nn.Module):
    """A map from images ``[N, Ch, H, W]`` in [0, 1] to embeddings ``[N, D]``.

    Args:
        network: maps normalised RGB images to embeddings.
        mean: mean of the pixels of each channel in the network's training.
        deviation: their standard deviation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``[N, D]``; one channel broadcasts to three."""
        x = (x - self.mean) / self.deviation
        embedding: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return embedding


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name.

    Args:
        name: ``efficientnet_lite0``, ``torchvision:NAME``, ``timm:NAME``, of texts ``minilm``, or
            ``module:factory``, which is called with ``params`` alone. A network of images whose
            output is made by an ``nn.Linear`` loses this layer; the output ``[N, D]`` of any other
            is the embedding.
        weights: a file ``*.safetensors``, or one that ``torch.save`` wrote of a state dictionary;
            ``random`` stands for fixed random weights, the same for all seeds.
        params: keyword arguments of the factory.
    """

    name: str
    weights: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Digest of name, parameters and the contents of the weights.

        Raises:
            SettingsError: there is no such file.
        """
        weights = RANDOM if self.weights == RANDOM else weights_digest(self.weights)
        named = {"name": self.name, "params": dict(self.params), "weights": weights}
        return digest({"version": FORMAT_VERSION, **named})

    def network(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Return the backbone of images, or the encoder of token ids, for rows of a shape."""
        return self._encoder() if len(input_shape) == 1 else self.build(input_shape)

    def build(self, input_shape: tuple[int, ...]) -> Backbone:
        """Return the backbone with its weights, in eval mode, for images of a shape.

        Raises:
            UnknownNameError: there is no such network.
            NeedsError: the name is ``timm:NAME`` and timm is not installed.
            SettingsError: rows do not fit, or weights do not; the message names them.
        """
        channels, height, width = image_shape(self.name, input_shape)
        if channels not in (1, 3):
            raise SettingsError(
                f"{self.name} takes images of 1 or 3 channels, rows have {channels}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network, mean, deviation = _made(self.name, self.params)
        network.eval().requires_grad_(False)
        head, _ = linear_output(network, (3, height, width))
        if head is not None:
            network.set_submodule(head, nn.Identity())
        if self.weights != RANDOM:
            load_weights(network, Path(self.weights), () if head is None else (f"{head}.",))
        return Backbone(network, mean, deviation).eval()

    def _encoder(self) -> nn.Module:
        """Return an encoder of texts with its weights."""
        place, colon, _ = self.name.partition(":")
        if self.name != "minilm" and (not colon or place in ("torchvision", "timm")):
            raise SettingsError(
                f"backbone {self.name!r} takes images, and rows are token ids; choose minilm, or a "
                "module:factory that maps ids [N, T] to embeddings [N, D]"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            encoder = minilm(self.params) if not colon else _own(self.name, self.params)
        if self.weights != RANDOM:
            loaded = encoder.network if isinstance(encoder, SentenceEncoder) else encoder
            load_weights(loaded, Path(self.weights), NOT_LOADED)
        return encoder.eval().requires_grad_(False)

    def width(self, input_shape: tuple[int, ...], *, tokens: int | None = None) -> int:
        """Return the columns of the embedding, D.

        Args:
            input_shape: shape of a row.
            tokens: size of the vocabulary, where rows are token ids.
        """
        backbone = self.network(input_shape)
        if len(input_shape) == 1:
            check_tokens(backbone, length=input_shape[0], tokens=tokens)
        with torch.inference_mode():
            embedding = backbone(torch.zeros((1, *input_shape)))
        if embedding.ndim != 2:
            raise SettingsError(
                f"backbone {self.name!r} gave {list(embedding.shape)} for one row; it must give "
                "embeddings [N, D]"
            )
        return int(embedding.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored with a project."""
        return {**stated(self), "params": dict(self.params)}


def _made(
    name: str, params: Mapping[str, Any]
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """Return a network as its factory makes it, and the mean and deviation of its pixels."""
    place, colon, rest = name.partition(":")
    if name == "efficientnet_lite0":
        checked_parameters(name, efficientnet.EfficientNetLite0, params)
        network: nn.Module = efficientnet.EfficientNetLite0()
        return network, efficientnet.MEAN, efficientnet.DEVIATION
    if place == "torchvision":
        return _torchvision(rest, params), *IMAGENET
    if place == "timm":
        return _timm(rest, params)
    if not colon:
        raise UnknownNameError(
            f"backbone {name!r} does not exist; known: efficientnet_lite0, torchvision:NAME, "
            "timm:NAME, minilm (of texts), or module:factory of your own"
        )
    return _own(name, params), *IMAGENET


def _own(name: str, params: Mapping[str, Any]) -> nn.Module:
    """Return the network that a ``module:factory`` makes."""
    place, _, rest = name.partition(":")
    factory = imported(place, rest)
    network = factory(**checked_parameters(name, factory, params))
    if not isinstance(network, nn.Module):
        raise SettingsError(
            f"backbone {name!r}: the factory returned a {type(network).__name__}, it must return "
            "an nn.Module"
        )
    return network


def _torchvision(name: str, params: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UnknownNameError(
            f"torchvision has no classification network {name!r}; {nearest(name, known)}"
        )
    # without this argument they warn, and initialise for minutes
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, **{**quick, **params})
    return network


def _timm(
    name: str, params: Mapping[str, Any]
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    try:
        import timm
    except ImportError:
        raise NeedsError(
            f"backbone 'timm:{name}' needs the package timm; install it: pip install 'rayal[timm]'"
        ) from None
    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no network {name!r}; {nearest(name, timm.list_models())}")
    network = timm.create_model(name, pretrained=False, **params)
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
