"""A `celery` command that an error of ours ends says one sentence, and no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.processes import Processes

#: Where nobody listens.
NOWHERE = {
    "DATABASE_URL": "postgresql://u:open-sesame@127.0.0.1:9/x",
    "REDIS_URL": "redis://127.0.0.1:9/0",
}
NO_POSTGRES, NO_REDIS = ({name: url} for name, url in NOWHERE.items())
#: A command, what is wrong, the code that it ends with, and how its sentence begins.
COMMANDS = (
    (["call", "late.order"], NOWHERE, 3, "Error: Postgres is not available"),
    (["result", "some-id"], NOWHERE, 3, "Error: Postgres is not available"),
    (["purge", "-f"], NO_POSTGRES, 3, "Error: Postgres is not available"),
    (["purge", "-f"], NO_REDIS, 3, "Error: Redis is not available"),
    (["report"], {"WORKER_LEASE_SECONDS": "abc"}, 2, "Error: WORKER_LEASE_SECONDS is 'abc'"),
    (["worker"], {"DATABASE_URL": "mysql://u:open-sesame@h/x"}, 2, "Error: DATABASE_URL is mysql"),
)


def test_a_command_that_an_error_of_ours_ends_says_one_sentence(processes: Processes) -> None:
    started = [
        processes([sys.executable, "-m", "celery", "-A", "tests.acceptance.late", *options], wrong)
        for options, wrong, _, _ in COMMANDS
    ]

    for (options, _, code, sentence), command in zip(COMMANDS, started, strict=True):
        assert command.wait(60) == code, command.output
        assert command.output.splitlines()[-1].startswith(sentence), (options, command.output)
        assert "Traceback" not in command.output
        assert "sesame" not in command.output


def test_any_other_error_is_pythons_to_tell(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from tests.acceptance.late import app\n"
        "class Broken(Exception): ...\n"
        "def fail(*_, **__): raise Broken('of the app')\n"
        "app.send_task = fail\n"
    )
    command = processes(
        [sys.executable, "-m", "celery", "--workdir", str(tmp_path), "-A", "broken", "call", "x"]
    )

    assert command.wait(60) == 1
    assert "Traceback" in command.output
    assert command.output.splitlines()[-1] == "broken.Broken: of the app"
