"""What the network policies allow, worked out as a cluster does: what is needed, and no more."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from tests.k8s.manifests import Manifests, Object, part, selects, title
from tests.k8s.rendering import Combination

POSTGRES, REDIS, HEALTH, FLOWER, EXPORTER = 5432, 6379, 8080, 5555, 9187
PORTS = (POSTGRES, REDIS, HEALTH, FLOWER, EXPORTER)
#: Who needs what of whom, in the namespace; all else is too much.
NEEDED = {
    *((who, "postgres", POSTGRES) for who in ("worker", "keeper", "flower", "migrate", "hello")),
    *((who, "redis", REDIS) for who in ("worker", "keeper", "flower", "hello")),
    ("exporter", "postgres", POSTGRES),
}
#: Who comes from another namespace, with which component.
VISITORS = {
    ("keda", "postgres", POSTGRES): "keda",
    ("monitoring", "exporter", EXPORTER): "monitoring",
    ("monitoring", "flower", FLOWER): "monitoring",
    ("ingress-nginx", "flower", FLOWER): "ingress",
}
#: Addresses outside of the cluster, and whether a task may call them.
OUTSIDE = {"93.184.216.34": True, "169.254.169.254": False, "10.0.0.1": False, "2606:2800::1": True}


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod by its labels and its namespace's, or an address."""

    labels: dict[str, str] | None = None
    namespace: dict[str, str] | None = None
    address: str | None = None


def needed_ways_are_open_and_no_others(
    manifests: Manifests, combination: Combination
) -> Iterator[str]:
    """Between our own pods, and from other namespaces."""
    home = manifests.namespace_labels
    pods = {w.name: (w.component, Peer(w.labels, home)) for w in manifests.workloads}
    for source, (who, here) in pods.items():
        for target, (whom, there) in pods.items():
            for port in PORTS:
                opened = allows(manifests, here, there, port)
                if opened != ((who, whom, port) in NEEDED):
                    yield f"{source} {'may' if opened else 'cannot'} reach {target}:{port}"
    stranger = Peer({}, {"kubernetes.io/metadata.name": "default"})
    for target, (_, there) in pods.items():
        for port in PORTS:
            if lets_in(manifests, stranger, there, port):
                yield f"anybody may reach {target}:{port}"
    for (namespace, whom, port), component in VISITORS.items():
        visitor = Peer({}, {"kubernetes.io/metadata.name": namespace})
        for target, (there_whom, there) in pods.items():
            if there_whom == whom:
                opened = lets_in(manifests, visitor, there, port)
                if opened != (component in combination.components):
                    yield f"{namespace} {'may' if opened else 'cannot'} reach {target}:{port}"


def everybody_finds_names(manifests: Manifests, _: Combination) -> Iterator[str]:
    """DNS, of the cluster and of a node's own cache."""
    dns = Peer({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
    for workload in manifests.workloads:
        here = Peer(workload.labels, manifests.namespace_labels)
        for server in (dns, Peer(address="169.254.20.10")):
            for protocol in ("UDP", "TCP"):
                if not lets_out(manifests, here, server, 53, protocol):
                    yield f"{title(workload.object)} cannot look up names by {protocol}"


def tasks_call_the_world_and_nobody_else_does(
    manifests: Manifests, combination: Combination
) -> Iterator[str]:
    """Workers call HTTP and HTTPS outside, but neither private networks nor a cloud's metadata."""
    for workload in manifests.workloads:
        here = Peer(workload.labels, manifests.namespace_labels)
        for address, welcome in OUTSIDE.items():
            for port in (80, 443, 25):
                opened = lets_out(manifests, here, Peer(address=address), port)
                wanted = welcome and workload.component == "worker" and port != 25
                # The API server may be anywhere.
                wanted |= "celery-ledger/kubernetes" in workload.labels and port == 443
                if opened != wanted:
                    yield (
                        f"{title(workload.object)} {'may' if opened else 'cannot'} call"
                        f" {address}:{port}"
                    )
        if "external-stores" in combination.components:
            for port, label in ((POSTGRES, "postgres"), (REDIS, "redis")):
                opened = lets_out(manifests, here, Peer(address="10.0.0.1"), port)
                if opened != (f"celery-ledger/{label}" in workload.labels):
                    yield f"{title(workload.object)} and the external {label} do not fit"


def nobody_is_forgotten(manifests: Manifests, _: Combination) -> Iterator[str]:
    """One policy denies everything to every pod, present and to come."""
    if not any(
        policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].keys() & {"ingress", "egress"}
        for policy in manifests.of("NetworkPolicy")
    ):
        yield "a pod without a policy may do anything"


def allows(manifests: Manifests, here: Peer, there: Peer, port: int) -> bool:
    """Whether both ends allow it."""
    return lets_out(manifests, here, there, port) and lets_in(manifests, here, there, port)


def lets_out(
    manifests: Manifests, here: Peer, there: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies of `here` let it call `there`."""
    return _open(manifests, "Egress", here, there, port, protocol)


def lets_in(
    manifests: Manifests, here: Peer, there: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies of `there` let `here` in."""
    return _open(manifests, "Ingress", there, here, port, protocol)


def _open(manifests: Manifests, way: str, of: Peer, peer: Peer, port: int, protocol: str) -> bool:
    policies = [
        policy["spec"]
        for policy in manifests.of("NetworkPolicy")
        if way in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], of.labels or {})
    ]
    if not policies:
        return True
    field = "to" if way == "Egress" else "from"
    return any(
        (not rule.get("ports") or any(_is_port(each, port, protocol) for each in rule["ports"]))
        and (not rule.get(field) or any(_is_peer(manifests, e, peer) for e in rule[field]))
        for spec in policies
        for rule in spec.get(way.lower(), [])
    )


def _is_port(each: Object, port: int, protocol: str) -> bool:
    return bool(each.get("protocol", "TCP") == protocol and each.get("port", port) == port)


def _is_peer(manifests: Manifests, each: Object, peer: Peer) -> bool:
    if "ipBlock" in each:
        return peer.address is not None and _is_in(each["ipBlock"], peer.address)
    if peer.labels is None:
        return False
    namespace = peer.namespace or {}
    if "namespaceSelector" in each:
        at_home = selects(each["namespaceSelector"], namespace)
    else:
        at_home = namespace == manifests.namespace_labels
    return bool(at_home) and selects(part(each, "podSelector"), peer.labels)


def _is_in(block: Object, address: str) -> bool:
    return _is_address_in(block["cidr"], address) and not any(
        _is_address_in(network, address) for network in block.get("except", [])
    )


def _is_address_in(network: str, address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)
