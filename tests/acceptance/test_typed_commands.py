"""The commands of `celery -A …` on a running worker, as an operator types them."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

from celery.bin.celery import celery

from tests.docs.test_celery_doc import subcommands
from tests.processes import Processes

MODULE = ["-m", "celery", "-A", "tests.acceptance.commands_app"]

#: Tried elsewhere, or in a terminal only: the repl; `migrate` goes on until it is stopped.
APART = {"amqp repl", "beat", "flower", "worker", "events", "migrate"}

#: What each says, where that is more than nothing.
SAYS = {
    "call": r"[0-9a-f]{8}-",
    "result": r"^3$",
    "status": r"(?s)OK.*1 node online",
    "report": r"software -> celery:5",
    "list bindings": r"celery",
    "graph bootsteps": r"digraph",
    "graph workers": r"digraph",
    "inspect": r"pong",
    "upgrade settings": r"Changes to your setting have been made|result_serializer",
    "shell": r"the app is commands",
    "purge": r"Purged 1 message",
}


def test_every_command_that_is_typed(processes: Processes, tmp_path: Path) -> None:
    worker = processes(
        [sys.executable, *MODULE, "worker", "-P", "threads", "-c", "2", "-E", "-l", "info"]
    )
    worker.wait_for_line("ready.", 30)
    events = processes([sys.executable, *MODULE, "events", "--dump"])
    events.wait_for_line("-> evdump: starting capture...", 20)

    typist = processes([sys.executable, "-m", "tests.acceptance.commands_typed", str(tmp_path)])
    assert typist.wait(25) == 0, typist.output
    told = json.loads(typist.output.strip().splitlines()[-1])
    events.send(signal.SIGINT)

    for command, code, said in told:
        assert code == 0 and "Traceback" not in said, (command, code, said)
        assert re.search(SAYS.get(command, ""), said, re.MULTILINE), (command, said)
    typed = {command for command, _, _ in told}
    assert typed | APART == {name for name in subcommands("", celery)} - _below(
        "inspect", "control"
    )
    events.wait(30)
    assert "task succeeded" in events.output.lower().replace("-", " ")


def _below(*groups: str) -> set[str]:
    return {name for name in subcommands("", celery) if name.partition(" ")[0] in groups} - {
        *groups
    }
