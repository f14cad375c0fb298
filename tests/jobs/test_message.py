from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.app import task as celery_task
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.errors import InvalidRequest, MalformedId, NotJSON, TooLarge
from worker.jobs.message import MAX_DEPTH, depth_of, encoded_body, new_job

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_the_message_says_what_celery_itself_would_send() -> None:
    app = Celery("contract", set_as_current=False)
    theirs = app.amqp.as_task_v2("id-1", "tests.add", (1, 2), {"z": 3})
    job = new_job("tests.add", [1, 2], {"z": 3}, job_id="id-1", priority=4)
    ours = json.loads(job.message.envelope)

    said = {name: theirs.headers[name] for name in ours["headers"]}
    said["origin"] = ours["headers"]["origin"]  # another process
    assert ours["headers"] == said
    assert ours["properties"] == {"correlation_id": "id-1", "priority": 4}
    args, kwargs, embed = json.loads(job.message.body)
    assert (args, kwargs, embed) == ([1, 2], {"z": 3}, theirs.body[2])


def test_what_the_message_leaves_out_is_what_a_task_sees_when_nothing_is_said() -> None:
    app = Celery("contract", set_as_current=False)
    theirs = app.amqp.as_task_v2("id-1", "tests.add", (1, 2), {"z": 3})
    envelope = json.loads(new_job("tests.add", [1, 2], {"z": 3}, job_id="id-1").message.envelope)
    origin = {"origin": "producer@host"}
    whole, ours = (
        celery_task.Context(theirs.headers | origin),
        celery_task.Context(envelope["headers"] | origin),
    )

    left_out = set(theirs.headers) - set(envelope["headers"])
    # The limits say the same in two ways, and `ignore_result` is the task's own when not said.
    for name in left_out - {"timelimit", "ignore_result"}:
        assert (getattr(ours, name) or None) == (getattr(whole, name) or None), name
    for name in ("time_limit", "soft_time_limit"):
        assert getattr(ours, name) is getattr(whole, name) is None
    assert ours.as_execution_options() == whole.as_execution_options()
    actual = celery_task.get_actual_ignore_result  # type: ignore[attr-defined] # no stub has it
    assert actual(app.Task(), ours) is app.Task().ignore_result


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.integers(0, 9))
def test_the_envelope_is_json_whatever_is_in_it(name: str, value: str, priority: int) -> None:
    assume("\0" not in name)
    job = new_job(name, [value], {"k": value}, job_id=name, priority=priority)
    said = json.loads(job.message.envelope)

    assert said["headers"]["task"] == said["headers"]["id"] == said["headers"]["root_id"] == name
    assert said["headers"]["argsrepr"] == repr((value,))
    assert said["headers"]["kwargsrepr"] == repr({"k": value})
    assert said["properties"] == {"correlation_id": name, "priority": priority}


class Caseless(str):
    """A text that equals others."""

    def __eq__(self, other: object) -> bool:
        return str(self).lower() == str(other).lower()

    def __hash__(self) -> int:
        return hash(str(self).lower())


def test_a_text_that_equals_another_keeps_its_own_name() -> None:
    new_job("tests.echo")
    job = new_job(Caseless("tests.ECHO"))

    assert str(job.task) == json.loads(job.message.envelope)["headers"]["task"] == "tests.ECHO"


@given(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=3))
def test_arguments_round_trip(args: list[Any], kwargs: dict[str, Any]) -> None:
    job = new_job("tests.add", args, kwargs)

    assert json.loads(job.message.body)[:2] == [args, kwargs]


@given(st.integers(1, MAX_DEPTH + 50))
def test_depth_counts_levels_and_stops_above_the_bound(levels: int) -> None:
    value: Any = 1
    for _ in range(levels):
        value = [value] if levels % 2 else {"in": value}

    assert depth_of(value) == min(levels, MAX_DEPTH + 2)


def test_what_nests_too_deep_is_refused_without_recursion() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(NotJSON, match="nest deeper than 100"):
        encoded_body(value, {}, 1 << 20)
    while value:  # taken apart by hand: freeing it would recurse
        value = value[0]


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", 1j])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(NotJSON, match="cannot be written as JSON"):
        new_job("tests.add", [value])


def test_a_body_over_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(TooLarge, match=r"has 20\d\d bytes, the limit is 1024"):
        new_job("tests.add", ["x" * 2000], max_bytes=1024)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"job_id": "x" * 300}, MalformedId),
        ({"queue": ""}, InvalidRequest),
        ({"queue": "q" * 256}, InvalidRequest),
        ({"queue": "\ud800"}, InvalidRequest),
        ({"key": "a\0b"}, InvalidRequest),
        ({"key": ""}, InvalidRequest),
        ({"priority": 10}, InvalidRequest),
        ({"priority": -1}, InvalidRequest),
        ({"priority": True}, InvalidRequest),
        ({"priority": 1.0}, InvalidRequest),
        ({"delay": -1}, InvalidRequest),
        ({"delay": float("nan")}, InvalidRequest),
        ({"delay": float("inf")}, InvalidRequest),
        ({"expires": "soon"}, InvalidRequest),
        ({"args": "text"}, InvalidRequest),
        ({"kwargs": [1]}, InvalidRequest),
    ],
)
def test_what_cannot_be_a_job_is_refused(more: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        new_job("tests.add", **more)


def test_the_fingerprint_tells_requests_apart_and_repeats_not() -> None:
    first = new_job("tests.add", [1])

    assert first.fingerprint == new_job("tests.add", [1]).fingerprint
    assert first.fingerprint != new_job("tests.add", [2]).fingerprint
    assert first.fingerprint != new_job("tests.sub", [1]).fingerprint
    assert first.fingerprint != new_job("tests.add", [1], queue="other").fingerprint
