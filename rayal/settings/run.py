"""Settings of a run: read from YAML, checked once, frozen.

Every key is a field with bounds and a one-line description, from which ``example`` is written.
Hyperparameters of strategies and learners are the fields of their own classes; see
``rayal.settings.parameters``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import yaml
from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic import SerializerFunctionWrapHandler as Handler

from rayal.errors import SettingsError
from rayal.settings.parameters import explain
from rayal.settings.sections import Count, Named, Section, Seed, Share, Text, Texts, key
from rayal.settings.yamlfile import Dumper, copied, override, read_mapping
from rayal.types import Seeds


class ScanSettings(Section):
    """The scan of the committee over the pool."""

    batch: Count = key(64, "Rows of one forward pass; the last pass is padded to it.")
    precision: Literal["fp32", "bf16"] = key(
        "fp32", "Number format of the forward passes: fp32 or bf16."
    )
    device: Literal["cpu", "cuda"] = key("cpu", "Where networks train and run: cpu or cuda.")
    compile: bool = key(
        False, "Compile each committee's networks: that takes seconds, then scans run faster."
    )


class SelectionSettings(Section):
    """The storage of the columns that a joint choice compares."""

    precision: Literal["fp32", "bf16"] = key(
        "fp32", "Number format of embeddings on disk and in shards: fp32 or bf16."
    )
    device: Literal["cpu", "cuda"] = key("cpu", "Where shards compute: cpu or cuda.")


class RaySettings(Section):
    """The use of a cluster by ``executor: ray``."""

    address: Text = key("local", "The cluster: local (one for this run), auto, or HOST:PORT.")
    cpus: Count | None = key(None, "Cores of a local cluster; null: all.")
    member_cpus: Share | None = key(
        None, "Cores of one member in training; null: model.threads_per_model."
    )
    member_gpus: float = key(0.0, "GPUs of one member in training; with 0.25 four share one.", ge=0)
    scanner_cpus: Share | None = key(
        None, "Cores of one scanning worker; null: model.threads_per_model."
    )
    scanner_gpus: float = key(0.0, "GPUs of one scanning worker.", ge=0)
    staged: bool | None = key(
        None, "Decode rows in workers apart from the network; null: where a GPU scans."
    )
    restarts: int = key(3, "How often the worker of one part, member or shard may be lost.", ge=0)
    stall: float = key(1800.0, "Seconds without any progress after which the run ends.", gt=0)


class PoolSettings(Section):
    """The source of the items."""

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
    """The type of the rows and of the prediction."""

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


BASELINE = "random"  # the strategy every run holds and every other is compared with
_ENCODER = "minilm"  # the network, or backbone, that reads the tokens of its own tokenizer.json


class ModelSettings(Section):
    """The networks that are trained."""

    network: Text | None = key(
        None, "Registered, or module:factory; null: small_cnn, kim_cnn or mlp, by task.kind."
    )
    params: dict[str, Any] = key({}, "Arguments of the network's or backbone's factory.")
    backbone: Text | None = key(
        None, "efficientnet_lite0, torchvision:NAME, timm:NAME, minilm or module:factory."
    )
    weights: Text | None = key(None, "Local file of the backbone's weights, or random.")
    frozen: bool = key(False, "Embed the pool once with the backbone, and train a head.")
    head: Literal["linear", "mlp"] | None = key(
        None, "The head on a backbone: linear or mlp; null: linear."
    )
    members: Count = key(1, "Networks in the committee.")
    quorum: Count | None = key(None, "Members that suffice where workers are lost; null: all.")
    threads_per_model: Count = key(1, "Torch threads of one network; part of its hash.")

    @model_validator(mode="after")
    def _fits(self) -> ModelSettings:
        if self.backbone is None:
            for name in ("weights", "frozen", "head"):
                if getattr(self, name):
                    raise SettingsError(
                        f"model.{name} is {getattr(self, name)!r} without a backbone; name one: "
                        "model: {backbone: efficientnet_lite0, …}, or leave it out"
                    )
        elif self.network is not None:
            raise SettingsError(
                f"model.network {self.network!r} and model.backbone {self.backbone!r} are both "
                "given; a backbone is answered by a head: leave network out, and set head"
            )
        elif not self.frozen:
            raise SettingsError(
                "model.backbone trains a head on fixed embeddings, and its own weights are not "
                "fine-tuned; set model.frozen to true, or train a network: to fine-tune minilm, "
                "model: {network: minilm, params: {weights: FILE}}"
            )
        elif self.weights is None:
            raise SettingsError(
                "model.weights is missing; give the file of the backbone's weights, or say "
                "`weights: random`: nothing is downloaded"
            )
        return self

    @property
    def tokenizer(self) -> str | None:
        """The ``tokenizer.json`` beside a sentence encoder's published weights, if it has them.

        An encoder, frozen or trained on, reads the token ids of its own tokeniser.
        """
        weights: str | None = None
        if self.backbone == _ENCODER:
            weights = self.weights
        elif self.network == _ENCODER and self.params.get("weights", "random") != "random":
            weights = str(self.params["weights"])
        return None if weights is None else str(Path(weights).with_name("tokenizer.json"))


class LearnerSettings(Named):
    """The training of one member; further keys are the learner's hyperparameters."""

    model_config = ConfigDict(extra="allow")
    name: Text = key("supervised", "Registered learner.")
    preset: Text | None = key(None, "Named recipe, which further keys override.")


class StrategySettings(Named):
    """One strategy to compare; further keys are its hyperparameters."""

    model_config = ConfigDict(extra="allow")
    name: Text = Field(description="Registered strategy.")
    label: Text | None = key(None, "Name in curves and tables; null: the strategy's name.")

    @property
    def shown(self) -> str:
        """The name in curves and tables."""
        return self.label or self.name


class InitialSettings(Section):
    """The labels of round 0."""

    strategy: Text = key(BASELINE, "Registered strategy that chooses the first items.")
    count: Count = key(100, "Labels of round 0.")
    balanced: bool = key(False, "Equally many items of each class, which needs known labels.")


class OracleSettings(Named):
    """The source of answers: labels that the pool hides (a simulation), or people."""

    name: Literal["hidden", "none"] = key(
        "hidden", "Known labels answer (hidden: a simulation), or people (none)."
    )
    noise: float | Literal["confidence"] = key(
        0.0, "Share of answers that are wrong, or confidence: by each label's own."
    )
    cost: float = key(1.0, "Budget that one label costs.", gt=0)

    @field_validator("noise", mode="plain")
    @classmethod
    def _share(cls, given: Any) -> float | str:
        if given == "confidence":
            return "confidence"
        if type(given) in (int, float) and 0 <= given <= 1:
            return float(given)
        raise SettingsError(f"given {given!r}, allowed: a share from 0 to 1, or confidence")


class SeedSettings(Section):
    """The seeds of one repetition; an integer alone sets all three."""

    pool: Seed = Field(description="Draws the subset and the initial labels.")
    model: Seed = Field(description="Draws weights, batches, augmentation and dropout masks.")
    query: Seed = Field(description="Draws what a strategy draws.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return dict.fromkeys(cls.model_fields, given) if type(given) is int else given

    @model_serializer(mode="wrap")
    def _short_form(self, dump: Handler) -> Any:
        return self.pool if self.pool == self.model == self.query else dump(self)

    def seeds(self) -> Seeds:
        """Return the value that cells carry."""
        return Seeds(pool=self.pool, model=self.model, query=self.query)


class Cell(NamedTuple):
    """One curve of a run: a strategy with a seed."""

    label: str
    name: str
    params: dict[str, Any]
    seeds: Seeds


class ProjectSettings(Protocol):
    """The settings of which a project's spec is made: those of a run, or of a client's request."""

    @property
    def model(self) -> ModelSettings:
        """The networks that are trained."""

    @property
    def learner(self) -> LearnerSettings:
        """The training of one network."""

    @property
    def initial(self) -> InitialSettings:
        """The labels of round 0."""

    @property
    def batch(self) -> int:
        """Labels asked for in a round."""

    @property
    def rounds(self) -> int | None:
        """Batches asked for after the initial labels."""

    @property
    def scan(self) -> ScanSettings:
        """The scan of the committee over the pool."""

    @property
    def selection(self) -> SelectionSettings:
        """The storage of columns for joint choices."""

    @property
    def keep(self) -> str:
        """Columns and checkpoints that stay."""

    @property
    def shards(self) -> int:
        """Holders of the columns in one process."""

    def task_options(self) -> dict[str, Any]:
        """Return the keys of the task that are set."""


class Settings(Section):
    """All settings of a run; read them with ``load``."""

    pool: PoolSettings = Field(description="Where the items come from.")
    task: TaskSettings = key(TaskSettings(), "What a row is, and what is predicted.")
    model: ModelSettings = key(ModelSettings(), "The networks that are trained.")
    learner: LearnerSettings = key(
        LearnerSettings(), "How one network is trained; further keys are its hyperparameters."
    )
    strategies: tuple[StrategySettings, ...] = key(
        (), "Names, or mappings of name, label and hyperparameters; random is always added."
    )
    initial: InitialSettings = key(InitialSettings(), "The labels of round 0.")
    rounds: int = key(9, "Batches asked for after the initial labels.", ge=0)
    batch: Count = key(100, "Labels asked for in a round.")
    seeds: tuple[SeedSettings, ...] = key(
        (SeedSettings(pool=0, model=0, query=0),),
        "One repetition each: integers, or mappings of pool, model and query.",
        min_length=1,
    )
    oracle: OracleSettings = key(OracleSettings(), "Who answers.")
    executor: Literal["local", "ray", "auto"] = key(
        "local", "This process (local), a cluster (ray), or the faster one (auto)."
    )
    ray: RaySettings = key(RaySettings(), "How the executor ray uses a cluster.")
    storage: Text = key("runs", "Folder of the ledger, pools, models and results.")
    scan: ScanSettings = key(ScanSettings(), "How the committee runs over the pool.")
    selection: SelectionSettings = key(SelectionSettings(), "How joint choices hold columns.")
    keep: Literal["last", "all", "picks"] = key(
        "last", "Columns and checkpoints that stay: the last round's, all, or no columns (picks)."
    )
    plan: bool = key(True, "Refuse what would not fit the memory, before it starts.")
    shards: Count = key(1, "Holders of the columns in one process; on Ray, its workers count.")

    @model_validator(mode="after")
    def _distinct(self) -> Settings:
        for s in self.strategies:
            if (s.name == BASELINE) != (s.shown == BASELINE):
                raise SettingsError(
                    f"strategies: {s.name!r} is labeled {s.shown!r}; the label {BASELINE!r} "
                    f"belongs to the baseline {BASELINE!r} and to nothing else: change the label"
                )
        for label, n in Counter(s.shown for s in self.strategies).items():
            if n > 1:
                raise SettingsError(
                    f"strategies: {label!r} stands {n} times; give each a label of its own, "
                    f"such as {{name: …, label: {label}-2}}"
                )
        for seeds, n in Counter(s.seeds() for s in self.seeds).items():
            if n > 1:
                raise SettingsError(f"seeds: {seeds} stands {n} times; repetitions must differ")
        return self

    def task_options(self) -> dict[str, Any]:
        """Return the keys of the task that are set, and the tokeniser that its network reads."""
        options = self.task.model_dump(exclude_none=True)
        if self.model.tokenizer is not None:
            options.setdefault("tokenizer", self.model.tokenizer)
        return options

    def cells(self) -> list[Cell]:
        """Return the curves to run, seed by seed; a baseline that is not listed comes first."""
        named = [(s.shown, s.name, s.params) for s in self.strategies]
        if BASELINE not in (name for _, name, _ in named):
            named.insert(0, (BASELINE, BASELINE, {}))
        return [
            Cell(label, name, dict(params), seed.seeds())
            for seed in self.seeds
            for label, name, params in named
        ]

    def to_yaml(self) -> str:
        """Return the settings with every default written out; ``load`` gives an equal object."""
        return yaml.dump(self.model_dump(), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file or a mapping.

    Args:
        source: path of the file, or the mapping that such a file holds.
        overrides: ``a.b=c``, in order; ``c`` is YAML, a number steps into a list.

    Raises:
        SettingsError: for a file that cannot be read, and for every key or value that is refused:
            one line each, with its path, what was given and what is allowed.
    """
    written = source if isinstance(source, Mapping) else read_mapping(Path(source))
    raw = copied(written, list)
    for text in overrides:
        override(raw, text)
    try:
        return Settings.model_validate(copied(raw, tuple))
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error))) from None


def example() -> str:
    """Return the YAML of a small comparison, each key with its description as a comment."""
    settings = load(_EXAMPLE)
    lines = ["# every key but pool.source has a default"]
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            lines.append(f"{name}:  # {field.description}")
            for key, sub in type(value).model_fields.items():
                lines.append("  " + _line(key, getattr(value, key), sub.description))
        else:
            lines.append(_line(name, settings.model_dump()[name], field.description))
    return "\n".join(lines) + "\n"


_EXAMPLE: dict[str, Any] = {
    "pool": {"source": "fashion-mnist", "subset": 20000},
    "task": {"kind": "image"},
    "strategies": ["margin", {"name": "badge"}, {"name": "bald", "passes": 20}],
    "seeds": [0, 1, 2],
    "storage": "runs/fashion",
}


def _line(key: str, value: Any, description: str | None) -> str:
    if key == "strategies":
        value = [{k: v for k, v in row.items() if v is not None} for row in value]
    flow = yaml.dump({key: value}, Dumper=Dumper, default_flow_style=True, width=10_000)
    return f"{flow.strip()[1:-1]}  # {description}"
