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
        ({"task": "\ud800"}, InvalidRequest),
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


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [
    5, "60", [], [1], [1, 2, 3], [1, "2"], [-1, None], [True, None], {"a": 1, "b": 2}, [NAN, None],
    [INF, None],
])  # fmt: skip
def test_time_limits_that_celery_cannot_keep_are_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="timelimit must be two numbers of seconds"):
        read({"timelimit": value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stamped_headers", [7, "a", [1], [None], {"a": 1}]),
        ("stamps", [7, "a", ["a"]]),
        ("retries", [None, "1", 1.0, True, -1, []]),
        ("ignore_result", ["no", [], 0.5]),
    ],
)
def test_headers_that_celery_trips_over_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequest, match=f"^{name} must be .*\\.$"):
            read({name: value})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"timelimit": None, "stamped_headers": None, "ignore_result": None, "stamps": None},
        {"timelimit": [None, None], "stamped_headers": [], "stamps": {}},
        {"timelimit": (60, 0.5), "stamped_headers": ["a"], "stamps": {"a": 1}},
        {"retries": 3, "ignore_result": True},
    ],
)
def test_what_celery_sends_is_accepted(headers: dict[str, Any]) -> None:
    assert read(headers).id == "a"


def test_texts_that_postgres_cannot_hold_are_mended() -> None:
    assert read({"root_id": "a\0\ud800b"}).root_id == "a?b"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"exchange": "work", "routing_key": "mail.welcome"}, ("work", "mail.welcome")),
        ({"exchange": "", "routing_key": "celery"}, None),
        ({}, None),
        (["work"], None),
    ],
)
def test_a_row_keeps_how_its_message_was_addressed(sent: Any, kept: Any) -> None:
    message = {"headers": {"task": "a", "id": "b"}, "properties": {"delivery_info": sent}}

    job = job_of("mail", message)

    assert job is not None
    info = json.loads(job.message.envelope)["properties"].get("delivery_info")
    assert (info and (info["exchange"], info["routing_key"])) == kept


def test_a_message_that_is_no_task_is_none() -> None:
    assert job_of("q", {"body": "{}", "headers": {}, "properties": {}}) is None
    assert job_of("q", {"body": "", "headers": None, "properties": None}) is None


def test_a_body_is_kept_byte_by_byte() -> None:
    body = '[[1e+22, NaN, "\\u0000"], {}, {}]'

    assert read({}, body=body).message.body == body.encode()


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from([
            "body", "headers", "properties", "task", "id", "eta", "timelimit", "stamped_headers",
            "retries", "content-type", "__type__", "__value__",
        ]) | st.text(), inner
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_a_stranger_writes_is_a_job_or_is_refused(entry: bytes) -> None:
    with suppress(InvalidRequest):  # the reason goes to the quarantine with it
        assert isinstance(foreign_job("q", entry), NewJob)


@given(st.fixed_dictionaries(
    {"task": st.just("t") | st.text(), "id": st.just("a") | st.text()},
    optional={
        name: st.none() | st.booleans() | st.integers() | st.floats() | st.text()
        | st.lists(st.none() | st.integers() | st.floats() | st.text(), max_size=3)
        | st.dictionaries(st.text(), st.integers(), max_size=2)
        for name in (
            "timelimit", "stamped_headers", "stamps", "retries", "ignore_result", "eta", "expires",
            "group", "root_id", "parent_id",
        )
    },
))  # fmt: skip
def test_an_adopted_job_can_be_written_and_started(headers: dict[str, Any]) -> None:
    entry = json.dumps({"headers": headers, "body": "[[], {}, {}]"}).encode()
    try:
        job = foreign_job("q", entry)
    except InvalidRequest:
        return

    for text in (job.id, job.task, job.root_id, job.parent_id, job.group_id):
        assert "\0" not in (text or "") and (text or "").encode() is not None
    assert job.fingerprint
    limits = loads(job.message.envelope)["headers"].get("timelimit") or (None, None)
    hard, soft = limits
    assert all(limit is None or limit >= 0 for limit in (hard, soft))


@pytest.mark.parametrize(
    "entry",
    [
        b'{"__type__": [], "__value__": 1}',
        b'{"__type__": "datetime", "__value__": 1}',
        b'{"__type__": "uuid", "__value__": {"hex": []}}',
        b'{"headers": {"x": {"__type__": {}, "__value__": 1}}}',
        b'{"body": "{\\"__type__\\": [], \\"__value__\\": 1}", "content-type": "application/json"}',
        b'{"headers": ["task", "id"]}',
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
