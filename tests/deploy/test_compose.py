"""The compose file runs every service, with settings that exist."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.__main__ import MODULES
from tools import settings

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_compose_runs_every_service_once(services: dict[str, dict[str, Any]]) -> None:
    commands = [service.get("command", []) for service in services.values()]
    run = [command[1] for command in commands if command[:1] == ["services"]]
    assert sorted(run) == sorted(MODULES)


def test_compose_migrates_every_database_before_a_service_starts(
    services: dict[str, dict[str, Any]],
) -> None:
    jobs = {
        name
        for name, service in services.items()
        if service.get("command", [])[:1] == ["bourse.migrate"]
    }
    assert jobs == {"migrate-edge", "migrate-providers", "migrate-billing", "migrate-ranking"}
    for service in services.values():
        if service.get("command", [])[:1] == ["services"]:
            assert jobs <= set(service["depends_on"])


def test_every_variable_of_compose_is_a_setting(services: dict[str, dict[str, Any]]) -> None:
    known = {
        variable
        for found in settings.all_classes().values()
        for settings_class in found
        for variable in settings.variables(settings_class)
    }
    given = set(itertools.chain(*(service.get("environment", {}) for service in services.values())))
    assert {name for name in given if name.startswith("BOURSE_")} <= known


def test_a_container_may_drain_its_longest_stream(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        if service.get("command", [])[:1] == ["services"]:
            assert service["stop_grace_period"] == "630s"


def test_services_are_called_where_they_are(services: dict[str, dict[str, Any]]) -> None:
    for name, url in services["edge"]["environment"].items():
        if name.endswith(("_URL", "_URLS")) and ":50051" in url:
            assert url.split("//")[1].strip("/").split(":")[0] in services
