"""The base of tasks: decoding, normalising and augmenting a row, and the kind of prediction."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.special import ndtri
from torch import Tensor

from rayal.errors import LabelError, NeedsError, PoolError, ScoreError, nearest
from rayal.labels import ClassLabel, Label, Labels
from rayal.tasks.vocabulary import Vocabulary
from rayal.types import Keys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keyed_uniforms(keys: Keys, count: int, *salt: int | str) -> npt.NDArray[np.float64]:
    """Return uniforms in (0, 1), float64 ``[N, count]``: row n depends on key n and the salt only.

    Each row is a stream of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), whose state begins at
    the mixed key.

    Args:
        keys: uint64 ``[N]``.
        count: draws per row.
        salt: mark that separates this use from others, such as ("crop", seed, view).
    """
    text = "/".join(map(str, salt)).encode()
    salted = np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), "<u8").astype(np.uint64)
    state = _mix(np.asarray(keys, np.uint64) ^ salted)[:, None]  # [N, 1]
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN  # [count]
    bits = _mix(state + steps) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def keyed_normals(keys: Keys, count: int, *salt: int | str) -> npt.NDArray[np.float64]:
    """Return standard normal draws, float64 ``[N, count]``, from ``keyed_uniforms``.

    SciPy's inverse is computed element by element, so its bits do not depend on the position.
    """
    normals: npt.NDArray[np.float64] = ndtri(keyed_uniforms(keys, count, *salt))
    return normals


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


ECE_BINS = 15


def classification_metrics(log_probs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return accuracy, nll and ece of predictions; sums run in float64.

    The expected calibration error has 15 bins of equal width, each open below and closed above
    (Guo, Pleiss, Sun & Weinberger, ICML 2017, equation 3).

    Args:
        log_probs: ``[N, C]``.
        targets: int64 ``[N]``.

    Raises:
        ScoreError: there are no rows.
    """
    _check_rows(targets)
    logs = log_probs.double()
    best, predicted = logs.max(dim=1)
    hits = (predicted == targets).double()
    nll = -logs.gather(1, targets[:, None]).mean()
    return {
        "accuracy": hits.mean().item(),
        "nll": nll.item(),
        "ece": _calibration_error(best.exp(), hits),
    }


def regression_metrics(moments: Tensor, targets: Tensor) -> dict[str, float]:
    """Return rmse, in units of the target, and nll, in nats, of Gaussian predictions, in float64.

    Args:
        moments: mean, model variance and noise variance, ``[N, 3]``; the density's variance is the
            sum of both.
        targets: ``[N]``.

    Raises:
        ScoreError: there are no rows, or a variance is not positive.
    """
    _check_rows(targets)
    mean, variance, noise = moments.double().unbind(dim=1)
    total, errors = variance + noise, (targets.double() - mean).square()
    if not (total > 0).all():
        raise ScoreError(
            f"row {int((~(total > 0)).nonzero()[0, 0])} of the predictions has no positive "
            "variance; a learner of numbers gives the noise a variance"
        )
    nll = 0.5 * ((2.0 * math.pi * total).log() + errors / total)
    return {"rmse": errors.mean().sqrt().item(), "nll": nll.mean().item()}


def _check_rows(targets: Tensor) -> None:
    if len(targets) == 0:
        raise ScoreError("metrics of 0 rows are not defined; give the pool items of the role test")


def _calibration_error(confidence: Tensor, hits: Tensor) -> float:
    """Return the mean over rows of |hits - confidence| averaged within bins, both ``[N]``."""
    places = ((confidence * ECE_BINS).ceil().long() - 1).clamp(0, ECE_BINS - 1)
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, places, hits - confidence)
    return gaps.abs().sum().item() / len(hits)


@dataclass(frozen=True)
class Task(ABC):
    """Base of the tasks that predict one class, or one number, of each row.

    A network's output is then ``[N, C]`` logits; or the moments ``[N, 3]`` of the standardised
    number: its mean, the variance of the model about it, and the variance of the noise.

    Args:
        labels: the classes, in the order of the logits; or a number with its bounds.
    """

    kind: ClassVar[str]
    #: the pool's column that is the transformed input as it stands, where there is one
    column: ClassVar[str | None] = None
    #: whether rows have augmented views
    has_views: ClassVar[bool] = True
    labels: Labels

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one decoded row."""

    @property
    def n_outputs(self) -> int:
        """Columns of the last layer's output: classes C, or 1 for a number."""
        return len(self.classes) if self.target == "class" else 1

    @property
    def target(self) -> str:
        """The kind of prediction: class | number."""
        return self.labels.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; none for a task of numbers."""
        return self.labels.classes if isinstance(self.labels, ClassLabel) else ()

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokeniser, where rows are token ids."""
        return None

    @abstractmethod
    def decode(self, rows: pa.Table) -> Tensor:
        """Return raw model input of pool rows, float32 ``[N, *input_shape]``.

        Raises:
            PoolError: a row cannot be decoded; the message names its id.
        """

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        """Return the constants of the eval transform, from the labeled rows alone.

        They are mean and population standard deviation, float32, per feature or per channel; the
        deviation of what does not vary (beyond rounding) is 1.

        Args:
            x: raw input of the labeled rows, ``[N, *input_shape]``.

        Raises:
            NeedsError: there are no rows.
        """
        if len(x) == 0:
            raise NeedsError("statistics of 0 labeled rows are not defined; label some items first")
        mean, deviation = _mean_and_deviation(x)
        return {"mean": mean.float(), "std": deviation.float()}

    def fit_targets(self, targets: Tensor) -> dict[str, Tensor]:
        """Return the constants by which numbers are standardised; none for classes.

        They are ``target_mean`` and ``target_std`` of the labeled rows alone, float64 ``[]``; the
        deviation of what does not vary is 1.

        Args:
            targets: targets of the labeled rows, ``[N]``, N ≥ 1.
        """
        if self.target == "class":
            return {}
        mean, deviation = _mean_and_deviation(targets[:, None])
        return {"target_mean": mean[0], "target_std": deviation[0]}

    def standardised(self, targets: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return targets ``[N]`` as they are trained on: classes as they are, numbers scaled."""
        if self.target == "class":
            return targets
        mean, deviation = (statistics[n].to(targets) for n in ("target_mean", "target_std"))
        return (targets - mean) / deviation

    def moments(self, answers: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return mean, model and noise variance in units of the number, float64 ``[N, 3]``.

        Args:
            answers: output of a network, in units of the standardised number, ``[N, 3]``.
            statistics: statistics with the constants of ``fit_targets``.
        """
        moments = answers.double()
        mean, deviation = (statistics[n].to(moments) for n in ("target_mean", "target_std"))
        scale = torch.stack([deviation, deviation.square(), deviation.square()])  # [3]
        shift = torch.stack([mean, torch.zeros_like(mean), torch.zeros_like(mean)])
        return moments * scale + shift

    def transform(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return (x - mean) / std, the eval transform of raw input ``[N, *input_shape]``."""
        shape = (-1, *(1 for _ in x.shape[2:]))
        mean, deviation = (statistics[n].to(x).reshape(shape) for n in ("mean", "std"))
        return (x - mean).div_(deviation)

    @abstractmethod
    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a weakly augmented copy of transformed rows, each with draws of its own.

        Args:
            x: what ``transform`` gave, ``[N, *input_shape]``.
            generator: a CPU generator.
        """

    @abstractmethod
    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Return ``x`` augmented as by ``augment``, with draws from (seed, view, id key).

        So a row's view has the same bits in any batch and at any position.

        Args:
            x: what ``transform`` gave, ``[N, *input_shape]``.
            keys: uint64 ``[N]``.
            seed: the model seed.
            view: the view's index.
        """

    def targets(self, labels: Sequence[Label]) -> Tensor:
        """Return the columns of class names, int64 ``[N]``; numbers as they are, float64 ``[N]``.

        Raises:
            LabelError: a name is not among the classes, or a number not within its bounds.
        """
        if self.target == "number":
            numbers = [self.labels.check(label, f"row {row}") for row, label in enumerate(labels)]
            return torch.tensor(numbers, dtype=torch.float64)
        column = {name: i for i, name in enumerate(self.classes)}
        unknown = next((label for label in labels if label not in column), None)
        if unknown is not None:
            raise LabelError(
                f"label {unknown!r} is not among the {len(column)} classes; "
                f"{nearest(str(unknown), column)}"
            )
        return torch.tensor([column[label] for label in labels], dtype=torch.int64)

    def metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics of predictions; the first one is the metric that curves show.

        Args:
            predictions: log-probabilities ``[N, C]``: accuracy, nll (nats) and ece (15 bins); or
                moments ``[N, 3]`` in units of the number: rmse in these units, and nll of the
                density (nats).
            targets: ``[N]``, as ``targets`` gives them.
        """
        measure = classification_metrics if self.target == "class" else regression_metrics
        return measure(predictions, targets)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the kind and all settings as JSON; ``task_from_json`` reads it."""

    @classmethod
    @abstractmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Task:
        """Return the task that ``to_json`` described."""


class FixedTask(Task):
    """A task whose rows go to the network as they are: not standardised, without views."""

    has_views: ClassVar[bool] = False
    #: what a learner or strategy that asks for augmented views is told
    no_views: ClassVar[str]

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        """Return no constants: the transform is the identity.

        Raises:
            NeedsError: there are no rows.
        """
        super().fit(x[:1])
        return {}

    def transform(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the rows as they are."""
        return x

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Raise NeedsError: there are no augmented views."""
        raise NeedsError(self.no_views)

    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Raise NeedsError: there are no augmented views."""
        raise NeedsError(self.no_views)


def _mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population deviation of dimension 1, float64; 1 for what does not vary."""
    values = x.double()
    over = [d for d in range(x.ndim) if d != 1]
    mean, deviation = values.mean(dim=over), values.std(dim=over, correction=0)
    varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
    return mean, torch.where(varies, deviation, torch.ones_like(deviation))


def column_of(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column of pool rows, or raise PoolError where it is missing or has nulls."""
    if name not in rows.column_names:
        raise PoolError(
            f"rows have no column {name!r}, they have {rows.column_names}; the pool does not fit "
            "the task, ingest it again"
        )
    column = rows.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise PoolError(f"column {name!r} of {item_of(rows, row)} is null; ingest the pool again")
    return column


def item_of(rows: pa.Table, row: int) -> str:
    """Return the name of a row in error messages."""
    named = "id" in rows.column_names
    return f"item {rows.column('id')[row].as_py()!r}" if named else f"row {row}"
