"""What is stored under a hash or by a name, asked of the present code.

    PYTHON tests/roots/stored_cases.py > stored.json

PYTHON is the interpreter of the checkout whose names and hashes they are.
``stored.json`` was made at commit 93ff6e4. All that these tests import from inside ``rayal`` is
imported here, so that a module which moves is followed in one place.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from rayal.engine.embed import embedding_hash
from rayal.engine.scan import Scan
from rayal.engine.spec import NetworkSpec, ProjectSpec, ScanOptions
from rayal.engine.train import TrainRequest, context
from rayal.labels import ClassLabel, NumberLabel
from rayal.learners import Learner, Supervised
from rayal.models.backbone import BackboneSpec
from rayal.models.build import build_network
from rayal.models.committee import Committee
from rayal.models.dropout import stochastic_modules
from rayal.registry import learners, networks, strategies
from rayal.strategies import Strategy
from rayal.tasks import ImageTask, TableTask, Task, TextTask, Vocabulary

CLASSES = ClassLabel(("ant", "bee", "cat"))
IMAGES = ImageTask(CLASSES, "raw", 1, (28, 28))
ROWS = TableTask(CLASSES, ("a", "b", "c"))
NUMBERS = TableTask(NumberLabel(), ("a", "b", "c"))
MLP = NetworkSpec("mlp", {"widths": (8,)})
#: what a learner trains, where that is not a small convolutional network
TRAINED: dict[str, tuple[NetworkSpec, Task]] = {
    "layerwise_pretrained": (MLP, ROWS),
    "moment_propagation": (MLP, ROWS),
    "pbp": (NetworkSpec("pbp", {"hidden": (4,)}), NUMBERS),
}


def texts() -> TextTask:
    sentences = ("the film was good", "the plot was bad", "a good actor in a bad film") * 4
    words = Vocabulary.trained(sentences, kind="wordpiece", size=40, lowercase=True)
    return TextTask(CLASSES, 12, words)


def model_hash_of(learner: Learner) -> str:
    """Return the hash of a model that differs from others in its learner alone."""
    return TrainRequest(
        learner=learner, network=MLP, task=ROWS, labels={"x": ["ant", "00"], "y": ["bee", "01"]},
        members=2, seed=3, round=1, unlabeled=(7, 11), reads="aa", pretrained="bb",
    ).hash  # fmt: skip


def columns_hash_of(strategy: Strategy, options: ScanOptions | None = None) -> str:
    """Return the hash of columns that differ from others in their strategy and options alone."""
    net = build_network("mlp", {"widths": (8,)}, input_shape=(3,), n_outputs=3, seed=0)
    committee = Committee((nn.ModuleDict({"task": net}),), ROWS, {}, "cc", seed=3, round=1)
    nothing: Any = None  # the hash knows a pool by its committee
    scan = Scan(nothing, committee, strategy, Supervised(), options or ScanOptions())
    return scan.columns_hash()


def spec_of(**changes: Any) -> ProjectSpec:
    """Return a project's settings."""
    plain: dict[str, Any] = {
        "network": MLP,
        "learner": Supervised(),
        "strategy": strategies["margin"](),
    }
    return ProjectSpec(**plain | changes)


def network_names(name: str) -> dict[str, Any]:
    """Return the paths of a registered network's dropout modules, and a digest of its keys."""
    task: Task = NUMBERS if name == "pbp" else ROWS if name == "mlp" else IMAGES
    vocabulary = None
    if name in ("kim_cnn", "tfidf_linear", "minilm"):
        task = texts()
        vocabulary = task.vocabulary
    params = {} if name in ("tfidf_linear", "pbp") else {"dropout": 0.3}
    net = build_network(
        name, params, input_shape=task.input_shape, n_outputs=task.n_outputs, seed=0,
        vocabulary=vocabulary,
    )  # fmt: skip
    kinds = {path: type(m).__name__ for path, m in stochastic_modules(net).items()}
    return {"dropout": kinds, "state_dict": keys(net)}


def learner_names(name: str) -> list[str]:
    """Return the networks that a learner trains, each with a digest of its keys."""
    network, task = TRAINED.get(name, (NetworkSpec("small_cnn", {"widths": (4, 8)}), IMAGES))
    ctx = context(learners[name](), network, task, 10)
    made = learners[name]().networks(ctx)
    return [f"{part} {keys(net)}" for part, net in made.items()]


def keys(net: nn.Module) -> str:
    """Return a digest of a network's keys and the number of their dimensions."""
    named = [f"{name} {value.ndim}" for name, value in net.state_dict().items()]
    hashed = hashlib.blake2b(json.dumps(named).encode(), digest_size=8)
    return f"{len(named)} keys {hashed.hexdigest()}"


def embedding_hash_of() -> str:
    spec = spec_of(backbone=BackboneSpec("efficientnet_lite0", "random"))
    return embedding_hash(spec, IMAGES)


def stored() -> dict[str, Any]:
    """Return all that is compared with the recorded literals."""
    torch.manual_seed(0)
    return {
        "models": {name: model_hash_of(learners[name]()) for name in learners},
        "columns": {name: columns_hash_of(strategies[name]()) for name in strategies},
        "embeddings": {"efficientnet_lite0": embedding_hash_of()},
        "tasks": {
            "image": IMAGES.to_json(), "table": ROWS.to_json(), "numbers": NUMBERS.to_json(),
        },
        "spec": {"plain": spec_of().to_json()},
        "networks": {name: network_names(name) for name in networks},
        "learners": {name: learner_names(name) for name in learners},
        "fields": {
            **{f"learner {name}": fields_of(learners[name]()) for name in learners},
            **{f"strategy {name}": fields_of(strategies[name]()) for name in strategies},
        },
    }  # fmt: skip


def fields_of(value: Any) -> list[str]:
    """Return the names of a dataclass's fields, in the order of its repr."""
    return [field.name for field in fields(value)]


if __name__ == "__main__":
    lines = []
    for kind, found in stored().items():
        rows = ",\n".join(f" {json.dumps(n)}: {json.dumps(v)}" for n, v in found.items())
        lines.append(f"{json.dumps(kind)}: {{\n{rows}\n}}")
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
