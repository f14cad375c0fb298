"""What every rendering must hold of our own program: settings, command line, probes, drain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
from flower.command import is_flower_envvar
from flower.urls import handlers
from flower.views.error import NotFoundErrorHandler

from tests.k8s.manifests import (
    Manifests,
    Object,
    Workload,
    arguments,
    environment,
    part,
    title,
)
from tests.k8s.rendering import Combination
from worker.cli.main import cli
from worker.errors import InvalidSettings
from worker.settings import Settings, variable_of

KNOWN = {variable_of(field) for field in Settings.model_fields}
#: Set by a worker for its own child, never by an operator.
NOT_FOR_PEOPLE = {"WORKER_ISOLATED"}
URLS = {
    "DATABASE_URL": "postgresql://user:password@postgres/ledger",
    "REDIS_URL": "redis://redis/0",
}
#: Seconds by which a grace period must exceed the drain: the process is gone five after it, and
#: docs/settings.md asks for ten.
MARGIN = 10
#: Seconds of silence that /livez must be forgiven, says docs/operations.md: code may hold the GIL.
FORGIVEN = 30
#: Components that answer at WORKER_HEALTH_PORT.
HEALTHY = ("worker", "keeper")


def settings_are_known(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Each variable of ours is a setting, an option of Flower's, or a part of an argument."""
    for workload, container in _ours(manifests):
        name = f"{title(workload.object)}/{container['name']}"
        variables = environment(manifests, workload, container)
        words = " ".join(container.get("args", []))
        for variable in variables:
            used = f"$({variable})" in words
            if variable.startswith("FLOWER_") and workload.component == "flower":
                if not _is_option_of_flower(variable):
                    yield f"{name}: Flower knows no {variable}"
            elif variable in NOT_FOR_PEOPLE or not (variable in KNOWN or used):
                yield f"{name}: {variable} is no setting"
        missing = URLS.keys() - variables.keys()
        if missing:
            yield f"{name} lacks {sorted(missing)}"
        given = {k: v for k, v in variables.items() if k in KNOWN and v is not None}
        values: dict[str, Any] = {_field_of(k): v for k, v in (URLS | given).items()}
        try:
            Settings.load(**values)
        except InvalidSettings as exc:
            yield f"{name}: {exc}"


def config_maps_hold_settings_only(manifests: Manifests, _: Combination) -> Iterator[str]:
    """A ConfigMap that becomes an environment holds nothing that the settings do not know."""
    names = {
        part(source, "configMapRef").get("name")
        for _workload, container in _ours(manifests)
        for source in container.get("envFrom", [])
    }
    for each in manifests.of("ConfigMap"):
        if each["metadata"]["name"] in names:
            for key in sorted(each["data"].keys() - KNOWN):
                yield f"{title(each)}: {key} is no setting"


def commands_exist(manifests: Manifests, _: Combination) -> Iterator[str]:
    """The command line takes each container's arguments."""
    for workload, container in _ours(manifests):
        name = f"{title(workload.object)}/{container['name']}"
        if "command" in container:
            yield f"{name} does not start by the image's entry point"
        words = arguments(manifests, workload, container)
        command = cli.get_command(click.Context(cli), words[0] if words else "")
        if command is None:
            yield f"{name}: there is no command {words[:1]}"
            continue
        try:
            command.make_context(words[0], words[1:])
        except click.ClickException as exc:
            yield f"{name}: {exc.format_message()}"
        if left := re.findall(r"\$\(\w+\)|<\w+>", " ".join(words)):
            yield f"{name}: nothing stands for {left}"


def workers_consume_their_label(manifests: Manifests, _: Combination) -> Iterator[str]:
    """The queue in a worker's label is the one it consumes, and no two Deployments share one."""
    seen: dict[str, str] = {}
    for workload in manifests.workloads:
        if workload.component != "worker":
            continue
        queue = workload.labels["celery-ledger/queue"]
        (container,) = workload.containers
        if f"--queues={queue}" not in arguments(manifests, workload, container):
            yield f"{title(workload.object)} does not consume {queue!r}"
        if queue in seen:
            yield f"{title(workload.object)} and {seen[queue]} have one label"
        seen[queue] = title(workload.object)


def probes_are_real(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Each probe asks a port that is there for a path that is answered, and asks for little."""
    for workload in manifests.workloads:
        for container in workload.pod["containers"]:
            name = f"{title(workload.object)}/{container['name']}"
            ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
            probes = {p: container[f"{p}Probe"] for p in _PROBES if f"{p}Probe" in container}
            if workload.kind == "Job":
                continue
            if not {"liveness", "readiness"} <= probes.keys():
                yield f"{name} is not probed"
            for kind, probe in probes.items():
                asked = probe.get("httpGet") or probe.get("tcpSocket")
                if asked and asked["port"] not in ports:
                    yield f"{name}: no port {asked['port']!r} to probe"
                if "httpGet" in probe and not _answers(workload.component, asked["path"]):
                    yield f"{name}: nothing answers {asked['path']}"
                if "exec" in probe and (container in workload.ours or kind == "liveness"):
                    yield f"{name}: its {kind} starts a process"
            yield from _too_strict(name, workload, container, probes)


def drains_fit_the_grace(manifests: Manifests, _: Combination) -> Iterator[str]:
    """SIGKILL comes after the drain's end, and SIGTERM reaches the program itself."""
    for workload, container in _ours(manifests):
        name = title(workload.object)
        grace = workload.pod.get("terminationGracePeriodSeconds", 30)
        variables = environment(manifests, workload, container)
        default = Settings.model_fields["drain_seconds"].default
        drain = float(variables.get("WORKER_DRAIN_SECONDS") or default)
        if workload.component == "worker" and grace < drain + MARGIN:
            yield f"{name}: {grace} s of grace for a drain of {drain:g} s"
        if "lifecycle" in container or workload.pod.get("shareProcessNamespace"):
            yield f"{name}: something stands before SIGTERM"


def health_ports_agree(manifests: Manifests, _: Combination) -> Iterator[str]:
    """The container's health port is WORKER_HEALTH_PORT, and Flower's is FLOWER_PORT."""
    for workload, container in _ours(manifests):
        ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
        variables = environment(manifests, workload, container)
        for port, variable in (("health", "WORKER_HEALTH_PORT"), ("http", "FLOWER_PORT")):
            if port in ports and str(ports[port]) != variables.get(variable):
                yield f"{title(workload.object)}: port {port} is not {variable}"
        if variables.get("WORKER_HEALTH_HOST"):
            yield f"{title(workload.object)}: the kubelet could not ask"


_PROBES = ("startup", "liveness", "readiness")


def _too_strict(
    name: str, workload: Workload, container: Object, probes: dict[str, Object]
) -> Iterator[str]:
    def seconds(kind: str) -> int:
        probe = probes.get(kind, {})
        return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))

    if seconds("liveness") < FORGIVEN:
        yield f"{name} is killed after {seconds('liveness')} s of silence"
    if workload.component not in HEALTHY:
        return
    if part(probes.get("liveness", {}), "httpGet").get("path") != "/livez":
        yield f"{name}: /readyz fails while a store is away, and would restart it"
    if part(probes.get("readiness", {}), "httpGet").get("path") != "/readyz":
        yield f"{name}: a rollout would not wait for it"
    if seconds("startup") < 300:
        yield f"{name} is killed while it looks up a name at its start"


def _answers(component: str, path: str) -> bool:
    if component in HEALTHY:
        return path in ("/livez", "/readyz")  # test_probes asks the server itself
    if component == "flower":
        return any(
            isinstance(each, tuple)
            and each[1] is not NotFoundErrorHandler
            and re.fullmatch(each[0], path)
            for each in handlers
        )
    return path == "/"


def _is_option_of_flower(variable: str) -> bool:
    return bool(is_flower_envvar(variable))


def _field_of(variable: str) -> str:
    (field,) = [f for f in Settings.model_fields if variable_of(f) == variable]
    return field


def _ours(manifests: Manifests) -> Iterator[tuple[Workload, Object]]:
    for workload in manifests.workloads:
        for container in workload.ours:
            yield workload, container
