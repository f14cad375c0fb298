"""What every rendering must hold of names and selectors: each leads somewhere."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests import Manifests, Object, Workload, references, title
from tests.k8s.rendering import Combination

#: Secrets that are made outside of the overlay, by whatever keeps secrets there (docs/deploy.md).
MADE_BEFOREHAND: dict[str, dict[str, set[str]]] = {
    "dev": {},
    "staging": {
        "postgres": {"POSTGRES_PASSWORD", "DATABASE_URL"},
        "redis": {"REDIS_PASSWORD"},
        "stores": {"DATABASE_URL", "REDIS_URL"},
        "flower": {"FLOWER_BASIC_AUTH"},
        "ledger-reader": {"host", "port", "user", "password", "dbname", "sslmode"},
    },
    "production": {
        "postgres": {"DATABASE_URL"},
        "stores": {"DATABASE_URL", "REDIS_URL"},
        "flower": {"FLOWER_BASIC_AUTH"},
        "ledger-reader": {"host", "port", "user", "password", "dbname", "sslmode"},
    },
}
#: In every namespace of every cluster.
EVERYWHERE = {"kube-root-ca.crt"}


def references_lead_somewhere(manifests: Manifests, combination: Combination) -> Iterator[str]:
    """ServiceAccounts, ConfigMaps, Secrets and their keys, volumes, ports: all are there."""
    for workload in manifests.workloads:
        name = title(workload.object)
        if not manifests.has("ServiceAccount", workload.pod.get("serviceAccountName", "")):
            yield f"{name}: there is no ServiceAccount {workload.pod.get('serviceAccountName')!r}"
        for kind, wanted, key in references(workload.pod):
            yield from _missing(manifests, combination, name, kind, wanted, key)
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        volumes |= {
            each["metadata"]["name"] for each in workload.spec.get("volumeClaimTemplates", [])
        }
        for container in workload.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{name}/{container['name']}: there is no volume {mount['name']!r}"
    for each in manifests.of("TriggerAuthentication"):
        for target in each["spec"]["secretTargetRef"]:
            yield from _missing(
                manifests, combination, title(each), "secret", target["name"], target["key"]
            )
    for each in manifests.of("RoleBinding"):
        for subject in each["subjects"]:
            if not manifests.has("ServiceAccount", subject["name"]):
                yield f"{title(each)}: there is no ServiceAccount {subject['name']!r}"
            if subject.get("namespace") != manifests.namespace["metadata"]["name"]:
                yield f"{title(each)}: {subject['name']} is looked for in another namespace"
    for each in manifests.of("Ingress"):
        for rule in each["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                yield from _no_backend(manifests, title(each), path["backend"]["service"])


def selectors_find_their_pods(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Who selects pods selects those that it means, and nobody selects another's."""
    for workload in manifests.workloads:
        own = workload.spec.get("selector")
        if workload.kind != "Job" and [w.name for w in manifests.selected(own)] != [workload.name]:
            yield f"{title(workload.object)} does not select its own pods, and no others"
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            found = manifests.selected(constraint["labelSelector"])
            if [each.name for each in found] != [workload.name]:
                yield f"{title(workload.object)} is spread among {[w.name for w in found]}"
    for service in manifests.of("Service"):
        found = manifests.selected({"matchLabels": service["spec"]["selector"]})
        if len(found) != 1:
            yield f"{title(service)} leads to {[w.name for w in found]}"
        for port in service["spec"]["ports"]:
            if not any(port["targetPort"] in _ports(workload) for workload in found):
                yield f"{title(service)}: there is no port {port['targetPort']!r} behind it"
    for monitor in manifests.of("PodMonitor"):
        found = manifests.selected(monitor["spec"]["selector"])
        for end in monitor["spec"]["podMetricsEndpoints"]:
            if not found or not all(end["port"] in _ports(workload) for workload in found):
                yield f"{title(monitor)} finds no port {end['port']!r}"
    for policy in manifests.of("NetworkPolicy"):
        if not manifests.selected(policy["spec"]["podSelector"]):
            yield f"{title(policy)} is for nobody"


def _ports(workload: Workload) -> set[str | int]:
    return {
        value
        for container in workload.containers
        for port in container.get("ports", [])
        for value in (port["name"], port["containerPort"])
    }


def _missing(
    manifests: Manifests,
    combination: Combination,
    who: str,
    kind: str,
    name: str,
    key: str | None,
) -> Iterator[str]:
    if name in EVERYWHERE:
        return
    rendered = {"secret": "Secret", "configMap": "ConfigMap"}[kind]
    if manifests.has(rendered, name):
        keys = set(manifests.one(rendered, name).get("data", {}))
    elif kind == "secret" and name in MADE_BEFOREHAND[combination.overlay]:
        keys = MADE_BEFOREHAND[combination.overlay][name]
    else:
        yield f"{who}: there is no {rendered} {name!r}"
        return
    if key is not None and key not in keys:
        yield f"{who}: {rendered} {name!r} has no {key!r}"


def _no_backend(manifests: Manifests, who: str, backend: Object) -> Iterator[str]:
    if not manifests.has("Service", backend["name"]):
        yield f"{who}: there is no Service {backend['name']!r}"
        return
    ports = {port["name"] for port in manifests.one("Service", backend["name"])["spec"]["ports"]}
    if backend["port"]["name"] not in ports:
        yield f"{who}: the Service has no port {backend['port']['name']!r}"
