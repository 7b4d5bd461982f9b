from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayal.cli.serve import first_token, serve_settings
from rayal.errors import SettingsError
from rayal.ledger import Ledger
from rayal.service.auth import hash_of
from rayal.service.settings import service_settings

CONFIG = Path(__file__).parents[2] / "serve/config.yaml"


def test_the_shipped_configuration_fits() -> None:
    settings, where = serve_settings(CONFIG, None, None, {})
    assert settings.storage == "/var/lib/rayal"
    assert where == {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 60}


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    settings, where = serve_settings(CONFIG, tmp_path, "postgresql+psycopg://h/n", {"port": 9})
    assert settings.storage == str(tmp_path)
    assert settings.database == "postgresql+psycopg://h/n"
    assert (where["host"], where["port"]) == ("127.0.0.1", 9)


def test_no_storage_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--storage DIR"):
        serve_settings(None, None, None, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"storage": "here"}, "absolute path"),
        ({"storage": "/s", "port": 1}, "port: unknown key"),
        (
            {"storage": "/s", "limits": {"rates": 1}},
            "limits.rates: unknown key; did you mean 'rate'",
        ),
        ({"storage": "/s", "limits": {"rate": 0}}, "limits.rate: given 0"),
        ({"storage": "/s", "sources": {"paths": ["data"]}}, "'data' is relative"),
        ({"storage": "/s", "sources": {"urls": ["file:///etc"]}}, "neither http"),
        ({"storage": "/s", "predictors": {"min_replicas": 3}}, "below min_replicas"),
    ],
)
def test_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        service_settings(given)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["proxy_locations"], "proxy_locations: unknown key; did you mean 'proxy_location'"),
        (["http_options", "prt"], "http_options.prt: unknown key; did you mean 'port'"),
        (["applications", 0, "import"], "applications.0.import: unknown key"),
        (["applications", 0, "args", "storages"], "storages: unknown key"),
        (
            ["applications", 0, "deployments", 0, "num_replica"],
            "applications.0.deployments.0.num_replica: unknown key; did you mean 'num_replicas'",
        ),
        (
            ["applications", 0, "deployments", 0, "backpressure_config", "retry_after"],
            "backpressure_config.retry_after: unknown key; did you mean 'retry_after_s'",
        ),
        (["logging_config", "level"], "logging_config.level: unknown key"),
        (
            ["applications", 0, "deployments", 0, "ray_actor_options", "cpus"],
            "ray_actor_options.cpus: unknown key",
        ),
        (
            ["applications", 0, "deployments", 0, "autoscaling_config", "maximum"],
            "autoscaling_config.maximum: unknown key",
        ),
    ],
)
def test_unknown_keys_of_a_serve_configuration_are_refused_at_every_level(
    path: list[Any], message: str, tmp_path: Path
) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    config["applications"][0]["deployments"] = [
        {
            "name": "Ingress",
            "ray_actor_options": {"num_cpus": 0},
            "autoscaling_config": {},
            "backpressure_config": {},
        }
    ]
    config["logging_config"] = {}
    at = config
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = 1
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SettingsError, match=message):
        serve_settings(file, None, None, {}, applied=False)


def test_another_application_is_refused(tmp_path: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    config["applications"][0]["import_path"] = "other:app"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SettingsError, match=r"other:app.*rayal.service.deployment:build"):
        serve_settings(file, None, None, {})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["applications", 0, "deployments"], [{"name": "Ingress", "num_replicas": 2}]),
        (["applications", 0, "runtime_env"], {}),
        (["applications", 0, "route_prefix"], "/rayal"),
        (["proxy_location"], "EveryNode"),
        (["logging_config"], {}),
    ],
)
def test_what_the_command_would_leave_out_is_refused(
    path: list[Any], value: Any, tmp_path: Path
) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    at = config
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SettingsError, match=rf"{path[-1]}: .rayal serve. does not apply this"):
        serve_settings(file, None, None, {})
    serve_settings(file, None, None, {}, applied=False)


def test_the_first_token_is_told_before_it_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "root") as ledger:
        with pytest.raises(OSError, match="missing"):
            first_token(ledger, tmp_path / "missing" / "token")
        assert ledger.tokens() == []
        file = tmp_path / "token"
        first_token(ledger, file)
        assert file.stat().st_mode & 0o777 == 0o600
        row = ledger.token_by_hash(hash_of(file.read_text().strip()))
        assert row is not None and row.scopes == ("admin",)
        first_token(ledger, file)
        assert len(ledger.tokens()) == 1
