from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

from worker.broker.messages import foreign_job, job_of
from worker.errors import InvalidRequest, MalformedId
from worker.jobs.job import NewJob


def wire(message: Any, **properties: Any) -> dict[str, Any]:
    """A message of Celery's own making, as kombu puts it into a list."""
    headers, more, body, _ = message
    return {
        "body": base64.b64encode(dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            **more,
            "body_encoding": "base64",
            "delivery_tag": "tag",
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            **properties,
        },
    }


@pytest.fixture(scope="module")
def app() -> Celery:
    return Celery("contract", set_as_current=False)


def test_a_message_of_protocol_2_is_read_whole(app: Celery) -> None:
    message = wire(
        app.amqp.as_task_v2(
            "a", "tests.add", (1,), {"y": 2}, group_id="g", root_id="r", parent_id="p"
        ),
        priority=4,
    )

    job = foreign_job("q\x06\x163", dumps(message).encode())

    assert (job.id, job.task, job.queue, job.list) == ("a", "tests.add", "q", "q\x06\x163")
    assert (job.priority, job.delay, job.expires) == (4, None, None)
    assert (job.group_id, job.root_id, job.parent_id) == ("g", "r", "p")
    envelope = loads(job.message.envelope)
    assert envelope["headers"] == message["headers"]
    assert "delivery_tag" not in envelope["properties"]
    assert envelope["content-type"] == "application/json"
    assert job.message.body == base64.b64decode(message["body"])


def test_a_message_of_protocol_1_becomes_one_of_protocol_2(app: Celery) -> None:
    old = app.amqp.as_task_v1("a", "tests.add", (1,), {"y": 2}, retries=2, group_id="g")

    job = foreign_job("q", dumps(wire(old)).encode())

    headers = loads(job.message.envelope)["headers"]
    assert (job.id, job.task, job.group_id, job.root_id) == ("a", "tests.add", "g", "a")
    assert (headers["retries"], headers["group"]) == (2, "g")
    assert json.loads(job.message.body) == [
        [1],
        {"y": 2},
        {"callbacks": None, "errbacks": None, "chord": None, "chain": None},
    ]


@pytest.mark.parametrize("protocol", ["as_task_v2", "as_task_v1"])
def test_times_become_seconds_from_now(app: Celery, protocol: str) -> None:
    message = getattr(app.amqp, protocol)("a", "tests.add", countdown=60, expires=120)

    job = foreign_job("q", dumps(wire(message)).encode())

    assert job.delay is not None and 50 < job.delay <= 60
    assert job.expires is not None and 110 < job.expires <= 120
    assert not job.is_due


@given(st.integers(-(10**6), 10**6), st.integers(-12, 12))
def test_a_time_counts_in_every_time_zone(seconds: int, offset: int) -> None:
    from datetime import timezone

    moment = datetime.now(timezone(timedelta(hours=offset))) + timedelta(seconds=seconds)

    job = read({"eta": moment.isoformat()})

    assert job.delay is not None and abs(job.delay - seconds) < 5


def test_a_time_without_a_zone_is_utc() -> None:
    naive = (datetime.now(UTC) + timedelta(seconds=60)).replace(tzinfo=None)

    job = read({"eta": naive.isoformat()})

    assert job.delay is not None and 50 < job.delay <= 60


def read(headers: dict[str, Any], **more: Any) -> NewJob:
    job = job_of(
        "q",
        {
            "body": "[[], {}, {}]",
            "content-type": "application/json",
            "headers": {"task": "tests.add", "id": "a", **headers},
            "properties": {},
            **more,
        },
    )
    assert job is not None
    return job


@pytest.mark.parametrize("value", ["soon", 1e400, "2026-13-45T00:00:00", [], "\0"])
def test_a_time_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="eta must be an ISO 8601 time"):
        read({"eta": value})


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"id": "x" * 300}, MalformedId),
        ({"id": 7}, MalformedId),
        ({"task": ""}, InvalidRequest),
        ({"task": ["a"]}, InvalidRequest),
        ({"task": "a\0b"}, InvalidRequest),
    ],
)
def test_a_task_message_that_cannot_be_a_job_is_refused(
    headers: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        read(headers)


@pytest.mark.parametrize(
    ("priority", "expected"), [(None, 0), ("x", 0), (-3, 0), (4, 4), ("7", 7), (99, 9)]
)
def test_a_strangers_priority_is_bounded(priority: object, expected: int) -> None:
    assert read({}, properties={"priority": priority}).priority == expected


def test_a_message_that_is_no_task_is_none() -> None:
    assert job_of("q", {"body": "{}", "headers": {}, "properties": {}}) is None
    assert job_of("q", {"body": "", "headers": None, "properties": None}) is None


def test_a_body_is_kept_byte_by_byte() -> None:
    body = '[[1e+22, NaN, "\\u0000"], {}, {}]'

    assert read({}, body=body).message.body == body.encode()


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["body", "headers", "properties", "task", "id", "eta"]) | st.text(), inner
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_a_stranger_writes_is_a_job_or_is_refused(entry: bytes) -> None:
    with suppress(InvalidRequest):  # the reason goes to the quarantine with it
        assert isinstance(foreign_job("q", entry), NewJob)


@pytest.mark.parametrize(
    "entry",
    [
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"7",
        b"{}",
        b'{"headers": {"task": "t", "id": "a"}, "properties": {"body_encoding": "base64"},'
        b' "body": "abc"}',
        b'{"headers": 7}',
        b'{"headers": {"task": "t", "id": "a"}, "properties": 7}',
    ],
)
def test_an_entry_that_nobody_can_read_is_refused(entry: bytes) -> None:
    with pytest.raises(InvalidRequest):
        foreign_job("q", entry)
