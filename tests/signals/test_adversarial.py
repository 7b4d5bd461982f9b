"""DeepFool in batches: exact on affine networks, one reference row by row, and the known bugs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from signal_cases import TABLE, ask, cnns, committee, images
from torch import Tensor, nn

from rayal import acquisition
from rayal.engine.scan import Scan
from rayal.engine.spec import ScanOptions
from rayal.errors import NeedsError, ScoreError
from rayal.labels import ClassLabel
from rayal.learners import Supervised
from rayal.models import HookedNet, TaskNet, build_network
from rayal.signals import AdversarialDistance, Forward, compute
from rayal.signals.adversarial import deepfool, perturbed_rows
from rayal.strategies.dfal import DFAL
from rayal.tasks import FeaturesTask, TableTask
from rayal.types import id_keys

W = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3], [0.1, 0.1]], dtype=torch.float64)
B = torch.tensor([0.2, 0.0, -0.1, 0.4], dtype=torch.float64)


def affine(x: Tensor) -> Tensor:
    return x @ W.T + B


def by_hand(x: Tensor, w: Tensor = W, b: Tensor = B) -> Tensor:
    """Return min over k of |f_k - f_y| / |w_k - w_y| of each row."""
    made = []
    for row in x:
        f = w @ row + b
        y = int(f.argmax())
        made.append(min((f[y] - f[k]) / (w[k] - w[y]).norm() for k in range(len(b)) if k != y))
    return torch.stack(made)


def test_on_an_affine_classifier_the_distance_is_the_exact_margin() -> None:
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    made = deepfool(affine, x)
    torch.testing.assert_close(made.distance, by_hand(x), rtol=1e-12, atol=0)
    f = affine(x + made.r).topk(2, dim=1).values
    torch.testing.assert_close(f[:, 0], f[:, 1], rtol=0, atol=1e-9)  # r ends on the boundary
    assert made.flipped.all()  # and a little more changes the class
    one = deepfool(affine, x, steps=1)  # one linearisation is enough
    assert torch.equal(one.r, made.r)


def test_two_classes_rank_as_the_margin_does() -> None:
    w, b = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.3
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def logits(z: Tensor) -> Tensor:
        return torch.stack([z @ w + b, torch.zeros(len(z)).double()], dim=1)

    made = deepfool(logits, x)
    torch.testing.assert_close(made.distance, (x @ w + b).abs() / w.norm(), rtol=1e-12, atol=0)
    margin = acquisition.margin(logits(x).log_softmax(dim=1))
    ours = DFAL().score({"adversarial_distance": made.distance})  # type: ignore[arg-type]
    assert ours.argsort(descending=True).tolist() == margin.argsort(descending=True).tolist()


def standardised(shift: Tensor, scale: Tensor, w: Tensor) -> Any:
    """Return logits of two classes, on opposite sides of w · (x - shift) / scale = 0."""

    def logits(x: Tensor) -> Tensor:
        side = ((x - shift) / scale) @ w
        return torch.stack([side, -side], dim=1)

    return logits


@pytest.mark.parametrize(
    ("shift", "scale", "w"),
    [
        ([1.6e9, 0.0], [1e7, 1.0], [0.0, 1.0]),  # seconds of a year, which do not matter
        ([1.6e9, 0.0], [1e7, 1.0], [0.3, 1.0]),  # and which do
        ([5e4, 0.0], [1.0, 1.0], [0.0, 1.0]),
        ([5e4, 0.0], [1.0, 1.0], [0.5, 1.0]),  # in float32 such rows move by steps of 0.004
        ([0.0, 1e-6], [1.0, 1e-6], [1.0, 1.0]),
        ([1.6e18, 1.6e18], [1e16, 1e16], [1.0, -0.7]),  # nanoseconds alone
    ],
)
def test_columns_of_any_scale_have_the_exact_distance_of_an_affine_network(
    shift: list[float], scale: list[float], w: list[float]
) -> None:
    chance = torch.Generator().manual_seed(3)
    at, wide, weight = (torch.tensor(v) for v in (shift, scale, w))
    x = torch.randn(400, 2, generator=chance) * wide + at  # float32, as tables are decoded
    raw, direction = x.double(), weight.double() / wide.double()
    expected = ((raw - at.double()) @ direction).abs() / direction.norm()
    made = deepfool(standardised(at, wide, weight), x)
    reach = 2.0**-23 * (direction * at).abs().sum() / direction.norm()  # of rounding, in the row
    torch.testing.assert_close(made.distance.double(), expected, rtol=2e-5, atol=reach.item())
    assert (made.distance > 0).all()
    assert made.flipped.double().mean() > 0.98  # but where rounding loses the overshoot


def test_a_column_that_does_not_matter_changes_no_step_on_a_curved_network() -> None:
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for layer in (net[0], net[2]):
            layer.reset_parameters()  # type: ignore[operator]
    u = torch.randn(100, 1, generator=torch.Generator().manual_seed(4))
    alone = deepfool(net, u)
    both = deepfool(lambda x: net(x[:, 1:]), torch.cat([torch.full_like(u, 1.6e9), u], dim=1))
    assert torch.equal(both.distance, alone.distance) and torch.equal(both.r[:, 1:], alone.r)
    assert (alone.distance > 0).all() and torch.equal(both.flipped, alone.flipped)


def test_a_step_that_rounding_loses_ends_the_row_and_still_counts() -> None:
    calls = [0]

    def logits(x: Tensor) -> Tensor:
        calls[0] += 1
        side = x[:, 0] - 1e8 + 0.5  # rows are whole multiples of 8 here
        return torch.stack([side, -side], dim=1)

    made = deepfool(logits, torch.tensor([[1e8]]))
    assert made.distance.tolist() == [0.5] and calls[0] == 3 and not made.flipped.any()


@pytest.mark.parametrize("near", range(4))
def test_the_nearest_class_is_found_wherever_it_stands_and_not_always_the_last(near: int) -> None:
    # row 4 is the class of x; `near` has the nearest boundary, whatever its number
    w = torch.eye(5, dtype=torch.float64)
    b = torch.full((5,), -5.0, dtype=torch.float64)
    b[4], b[near] = 0.0, -1.0
    made = deepfool(lambda z: z @ w.T + b, torch.zeros(1, 5, dtype=torch.float64))
    assert made.distance.item() == pytest.approx(1 / 2**0.5)
    assert int((made.r @ w.T + 1.1 * made.r @ w.T + b).argmax()) == near


def test_scaling_the_logits_changes_nothing_and_a_further_class_never_adds_distance() -> None:
    x = torch.randn(60, 2, dtype=torch.float64)
    made = deepfool(affine, x)
    scaled = deepfool(lambda z: 37.0 * affine(z), x)
    torch.testing.assert_close(scaled.r, made.r, rtol=1e-9, atol=1e-12)
    fewer = deepfool(lambda z: affine(z)[:, :3], x)
    same = affine(x).argmax(dim=1) < 3
    assert (made.distance[same] <= fewer.distance[same] + 1e-12).all()


def test_a_class_that_stands_twice_adds_no_distance() -> None:
    x = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    made, own = deepfool(affine, x), affine(x).argmax(dim=1)
    for twice in range(4):
        doubled = deepfool(lambda z, c=twice: torch.cat([affine(z), affine(z)[:, [c]]], dim=1), x)  # type: ignore[misc]
        assert (doubled.distance <= made.distance + 1e-12).all()
        # a row of the doubled class itself may count as on the boundary between the two
        assert (doubled.distance[own != twice] == made.distance[own != twice]).all()


def reference(net: nn.Module, x: Tensor, steps: int = 50, overshoot: float = 0.02) -> Tensor:
    """DeepFool of one row, as the paper's algorithm 2 says it, class by class."""
    total = torch.zeros_like(x)
    y = int(net(x[None]).argmax())
    for _ in range(steps):
        here = (x + (1 + overshoot) * total).detach().requires_grad_()
        f = net(here[None])[0]
        if int(f.argmax()) != y:
            break
        jacobian = [torch.autograd.grad(f[k], here, retain_graph=True)[0] for k in range(len(f))]
        best: Any = None
        for k in range(len(f)):
            if k != y:
                w = jacobian[k] - jacobian[y]
                distance = ((f[k] - f[y]).abs() / w.norm()).item()
                if best is None or distance < best[0]:
                    best = (distance, w * (distance / w.norm()))
        total = total + best[1].detach()
    return total


def test_batches_equal_one_row_at_a_time_on_a_convolutional_network() -> None:
    net = build_network("small_cnn", {}, input_shape=(1, 8, 8), n_outputs=4, seed=0)
    net = net.double().eval()
    x = images(24).double()
    made = deepfool(net, x)
    expected = torch.stack([reference(net, row) for row in x])
    torch.testing.assert_close(made.r, expected, rtol=1e-6, atol=1e-9)
    assert made.flipped.all()
    assert ((net(x + 1.02 * made.r)).argmax(dim=1) != net(x).argmax(dim=1)).all()


def test_a_flat_region_is_far_from_any_boundary_and_a_row_on_one_ends_at_once() -> None:
    flat = deepfool(
        lambda z: torch.stack([z.sum(1) * 0 + 1, z.sum(1) * 0], dim=1), torch.ones(3, 2)
    )
    assert flat.distance.isinf().all() and (flat.r == 0).all() and not flat.flipped.any()
    dead = deepfool(lambda z: torch.relu(z - 5.0), torch.tensor([[6.0, 0.0], [0.0, 0.0]]))
    assert dead.distance[0].item() == pytest.approx(1.0) and dead.distance[1].isinf()
    calls = [0]

    def tie(z: Tensor) -> Tensor:
        calls[0] += 1
        return torch.stack([z[:, 0], z[:, 1]], dim=1)

    on = deepfool(tie, torch.tensor([[1.0, 1.0]]))
    assert on.distance.item() == 0.0 and calls[0] < 5


def test_only_as_many_boundaries_count_as_classes_are_asked_for() -> None:
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    order = affine(x).argsort(dim=1, descending=True)[0]
    made = deepfool(affine, x, classes=2)
    pair = order[:2]
    expected = by_hand(x, W[pair], B[pair])
    torch.testing.assert_close(made.distance, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch", [64, 256, 1000])
def test_columns_have_the_same_bits_in_any_batch_with_padding_left_out(batch: int) -> None:
    asked = cnns(1)
    raw = images(150)
    object.__setattr__(asked, "statistics", {"mean": torch.zeros(1), "std": torch.ones(1)})
    whole = perturbed_rows(asked, raw, 0, classes=4, steps=50, overshoot=0.02).distance
    made = []
    for start in range(0, len(raw), batch):
        some = raw[start : start + batch]
        padded = torch.cat([some, torch.zeros(batch - len(some), 1, 8, 8)])
        ids = [str(start + i) for i in range(len(some))]
        keys = np.zeros(batch, np.uint64)
        keys[: len(some)] = id_keys(ids)
        f = Forward(asked, padded, ids, keys, raw=padded, rows=len(some))
        made.append(compute((AdversarialDistance(),), f)["adversarial_distance"][: len(some)])
    assert torch.equal(torch.cat(made), whole)


def test_distances_are_those_of_decoded_rows_whatever_their_normalisation() -> None:
    net = TaskNet({"head": nn.Linear(1, 2)})
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net.head.bias.zero_()
    asked = committee([net], TABLE)
    object.__setattr__(
        asked, "statistics", {"mean": torch.tensor([3.0]), "std": torch.tensor([2.0])}
    )
    raw = torch.tensor([[4.0], [1.0]])
    made = perturbed_rows(asked, raw, 0, classes=2, steps=5, overshoot=0.02)
    assert made.distance.tolist() == pytest.approx([1.0, 2.0])  # the boundary is at 3


def test_a_network_on_token_ids_is_refused() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Embedding(5, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.last(self.words(x.long().reshape(len(x), -1)).mean(dim=1))
            return made

    with pytest.raises(NeedsError, match="differentiable in its rows"):
        AdversarialDistance().check(committee([HookedNet(Words(), (1,))], TABLE))
    with pytest.raises(NeedsError, match="member 3"):
        AdversarialDistance(member=3).check(cnns(1))
    AdversarialDistance().check(cnns(1))


class Broken(nn.Module):
    """A linear model whose logits, or only their gradients, are NaN where a row is above 5."""

    def __init__(self, gradients: bool) -> None:
        super().__init__()
        self.last, self.gradients = nn.Linear(2, 2), gradients

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(x)
        above = (x > 5.0).any(dim=1, keepdim=True)
        if not self.gradients:
            return made.masked_fill(above, torch.nan)
        inner = torch.where(above, x[:, :1] - x[:, :1].detach(), 1.0)
        return made + 0.0 * inner.sqrt()  # of 0 the derivative is 0 · inf


class Rows:
    """A pool of one part, for a scan of rows that are at hand."""

    root, name = "", "rows"

    def __init__(self, x: Tensor) -> None:
        flat = pa.array(x.flatten().numpy())
        ids = [f"item/{i}" for i in range(len(x))]
        self.table = pa.table(
            {
                "id": ids,
                "key": id_keys(ids),
                "features": pa.FixedSizeListArray.from_arrays(flat, x.shape[1]),
            }
        )

    def read(self, part: Any) -> pa.Table:
        return self.table


def test_rows_of_which_the_network_says_nothing_are_named_and_not_ranked() -> None:
    x = torch.tensor([[0.1, 0.2], [9.0, 0.3], [0.5, -0.4]])
    for gradients in (False, True):
        net = HookedNet(Broken(gradients), (2,))
        made = deepfool(net, x)
        assert made.distance.isnan().tolist() == [False, True, False]
        assert not made.flipped[1] and made.flipped[[0, 2]].all() and (made.r[1] == 0).all()
        asked = committee([net], TableTask(ClassLabel(("a", "b")), ("f", "g")))
        object.__setattr__(asked, "statistics", {"mean": torch.zeros(2), "std": torch.ones(2)})
        with pytest.raises(ScoreError, match=r"adversarial_distance.*item/1.*NaN"):
            ask(asked, x, AdversarialDistance())
        pool: Any = Rows(x)
        scan = Scan(pool, asked, DFAL(), Supervised(), ScanOptions(batch=64))
        with pytest.raises(ScoreError, match=r"adversarial_distance.*item/1.*NaN"):
            scan.columns_of(SimpleNamespace(part="0"))  # type: ignore[arg-type]


def test_a_network_with_filters_of_nan_has_no_nearest_rows() -> None:
    asked = cnns(1)
    object.__setattr__(asked, "statistics", {"mean": torch.zeros(1), "std": torch.ones(1)})
    with torch.no_grad():
        next(asked.net(0).parameters()).fill_(torch.nan)
    made = perturbed_rows(asked, images(3), 0, classes=4, steps=5, overshoot=0.02)
    assert made.distance.isnan().all() and not made.flipped.any()
    with pytest.raises(ScoreError, match=r"adversarial_distance.*item/0.*NaN"):
        ask(asked, images(3), AdversarialDistance())


def test_a_first_stage_may_work_in_place_on_rows_that_are_not_standardised() -> None:
    asked = committee(
        [TaskNet({"act": nn.LeakyReLU(inplace=True), "head": nn.Linear(3, 2)})],
        FeaturesTask(ClassLabel(("a", "b")), 3, "hash"),
    )
    AdversarialDistance().check(asked)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    before = x.clone()
    made = ask(asked, x, AdversarialDistance())["adversarial_distance"]
    assert torch.equal(x, before)
    head = asked.net(0).head
    apart = deepfool(lambda z: head(nn.functional.leaky_relu(z)), x)
    torch.testing.assert_close(made, apart.distance)
    assert apart.flipped.all()
