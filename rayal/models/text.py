"""Networks for texts: rows of token ids, as whole numbers in float32 ``[N, T]``."""

from __future__ import annotations

from typing import Annotated, Protocol, cast

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import SettingsError
from rayal.models.base import TaskNet
from rayal.registry import networks


class VocabularyLike(Protocol):
    """The part of a tokeniser that networks need."""

    @property
    def size(self) -> int:
        """Tokens, V."""

    @property
    def pad(self) -> int:
        """The id of padding."""

    @property
    def specials(self) -> tuple[int, ...]:
        """Ids of tokens that are no words."""

    def idf(self) -> Tensor:
        """Return the inverse document frequencies, float32 ``[V]``."""


class WordEmbedding(nn.Module):
    """Token ids ``[N, T]`` to vectors ``[N, T, E]``; padding is the zero vector and stays it.

    Args:
        tokens: size of the vocabulary, V.
        width: E.
        pad: the id of padding.
    """

    def __init__(self, tokens: int, width: int, pad: int) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width, padding_idx=pad)
        nn.init.uniform_(self.table.weight, -0.25, 0.25)
        with torch.no_grad():
            self.table.weight[pad].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        return cast(Tensor, self.table(x.long()))


class MaxOverTime(nn.Module):
    """Convolutions over windows of words, each rectified and reduced to its largest value.

    Args:
        width: size of a word's vector, E.
        filters: number of filters of each window height, F.
        heights: numbers of words in a window.
    """

    def __init__(self, width: int, filters: int, heights: tuple[int, ...]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, filters, (1, h)) for h in heights)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, heights x F]`` of vectors ``[N, T, E]``."""
        x = x.unsqueeze(1).permute(0, 3, 1, 2)  # [N, E, 1, T], channels last as it lies there
        # the largest is rectified: the same numbers, from fewer rectifications
        return torch.cat([F.relu(_largest(c(x))) for c in self.convolutions], dim=1)


def _largest(x: Tensor) -> Tensor:
    """Return the largest value over time, ``[N, F]`` of ``[N, F, 1, L]``."""
    return F.max_pool2d(x, (1, x.shape[3])).flatten(1)


@networks.register("kim_cnn")
def kim_cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    vocabulary: VocabularyLike,
    width: Annotated[int, Gt(0)] = 128,
    filters: Annotated[int, Gt(0)] = 64,
    heights: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(1)] = (3, 4, 5),
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
) -> TaskNet:
    """Return a convolutional network over words: windows, max over time, dropout, a linear layer.

    Source: Kim, EMNLP 2014, "Convolutional neural networks for sentence classification", section
    2, variant CNN-rand: word vectors are drawn from U(-0.25, 0.25) and trained. Departures: no
    bound on the norm of the last layer's weights, and 64 filters instead of 100.

    Args:
        input_shape: ``(T,)``, tokens of a row.
        n_outputs: columns of the logits.
        vocabulary: vocabulary of the task.
        width: width of a word's vector.
        filters: filters of each height.
        heights: numbers of words in a window.
        dropout: dropout probability behind the largest values.

    Raises:
        SettingsError: rows have fewer tokens than the highest window.
    """
    if max(heights) > input_shape[0]:
        raise SettingsError(
            f"kim_cnn: a window of {max(heights)} words does not fit rows of {input_shape[0]} "
            "tokens; set task.length higher, or give other heights"
        )
    return TaskNet(
        {
            "words": WordEmbedding(vocabulary.size, width, vocabulary.pad),
            "windows": MaxOverTime(width, filters, heights),
            "dropout": nn.Dropout(dropout),
            "head": nn.Linear(len(heights) * filters, n_outputs),
        }
    )


class TfIdf(nn.Module):
    """Token ids ``[N, T]`` to TF-IDF features ``[N, V]`` of length 1; an empty row is 0.

    Args:
        weights: inverse document frequencies, float32 ``[V]``.
    """

    idf: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("idf", weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        counts = x.new_zeros((len(x), len(self.idf)), dtype=self.idf.dtype)
        counts.scatter_add_(1, x.long(), torch.ones_like(x, dtype=self.idf.dtype))
        return F.normalize(counts * self.idf, dim=1)


@networks.register("tfidf_linear")
def tfidf_linear(
    input_shape: tuple[int, ...], n_outputs: int, *, vocabulary: VocabularyLike
) -> TaskNet:
    """Return a linear model of TF-IDF features (Salton & Buckley, 1988) of the vocabulary's tokens.

    A token counts as often as it stands in the row, times ln((1 + n) / (1 + n_t)) + 1 from all
    texts of the pool; features have length 1, and are the embedding.

    Args:
        input_shape: ``(T,)``, tokens of a row.
        n_outputs: columns of the logits.
        vocabulary: vocabulary of the task.
    """
    features = TfIdf(vocabulary.idf())
    return TaskNet({"features": features, "head": nn.Linear(vocabulary.size, n_outputs)})
