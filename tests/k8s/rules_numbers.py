"""What every rendering must hold of how many there are, of who says so, and of Jobs."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests import HASHED, Manifests, references, tag_of, title
from tests.k8s.rendering import Combination


def disruptions_are_bounded(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Workers, keepers and stores have one budget each, with which a node can be drained, even
    while a store is away."""
    covered: dict[str, int] = {}
    for budget in manifests.of("PodDisruptionBudget"):
        found = manifests.selected(budget["spec"]["selector"])
        if len(found) != 1:
            yield f"{title(budget)} is for {[w.name for w in found]}"
        for workload in found:
            covered[workload.name] = covered.get(workload.name, 0) + 1
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{title(budget)} keeps pods that are not ready on their node"
        if not budget["spec"].get("maxUnavailable"):
            yield f"{title(budget)} may forbid every eviction"
    for workload in manifests.workloads:
        wanted = int(workload.component in ("worker", "keeper", "postgres", "redis"))
        if covered.get(workload.name, 0) != wanted:
            yield f"{title(workload.object)} has {covered.get(workload.name, 0)} budgets"
        spread = [c["topologyKey"] for c in workload.pod.get("topologySpreadConstraints", [])]
        if workload.component in ("worker", "keeper") and spread != [
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        ]:
            yield f"{title(workload.object)} is not spread over nodes and zones"


def autoscalers_own_the_number(manifests: Manifests, _: Combination) -> Iterator[str]:
    """One owner of a Deployment's replicas: an autoscaler, or the manifest."""
    owners: dict[str, list[str]] = {}
    for each in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        owners.setdefault(each["spec"]["scaleTargetRef"]["name"], []).append(title(each))
    names = {w.name for w in manifests.workloads if w.kind == "Deployment"}
    for target in owners.keys() - names:
        yield f"{owners[target]} scale {target!r}, which is not there"
    for workload in manifests.workloads:
        if workload.kind == "Job":
            continue
        found = owners.get(workload.name, [])
        if len(found) > 1:
            yield f"{title(workload.object)} has {found} for owners"
        if bool(found) == ("replicas" in workload.spec):
            yield f"{title(workload.object)}: the manifest and {found} own its replicas"


def production_is_for_more_than_one(
    manifests: Manifests, combination: Combination
) -> Iterator[str]:
    """Three of what matters, and no store in the cluster."""
    if combination.overlay != "production":
        return
    for each in manifests.of("StatefulSet"):
        yield f"production keeps {title(each)}"
    for workload in manifests.workloads:
        if workload.component not in ("worker", "keeper"):
            continue
        least = workload.spec.get("replicas")
        for each in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
            if each["spec"]["scaleTargetRef"]["name"] == workload.name:
                least = each["spec"].get("minReplicaCount", each["spec"].get("minReplicas"))
        if (least or 0) < 3:
            yield f"{title(workload.object)} has {least} replicas"


def jobs_can_be_applied_again(manifests: Manifests, _: Combination) -> Iterator[str]:
    """A Job cannot be changed: its name follows its image's tag, and all else stays."""
    jobs = [workload for workload in manifests.workloads if workload.kind == "Job"]
    if not any(job.component == "migrate" for job in jobs):
        yield "there is no migration"
    for job in jobs:
        (container,) = job.pod["containers"]
        if job.name != f"{job.component}-{tag_of(container['image'])}":
            yield f"{title(job.object)} does not have its image's tag for a name"
        for _kind, name, _key in references(job.pod):
            if HASHED.search(name):
                yield f"{title(job.object)} refers to {name}, whose name changes"
        if "ttlSecondsAfterFinished" not in job.spec:
            yield f"{title(job.object)} stays for ever"
