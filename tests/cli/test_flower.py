"""`worker flower`: Flower runs on our app, and not open to the world."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flower.utils.broker import Broker
from pydantic import SecretStr

from tests import sentinels
from tests.cli.said import Command
from tests.processes import Processes
from tests.tls import make_certificate, terminated
from worker.broker.address import with_options
from worker.broker.doorbells import Doorbells
from worker.cli.flower import _app
from worker.jobs.job import Ring
from worker.settings import Settings

LOGIN = "ann:open-sesame"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(port: int, path: str, login: str | None = LOGIN) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if login is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    # No proxy stands between a test and loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def eventually(port: int, path: str, wanted: Any, seconds: float = 60.0) -> dict[str, Any]:
    """What Flower answers once it has seen what is `wanted`: it learns by looking."""
    deadline = time.monotonic() + seconds
    while True:
        status, body = get(port, path)
        answer: dict[str, Any] = json.loads(body) if status == 200 else {}
        if wanted(answer):
            return answer
        assert time.monotonic() < deadline, (status, body)
        time.sleep(0.2)


def _is_known(workers: dict[str, dict[str, Any]]) -> bool:
    return workers.get("w@here", {}).keys() >= {"registered", "stats", "active_queues"}


def test_it_shows_the_workers_the_jobs_and_the_queues(here: Command, processes: Processes) -> None:
    worker = processes([sys.executable, "-m", "worker", "run", "-n", "w@here"])
    worker.wait_for_line("ready.", 60)
    port = free_port()
    flower = processes(
        [sys.executable, "-m", "worker", "flower", "--port", str(port), "--inspect_timeout=5000"],
        {"FLOWER_BASIC_AUTH": LOGIN},
    )
    flower.wait_for_line("Connected to redis://", 60)

    workers = eventually(
        port, "/api/workers", lambda found: "registered" in found.get("w@here", {})
    )
    job = here("enqueue", "probe.echo", "--wait", "--json").json
    tasks = eventually(port, "/api/tasks", lambda found: found)

    assert "probe.echo" in workers["w@here"]["registered"]
    assert tasks.keys() == {job["id"]}
    assert json.loads(get(port, "/api/queues/length")[1]) == {
        "active_queues": [{"name": "celery", "messages": 0}]
    }
    assert get(port, "/")[0] == get(port, "/broker")[0] == 200
    assert get(port, "/", login=None)[0] == get(port, "/", login="ann:wrong")[0] == 401
    command_line = Path(f"/proc/{flower.pid}/cmdline")
    assert not command_line.exists() or "sesame" not in command_line.read_text()
    flower.send(signal.SIGTERM)
    assert flower.wait(30) == 0
    assert "sesame" not in flower.output and "Traceback" not in flower.output


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"FLOWER_BASIC_AUTH": ""},
        {"FLOWER_BASIC_AUTH": "ann:"},
        {"FLOWER_BASIC_AUTH": "ann:open-sesame,bob"},
    ],
)
def test_without_a_password_it_keeps_to_this_machine(
    process: Command, variables: dict[str, str]
) -> None:
    said = process("flower", FLOWER_ADDRESS="0.0.0.0", **variables)

    assert said.code == 2
    assert said.err == (
        "Error: Flower would listen on 0.0.0.0 without a password; set FLOWER_BASIC_AUTH to"
        " user:password, or --address 127.0.0.1.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--basic-aut=ann:sesame"], "No such option '--basic-aut'"),
        (["--max_workers=many"], "Flower refuses an option"),
        (["--conf=nowhere.py"], "nowhere.py"),
    ],
)
def test_an_option_that_flower_would_drop_is_refused(
    process: Command, arguments: list[str], sentence: str
) -> None:
    said = process("flower", *arguments)

    assert said.code == 2
    assert sentence in said.err


def test_a_port_that_kubernetes_set_is_one_sentence(process: Command) -> None:
    said = process("flower", FLOWER_PORT="tcp://10.0.0.1:5555")

    assert said.code == 2
    assert "enableServiceLinks: false" in said.err


def test_a_taken_port_is_one_sentence(process: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = process("flower", "--port", str(port))

    assert said.code == 2
    assert said.err == (
        f"Error: Flower cannot listen on 127.0.0.1 port {port}: Address already in use; stop what"
        " has the port, or choose another --port.\n"
    )


def test_without_flower_it_says_what_to_install(
    here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flower.command", None)

    said = here("flower")

    assert said.code == 2
    assert said.err == (
        'Error: Flower is not installed; run `pip install "path/to/celery-ledger[flower]"`.\n'
    )


async def _lengths(broker: Any) -> Any:
    lengths = await broker.queues(["celery"])
    manager = getattr(broker.redis.connection_pool, "sentinel_manager", None)
    for asked in manager.sentinels if manager else ():
        await asked.aclose()  # Flower leaves it open
    return lengths


@pytest.mark.parametrize("way", ["tls", "sentinel"])
def test_it_finds_the_lists_of_a_redis_behind_tls_or_sentinels(
    way: str, settings: Settings, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        if way == "tls":
            certificate = make_certificate(tmp_path / "redis.pem", "IP:127.0.0.1")
            tls = stack.enter_context(
                terminated(settings.redis_url.get_secret_value(), certificate)
            )
            url = f"{tls.url}?ssl_ca_certs={certificate}"
        else:
            group = stack.enter_context(sentinels.group())
            # Flower asks the first Sentinel alone.
            url = with_options(group.broker_url, group.transport_options, None)
        app = _app(settings.model_copy(update={"redis_url": SecretStr(url)}))
        doorbells = Doorbells(url)
        stack.callback(doorbells.close)
        doorbells.ring([Ring("a", "celery", 1)])

        with app.connection() as connection:
            broker = Broker(
                connection.as_uri(include_password=True),
                broker_options=app.conf.broker_transport_options,
                broker_use_ssl=app.conf.broker_use_ssl,
            )

        assert asyncio.run(_lengths(broker)) == [{"name": "celery", "messages": 1}]
        app.close()
