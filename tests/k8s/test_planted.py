"""The rules find what they are for: each fault, planted in a good rendering, is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.k8s import (
    rules_keda,
    rules_links,
    rules_network,
    rules_numbers,
    rules_pods,
    rules_program,
)
from tests.k8s.manifests import Manifests, Object
from tests.k8s.rendering import Combination, Rendered, Tools, as_shipped
from tests.k8s.test_combinations import RULES, Rule

Plant = Callable[[Manifests], object]


def container(manifests: Manifests, name: str) -> Object:
    first: Object = manifests.workload(name).pod["containers"][0]
    return first


def pod(manifests: Manifests, name: str) -> Object:
    return manifests.workload(name).pod


def settings(manifests: Manifests) -> Object:
    (found,) = [e for e in manifests.of("ConfigMap") if "WORKER_HEALTH_PORT" in e["data"]]
    data: Object = found["data"]
    return data


def policy(manifests: Manifests, name: str) -> Object:
    spec: Object = manifests.one("NetworkPolicy", name)["spec"]
    return spec


def scaled(manifests: Manifests) -> Object:
    spec: Object = manifests.one("ScaledObject", "worker")["spec"]
    return spec


def without(manifests: Manifests, kind: str, name: str) -> None:
    manifests.objects.remove(manifests.one(kind, name))


PLANTED: list[tuple[Rule, Plant]] = [
    (
        rules_pods.resources_are_set_and_fit,
        lambda m: container(m, "worker")["resources"]["limits"].update(memory="1Mi"),
    ),
    (rules_pods.resources_are_set_and_fit, lambda m: container(m, "keeper").pop("resources")),
    (
        rules_pods.pods_are_restricted,
        lambda m: pod(m, "redis")["securityContext"].pop("runAsNonRoot"),
    ),
    (
        rules_pods.pods_are_restricted,
        lambda m: pod(m, "worker").pop("automountServiceAccountToken"),
    ),
    (
        rules_pods.pods_are_restricted,
        lambda m: container(m, "flower")["securityContext"].pop("capabilities"),
    ),
    (
        rules_pods.pods_are_restricted,
        lambda m: pod(m, "worker")["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    (rules_pods.pods_are_restricted, lambda m: pod(m, "flower").pop("enableServiceLinks")),
    (rules_links.references_lead_somewhere, lambda m: without(m, "ServiceAccount", "keeper")),
    (
        rules_links.references_lead_somewhere,
        lambda m: container(m, "worker")["envFrom"][0]["configMapRef"].update(name="setings"),
    ),
    (
        rules_links.references_lead_somewhere,
        lambda m: container(m, "worker")["env"][1]["valueFrom"]["secretKeyRef"].update(key="URL"),
    ),
    (rules_links.references_lead_somewhere, lambda m: pod(m, "worker").pop("volumes")),
    (
        rules_links.selectors_find_their_pods,
        lambda m: m.workload("worker").labels.update({"celery-ledger/queue": "mail"}),
    ),
    (
        rules_links.selectors_find_their_pods,
        lambda m: m.one("Service", "postgres")["spec"]["selector"].update(x="y"),
    ),
    (
        rules_links.selectors_find_their_pods,
        lambda m: m.one("Service", "flower")["spec"]["ports"][0].update(targetPort="web"),
    ),
    (
        rules_links.selectors_find_their_pods,
        lambda m: policy(m, "redis")["podSelector"]["matchLabels"].update(x="y"),
    ),
    (rules_numbers.disruptions_are_bounded, lambda m: without(m, "PodDisruptionBudget", "worker")),
    (
        rules_numbers.disruptions_are_bounded,
        lambda m: m.one("PodDisruptionBudget", "keeper")["spec"].pop("unhealthyPodEvictionPolicy"),
    ),
    (
        rules_numbers.disruptions_are_bounded,
        lambda m: pod(m, "worker").pop("topologySpreadConstraints"),
    ),
    (
        rules_numbers.jobs_can_be_applied_again,
        lambda m: m.workload("migrate-0.1.0").object["metadata"].update(name="migrate"),
    ),
    (
        rules_numbers.jobs_can_be_applied_again,
        lambda m: container(m, "migrate-0.1.0")["env"][0]["valueFrom"]["secretKeyRef"].update(
            name="stores-6dmk78b7d9"
        ),
    ),
    (
        rules_pods.postgres_keeps_its_own,
        lambda m: pod(m, "postgres")["securityContext"].pop("fsGroupChangePolicy"),
    ),
    (
        rules_pods.postgres_keeps_its_own,
        lambda m: pod(m, "postgres")["initContainers"][0]["command"].__setitem__(3, "0770"),
    ),
    (
        rules_numbers.autoscalers_own_the_number,
        lambda m: m.workload("worker").spec.update(replicas=2),
    ),
    (rules_numbers.autoscalers_own_the_number, lambda m: m.workload("keeper").spec.pop("replicas")),
    (
        rules_numbers.autoscalers_own_the_number,
        lambda m: scaled(m)["scaleTargetRef"].update(name="workers"),
    ),
    (
        rules_pods.images_are_the_same,
        lambda m: container(m, "keeper").update(image="registry.example.com/celery-ledger:0.2.0"),
    ),
    (rules_pods.images_are_the_same, lambda m: container(m, "redis").update(image="redis")),
    (
        rules_program.settings_are_known,
        lambda m: container(m, "worker")["env"].append({"name": "WORKER_CONCURENCY", "value": "4"}),
    ),
    (rules_program.settings_are_known, lambda m: settings(m).update(WORKER_CONCURRENCY="many")),
    (
        rules_program.settings_are_known,
        lambda m: container(m, "flower")["env"].append({"name": "FLOWER_PASSWORD", "value": "x"}),
    ),
    (
        rules_program.config_maps_hold_settings_only,
        lambda m: settings(m).update(WORKER_CONCURENCY="4"),
    ),
    (rules_program.commands_exist, lambda m: container(m, "keeper").update(args=["keep"])),
    (
        rules_program.commands_exist,
        lambda m: container(m, "migrate-0.1.0").update(args=["migrate", "--now"]),
    ),
    (
        rules_program.commands_exist,
        lambda m: container(m, "worker").update(args=["run", "--queues=$(QUEUES)"]),
    ),
    (
        rules_program.commands_exist,
        lambda m: container(m, "keeper").update(command=["sh", "-c", "worker keeper"]),
    ),
    (
        rules_program.workers_consume_their_label,
        lambda m: container(m, "worker").update(args=["run"]),
    ),
    (
        rules_program.probes_are_real,
        lambda m: container(m, "worker")["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
    (
        rules_program.probes_are_real,
        lambda m: container(m, "worker")["livenessProbe"].update(failureThreshold=1),
    ),
    (
        rules_program.probes_are_real,
        lambda m: container(m, "keeper")["readinessProbe"]["httpGet"].update(port="http"),
    ),
    (
        rules_program.probes_are_real,
        lambda m: container(m, "flower")["readinessProbe"]["httpGet"].update(path="/health"),
    ),
    (
        rules_program.probes_are_real,
        lambda m: container(m, "worker").update(
            livenessProbe={
                "exec": {"command": ["celery", "inspect", "ping"]},
                "failureThreshold": 6,
            }
        ),
    ),
    (rules_program.health_ports_agree, lambda m: settings(m).update(WORKER_HEALTH_PORT="8081")),
    (rules_program.drains_fit_the_grace, lambda m: settings(m).update(WORKER_DRAIN_SECONDS="60")),
    (
        rules_program.drains_fit_the_grace,
        lambda m: pod(m, "worker").pop("terminationGracePeriodSeconds"),
    ),
    (
        rules_program.drains_fit_the_grace,
        lambda m: container(m, "worker").update(lifecycle={"preStop": {"sleep": {"seconds": 5}}}),
    ),
    (
        rules_network.needed_ways_are_open_and_no_others,
        lambda m: without(m, "NetworkPolicy", "redis-clients"),
    ),
    (
        rules_network.needed_ways_are_open_and_no_others,
        lambda m: policy(m, "postgres")["ingress"].append({}),
    ),
    (
        rules_network.needed_ways_are_open_and_no_others,
        lambda m: m.workload("keeper").labels.pop("celery-ledger/redis"),
    ),
    (rules_network.everybody_finds_names, lambda m: policy(m, "dns")["egress"][0]["ports"].pop(0)),
    (
        rules_network.tasks_call_the_world_and_nobody_else_does,
        lambda m: policy(m, "worker")["egress"][0]["to"][0]["ipBlock"].pop("except"),
    ),
    (rules_network.nobody_is_forgotten, lambda m: without(m, "NetworkPolicy", "deny-all")),
    (
        rules_keda.scaled_objects_fit_their_workers,
        lambda m: settings(m).update(WORKER_CONCURRENCY="8"),
    ),
    (rules_keda.scaled_objects_fit_their_workers, lambda m: scaled(m).pop("fallback")),
    (rules_keda.scaled_objects_fit_their_workers, lambda m: scaled(m).update(maxReplicaCount=1000)),
    (
        rules_keda.scaled_objects_fit_their_workers,
        lambda m: scaled(m)["triggers"][1]["metadata"].update(query="SELECT 1"),
    ),
    (
        rules_keda.keda_knows_whom_to_ask,
        lambda m: without(m, "TriggerAuthentication", "ledger-reader"),
    ),
    (
        rules_keda.keda_knows_whom_to_ask,
        lambda m: m.one("TriggerAuthentication", "ledger-reader")["spec"]["secretTargetRef"].pop(),
    ),
]
STAGING = as_shipped("staging")


@pytest.fixture
def staging(rendered: dict[Combination, Rendered]) -> Manifests:
    return rendered[STAGING].manifests.copy()


@pytest.mark.parametrize(
    ("rule", "plant"), PLANTED, ids=[f"{n}-{rule.__name__}" for n, (rule, _) in enumerate(PLANTED)]
)
def test_a_rule_finds_what_it_is_for(rule: Rule, plant: Plant, staging: Manifests) -> None:
    assert not list(rule(staging, STAGING))

    plant(staging)

    assert list(rule(staging, STAGING))


def test_every_rule_but_two_is_tried() -> None:
    tried = {rule for rule, _ in PLANTED}

    assert set(RULES) - tried == {rules_numbers.production_is_for_more_than_one}


def test_production_with_two_workers_is_told(rendered: dict[Combination, Rendered]) -> None:
    production = as_shipped("production")
    manifests = rendered[production].manifests.copy()
    scaled(manifests).update(minReplicaCount=2)

    assert list(rules_numbers.production_is_for_more_than_one(manifests, production))


def test_production_with_a_tag_is_told(rendered: dict[Combination, Rendered]) -> None:
    production = as_shipped("production")
    manifests = rendered[production].manifests.copy()
    for workload in manifests.workloads:
        for each in workload.ours:
            each["image"] = each["image"].partition("@")[0]

    assert list(rules_pods.images_are_the_same(manifests, production))


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "worker", ("spec", "template", "spec", "hostAliasses"), []),
        ("Deployment", "keeper", ("spec", "replicas"), "2"),
        ("PodDisruptionBudget", "worker", ("spec", "minAvailble"), 1),
        ("ScaledObject", "worker", ("spec", "minReplicas"), 1),
        ("ScaledObject", "worker", ("spec", "fallback", "behavior"), "current"),
        ("TriggerAuthentication", "ledger-reader", ("spec", "secretTargetRefs"), []),
    ],
)
def test_the_schemas_refuse_what_is_not_there(
    kind: str,
    name: str,
    path: tuple[str, ...],
    value: object,
    rendered: dict[Combination, Rendered],
    tools: Tools,
    tmp_path: Path,
) -> None:
    each = rendered[STAGING].manifests.copy().one(kind, name)
    *above, last = path
    target = each
    for step in above:
        target = target[step]
    target[last] = value
    (tmp_path / "planted.yaml").write_text(json.dumps(each))  # JSON is YAML

    assert tools.judge(tmp_path)["planted.yaml"]
