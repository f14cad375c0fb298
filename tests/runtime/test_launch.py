"""What a worker starts for its suspects, for each way in which it was started itself."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from worker.runtime.launch import Launch, Launcher, import_path, own_command

#: The app of these tests, found here by name.
app = Celery("launched", set_as_current=False)

CELERY, OURS, ANOTHER = "celery.__main__", "worker.cli.main", "shop.cli"


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that runs, as it stands in `__main__`."""
    made = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", made)
    return made


@pytest.mark.parametrize(
    ("argv", "entry", "known"),
    [
        ("python -m celery -A shop worker -c 2", None, "-m celery -A shop worker -c 2"),
        ("python -X dev -W error -m celery worker", None, "-X dev -W error -m celery worker"),
        ("python -u -m worker run -P threads", None, "-u -m worker run -P threads"),
        ("python bin/celery -A shop worker", CELERY, "{cwd}/bin/celery -A shop worker"),
        ("python /venv/bin/worker run", OURS, "/venv/bin/worker run"),
        # Another program
        ("python script.py", None, None),
        ("python script.py worker", None, None),
        ("python bin/celery worker", ANOTHER, None),
        ("python worker run", ANOTHER, None),
        ("python -c code worker", None, None),
        ("python -ccode worker", None, None),
        ("python", None, None),
        ("python -", None, None),
        ("python -i", None, None),
        ("python -m pytest worker", None, None),
        ("python -m shop worker", None, None),
        ("python -m celery -A shop shell", None, None),
        ("python -m worker up", None, None),
        ("python manage.py celery worker", None, None),
        ("python bin/gunicorn shop.wsgi", None, None),
        ("python app.pyz worker", None, None),
        ("python -m multiprocessing.spawn worker", None, None),
        ("/usr/sbin/uwsgi --ini worker", None, None),
        ("", None, None),
    ],
)
def test_a_command_runs_anew_only_where_it_is_a_workers_own(
    program: ModuleType, argv: str, entry: str | None, known: str | None
) -> None:
    if entry is not None:
        program.main = SimpleNamespace(__module__=entry)  # type: ignore[attr-defined] # as in a script

    found = own_command(argv.split())

    expected = known and f"{sys.executable} {known.format(cwd=os.getcwd())}".split()
    assert found == expected


def _process(app: Any, *, owner: bool = True) -> Any:
    controller = SimpleNamespace(hostname="w@host", loglevel="INFO")
    return SimpleNamespace(
        app=app, owns_process=owner, controller=controller, queues=lambda: ["a", "b"]
    )


def _launch(process: Any, argv: str, monkeypatch: pytest.MonkeyPatch) -> Launch | str:
    monkeypatch.setattr(sys, "orig_argv", argv.split())
    return Launcher(process).launch()


def test_a_guest_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "thread of another program" in _launch(
        _process(app, owner=False), "python -m celery worker", monkeypatch
    )  # type: ignore[operator] # a clause


def test_another_programs_worker_starts_its_app_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = _launch(_process(app), "python script.py", monkeypatch)

    assert isinstance(launch, Launch)
    assert f'"app": "{__name__}:app"' in launch.argv[-1] and '["a", "b"]' in launch.argv[-1]
    assert "script.py" not in " ".join(launch.argv)


def test_an_app_that_no_module_holds_is_not_started(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one made in a function, or in the script itself, which would run again
    program.app = hidden = Celery("hidden", set_as_current=False)  # type: ignore[attr-defined] # a script's

    assert import_path(hidden) is None
    assert "found in no module" in _launch(_process(hidden), "python script.py", monkeypatch)  # type: ignore[operator] # a clause


def test_a_moved_worker_is_started_where_it_was_moved_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a worker that was moved by a relative option, from where its modules are found
    monkeypatch.setattr(sys, "path", ["", "lib", *sys.path])
    launch = _launch(_process(app), "python -m celery --workdir jobs worker", monkeypatch)

    # Then the move is not repeated, and they still are
    assert isinstance(launch, Launch)
    assert (launch.argv[1:], launch.cwd) == (["-m", "celery", "worker"], os.getcwd())
    path = launch.variables["PYTHONPATH"].split(os.pathsep)
    assert path[:2] == [os.getcwd(), os.path.join(os.getcwd(), "lib")]
