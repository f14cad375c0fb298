"""An honest run on the stage, in which the checker must find nothing."""

from __future__ import annotations

from tests.chaos.staged import CLIENT, Stage, success
from worker.ledger.change import cancel, replay


def play_honestly(stage: Stage) -> None:
    """A run in which everything happens that may, and nothing that must not."""
    for kind in ("noop", "cpu", "sleep", "large", "parent", "ignoring"):
        stage.succeed("w1", stage.accepted(kind), kind)
    for kind, asked in (("flaky", None), ("retrying", {"failures": 1, "countdown": 0.001})):
        job = stage.accepted(kind, asked)
        stage.retry("w1", job, kind)
        stage.read(job)
        stage.succeed("w2", job, kind)
        stage.read(job)
    job = stage.accepted("failing")
    stage.fail("w1", job, "failing")
    stage.read(job)
    replay(stage.ledger(CLIENT), job)
    stage.fail("w2", job, "failing")
    _rescue_of_long_jobs(stage)
    _poison(stage)
    _cancels(stage)
    _unsure_enqueues(stage)
    _drain(stage)
    _canvases(stage)
    stage.producer.note("begins", road="client", rate=1)  # what the checker does not know
    with (stage.folder / "execution-killed-1.jsonl").open("ab") as file:
        file.write(b'{"t": 1, "event": "sta')  # cut by the kill


def _rescue_of_long_jobs(stage: Stage) -> None:
    """One job is killed while it runs, another runs on in a stopped process: a zombie."""
    killed, stopped = stage.accepted("long"), stage.accepted("gil")
    stage.start("killed", stage.claim("killed", killed), "long")
    zombie = stage.start("stopped", stage.claim("stopped", stopped), "gil")
    stage.kill("killed")
    stage.die("stopped")
    stage.rescue()
    alone = [stage.claim_alone(f"alone-{number}") for number in (1, 2)]
    stage.end("stopped", zombie)  # nobody takes its result
    for number, fence in enumerate(alone, 1):
        kind = "long" if fence.id == killed else "gil"
        said = stage.start(f"alone-{number}", fence, kind)
        stage.finish(f"alone-{number}", success(fence, stage.end(f"alone-{number}", said)))


def _poison(stage: Stage) -> None:
    """Its child dies thrice; another dies once, and then not."""
    job = stage.accepted("dying")
    for loss in (1, 2, 3):
        stage.lose_child("w1", job, "dying", poison=loss == 3)
    job = stage.accepted("dying_once")
    stage.lose_child("w1", job, "dying_once")
    stage.succeed("w2", job, "dying_once")


def _cancels(stage: Stage) -> None:
    """Cancelled while it waits, and while it runs, which it goes on to do for a while."""
    stage.cancelled(stage.accepted("noop"))
    job = stage.accepted("sleep")
    said = stage.start("w1", stage.claim("w1", job), "sleep")
    stage.cancelled(job)
    stage.end("w1", said)


def _unsure_enqueues(stage: Stage) -> None:
    """One has arrived, one has arrived under its key, one has not, one was refused."""
    for key in (None, "k1"):
        job = stage.enqueued("noop", key=key)
        told = None if key else job
        stage.producer.note("unsure", job=told, kind="noop", key=key, error="away")
        stage.succeed("w2", job, "noop")
    stage.producer.note("unsure", job="never", kind="noop", key=None, error="away")
    stage.producer.note("refused", kind="noop", key="k2", error="too large")


def _drain(stage: Stage) -> None:
    """A worker leaves while a job runs in it, which is given back and run by another."""
    job = stage.accepted("sleep")
    stage.start("leaving", stage.claim("leaving", job), "sleep")
    stage.leave("leaving")
    stage.succeed("w1", job, "sleep")


def _canvases(stage: Stage) -> None:
    """A chord whose parts succeed, a chain whose first step fails, a link, an errback; a job that
    is replaced; one that expires, and one that is started in time; Celery's own job."""
    parts = [stage.accepted("noop") for _ in range(2)]
    for part in parts:
        stage.succeed("w1", part, "noop")
    stage.succeed("w1", stage.follower("noop", *parts), "noop")
    failing = stage.accepted("failing")
    stage.follows("second", "noop", failing)
    stage.follows("third", "noop", "second")
    stage.follows("link", "noop", failing, is_given=False)
    stage.fail("w1", failing, "failing")
    for step in ("second", "third"):
        stage.ended(step, error="an earlier step failed")
    stage.succeed("w2", stage.follower("noop", failing, upon="failure"), "noop")
    job = stage.accepted("replacing")
    stage.replaced("w1", job)
    stage.enqueued("noop", job_id=job)
    stage.succeed("w2", job, "noop")
    stage.succeed("w1", stage.expiring(60), "expiring")
    late = stage.expiring(0.5)
    stage.age(late, 10)
    cancel(stage.ledger(CLIENT), late, "expired before it was started")
    for task in ("celery.chord_unlock", "celery_ledger.call_errbacks"):
        own = stage.claim("w1", stage.enqueued("noop", task=task))
        stage.finish("w1", success(own, None))
