"""Texts as items: Unicode in composed form (NFC), stored as UTF-8."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rayal.errors import PoolError
from rayal.pool.readers.table_columns import Missing
from rayal.pool.source import Rows

PAYLOAD = {"kind": "text"}


def text_rows(rows: Rows, texts: Sequence[str | bytes | None], missing: Missing) -> Rows:
    """Return rows with their texts as payload: UTF-8 of the composed form (NFC), not stripped.

    Args:
        rows: ids and labels.
        texts: N texts, or the bytes of texts in UTF-8.
        missing: treatment of a text that is null, empty, only white space, or not UTF-8:
            ``error`` or ``quarantine``.

    Raises:
        PoolError: there is such a text, and ``missing`` is ``error``.
    """
    kept, payloads, wrong = [], [], []
    for row, text in enumerate(texts):
        payload, reason = encoded(text)
        if reason is None:
            kept.append(row)
            payloads.append(payload)
            continue
        if missing == "error":
            raise PoolError(
                f"row {rows.ids[row]!r}: {reason}; correct it, or set missing: quarantine, which "
                "leaves such rows out and counts them"
            )
        wrong.append((rows.ids[row], reason))
    return replace(rows.taken(kept), payloads=payloads, quarantined=wrong)


def text_lengths(sizes: npt.NDArray[np.int64]) -> dict[str, int]:
    """Return quantiles of the texts' lengths in bytes, as a snapshot's record has them."""
    points = {"least": 0.0, "median": 0.5, "p95": 0.95, "most": 1.0}
    if len(sizes) == 0:
        return dict.fromkeys(points, 0)
    return {n: int(np.quantile(sizes, q, method="higher")) for n, q in points.items()}


def encoded(text: str | bytes | None) -> tuple[bytes, str | None]:
    """Return the payload of a text, its UTF-8 in composed form (NFC), or why there is none."""
    if text is None:
        return b"", "the text is missing"
    try:
        whole = text.decode("utf-8") if isinstance(text, bytes) else text
        payload = unicodedata.normalize("NFC", whole).encode("utf-8")
    except (
        UnicodeDecodeError,
        UnicodeEncodeError,
    ) as error:
        return b"", f"the text is not UTF-8 ({error.reason}, at {error.start})"
    if not whole.strip():
        return b"", "the text is empty"
    return payload, None
