"""Every overlay, with every combination of components, as a user would have written it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.k8s.manifests import Manifests

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "staging", "production")
#: In the order in which a kustomization must list them: a later one may undo a part of an earlier.
COMPONENTS = (
    "external-stores", "high-availability", "keda", "hpa", "deletion-cost", "monitoring", "ingress",
)  # fmt: skip
#: Both own the number of workers.
RIVALS = {"keda", "hpa"}
#: The oldest Kubernetes that is promised, and the newest that the schemas know of those tried.
VERSIONS = ("1.30", "1.36")

_LISTED = re.compile(r"^components:\n(?:  .*\n)+", re.MULTILINE)
_NAMED = re.compile(r"^  - \.\./\.\./components/([\w-]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Combination:
    """An overlay and all the components that it then has."""

    overlay: str
    components: tuple[str, ...]

    def __str__(self) -> str:
        return "+".join((self.overlay, *self.components))


def own_components(overlay: str) -> tuple[str, ...]:
    """What the overlay lists itself."""
    return tuple(_NAMED.findall(_kustomization(overlay).read_text()))


def as_shipped(overlay: str) -> Combination:
    """The overlay with no more than its own."""
    return Combination(overlay, own_components(overlay))


def combinations() -> Iterator[Combination]:
    """Each overlay with each set of components that it does not have already."""
    for overlay in OVERLAYS:
        own = set(own_components(overlay))
        others = [name for name in COMPONENTS if name not in own]
        for number in range(len(others) + 1):
            for more in itertools.combinations(others, number):
                both = own.union(more)
                if not both >= RIVALS:
                    yield Combination(overlay, tuple(c for c in COMPONENTS if c in both))


def render(combination: Combination, folder: Path, kubectl: str) -> str:
    """The YAML of a combination, rendered in a copy of `k8s/` below `folder`.

    Raises:
        AssertionError: kustomize refuses it.
    """
    copy = folder / str(combination)
    shutil.copytree(ROOT / "k8s", copy)
    overlay = copy / "overlays" / combination.overlay
    (file,) = overlay.glob("kustomization.yaml")
    text = _LISTED.sub("", file.read_text())
    if combination.components:
        text += "components:\n"
        text += "".join(f"  - ../../components/{name}\n" for name in combination.components)
    file.write_text(text)
    done = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, text=True)
    assert done.returncode == 0, f"{combination}: {done.stderr}"
    shutil.rmtree(copy)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Tools:
    """What renders and what judges."""

    kubectl: str
    python: Path

    @classmethod
    def find(cls) -> Tools | str:
        """The tools, or which of them is missing."""
        kubectl = shutil.which("kubectl")
        python = Path(os.environ.get("K8S_TOOLS", ROOT / ".venv-k8s")) / "bin" / "python"
        if kubectl is None:
            return "kubectl is not in the PATH"
        if not python.exists():
            return f"{python} is missing: `make k8s` makes it from requirements-k8s.lock"
        return cls(kubectl, python)

    def judge(self, folder: Path) -> dict[str, list[str]]:
        """What the schemas have against each *.yaml of `folder`; leaves a *.json beside each."""
        script = Path(__file__).with_name("judge.py")
        argv = [str(self.python), str(script), str(folder), *VERSIONS]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        faults: dict[str, list[str]] = json.loads(done.stdout)
        return faults


@dataclass(frozen=True, slots=True)
class Rendered:
    """A combination, what came of it, and what the schemas say."""

    combination: Combination
    manifests: Manifests
    faults: list[str]
    file: Path


def render_all(
    tools: Tools, folder: Path, wanted: Iterable[Combination]
) -> dict[Combination, Rendered]:
    """Render and judge combinations."""
    files = {combination: folder / f"{combination}.yaml" for combination in wanted}

    def write(combination: Combination) -> None:
        files[combination].write_text(render(combination, folder / "copies", tools.kubectl))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, files))  # which raises what a rendering did
    faults = tools.judge(folder)
    return {
        combination: Rendered(
            combination,
            Manifests(json.loads(file.with_suffix(".json").read_text())),
            faults[file.name],
            file,
        )
        for combination, file in files.items()
    }


def _kustomization(overlay: str) -> Path:
    return ROOT / "k8s" / "overlays" / overlay / "kustomization.yaml"
