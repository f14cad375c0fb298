"""This service: an ordinary Celery app, made durable."""

from __future__ import annotations

import functools
from collections import deque

from celery import Celery

from tests.bench.apps import filling
from tests.bench.apps.filling import Way
from tests.bench.workloads import WORKLOADS
from worker.client import Client
from worker.jobs.message import new_job
from worker.runtime import durable

app = durable(Celery("bench"))
for _name, _work in WORKLOADS.items():
    app.task(name=f"bench.{_name}")(_work)


@functools.cache
def client() -> Client:
    """The Python client of this process, opened when first used."""
    return Client()


def single(name: str, count: int) -> None:
    """By the Python client, one after the other."""
    for _ in range(count):
        client().enqueue(f"bench.{name}")


def bulk(name: str, count: int) -> None:
    """By the Python client, as a stream."""
    deque(client().enqueue_stream(new_job(f"bench.{name}") for _ in range(count)), maxlen=0)


def delay(name: str, count: int) -> None:
    """As Celery's users do."""
    task = app.tasks[f"bench.{name}"]
    for _ in range(count):
        task.delay()


load = bulk


def stamped(number: int) -> str:
    """Enqueue job `number` of a latency; its id."""
    return client().enqueue("bench.stamp", [number]).id


if __name__ == "__main__":
    filling.main({"single": Way(1, single), "delay": Way(1, delay), "bulk": Way(50_000, bulk)})
