"""Expected gradient length: of all parameters, the softmax layer, word vectors, and a mixture.

Source: Zhang, Lease & Wallace, AAAI 2017, "Active discriminative text representation learning":
EGL and EGL-sm (Settles & Craven, EMNLP 2008, for neural networks), EGL-word for sentences,
EGL-Entropy-Beta for documents. All are expectations of a norm; the norm of the expectation is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from scipy.special import betaincinv
from torch import Tensor

from rayal import acquisition
from rayal.errors import NeedsError
from rayal.models.committee import Committee
from rayal.registry import strategies
from rayal.selection.draws import uniform
from rayal.selection.topk import MinMaxMixture
from rayal.signals import Embedding, GradientLength, LogProbs, Signal, WordGradientLength
from rayal.strategies.base import Ctx, Strategy, check_softmax
from rayal.types import Columns

_WEIGHT = 301  # salt of the draw
_FRESH = (
    "every round trains anew, where the authors' code goes on from the weights of the last; of "
    "several members the first one is asked"
)
_WORDS = "words are the tokeniser's tokens; padding and special tokens, [UNK] among them, score 0"
_RISE = 0.1  # keeps both parameters of the Beta distribution above 0


@strategies.register("egl")
@dataclass(frozen=True)
class EGL(Strategy):
    """Label items whose label is expected to move all parameters most."""

    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Zhang, Lease & Wallace, AAAI 2017 (EGL)"
    departures: ClassVar[str] = _FRESH

    def signals(self) -> tuple[Signal, ...]:
        """Return the expected gradient length."""
        return (GradientLength(),)

    def score(self, s: Columns) -> Tensor:
        """Return Σ_k p_k |∂ loss(x, k) / ∂ θ|."""
        return s["gradient_length"]


@strategies.register("egl_sm")
@dataclass(frozen=True)
class EGLSoftmax(Strategy):
    """Label items whose label is expected to move the softmax layer most."""

    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Zhang, Lease & Wallace, AAAI 2017 (EGL-sm)"
    departures: ClassVar[str] = _FRESH

    def signals(self) -> tuple[Signal, ...]:
        """Return probabilities and embedding of the same member."""
        return (LogProbs(member=0), Embedding(member=0))

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless the last layer's gradient is the closed form."""
        check_softmax(self, committee)
        if committee.net(0).head.bias is None:
            raise NeedsError(
                "egl_sm counts the gradient of the last linear layer's bias, and this one has "
                "none; give it a bias, or use egl, which takes layers as they are"
            )

    def score(self, s: Columns) -> Tensor:
        """Return sqrt(|h|² + 1) Σ_k p_k |p - e_k|, a closed form."""
        return acquisition.softmax_gradient_length(s["log_probs.0"], s["embedding"])


@strategies.register("egl_word")
@dataclass(frozen=True)
class EGLWord(Strategy):
    """Label texts with a word whose vector their label is expected to move most."""

    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Zhang, Lease & Wallace, AAAI 2017 (EGL-word)"
    departures: ClassVar[str] = (
        f"{_FRESH}; {_WORDS}; whether the paper divides by a word's frequency in documents is not "
        "confirmed, and nothing is divided here"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return the largest expected gradient length over a text's words."""
        return (WordGradientLength(),)

    def score(self, s: Columns) -> Tensor:
        """Return max_j Σ_k p_k |∂ loss(x, k) / ∂ E_j|."""
        return s["word_gradient_length"]


@strategies.register("egl_entropy_beta")
@dataclass(frozen=True)
class EGLEntropyBeta(Strategy):
    """Label texts by word gradients at first and by entropy later on.

    Args:
        members: trained networks; gradients and entropy are those of the first.
        rounds: rounds T over which the weight's mean falls from 1 to 0; later rounds are like T.
        weight: weight of the word gradients; None draws it anew in each round. 1 is ``egl_word``, 0
            is ``entropy``.
    """

    rounds: Annotated[int, Ge(1)] = 20
    weight: Annotated[float, Ge(0), Le(1)] | None = None

    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Zhang, Lease & Wallace, AAAI 2017 (EGL-Entropy-Beta)"
    departures: ClassVar[str] = (
        f"{_FRESH}; {_WORDS}; "
        "the paper's parameters of the Beta distribution and its normaliser are not confirmed: "
        "round t draws from Beta(2 (1 - t/T) + 0.1, 2 t/T + 0.1), and both scores are brought to "
        "[0, 1] over the candidates"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return word gradients and probabilities of the same member."""
        return (WordGradientLength(), LogProbs(member=0))

    def score(self, s: Columns) -> Tensor:
        """Return word gradient and entropy, ``[N, 2]``."""
        entropy = acquisition.entropy(s["log_probs.0"]).double()
        return torch.stack([s["word_gradient_length"].double(), entropy], dim=1)

    def beta(self, round: int) -> tuple[float, float]:
        """Return both parameters of a round's Beta distribution."""
        late = min(max(round, 0) / self.rounds, 1.0)
        return 2.0 * (1.0 - late) + _RISE, 2.0 * late + _RISE

    def objective(self, ctx: Ctx) -> MinMaxMixture:
        """Return the mixture, its weight drawn once for the round by the query seed."""
        if self.weight is not None:
            return MinMaxMixture(weight=self.weight)
        a, b = self.beta(ctx.round)
        weight = float(betaincinv(a, b, uniform(ctx.seed, _WEIGHT)))
        return MinMaxMixture(weight=weight, provenance={"beta": [a, b]})
