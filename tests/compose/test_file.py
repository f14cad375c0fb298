"""docker-compose.yml, as Compose itself understands it; no container is started."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.compose.engine import ROOT, attempt
from tests.compose.stack import Stack, passwords
from worker.settings import Settings, variable_of

OURS = {"worker", "worker-cpu", "keeper", "flower", "migrate", "cli"}
#: Started and done: nothing to ask for its health.
ONCE = {"migrate", "cli"}
#: What a component's environment may hold beside settings, and who takes it.
OTHERS = {"FLOWER_BASIC_AUTH": "Flower"}
#: Settings that an operator does not choose here.
CHOSEN = {"WORKER_HEALTH_PORT", "WORKER_HEALTH_HOST", "WORKER_ISOLATED"}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every service, with nothing set but what .env.example sets."""
    plain = Stack(tmp_path_factory.mktemp("file"), "", "")
    plain.files = ["docker-compose.yml"]
    found = plain.config(passwords())["services"]
    assert isinstance(found, dict)
    return found


def seconds(duration: str) -> float:
    """A duration as Compose prints it: `1m30s`."""
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match and duration, duration
    return 60.0 * int(match[1] or 0) + int(match[2] or 0)


def test_all_that_the_service_needs_is_in_it(services: dict[str, Any]) -> None:
    assert set(services) == OURS | {"postgres", "redis"}
    assert services["worker"]["scale"] == 2 and services["keeper"]["scale"] == 2
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert services["cli"]["profiles"] == ["tools"]


def test_every_component_is_the_same_image_of_this_version(services: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    images = {services[name]["image"] for name in OURS}

    assert images == {f"celery-ledger:{project['version']}"}
    # Built once: a second service that builds makes a second image, and each `up` recreates one.
    assert [name for name in services if "build" in services[name]] == ["migrate"]
    assert services["migrate"]["build"]["dockerfile"] == "docker/Dockerfile"
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"ARG VERSION={project['version']}\n" in dockerfile
    example = (ROOT / "docker" / "example" / "Dockerfile").read_text()
    assert f"ARG LEDGER=celery-ledger:{project['version']}\n" in example


def test_every_container_is_confined(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0 and service["cpus"] > 0, name
        assert service["pids_limit"] > 0, name
        assert service.get("privileged", False) is False, name


def test_no_container_may_have_more_cpus_than_the_smallest_machine(
    services: dict[str, Any],
) -> None:
    # Docker refuses to start a container with more than there are.
    assert all(service["cpus"] <= 1 for service in services.values())


def test_every_service_has_a_health_check(services: dict[str, Any]) -> None:
    for name, service in services.items():
        check = service["healthcheck"]
        assert check.get("disable", False) is (name in ONCE), name
        if name not in ONCE:
            assert seconds(check["timeout"]) <= seconds(check["interval"]), name


def test_flower_keeps_no_more_tasks_than_it_has_memory_for(services: dict[str, Any]) -> None:
    (most,) = [word for word in services["flower"]["command"] if word.startswith("--max-tasks=")]
    room = int(services["flower"]["mem_limit"]) - 100_000_000  # what it takes empty

    assert int(most.partition("=")[2]) * 8_000 < room  # 5 kB each were measured


def test_who_stops_has_the_time_to_drain(services: dict[str, Any]) -> None:
    drain = Settings.model_fields["drain_seconds"].default
    for name in ("worker", "worker-cpu"):
        assert seconds(services[name]["stop_grace_period"]) >= drain + 10


def test_each_variable_is_known_and_each_setting_can_be_set(services: dict[str, Any]) -> None:
    settings = set(map(variable_of, Settings.model_fields))
    for name in OURS:
        given = set(services[name]["environment"])
        assert given - settings <= set(OTHERS), name
        assert settings - given <= {"WORKER_ISOLATED"}, name


def test_what_is_not_set_has_the_settings_default(services: dict[str, Any]) -> None:
    for variable, value in services["worker"]["environment"].items():
        if variable.startswith("WORKER_") and variable not in CHOSEN:
            assert value is None, variable


def test_ports_are_open_to_this_machine_only(services: dict[str, Any]) -> None:
    published = {
        (name, port["target"], port["host_ip"])
        for name, service in services.items()
        for port in service.get("ports", ())
    }

    assert published == {("flower", 5555, "127.0.0.1")}


@pytest.mark.parametrize("variable", sorted(passwords()))
def test_a_missing_secret_is_named(variable: str, tmp_path: Path) -> None:
    given = {name: value for name, value in passwords().items() if name != variable}
    file = tmp_path / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))

    done = attempt("compose", "--env-file", file, "--file", ROOT / "docker-compose.yml", "config")

    assert done.returncode != 0
    assert f"{variable} is not set, see .env.example" in done.stderr


def test_the_example_names_every_variable_of_the_file() -> None:
    files = ("docker-compose.yml", "docker/publish.yml")
    text = "".join((ROOT / file).read_text() for file in files)
    asked = set(re.findall(r"\$\{(\w+)", text)) - {"BUILD_NETWORK"}  # a build machine's matter

    told = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert asked <= told, sorted(asked - told)


def test_no_key_is_in_it_that_docker_compose_1_29_refuses() -> None:
    for file in ("docker-compose.yml", "docker/publish.yml", "docker/example/mounted.yml"):
        lines = (ROOT / file).read_text().splitlines()
        keys = {line.partition(":")[0] for line in lines if re.match(r"[a-z]", line)}
        known = {"services", "volumes", "networks"}
        assert {key for key in keys if not key.startswith("x-")} <= known, file
        assert not any(re.search(r"\$\{\w+:?\+|required:|start_interval", line) for line in lines)
