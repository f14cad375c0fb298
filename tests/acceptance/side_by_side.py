"""Stock Celery and the same app made durable, in the same faults: what each does.

    python tests/acceptance/side_by_side.py [--only FAULT] [--json FILE]

A program, not a test: it asserts nothing. It prints what it saw, for docs/side-by-side.md. Three
lanes run at once, each on a Postgres and a Redis of its own: `stock` (Celery's defaults, database
result backend), `late` (ditto, with acks_late, reject_on_worker_lost, a visibility_timeout of 5 s
that is looked for every second) and `durable` (lease of 3 s, drain of 5 s, one keeper).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.processes import LoggedProcess

ROOT = Path(__file__).parents[2]
LANES = ("stock", "late", "durable")
SETTINGS = {
    "WORKER_LEASE_SECONDS": "3",
    "WORKER_DRAIN_SECONDS": "5",
    "WORKER_CONNECT_TIMEOUT_SECONDS": "2",
}
#: Seconds that a fault is watched at the most.
PATIENCE = 35.0


class Lane:
    """One variant with its own servers, and the program that disturbs them."""

    def __init__(self, name: str, postgres: Any, redis: Any, folder: Path) -> None:
        import redis as redis_client

        self.name, self.postgres, self.redis, self.folder = name, postgres, redis, folder
        self.client: Any = redis_client.Redis.from_url(redis.url)
        self.environment = {
            **os.environ, **SETTINGS, "SIDE": name, "REDIS_URL": redis.url,
            "DATABASE_URL": postgres.url, "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.fault = ""
        self.started: list[LoggedProcess] = []
        self.use("setup")
        from tests.acceptance import side_by_side_app

        self.tasks, self.app = side_by_side_app, side_by_side_app.app

    def use(self, fault: str) -> None:
        """A queue and a log of its own for each fault: nothing left over disturbs the next."""
        self.end_workers()
        self.fault = fault
        self.environment["SIDE_LOG"] = str(self.folder / f"{fault}.runs")
        os.environ.update(self.environment)

    def process(self, *argv: str) -> LoggedProcess:
        from tests.processes import LoggedProcess

        log = self.folder / f"{self.fault}-{len(self.started)}.log"
        started = LoggedProcess([sys.executable, "-m", *argv], self.environment, log)
        self.started.append(started)
        return started

    def worker(self, pool: str, slots: int = 4, *, ready: bool = True) -> LoggedProcess:
        started = self.process(
            "celery", "-A", "tests.acceptance.side_by_side_app", "worker", "-P", pool, "-c",
            str(slots), "-Q", self.fault, "-n", f"w{len(self.started)}@%h", "-l", "info",
        )  # fmt: skip
        if ready:
            started.wait_for_line(" ready.")
        return started

    def end_workers(self) -> None:
        for process in self.started:
            process.kill()
        self.started = []

    def send(self, name: str, seconds: float, **options: Any) -> Any:
        return self.tasks.work.apply_async((name, seconds), queue=self.fault, **options)

    def runs(self, word: str = "start") -> dict[str, int]:
        """How often each job started (or ended), by the log that the tasks write."""
        path, found = Path(self.environment["SIDE_LOG"]), dict[str, int]()
        for line in path.read_text().splitlines() if path.exists() else ():
            _, name, what, _ = line.split()
            found[name] = found.get(name, 0) + (what == word)
        return found

    def begun(self, jobs: int) -> None:
        """Wait until so many jobs have started."""
        until(lambda: sum(self.runs().values()) >= jobs, 15)

    def recorded(self, results: list[Any]) -> int:
        return sum(self.state(result) == "SUCCESS" for result in results)

    def state(self, result: Any) -> str:
        try:
            return str(self.app.AsyncResult(result.id).state)
        except Exception as exc:
            return type(exc).__name__

    def outcome(self, results: list[Any], since: float, patience: float = PATIENCE) -> str:
        """Wait for every result, then say what is recorded and what ran."""
        done = until(lambda: self.recorded(results) == len(results), patience)
        took = f"after {time.monotonic() - since:.1f} s" if done else f"in {patience:.0f} s"
        starts, ends = sum(self.runs().values()), sum(self.runs("end").values())
        return (
            f"{self.recorded(results)} of {len(results)} results {took}"
            f"; {starts} starts, {ends} ends"
        )


def worker_killed(lane: Lane) -> str:
    """SIGKILL of a whole worker that runs 2 jobs of 4 s; another starts at once."""
    first = lane.worker("prefork", 2)
    results = [lane.send(f"job{n}", 4) for n in range(2)]
    lane.begun(2)
    first.kill()
    killed = time.monotonic()
    lane.worker("prefork", 2)
    return lane.outcome(results, killed)


def flushall(lane: Lane) -> str:
    """FLUSHALL while 50 jobs are queued and no worker runs; then a worker starts."""
    results = [lane.send(f"job{n}", 0) for n in range(50)]
    lane.client.flushall()
    lane.worker("threads")
    return lane.outcome(results, time.monotonic(), 20)


def countdown_sigterm(lane: Lane) -> str:
    """4 jobs with countdown=8; the worker is restarted by SIGTERM at 2 s."""
    return _countdown(lane, lambda worker: worker.terminate(20))


def countdown_sigkill(lane: Lane) -> str:
    """4 jobs with countdown=8; the worker is killed by SIGKILL at 2 s, another starts."""
    return _countdown(lane, lambda worker: worker.kill())


def _countdown(lane: Lane, end: Callable[[LoggedProcess], object]) -> str:
    first = lane.worker("threads")
    sent = time.monotonic()
    results = [lane.send(f"job{n}", 0, countdown=8) for n in range(4)]
    time.sleep(2)
    end(first)
    lane.worker("threads")
    return lane.outcome(results, sent, 30)


def long_countdown(lane: Lane) -> str:
    """4 jobs with countdown=20, two idle workers, nothing else happens."""
    lane.worker("threads")
    lane.worker("threads")
    sent = time.monotonic()
    return _undisturbed(lane, [lane.send(f"job{n}", 0, countdown=20) for n in range(4)], sent)


def long_job(lane: Lane) -> str:
    """One job of 20 s, two workers, nothing else happens."""
    lane.worker("threads")
    lane.worker("threads")
    sent = time.monotonic()
    return _undisturbed(lane, [lane.send("job", 20)], sent)


def _undisturbed(lane: Lane, results: list[Any], sent: float) -> str:
    said = lane.outcome(results, sent, 30)
    time.sleep(5)
    return f"{said}; {sum(lane.runs().values())} starts 5 s later"


def poison_threads(lane: Lane) -> str:
    """A job that kills its process, with 3 jobs of 2 s beside it in threads; restarted for 60 s."""
    worker, deaths = lane.worker("threads"), 0
    neighbours = [lane.send(f"job{n}", 2) for n in range(3)]
    lane.begun(3)
    bad = lane.tasks.poison.apply_async(("poison",), queue=lane.fault)
    began = last = time.monotonic()
    recorded = None
    while time.monotonic() - began < 60:
        if worker.exit_code is not None:
            deaths, last = deaths + 1, time.monotonic()
            worker = lane.worker("threads", ready=False)
        if recorded is None and lane.recorded(neighbours) == 3:
            recorded = time.monotonic() - began
        time.sleep(0.1)
    took = f" after {recorded:.1f} s" if recorded is not None else ""
    return (
        f"the worker died {deaths} times, last after {last - began:.1f} s; poison started"
        f" {lane.runs().get('poison', 0)} times and reads {lane.state(bad)};"
        f" {lane.recorded(neighbours)} of 3 neighbours recorded{took}"
    )


def poison_prefork(lane: Lane) -> str:
    """The same job in a prefork worker, watched for 20 s."""
    lane.worker("prefork", 2)
    bad = lane.tasks.poison.apply_async(("poison",), queue=lane.fault)
    time.sleep(20)
    return f"poison started {lane.runs().get('poison', 0)} times and reads {lane.state(bad)}"


def client_kill(lane: Lane) -> str:
    """CLIENT KILL TYPE normal in Redis while 4 jobs of 6 s run and 4 more wait."""
    lane.worker("prefork", 4)
    results = [lane.send(f"job{n}", 6) for n in range(8)]
    lane.begun(4)
    time.sleep(0.5)
    lane.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    said = lane.outcome(results, time.monotonic())
    time.sleep(10)
    runs = lane.runs()
    return f"{said}; 10 s later {sum(runs.values())} starts of {len(runs)} jobs"


def sigterm(lane: Lane) -> str:
    """SIGTERM while 2 jobs of 2 s and 2 of 12 s run; SIGKILL 8 s later; another worker starts."""
    first = lane.worker("threads")
    results = [lane.send(f"job{n}", seconds) for n, seconds in enumerate((2, 2, 12, 12))]
    lane.begun(4)
    import signal

    first.send(signal.SIGTERM)
    asked = time.monotonic()
    lane.worker("threads", ready=False)
    until(lambda: first.exit_code is not None, 8 - (time.monotonic() - asked))
    how = f"exit {first.exit_code}" if first.exit_code is not None else "killed"
    ended = time.monotonic() - asked
    first.kill()
    return f"first worker: {how} after {ended:.1f} s; {lane.outcome(results, asked)}"


def where_is_it(lane: Lane) -> str:
    """What is known of a job that no worker has taken, and of an id that never was."""
    from celery.result import AsyncResult

    result = lane.send("job", 0)
    never: Any = AsyncResult("00000000-0000-0000-0000-000000000000", app=lane.app)
    said = f"AsyncResult: {lane.state(result)}, of an id that never was: {lane.state(never)}"
    if lane.name == "durable":
        from worker.client import Client
        from worker.errors import NotFound

        with Client() as client:
            job = client.job(result.id)
            said += f"; Client: {job.state}, task {job.task}, queue {job.queue}, created_at set"
            try:
                client.job(never.id)
            except NotFound:
                said += "; NotFound for the other"
    return said


def revoked(lane: Lane) -> str:
    """A job is revoked while no worker runs; then one starts."""
    result = lane.send("job", 0)
    lane.app.control.revoke(result.id)
    by_client = None
    if lane.name == "durable":
        from worker.client import Client

        by_client = lane.send("cancelled", 0)
        with Client() as client:
            client.cancel(by_client.id)
    lane.worker("threads")
    time.sleep(5)
    runs = lane.runs()
    said = f"after control.revoke: {runs.get('job', 0)} starts, {lane.state(result)}"
    if by_client is not None:
        said += f"; after Client.cancel: {runs.get('cancelled', 0)}, {lane.state(by_client)}"
    return said


def publish_without_postgres(lane: Lane) -> str:
    """Publish while Postgres is stopped; it comes back; a worker starts."""
    return _publish_without(lane, lane.postgres)


def publish_without_redis(lane: Lane) -> str:
    """Publish while Redis is stopped; it comes back; a worker starts."""
    said = _publish_without(lane, lane.redis)
    if lane.name != "durable":
        return said
    from worker.client import Client

    lane.redis.stop()
    with Client() as client:
        accepted = client.enqueue("side.work", ["by the client", 0], queue=lane.fault)
    lane.redis.start()
    until(lambda: lane.state(accepted) == "SUCCESS", 20)
    return f"{said}; enqueued by Client: accepted, then {lane.state(accepted)}"


def _publish_without(lane: Lane, server: Any) -> str:
    server.stop()
    began = time.monotonic()
    results = []
    try:
        results.append(lane.send("job", 0, retry_policy={"max_retries": 1}))
        said = "accepted"
    except Exception as exc:
        said = f"raised {type(exc).__name__}"
    said += f" after {time.monotonic() - began:.1f} s"
    server.start()
    lane.worker("threads")
    if not results:
        time.sleep(5)
        return f"{said}; {sum(lane.runs().values())} starts later"
    return f"{said}; {lane.outcome(results, time.monotonic(), 15)}"


def postgres_away(lane: Lane) -> str:
    """Postgres is stopped for 6 s while 4 jobs of 3 s run, and end meanwhile."""
    lane.worker("threads")
    results = [lane.send(f"job{n}", 3) for n in range(4)]
    lane.begun(4)
    lane.postgres.stop()
    time.sleep(6)
    lane.postgres.start()
    back = time.monotonic()
    said = lane.outcome(results, back, 20)
    return f"{said}; states {sorted({lane.state(result) for result in results})}"


FAULTS: dict[str, Callable[[Lane], str]] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        worker_killed, flushall, countdown_sigterm, countdown_sigkill, long_countdown, long_job,
        poison_threads, poison_prefork, client_kill, sigterm, where_is_it, revoked,
        publish_without_postgres, publish_without_redis, postgres_away,
    )
}  # fmt: skip


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition`, at most `seconds`; whether it came true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@contextmanager
def lane(name: str, folder: Path) -> Iterator[Lane]:
    """The lane's servers, and for the durable one its schema and its keeper."""
    from tests import servers

    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres())
        redis = stack.enter_context(servers.redis_server())
        os.environ.update(SIDE=name, REDIS_URL=redis.url, DATABASE_URL=postgres.url, **SETTINGS)
        made = Lane(name, postgres, redis, folder)
        stack.callback(made.end_workers)
        if name == "durable":
            subprocess.run(
                [sys.executable, "-m", "worker", "migrate"], env=made.environment, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            keeper = made.process("worker", "keeper")
            made.started.clear()  # it outlives every fault
            stack.callback(keeper.kill)
        yield made


def run_lane(name: str, only: str | None, folder: Path) -> None:
    """Run each fault in turn; one line of JSON each."""
    with lane(name, folder) as made:
        for fault, run in FAULTS.items():
            if only and fault not in only.split(","):
                continue
            made.use(fault)
            try:
                said = run(made)
            except Exception as exc:
                said = f"the measurement failed: {type(exc).__name__}: {exc}"
            print(json.dumps({"lane": name, "fault": fault, "saw": said}), flush=True)


def run_all(only: str | None, file: Path | None, folder: Path) -> None:
    """Run the lanes side by side, and print what each saw, fault by fault."""
    command = [sys.executable, __file__, *(["--only", only] if only else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lanes = []
    for name in LANES:
        (folder / name).mkdir(parents=True)
        argv = [*command, "--lane", name, "--folder", str(folder / name)]
        lanes.append(
            subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        )
    saw = [json.loads(line) for one in lanes for line in (one.communicate()[0] or "").splitlines()]
    if file is not None:
        file.write_text("".join(json.dumps(line) + "\n" for line in saw))
    for fault, run in FAULTS.items():
        lines = [line for line in saw if line["fault"] == fault]
        if lines:
            print(f"\n{fault}: {run.__doc__}")
            for line in lines:
                print(f"  {line['lane']:<8} {line['saw']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help=f"one or more of: {', '.join(FAULTS)}")
    parser.add_argument("--json", type=Path, help="also write what was seen here, a line each")
    parser.add_argument("--folder", type=Path, help="keep the logs here")
    parser.add_argument("--lane", choices=LANES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.lane:
        sys.path.insert(0, str(ROOT))
        run_lane(given.lane, given.only, given.folder)
    elif given.folder:
        run_all(given.only, given.json, given.folder)
    else:
        with tempfile.TemporaryDirectory(prefix="side-by-side-") as folder:
            run_all(given.only, given.json, Path(folder))


if __name__ == "__main__":
    from tests import leftovers

    leftovers.begin()  # what it makes goes with it, however it ends
    main()
