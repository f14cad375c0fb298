"""Every connection of the rig, through a proxy of its own: a process, told on stdin what to break.

`python -m tests.chaos.wire`: one JSON command a line on stdin, one JSON answer a line on stdout.
A process of its own, so that what it carries does not compete with the nemesis for a GIL.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.proxy import Proxy

#: How the statements begin that change nothing: the keeper's look at its lists and the workers' at
#: the suspects are among them.
READS = ("SELECT ", "PREPARE ", "WITH RECURSIVE lists ", "WITH seen ")


class Wire(Proxy):
    """A proxy with a distance: healed, it still takes `distance` seconds each way."""

    def __init__(self, url: str, distance: float) -> None:
        super().__init__(url)
        self._distance = self.usual = self.seconds = distance

    def heal(self) -> None:
        """Forward again, at the distance."""
        super().heal()
        self.seconds = self._distance

    def spares(self, statement: str) -> bool:
        """What was only read, or set up, has lost nothing with its reply."""
        return statement.startswith(READS)

    def what_dropped(self) -> str | None:
        """The statement whose COMMIT lost its reply, as `drop_reply_after_next_commit` asked."""
        return self.dropped_statement if self.dropped.is_set() else None

    def harm(self) -> int:
        """How often the network was felt so far."""
        return self.harmed


def main() -> None:
    """Serve commands until stdin ends: {"do": "make"|a method of Wire, "name", …}."""
    wires: dict[str, Wire] = {}
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        name, do = command.pop("name"), command.pop("do")
        answer: Any = None
        if do == "make":
            wires[name] = Wire(**command)
            answer = wires[name].url
        else:
            answer = getattr(wires[name], do)(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
