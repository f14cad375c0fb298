"""Our own services as children: stopped for certain, started again when they end by themselves."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StackError
from worker.stack.services import Service, Supervisor, stop_all

POLITE = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print('up', flush=True); time.sleep(600)"
)
PARENT_OF_ONE = (
    "import subprocess, sys, time;"
    " child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    " print('up', child.pid, flush=True); time.sleep(600)"
)


class Services:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[Service] = []

    def __call__(self, script: str, *, restart: bool = True) -> Service:
        name = f"service{len(self.made) + 1}"
        log = self._folder / f"{name}.log"
        service = Service(name, [sys.executable, "-c", script], {"WHO": name}, log, restart)
        self.made.append(service)
        return service


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(tmp_path)
    yield made
    for service in made.made:
        service.kill()


def wait_for(service: Service, text: str) -> str:
    deadline = time.monotonic() + 15
    while text not in (said := service.log.read_text()):
        assert time.monotonic() < deadline, f"{service.name} never said {text!r}: {said!r}"
        assert service.alive or text in service.log.read_text(), said
        time.sleep(0.01)  # a file has no event to wait on
    return said


def test_it_gets_its_environment_and_writes_its_log(services: Services) -> None:
    service = services("import os; print('I am', os.environ['WHO'])")

    service.start()

    assert service.wait(15)
    assert service.exit_code == 0
    assert service.log.read_text() == "I am service1\n"


def test_it_has_a_pid_only_while_it_runs(services: Services) -> None:
    def facts() -> tuple[bool, bool, int | None]:
        return service.pid is not None, service.alive, service.exit_code

    service = services(POLITE)
    assert facts() == (False, False, None)

    service.start()
    assert facts() == (True, True, None)

    service.kill()
    assert facts() == (False, False, -9)


def test_a_second_start_is_refused(services: Services) -> None:
    service = services(POLITE)
    service.start()

    with pytest.raises(StackError, match="is running already"):
        service.start()


def test_a_program_that_is_not_there_ends_at_once(tmp_path: Path) -> None:
    service = Service("none", ["/no/such/program"], {}, tmp_path / "log", restart=False)

    service.start()

    assert service.wait(15)
    assert service.exit_code != 0
    assert "No such file" in service.log.read_text()


def test_what_ends_at_sigterm_is_not_killed(services: Services) -> None:
    service = services(POLITE)
    service.start()
    wait_for(service, "up")

    assert service.stop(15)
    assert service.exit_code == -15


def test_what_ignores_sigterm_is_killed_in_the_end(services: Services) -> None:
    service = services(STUBBORN)
    service.start()
    wait_for(service, "up")

    assert not service.stop(0.2)
    assert service.exit_code == -9


def test_several_are_stopped_within_one_time_limit(services: Services) -> None:
    several = [services(STUBBORN) for _ in range(4)]
    for service in several:
        service.start()
    for service in several:
        wait_for(service, "up")
    started = time.monotonic()

    stop_all(several, 1.0)

    assert time.monotonic() - started < 3.5  # in turn it would be four seconds
    assert [service.alive for service in several] == [False] * 4


def test_a_kill_takes_its_children_too(services: Services) -> None:
    service = services(PARENT_OF_ONE)
    service.start()
    child = os.pidfd_open(int(wait_for(service, "\n").split()[1]))

    service.kill()

    ended, _, _ = select.select([child], [], [], 15)  # it is readable once the child has ended
    os.close(child)
    assert ended, "the child outlived its parent's kill"


def test_what_was_killed_is_started_again(services: Services) -> None:
    now = [0.0]
    service = services(POLITE)
    service.start()
    supervisor = Supervisor([service], clock=lambda: now[0])
    assert supervisor.tick() == []

    service.kill()
    assert supervisor.tick() == ["service1 ended with -9; it is started again in 1 s."]
    assert not service.alive

    now[0] = 1.0
    assert supervisor.tick() == ["service1 was started again."]
    assert service.alive


def test_a_service_that_wants_no_restart_is_left_alone(services: Services) -> None:
    now = [0.0]
    service = services("pass", restart=False)
    service.start()
    assert service.wait(15)
    supervisor = Supervisor([service], clock=lambda: now[0])

    now[0] = 100.0
    assert supervisor.tick() == []
    assert not service.alive


class Fragile:
    """A service that ends when it is told to, without a process."""

    name = "fragile"
    exit_code = 1

    def __init__(self, *, starts: bool = True) -> None:
        self.alive = True
        self.starts = starts
        self.started_at: list[float] = []
        self.now = 0.0

    def start(self) -> None:
        self.started_at.append(self.now)
        if not self.starts:
            raise StackError("no memory")
        self.alive = True


@given(st.lists(st.booleans(), max_size=12), st.floats(0.05, 5))
def test_the_delay_doubles_to_thirty_seconds_and_no_further(
    starts: list[bool], look_every: float
) -> None:
    fragile = Fragile()
    supervisor = Supervisor([fragile], clock=lambda: fragile.now)

    for number, works in enumerate(starts):
        fragile.starts = works
        fragile.alive = False
        before = fragile.now
        supervisor.tick()
        while len(fragile.started_at) == number:
            fragile.now += look_every
            supervisor.tick()

        delay = min(2.0**number, 30.0)
        assert delay <= fragile.started_at[-1] - before <= delay + 2 * look_every


def test_a_long_life_makes_the_next_restart_quick_again() -> None:
    fragile = Fragile()
    supervisor = Supervisor([fragile], clock=lambda: fragile.now)
    for _ in range(8):
        fragile.alive = False
        while not fragile.alive:
            supervisor.tick()
            fragile.now += 0.5

    fragile.now += 30
    supervisor.tick()
    fragile.alive = False

    assert supervisor.tick() == ["fragile ended with 1; it is started again in 1 s."]


def test_a_start_that_fails_is_told_and_tried_again() -> None:
    fragile = Fragile(starts=False)
    fragile.alive = False
    supervisor = Supervisor([fragile], clock=lambda: fragile.now)
    supervisor.tick()
    fragile.now = 1.0

    said = supervisor.tick()

    assert said == ["fragile did not start (no memory); it is started again in 2 s."]
