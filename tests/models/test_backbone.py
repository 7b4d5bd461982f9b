"""Backbones: what is the embedding, which weights fit, and what their pixels look like."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from rayal.errors import NeedsError, SettingsError, UnknownNameError
from rayal.models.backbone import IMAGENET, BackboneSpec
from rayal.models.efficientnet import DEVIATION, MEAN, EfficientNetLite0, _SameConvolution

SHAPE = (3, 8, 8)


def classifier(width: int = 6, classes: int = 5) -> nn.Module:
    trunk = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return nn.Sequential(trunk, nn.Dropout(0.5), nn.Linear(width, classes))


def pixels() -> nn.Module:
    """The pixels themselves: a network without a linear layer."""
    return nn.Flatten(1)


def number() -> int:
    return 3


HERE = f"{__name__}:classifier"


def test_the_embedding_is_the_input_of_the_last_linear_layer(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = classifier().eval()
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    x = torch.rand((4, *SHAPE))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    trunk = network[0]  # type: ignore[index]
    for name in ("weights.safetensors", "weights.pt"):
        backbone = BackboneSpec(HERE, str(tmp_path / name)).build(SHAPE)
        with torch.inference_mode():
            torch.testing.assert_close(backbone(x), trunk((x - mean) / deviation))
    assert BackboneSpec(HERE, str(file)).width(SHAPE) == 6


def test_pixels_are_normalised_and_a_grey_image_is_repeated() -> None:
    backbone = BackboneSpec(f"{__name__}:pixels", "random").build((1, 1, 1))
    with torch.inference_mode():
        made = backbone(torch.full((2, 1, 1, 1), 0.485))
    by_hand = [0.0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225]
    assert made[1].tolist() == pytest.approx(by_hand)


def test_weights_of_a_classifier_of_other_classes_or_of_none_fit(tmp_path: Path) -> None:
    other = classifier(classes=9).state_dict()
    headless = {n: v for n, v in other.items() if not n.startswith("2.")}
    made = []
    for number, state in enumerate((other, headless)):
        torch.save(state, tmp_path / f"{number}.pt")
        backbone = BackboneSpec(HERE, str(tmp_path / f"{number}.pt")).build(SHAPE)
        with torch.inference_mode():
            made.append(backbone(torch.ones((1, *SHAPE))))
    assert torch.equal(made[0], made[1])


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (BackboneSpec(HERE, "random").build(SHAPE).state_dict() for _ in range(2))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hash_follows_the_contents_of_the_weights(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / n for n in ("first.pt", "copy.pt", "other.pt"))
    torch.save(classifier().state_dict(), first)
    copy.write_bytes(first.read_bytes())
    torch.save(classifier().state_dict(), other)
    hashes = [BackboneSpec(HERE, str(f)).hash for f in (first, copy, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert BackboneSpec(HERE, str(first), {"width": 7}).hash not in hashes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("0.0.bias"), r"1 missing \(0.0.bias\)"),
        (lambda s: s.update(more=torch.zeros(1)), r"1 unknown \(more\)"),
        (lambda s: s.update({"0.0.bias": torch.zeros(7)}), r"0.0.bias \[7\] for \[6\]"),
        (lambda s: s.update(epoch=3), "no state dictionary"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: object, says: str, tmp_path: Path) -> None:
    state = dict(classifier().state_dict())
    assert callable(change)
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(SettingsError, match=says):
        BackboneSpec(HERE, str(tmp_path / "weights.pt")).build(SHAPE)


def test_what_cannot_be_a_backbone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    cases: list[tuple[str, str, tuple[int, ...], type[Exception], str]] = [
        ("resnet", "random", SHAPE, UnknownNameError, "known: efficientnet_lite0"),
        ("torchvision:resnet17", "random", SHAPE, UnknownNameError, "resnet18"),
        (f"{__name__}:number", "random", SHAPE, SettingsError, "must return an nn.Module"),
        (HERE, "absent.pt", SHAPE, SettingsError, "weights: random"),
        (HERE, str(tmp_path / "text.pt"), SHAPE, SettingsError, "cannot be read"),
        (HERE, "random", (9,), SettingsError, "images"),
        (HERE, "random", (2, 8, 8), SettingsError, "1 or 3 channels"),
    ]
    for name, weights, shape, error, says in cases:
        with pytest.raises(error, match=says):
            spec = BackboneSpec(name, weights)
            assert spec.hash and spec.build(shape)
    with pytest.raises(SettingsError, match="no parameter 'depth'"):
        BackboneSpec(HERE, "random", {"depth": 3}).build(SHAPE)


def test_timm_says_how_to_install_it() -> None:
    if importlib.util.find_spec("timm"):
        assert BackboneSpec("timm:resnet18", "random").width((3, 32, 32)) == 512
    else:
        with pytest.raises(NeedsError, match=r"pip install 'rayal\[timm\]'"):
            BackboneSpec("timm:resnet18", "random").build(SHAPE)


def test_torchvision_networks_lose_their_classifier() -> None:
    from torchvision import models

    network = models.get_model("shufflenet_v2_x0_5", weights=None).eval()
    network.fc = nn.Identity()
    backbone = BackboneSpec("torchvision:shufflenet_v2_x0_5", "random").build((3, 32, 32))
    network.load_state_dict(backbone.network.state_dict())
    x = torch.rand((2, 3, 32, 32))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(x), network((x - mean) / deviation))


# ---- EfficientNet-Lite0 --------------------------------------------------------------------------


def test_lite0_has_the_parameters_and_the_embedding_of_the_paper() -> None:
    network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008  # as published: 4.65 million
    assert len(network.state_dict()) == 296  # of which 49 are counters of BatchNorm
    backbone = BackboneSpec("efficientnet_lite0", "random").build((1, 32, 32))
    assert BackboneSpec("efficientnet_lite0", "random").width((1, 32, 32)) == 1280
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(backbone.deviation.flatten(), torch.tensor(DEVIATION))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_padding_is_that_of_same_convolutions(side: int, kernel: int, stride: int) -> None:
    convolution = _SameConvolution(2, 3, kernel, stride=stride)
    x = torch.rand((1, 2, side, side))
    outputs = -(-side // stride)
    whole = max((outputs - 1) * stride + kernel - side, 0)
    before = whole // 2
    padded = torch.zeros((1, 2, side + whole, side + whole))
    padded[:, :, before : before + side, before : before + side] = x
    with torch.inference_mode():
        made, plain = convolution(x), F.conv2d(padded, convolution.weight, stride=stride)
    assert made.shape[2:] == (outputs, outputs)
    torch.testing.assert_close(made, plain)


def test_a_block_by_hand() -> None:
    """The first block of width 24 that repeats: expand, depthwise, project, and the way around."""
    network = EfficientNetLite0().eval()
    block = network.get_submodule("_blocks.2")
    x = torch.rand((1, 24, 4, 4))
    part = block.get_submodule
    with torch.inference_mode():
        inner = F.conv2d(x, part("_expand_conv").weight)  # type: ignore[arg-type]
        inner = (inner / (1 + 1e-3) ** 0.5).clamp(0, 6)  # BatchNorm as it is initialised
        depthwise = part("_depthwise_conv").weight
        inner = F.conv2d(inner, depthwise, padding=1, groups=144)  # type: ignore[arg-type]
        inner = (inner / (1 + 1e-3) ** 0.5).clamp(0, 6)
        made = F.conv2d(inner, part("_project_conv").weight)  # type: ignore[arg-type]
        torch.testing.assert_close(block(x), x + made / (1 + 1e-3) ** 0.5)
