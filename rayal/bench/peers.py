"""Other packages for active learning, where they are installed; never required."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MODULES = {
    "bmdal-reg": "bmdal_reg.bmdal.selection",
    "baal": "baal.modelwrapper",
    "batchbald_redux": "batchbald_redux.batchbald",
}
_PACKAGES = {"bmdal-reg": "bmdal-reg", "baal": "baal", "batchbald_redux": "batchbald-redux"}


def missing(peer: str) -> str:
    """Return why a peer cannot run here, with the line that mends it; empty if it can."""
    package = _PACKAGES[peer]
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{peer} is not installed: pip install {package}"
    try:
        _module(_MODULES[peer])
    except Exception as error:  # whatever another package does at import
        return f"{peer} does not import ({type(error).__name__}: {error}): pip install -U {package}"
    return ""


def versions() -> dict[str, str | None]:
    """Return the installed versions of the peers, None of those that are absent."""
    installed: dict[str, str | None] = {}
    for package in _PACKAGES.values():
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def _module(name: str) -> Any:
    os.environ.setdefault("TQDM_DISABLE", "1")  # their bars would stand between our lines
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a peer's warnings and lines off the terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def bmdal(factors: Sequence[Tensor], kind: str, k: int) -> Callable[[], Any]:
    """Return a selection by bmdal-reg over rows whose outer product of factors is the feature.

    Args:
        factors: float32 ``[N, …]``, one or two.
        kind: MaxDist (its first centre has the largest norm) or Kmeanspp.
        k: picks.
    """
    selection = _module(_MODULES["bmdal-reg"])
    selection.np = _numpy_with_inf()  # the released package asks NumPy 2 for np.Inf
    maps = [selection.IdentityFeatureMap(f.shape[1]) for f in factors]
    features = [selection.TensorFeatureData(f) for f in factors]
    if len(factors) == 1:
        feature_map, data = maps[0], features[0]
    else:
        feature_map = selection.ProductFeatureMap(maps)
        data = selection.ListFeatureData(features)
    method = {
        "MaxDist": selection.MaxDistSelectionMethod,
        "Kmeanspp": selection.KmeansppSelectionMethod,
    }[kind]

    features = selection.Features(feature_map, data).precompute()  # not timed

    def run() -> Any:
        chosen = method(features, features[:1], sel_with_train=False, verbosity=0).select(k)
        return chosen.numpy()

    return run


def _numpy_with_inf() -> ModuleType:
    copy = ModuleType("numpy")
    copy.__dict__.update(np.__dict__)
    copy.__dict__["Inf"] = np.inf
    return copy


def redux(log_probs: Tensor, k: int, draws: int) -> Callable[[], Any]:
    """Return BatchBALD by batchbald_redux on member log-probabilities ``[N, S, C]``, float64."""
    module = _module(_MODULES["batchbald_redux"])

    def run() -> Any:
        with quiet():
            batch = module.get_batchbald_batch(log_probs, k, draws, torch.double, "cpu")
        return np.array(batch.indices, dtype=np.int64)

    return run


def redux_bald(log_probs: Tensor) -> Callable[[], Any]:
    """Return BALD by batchbald_redux on ``[N, S, C]``."""
    module = _module(_MODULES["batchbald_redux"])

    def run() -> Any:
        with quiet():
            total = module.compute_entropy(log_probs)
            return total - module.compute_conditional_entropy(log_probs)

    return run


def redux_entropy(log_probs: Tensor) -> Callable[[], Any]:
    """Return the entropy of the mean by batchbald_redux on ``[N, S, C]``."""
    module = _module(_MODULES["batchbald_redux"])

    def run() -> Any:
        with quiet():
            return module.compute_entropy(log_probs)

    return run


def baal_score(heuristic: str, probs: Any) -> Callable[[], Any]:
    """Return a heuristic of baal on probabilities ``[N, C]`` or ``[N, C, S]``, as a NumPy array."""
    scorer = getattr(_module("baal.active.heuristics"), heuristic)()

    def run() -> Any:
        return scorer.compute_score(probs)

    return run


def baal_predict(
    net: nn.Module, x: Tensor, *, passes: int = 1, batch: int = 64
) -> Callable[[], Any]:
    """Return baal's prediction of images ``[N, …]``: probabilities by ``[N, C, passes]``.

    Args:
        net: a network that gives logits; with ``passes`` above 1 its dropout is switched on.
        x: normalised images.
        passes: stochastic passes; baal replicates the batch that often.
        batch: images at once.
    """
    wrapper = _module(_MODULES["baal"])
    dropout = _module("baal.bayesian.dropout")
    with quiet():
        model = dropout.patch_module(net, inplace=False) if passes > 1 else net
        args = wrapper.TrainingArgs(batch_size=batch, use_cuda=False, workers=0)
        wrapped = wrapper.ModelWrapper(model, args)
        dataset = torch.utils.data.TensorDataset(x)

    def run() -> Any:
        with quiet():
            return wrapped.predict_on_dataset(dataset, iterations=passes, verbose=False)

    return run
