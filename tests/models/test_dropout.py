"""Keyed dropout masks: the same for every row, position and batch, and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.models import build_network, dropout_masks, evaluating, stochastic_modules
from rayal.models.base import TaskNet

KEY: dict[str, int] = {"seed": 0, "round": 1, "member": 2, "pass_": 3}


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def cnn() -> TaskNet:
    return build_network("small_cnn", {}, input_shape=(1, 8, 8), n_outputs=3, seed=0)


def masked(net: nn.Module, x: Tensor, **key: int) -> Tensor:
    with dropout_masks(net, **{**KEY, **key}), torch.inference_mode():
        out: Tensor = net(x)
        return out


def test_every_row_sees_the_same_mask_scaled() -> None:
    out = masked(nn.Sequential(nn.Dropout(0.25)), torch.ones(7, 1000))
    assert (out == out[0]).all()
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert (out[0] > 0).float().mean().item() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Dropout1d(0.5), (64, 3)),
        (nn.Dropout2d(0.5), (64, 3, 3)),
        (nn.Dropout3d(0.5), (64, 2, 2, 2)),
    ],
)
def test_channel_dropout_masks_whole_channels(module: nn.Module, shape: tuple[int, ...]) -> None:
    out = masked(nn.Sequential(module), torch.ones(2, *shape)).flatten(2)
    assert (out == out[:1, :, :1]).all() and set(out.flatten().tolist()) == {0.0, 2.0}


def test_p_of_one_gives_zeros() -> None:
    assert (masked(nn.Sequential(nn.Dropout(1.0)), torch.ones(2, 5)) == 0).all()


@pytest.mark.parametrize("change", [{"seed": 9}, {"round": 9}, {"member": 9}, {"pass_": 9}])
def test_masks_depend_on_every_part_of_the_key(change: dict[str, int]) -> None:
    net, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(1, 64)
    assert torch.equal(masked(net, x), masked(net, x))
    assert not torch.equal(masked(net, x), masked(net, x, **change))


def test_masks_depend_on_the_module_path() -> None:
    twice = nn.ModuleDict({"a": nn.Dropout(0.5), "b": nn.Dropout(0.5)})
    with dropout_masks(twice, **KEY):
        a, b = (twice[n](torch.ones(1, 64)) for n in ("a", "b"))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("batch", [64, 256])
def test_a_row_scores_the_same_anywhere_in_a_padded_batch(batch: int) -> None:
    net = cnn()
    x = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def scored(rows: Tensor) -> Tensor:
        parts = []
        for piece in (rows[s : s + batch] for s in range(0, len(rows), batch)):
            padding = rows.new_zeros((batch - len(piece), *rows.shape[1:]))
            parts.append(masked(net, torch.cat([piece, padding]))[: len(piece)])
        return torch.cat(parts)

    whole = scored(x)
    assert torch.equal(torch.cat([scored(x[:37]), scored(x[37:])]), whole)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(scored(x[order]), whole[order])


def test_nothing_is_changed() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5, inplace=True))
    net[0].eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    x = torch.randn(8, 4)
    kept, modes = x.clone(), [m.training for m in net.modules()]
    chance = torch.random.get_rng_state()
    masked(net, x)
    with pytest.raises(ZeroDivisionError), dropout_masks(net, **KEY):
        raise ZeroDivisionError
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(not m._forward_hooks for m in net.modules())
    assert torch.equal(x, kept) and torch.equal(torch.random.get_rng_state(), chance)


def test_inside_the_network_is_in_eval_mode() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    with dropout_masks(net, **KEY):
        assert not any(m.training for m in net.modules())
    with evaluating(net):
        assert torch.equal(net(torch.ones(2, 4)), net[0](torch.ones(2, 4)))
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Linear(2, 2), "Linear has no dropout module"),
        (nn.Sequential(nn.Dropout(0.0)), "no dropout module with p > 0"),
        (Functional(), r"functional dropout cannot be masked\); use a network with dropout > 0"),
        (nn.Sequential(nn.AlphaDropout(0.5)), "'0' is a AlphaDropout, which cannot be masked"),
        (nn.Sequential(nn.FeatureAlphaDropout(0.5)), "members: 5"),
    ],
)
def test_networks_without_maskable_dropout_are_refused(net: Any, says: str) -> None:
    with pytest.raises(NeedsError, match=says), dropout_masks(net, **KEY):
        pass


def test_stochastic_modules_are_found_by_path() -> None:
    assert list(stochastic_modules(cnn())) == ["stages.3"]
