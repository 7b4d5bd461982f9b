"""The roles of a table's columns: ids, labels, numbers, categories, or a column of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayal.errors import PoolError, nearest

Missing = Literal["error", "quarantine"]


@dataclass(frozen=True)
class TableColumns:
    """The roles of a table's columns.

    Args:
        id: column of the ids; None for ``file:row``.
        label: column of the known labels.
        features: numeric columns, in order; None for all but id and label.
        missing: treatment of a NaN, inf or null feature or a missing text: ``error`` or
            ``quarantine``.
        text: column of texts, which are then the items; there are no features beside it.
        confidence: column of the annotators' confidence in their labels, numbers in [0, 1].
        categorical: columns of text, bool or whole numbers, each value of which is a feature of 0
            and 1; a value that is not among the known ones counts as missing.
        categories: (column, its known values) of them; those that are not here have the values of
            the source that is read first.
    """

    id: str | None = None
    label: str | None = None
    features: tuple[str, ...] | None = None
    missing: Missing = "error"
    text: str | None = None
    confidence: str | None = None
    categorical: tuple[str, ...] = ()
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TableColumns:
        """Return the columns that options of ingest name."""
        features, categories = options.get("features"), options.get("categories") or {}
        named = (*(options.get("categorical") or ()), *categories)
        return cls(
            options.get("id"),
            options.get("label"),
            None if features is None else tuple(features),
            options.get("missing", "error"),
            options.get("text"),
            options.get("confidence"),
            tuple(dict.fromkeys(named)),
            tuple((name, tuple(map(str, values))) for name, values in categories.items()),
        )

    @property
    def expanded(self) -> list[str]:
        """The names of all features: of numbers, then ``COLUMN=VALUE`` of categories."""
        known = dict(self.categories)
        ones = [f"{name}={value}" for name in self.categorical for value in known[name]]
        return [*(self.features or ()), *ones]

    @property
    def payload(self) -> dict[str, Any]:
        """The description of a row's bytes: kind, features and categories."""
        named = {"categories": {n: list(dict(self.categories)[n]) for n in self.categorical}}
        plain = {"kind": "table", "features": self.expanded}
        return plain | named if self.categorical else plain

    def like(self, payload: Mapping[str, Any]) -> TableColumns:
        """Return these columns with the known categories of rows that are there."""
        known = {n: tuple(v) for n, v in payload.get("categories", {}).items()}
        return replace(self, categories=tuple((known | dict(self.categories)).items()))

    def learned(self, batches: Iterable[pa.RecordBatch]) -> TableColumns:
        """Return these columns with the categories that are not given, those of some rows."""
        known = dict(self.categories)
        wanted = [name for name in self.categorical if name not in known]
        collected: dict[str, set[str]] = {name: set() for name in wanted}
        for batch in batches if wanted else ():
            for name in wanted:
                collected[name] |= set(pc.unique(_texts(batch, name)).to_pylist()) - {None, ""}
        for name, values in collected.items():
            if not values:
                raise PoolError(f"categorical column {name!r} has no value; leave it out")
        known |= {name: tuple(sorted(values)) for name, values in collected.items()}
        return replace(self, categories=tuple((n, known[n]) for n in self.categorical))

    def values(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
        """Return the features of rows, ``[N, D]``, and what is wrong with a category of a row."""
        columns = [batch.column(n).cast(pa.float64()).to_numpy(False) for n in self.features or ()]
        wrong: dict[int, str] = {}
        for name, known in self.categories:
            texts = _texts(batch, name)
            at = pc.index_in(texts, pa.array(known, pa.string())).cast(pa.float64()).to_numpy(False)
            for row in np.flatnonzero(np.isnan(at)).tolist():
                said = texts[row].as_py()
                wrong.setdefault(
                    row,
                    f"category {name!r} is missing"
                    if said in (None, "")
                    else f"category {name!r} is {said!r}, {nearest(said, known)}",
                )
            columns += [np.where(np.isnan(at), np.nan, at == i) for i in range(len(known))]
        features = np.empty((batch.num_rows, len(columns)))
        for i, column in enumerate(columns):
            features[:, i] = column
        return features, wrong

    def used(self) -> list[str]:
        """Return the columns to read, each once."""
        apart = (self.id, self.label, self.text, self.confidence)
        named = (*apart, *(self.features or ()), *self.categorical)
        return list(dict.fromkeys(name for name in named if name is not None))

    def numbers(self) -> tuple[str, ...]:
        """Return the columns whose values are numbers."""
        return (*(self.features or ()), *(() if self.confidence is None else (self.confidence,)))

    def fitted(self, schema: pa.Schema, where: str, *, typed: bool = True) -> TableColumns:
        """Return these columns with the features named, or raise PoolError if one does not fit.

        Args:
            schema: schema of the table.
            where: its name in error messages.
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
        if not features and not self.categorical:
            raise PoolError(f"{where} has no numeric column left for the features, only {names}")
        if wrong:
            raise PoolError(
                f"{where}: columns {wrong} are not numeric; list the columns to use: features=[…] "
                f"among {[n for n in names if n not in wrong]}, name columns of categories: "
                "categorical=[…], or a column of texts: text=…"
            )
        return replace(self, features=features)

    @property
    def _apart(self) -> tuple[str | None, ...]:
        """Columns that are no features unless they are listed."""
        return (self.id, self.label, self.confidence, *self.categorical)

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
        features = [*(self.features or ()), *self.categorical]
        if features:
            raise PoolError(
                f"text is {self.text!r} and features are {features}; items are texts or "
                "rows of numbers: give one of them"
            )
        kind = schema.field(self.text).type
        if typed and not is_text(kind):
            raise PoolError(f"{where}: column {self.text!r} is {kind}; name a column of texts")
        return replace(self, features=())


def _texts(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of categories as text; bool is false and true."""
    column = batch.column(name)
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise PoolError(
            f"categorical column {name!r} is {column.type}; categories are text, bool or whole "
            "numbers"
        )
    return column.cast(pa.string())


def is_numeric(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are numbers, or all null."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are texts, UTF-8 bytes, or all null."""
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
