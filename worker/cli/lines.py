"""Lines of JSON from a file or a pipe, read in bounded memory, each made a job."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.errors import InvalidRequest, NotJSON, RequestError, TooLarge
from worker.jobs.job import NewJob
from worker.jobs.message import MAX_DEPTH, depth_of, new_job
from worker.settings import Settings

#: What a line may say.
FIELDS: Final = ("task", "args", "kwargs", "queue", "priority", "in", "expires", "key", "id")
#: Bytes that a line may have beside the payload: names, key, white space.
SLACK: Final = 1 << 16
#: A batch is full at so many lines or bytes, whichever comes first.
BATCH_LINES: Final = 1000
BATCH_BYTES: Final = 8 << 20
_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    Attributes:
        number: from 1.
        text: `None` when it has more bytes than were allowed.
    """

    number: int
    text: bytes | None


def batches(
    descriptor: int, limit: int, seen: Callable[[int], None] = lambda size: None
) -> Iterator[list[Line]]:
    """The lines of a file descriptor, in batches; a pipe that pauses ends a batch early.

    Args:
        descriptor: open for reading, at the first line.
        limit: the bytes that a line may have; of a longer one nothing is kept.
        seen: told the size of what was read, in bytes.
    """
    batch: list[Line] = []
    size = 0
    for line in _lines(descriptor, limit, seen):
        if line is not None:
            batch.append(line)
            size += len(line.text or b"")
        if batch and (line is None or len(batch) >= BATCH_LINES or size >= BATCH_BYTES):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _lines(descriptor: int, limit: int, seen: Callable[[int], None]) -> Iterator[Line | None]:
    """Each line; `None` when nothing more is there at the moment."""
    number, size = 1, 0
    parts: list[bytes] = []
    for chunk in _chunks(descriptor):
        if chunk is None:
            yield None
            continue
        seen(len(chunk))
        for index, piece in enumerate(chunk.split(b"\n")):
            if index:
                yield from _line(number, parts, size, limit)
                number, size = number + 1, 0
                parts.clear()
            size += len(piece)
            if size <= limit:
                parts.append(piece)
            else:
                parts.clear()
    yield from _line(number, parts, size, limit)


def _line(number: int, parts: Iterable[bytes], size: int, limit: int) -> Iterator[Line]:
    if size > limit:
        yield Line(number, None)
    elif text := b"".join(parts).strip():
        yield Line(number, text)


def _chunks(descriptor: int) -> Iterator[bytes | None]:
    """What can be read, as it comes; `None` before a wait. A file on a disk never waits."""
    while True:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            return
        yield chunk


def job_of(line: Line, defaults: Mapping[str, Any], settings: Settings) -> NewJob | RequestError:
    """The job that a line describes, or why it cannot be one.

    Args:
        line: a JSON object with some of `FIELDS`; `null` is as good as not there.
        defaults: values of `FIELDS` for a line that lacks them.
        settings: size limit and default queue.
    """
    if line.text is None:
        return TooLarge(
            f"The line has over {settings.payload_max_bytes + SLACK} bytes; store large data"
            " elsewhere and pass a reference, or raise WORKER_PAYLOAD_MAX_BYTES."
        )
    try:
        value = parsed(line.text, "The line")
        if not isinstance(value, dict):
            raise InvalidRequest('A line must be a JSON object such as {"task": "probe.echo"}.')
        given = {name: part for name, part in value.items() if part is not None}
        return made({**defaults, **given}, settings)
    except RequestError as exc:
        return exc


def made(fields: Mapping[str, Any], settings: Settings) -> NewJob:
    """The job that `fields` (some of `FIELDS`) describe.

    Raises:
        RequestError: they describe none.
    """
    for name in fields:
        if name not in FIELDS:
            raise InvalidRequest(f"The field {name[:80]!r} is unknown; known: {', '.join(FIELDS)}.")
    if "task" not in fields:
        raise InvalidRequest("No task is named; name it in the line or as the command's TASK.")
    return new_job(
        fields["task"],
        fields.get("args", ()),
        fields.get("kwargs"),
        queue=fields.get("queue", settings.queue),
        priority=fields.get("priority", 0),
        delay=fields.get("in"),
        expires=fields.get("expires"),
        key=fields.get("key"),
        job_id=fields.get("id"),
        max_bytes=settings.payload_max_bytes,
    )


def parsed(text: str | bytes, what: str) -> Any:
    """`text` read as JSON; `what` begins the sentence when it is none.

    Raises:
        NotJSON: it is none, or nests too deeply.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse)
        too_deep = depth_of(value) > MAX_DEPTH
    except RecursionError:
        too_deep = True
    except ValueError as exc:
        raise NotJSON(f"{what} is no JSON: {exc}.") from None
    if too_deep:
        raise NotJSON(f"{what} nests deeper than {MAX_DEPTH} levels; flatten it.")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")
