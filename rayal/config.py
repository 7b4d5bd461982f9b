"""Settings of a run: read from YAML, checked once, frozen.

Every key is a field with bounds and a one-line description, from which ``example`` is written.
Hyperparameters of strategies and learners are the fields of their own classes: ``build`` checks
them and ``parameters`` lists them.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import annotated_types as bounds
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic import SerializerFunctionWrapHandler as Handler

from rayal.errors import SettingsError, nearest
from rayal.types import Seeds

T = TypeVar("T")
BASELINE = "random"  # the strategy every run holds and every other is compared with
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


def _key(default: Any, description: str, **limits: Any) -> Any:
    return Field(default=default, description=description, **limits)


class UnknownKeys(ValueError):
    """Keys that a section of the settings does not have."""


class Section(BaseModel):
    """A mapping of the settings; unknown keys are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        known = cls.model_fields
        if cls.model_config.get("extra") == "forbid" and isinstance(given, Mapping):
            unknown = [str(key) for key in given if key not in known]
            if unknown:
                raise UnknownKeys([(key, nearest(key, known)) for key in unknown])
        return given


class Named(Section):
    """A section that may be written as a name alone, and takes further keys where it is open."""

    name: Text

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def params(self) -> dict[str, Any]:
        """The further keys: hyperparameters, checked by ``build``."""
        return dict(self.model_extra or {})


class PoolSettings(Section):
    """Where the items come from."""

    source: Text = Field(description="builtin name, path, or name of a pool in the storage")
    subset: Count | None = _key(None, "items kept, drawn by the pool seed; null: all")
    data: Text | None = _key(None, "folder of the IDX files of a builtin source")
    id: Text | None = _key(None, "column of the ids; null: relative path or file:row")
    label: Text | None = _key(None, "column of the labels that are known")
    labels: Text | None = _key(None, "CSV or Parquet file with columns id and label")
    features: Texts | None = _key(None, "numeric columns of a table; null: all but id and label")
    test: Text | None = _key(None, "second path, whose items get the role test")
    test_share: float = _key(0.0, "share of items that become the test, by keyed hash", ge=0, lt=1)
    duplicates: Literal["keep", "first"] = _key("keep", "items of equal content: keep | first")
    missing: Literal["error", "quarantine"] = _key("error", "NaN or inf: error | quarantine")


class TaskSettings(Section):
    """What a row is and what is predicted."""

    kind: Literal["image", "table"] | None = _key(None, "image | table; null: by the pool")
    classes: Texts | None = _key(None, "class names in order; null: those of the known labels")
    size: tuple[Count, Count] | None = _key(None, "[H, W] to resize to; null: as it is")
    channels: Literal[1, 3] | None = _key(None, "1 | 3; null: as the pool has them")
    flip: bool | None = _key(None, "augment by mirroring; null: for 3 channels only")


class ModelSettings(Section):
    """The networks that are trained."""

    network: Text = _key("small_cnn", "registered network, or module:factory")
    params: dict[str, Any] = _key({}, "keyword arguments of the network's factory")
    members: Count = _key(1, "networks in the committee")
    threads_per_model: Count = _key(1, "torch threads; part of the model's hash")
    dtype: Literal["float32", "float64"] = _key("float32", "type of weights: float32 | float64")


class LearnerSettings(Named):
    """How one member is trained; further keys are the learner's hyperparameters."""

    model_config = ConfigDict(extra="allow")
    name: Text = _key("supervised", "registered learner")
    preset: Text | None = _key(None, "named recipe, which further keys override")


class StrategySettings(Named):
    """One strategy to compare; further keys are its hyperparameters."""

    model_config = ConfigDict(extra="allow")
    label: Text | None = _key(None, "name in curves and tables; null: the strategy's name")

    @property
    def shown(self) -> str:
        """The name in curves and tables."""
        return self.label or self.name


class InitialSettings(Section):
    """The labels of round 0."""

    strategy: Text = _key(BASELINE, "how the first items are chosen")
    count: Count = _key(100, "labels of round 0")
    balanced: bool = _key(False, "equally many of each class; needs known labels")


class OracleSettings(Named):
    """Who answers: the labels that the pool hides (a simulation), or people."""

    name: Literal["hidden", "none"] = _key("hidden", "hidden (a simulation) | none (people)")
    noise: float = _key(0.0, "share of answers with a wrong class", ge=0, le=1)
    cost: float = _key(1.0, "budget that one label costs", gt=0)


class ScanSettings(Section):
    """How the committee is run over the pool."""

    batch: Count = _key(64, "rows of a forward pass; the last one is padded to it")
    precision: Literal["fp32", "bf16"] = _key("fp32", "fp32 | bf16")
    channels_last: bool = _key(True, "memory layout of images")


class SeedSettings(Section):
    """The seeds of one repetition; an integer alone sets all three."""

    pool: Seed = Field(description="draws the subset and the initial labels")
    model: Seed = Field(description="draws weights, batches, augmentation and masks")
    query: Seed = Field(description="draws what a strategy draws")

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


class Settings(Section):
    """All settings of a run; read them with ``load``."""

    pool: PoolSettings = Field(description="where the items come from")
    task: TaskSettings = _key(TaskSettings(), "what a row is and what is predicted")
    model: ModelSettings = _key(ModelSettings(), "the networks that are trained")
    learner: LearnerSettings = _key(LearnerSettings(), "further keys: its hyperparameters")
    strategies: tuple[StrategySettings, ...] = _key(
        (), "names, or mappings of name, label and hyperparameters; random is always added"
    )
    initial: InitialSettings = _key(InitialSettings(), "the labels of round 0")
    rounds: int = _key(9, "batches asked for after the initial labels", ge=0)
    batch: Count = _key(100, "labels asked for in a round")
    seeds: tuple[SeedSettings, ...] = _key(
        (SeedSettings(pool=0, model=0, query=0),),
        "one repetition each: integers, or mappings of pool, model and query",
        min_length=1,
    )
    oracle: OracleSettings = _key(OracleSettings(), "who answers")
    executor: Literal["local"] = _key("local", "where the work runs: local")
    storage: Text = _key("runs", "folder of the ledger, pools, models and results")
    scan: ScanSettings = _key(ScanSettings(), "how the committee runs over the pool")
    keep: Literal["last", "all", "picks"] = _key("last", "scans on disk: last | all | picks")
    shards: Count = _key(1, "holders of the pool's columns; does not change the picks")

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
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file or a mapping.

    Args:
        source: path of the file, or the mapping that such a file holds.
        overrides: ``a.b=c``, in order; ``c`` is YAML, a number steps into a list.

    Raises:
        SettingsError: for a file that cannot be read, and for every key or value that is refused:
            one line each, with its path, what was given and what is allowed.
    """
    given = source if isinstance(source, Mapping) else _read(Path(source))
    raw = _copy(given, list)
    for text in overrides:
        _override(raw, text)
    try:
        return Settings.model_validate(_copy(raw, tuple))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error))) from None


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
    flow = yaml.dump({key: value}, Dumper=_Dumper, default_flow_style=True, width=10_000)
    return f"{flow.strip()[1:-1]}  # {description}"


# ---- YAML ----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Its counterpart, which quotes the text 1e-3."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"),
        list("-+.0123456789"),
    )


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{what}, line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{what}: not valid YAML: {error}") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(
            f"settings file {str(path)!r} cannot be read: {reason}; give the path of a YAML file"
        ) from None
    given = _parse(text, str(path))
    if not isinstance(given, Mapping):
        raise SettingsError(
            f"{path}: given {reprlib.repr(given)}, allowed: a mapping of settings such as "
            "`pool: {source: fashion-mnist}`"
        )
    return given


def _copy(value: Any, sequence: Callable[[Iterable[Any]], Any]) -> Any:
    """Copy JSON-like data, its lists and tuples as ``sequence``: settings hold tuples."""
    if isinstance(value, Mapping):
        return {key: _copy(item, sequence) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return sequence(_copy(item, sequence) for item in value)
    return value


def _override(raw: dict[str, Any], text: str) -> None:
    """Set one ``a.b=c`` in place; missing mappings are made, a name alone opens to a mapping."""
    path, equals, value = text.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        raise SettingsError(f"override {text!r}: allowed: key.key=value, such as batch=50")
    node: Any = raw
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        key = _place(node, step, text)
        if following is None:
            node[key] = _parse(value, f"override {text!r}")
            return
        inside = node[key] if isinstance(node, list) else node.get(key)
        if inside is None or isinstance(inside, str):
            inside = node[key] = {} if inside is None else {"name": inside}
        node = inside


def _place(node: Any, step: str, text: str) -> Any:
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SettingsError(f"override {text!r}: {step!r} would stand inside {node!r}, no mapping")
    if not step.isdecimal() or int(step) >= len(node):
        raise SettingsError(
            f"override {text!r}: given {step!r}, allowed: 0 to {len(node) - 1}, places in the list"
        )
    return int(step)


# ---- errors and hyperparameters ------------------------------------------------------------------


def _explain(error: ValidationError, where: str = "") -> list[str]:
    """Return one line per error: path, what was given, what is allowed."""
    lines: list[str] = []
    for e in error.errors(include_url=False):
        path = ".".join([where] * bool(where) + [str(step) for step in e["loc"]])
        given, ctx = e.get("input"), e.get("ctx", {})
        cause = ctx.get("error")
        if isinstance(cause, UnknownKeys):
            front = f"{path}." if path else ""
            lines += [f"{front}{key}: unknown key; {hint}" for key, hint in cause.args[0]]
        elif cause is not None:
            lines.append(f"{path}: {cause}" if path else str(cause))
        elif e["type"] == "missing":
            lines.append(f"{path}: missing, and there is no default")
        elif e["type"] != "too_short":
            lines.append(f"{path}: given {reprlib.repr(given)}, allowed: {_allowed(e['msg'])}")
        elif len(given) < ctx["min_length"]:  # else its entries were refused, each with its line
            lines.append(f"{path}: {len(given)} entries given, at least {ctx['min_length']} needed")
    return lines


def _allowed(message: str) -> str:
    text = message.removeprefix("Input should be ")
    text = re.sub(r"a valid dictionary.*|an object$", "a mapping", text)
    return text.replace("a valid tuple", "a list").replace("a valid string", "text (quote it)")


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """A hyperparameter of a strategy or learner.

    Attributes:
        name: the key in the settings.
        type: its type as text, such as ``int`` or ``'adam' | 'sgd'``.
        default: its default, or ``dataclasses.MISSING``.
        bounds: such as ``("≥ 2",)``.
    """

    name: str
    type: str
    default: Any
    bounds: tuple[str, ...]


_BOUNDS: dict[type, tuple[str, str]] = {
    bounds.Gt: ("gt", ">"),
    bounds.Ge: ("ge", "≥"),
    bounds.Lt: ("lt", "<"),
    bounds.Le: ("le", "≤"),
    bounds.MultipleOf: ("multiple_of", "multiple of"),
    bounds.MinLen: ("min_length", "length ≥"),
    bounds.MaxLen: ("max_length", "length ≤"),
}


def parameters(cls: type) -> list[ParameterInfo]:
    """List the hyperparameters of a frozen dataclass; parts that are dataclasses are left out."""
    rows = []
    for field, annotation in _fields(cls):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        parts = [annotation, *get_args(annotation), default]
        if not any(dataclasses.is_dataclass(part) for part in parts):
            rows.append(ParameterInfo(field.name, _text(annotation), default, _limits(annotation)))
    return rows


def build(cls: type[T], params: Mapping[str, Any], where: str) -> T:
    """Make a frozen dataclass (a strategy, a learner) from settings.

    Args:
        cls: the dataclass; bounds of its ``Annotated`` fields hold.
        params: field name to value; nothing is coerced, lists become tuples.
        where: the place in the settings, for messages.

    Raises:
        SettingsError: for unknown and missing fields and for values of the wrong type or size.
    """
    known = {field.name: (field, annotation) for field, annotation in _fields(cls)}
    lines = [
        f"{where}.{name}: {cls.__name__} has no such parameter; {nearest(name, known)}"
        for name in map(str, params)
        if name not in known
    ]
    values = {}
    for name, (field, annotation) in known.items():
        if name in params:
            try:
                values[name] = TypeAdapter(annotation).validate_python(
                    _copy(params[name], tuple), strict=True
                )
            except ValidationError as error:
                lines += _explain(error, f"{where}.{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            lines.append(f"{where}.{name}: missing, and there is no default")
    if lines:
        raise SettingsError("\n".join(lines))
    return cls(**values)


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields that ``__init__`` takes, with their annotations; no ClassVar is one."""
    hints = get_type_hints(cls, include_extras=True)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls) if f.init]


def _text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _text(args[0])
    if origin in (UnionType, Union):
        return " | ".join(map(_text, args))
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin is not None:
        return f"{origin.__name__}[{', '.join('…' if a is ... else _text(a) for a in args)}]"
    return "null" if annotation is NoneType else str(getattr(annotation, "__name__", annotation))


def _limits(annotation: Any) -> tuple[str, ...]:
    """Return the bounds that stand anywhere in an annotation, as text."""
    parts = get_args(annotation)
    if get_origin(annotation) is not Annotated:
        return tuple(limit for part in parts for limit in _limits(part))
    inside, *metadata = parts
    flat = [m for g in metadata for m in (g if isinstance(g, bounds.GroupedMetadata) else [g])]
    known = [(m, *_BOUNDS[type(m)]) for m in flat if type(m) in _BOUNDS]
    return _limits(inside) + tuple(f"{sign} {getattr(m, name)}" for m, name, sign in known)
