"""Remote control: `app.control` and `app.control.inspect`."""

from __future__ import annotations

from typing import Any

from tests.parity.rows import row
from tests.parity.side import PATIENCE, PREFORK, Side


def _of(s: Side, reply: Any, node: str = "") -> Any:
    return (reply or {}).get(node or s.threads)


def _broadcast(s: Side, command: str, **arguments: Any) -> Any:
    (reply,) = s.app.control.broadcast(
        command, arguments=arguments, destination=[s.threads], reply=True, timeout=3.0
    )
    return reply[s.threads]


@row("ping is answered by every worker", 2)
def ping(s: Side) -> Any:
    return len(s.app.control.ping(timeout=1.5))


@row("ping answers pong", {"ok": "pong"})
def pong(s: Side) -> Any:
    return _of(s, s.inspect().ping())


@row("inspect active shows a running job with its name and arguments", ["parity.hold", True])
def active(s: Side) -> Any:
    found = _held(s, lambda gate: [(job["name"], job["args"] == [gate]) for job in _active(s)])
    return list(found[0])


@row("inspect active shows the running job's id", True)
def active_id(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    seen = [job["id"] for job in _active(s)]
    s.open(gate)
    result.get(timeout=PATIENCE)
    return seen == [result.id]


@row("inspect active says that the running job is acknowledged", [True])
def acknowledged(s: Side) -> Any:
    return _held(s, lambda gate: [job["acknowledged"] for job in _active(s)])


@row("inspect active says where the running job came from", ["", "celery"])
def delivered(s: Side) -> Any:
    def ask(gate: str) -> list[Any]:
        info = _active(s)[0]["delivery_info"]
        return [info["exchange"], info["routing_key"]]

    return _held(s, ask)


@row("inspect active has the fields of a running job", [
    "acknowledged", "args", "delivery_info", "hostname", "id", "kwargs", "name", "time_start",
    "type", "worker_pid",
])  # fmt: skip
def active_fields(s: Side) -> Any:
    return _held(s, lambda gate: sorted(_active(s)[0]))


@row("inspect active is empty when nothing runs", [])
def idle(s: Side) -> Any:
    s.until(lambda: _active(s) == [])
    return _active(s)


@row("inspect query_task finds a running job as active", "active")
def query_task(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    found = _of(s, s.inspect().query_task([result.id])) or {}
    s.open(gate)
    result.get(timeout=PATIENCE)
    return (found.get(result.id) or ["nothing"])[0]


@row("inspect query_task finds nothing of an unknown id", {})
def query_unknown(s: Side) -> Any:
    return _of(s, s.inspect().query_task(["no-such-id"]))


@row("inspect registered lists the app's tasks", True)
def registered(s: Side) -> Any:
    return {"parity.add", "parity.echo"} <= set(_of(s, s.inspect().registered()))


@row("inspect registered shows attributes that are asked for", True)
def registered_with(s: Side) -> Any:
    found = _of(s, s.inspect().registered("rate_limit"))
    return any(name.startswith("parity.limited [rate_limit=100/s") for name in found)


@row("inspect active_queues lists the consumed queues", ["celery"])
def active_queues(s: Side) -> Any:
    return [queue["name"] for queue in _of(s, s.inspect().active_queues())]


@row("inspect active_queues of the other worker", [PREFORK])
def active_queues_of_the_other(s: Side) -> Any:
    reply = s.app.control.inspect([s.prefork], timeout=3.0).active_queues()
    return [queue["name"] for queue in _of(s, reply, s.prefork)]


@row("inspect stats has the parts of a worker's statistics", [
    "broker", "clock", "pid", "pool", "prefetch_count", "rusage", "total", "uptime",
])  # fmt: skip
def stats(s: Side) -> Any:
    return sorted(_of(s, s.inspect().stats()))


@row("inspect stats counts the jobs of each task", True)
def stats_total(s: Side) -> Any:
    s.t.echo.delay(1).get(timeout=PATIENCE)
    return _of(s, s.inspect().stats())["total"]["parity.echo"] >= 1


@row("inspect stats tells the pool's size", 8)
def stats_pool(s: Side) -> Any:
    return _of(s, s.inspect().stats())["pool"]["max-concurrency"]


@row("inspect stats of processes lists their pids", 2)
def stats_processes(s: Side) -> Any:
    reply = s.app.control.inspect([s.prefork], timeout=3.0).stats()
    return len(_of(s, reply, s.prefork)["pool"]["processes"])


@row("inspect conf shows the configuration", True)
def conf(s: Side) -> Any:
    return _of(s, s.inspect().conf())["task_send_sent_event"]


@row("inspect report names the software", True)
def report(s: Side) -> Any:
    return "software -> celery:" in _of(s, s.inspect().report())["ok"]


@row("inspect clock gives the logical clock", True)
def clock(s: Side) -> Any:
    return _of(s, s.inspect().clock())["clock"] > 0


@row("inspect revoked knows a revoked id", True)
def revoked(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), countdown=2)
    result.revoke()
    return bool(s.until(lambda: result.id in (_of(s, s.inspect().revoked()) or ())))


@row("rate_limit answers that it is set", {"ok": "new rate limit set successfully"})
def rate_limit(s: Side) -> Any:
    answer = s.app.control.rate_limit(
        "parity.limited", "50/s", destination=[s.threads], reply=True, timeout=3.0
    )
    return answer[0][s.threads]


@row("rate_limit of an unknown task answers an error", {"error": "unknown task"})
def rate_limit_unknown(s: Side) -> Any:
    return _broadcast(s, "rate_limit", task_name="no.such", rate_limit="1/s")


@row("a rate limit that is no rate answers an error", True)
def rate_limit_wrong(s: Side) -> Any:
    return "Invalid rate limit" in _broadcast(
        s, "rate_limit", task_name="parity.limited", rate_limit="often"
    ).get("error", "")


@row("time_limit answers that it is set", {"ok": "time limits set successfully"})
def time_limit(s: Side) -> Any:
    return _broadcast(s, "time_limit", task_name="parity.limited", hard=60, soft=50)


@row("add_consumer makes the worker consume one more queue", [True, 1])
def add_consumer(s: Side) -> Any:
    name = f"added-{s.key()}"
    answer = _broadcast(s, "add_consumer", queue=name)
    value = s.t.echo.apply_async((1,), queue=name).get(timeout=PATIENCE)
    s.app.control.cancel_consumer(name, destination=[s.threads], reply=True, timeout=3.0)
    return ["add consumer" in answer.get("ok", ""), value]


@row("cancel_consumer makes the worker consume it no more", [["celery"], "PENDING"])
def cancel_consumer(s: Side) -> Any:
    name = f"added-{s.key()}"
    _broadcast(s, "add_consumer", queue=name)
    _broadcast(s, "cancel_consumer", queue=name)
    queues = [queue["name"] for queue in _of(s, s.inspect().active_queues())]
    result = s.t.echo.apply_async((1,), queue=name)
    s.t.echo.delay(1).get(timeout=PATIENCE)
    return [queues, result.state]


@row("pool_grow and pool_shrink change a pool of processes", [3, 2])
def pool_grow(s: Side) -> Any:
    def size() -> int:
        reply = s.app.control.inspect([s.prefork], timeout=3.0).stats()
        return len(_of(s, reply, s.prefork)["pool"]["processes"])

    s.app.control.pool_grow(1, destination=[s.prefork], reply=True, timeout=3.0)
    s.until(lambda: size() == 3)
    grown = size()
    s.app.control.pool_shrink(1, destination=[s.prefork], reply=True, timeout=3.0)
    s.until(lambda: size() == 2)
    return [grown, size()]


@row("pool_grow answers", True)
def pool_grow_answers(s: Side) -> Any:
    def ask(command: str) -> Any:
        (reply,) = s.app.control.broadcast(
            command, arguments={"n": 1}, destination=[s.prefork], reply=True, timeout=3.0
        )
        return reply[s.prefork]

    answers = [ask("pool_grow"), ask("pool_shrink")]
    return all("ok" in answer for answer in answers)


@row("disable_events and enable_events answer", [True, True])
def events(s: Side) -> Any:
    off, on = _broadcast(s, "disable_events"), _broadcast(s, "enable_events")
    return ["ok" in off, "ok" in on]


@row("heartbeat is a broadcast without an answer", None)
def heartbeat(s: Side) -> Any:
    return s.app.control.heartbeat(destination=[s.threads])


@row("an unknown command is not answered", True)
def unknown(s: Side) -> Any:
    replies = s.app.control.broadcast(
        "no_such_command", destination=[s.threads], reply=True, timeout=1.0
    )
    return all("error" in reply[s.threads] for reply in replies)


@row("revoke of a list of ids revokes each", ["REVOKED", "REVOKED"])
def revoke_many(s: Side) -> Any:
    results = [s.t.echo.apply_async((n,), countdown=1) for n in range(2)]
    s.app.control.revoke([result.id for result in results])
    return [s.state(result, "REVOKED") for result in results]


@row("terminate ends a running job (prefork)", "REVOKED")
def terminate(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.apply_async((gate,), queue=PREFORK)
    s.begun(gate)
    s.app.control.terminate(result.id, signal="SIGTERM")
    return s.state(result, "REVOKED")


@row(
    "purge removes what waits, and says how many",
    [3, ["PENDING"]],
    durable=[3, ["REVOKED"]],
    why="A job that was accepted is never forgotten: purge cancels what waits.",
)
def purge(s: Side) -> Any:
    name = f"purged-{s.key()}"
    results = [s.t.echo.apply_async((n,), queue=name) for n in range(3)]
    with s.app.connection_for_write() as connection:
        count = connection.default_channel.queue_purge(name)
    return [count, sorted({result.state for result in results})]


def _active(s: Side) -> list[Any]:
    return _of(s, s.inspect().active()) or []


def _held(s: Side, ask: Any) -> Any:
    """What `ask` sees while one job of the threads worker runs."""
    s.until(lambda: _active(s) == [])
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    try:
        return ask(gate)
    finally:
        s.open(gate)
        result.get(timeout=PATIENCE)
