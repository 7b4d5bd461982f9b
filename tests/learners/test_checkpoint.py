from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from learner_cases import same
from safetensors.torch import save_file

from rayal.errors import StorageError
from rayal.learners.checkpoint import checkpoint_kind, read_checkpoint, write_checkpoint


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    tree = {
        "tensors": {"a": shared, "tied": shared, "scalar": torch.tensor(3.0), "none": None},
        "strided": torch.arange(12).reshape(3, 4).t(),
        "empty": torch.zeros(0, dtype=torch.int64),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "groups": [{"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "nesterov": False, "params": [0, 1]}],
        "state": {0: {"step": torch.tensor(5.0)}, 1: {}},
        "odd": {"inf": float("inf"), "text": "é", "tensor": 1, "dict": [], "n": 2**60},
    }
    path = tmp_path / "tree.safetensors"
    write_checkpoint(path, "state", tree)
    stored = read_checkpoint(path)
    assert stored.kind == checkpoint_kind(path) == "state"
    assert same(stored.tree, tree) and same(tree, stored.tree)
    assert isinstance(stored.tree["groups"][0]["betas"], tuple)
    assert list(stored.tree["state"]) == [0, 1]


def test_what_no_file_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="schedulers/task/when is a set"):
        write_checkpoint(tmp_path / "x", "state", {"schedulers": {"task": {"when": {1, 2}}}})
    assert not (tmp_path / "x").exists()


def test_missing_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(StorageError, match="is missing"):
        read_checkpoint(path)
    write_checkpoint(path, "predictor", {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match="is damaged"):
        read_checkpoint(path)
    save_file({}, path, {"version": "0", "kind": "state", "tree": json.dumps(None)})
    with pytest.raises(StorageError, match="format version 0"):
        checkpoint_kind(path)
