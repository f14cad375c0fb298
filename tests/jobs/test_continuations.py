"""What follows a job's end: read from the messages that Celery itself sends, and from garbage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.result import GroupResult
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.continuations import (
    CALL_ERRBACKS,
    CHORD_UNLOCK,
    NOTHING_FOLLOWS,
    FinalJob,
    ended_after,
    errback_calls,
    later_jobs,
)
from worker.jobs.job import Ended, Message
from worker.jobs.message import new_job
from worker.jobs.states import State

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.fixture
def app() -> Celery:
    made = Celery("contract", broker="memory://", backend="cache+memory://", set_as_current=False)

    def run(*args: Any) -> None:
        pass

    for name in "abcdefg":
        made.task(name=f"tests.{name}", shared=False)(run)
    return made


@pytest.fixture
def first_sent(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Message]:
    """What Celery sends first of a canvas."""

    def send(canvas: Any) -> Message:
        sent: list[Any] = []
        monkeypatch.setattr(app.amqp, "send_task_message", lambda p, name, m, **k: sent.append(m))
        canvas.results = canvas.apply_async()
        return Message("{}", app.backend.encode(sent[0].body).encode())

    return send


def ids_given_out(result: Any) -> set[str]:
    """Every job's id that a caller can reach from a canvas's result."""
    found: set[str] = set()
    while result is not None:
        if isinstance(result, GroupResult):
            for one in result.results or ():
                found |= ids_given_out(one)
        else:
            found.add(result.id)
        result = result.parent
    return found


CANVASES: dict[str, Callable[[Any], Any]] = {
    "two steps": lambda t: chain(t("a"), t("b")),
    "three steps": lambda t: chain(t("a"), t("b"), t("c")),
    "a group last": lambda t: chain(t("a"), group(t("b"), t("c"))),
    "a group in the middle": lambda t: chain(t("a"), group(t("b"), t("c")), t("d"), t("e")),
    "groups one after the other": lambda t: chain(
        t("a"), group(t("b"), t("c")), group(t("d"), t("e"))
    ),
    "a chord": lambda t: chain(t("a"), chord([t("b"), t("c")], t("d"))),
    "a chord whose body is a chain": lambda t: chain(
        t("a"), chord([t("b"), t("c")], chain(t("d"), t("e")))
    ),
    "chains in a chord's header": lambda t: chain(
        t("a"), chord([chain(t("b"), t("c")), chain(t("d"), t("e"))], t("f"))
    ),
    "a chord in a chord's header": lambda t: chain(
        t("a"), chord([t("b"), chord([t("c"), t("d")], t("e"))], t("f")), t("g")
    ),
    "chains in a group": lambda t: chain(t("a"), group(chain(t("b"), t("c")), t("d"))),
}


@pytest.mark.parametrize("name", CANVASES)
def test_every_id_that_celery_gives_out_is_known_to_follow_the_first_step(
    app: Celery, first_sent: Callable[[Any], Message], name: str
) -> None:
    # Given a canvas of which only the first step was sent
    canvas = CANVASES[name](lambda task: app.signature(f"tests.{task}"))
    message = first_sent(canvas)

    # Then the first step's message names every other job, each with its task
    later = later_jobs("tests.a", message)
    first = ids_given_out(canvas.results) - {one.id for one in later}
    assert len(first) == 1
    assert {one.id for one in later} <= ids_given_out(canvas.results)
    assert sorted({one.task for one in later}) == sorted(
        {f"tests.{task}" for task in "bcdefg" if f'"tests.{task}"' in message.body.decode()}
    )


def test_later_jobs_come_in_their_order_with_their_queue_and_group(
    app: Celery, first_sent: Callable[[Any], Message]
) -> None:
    steps = [app.signature("tests.a"), app.signature("tests.b", queue="slow"),
             app.signature("tests.c")]  # fmt: skip

    assert [(one.task, one.queue) for one in later_jobs("x", first_sent(chain(*steps)))] == [
        ("tests.b", "slow"),
        ("tests.c", ""),
    ]


def test_links_with_an_id_follow_too() -> None:
    nested = {"task": "tests.c", "options": {"task_id": "c"}}
    link = {"task": "tests.b", "options": {"task_id": "b", "link": [nested]}}
    message = body_of({"callbacks": [link, {"task": "tests.d", "options": {}}]})

    assert [one.id for one in later_jobs("tests.a", message)] == ["b", "c"]


def test_what_a_chords_body_says_follows_the_job_that_waits_for_the_header() -> None:
    later = {"task": "tests.later", "options": {"task_id": "later"}}
    body = {"task": "tests.sum", "options": {"task_id": "sum", "chain": [later]}}
    message = body_of({}, ["group", body])

    assert [one.id for one in later_jobs(CHORD_UNLOCK, message)] == ["sum", "later"]
    assert later_jobs("tests.other", message) == []


@pytest.mark.parametrize(
    ("state", "words", "ends", "keeps"),
    [
        (State.FAILED, "failed: ValueError: no", State.FAILED, b"{}"),
        (State.CANCELLED, "was cancelled: ValueError: no", State.CANCELLED, None),
        (State.SUCCEEDED, "ended with Ignore", State.CANCELLED, None),
    ],
)
def test_what_follows_says_what_it_ended_with(
    state: State, words: str, ends: State, keeps: bytes | None
) -> None:
    message = body_of({"chain": [{"task": "tests.b", "options": {"task_id": "b", "queue": "q"}}]})
    job = FinalJob("a", "tests.a", "celery", 0, state, message, "ValueError: no", b"{}", "json",
                   "Traceback", "root")  # fmt: skip

    (ended,) = ended_after(job)

    assert (ended.id, ended.task, ended.queue) == ("b", "tests.b", "q")
    assert (ended.state, ended.result) == (ends, keeps)
    assert ended.error == f"job a, which it was to follow, {words}"
    assert (ended.parent_id, ended.root_id) == ("a", "root")


def test_what_ends_with_another_job_gives_that_ones_reason() -> None:
    message = body_of({"chain": [{"task": "tests.b", "options": {"task_id": "b"}}]})
    job = FinalJob("a", "tests.a", "celery", 0, State.FAILED, message)
    because = Ended("a", "tests.a", State.CANCELLED, error="not wanted", parent_id="first")

    (ended,) = ended_after(job, because=because)

    assert (ended.id, ended.state, ended.error) == ("b", State.CANCELLED, "not wanted")
    assert ended.parent_id == "first"


def test_a_failed_jobs_errbacks_are_called_by_one_job_of_its_queue() -> None:
    errbacks = [{"task": "tests.told", "args": [1], "options": {}}]
    message = replace(body_of({"errbacks": errbacks}, [2]), envelope='{"headers": {"retries": 4}}')
    job = FinalJob("a", "tests.a", "slow", 3, State.FAILED, message, "poison", root_id="root")

    (made,) = errback_calls(job)

    assert (made.task, made.queue, made.list) == (CALL_ERRBACKS, "slow", "slow\x06\x163")
    assert (made.parent_id, made.root_id) == ("a", "root")
    ((call,), kwargs, embed) = json.loads(made.message.body)
    assert (kwargs, set(embed.values())) == ({}, {None})
    assert call["errbacks"] == errbacks
    assert (call["error"], call["result"], call["traceback"]) == ("poison", None, None)
    request = call["request"]
    assert (request["id"], request["task"], request["retries"]) == ("a", "tests.a", 4)
    assert request["args"] == [2]


def test_a_chords_errbacks_are_those_of_its_body() -> None:
    told = {"task": "tests.told", "options": {}}
    body = {"task": "tests.sum", "options": {"task_id": "sum", "link_error": [told]}}
    tasks = {"tasks": [body, {"task": "tests.max", "options": {"task_id": "max"}}]}
    several = {"subtask_type": "group", "kwargs": tasks, "options": {"link_error": [told]}}

    def called(body: Any) -> list[str]:
        job = FinalJob("u", CHORD_UNLOCK, "celery", 0, State.FAILED, body_of({}, ["g", body]))
        return [json.loads(one.message.body)[0][0]["request"]["id"] for one in errback_calls(job)]

    assert called(body) == ["sum"]
    assert called(several) == ["sum", "max"]


def test_nothing_follows_what_is_enqueued_plainly() -> None:
    message = new_job("tests.add", [1]).message

    assert message.body.endswith(NOTHING_FOLLOWS)
    app = Celery("contract", set_as_current=False)
    assert (
        json.dumps(app.amqp.as_task_v2("id", "tests.add").body).encode().endswith(NOTHING_FOLLOWS)
    )


def body_of(embed: Any, args: Any = ()) -> Message:
    return Message("{}", json.dumps([list(args), {}, embed]).encode())


def reads(task: str, message: Message) -> None:
    """Whatever the message is: nothing raises, and what comes out can be written down."""
    job = FinalJob("a", task, "celery", 0, State.FAILED, message)
    for ended in ended_after(job):
        for text in (ended.id, ended.task, ended.queue, ended.group_id or "", ended.error or ""):
            assert "\0" not in text
            text.encode()
    for call in errback_calls(job):
        json.loads(call.message.body)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_body_of_garbage_has_nothing_that_follows(body: bytes) -> None:
    assert later_jobs("tests.a", Message("{}", body)) == []
    reads(CHORD_UNLOCK, Message("no JSON", body))


SIGNATURE: st.SearchStrategy[Any] = st.deferred(
    lambda: st.dictionaries(
        st.sampled_from(["task", "options", "kwargs", "subtask_type"]),
        JSON
        | st.sampled_from(["chord", "group", "chain"])
        | st.dictionaries(
            st.sampled_from(
                ["body", "header", "tasks", "task_id", "queue", "link", "chain", "group_id",
                 "link_error"]
            ),
            JSON | SIGNATURE | st.lists(SIGNATURE, max_size=2),
        ),
        max_size=4,
    )
)  # fmt: skip
PLACES = st.sampled_from(["chain", "callbacks", "errbacks", "chord"])


@given(st.dictionaries(PLACES, JSON | st.lists(JSON | SIGNATURE, max_size=3)), SIGNATURE)
def test_garbage_in_a_canvas_raises_nothing(embed: Any, body: Any) -> None:
    reads("tests.a", body_of(embed))
    reads(CHORD_UNLOCK, body_of(embed, ["group", body]))


@pytest.mark.parametrize("odd", [None, 1, "task", [], ["task"], {}, {"options": 3}])
def test_garbage_among_the_tasks_of_a_chords_body_raises_nothing(odd: Any) -> None:
    told = {"task": "tests.told", "options": {}}
    body = {"subtask_type": "group", "kwargs": {"tasks": [odd]}, "options": {"link_error": [told]}}

    reads(CHORD_UNLOCK, body_of({}, ["group", body]))


def test_a_body_that_nests_too_deep_has_nothing_that_follows() -> None:
    assert later_jobs("tests.a", Message("{}", b"[" * 100_000)) == []
