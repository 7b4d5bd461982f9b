"""Settings of what goes into a run: the pool, and what its rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayal.sections import Count, Section, Text, Texts, key


class PoolSettings(Section):
    """Where the items come from."""

    source: Text = Field(description="builtin name, path, or name of a pool in the storage")
    subset: Count | None = key(None, "items kept, drawn by the pool seed; null: all")
    data: Text | None = key(None, "folder of the files of a builtin source")
    id: Text | None = key(None, "column of the ids; null: relative path or file:row")
    label: Text | None = key(None, "column of the labels that are known")
    labels: Text | None = key(None, "CSV or Parquet file with columns id and label")
    features: Texts | None = key(None, "numeric columns of a table; null: all but id and label")
    text: Text | None = key(None, "column of texts of a table, which are then the items")
    confidence: Text | None = key(None, "column of how sure annotators were of the labels, [0, 1]")
    test: Text | None = key(None, "second path, whose items get the role test")
    test_share: float = key(0.0, "share of items that become the test, by keyed hash", ge=0, lt=1)
    duplicates: Literal["keep", "first"] = key("keep", "items of equal content: keep | first")
    missing: Literal["error", "quarantine"] = key("error", "NaN, inf, no text: error | quarantine")


class TaskSettings(Section):
    """What a row is and what is predicted."""

    kind: Literal["image", "table", "text"] | None = key(
        None, "image | table | text; null: by the pool"
    )
    classes: Texts | None = key(None, "class names in order; null: those of the known labels")
    size: tuple[Count, Count] | None = key(None, "[H, W] to resize to; null: as it is")
    channels: Literal[1, 3] | None = key(None, "1 | 3; null: as the pool has them")
    flip: bool | None = key(None, "augment by mirroring; null: for 3 channels only")
    length: Count | None = key(None, "tokens of a text, longer ones are cut; null: 64")
    vocabulary: Count | None = key(None, "tokens of a trained tokeniser at most; null: 8000")
    tokenizer: Text | None = key(
        None, "wordpiece | bpe (trained on the pool), or path of a tokenizer.json; null: wordpiece"
    )
    lowercase: bool | None = key(None, "of a trained tokeniser; null: true")
