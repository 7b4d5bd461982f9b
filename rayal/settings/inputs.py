"""Settings of what goes into a run: the pool, and what its rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayal.errors import SettingsError
from rayal.settings.sections import Count, Section, Text, Texts, key


class PoolSettings(Section):
    """Where the items come from."""

    source: Text = Field(
        description="A built-in name, a path, or the name of a pool in the storage."
    )
    subset: Count | None = key(None, "Number of items kept, drawn by the pool seed; null: all.")
    data: Text | None = key(None, "Folder with the files of a built-in source.")
    id: Text | None = key(None, "Column of the ids; null: the relative path, or file:row.")
    label: Text | None = key(None, "Column of the labels that are known.")
    labels: Text | None = key(None, "CSV or Parquet file with the columns id and label.")
    features: Texts | None = key(None, "Numeric columns of a table; null: all but id and label.")
    categorical: Texts | None = key(
        None,
        "Columns of categories (text, bool, whole numbers): each value is a feature of 0 or 1.",
    )
    categories: dict[str, Texts] | None = key(
        None, "The values of each such column; null: those of the source. Any other is missing."
    )
    text: Text | None = key(None, "Column of texts, which are then the items.")
    confidence: Text | None = key(
        None, "Column that says how sure annotators were of a label, from 0 to 1."
    )
    test: Text | None = key(None, "A second path, whose items are the test.")
    test_share: float = key(
        0.0, "Share of the items that become the test, by a hash of their ids.", ge=0, lt=1
    )
    test_by_seed: bool = key(
        False, "Draw test_share anew for each pool seed; false: the same test for all."
    )
    duplicates: Literal["keep", "first"] = key(
        "keep", "Keep all items of equal content (keep), or one of them (first)."
    )
    missing: Literal["error", "quarantine"] = key(
        "error", "A row that lacks a value is an error, or is left out and counted (quarantine)."
    )


class TaskSettings(Section):
    """What a row is and what is predicted."""

    kind: Literal["image", "table", "text"] | None = key(
        None, "Kind of the rows: image, table or text; null: that of the pool."
    )
    target: Literal["class", "number"] | None = key(
        None, "Predict a class or a number; null: a number where the known labels are numbers."
    )
    classes: Texts | None = key(
        None, "Names of the classes, in order; null: those of the known labels."
    )
    low: float | None = key(None, "Smallest number that a label may be; null: any.")
    high: float | None = key(None, "Largest number that a label may be; null: any.")
    size: tuple[Count, Count] | None = key(
        None, "[height, width] to which images are resized; null: as they are."
    )
    channels: Literal[1, 3] | None = key(None, "Channels of an image; null: as the pool has them.")
    flip: bool | None = key(None, "Mirror images when augmenting; null: with 3 channels only.")
    length: Count | None = key(None, "Tokens of a text, longer ones are cut; null: 64.")
    vocabulary: Count | None = key(None, "Most tokens of a tokeniser that is trained; null: 8000.")
    tokenizer: Text | None = key(
        None, "wordpiece or bpe, trained on the pool, or a tokenizer.json; null: wordpiece."
    )
    lowercase: bool | None = key(
        None, "A tokeniser that is trained puts texts into lower case; null: true."
    )

    @model_validator(mode="after")
    def _one_target(self) -> TaskSettings:
        if self.target == "number" and self.classes is not None:
            raise SettingsError(
                "task.classes are given and task.target is number; leave the classes out, or "
                "predict them: target: class"
            )
        bounds = {n: getattr(self, n) for n in ("low", "high") if getattr(self, n) is not None}
        if bounds and (self.target == "class" or self.classes is not None):
            raise SettingsError(
                f"task.{next(iter(bounds))} bounds a number, and classes are predicted; leave it "
                "out, or set target: number"
            )
        if len(bounds) == 2 and not bounds["low"] < bounds["high"]:
            raise SettingsError(
                f"task.low is {self.low} and task.high {self.high}; low must be the smaller one"
            )
        return self
