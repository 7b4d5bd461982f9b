from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayal.service.backend import open_backend, read_secret
from rayal.service.settings import service_settings


async def nobody(body: Mapping[str, Any]) -> Any:
    raise AssertionError


def test_the_backend_is_what_the_settings_say(tmp_path: Path) -> None:
    given = {
        "storage": str(tmp_path),
        "limits": {"body_bytes": 12345, "rate": 7.5, "image_pixels": 99},
        "sources": {"paths": ["/data"], "urls": ["https://images.example/"]},
    }
    made = open_backend(service_settings(given), predict=nobody, query=nobody)
    with made.ledger:
        assert made.ledger.projects() == []
        assert (made.limits.body_bytes, made.limits.rate) == (12345, 7.5)
        assert made.content_limits.image_pixels == 99
        assert made.prefixes.paths == ("/data",)
        assert made.prefixes.private is False
        assert made.secret == read_secret(tmp_path)


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: read_secret(tmp_path), range(16)))
    assert len(found) == 1
    assert len(found.pop()) == 32
    assert os.stat(tmp_path / "secret").st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


@pytest.mark.processes
def test_the_application_loads_neither_torch_nor_ray() -> None:
    code = "import sys, rayal.service.app; print([m for m in ('torch', 'ray') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
