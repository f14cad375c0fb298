"""The command line as an operator meets it: what it said, and its exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.said import Command, Said, checked
from worker.cli.main import main
from worker.client import Client
from worker.ledger.catalogue import publish
from worker.ledger.database import Ledger
from worker.settings import Settings

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def process(environment: dict[str, str], tmp_path: Path) -> Command:
    """Run `worker …` as a process, in an empty directory; variables override the environment's."""

    def run(*arguments: str, stdin: bytes = b"", cwd: Path = tmp_path, **variables: str) -> Said:
        # The directory is another, so a relative PYTHONPATH would find nothing.
        variables = {**environment, "PYTHONPATH": str(_ROOT), **variables}
        done = subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env={name: value for name, value in variables.items() if value},
            timeout=120,
        )
        return checked(done.returncode, done.stdout.decode(), done.stderr.decode(), variables)

    return run


@pytest.fixture
def here(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run `worker …` in this process, for tests to which a process of its own adds but time."""

    def run(*arguments: str, **variables: str) -> Said:
        with monkeypatch.context() as patch:
            for name, value in {**environment, **variables}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["worker", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return checked(ended.value.code, said.out, said.err, {**environment, **variables})

    return run


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """A client of the test's own stores."""
    with Client(settings) as opened:
        yield opened


@pytest.fixture
def catalogue(settings: Settings) -> None:
    """What a worker with the built-in tasks has published, without the worker."""
    kind = "POSITIONAL_OR_KEYWORD"
    tasks = {
        "probe.echo": [["value", kind, False]],
        "probe.sleep": [["seconds", kind, True]],
        "probe.fail": [["message", kind, False], ["times", kind, False]],
    }
    with closing(Ledger(settings.database_url.get_secret_value())) as ledger:
        publish(ledger, tasks, ["celery"])
