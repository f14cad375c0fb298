"""The paths that the probes ask for are answered by the server that they ask."""

from __future__ import annotations

import urllib.request

import pytest

from tests.k8s.manifests import part
from tests.k8s.rendering import Combination, Rendered, as_shipped
from worker.telemetry.health import HealthServer


@pytest.mark.parametrize("component", ["worker", "keeper"])
def test_the_health_server_answers_every_probe(
    component: str, rendered: dict[Combination, Rendered]
) -> None:
    (container,) = rendered[as_shipped("dev")].manifests.workload(component).containers
    paths = {
        part(container, f"{probe}Probe", "httpGet")["path"]
        for probe in ("startup", "liveness", "readiness")
    }
    server = HealthServer("127.0.0.1", 0, tuple, tuple)
    server.start()
    try:
        for path in paths:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
                assert answer.status == 200
    finally:
        server.close()
