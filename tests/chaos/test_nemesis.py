"""The nemesis keeps its schedule, counts only harm that was done, and sees what it did not do."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests import servers
from tests.chaos import aftermath, nemesis
from tests.chaos.faults import FAULTS, Course, Fault, NotNow
from tests.chaos.faults.clocks import SKEW
from tests.chaos.faults.crowd import Crowd
from tests.chaos.faults.registry import met
from tests.chaos.history import Journal
from tests.chaos.members import Member
from tests.chaos.nemesis import Nemesis, Stroke, plan
from tests.chaos.tails import Tail, died_of_poison, moments
from tests.chaos.watch import Ending
from tests.processes import Processes
from tests.proxy import proxied
from worker.stack.postgres import PostgresServer


class Field:
    """What a fault of these tests strikes: nothing but a journal."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "nemesis.jsonl")
        self.workers = ["w1", "w2", "w3", "w4"]
        self.met: Counter[str] = Counter()


@pytest.fixture
def field(tmp_path: Path) -> Any:
    return Field(tmp_path)


def due(field: Any, *names: str) -> Nemesis:
    """A nemesis whose schedule has these strokes, all due at once, and no other for long."""
    made = Nemesis(field, "1", list(dict.fromkeys(names)), 0.0)
    strokes = [Stroke(0.0, name, f"1 {number} {name}") for number, name in enumerate(names)]
    made._coming, made._plan = strokes[0], iter([*strokes[1:], Stroke(1e9, names[0], "")])
    return made


def test_a_seed_gives_the_same_schedule_and_each_fault_once_before_any_twice() -> None:
    names = list(FAULTS)
    first, again = (list(islice(plan("7", names, 4.0), 60)) for _ in range(2))
    assert first == again
    assert {stroke.name for stroke in first[: len(names)]} == set(names)
    assert len({stroke.seed for stroke in first}) == 60
    assert first != list(islice(plan("8", names, 4.0), 60))


def test_a_fault_that_came_to_nothing_is_tried_again_until_it_is_met(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice_of: list[float] = []

    def body(rig: Any, dice: random.Random) -> Course:
        dice_of.append(dice.random())
        if len(dice_of) == 3:
            met(rig, "shy", "nobody", tries=3)
        yield from ()

    monkeypatch.setitem(FAULTS, "shy", Fault("shy", "redis", body))
    monkeypatch.setattr(nemesis, "AGAIN", 0.0)
    # Given a schedule in which it comes once
    struck = due(field, "shy")
    assert struck.unmet() == ["shy"]
    # When the nemesis goes on until it is met, then no try is left
    begun = [struck.tick() for _ in range(10)]
    assert begun == ["shy"] * 3 + [None] * 7
    assert struck.unmet() == [] and struck.met == {"shy": 1}
    assert len(set(dice_of)) == 3
    assert struck.schedule == [(0.0, "shy")]


def test_a_fault_that_waits_for_a_better_moment_comes_back_as_it_was(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice_of: list[float] = []

    def body(rig: Any, dice: random.Random) -> Course:
        dice_of.append(dice.random())
        if len(dice_of) != 3:
            raise NotNow
        met(rig, "patient", "nobody", tries=3)
        yield from ()

    monkeypatch.setitem(FAULTS, "patient", Fault("patient", "redis", body))
    monkeypatch.setattr(nemesis, "AGAIN", 0.0)
    # Given a fault that was met before, so that it is not asked for once more
    struck = due(field, "patient")
    field.met["patient"] = 1
    # When it says twice that this is not the moment, then it is tried until it strikes, once
    begun = [struck.tick() for _ in range(10)]
    assert begun == ["patient"] * 3 + [None] * 7
    # And it is the same fault: of the seed, not of the moment
    assert len(set(dice_of)) == 1


def test_two_workers_suffer_at_once_and_no_more(
    field: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(rig: Any, dice: random.Random) -> Course:
        yield 1e9

    for name, site in (("blow", "worker"), ("hit", "worker"), ("cut", "worker"), ("drip", "gil")):
        monkeypatch.setitem(FAULTS, name, Fault(name, site, body))
    monkeypatch.setattr(nemesis, "SLOW", {"gil"})
    struck = due(field, *["blow", "hit", "cut", "drip"] * 25)
    begun = Counter(struck.tick() for _ in range(20))
    # Each but once: what waits for its moment must leave room for others
    assert begun.pop(None) == 17 and begun.pop("drip") == 1
    assert set(begun.values()) == {1} and len(begun) == 2


def test_a_clock_that_cannot_be_put_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.chaos.faults import clocks, missing_parts, steps

    monkeypatch.setattr(clocks, "_library", lambda: None)
    assert SKEW.is_dir()
    monkeypatch.setattr(steps, "library", lambda: None)

    missing = missing_parts(FAULTS)
    assert list(missing) == ["clock", "pg-clock-back", "pg-clock-forward"]
    assert all("apt-get install faketime" in reason for reason in missing.values())


def test_only_what_is_new_is_read_of_growing_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "execution-w1-1-7.jsonl")

    def told(job: str) -> dict[str, Any]:
        return {"job": job, "attempt": 1, "lease": "l", "run": job, "kind": "noop"}

    journal.note("start", **told("a"))
    tail = Tail(tmp_path)
    journal.note("end", how="returned", **told("a"))
    journal.note("start", **told("b"))
    os.write(journal._file, b'{"cut')
    assert [event["job"] for _, event in tail.new()] == ["a", "b"]
    assert list(tail.new()) == []
    assert moments([journal.path]) == ({("a", 1), ("b", 1)}, {("a", 1)})


def test_an_ending_is_timed_though_nobody_looks() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        began, ending = time.monotonic(), Ending(process.pid)
        process.kill()
    ending._thread.join(30)
    ended = time.monotonic()

    # Whoever asks later is told the same
    assert began < ending.time() <= ended


def test_an_end_needs_a_cause(processes: Processes, tmp_path: Path) -> None:
    def ended(code: str) -> tuple[Member, int]:
        member = Member("w1", "threads", [sys.executable, "-c", code], {}, tmp_path / "log")
        member.start()
        assert member.process is not None and member.process.wait(30)
        return member, member.look_after() or 0

    # A member that ends by itself
    member, code = ended("raise SystemExit(70)")
    assert code == 70 and member.cause_of(code, tmp_path) is None
    # One that is killed, by whom nobody knows
    member, code = ended("import os; os.kill(os.getpid(), 9)")
    assert code == -9 and member.cause_of(code, tmp_path) is None
    # And by a job that kills
    journal = Journal(tmp_path / f"{member.prefix}{member.started_pid}.jsonl")
    journal.note("start", job="a", attempt=1, lease="l", run="1", kind="dying")
    assert died_of_poison(journal.path)
    assert member.cause_of(code, tmp_path) == "poison"
    # And on behalf of a fault
    member = Member("w2", "threads", [sys.executable, "-c", "input()"], {}, tmp_path / "log")
    member.argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    member.start()
    member.end(signal.SIGKILL, "kill-worker")
    assert member.process is not None and member.process.wait(30)
    assert member.cause_of(member.look_after() or 0, tmp_path) == "kill-worker"


def test_what_outlives_a_run_and_what_its_logs_cry_is_unexpected(tmp_path: Path) -> None:
    left = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={**os.environ, "CHAOS_HISTORY": str(tmp_path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert left.stdout is not None and left.stdout.readline()
    (sentence,) = aftermath.left_behind(tmp_path, 0.0)
    assert f"process {left.pid} outlived its member" in sentence
    left.communicate()
    assert left.returncode == -signal.SIGKILL
    log = tmp_path / "w1.log"
    log.write_text("well\n[CRITICAL/MainProcess] Unrecoverable error: x\nTimeout (0:00:09)!\n")
    assert [line.partition(":")[0] for line in aftermath.alarms([log])] == [
        "w1.log, line 2",
        "w1.log, line 3",
    ]


def test_a_half_open_connection_does_not_tell_that_a_side_has_hung_up() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        proxied(f"redis://127.0.0.1:{listener.getsockname()[1]}/0") as proxy,
    ):
        port = int(proxy.url.rpartition(":")[2].partition("/")[0])
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        server, _ = listener.accept()
        server.settimeout(30)
        client.sendall(b"before")
        assert server.recv(10) == b"before"
        # Given a connection on which nothing goes through any more
        proxy.blackhole()
        # When one side hangs up, then the other learns nothing of it
        client.close()
        server.settimeout(0.5)  # that nothing comes has no event: it is a length of time
        with pytest.raises(TimeoutError):
            server.recv(1)
        # Until the network is back
        server.settimeout(30)
        proxy.heal()
        assert server.recv(1) == b""
        server.close()


def test_a_crowd_keeps_everybody_out_of_postgres() -> None:
    with servers.folder() as data:
        server = PostgresServer(data / "postgres", options={"max_connections": "12"})
        server.start()
        member = psycopg2.connect(server.url, application_name="member")
        crowd = Crowd(server.url)
        crowd.start()
        try:
            told, _, _ = select.select([member], [], [], 30)
            assert told == [member]  # that it is terminated: Postgres says nothing else unasked
            with pytest.raises(psycopg2.OperationalError):
                while True:  # until the crowd has what was broken
                    psycopg2.connect(server.url).close()
            with pytest.raises(psycopg2.Error), member.cursor() as cursor:
                cursor.execute("SELECT 1")
        finally:
            crowd.stop()
            psycopg2.connect(server.url).close()
            server.stop()
        assert crowd.terminated
