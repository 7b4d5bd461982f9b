"""Expected lengths of loss gradients: of word vectors, and of all parameters.

The gradients g_k of the loss under each label k obey Σ_k p_k g_k = 0, so the last label's is known
from the others, p_C g_C = -Σ_{k<C} p_k g_k: C - 1 backward passes a batch, whatever its rows. One
batch of gradients is held at a time, and that sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayal.errors import NeedsError
from rayal.models.base import TaskNet
from rayal.models.committee import Committee
from rayal.models.dropout import evaluating
from rayal.selection.tiles import PAD
from rayal.signals.base import Forward, Signal, as_weights, log_softmax
from rayal.signals.layers import Recorded, check_layers, recording
from rayal.signals.predictions import check_member


@dataclass(frozen=True)
class WordGradientLength(Signal):
    """The largest expected gradient length of a word's vector, ``word_gradient_length`` ``[N]``.

    max over the words j of a text of Σ_k p_k |∂ loss(x, k) / ∂ E_j|: the expectation first, then
    the largest. The gradient of a word's vector is the sum over all places where the word stands;
    padding and special tokens are no words, and a text without words has 0.

    Args:
        member: whose.
    """

    member: int = 0

    differentiates: ClassVar[bool] = True

    def names(self) -> tuple[str, ...]:
        """Return ``word_gradient_length``."""
        return ("word_gradient_length",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError where rows are no texts, or the network has no layer of word vectors."""
        check_member(self.member, committee)
        if committee.task.vocabulary is None:
            raise NeedsError(
                "gradients of word vectors need texts and a network that embeds their words, such "
                "as kim_cnn; for other rows, and for the head of a frozen encoder, use egl or "
                "egl_sm"
            )
        net = committee.net(self.member)
        if net.word_embedding is None:
            raise NeedsError(
                f"{type(net).__name__} of stages {', '.join(net.stage_names)} has no single "
                "nn.Embedding of words; use kim_cnn, or choose egl or egl_sm, which need none"
            )

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the lengths, 64 rows at a time."""
        net = f.committee.net(self.member)
        vocabulary = f.committee.task.vocabulary
        assert vocabulary is not None
        ids = as_weights(f.x, net)
        specials = ids.new_tensor(vocabulary.specials)
        made = [_word_lengths(net, x, specials) for x in torch.split(ids, PAD)]
        return {"word_gradient_length": torch.cat(made)}


@dataclass(frozen=True)
class GradientLength(Signal):
    """The expected gradient length of all trained parameters, ``gradient_length`` ``[N]``.

    Σ_k p_k |∂ loss(x, k) / ∂ θ|, exactly, from each layer's inputs and output gradients; no row's
    gradient of a layer outlives the layer.

    Args:
        member: whose.
    """

    member: int = 0

    differentiates: ClassVar[bool] = True
    backward: ClassVar[float] = 4.3

    def names(self) -> tuple[str, ...]:
        """Return ``gradient_length``."""
        return ("gradient_length",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError where a layer's gradients cannot be told row by row."""
        check_member(self.member, committee)
        net = committee.net(self.member)
        check_layers(net)
        weight = next(net.parameters())
        rows = torch.zeros((2, *committee.task.input_shape), device=weight.device)
        with evaluating(net), torch.no_grad(), recording(net, []):
            net(as_weights(rows, net))

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the lengths, 64 rows at a time."""
        net = f.committee.net(self.member)
        made = [_lengths(net, x) for x in torch.split(as_weights(f.x, net), PAD)]
        return {"gradient_length": torch.cat(made)}


def _word_lengths(net: TaskNet, x: Tensor, specials: Tensor) -> Tensor:
    """Return the largest expected length over the words of each row ``[b, T]``."""
    vectors: list[Tensor] = []

    def leaf(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        vectors.append(output.detach().requires_grad_())
        return vectors[-1]

    assert net.word_embedding is not None
    hook = net.word_embedding.register_forward_hook(leaf)
    try:
        log_probs = log_softmax(net(x))  # [b, C]
    finally:
        hook.remove()
    same = (x[:, :, None] == x[:, None, :]).to(vectors[0].dtype)  # [b, T, T]

    def summed(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.bmm(same, gradients[0]),)  # [b, T, E], over all places of a word

    def lengths(gradients: tuple[Tensor, ...]) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(gradients[0], dim=2)
        return norms

    made = map(summed, _loss_gradients(log_probs, (vectors[0],)))
    expected = _expected(made, lengths)  # [b, T]
    no_word = (x[:, :, None] == specials).any(dim=2)
    return expected.masked_fill(no_word, 0.0).amax(dim=1)


def _lengths(net: TaskNet, x: Tensor) -> Tensor:
    """Return the expected length over all parameters, ``[b]``."""
    layers: list[Recorded] = []
    with recording(net, layers):
        log_probs = log_softmax(net(x))

    def lengths(gradients: tuple[Tensor, ...]) -> Tensor:
        squares: list[Tensor] = [
            layer.squares(g) for layer, g in zip(layers, gradients, strict=True)
        ]
        return torch.stack(squares).sum(dim=0).sqrt()

    made = _loss_gradients(log_probs, tuple(layer.output for layer in layers))
    return _expected(made, lengths)


def _expected(
    made: Iterable[tuple[Tensor, ...]], lengths: Callable[[tuple[Tensor, ...]], Tensor]
) -> Tensor:
    """Return Σ_k p_k |g_k|, where ``lengths`` gives |g| of gradients g, and is homogeneous.

    Args:
        made: p_k g_k of all labels but the last, or anything linear in them.
        lengths: gradients to ``[b, …]``.
    """
    total, rest = None, None
    for gradients in made:
        here = lengths(gradients)
        total = here if total is None else total + here
        rest = gradients if rest is None else tuple(map(torch.add, rest, gradients))
    assert total is not None and rest is not None  # a task has two classes at least
    return total + lengths(rest)


def _loss_gradients(log_probs: Tensor, of: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Yield p_k times the gradients of -log p_k for all labels k but the last.

    Rows do not interact, so the gradient of their sum holds that of each row.
    """
    probs = log_probs.detach().exp()
    for label in range(log_probs.shape[1] - 1):
        loss = -(probs[:, label] * log_probs[:, label]).sum()
        yield torch.autograd.grad(loss, of, retain_graph=label < log_probs.shape[1] - 2)
