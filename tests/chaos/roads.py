"""The roads by which a producer of a chaos run hands in its jobs, and notes what is accepted."""

from __future__ import annotations

import base64
import json
import random
import uuid
from typing import Any, Protocol

import redis
from celery import Celery

from tests.chaos.history import Journal
from worker.client import Client
from worker.errors import LedgerError, Unavailable
from worker.jobs.job import NewJob
from worker.jobs.message import new_job
from worker.runtime import durable

#: A job's kind and the arguments of its task.
Drawn = tuple[str, dict[str, Any]]


def told(drawn: Drawn, job: str | None, key: str | None = None) -> dict[str, Any]:
    """The fields of an event of one job; how often it is to fail goes with it."""
    kind, arguments = drawn
    story = {"job": job, "kind": kind, "key": key}
    return {**story, "arguments": arguments} if "failures" in arguments else story


class Road(Protocol):
    """How jobs are handed in."""

    def send(self, drawn: list[Drawn]) -> list[str]:
        """Enqueue what was drawn; the ids accepted."""
        ...


class BatchRoad:
    """By the Python client, many at once; what raised is sent once more, every other time."""

    def __init__(self, client: Client, journal: Journal, dice: random.Random) -> None:
        self._client, self._journal, self._dice = client, journal, dice

    def send(self, drawn: list[Drawn]) -> list[str]:
        """See `Road`."""
        jobs = [new_job(f"chaos.{kind}", [], arguments) for kind, arguments in drawn]
        stories = [told(each, job.id) for job, each in zip(jobs, drawn, strict=True)]
        if not (
            self._sent(jobs, stories) or (self._dice.random() < 0.5 and self._sent(jobs, stories))
        ):
            return []
        for story in stories:
            self._journal.note("accepted", **story)
        return [job.id for job in jobs]

    def _sent(self, jobs: list[NewJob], stories: list[dict[str, Any]]) -> bool:
        try:
            self._client.enqueue_many(jobs)
        except Unavailable as exc:
            for story in stories:
                self._journal.note("unsure", error=str(exc), **story)
            return False
        return True


class KeyedRoad:
    """By the Python client, one job at a time, each under an idempotency key."""

    def __init__(self, client: Client, journal: Journal, dice: random.Random) -> None:
        self._client, self._journal, self._dice = client, journal, dice

    def send(self, drawn: list[Drawn]) -> list[str]:
        """See `Road`."""
        return [job for each in drawn for job in self._keyed(each)]

    def _keyed(self, drawn: Drawn) -> list[str]:
        """One job under a key; repeated with the same key until it is answered, or given up."""
        key, ids, (kind, arguments) = uuid.uuid4().hex, set(), drawn
        for _ in range(self._dice.randint(1, 3)):
            try:
                ids.add(self._client.enqueue(f"chaos.{kind}", [], arguments, key=key).id)
            except Unavailable as exc:
                self._journal.note("unsure", error=str(exc), **told(drawn, None, key))
                continue
            if self._dice.random() < 0.8:  # else ask again: the answer must be the same
                break
        for job in ids:
            self._journal.note("accepted", **told(drawn, job, key))
        return list(ids)


class CeleryRoad:
    """By a durable Celery app, one message at a time."""

    def __init__(self, journal: Journal) -> None:
        self._app = durable(Celery("chaos-producer", set_as_current=False))
        self._journal = journal

    def send(self, drawn: list[Drawn]) -> list[str]:
        """See `Road`."""
        return [job for each in drawn if (job := self._one(each))]

    def _one(self, drawn: Drawn) -> str | None:
        job, (kind, arguments) = uuid.uuid4().hex, drawn
        ignore = kind == "ignoring"
        try:
            self._app.send_task(
                f"chaos.{kind}", kwargs=arguments, task_id=job, ignore_result=ignore
            )
        except LedgerError as exc:
            self._journal.note("unsure", error=str(exc), **told(drawn, job))
            return None
        self._journal.note("accepted", **told(drawn, job))
        return job


class ForeignRoad:
    """By LPUSH of a Celery message, protocol 2, without any library of ours."""

    def __init__(self, journal: Journal, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        self._journal = journal

    def send(self, drawn: list[Drawn]) -> list[str]:
        """See `Road`; nothing is accepted here."""
        for kind, arguments in drawn:
            job = uuid.uuid4().hex
            self._journal.note("unsure", error="foreign", **told((kind, arguments), job))
            try:
                self._redis.lpush("celery", json.dumps(_message(job, kind, arguments)))
            except redis.RedisError:
                break
        return []


def _message(job: str, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    body = base64.b64encode(json.dumps([[], arguments, {}]).encode()).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": f"chaos.{kind}", "id": job, "root_id": job},
        "properties": {
            "correlation_id": job, "delivery_mode": 2, "delivery_tag": job, "priority": 0,
            "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "celery"},
        },
    }  # fmt: skip
