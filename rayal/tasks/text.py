"""Texts: rows of token ids of one fixed length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from rayal.errors import PoolError
from rayal.labels import label_kind
from rayal.tasks.base import FixedTask, column_of, item_of
from rayal.tasks.vocabulary import Vocabulary

LENGTH, SIZE = 64, 8000  # defaults: tokens of a text, tokens of a trained vocabulary
_NO_VIEWS = (
    "texts have no augmented views; set learner.augment to false, and choose a learner and a "
    "strategy that ask for none"
)


@dataclass(frozen=True)
class TextTask(FixedTask):
    """One class, or one number, for each text.

    All rows have the same length, so that a row's bits do not depend on the batch it lies in:
    longer texts are cut, shorter ones padded behind. The mask of a row is ``x != vocabulary.pad``.

    Args:
        labels: the classes, or a number.
        length: tokens of a row, T.
        words: the tokeniser.
    """

    kind: ClassVar[str] = "text"
    no_views: ClassVar[str] = _NO_VIEWS
    length: int
    words: Vocabulary

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(T,)."""
        return (self.length,)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokeniser."""
        return self.words

    def decode(self, rows: pa.Table) -> Tensor:
        """Return token ids, float32 ``[N, T]``, which holds whole numbers up to 2**24 exactly.

        Raises:
            PoolError: a row is not UTF-8.
        """
        column = column_of(rows, "data")
        try:
            texts = column.cast(pa.string()).to_pylist()
        except pa.ArrowInvalid:
            raise PoolError(_broken(rows, column)) from None
        return torch.from_numpy(self.words.encode(texts, self.length)).float()

    def to_json(self) -> dict[str, Any]:
        """Return the kind and all settings as JSON, the tokeniser whole."""
        named = {"length": self.length, "vocabulary": self.words.stored}
        return {"kind": self.kind, "labels": self.labels.to_json(), **named}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TextTask:
        """Return the task that ``to_json`` described."""
        labels = label_kind(stored["labels"])
        return cls(labels, stored["length"], Vocabulary(stored["vocabulary"]))


def _broken(rows: pa.Table, column: pa.ChunkedArray) -> str:
    for row, value in enumerate(column.to_pylist()):
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"{item_of(rows, row)} is no UTF-8 text ({error.reason}); ingest the pool again"
    raise AssertionError("all rows are UTF-8")
