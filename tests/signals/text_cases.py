"""Texts, their tokeniser and their networks, which several tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from rayal.labels import ClassLabel
from rayal.models import Committee, TaskNet, build_network
from rayal.models.text import WordEmbedding
from rayal.signals.base import log_softmax
from rayal.tasks import TextTask, Vocabulary

SENTENCES = (
    "the film was good",
    "the film was bad bad bad",
    "a very good plot and a very bad actor",
    "das war ein schöner Film",
    "这 部 电影 很 好",
    "good",
) * 4


@lru_cache
def vocabulary(size: int = 60) -> Vocabulary:
    return Vocabulary.trained(SENTENCES, kind="wordpiece", size=size, lowercase=True)


def task(length: int = 12, classes: str = "abc") -> TextTask:
    return TextTask(ClassLabel(tuple(classes)), length, vocabulary())


def rows(texts: Sequence[str]) -> pa.Table:
    ids = [f"t{i}" for i in range(len(texts))]
    return pa.table({"id": ids, "data": pa.array([t.encode() for t in texts], pa.binary())})


def network(name: str = "kim_cnn", *, of: TextTask | None = None, **params: Any) -> TaskNet:
    chosen = task() if of is None else of
    return build_network(
        name,
        params,
        input_shape=chosen.input_shape,
        n_outputs=chosen.n_outputs,
        seed=3,
        vocabulary=chosen.vocabulary,
    )


def committee(net: TaskNet | None = None, of: TextTask | None = None) -> Committee:
    chosen = task() if of is None else of
    made = network(of=chosen, width=6, filters=5) if net is None else net
    return Committee((nn.ModuleDict({"task": made}),), chosen, {}, "hash", seed=1, round=0)


def texts(*sentences: str, of: TextTask | None = None) -> Tensor:
    return (task() if of is None else of).decode(rows(sentences))


def loss_gradients(
    net: nn.Module, x: Tensor, of: Callable[[nn.Module], Sequence[Tensor]]
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return p ``[C]`` and, for each label, the gradients of one row's loss, by plain autograd."""
    net.eval()
    wanted = list(of(net))
    log_probs = log_softmax(net(x[None]))[0]
    gradients = [
        list(torch.autograd.grad(-log_probs[k], wanted, retain_graph=True, allow_unused=True))
        for k in range(len(log_probs))
    ]
    return log_probs.detach().exp(), gradients


def word_table(net: nn.Module) -> list[Tensor]:
    (table,) = [m.table.weight for m in net.modules() if isinstance(m, WordEmbedding)]
    return [table]


def words_of(x: Tensor) -> list[int]:
    """Return the distinct words of a row, special tokens left out."""
    return sorted(set(x.long().tolist()) - set(vocabulary().specials))
