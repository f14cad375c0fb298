"""An app that only the program around it makes durable."""

from __future__ import annotations

from celery import Celery

from tests.acceptance.jobs import note

app = Celery("bare", broker="redis://localhost:6379/0")


@app.task(name="bare.note")
def run(log: str) -> None:
    note(log, "ran")
