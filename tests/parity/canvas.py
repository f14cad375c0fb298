"""Canvas: chains, groups, chords, links, and tasks that replace themselves."""

from __future__ import annotations

from typing import Any

from tests.parity.rows import row
from tests.parity.side import PATIENCE, PREFORK, Side, chain, chord, group


def _got(result: Any) -> Any:
    return result.get(timeout=PATIENCE)


@row("a chain passes each value on", 10)
def chains(s: Side) -> Any:
    return _got(chain(s.t.add.s(1, 2), s.t.add.s(3), s.t.add.s(4))())


@row("the | operator makes a chain", 6)
def pipe(s: Side) -> Any:
    return _got((s.t.add.s(1, 2) | s.t.add.s(3)).delay())


@row("an immutable step takes no value", 7)
def immutable(s: Side) -> Any:
    return _got((s.t.add.s(1, 2) | s.t.add.si(3, 4)).delay())


@row("the parents of a chain's result have the earlier values", [3, 6])
def parents(s: Side) -> Any:
    result = (s.t.add.s(1, 2) | s.t.add.s(3) | s.t.add.s(4)).delay()
    _got(result)
    return [_got(result.parent.parent), _got(result.parent)]


@row("a chain whose first step fails is FAILURE at its end", ["FAILURE", "Trouble"])
def chain_fails(s: Side) -> Any:
    result = (s.t.fail.s() | s.t.echo.s() | s.t.echo.s()).delay()
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("the middle of a chain whose first step fails is FAILURE", "FAILURE")
def chain_middle(s: Side) -> Any:
    result = (s.t.fail.s() | s.t.echo.s() | s.t.echo.s()).delay()
    return s.state(result.parent, "FAILURE")


@row("a chain whose second step fails keeps the first one's value", [1, "FAILURE"])
def chain_half(s: Side) -> Any:
    result = (s.t.echo.s(1) | s.t.fail.s() | s.t.echo.s()).delay()
    return [_got(result.parent.parent), s.state(result, "FAILURE")]


@row(
    "the step after one that raises Ignore does not run, and its state is PENDING",
    "PENDING",
    durable="REVOKED",
    why="Nothing waits for what will never come: the later steps end with the one that ended.",
)
def chain_ignored(s: Side) -> Any:
    result = (s.t.ignored.s() | s.t.echo.si(1)).delay()
    _through(s, result.parent)
    s.until(lambda: result.state != "PENDING", 1.0)
    return result.state


@row(
    "the step after one that was revoked does not run, and its state is PENDING",
    "PENDING",
    durable="REVOKED",
    why="Nothing waits for what will never come: the later steps end with the one that ended.",
)
def chain_revoked(s: Side) -> Any:
    result = (s.t.echo.s(1).set(countdown=1) | s.t.echo.si(1)).delay()
    result.parent.revoke()
    s.state(result.parent, "REVOKED")
    s.until(lambda: result.state != "PENDING", 1.0)
    return result.state


@row("a group gives its values in order", [0, 1, 2, 3])
def groups(s: Side) -> Any:
    return _got(group(s.t.echo.s(n) for n in range(4))())


@row("a group of one gives a list of one", [5])
def group_of_one(s: Side) -> Any:
    return _got(group([s.t.echo.s(5)])())


@row("a group with a failure raises it", "Trouble")
def group_fails(s: Side) -> Any:
    return type(s.error(group(s.t.echo.s(1), s.t.fail.s())())).__name__


@row("a group with a failure is ready and failed", [True, True, False])
def group_states(s: Side) -> Any:
    result = group(s.t.echo.s(1), s.t.fail.s())()
    s.until(result.ready)
    return [result.ready(), result.failed(), result.successful()]


@row("join(propagate=False) gives the exceptions in their places", [1, "Trouble"])
def join_failures(s: Side) -> Any:
    values = group(s.t.echo.s(1), s.t.fail.s())().join(timeout=PATIENCE, propagate=False)
    return [values[0], type(values[1]).__name__]


@row("a group may hold chains", [3, 7])
def group_of_chains(s: Side) -> Any:
    return _got(group(s.t.add.s(0, 1) | s.t.add.s(2), s.t.add.s(3, 3) | s.t.add.s(1))())


@row("a group after a task gets its value in every member", [3, 4])
def task_then_group(s: Side) -> Any:
    return _got((s.t.echo.s(2) | group(s.t.add.s(1), s.t.add.s(2))).delay())


@row("a chord calls its body with the values in order", [0, 1, 2])
def chords(s: Side) -> Any:
    return _got(chord([s.t.echo.s(n) for n in range(3)], s.t.echo.s())())


@row("a group before a task becomes a chord", 6)
def group_then_task(s: Side) -> Any:
    return _got((group(s.t.echo.s(n) for n in (1, 2, 3)) | s.t.total.s()).delay())


@row("a chord of one calls its body", 5)
def chord_of_one(s: Side) -> Any:
    return _got(chord([s.t.echo.s(5)], s.t.total.s())())


@row("a chord's body gets the value of a part whose own result is ignored", ["unheard", 1])
def ignored_part(s: Side) -> Any:
    return _got(chord([s.t.silent.si(s.key()), s.t.echo.s(1)], s.t.echo.s())())


@row("a chord with a failed part fails its body with ChordError", ["FAILURE", "ChordError"])
def chord_fails(s: Side) -> Any:
    result = chord([s.t.echo.s(1), s.t.fail.s()], s.t.total.s())()
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("the ChordError says which part failed and why", [True, True])
def chord_error(s: Side) -> Any:
    result = chord([s.t.echo.s(1), s.t.fail.s()], s.t.total.s())()
    s.state(result, "FAILURE")
    text = str(result.result)
    return [text.startswith("Dependency "), "raised Trouble('no luck', 7)" in text]


@row("a failed chord calls the body's error link", 1)
def chord_errback(s: Side) -> Any:
    key = s.key()
    body = s.t.total.s().on_error(s.t.new_errback.s(key=key))
    chord([s.t.echo.s(1), s.t.fail.s()], body)()
    return len(s.notes(f"errback:{key}", 1))


@row("a chord may stand in a chain", 8)
def chord_in_a_chain(s: Side) -> Any:
    header = group(s.t.add.s(1), s.t.add.s(2))
    return _got((s.t.echo.s(1) | header | s.t.total.s() | s.t.add.s(3)).delay())


@row("a chord's header may hold chains", 10)
def chains_in_a_chord(s: Side) -> Any:
    header = [s.t.add.s(0, 1) | s.t.add.s(2), s.t.add.s(3, 3) | s.t.add.s(1)]
    return _got(chord(header, s.t.total.s())())


@row("a chord's body may be a chain", 7)
def chain_as_body(s: Side) -> Any:
    return _got(chord([s.t.echo.s(n) for n in (1, 2)], s.t.total.s() | s.t.add.s(4))())


@row("a chord's body may be a group", [3, 3])
def group_as_body(s: Side) -> Any:
    return _got(chord([s.t.echo.s(n) for n in (1, 2)], group(s.t.total.s(), s.t.total.s()))())


@row("a chord may be part of a chord's header", 6)
def nested_chord(s: Side) -> Any:
    inner = chord([s.t.echo.s(1), s.t.echo.s(2)], s.t.total.s())
    return _got(chord([inner, s.t.echo.s(3)], s.t.total.s())())


@row("a chord without a header calls its body with nothing", [])
def empty_chord(s: Side) -> Any:
    return _got(chord([], s.t.echo.s())())


@row("a link is called with the value", ["5"])
def link(s: Side) -> Any:
    key = s.key()
    s.t.echo.apply_async((5,), link=s.t.push_last.s(key))
    return s.notes(f"pushed:{key}", 1)


@row("several links are all called", ["5", "5"])
def links(s: Side) -> Any:
    key = s.key()
    s.t.echo.apply_async((5,), link=[s.t.push_last.s(key), s.t.push_last.s(key)])
    return s.notes(f"pushed:{key}", 2)


@row("an immutable link is called with its own arguments", ["9"])
def immutable_link(s: Side) -> Any:
    key = s.key()
    s.t.echo.apply_async((5,), link=s.t.push.si(key, 9))
    return s.notes(f"pushed:{key}", 1)


@row("a failed task does not call its link", [])
def no_link(s: Side) -> Any:
    key = s.key()
    result = s.t.fail.apply_async(link=s.t.push_last.s(key))
    s.state(result, "FAILURE")
    s.t.echo.delay(1).get(timeout=PATIENCE)
    return s.notes(f"pushed:{key}", 1, 0.3)


@row("an error link with one argument is called with the failed job's id", True)
def old_errback(s: Side) -> Any:
    key = s.key()
    result = s.t.fail.apply_async(link_error=s.t.old_errback.s(key))
    return s.notes(f"errback:{key}", 1) == [result.id]


@row("an error link with three arguments gets request, exception and traceback", True)
def new_errback(s: Side) -> Any:
    key = s.key()
    result = s.t.fail.apply_async(link_error=s.t.new_errback.s(key=key))
    return s.notes(f"errback:{key}", 1) == [f"{result.id} Trouble ('no luck', 7)"]


@row("an error link of a chain is called when its first step fails", 1)
def chain_errback(s: Side) -> Any:
    key = s.key()
    (s.t.fail.s() | s.t.echo.s()).on_error(s.t.new_errback.s(key=key)).delay()
    return len(s.notes(f"errback:{key}", 1))


@row("an error link of a chain is called when its second step fails", 1)
def chain_errback_second(s: Side) -> Any:
    key = s.key()
    (s.t.echo.s(1) | s.t.fail.s()).on_error(s.t.new_errback.s(key=key)).delay()
    return len(s.notes(f"errback:{key}", 1))


@row(
    "an error link of a task killed by its time limit is called (prefork)",
    2,
    durable=1,
    why="Stock Celery calls it twice, where it ends the process and where it finds it ended.",
)
def errback_of_a_limit(s: Side) -> Any:
    key = s.key()
    result = s.t.hard_limited.apply_async(queue=PREFORK, link_error=s.t.old_errback.s(key))
    s.state(result, "FAILURE")
    return len(s.notes(f"errback:{key}", 2, 3.0))


@row("a link's own link is called", ["5"])
def link_of_a_link(s: Side) -> Any:
    key = s.key()
    inner = s.t.echo.s()
    inner.link(s.t.push_last.s(key))
    s.t.echo.apply_async((5,), link=inner)
    return s.notes(f"pushed:{key}", 1)


@row("map runs the task over a list", [1, 2, 3])
def maps(s: Side) -> Any:
    return _got(s.t.echo.map([1, 2, 3]).apply_async())


@row("starmap runs the task over a list of arguments", [3, 7])
def starmaps(s: Side) -> Any:
    return _got(s.t.add.starmap([(1, 2), (3, 4)]).apply_async())


@row("chunks splits a list into jobs", [[2, 4], [6]])
def chunks(s: Side) -> Any:
    return _got(s.t.add.chunks([(1, 1), (2, 2), (3, 3)], 2).apply_async())


@row("a task may replace itself by a task", 4)
def by_task(s: Side) -> Any:
    return _got(s.t.replaced_by_task.delay(3))


@row("a task may replace itself by a chain", 5)
def by_chain(s: Side) -> Any:
    return _got(s.t.replaced_by_chain.delay(3))


@row("a task may replace itself by a group", [4, 5])
def by_group(s: Side) -> Any:
    return _got(s.t.replaced_by_group.delay(3))


@row("a task may replace itself by a chord", 9)
def by_chord(s: Side) -> Any:
    return _got(s.t.replaced_by_chord.delay(3))


@row("a replaced task in a chain passes the replacement's value on", 14)
def replaced_in_a_chain(s: Side) -> Any:
    return _got((s.t.replaced_by_chain.s(3) | s.t.add.s(9)).delay())


@row("a replaced task in a chord's header joins with the replacement's value", 9)
def replaced_in_a_chord(s: Side) -> Any:
    return _got(chord([s.t.replaced_by_chain.s(3), s.t.echo.s(4)], s.t.total.s())())


@row("a task replaced by a chain that fails is FAILURE", ["FAILURE", "Trouble"])
def replaced_badly(s: Side) -> Any:
    result = s.t.replaced_badly.delay()
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("a signature is called with more arguments in front", 3)
def partial(s: Side) -> Any:
    return _got(s.t.add.s(1).delay(2))


@row("a signature survives JSON", 3)
def as_json(s: Side) -> Any:
    import json

    from celery import signature

    return _got(signature(json.loads(json.dumps(s.t.add.s(1, 2))), app=s.app).delay())


@row("set() sets options of the call", "prefork")
def options(s: Side) -> Any:
    info = _got(s.t.request.s().set(queue=PREFORK).delay())["delivery_info"]
    return info["routing_key"]


@row("a signature by name calls a task that this process does not have", 3)
def by_name(s: Side) -> Any:
    return _got(s.app.signature("parity.add", (1, 2)).apply_async())


@row("a group with a revoked member is ready and not successful", [True, False])
def revoked_member(s: Side) -> Any:
    result = group(s.t.echo.s(1), s.t.echo.s(2).set(countdown=1))()
    result.results[1].revoke()
    s.until(result.ready)
    return [result.ready(), result.successful()]


@row("a group can be revoked", ["REVOKED", "REVOKED"])
def revoked_group(s: Side) -> Any:
    result = group(s.t.echo.s(n).set(countdown=1) for n in range(2))()
    result.revoke()
    return [s.state(member, "REVOKED") for member in result.results]


@row(
    "a member may add to its chord",
    6,
    durable="NotImplementedError",
    why="Chords are Celery's own for a result backend without a counter; joining them in the"
    " ledger is to come.",
)
def grows(s: Side) -> Any:
    result = chord([s.t.grows.s()], s.t.total.s())()
    try:
        return _got(result)
    except Exception as exc:
        return "NotImplementedError" if "NotImplementedError" in repr(exc) else repr(exc)


def _through(s: Side, result: Any) -> None:
    s.notes(f"signals:{result.id}", 3)
