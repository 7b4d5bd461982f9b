from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import signal_cases
import torch
from text_cases import (
    SENTENCES,
    committee,
    loss_gradients,
    network,
    task,
    texts,
    vocabulary,
    word_table,
    words_of,
)
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.models import TaskNet, build_network
from rayal.models.text import WordEmbedding
from rayal.signals import Forward, GradientLength, LogProbs, Signal, WordGradientLength, compute


def ask(of: Any, x: Tensor, signal: Signal) -> Tensor:
    batch = Forward(of, x, [str(i) for i in range(len(x))], np.arange(len(x), dtype=np.uint64))
    (column,) = compute([signal], batch).values()
    return column


def word_norms(net: TaskNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return p ``[C]`` and the gradient norm of each word under each label, ``[C, words]``."""
    probs, gradients = loss_gradients(net, x, word_table)
    at = words_of(x)
    return probs, torch.stack([g[0][at].norm(dim=1) for g in gradients])


def test_word_gradients_are_those_of_the_embedding_table() -> None:
    asked = committee()
    x = texts(*SENTENCES[:6])
    expected = []
    for row in x:
        probs, norms = word_norms(asked.net(0), row)
        expected.append((probs[:, None] * norms).sum(dim=0).max())
    made = ask(asked, x, WordGradientLength())
    torch.testing.assert_close(made, torch.stack(expected), rtol=1e-5, atol=1e-7)
    assert made.min() > 0


def test_the_expectation_comes_before_the_largest_word() -> None:
    """The public form with the maximum inside is larger, and ranks otherwise."""
    asked = committee(network(width=6, filters=40))
    x = texts(*SENTENCES[:6])
    inside = []
    for row in x:
        probs, norms = word_norms(asked.net(0), row)
        inside.append((probs * norms.max(dim=1).values).sum())
    made = ask(asked, x, WordGradientLength())
    assert (made <= torch.stack(inside) + 1e-6).all()
    assert (made < torch.stack(inside) - 1e-6).any()


def test_the_norm_of_the_expectation_is_zero_and_is_not_what_is_asked() -> None:
    asked = committee()
    x = texts(SENTENCES[2])
    probs, gradients = loss_gradients(asked.net(0), x[0], word_table)
    mean = sum(p * g[0] for p, g in zip(probs, gradients, strict=True))
    assert isinstance(mean, Tensor)
    assert mean.norm() < 1e-6
    assert ask(asked, x, WordGradientLength())[0] > 1e-3


def test_a_repeated_word_has_the_sum_of_its_places() -> None:
    """A linear network over the mean of words: every place has the same gradient."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(dim=1)

    of = task()
    stages = {
        "words": WordEmbedding(vocabulary().size, 4, vocabulary().pad),
        "mean": Mean(),
        "head": nn.Linear(4, 3),
    }
    net = TaskNet(stages)
    nn.init.zeros_(net.head.bias)
    with torch.no_grad():  # both rows then have the same probabilities, 1/3 each
        stages["words"].table.weight.zero_()  # type: ignore[union-attr, operator]
    once, twice = ask(committee(net, of), texts("good", "good good"), WordGradientLength())
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-6)


def test_padding_and_special_tokens_are_no_words() -> None:
    """Their vectors have the largest gradients here, and do not count."""

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * x[:, -1] + 3.0 * x[:, 0] + x[:, 1]

    net = TaskNet(
        {
            "words": WordEmbedding(vocabulary().size, 4, vocabulary().pad),
            "first": First(),
            "head": nn.Linear(4, 3),
        }
    )
    unknown = int(np.setdiff1d(vocabulary().specials, [vocabulary().pad])[0])
    good = int(texts("good")[0, 0])
    x = torch.full((2, 12), float(vocabulary().pad))
    x[0, 0], x[0, 1] = unknown, good
    asked = committee(net)
    probs, norms = word_norms(net, x[0])
    made = ask(asked, x, WordGradientLength())
    assert made[0].item() == pytest.approx((probs * norms[:, 0]).sum().item(), rel=1e-5)
    assert made[1].item() == 0.0  # a text without words


def test_one_backward_pass_for_each_class_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    grad = torch.autograd.grad

    def counted(outputs: Tensor, inputs: Any, **options: Any) -> Any:
        calls.append([tuple(i.shape) for i in inputs])
        return grad(outputs, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    ask(committee(), texts(*SENTENCES), WordGradientLength())
    assert calls == [[(len(SENTENCES), 12, 6)]] * 2  # of 3 classes, for all rows at once


def test_batches_of_any_width_give_the_same_bits() -> None:
    asked = committee(network(width=16, filters=8))
    x = texts(*(SENTENCES * 43)[:1024])
    for signal in (WordGradientLength(), GradientLength()):
        whole = ask(asked, x, signal)
        for width in (64, 256):
            parts = [ask(asked, some, signal) for some in torch.split(x, width)]
            assert torch.equal(torch.cat(parts), whole)


def test_a_certain_prediction_has_no_gradient() -> None:
    net = network(width=6, filters=5)
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([200.0, 0.0, -200.0]))
    for signal in (WordGradientLength(), GradientLength()):
        assert ask(committee(net), texts("good", "bad"), signal).abs().max() < 1e-6


def test_the_model_is_left_as_it_was_and_no_gradient_stays() -> None:
    asked = committee()
    asked.nets[0].train()
    before = {n: t.clone() for n, t in asked.nets[0].state_dict().items()}
    for signal in (WordGradientLength(), GradientLength()):
        first = ask(asked, texts(*SENTENCES), signal)
        assert torch.equal(ask(asked, texts(*SENTENCES), signal), first)  # dropout is off
        assert not first.requires_grad
    assert asked.nets[0].training
    assert all(torch.equal(t, before[n]) for n, t in asked.nets[0].state_dict().items())
    assert all(p.grad is None for p in asked.nets[0].parameters())
    assert not any(m._forward_hooks for m in asked.nets[0].modules())


def test_other_signals_beside_it_need_no_gradients_and_are_the_same() -> None:
    asked = committee()
    x = texts(*SENTENCES)
    ids, keys = [str(i) for i in range(len(x))], np.arange(len(x), dtype=np.uint64)
    alone = compute([LogProbs()], Forward(asked, x, ids, keys))["log_probs"]
    both = compute([WordGradientLength(), LogProbs()], Forward(asked, x, ids, keys))
    assert torch.equal(both["log_probs"], alone)


# ---- all parameters ------------------------------------------------------------------------------


def trained(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


class Normed(nn.Module):
    """Layers of every kind whose gradients are known, some of them odd."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
        self.grouped = nn.Conv2d(4, 6, 2, groups=2, bias=False)
        self.batch = nn.BatchNorm2d(6)
        self.line = nn.Conv1d(6, 5, 2, padding=1)
        self.normed = nn.LayerNorm(5)
        self.wide = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.grouped(self.convolution(x))).flatten(2)
        x = self.line(x).transpose(1, 2)
        x = torch.relu_(self.wide(self.normed(x)))  # in place: the layer's own output changes
        return x.mean(dim=1)


def test_the_length_of_all_gradients_is_that_of_every_parameter() -> None:
    torch.manual_seed(0)
    odd = TaskNet({"body": Normed(), "bn": nn.BatchNorm1d(3), "head": nn.Linear(3, 4)})
    with torch.no_grad():
        for name, buffer in odd.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    cases = [
        (signal_cases.committee([odd]), torch.randn(5, 2, 8, 9)),
        (signal_cases.cnns(1), signal_cases.images(5)),
        (committee(), texts(*SENTENCES[:6])),
        (committee(network("tfidf_linear")), texts(*SENTENCES[:6])),
    ]
    for asked, x in cases:
        expected = []
        for row in x:
            probs, gradients = loss_gradients(asked.net(0), row, trained)
            squares = torch.tensor([sum(float(g.square().sum()) for g in gs) for gs in gradients])
            expected.append((probs * squares.sqrt()).sum())
        made = ask(asked, x, GradientLength())
        torch.testing.assert_close(made, torch.stack(expected), rtol=2e-5, atol=1e-6)


def test_lengths_are_euclidean_and_no_sum_of_absolute_values() -> None:
    """A public implementation takes sqrt(x²) before it adds: that is the sum of |x|."""
    asked = committee()
    x = texts(SENTENCES[0])
    probs, gradients = loss_gradients(asked.net(0), x[0], trained)
    absolute = sum(
        p * sum(g.abs().sum() for g in gs) for p, gs in zip(probs, gradients, strict=True)
    )
    assert ask(asked, x, GradientLength()).item() < 0.5 * float(absolute)


def test_frozen_parameters_do_not_count() -> None:
    net = build_network("mlp", {"widths": [5]}, input_shape=(1, 8, 8), n_outputs=4, seed=0)
    asked, x = signal_cases.committee([net]), signal_cases.images(3)
    whole = ask(asked, x, GradientLength())
    net.stages[1].requires_grad_(False)
    assert (ask(asked, x, GradientLength()) < whole).all()


def test_rows_formed_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayal.signals import gradients as layers

    asked, x = signal_cases.cnns(1), signal_cases.images(7)
    whole = ask(asked, x, GradientLength())
    monkeypatch.setattr(layers, "FORMED", 1)
    torch.testing.assert_close(ask(asked, x, GradientLength()), whole)


def test_of_one_word_the_largest_word_is_the_whole_layer() -> None:
    """Without a choice among words what is left is the gradient of the table of words."""
    net = network(width=6, filters=5)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith("table.weight"))
    one, several = texts("good good good"), texts("the film was good")
    asked = committee(net)
    word, layer = ask(asked, one, WordGradientLength()), ask(asked, one, GradientLength())
    torch.testing.assert_close(word, layer, rtol=1e-5, atol=0)
    assert ask(asked, several, WordGradientLength()) < ask(asked, several, GradientLength())


# ---- what cannot be asked ------------------------------------------------------------------------


def test_word_gradients_need_texts_and_a_table_of_words() -> None:
    with pytest.raises(NeedsError, match=r"need texts .* kim_cnn"):
        WordGradientLength().check(signal_cases.cnns(1))
    with pytest.raises(NeedsError, match=r"no single nn.Embedding of words; use kim_cnn"):
        WordGradientLength().check(committee(network("tfidf_linear")))
    with pytest.raises(NeedsError, match="member"):
        WordGradientLength(member=1).check(committee())
    WordGradientLength().check(committee())


def test_layers_of_unknown_kind_are_refused() -> None:
    for layer in (nn.Bilinear(2, 2, 2), nn.Conv2d(1, 1, 3, padding="same"), nn.GRU(2, 2)):
        net = TaskNet({"odd": layer, "head": nn.Linear(2, 2)})
        with pytest.raises(NeedsError, match=r"cannot be told row by row.*egl_sm"):
            GradientLength().check(signal_cases.committee([net]))
    GradientLength().check(signal_cases.cnns(1))


def test_a_layer_that_runs_twice_is_refused() -> None:
    shared = nn.Linear(4, 4)
    net = TaskNet({"flat": nn.Flatten(), "a": shared, "b": shared, "head": nn.Linear(4, 4)})
    with pytest.raises(NeedsError, match="runs twice"):
        ask(signal_cases.committee([net]), torch.randn(3, 1, 2, 2), GradientLength())


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_layer_that_is_trained_in_part_is_refused(frozen: str) -> None:
    net = build_network("mlp", {"widths": [5]}, input_shape=(1, 8, 8), n_outputs=4, seed=0)
    getattr(net.head, frozen).requires_grad_(False)
    with pytest.raises(NeedsError, match=r"some are frozen.*train or freeze all of them"):
        GradientLength().check(signal_cases.committee([net]))
    net.head.requires_grad_(False)
    GradientLength().check(signal_cases.committee([net]))


def test_layers_that_share_a_parameter_are_refused() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    net = TaskNet({"flat": nn.Flatten(), "a": a, "b": b, "head": nn.Linear(4, 4)})
    with pytest.raises(NeedsError, match="shares a parameter with another layer"):
        GradientLength().check(signal_cases.committee([net]))


class Functional(nn.Module):
    """Uses the weights of a layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


def test_weights_that_are_used_without_their_layer_are_refused() -> None:
    body = Functional()
    net = TaskNet({"flat": nn.Flatten(), "body": body, "head": nn.Linear(4, 4)})
    asked, x = signal_cases.committee([net]), torch.randn(3, 1, 2, 2)
    with pytest.raises(NeedsError, match=r"Linear\(in_features=4.* was not called"):
        ask(asked, x, GradientLength())
    body.requires_grad_(False)
    assert (ask(asked, x, GradientLength()) > 0).all()


def test_signals_pickle() -> None:
    for signal in (WordGradientLength(), GradientLength()):
        assert pickle.loads(pickle.dumps(signal)) == signal
