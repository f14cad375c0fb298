"""Which queue a task message goes to: by what its app declares, never by what Redis remembers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from kombu.transport.virtual.exchange import TopicExchange

from worker.errors import InvalidRequest
from worker.jobs.ids import shown

#: Declared queues that an error lists.
LISTED: Final = 10
#: The kinds of exchange by which a job can be addressed.
SERVED: Final = frozenset({"direct", "topic"})

#: Seconds for which `leads_to` answers from memory, and answers that it keeps.
REMEMBERED_SECONDS: Final = 1.0
REMEMBERED: Final = 1000

_topic: Final = TopicExchange(None)


@functools.lru_cache(maxsize=1024)
def _pattern(key: str) -> str:
    """A topic binding's key as kombu matches it; making it takes longer than matching it."""
    return str(_topic.key_to_pattern(key))


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue's binding to an exchange, as kombu has it.

    Attributes:
        queue: the queue's name.
        exchange: the exchange's name; empty for the default exchange, which no binding needs.
        kind: the exchange's type: `direct`, `topic`, `fanout`, or what else there may be.
        key: the routing key, or the pattern of a topic exchange.
    """

    queue: str
    exchange: str
    kind: str
    key: str

    def takes(self, exchange: str, key: str) -> bool:
        """Whether a message to `exchange` with the routing key `key` reaches the queue."""
        if exchange != self.exchange:
            return False
        if self.kind == "topic":
            return bool(_topic._match(_pattern(self.key), key))
        return self.kind == "direct" and self.key == key

    def __str__(self) -> str:
        if not self.exchange or (self.exchange == self.queue == self.key):
            return repr(self.queue)
        return f"{self.queue!r} ({self.kind} exchange {self.exchange!r}, key {self.key!r})"


class Routing:
    """The addresses of one app's jobs.

    Args:
        declared: the bindings of the queues that the app declares now.
    """

    def __init__(self, declared: Callable[[], Iterable[Binding]]) -> None:
        self._declared = declared
        self._bound: dict[tuple[str, str, str], Binding] = {}
        self._led: dict[tuple[str, str, str], bool] = {}
        self._led_since = 0.0

    def __json__(self) -> str:
        # `inspect stats` and Flower read a worker's transport options as JSON.
        return "ledger"

    def bind(self, binding: Binding) -> None:
        """A program of this app binds a queue by hand, as `declare=` of a publish does."""
        self._bound[binding.queue, binding.exchange, binding.key] = binding
        self._led = {}

    def unbind(self, queue: str, exchange: str | None = None) -> None:
        """Forget the bindings by hand of `queue`, to one exchange or to all."""
        for known in [key for key in list(self._bound) if key[0] == queue]:
            if exchange in (None, known[1]):
                self._bound.pop(known, None)
        self._led = {}

    def queue_for(self, exchange: str, key: object, kind: str | None = None) -> str:
        """The one queue that a task message goes to.

        Args:
            exchange: where it is published; empty for the default exchange.
            key: its routing key; for the default exchange the queue's name.
            kind: the exchange's type, where the publishing program has said so.

        Raises:
            InvalidRequest: there is none, or more than one.
        """
        if not exchange:
            return str(key or "")
        bindings = [*self._declared(), *list(self._bound.values())]
        kinds = {binding.kind for binding in bindings if binding.exchange == exchange}
        if unserved := sorted((kinds | {kind or "direct"}) - SERVED):
            raise InvalidRequest(
                f"A task cannot be sent to the {unserved[0]} exchange {exchange!r}, because one id"
                " cannot be the job of several workers; send it to a queue by name, or call each"
                " worker by a remote control command."
            )
        key = "" if key is None else str(key)
        found = sorted({binding.queue for binding in bindings if binding.takes(exchange, key)})
        if len(found) == 1:
            return found[0]
        where = f"Exchange {exchange!r} with the routing key {shown(key)}"
        if found:
            raise InvalidRequest(
                f"{where} leads to the queues {', '.join(map(repr, found))}, and one id cannot be"
                " two jobs; send one task to each queue, or bind one queue only."
            )
        raise InvalidRequest(
            f"{where} leads to no queue that this app declares ({_listed(bindings)}); declare a"
            " queue that is bound to it in task_queues, or send to a queue by name."
        )

    def leads_to(self, queue: str, exchange: str, key: str) -> bool:
        """Whether a task message that is published so goes to `queue`.

        A worker asks for every job: the answer may be `REMEMBERED_SECONDS` old.
        """
        now = time.monotonic()
        if now - self._led_since > REMEMBERED_SECONDS or len(self._led) >= REMEMBERED:
            self._led, self._led_since = {}, now
        asked = queue, exchange, key
        known = self._led.get(asked)
        if known is None:
            known = self._led[asked] = self._leads_to(*asked)
        return known

    def _leads_to(self, queue: str, exchange: str, key: str) -> bool:
        try:
            return self.queue_for(exchange, key) == queue
        except InvalidRequest:
            return False


def _listed(bindings: Iterable[Binding]) -> str:
    told = sorted({str(binding) for binding in bindings if binding.kind in SERVED})
    more = f" and {len(told) - LISTED} more" if len(told) > LISTED else ""
    return f"it declares {', '.join(told[:LISTED])}{more}" if told else "it declares none"
