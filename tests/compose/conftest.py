"""What the tests on a real Docker engine share: one image, a stack for each module of tests.

They run by `make compose-test`, and never else: they take minutes and an engine. Where none answers
they are skipped, which is said once, in a line that nobody can miss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.compose.engine import ROOT, attempt, build, why_not
from tests.compose.stack import Stack

#: How many jobs the run enqueues; set by the Makefile.
JOBS = int(os.environ.get("COMPOSE_TEST_JOBS") or 0)
#: The smoke leaves out what takes long and seldom breaks.
not_in_the_smoke = pytest.mark.skipif(JOBS < 2000, reason="not in the smoke")
IMAGE, TAG = "celery-ledger", "compose-test"

collect_ignore_glob = [] if JOBS else ["test_*.py"]

_WHY_NOT = pytest.StashKey[str]()
_MEASURED = pytest.StashKey[dict[str, Any]]()
_STORIES = pytest.StashKey[list[str]]()


@dataclass(frozen=True, slots=True)
class Image:
    """A built image, and the one that it stands on."""

    name: str
    tag: str
    base: str

    @property
    def reference(self) -> str:
        """As a docker command takes it."""
        return f"{self.name}:{self.tag}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs an engine where there is none."""
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    reason = why_not() if own else None
    if reason is not None:
        config.stash[_WHY_NOT] = reason
        for item in own:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say loudly that nothing was tried; or what was measured, and what a failed stack was."""
    if _WHY_NOT in config.stash:
        reason = config.stash[_WHY_NOT]
        terminalreporter.write_line(
            f"COMPOSE TESTS SKIPPED, NOTHING OF THE CONTAINERS WAS TRIED: {reason}",
            red=True, bold=True,
        )  # fmt: skip
    for story in config.stash.get(_STORIES, []):
        terminalreporter.write_line(story)
    for name, value in config.stash.get(_MEASURED, {}).items():
        terminalreporter.write_line(f"{name}: {json.dumps(value)}")


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What is put into it is printed at the end."""
    return pytestconfig.stash.setdefault(_MEASURED, {})


@pytest.fixture(scope="session")
def image() -> Image:
    """The image of this checkout. It stays, with the builder's cache, for the next run."""
    made = Image(IMAGE, TAG, base_of(ROOT / "docker" / "Dockerfile"))
    build(made.reference, ROOT, dockerfile=ROOT / "docker" / "Dockerfile")
    return made


@pytest.fixture(scope="module")
def images() -> Iterator[list[str]]:
    """Images whose names are put into it are removed with the module, after its stack."""
    made: list[str] = []
    yield made
    for name in made:
        attempt("image", "rm", "--force", name)


@pytest.fixture(scope="module")
def stack(
    image: Image,
    images: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Stack]:
    """A whole stack of the module's own; nothing of it runs yet, nothing of it is left behind."""
    made = Stack(tmp_path_factory.mktemp("stack"), image.name, image.tag)
    failed = request.session.testsfailed
    try:
        yield made
    finally:
        if request.session.testsfailed > failed:
            request.config.stash.setdefault(_STORIES, []).append(made.story())
        made.down()


def base_of(dockerfile: Path) -> str:
    """The image that a Dockerfile's first ARG names."""
    (line, *_) = [x for x in dockerfile.read_text().splitlines() if x.startswith("ARG PYTHON=")]
    return line.removeprefix("ARG PYTHON=")
