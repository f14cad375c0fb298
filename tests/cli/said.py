"""What a command of ours said, as an operator meets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Said:
    """What a command said: no traceback of its own, and never a password."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which is one line of JSON."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def lines(self) -> list[Any]:
        """Its stdout, every line of which is JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Said]


def checked(code: int, out: str, err: str, environment: Mapping[str, str]) -> Said:
    """What was said, once it is known to be fit for anybody's eyes."""
    assert "Traceback" not in err, err
    for variable in ("DATABASE_URL", "REDIS_URL"):
        password = urlsplit(environment.get(variable, "")).password
        assert not password or password not in out + err, f"the password of {variable} was printed"
    return Said(code, out, err)
