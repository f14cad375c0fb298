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
COMMANDS = (["call", "late.order"], ["result", "some-id"], ["purge", "-f"])


def test_a_command_without_postgres_says_one_sentence(processes: Processes) -> None:
    started = {
        name: processes(
            [sys.executable, "-m", "celery", "-A", "tests.acceptance.late", name, *options],
            NOWHERE if name != "purge" else {"DATABASE_URL": NOWHERE["DATABASE_URL"]},
        )
        for name, *options in COMMANDS
    }

    for name, command in started.items():
        assert command.wait(60) == 3, command.output
        said = command.output.splitlines()
        assert said[-1].startswith("Error: Postgres is not available"), name
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
