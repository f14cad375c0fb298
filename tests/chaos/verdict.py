"""The verdict on a run: what it was, what was demanded of it, what its history breaks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.chaos import options
from tests.chaos.demands import Demand, demanded
from tests.chaos.report import Report, listed
from tests.chaos.rig import Terms

#: What a run knows of itself, in its folder; and the verdict, beside it when the folder is kept.
FACTS, REPORT = "facts.json", "report.json"


def begun(asked: argparse.Namespace, terms: Terms) -> dict[str, Any]:
    """The facts of a run that begins, and the worst of what it measures until it has."""
    return {
        "seed": asked.seed, "minutes": asked.minutes, "nemesis": asked.nemesis,
        "left_out": asked.left_out,
        "demands": asked.level, "lease_seconds": terms.lease, "drain_seconds": terms.drain,
        "distance_ms": asked.distance, "threads": list(terms.threads),
        "prefork": list(terms.prefork), "again": options.again(asked),
        "drain_rate": None, "met": {}, "silent": None, "unexpected": ["the run did not end"],
    }  # fmt: skip


def write(path: Path, what: dict[str, Any]) -> None:
    """Write JSON."""
    path.write_text(json.dumps(what, indent=2) + "\n")


def told(asked: argparse.Namespace, folder: Path, facts: dict[str, Any], report: Report) -> int:
    """Print and write the verdict; 0 when all was as it must be, else 1."""
    demands = demanded(facts["demands"], facts, report.counts)
    failed = not report.is_clean or not all(demand.is_met for demand in demands)
    whole = {
        **facts,
        "failed": failed,
        "demanded": [
            {"name": demand.name, "met": demand.is_met, "said": demand.said} for demand in demands
        ],
        **report.to_json(),
    }
    for path in [folder / REPORT, *([asked.report] if asked.report else [])]:
        write(path, whole)
    print(json.dumps(whole) if asked.json else text(facts, report, demands))
    if failed:
        print(f"Run it again: {facts['again']}", file=sys.stderr)
    return int(failed)


def text(facts: dict[str, Any], report: Report, demands: list[Demand]) -> str:
    """The verdict, for people."""
    # The schedule is for whoever looks for what came when, in the JSON.
    lines = [listed({k: v for k, v in facts.items() if k != "schedule"}), "", report.text(), ""]
    match facts["demands"]:
        case "none":
            lines.append("Nothing was demanded of this run but a clean history.")
        case "short":
            lines.append("A short run: the figures of its load are told, and not demanded.")
    lines += [demand.line() for demand in demands]
    failed = sum(not demand.is_met for demand in demands) + len(report.violations)
    lines.append(f"\n{'FAIL' if failed else 'PASS'}")
    return "\n".join(lines)
