"""Settings of what goes into a run: the pool, and what its rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayal.errors import SettingsError
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
    categorical: Texts | None = key(
        None, "columns of text, bool or whole numbers, each value of which is a feature of 0 and 1"
    )
    categories: dict[str, Texts] | None = key(
        None, "column: its values; null: those of the source. Another one counts as missing"
    )
    text: Text | None = key(None, "column of texts of a table, which are then the items")
    confidence: Text | None = key(None, "column of how sure annotators were of the labels, [0, 1]")
    test: Text | None = key(None, "second path, whose items get the role test")
    test_share: float = key(0.0, "share of items that become the test, by keyed hash", ge=0, lt=1)
    test_by_seed: bool = key(False, "draw test_share anew for each pool seed; false: for all alike")
    duplicates: Literal["keep", "first"] = key("keep", "items of equal content: keep | first")
    missing: Literal["error", "quarantine"] = key("error", "NaN, inf, no text: error | quarantine")


class TaskSettings(Section):
    """What a row is and what is predicted."""

    kind: Literal["image", "table", "text"] | None = key(
        None, "image | table | text; null: by the pool"
    )
    target: Literal["class", "number"] | None = key(
        None, "what is predicted: class | number; null: number where known labels are, else class"
    )
    classes: Texts | None = key(None, "class names in order; null: those of the known labels")
    low: float | None = key(None, "smallest number that a label may be; null: any")
    high: float | None = key(None, "largest number that a label may be; null: any")
    size: tuple[Count, Count] | None = key(None, "[H, W] to resize to; null: as it is")
    channels: Literal[1, 3] | None = key(None, "1 | 3; null: as the pool has them")
    flip: bool | None = key(None, "augment by mirroring; null: for 3 channels only")
    length: Count | None = key(None, "tokens of a text, longer ones are cut; null: 64")
    vocabulary: Count | None = key(None, "tokens of a trained tokeniser at most; null: 8000")
    tokenizer: Text | None = key(
        None, "wordpiece | bpe (trained on the pool), or path of a tokenizer.json; null: wordpiece"
    )
    lowercase: bool | None = key(None, "of a trained tokeniser; null: true")

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
