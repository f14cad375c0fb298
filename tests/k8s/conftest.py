"""Fixtures of the tests of k8s/: the combinations, rendered and judged once."""

from __future__ import annotations

import os

import pytest

from tests.k8s.rendering import OVERLAYS, Combination, Rendered, Tools, as_shipped, render_all

_WHY_NOT = pytest.StashKey[str]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say loudly that nothing was checked."""
    if _WHY_NOT in config.stash:
        terminalreporter.write_line(
            f"K8S/ IS NOT CHECKED: {config.stash[_WHY_NOT]}", red=True, bold=True
        )


@pytest.fixture(scope="session")
def tools(pytestconfig: pytest.Config) -> Tools:
    """kubectl and the judges; without them these tests are skipped, loudly, and fail in CI."""
    found = Tools.find()
    if isinstance(found, str):
        pytestconfig.stash[_WHY_NOT] = found
        if os.environ.get("CI"):
            pytest.fail(f"k8s/ is not checked: {found}")
        pytest.skip(f"k8s/ is not checked: {found}")
    return found


@pytest.fixture(scope="session")
def rendered(
    tools: Tools, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[Combination, Rendered]:
    """The overlays as they are, and every combination that a test of this session is about."""
    wanted = dict.fromkeys(map(as_shipped, OVERLAYS))
    for item in request.session.items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if isinstance(combination := parameters.get("combination"), Combination):
            wanted[combination] = None
    return render_all(tools, tmp_path_factory.mktemp("k8s"), wanted)
