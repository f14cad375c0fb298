"""kombu messages on their way through Redis, read as jobs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kombu.compression import decompress
from kombu.utils.json import dumps, loads

from worker.errors import InvalidRequest, LedgerError
from worker.jobs.ids import checked_id, shown
from worker.jobs.job import Message, NewJob
from worker.jobs.queues import SEPARATOR, checked_queue, list_of

#: The property that holds the id which the caller of a task message is given.
PROMISED = "ledger_promised"
#: What belongs to one delivery, mostly kombu's; a later delivery gets its own.
_PER_DELIVERY = ("delivery_tag", "delivery_info", "body_encoding", PROMISED)


def job_of(queue: str, message: Mapping[str, Any]) -> NewJob | None:
    """The job that a kombu message carries to `queue`; `None` when it is no task message.

    A future `eta` and `expires` are turned into seconds from now on the clock that wrote them, so
    that a countdown survives a clock that is wrong.

    Raises:
        InvalidRequest: a task message that cannot be a job.
    """
    headers, properties = message.get("headers") or {}, message.get("properties") or {}
    body = _body(message, properties)
    content_type = message.get("content-type")
    if "task" not in headers or "id" not in headers:
        first_version = _protocol_1(body, content_type, headers)
        if first_version is None:
            return None
        headers, body = first_version
    elif compression := headers.get("compression"):
        # What reads a row, such as what finds the jobs that follow it, reads JSON.
        body = _decompressed(body, compression)
        headers = {name: value for name, value in headers.items() if name != "compression"}
    sent = _sent_to(properties.get("delivery_info"))
    properties = {key: properties[key] for key in properties if key not in _PER_DELIVERY} | sent
    priority = _priority(properties.get("priority"))
    envelope = {
        "headers": headers,
        "properties": properties,
        "content-type": content_type,
        "content-encoding": message.get("content-encoding"),
    }
    task = headers["task"]
    if not isinstance(task, str) or not task or "\0" in task or not _is_unicode(task):
        raise InvalidRequest(
            f"The task name must be a non-empty text without NUL, not {shown(task)}."
        )
    _check_headers(headers)
    return NewJob(
        id=checked_id(headers["id"]),
        task=task,
        queue=checked_queue(queue),
        list=list_of(queue, priority),
        priority=priority,
        delay=_seconds_until("eta", headers.get("eta")),
        expires=_seconds_until("expires", headers.get("expires")),
        parent_id=_text(headers.get("parent_id")),
        root_id=_text(headers.get("root_id")),
        group_id=_text(headers.get("group")),
        message=Message(dumps(envelope), body),
    )


def _sent_to(info: object) -> dict[str, Any]:
    """What a row keeps of how its message was addressed: nothing for the default exchange."""
    if not isinstance(info, Mapping):
        return {}
    exchange, key = _text(info.get("exchange")), _text(info.get("routing_key"))
    return {"delivery_info": {"exchange": exchange, "routing_key": key}} if exchange else {}


def carries_task(message: Mapping[str, Any]) -> bool:
    """Whether `message` is a task's, of either version of Celery's protocol."""
    headers = message.get("headers") or {}
    if "task" in headers and "id" in headers:
        return True
    body, content_type = (
        _body(message, message.get("properties") or {}),
        message.get("content-type"),
    )
    return _protocol_1(body, content_type, headers) is not None


def promised(message: Mapping[str, Any]) -> str | None:
    """The id that the caller of a task message is given, where its sender has noted it."""
    return (message.get("properties") or {}).get(PROMISED)


def foreign_job(list_name: str, entry: bytes) -> NewJob:
    """The job in a list's entry that a producer without the ledger pushed.

    Raises:
        InvalidRequest: it is no task message.
    """
    try:
        message = loads(entry)
    except Exception as exc:  # kombu builds what `__type__` names, and that may raise anything
        raise InvalidRequest(f"The entry is no JSON: {type(exc).__name__}.") from None
    if not isinstance(message, Mapping):
        raise InvalidRequest("The entry is no message.")
    try:
        job = job_of(list_name.partition(SEPARATOR)[0], message)
    except LedgerError:
        raise
    except Exception as exc:  # whatever a stranger wrote, it must not stop the worker
        raise InvalidRequest(f"The entry is no task message: {exc}.") from None
    if job is None:
        raise InvalidRequest("The message carries no task.")
    return job


def _body(message: Mapping[str, Any], properties: Mapping[str, Any]) -> bytes:
    body = message.get("body") or ""
    if properties.get("body_encoding") == "base64":
        try:
            return base64.b64decode(body)
        except (binascii.Error, ValueError, TypeError):
            raise InvalidRequest("The message's body is no base64.") from None
    return body if isinstance(body, bytes) else str(body).encode()


def _decompressed(body: bytes, compression: object) -> bytes:
    try:
        plain = decompress(body, compression)
    except Exception as exc:  # each kind of compression has errors of its own
        raise InvalidRequest(
            f"The body is no {shown(compression)}: {type(exc).__name__}."
        ) from None
    return plain if isinstance(plain, bytes) else str(plain).encode()


def _protocol_1(
    body: bytes, content_type: object, sent: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes] | None:
    """Headers and body of protocol 2 for a message of protocol 1, as `proto1_to_proto2` has it;
    `sent` are the headers that it came with."""
    if content_type != "application/json":
        return None
    try:
        compression = sent.get("compression")
        old = loads(decompress(body, compression) if compression else body)
    except Exception:  # as in `foreign_job`
        return None
    if not isinstance(old, dict) or "task" not in old or "id" not in old:
        return None
    embed = {key: old.get(key) for key in ("callbacks", "errbacks", "chord")} | {"chain": None}
    args, kwargs = old.get("args") or [], old.get("kwargs") or {}
    headers = {
        **{key: old.get(key) for key in ("task", "id", "eta", "expires", "timelimit")},
        "lang": "py",
        "retries": old.get("retries") or 0,
        "group": old.get("taskset"),
        "root_id": old["id"],
        "parent_id": None,
        "argsrepr": repr(args)[:1024],
        "kwargsrepr": repr(kwargs)[:1024],
    }
    return headers, dumps([args, kwargs, embed]).encode()


def _check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse what Celery's `Request` and tracer would trip over in the worker, after the claim."""
    limits, stamps = headers.get("timelimit"), headers.get("stamped_headers")
    if limits is not None and not (
        isinstance(limits, (list, tuple)) and len(limits) == 2 and all(map(_is_limit, limits))
    ):
        raise InvalidRequest(
            f"timelimit must be two numbers of seconds from 0, or nulls, not {shown(limits)}."
        )
    if stamps is not None and not (
        isinstance(stamps, (list, tuple, set, frozenset))
        and all(isinstance(name, str) for name in stamps)
    ):
        raise InvalidRequest(f"stamped_headers must be a list of texts, not {shown(stamps)}.")
    if not isinstance(headers.get("stamps") or {}, Mapping):
        raise InvalidRequest(f"stamps must be an object, not {shown(headers['stamps'])}.")
    retries, ignored = headers.get("retries", 0), headers.get("ignore_result")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise InvalidRequest(f"retries must be a whole number from 0, not {shown(retries)}.")
    if ignored is not None and not isinstance(ignored, int):  # 0 and 1 are in use too
        raise InvalidRequest(f"ignore_result must be true, false or null, not {shown(ignored)}.")


def _is_limit(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**9


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _seconds_until(what: str, moment: object) -> float | None:
    if moment is None or moment == "":
        return None
    try:
        when = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment))
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return (when - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{what} must be an ISO 8601 time, not {shown(moment)}.") from None


def _priority(value: object) -> int:
    try:
        return max(0, min(9, int(value)))  # type: ignore[call-overload, no-any-return] # the except
    except (TypeError, ValueError, OverflowError):
        return 0


def _text(value: object) -> str | None:
    if value is None:
        return None
    return str(value).replace("\0", "").encode(errors="replace").decode()[:255]
