"""The stack does its work: a job's result, the command line, Flower, tasks of one's own."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.conftest import Image, not_in_the_smoke
from tests.compose.engine import ROOT, build, docker, inspect, until
from tests.compose.stack import Stack
from worker.client import Client
from worker.errors import UnknownQueue, UnknownTask
from worker.jobs.job import Enqueued
from worker.jobs.states import State


@pytest.fixture(scope="module")
def client(stack: Stack, measured: dict[str, Any]) -> Iterator[Client]:
    """A producer outside of the stack, which is up, with one worker."""
    began = time.monotonic()
    stack.set(WORKERS="1", KEEPERS="1")
    stack.up()
    with Client(stack.settings) as made:
        job = made.wait(made.enqueue("probe.echo", ["first"]).id, 120)
        assert job.state is State.SUCCEEDED
        measured["seconds_until_a_result"] = round(time.monotonic() - began, 1)
        yield made


def test_every_component_is_healthy(stack: Stack, client: Client) -> None:
    stack.wait_until_healthy(postgres=1, redis=1, keeper=1, worker=1, flower=1)

    (migrate,) = stack.compose("ps", "--all", "--quiet", "migrate").split()
    assert inspect(migrate)["State"]["ExitCode"] == 0


def test_the_program_is_process_1(stack: Stack, client: Client) -> None:
    for service in ("worker", "keeper", "flower"):
        (container,) = stack.containers(service)
        line = docker("exec", container, "cat", "/proc/1/cmdline").split("\0")
        assert line[1].endswith("/worker") and line[2] in ("run", "keeper", "flower")


def test_the_command_line_runs_in_the_stack(stack: Stack, client: Client) -> None:
    enqueue = ("run", "--rm", "-T", "cli", "enqueue", "probe.echo", "--args", '["inside"]')

    result = stack.compose(*enqueue, "--wait")
    checked = json.loads(stack.compose("run", "--rm", "-T", "cli", "check", "--json"))

    assert json.loads(result) == "inside"
    assert checked["ok"] is True, checked


def test_a_health_check_costs_little(stack: Stack, client: Client) -> None:
    (container,) = stack.containers("worker")
    code = (
        "import resource, subprocess; subprocess.run(['healthy'], check=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )

    seconds = float(docker("exec", container, "python3", "-c", code).splitlines()[-1])

    assert seconds < 0.2


@not_in_the_smoke  # three failed checks, ten seconds apart
def test_the_health_check_tells_why(stack: Stack, client: Client) -> None:
    (worker,), (redis,) = stack.containers("worker"), stack.containers("redis")

    docker("stop", redis)
    try:
        until(lambda: health(worker)["Status"] == "unhealthy", 120, "an unhealthy worker")
        last = health(worker)["Log"][-1]["Output"]
    finally:
        docker("start", redis)

    assert "Redis does not answer" in last
    # And nobody has restarted it by that
    until(lambda: health(worker)["Status"] == "healthy", 120, "a healthy worker")
    assert inspect(worker)["RestartCount"] == 0


def health(container: str) -> Any:
    return inspect(container)["State"]["Health"]


def test_flower_asks_for_a_password(stack: Stack, client: Client) -> None:
    stack.wait_until_healthy(flower=1)
    pair = base64.b64encode(f"admin:{stack['FLOWER_PASSWORD']}".encode()).decode()

    assert status_of(stack, {}) == 401
    assert status_of(stack, {"Authorization": f"Basic {pair}"}) == 200


def status_of(stack: Stack, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(stack["FLOWER_PORT"]), timeout=20)
    try:
        connection.request("GET", "/workers", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_worker_without_any_right_runs_jobs(
    stack: Stack, client: Client, image: Image, request: pytest.FixtureRequest
) -> None:
    (worker,) = stack.containers("worker")
    given = [word for pair in inspect(worker)["Config"]["Env"] for word in ("--env", pair)]
    container = docker(
        "run", "--detach", "--network", f"{stack.project}_stores", "--read-only",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "12345",
        *given, image.reference, "run", "--queues", "rightless",
    )  # fmt: skip
    request.addfinalizer(lambda: docker("rm", "--force", container))

    answers = [
        enqueued(client, task, value, queue="rightless")
        for task, value in (("probe.echo", 12345), ("probe.sleep", 0.1))
    ]

    assert [client.wait(answer.id, 60).state for answer in answers] == [State.SUCCEEDED] * 2
    # And SIGTERM reaches it, process 1 that it is
    docker("stop", "--time", "60", container)
    assert inspect(container)["State"]["ExitCode"] == 0


def test_a_prefork_worker_is_one_profile_away(stack: Stack, client: Client) -> None:
    stack.compose("--profile", "cpu", "up", "--detach", "--no-build", "--no-deps", "worker-cpu")
    try:
        ran = enqueued(client, "probe.fail", "again", 2, queue="cpu")
        assert client.wait(ran.id, 90).state is State.SUCCEEDED
    finally:
        stack.compose("--profile", "cpu", "rm", "--stop", "--force", "worker-cpu")


def test_tasks_of_ones_own_are_copied_into_an_image(
    stack: Stack, client: Client, image: Image, images: list[str]
) -> None:
    # Given an image from this one, as docker/example has it
    images.append("parcels:compose-test")
    build(images[0], ROOT / "docker" / "example", "--build-arg", f"LEDGER={image.reference}")
    # When the worker runs it
    stack.set(IMAGE="parcels", TAG="compose-test", WORKER_TASKS="parcels.tasks")
    stack.up("--no-deps", "worker")
    try:
        # Then its tasks are there
        assert (
            client.wait(enqueued(client, "parcels.postage", 1200).id, 60).state is State.SUCCEEDED
        )
    finally:
        stack.set(IMAGE=image.name, TAG=image.tag, WORKER_TASKS="")
        stack.up("--no-deps", "worker")


def test_tasks_of_ones_own_are_mounted(stack: Stack, client: Client) -> None:
    stack.rows("DELETE FROM ledger.catalogue WHERE task = 'parcels.postage' RETURNING task")
    stack.files.append("docker/example/mounted.yml")
    stack.up("--no-deps", "worker")
    try:
        assert (
            client.wait(enqueued(client, "parcels.postage", 1200).id, 60).state is State.SUCCEEDED
        )
    finally:
        stack.files.remove("docker/example/mounted.yml")


def enqueued(client: Client, task: str, *args: Any, queue: str | None = None) -> Enqueued:
    """A job, once a worker has published its task and its queue."""
    found: list[Enqueued] = []

    def accepted() -> bool:
        try:
            found.append(client.enqueue(task, args, queue=queue))
        except (UnknownQueue, UnknownTask):
            return False
        return True

    until(accepted, 90, f"a worker that knows {task} and queue {queue}")
    return found[0]
