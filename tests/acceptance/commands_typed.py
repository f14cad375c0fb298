"""A program: the commands of `celery -A …`, typed one after the other in one process.

Prints one JSON object: what was typed, its exit code, what it said. Needs a running worker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from celery.bin.celery import celery
from click.testing import CliRunner

APP = "tests.acceptance.commands_app"


def main(folder: Path) -> None:
    """Type each."""
    settings, log = folder / "old_settings.py", folder / "worker.log"
    settings.write_text('CELERY_RESULT_SERIALIZER = "json"\n')
    log.write_text("[2026-11-30 21:00:00,000: INFO/MainProcess] Received task: tests.add[1] now\n")
    told: list[tuple[str, int, str]] = []

    def typed(command: str, *rest: str, keys: str | None = None) -> str:
        argv = ["-A", APP, *command.split(), *rest]
        sys.argv = ["celery", *argv]  # `multi` reads it
        found = CliRunner().invoke(celery, argv, input=keys)
        said = found.output
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            said += repr(found.exception)
        told.append((command, found.exit_code, said))
        return said

    job_id = typed("call", f"{APP}.add", "-a", "[1, 2]").split()[-1]
    _wait(job_id)
    typed("result", job_id)
    for command in ("status", "report", "list bindings", "graph bootsteps", "graph workers"):
        typed(command)
    typed("inspect", "ping")
    typed("control", "heartbeat")
    for command in ("debug", "errors", "incomplete", "stats", "traces"):
        typed(f"logtool {command}", str(log))
    typed("upgrade settings", str(settings))
    typed("multi", "names", "2")
    typed("shell", "--python", keys="print('the app is', app.main)\n")
    typed("amqp exchange.declare", "byhand", "direct", "0", "0", "0")
    typed("amqp queue.declare", "byhand", "0", "1", "0")
    typed("amqp queue.bind", "byhand", "byhand", "byhand")
    typed("amqp basic.publish", "hello", "byhand", "byhand", "0", "0")
    typed("amqp basic.get", "byhand", "0")
    typed("amqp basic.ack", "1")
    typed("amqp queue.purge", "byhand")
    typed("amqp queue.delete", "byhand", "0", "0")
    typed("amqp exchange.delete", "byhand", "0")
    typed("call", f"{APP}.add", "-a", "[1, 2]", "--countdown", "600")
    typed("purge", "-f")
    click.echo(json.dumps(told))


def _wait(job_id: str) -> None:
    from tests.acceptance.commands_app import app

    app.AsyncResult(job_id).get(timeout=60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
