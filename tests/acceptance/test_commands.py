"""Every remote command and every endpoint of Flower, tried on one running worker."""

from __future__ import annotations

import base64
import importlib
import json
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from celery import Celery
from celery.worker.control import Panel
from flower.urls import handlers

from tests.processes import Processes
from worker.client import Client
from worker.jobs.states import State
from worker.settings import Settings

NAME = "w@here"
WAIT = {"reply": True, "timeout": 5.0, "destination": [NAME]}
LOGIN = "ann:open-sesame"


@pytest.fixture
def app(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Celery:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.setenv(name, environment[name])
    sys.modules.pop("tests.acceptance.commands_app", None)
    made: Celery = importlib.import_module("tests.acceptance.commands_app").app
    return made


def until(true: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)  # a store, and Flower, have no event to wait on
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Web:
    """Flower's pages and endpoints."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.tried: set[str] = set()

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer; a body makes it a POST, of a form or of JSON."""
        data = body.encode() if isinstance(body, str) else body and json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        request.add_header("Authorization", "Basic " + base64.b64encode(LOGIN.encode()).decode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.tried.add(urllib.parse.urlsplit(path).path)
        try:
            with opener.open(request, timeout=30) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                status, text = exc.code, exc.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def ok(self, path: str, body: Any = None) -> Any:
        """The answer, which is a good one."""
        status, answer = self.ask(path, body)
        assert status == 200, (path, status, answer)
        return answer


def test_every_command_and_every_endpoint(
    app: Celery, processes: Processes, settings: Settings
) -> None:
    module = ["-m", "celery", "-A", "tests.acceptance.commands_app"]
    worker = processes(
        [
            sys.executable,
            *module,
            "worker",
            "-P",
            "prefork",
            "-c",
            "2",
            "-n",
            NAME,
            "-E",
            "--loglevel",
            "info",
        ],
        {"WORKER_LEASE_SECONDS": "5"},
    )
    port = free_port()
    flower = processes(
        [sys.executable, *module, "flower", f"--port={port}", "--address=127.0.0.1"],
        {"FLOWER_BASIC_AUTH": LOGIN},
    )
    worker.wait_for_line("ready.", 90)
    with closing(Client(settings)) as client:
        _inspects(app, client)
        _controls(app, client)
        flower.wait_for_line("Connected to redis://", 90)
        _flower(Web(port), app, client)
    assert worker.wait(60) == 0
    assert "Traceback" not in flower.output


def _inspects(app: Celery, client: Client) -> None:
    slow, add = app.tasks[f"{__package__}.commands_app.slow"], app.tasks[_ADD]
    running, later = slow.delay(60), add.apply_async((1, 2), countdown=600)
    elsewhere = add.apply_async((1, 2), countdown=600, queue="elsewhere")
    until(lambda: client.job(running.id).state is State.RUNNING, "it runs")
    inspect = app.control.inspect(destination=[NAME], timeout=5.0)

    answers: dict[str, Any] = {
        name: getattr(inspect, name)()[NAME]
        for name in (
            "active", "active_queues", "clock", "conf", "memdump", "memsample", "ping",
            "registered", "report", "reserved", "revoked", "scheduled", "stats",
        )
    }  # fmt: skip
    answers["hello"] = inspect.hello("other@there")[NAME]
    answers["objgraph"] = inspect.objgraph()[NAME]
    answers["query_task"] = inspect.query_task(running.id, later.id, elsewhere.id)[NAME]

    assert [each["id"] for each in answers["active"]] == [running.id]
    assert [queue["name"] for queue in answers["active_queues"]] == ["celery"]
    assert answers["clock"]["clock"] >= 0 and "pool" in answers["stats"]
    assert "revoked" in answers["hello"] and answers["reserved"] == answers["revoked"] == []
    assert set(answers["registered"]) >= {_ADD}
    assert settings_password(client) not in json.dumps(answers)
    (told,) = answers["scheduled"]
    assert (told["request"]["id"], told["request"]["args"]) == (later.id, [1, 2])
    assert told["eta"] == client.job(later.id).run_at.isoformat()  # type: ignore[union-attr] # it has one
    assert {job_id: found[0] for job_id, found in answers["query_task"].items()} == {
        running.id: "active",
        later.id: "scheduled",
    }
    inspected = {name for name, meta in Panel.meta.items() if meta.type == "inspect"}
    assert set(answers) == inspected

    app.control.revoke([running.id, later.id, elsewhere.id], terminate=1, signal="SIGTERM")
    until(lambda: set(inspect.revoked()[NAME]) >= {running.id, later.id}, "they are revoked")
    assert inspect.scheduled()[NAME] == []


_ADD = f"{__package__}.commands_app.add"


def settings_password(client: Client) -> str:
    return str(urllib.parse.urlsplit(client.settings.redis_url.get_secret_value()).password)


#: What `add_consumer` is told of queues that no worker here can serve, and the answer.
_ODD_QUEUES: list[tuple[dict[str, Any], str]] = [
    ({"queue": "f", "exchange": "f", "exchange_type": "fanout"}, "the fanout exchange 'f'"),
    ({"queue": "h", "exchange": "h", "exchange_type": "headers"}, "the headers exchange 'h'"),
    ({"queue": ""}, "A queue name must be a non-empty printable text"),
    ({"queue": "o", "bindings": 5}, "These options make no queue: "),
]


def _controls(app: Celery, client: Client) -> None:
    add, control = app.tasks[_ADD], app.control
    done: set[str] = {"shutdown", "election"}  # Flower does the one, gossip is asked for the other

    def ok(command: str, **arguments: Any) -> None:
        ((answer,),) = [each.values() for each in control.broadcast(command, arguments, **WAIT)]
        assert answer is None or "ok" in answer, (command, answer)
        done.add(command)

    ok("rate_limit", task_name=_ADD, rate_limit="1000/s")
    ok("time_limit", task_name=_ADD, soft=50, hard=60)
    ok("add_consumer", queue="other")
    assert add.apply_async((3, 4), queue="other").get(timeout=30) == 7
    ok("cancel_consumer", queue="other")
    for odd, said in _ODD_QUEUES:  # and the worker goes on
        (refused,) = control.broadcast("add_consumer", odd, **WAIT)
        assert said in refused[NAME]["error"], odd
    for command in ("enable_events", "disable_events", "enable_events", "heartbeat"):
        ok(command)
    ok("pool_grow", n=1)
    ok("pool_shrink", n=1)
    ok("pool_restart")
    assert add.delay(3, 4).get(timeout=30) == 7
    (refused,) = control.autoscale(4, 1, **WAIT)
    assert "Autoscale not enabled" in refused[NAME]["error"]
    done.add("autoscale")

    # A revoke that a command line broadcasts, without the ledger, reaches it through a worker.
    later = add.apply_async((1, 2), countdown=600)
    ok("revoke", task_id=later.id)
    until(lambda: client.job(later.id).state is State.CANCELLED, "it is revoked")
    # And what was revoked may be replayed, on a worker that remembers the revoke.
    client.replay(later.id)
    assert client.wait(later.id, 30).state is State.SUCCEEDED
    ok("terminate", signal="SIGTERM", task_id="never-sent")
    ok("revoke_by_stamped_headers", headers={"tenant": ["acme"]})
    assert done == {name for name, meta in Panel.meta.items() if meta.type == "control"}


def _flower(web: Web, app: Celery, client: Client) -> None:
    def known() -> bool:
        return "active_queues" in web.ask("/api/workers?refresh=1")[1].get(NAME, {})

    until(known, "Flower knows the worker")
    for page in ("/", "/workers", f"/worker/{NAME}", "/tasks", "/broker"):
        web.ok(page)
    slow = f"{__package__}.commands_app.slow"
    waiting = app.send_task(_ADD, (1, 2), queue="celery", countdown=600)
    assert web.ok("/api/queues/length") == {"active_queues": [{"name": "celery", "messages": 0}]}

    assert web.ok(f"/api/task/apply/{_ADD}", {"args": [1, 2]})["result"] == 3
    for way in ("async-apply", "send-task"):
        job_id = web.ok(f"/api/task/{way}/{_ADD}", {"args": [1, 2]})["task-id"]
        assert web.ok(f"/api/task/result/{job_id}?timeout=30")["result"] == 3
    until(lambda: web.ask(f"/api/task/info/{job_id}")[0] == 200, "Flower has heard of it")
    assert web.ok(f"/api/task/info/{job_id}")["name"] == _ADD
    web.ok(f"/task/{job_id}")
    assert job_id in web.ok("/api/tasks")
    assert _ADD in web.ok("/api/task/types")["task-types"]
    columns = "&columns%5B0%5D%5Bdata%5D=name&order%5B0%5D%5Bcolumn%5D=0&order%5B0%5D%5Bdir%5D=asc"
    web.ok(f"/tasks/datatable?draw=1&start=0&length=10&search%5Bvalue%5D={columns}")

    aborted = web.ok(f"/api/task/async-apply/{slow}", {"args": [60]})["task-id"]
    until(lambda: client.job(aborted).state is State.RUNNING, "it runs")
    web.ok(f"/api/task/abort/{aborted}", " ")
    assert web.ok(f"/api/task/result/{aborted}?timeout=30")["result"] == "aborted"
    for form in ("terminate=true&signal=SIGTERM", "terminate=1&signal=SIGKILL"):
        job_id = web.ok(f"/api/task/async-apply/{slow}", {"args": [60]})["task-id"]
        until(lambda job_id=job_id: client.job(job_id).state is State.RUNNING, "it runs")  # type: ignore[misc] # bound now
        web.ok(f"/api/task/revoke/{job_id}", form)
        assert client.job(job_id).state is State.CANCELLED
    web.ok(f"/api/task/revoke/{waiting.id}", " ")
    assert client.job(waiting.id).state is State.CANCELLED

    web.ok(f"/api/task/timeout/{_ADD}", f"workername={NAME}&soft=5&hard=10")
    web.ok(f"/api/task/rate-limit/{_ADD}", f"workername={NAME}&ratelimit=100/s")
    for change, form in (
        ("pool/restart", " "),
        ("pool/grow", "n=1"),
        ("pool/shrink", "n=1"),
        ("queue/add-consumer", "queue=other"),
        ("queue/cancel-consumer", "queue=other"),
    ):
        web.ok(f"/api/worker/{change}/{NAME}", form)
    status, answer = web.ask(f"/api/worker/pool/autoscale/{NAME}", "min=1&max=3")
    assert (status, "Autoscale not enabled" in answer) == (403, True)
    web.ok("/metrics")
    web.ok("/healthcheck")
    web.ok(f"/api/worker/shutdown/{NAME}", " ")
    _all_were_tried(web.tried)


def _all_were_tried(tried: set[str]) -> None:
    import re

    apart = ("/static", "/login", "/logout", ".*")
    for handler in handlers:
        pattern = handler[0] if isinstance(handler, tuple) else handler.regex.pattern
        if not pattern.startswith(apart):
            assert any(re.fullmatch(pattern, path) for path in tried), f"{pattern} was not tried"
