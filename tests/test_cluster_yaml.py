"""The cluster file is one that Ray takes: by its schema, and by its own checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parent.parent / "cluster.yaml"
SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def test_the_cluster_file_is_valid() -> None:
    jsonschema.validate(config(), json.loads(SCHEMA.read_text()))
    validate_config(prepare_config(config()))


def test_the_checks_can_fail() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config(), "max_worker": 4}, json.loads(SCHEMA.read_text()))
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config({**config(), "head_node_type": "hed"}))


def test_its_paths_exist() -> None:
    root = FILE.parent
    assert (root / "examples" / "submit_job.py").is_file()
    assert config()["file_mounts"]["/home/ubuntu/rayal"] == "."
