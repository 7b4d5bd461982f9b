"""Expected lengths of loss gradients: of word vectors, and of all parameters.

The gradients g_k of the loss under each label k obey Σ_k p_k g_k = 0, so the last label's is known
from the others, p_C g_C = -Σ_{k<C} p_k g_k: C - 1 backward passes a batch, whatever its rows. One
batch of gradients is held at a time, and that sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import NeedsError
from rayal.models.base import TaskNet
from rayal.models.committee import Committee
from rayal.models.dropout import evaluating
from rayal.selection.tiles import PAD
from rayal.signals.base import Forward, Signal, as_weights, log_softmax
from rayal.signals.predictions import check_member

FORMED = 1 << 22  # numbers of a layer's gradients of some rows that are formed at once


@dataclass(frozen=True)
class Recorded:
    """One layer of a forward pass.

    Attributes:
        layer: the module that owns parameters.
        inputs: input of the layer, ``[b, …]``, detached.
        output: output of the layer, ``[b, …]``, with its graph.
    """

    layer: nn.Module
    inputs: Tensor
    output: Tensor

    @cached_property
    def products(self) -> Tensor | None:
        """Inner products of a convolution's windows, ``[b x G, L, L]``, where they cost less.

        They are the same for the gradients of all labels.
        """
        if type(self.layer) not in (nn.Conv1d, nn.Conv2d):
            return None
        places, weight = self.output.flatten(2).shape[2], self.layer.weight
        assert isinstance(weight, Tensor)
        outputs, inputs = weight.flatten(1).shape
        if places * (inputs + outputs) > inputs * outputs:
            return None
        windows = _windows(self.layer, self.inputs)
        return torch.bmm(windows.transpose(1, 2), windows)

    def squares(self, gradient: Tensor) -> Tensor:
        """Return each row's squared gradient length ``[b]`` from the gradient of the output."""
        if self.products is not None:
            return _by_products(self.layer, self.products, gradient)
        return _SQUARES[type(self.layer)](self.layer, self.inputs, gradient)


@contextmanager
def recording(net: nn.Module, layers: list[Recorded]) -> Iterator[None]:
    """Append every layer with trained parameters to ``layers`` while the network runs."""

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        layers.append(Recorded(layer, inputs[0].detach().clone(), output))
        return output.clone()  # the next layer may work in place

    hooks = [layer.register_forward_hook(note) for layer in _owners(net)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    shared = [r.layer for r in layers if len(r.output) != len(layers[-1].output)]
    if shared:
        raise NeedsError(
            f"{shared[0]} runs once for all rows of a batch, so its gradient cannot be told row by "
            "row; use egl_sm, which needs the last layer alone"
        )
    ran = [id(recorded.layer) for recorded in layers]
    if len(set(ran)) < len(ran):
        raise NeedsError(
            "a layer of the network runs twice, so its gradient is no sum over layers; use egl_sm"
        )
    for layer in _owners(net):
        if id(layer) not in ran:
            raise NeedsError(
                f"{layer} has trained parameters and was not called, so what its weights do "
                "elsewhere cannot be told; call the layer itself, freeze it with "
                "requires_grad_(False) if it is not used, or use egl_sm"
            )


def check_layers(net: TaskNet) -> None:
    """Raise NeedsError where trained parameters belong to a layer of no known kind.

    Also where a layer is trained in part, or two layers have a parameter in common.
    """
    owned: set[int] = set()
    for layer in _owners(net):
        parameters = list(layer.parameters(recurse=False))
        if not all(p.requires_grad for p in parameters):
            raise NeedsError(
                f"of {layer} some parameters are trained and some are frozen, and lengths are of "
                "whole layers; train or freeze all of them, or use egl_sm"
            )
        if owned & {id(p) for p in parameters}:
            raise NeedsError(
                f"{layer} shares a parameter with another layer, whose gradients add up before "
                "their length is taken; give each layer its own, or use egl_sm"
            )
        owned |= {id(p) for p in parameters}
        padded = getattr(layer, "padding_mode", "zeros") != "zeros"
        named = isinstance(getattr(layer, "padding", 0), str)
        unknown = getattr(layer, "running_mean", 0) is None
        if type(layer) not in _SQUARES or padded or named or unknown:
            kinds = ", ".join(sorted(kind.__name__ for kind in _SQUARES))
            other = "egl_sm, which needs the last one alone"
            if not net.ends_linear:  # egl_sm is not defined then
                other = "margin or entropy, which need none"
            raise NeedsError(
                f"gradients of {layer} cannot be told row by row; they can of {kinds} (padded by "
                f"zeros, by a number): use such layers, or {other}"
            )


def _owners(net: nn.Module) -> list[nn.Module]:
    """Return the modules that own trained parameters."""
    return [m for m in net.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]


def _total(x: Tensor) -> Tensor:
    """Return the sum of squares of each row, ``[b]``."""
    flat = x.flatten(1)
    return (flat * flat).sum(dim=1)


def _linear(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    if a.ndim == 2:
        return _total(g) * (_total(a) + (0.0 if layer.bias is None else 1.0))
    a, g = a.flatten(1, -2), g.flatten(1, -2)  # [b, T, in], [b, T, out]
    bias = 0.0 if layer.bias is None else _total(g.sum(dim=1))
    return _total(torch.bmm(g.transpose(1, 2), a)) + bias


def _windows(layer: Any, a: Tensor) -> Tensor:
    """Return the windows that a convolution multiplies at each place, ``[b x G, in x k, L]``."""
    flat = layer.weight.ndim == 3  # one dimension is two, of which the first is 1
    a = a.unsqueeze(2) if flat else a
    size, dilation, padding, stride = (
        ((neutral, *value) if flat else value)
        for neutral, value in (
            (1, layer.kernel_size),
            (1, layer.dilation),
            (0, layer.padding),
            (1, layer.stride),
        )
    )
    windows = F.unfold(a, size, dilation, padding, stride)  # [b, G x in x k, L]
    return windows.view(len(a) * layer.groups, -1, windows.shape[2])


def _by_products(layer: Any, products: Tensor, g: Tensor) -> Tensor:
    """Return |Σ_l g_l ⊗ w_l|² = Σ_lm (g_l · g_m)(w_l · w_m) of windows w, and the bias's."""
    g = g.flatten(2)  # [b, G x out, L]
    bias = 0.0 if layer.bias is None else _total(g.sum(dim=2))
    grouped = g.reshape(len(products), -1, g.shape[2])
    squares = (torch.bmm(grouped.transpose(1, 2), grouped) * products).sum(dim=(1, 2))
    return squares.view(len(g), -1).sum(dim=1).clamp_min(0.0) + bias


def _convolution(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    rows, groups = len(a), layer.groups
    windows = _windows(layer, a)
    g = g.flatten(2)  # [b, G x out, L]
    bias = 0.0 if layer.bias is None else _total(g.sum(dim=2))
    g = g.reshape(rows * groups, -1, g.shape[2])
    at_once = max(1, FORMED // layer.weight.numel()) * groups
    parts = [
        _total(torch.bmm(few, inputs.transpose(1, 2)).view(len(few) // groups, -1))
        for few, inputs in zip(torch.split(g, at_once), torch.split(windows, at_once), strict=True)
    ]
    return torch.cat(parts) + bias


def _embedding(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    ids, g = a.flatten(1), g.flatten(1, -2)  # [b, T], [b, T, E]
    if layer.padding_idx is not None:
        g = g * (ids != layer.padding_idx)[:, :, None].to(g.dtype)
    same = (ids[:, :, None] == ids[:, None, :]).to(g.dtype)
    summed = torch.bmm(same, g)  # of equal ids; as often as they stand there
    return (g * summed).sum(dim=(1, 2)).clamp_min(0.0)


def _batch_norm(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    shape = (1, -1, *(1 for _ in a.shape[2:]))
    scale = (layer.running_var + layer.eps).rsqrt()
    normed = (a - layer.running_mean.view(shape)) * scale.view(shape)
    weight = (g * normed).flatten(2).sum(dim=2) if a.ndim > 2 else g * normed
    bias = g.flatten(2).sum(dim=2) if a.ndim > 2 else g
    return _total(weight) + _total(bias)


def _layer_norm(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    normed = F.layer_norm(a, layer.normalized_shape, None, None, layer.eps)
    between = tuple(range(1, a.ndim - len(layer.normalized_shape)))
    bias = 0.0 if layer.bias is None else _total(g.sum(dim=between) if between else g)
    weight = g * normed
    return _total(weight.sum(dim=between) if between else weight) + bias


_SQUARES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
}


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
        parts = [_word_lengths(net, x, specials) for x in torch.split(ids, PAD)]
        return {"word_gradient_length": torch.cat(parts)}


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
        parts = [_lengths(net, x) for x in torch.split(as_weights(f.x, net), PAD)]
        return {"gradient_length": torch.cat(parts)}


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

    weighted = map(summed, _loss_gradients(log_probs, (vectors[0],)))
    expected = _expected(weighted, lengths)  # [b, T]
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

    weighted = _loss_gradients(log_probs, tuple(layer.output for layer in layers))
    return _expected(weighted, lengths)


def _expected(
    weighted: Iterable[tuple[Tensor, ...]], lengths: Callable[[tuple[Tensor, ...]], Tensor]
) -> Tensor:
    """Return Σ_k p_k |g_k|, where ``lengths`` gives |g| of gradients g, and is homogeneous.

    Args:
        weighted: p_k g_k of all labels but the last, or anything linear in them.
        lengths: gradients to ``[b, …]``.
    """
    total, rest = None, None
    for gradients in weighted:
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
