"""Which columns of a table are what: ids, labels, numeric features, or a column of texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from rayal.errors import PoolError, nearest

Missing = Literal["error", "quarantine"]


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table are what.

    Args:
        id: column of the ids; None for ``file:row``.
        label: column of the known labels.
        features: numeric columns, in order; None for all but id and label.
        missing: what a NaN, inf or null feature, or a missing text does, ``error`` or
            ``quarantine``.
        text: column of texts, which are then the items; there are no features beside it.
        confidence: column of how sure the annotators of the labels were, numbers in [0, 1].
    """

    id: str | None = None
    label: str | None = None
    features: tuple[str, ...] | None = None
    missing: Missing = "error"
    text: str | None = None
    confidence: str | None = None

    def used(self) -> list[str]:
        """Return the columns to read, each once."""
        named = (self.id, self.label, self.text, self.confidence, *(self.features or ()))
        return list(dict.fromkeys(name for name in named if name is not None))

    def numbers(self) -> tuple[str, ...]:
        """Return the columns whose values are numbers."""
        return (*(self.features or ()), *(() if self.confidence is None else (self.confidence,)))

    def fitted(self, schema: pa.Schema, where: str, *, typed: bool = True) -> TableColumns:
        """Return these columns with the features named, or raise PoolError if one does not fit.

        Args:
            schema: of the table.
            where: how messages call it.
            typed: whether a column's type is known, and not only guessed from some rows of it.
        """
        names = schema.names
        if len(set(names)) < len(names):
            raise PoolError(f"{where} has two columns of one name among {names}; rename one")
        for name in self.used():
            if name not in names:
                raise PoolError(f"{where} has no column {name!r}; {nearest(name, names)}")
        self._check_confidence(schema, where)
        if self.text is not None:
            return self._of_texts(schema, where, typed=typed)
        features = self.features or tuple(n for n in names if n not in self._apart)
        wrong = [n for n in features if not is_numeric(schema.field(n).type)]
        if not features:
            raise PoolError(f"{where} has no numeric column left for the features, only {names}")
        if wrong:
            raise PoolError(
                f"{where}: columns {wrong} are not numeric; list the columns to use: features=[…] "
                f"among {[n for n in names if n not in wrong]}, or name a column of texts: text=…"
            )
        return replace(self, features=features)

    @property
    def _apart(self) -> tuple[str | None, ...]:
        """Columns that are no features unless they are listed."""
        return (self.id, self.label, self.confidence)

    def _check_confidence(self, schema: pa.Schema, where: str) -> None:
        if self.confidence is None:
            return
        if self.label is None:
            raise PoolError(
                f"confidence is {self.confidence!r}, and no column of labels is named that it "
                "could speak of; name one: label=…"
            )
        kind = schema.field(self.confidence).type
        if not is_numeric(kind):
            raise PoolError(
                f"{where}: column {self.confidence!r} is {kind}; confidences are numbers in [0, 1]"
            )

    def _of_texts(self, schema: pa.Schema, where: str, *, typed: bool) -> TableColumns:
        if self.features:
            raise PoolError(
                f"text is {self.text!r} and features are {list(self.features)}; items are texts or "
                "rows of numbers: give one of them"
            )
        kind = schema.field(self.text).type
        if typed and not is_text(kind):
            raise PoolError(f"{where}: column {self.text!r} is {kind}; name a column of texts")
        return replace(self, features=())


def is_numeric(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are numbers, or all null."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are texts, UTF-8 bytes, or all null."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)
