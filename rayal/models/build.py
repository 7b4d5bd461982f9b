"""From a network's name and parameters, as settings give them, to the network."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from rayal.errors import SettingsError, UnknownNameError, nearest
from rayal.models.base import HookedNet, TaskNet
from rayal.models.image import torchvision_factory
from rayal.models.text import VocabularyLike
from rayal.registry import networks

_GIVEN = ("input_shape", "n_outputs", "vocabulary")


def build_network(
    name: str,
    params: Mapping[str, Any],
    *,
    input_shape: tuple[int, ...],
    n_outputs: int,
    seed: int,
    vocabulary: VocabularyLike | None = None,
) -> TaskNet:
    """Return a freshly initialised network, the same bits for the same seed.

    Args:
        name: a registered network, ``torchvision:NAME``, or ``module:factory`` of your own.
        params: keyword arguments of its factory; lists are taken for tuples.
        input_shape: shape of one row.
        n_outputs: columns of the logits.
        seed: seed of the initial weights; the state of torch's generator is left as it was.
        vocabulary: the tokeniser, where rows are token ids.

    Raises:
        UnknownNameError: there is no such network.
        SettingsError: a parameter that the factory does not take, or of a wrong type or size; or
            a network that does not fit rows or classes.
    """
    factory = find_factory(name)
    arguments = checked_parameters(name, factory, params)
    if _reads_texts(name, factory, vocabulary, input_shape):
        arguments["vocabulary"] = vocabulary
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = factory(tuple(input_shape), n_outputs, **arguments)
        if not isinstance(net, nn.Module):
            raise SettingsError(
                f"network {name!r}: the factory returned a {type(net).__name__}, it must return "
                "an nn.Module"
            )
        net = net if isinstance(net, TaskNet) else HookedNet(net, tuple(input_shape))
    if net.n_outputs != n_outputs:
        raise SettingsError(
            f"network {name!r} has {net.n_outputs} outputs, the task has {n_outputs} classes; "
            "build its last layer with n_outputs"
        )
    return net


def weights_of(
    name: str,
    params: Mapping[str, Any],
    *,
    input_shape: tuple[int, ...],
    n_outputs: int,
    vocabulary: VocabularyLike | None = None,
) -> int:
    """Return the number of weights that ``build_network`` would make; none is allocated.

    Args are those of ``build_network``, and so are the errors.
    """
    factory = find_factory(name)
    arguments = checked_parameters(name, factory, params)
    if _reads_texts(name, factory, vocabulary, input_shape):
        arguments["vocabulary"] = vocabulary
    with torch.device("meta"):
        net = factory(tuple(input_shape), n_outputs, **arguments)
    return sum(weights.numel() for weights in net.parameters())


def _reads_texts(
    name: str,
    factory: Callable[..., Any],
    vocabulary: VocabularyLike | None,
    input_shape: tuple[int, ...],
) -> bool:
    """Return whether a factory takes the vocabulary; raise SettingsError where rows do not fit."""
    reads = "vocabulary" in inspect.signature(factory).parameters
    if reads == (vocabulary is not None):
        return reads
    texts = [n for n in networks if "vocabulary" in inspect.signature(networks[n]).parameters]
    if reads:
        raise SettingsError(
            f"network {name!r} reads token ids, and rows have shape {list(input_shape)}; ingest "
            "texts (pool: {text: COLUMN}), or choose a network for images or tables"
        )
    raise SettingsError(
        f"network {name!r} does not read token ids, and rows are texts; choose {', '.join(texts)}, "
        "a module:factory that takes `vocabulary`, or a frozen backbone (model.backbone: minilm)"
    )


def find_factory(name: str) -> Callable[..., Any]:
    """Return the factory ``(input_shape, n_outputs, **params)`` that a network's name stands for.

    Raises:
        UnknownNameError: there is no such network.
    """
    place, colon, rest = name.partition(":")
    if not colon:
        factory: Callable[..., Any] = networks[name]
        return factory
    return torchvision_factory(rest) if place == "torchvision" else imported(place, rest)


def imported(module: str, attribute: str) -> Callable[..., Any]:
    """Return a callable of a module, or raise UnknownNameError."""
    try:
        source = importlib.import_module(module)
    except ImportError as error:
        raise UnknownNameError(
            f"network '{module}:{attribute}': {error}; give an importable module and its factory, "
            f"or a registered network ({', '.join(networks)})"
        ) from error
    factory: Callable[..., Any] | None = getattr(source, attribute, None)
    if factory is None or not callable(factory):
        public = [n for n, v in vars(source).items() if callable(v) and not n.startswith("_")]
        raise UnknownNameError(
            f"module {module!r} has no factory {attribute!r}; {nearest(attribute, public)}"
        )
    return factory


def checked_parameters(
    name: str, factory: Callable[..., Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters in their declared types, or raise SettingsError naming them all."""
    signature = inspect.signature(factory)
    known = {n: p for n, p in signature.parameters.items() if n not in _GIVEN}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    allowed = ", ".join(f"{p}" for p in known.values()) or "none"
    hints = get_type_hints(factory, include_extras=True) if inspect.isfunction(factory) else {}
    checked = {}
    for key, value in params.items():
        if key not in known and not takes_any:
            raise SettingsError(f"network {name!r} has no parameter {key!r}; it takes: {allowed}")
        try:
            checked[key] = _adapter(hints.get(key, Any)).validate_python(_tuples(value))
        except ValidationError as error:
            reasons = "; ".join(e["msg"] for e in error.errors())
            raise SettingsError(
                f"network {name!r}: {key} is {value!r}: {reasons}; it takes: {allowed}"
            ) from None
    missing = [n for n, p in known.items() if p.default is p.empty and _named(p)]
    if absent := sorted(set(missing) - set(checked)):
        raise SettingsError(f"network {name!r} wants {', '.join(absent)}; it takes: {allowed}")
    return checked


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
