"""What ingest takes besides the source, by kind of source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayal.pool.ingest import IngestOptions
from rayal.pool.readers.table_columns import Missing
from rayal.pool.source import Role, StrPath


class TableOptions(IngestOptions, total=False):
    """What ingest of tables takes besides.

    ``id``, ``label`` and ``features`` name columns, ``text`` one of texts, ``categorical`` those
    of categories, with the values that ``categories`` gives or the source has; ``missing`` is what
    a NaN, inf or null feature, another category or a missing text does, ``error`` or
    ``quarantine``; ``role`` is that of the items.
    """

    id: str | None
    label: str | None
    features: Sequence[str] | None
    categorical: Sequence[str] | None
    categories: Mapping[str, Sequence[str]] | None
    text: str | None
    missing: Missing
    role: Role


class FileOptions(TableOptions, total=False):
    """What ingest of files of tables takes besides.

    ``test`` is a path of items for the test; ``confidence`` names a column of how sure the
    annotators of the labels were, in [0, 1].
    """

    test: StrPath | None
    confidence: str | None


class DatasetOptions(TableOptions, total=False):
    """What ingest of a Ray Dataset takes besides: ``image``, the column of images."""

    image: str | None
