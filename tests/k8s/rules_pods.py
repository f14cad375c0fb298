"""What every rendering must hold of each pod. A rule yields a sentence for each fault."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.k8s.manifests import HASHED, Manifests, part, references, tag_of, title
from tests.k8s.rendering import Combination

_SHARES = {"cpu": {"m": 0.001}, "memory": {"Mi": 2.0**20, "Gi": 2.0**30}}
_SHARES["ephemeral-storage"] = _SHARES["memory"]


def resources_are_set_and_fit(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Each container requests CPU and memory, and its limits are no lower."""
    for workload, container in manifests.containers:
        name = f"{title(workload.object)}/{container['name']}"
        requests = part(container, "resources", "requests")
        limits = part(container, "resources", "limits")
        for what in ("cpu", "memory"):
            if what not in requests or what not in limits:
                yield f"{name} has no request or no limit of {what}"
        for what in requests.keys() & limits.keys():
            if quantity(what, limits[what]) < quantity(what, requests[what]):
                yield f"{name}: the limit of {what} is below its request"


def pods_are_restricted(manifests: Manifests, _: Combination) -> Iterator[str]:
    """PodSecurity `restricted`, and more: no token, a read-only root, a user of its own."""
    if manifests.namespace_labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce restricted"
    for workload in manifests.workloads:
        name, pod = title(workload.object), workload.pod
        for what in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(what):
                yield f"{name}: {what}"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name} mounts a token"
        if pod.get("enableServiceLinks") is not False:
            yield f"{name} gets variables for Services, FLOWER_PORT among them"
        context = part(pod, "securityContext")
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{name} may run as root"
        if part(context, "seccompProfile").get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        for volume in pod.get("volumes", []):
            kinds = volume.keys() - {"name"}
            if not kinds <= {"emptyDir", "configMap", "secret", "projected"}:
                yield f"{name}: volume {volume['name']} is of {sorted(kinds)}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{name}: volume {volume['name']} may fill the node"
        for container in workload.containers:
            context = part(container, "securityContext")
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{name}/{container['name']} may gain privileges"
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{name}/{container['name']} may write to its root"
            if part(context, "capabilities") != {"drop": ["ALL"]}:
                yield f"{name}/{container['name']} keeps capabilities"
            if {"runAsUser", "runAsNonRoot", "seccompProfile", "privileged"} & context.keys():
                yield f"{name}/{container['name']} overrides its pod's security"
    for account in manifests.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)} hands out tokens"


def images_are_the_same(manifests: Manifests, combination: Combination) -> Iterator[str]:
    """One image for all that is ours, never `latest`, and by digest in production."""
    images = {c["image"] for workload in manifests.workloads for c in workload.ours}
    if len(images) != 1:
        yield f"our components run {sorted(images)}"
    for workload, container in manifests.containers:
        image = container["image"]
        if tag_of(image) in ("", "latest"):
            yield f"{title(workload.object)}: {image} may be another one tomorrow"
        is_deployed = combination.overlay == "production" and container in workload.ours
        if is_deployed and not re.search(r"@sha256:[0-9a-f]{64}$", image):
            yield f"{title(workload.object)}: {image} has no digest"


def postgres_keeps_its_own(manifests: Manifests, _: Combination) -> Iterator[str]:
    """The database's pod does not change with a Secret, and its files stay its owner's alone."""
    for workload in manifests.workloads:
        if workload.component != "postgres":
            continue
        for _kind, name, _key in references(workload.pod):
            if HASHED.search(name):
                yield f"Postgres would be restarted by a change of {name}"
        if workload.pod["securityContext"].get("fsGroupChangePolicy") != "OnRootMismatch":
            yield "every start would open Postgres's files to their group"
        (container,) = workload.pod["containers"]
        (pgdata,) = [e["value"] for e in container["env"] if e["name"] == "PGDATA"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "data"]
        if not pgdata.startswith(mount["mountPath"] + "/"):
            yield "PGDATA is the volume's root, whose mode is not Postgres's to set"
        (init,) = workload.pod["initContainers"]
        if [*init["command"][:4], init["command"][-1]] != ["install", "-d", "-m", "0700", pgdata]:
            yield "nobody sees to PGDATA's mode"
        if not {"/var/run/postgresql", "/tmp"} <= {
            m["mountPath"] for m in container["volumeMounts"]
        }:
            yield "Postgres has no place for its socket"


def quantity(what: str, value: str) -> float:
    """A resource's quantity, in cores or bytes."""
    for suffix, share in _SHARES[what].items():
        if value.endswith(suffix):
            return float(value.removesuffix(suffix)) * share
    return float(value)
