"""Canvases of a chaos run: chains, groups, chords, links and errbacks, replaced and expiring jobs.

Every id is chosen here, so that what Celery enqueues later is known from the start. What follows
something says so: `after` names its parents, `upon` how these must have ended.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import Celery, chain, chord, group
from celery.canvas import Signature

from tests.chaos.history import Journal
from tests.chaos.roads import Drawn, told
from worker.errors import LedgerError
from worker.runtime import durable

#: Of a hundred chains and chords, those with a part that fails.
FAILING = 20
#: Seconds until an expiring job expires, and for which some of them wait before they are due.
EXPIRES, WAITS = (0.05, 4.0), (0.2, 4.0)


@dataclass
class Story:
    """What is told of one canvas.

    Attributes:
        given: the events of the jobs whose ids Celery gives out: each of them has to end.
        called: the events of links and errbacks, which come only upon what they are for.
        roots: the ids of those that nothing comes before.
    """

    given: list[dict[str, Any]] = field(default_factory=list)
    called: list[dict[str, Any]] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)


class Composer:
    """Draws canvases of an app.

    Args:
        app: a durable one.
        dice: of all its draws.
    """

    def __init__(self, app: Celery, dice: random.Random) -> None:
        self._app, self._dice = app, dice
        self._shapes: list[Callable[[Story], Any]] = [
            self._chain, self._group, self._chord, self._linked, self._failed, self._expiring,
            self._replacing,
        ]  # fmt: skip

    def draw(self) -> tuple[Any, Story]:
        """A canvas to be sent, and what is told of it."""
        story = Story()
        return self._dice.choice(self._shapes)(story), story

    def _part(
        self, story: Story, drawn: Drawn, after: list[str] | None = None, **options: Any
    ) -> Signature:
        """One more job of a canvas."""
        job, (kind, arguments) = uuid.uuid4().hex, drawn
        event = told(drawn, job)
        if after:
            event |= {"after": after, "upon": "success"}
        else:
            story.roots.append(job)
        if "expires" in options:
            event["expires"] = options["expires"]
        story.given.append(event)
        return self._signature(kind, arguments, job, **options)

    def _called(self, story: Story, parent: str, upon: str) -> Signature:
        """A link or an errback."""
        job = uuid.uuid4().hex
        story.called.append({**told(("noop", {}), job), "after": [parent], "upon": upon})
        return self._signature("noop", {}, job)

    def _signature(
        self, kind: str, arguments: dict[str, Any], job: str, **options: Any
    ) -> Signature:
        return self._app.signature(
            f"chaos.{kind}", kwargs=arguments, immutable=True, options={"task_id": job, **options}
        )

    def _drawn(self) -> Drawn:
        """What a step or a part does."""
        kind = self._dice.choice(["noop", "noop", "sleep", "flaky"])
        if kind == "sleep":
            return kind, {"seconds": round(self._dice.uniform(0.01, 0.3), 3)}
        return kind, {"failures": self._dice.randint(1, 2)} if kind == "flaky" else {}

    def _parts(self, most: int) -> list[Drawn]:
        """Two at the least; one of them may fail."""
        parts = [self._drawn() for _ in range(self._dice.randint(2, most))]
        if self._dice.randrange(100) < FAILING:
            parts[self._dice.randrange(len(parts))] = ("failing", {})
        return parts

    def _chain(self, story: Story) -> Any:
        steps: list[Signature] = []
        for drawn in self._parts(4):
            steps.append(
                self._part(story, drawn, [steps[-1].options["task_id"]] if steps else None)
            )
        return chain(*steps, app=self._app)

    def _group(self, story: Story) -> Any:
        return group([self._part(story, drawn) for drawn in self._parts(5)], app=self._app)

    def _chord(self, story: Story) -> Any:
        parts = [self._part(story, drawn) for drawn in self._parts(4)]
        body = self._part(story, ("noop", {}), [part.options["task_id"] for part in parts])
        return chord(parts, body, app=self._app)

    def _linked(self, story: Story) -> Any:
        return self._with_calls(story, self._part(story, self._drawn()))

    def _with_calls(self, story: Story, first: Signature) -> Signature:
        first.link(self._called(story, first.options["task_id"], "success"))
        first.link_error(self._called(story, first.options["task_id"], "failure"))
        return first

    def _failed(self, story: Story) -> Any:
        return self._with_calls(story, self._part(story, ("failing", {})))

    def _expiring(self, story: Story) -> Any:
        options: dict[str, Any] = {"expires": round(self._dice.uniform(*EXPIRES), 2)}
        if self._dice.random() < 0.5:
            options["countdown"] = round(self._dice.uniform(*WAITS), 2)
        return self._part(story, ("expiring", {}), **options)

    def _replacing(self, story: Story) -> Any:
        return self._part(story, ("replacing", {"by": self._dice.choice(["chain", "chord"])}))


class CanvasRoad:
    """By a durable Celery app, a canvas for each job that was drawn."""

    def __init__(self, journal: Journal, dice: random.Random) -> None:
        app = durable(Celery("chaos-composer", set_as_current=False))
        self._composer, self._journal = Composer(app, dice), journal

    def send(self, drawn: list[Drawn]) -> list[str]:
        """See `Road`; the ids of what may be cancelled, and read back at once."""
        return [job for _ in drawn for job in self._one()]

    def _one(self) -> list[str]:
        canvas, story = self._composer.draw()
        for event in story.called:
            self._journal.note("unsure", error="comes upon another's end", **event)
        try:
            canvas.apply_async()
        except LedgerError as exc:
            for event in story.given:
                self._journal.note("unsure", error=str(exc), **event)
            return []
        for event in story.given:
            self._journal.note("accepted", **event)
        return story.roots
