"""The lines of a history file that can be believed: whole, and with fields of the right kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.chaos.history import Event

#: The fields that an event must have, by the file's kind; one with "?" may be null, one with
#: "*" left out. Other events are noted for people.
FIELDS = {
    "producer": {
        "accepted": "job kind key? arguments* after* upon* expires*",
        "unsure": "job? kind key? arguments* after* upon* expires*",
        "refused": "kind key?",
        "cancelled": "job",
        "uncancelled": "job",
        "cancel-unsure": "job",
        "read": "job state digest?",
    },
    "execution": {
        "start": "job attempt lease run kind",
        "end": "job attempt lease run how",
        "accepted": "job kind key? arguments*",
        "unsure": "job kind key? arguments*",
    },
    "nemesis": {
        "clock": "wall",
        "begin": "fault target",
        "end": "fault target",
        "kill": "worker pid pool unstarted? unflushed?",
        "death": "file pid",
        "outage": "store",
        "back": "store",
        "step": "seconds",
        "drained": "worker seconds exit_code?",
    },
}


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:  # Postgres keeps no NUL
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _are_arguments(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("failures", 0))
        and _is_number(value.get("countdown", 0))
    )


#: What a field must be, wherever it stands.
KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("job", "kind", "key", "lease", "run", "digest", "fault", "target", "worker",
         "pool", "file", "store"),
        _is_text,
    ),
    **dict.fromkeys(("attempt", "pid", "unstarted", "unflushed"), _is_count),
    **dict.fromkeys(("wall", "seconds", "expires"), _is_number),
    "exit_code": lambda value: isinstance(value, int),
    "how": _one_of("returned", "retried", "raised", "replaced"),
    "after": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "upon": _one_of("success", "failure"),
    "state": _one_of(
        "scheduled", "queued", "running", "succeeded", "failed", "cancelled", "missing"
    ),
    "arguments": _are_arguments,
}  # fmt: skip
Field = tuple[str, bool, bool, Callable[[Any], bool]]


def _field(word: str) -> Field:
    """A field's name, whether it may be null, whether it may be left out, and what it must be."""
    name = word.rstrip("?*")
    return name, "?" in word, "*" in word, KINDS[name]


#: Each event's fields, by the file's kind.
ASKED = {
    kind: {event: [_field(word) for word in words.split()] for event, words in events.items()}
    for kind, events in FIELDS.items()
}


def believed(path: Path, faults: list[str]) -> Iterator[Event]:
    """The events of one file; a last line that was cut is left out, the others' faults are told.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"There is no {path.name} in {path.parent}: is it a history's folder?")
    asked = ASKED[path.stem.partition("-")[0]]
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
                fault = _fault(event, asked)
            except (ValueError, OverflowError, RecursionError) as exc:
                fault = f"{type(exc).__name__}: {exc}"
            if fault:
                faults.append(f"{path.name}, line {number}: {fault}: {line[:200]!r}")
            else:
                yield event


def _fault(event: Any, asked: Mapping[str, list[Field]]) -> str | None:
    """What is wrong with a line's value, if anything is."""
    if not isinstance(event, dict):
        return "no object"
    if not _is_number(event.get("t")) or not _is_text(event.get("event")):
        return "no good time, or no event"
    wrong = []
    for name, is_nullable, is_optional, is_good in asked.get(event["event"], ()):
        value = event.get(name)
        if value is None:
            if not ((is_nullable and name in event) or is_optional):
                wrong.append(name)
        elif not is_good(value):
            wrong.append(name)
    return f"no good {', '.join(wrong)}" if wrong else None
