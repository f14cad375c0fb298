"""Rendered manifests, as the rules look at them: workloads, pods, containers, who selects whom."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

#: A name that kustomize has ended with a hash of the content.
HASHED = re.compile(r"-[0-9a-z]{10}$")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
#: The repository's last name, whatever registry an overlay takes it from.
OUR_IMAGE = "celery-ledger"


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment, StatefulSet or Job, and the pod that it makes."""

    object: Object

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def name(self) -> str:
        return name_of(self.object)

    @property
    def spec(self) -> Object:
        found: Object = self.object["spec"]
        return found

    @property
    def labels(self) -> dict[str, str]:
        """The pod's."""
        found: dict[str, str] = self.spec["template"]["metadata"]["labels"]
        return found

    @property
    def pod(self) -> Object:
        """The pod's spec."""
        found: Object = self.spec["template"]["spec"]
        return found

    @property
    def component(self) -> str:
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def ours(self) -> list[Object]:
        """The containers that run our image."""
        return [c for c in self.containers if repository_of(c["image"]) == OUR_IMAGE]


class Manifests:
    """All objects of one rendering."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        """The one object of this kind and name."""
        (found,) = [each for each in self.of(kind) if name_of(each) == name]
        return found

    def has(self, kind: str, name: str) -> bool:
        return any(name_of(each) == name for each in self.of(kind))

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(each) for each in self.of(*WORKLOADS)]

    @property
    def containers(self) -> Iterator[tuple[Workload, Object]]:
        """Each container, with its workload."""
        for workload in self.workloads:
            for container in workload.containers:
                yield workload, container

    def workload(self, name: str) -> Workload:
        (found,) = [each for each in self.workloads if each.name == name]
        return found

    @property
    def namespace(self) -> Object:
        (found,) = self.of("Namespace")
        return found

    @property
    def namespace_labels(self) -> dict[str, str]:
        """As the API server completes them."""
        name = {"kubernetes.io/metadata.name": name_of(self.namespace)}
        return {**part(self.namespace, "metadata", "labels"), **name}

    def selected(self, selector: Object | None) -> list[Workload]:
        """The workloads whose pods a selector of this namespace finds."""
        return [each for each in self.workloads if selects(selector, each.labels)]

    def copy(self) -> Manifests:
        """To plant a fault in."""
        return Manifests(copy.deepcopy(self.objects))


def name_of(each: Object) -> str:
    return str(each["metadata"]["name"])


def title(each: Object) -> str:
    return f"{each['kind']}/{name_of(each)}"


def part(each: Object, *path: str) -> Any:
    """What stands at `path`; an empty object where nothing does."""
    for name in path:
        each = each.get(name) or {}
    return each


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector finds these labels; an empty one finds all, `None` none."""
    if selector is None:
        return False
    wanted = part(selector, "matchLabels").items() <= labels.items()
    return wanted and all(_expressed(each, labels) for each in selector.get("matchExpressions", []))


def _expressed(expression: Object, labels: dict[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case _:
            return value is None


def repository_of(image: str) -> str:
    """The last part of an image's name, without registry, tag and digest."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def tag_of(image: str) -> str:
    """An image's tag; empty when it has none."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2]


def environment(
    manifests: Manifests, workload: Workload, container: Object
) -> dict[str, str | None]:
    """A container's variables; `None` where the value comes from a Secret that is not rendered."""
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        name = part(source, "configMapRef").get("name")
        if name and manifests.has("ConfigMap", name):
            found |= part(manifests.one("ConfigMap", name), "data")
    for variable in container.get("env", []):
        field = part(variable, "valueFrom", "fieldRef").get("fieldPath", "")
        if field.startswith("metadata.labels['"):
            found[variable["name"]] = workload.labels.get(field.split("'")[1])
        else:
            found[variable["name"]] = variable.get("value")
    return found


def arguments(manifests: Manifests, workload: Workload, container: Object) -> list[str]:
    """A container's arguments, as Kubernetes completes them."""
    words = [str(word) for word in container.get("args", [])]
    for name, value in environment(manifests, workload, container).items():
        words = [word.replace(f"$({name})", value or f"<{name}>") for word in words]
    return words


def references(each: Any) -> Iterator[tuple[str, str, str | None]]:
    """Each ConfigMap and Secret that a pod's spec refers to: kind, name, key."""
    if isinstance(each, list):
        for item in each:
            yield from references(item)
    elif isinstance(each, dict):
        for name, value in each.items():
            if name in ("secretKeyRef", "configMapKeyRef"):
                yield name.removesuffix("KeyRef"), value["name"], value["key"]
            elif name in ("secretRef", "configMapRef"):
                yield name.removesuffix("Ref"), value["name"], None
            elif name == "secret" and "secretName" in value:
                yield "secret", value["secretName"], None
            elif name == "configMap" and "name" in value and not value.get("optional"):
                yield "configMap", value["name"], None
            else:
                yield from references(value)
