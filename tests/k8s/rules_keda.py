"""What every rendering must hold of KEDA's objects, which no schema of Kubernetes knows."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from tests.k8s.manifests import Manifests, Object, environment, part, title
from tests.k8s.rendering import Combination
from worker.settings import Settings

#: The parts of an address that KEDA needs where it is given no `connection`.
PARTS = {"host", "port", "userName", "password", "dbName", "sslmode"}


def scaled_objects_fit_their_workers(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Queue, slots and limits of a query are those of the workers that it scales."""
    for each in manifests.of("ScaledObject"):
        workload = manifests.workload(each["spec"]["scaleTargetRef"]["name"])
        (container,) = workload.containers
        queue = workload.labels["celery-ledger/queue"]
        default = Settings.model_fields["concurrency"].default
        slots = environment(manifests, workload, container).get("WORKER_CONCURRENCY") or default
        for trigger in each["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            if f"(VALUES ('{queue}'))" not in query:
                yield f"{title(each)}: {trigger['name']} does not ask for the queue {queue!r}"
        jobs, wait = each["spec"]["triggers"]
        if jobs["metadata"]["targetQueryValue"] != str(slots):
            yield f"{title(each)}: a worker runs {slots} jobs at once"
        if (jobs["metricType"], wait["metricType"]) != ("AverageValue", "Value"):
            yield f"{title(each)}: jobs are shared out among workers, a wait is not"
        wanted = each["spec"]["maxReplicaCount"] * int(slots)
        if any(int(n) < wanted for n in re.findall(r"LIMIT (\d+)", query_of(jobs))):
            yield f"{title(each)}: the query stops counting before all workers are wanted"
        fallback = part(each, "spec", "fallback")
        if not fallback.get("replicas") or fallback.get("behavior") != "currentReplicasIfHigher":
            yield f"{title(each)}: while Postgres is away workers would be taken away"


def keda_knows_whom_to_ask(manifests: Manifests, _: Combination) -> Iterator[str]:
    """Each trigger has its TriggerAuthentication, with a whole address that is no other's."""
    for each in manifests.of("ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            name = part(trigger, "authenticationRef").get("name", "")
            if not manifests.has("TriggerAuthentication", name):
                yield f"{title(each)}: there is no TriggerAuthentication {name!r}"
            if {"host", "connectionFromEnv"} & trigger["metadata"].keys():
                yield f"{title(each)} names the database beside its TriggerAuthentication"
    for each in manifests.of("TriggerAuthentication"):
        targets = each["spec"]["secretTargetRef"]
        if {target["parameter"] for target in targets} != PARTS:
            yield f"{title(each)} does not give {sorted(PARTS)}"
        for secret in {target["name"] for target in targets}:
            yield from _host_of_all(manifests, secret)


def _host_of_all(manifests: Manifests, name: str) -> Iterator[str]:
    """KEDA runs in a namespace of its own, where a bare name is nobody's."""
    if manifests.has("Secret", name):
        data = manifests.one("Secret", name)["data"]
        host = base64.b64decode(data["host"]).decode()
        namespace = manifests.namespace["metadata"]["name"]
        if not host.startswith(f"postgres.{namespace}.svc"):
            yield f"Secret/{name}: {host} is not this namespace's Postgres, seen from KEDA's"


def query_of(trigger: Object) -> str:
    """A trigger's SQL."""
    return str(trigger["metadata"]["query"])
