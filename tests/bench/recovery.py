"""How soon a killed worker's jobs run again: a few kills of `tests.chaos.recovery`, as runs.

`make recovery` is the whole measurement, of fifty kills; it says what exactly is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.runs import Failed, Run

KILLS, STOCK_KILLS = 4, 2
#: Its lanes, by the contenders' keys.
LANES = {"celery-ledger": "ledger-threads", "stock Celery": "stock-noresult"}


def recovery(folder: Path) -> list[Run]:
    """Measure, on servers of its own; it prints its own progress.

    Raises:
        Failed: a killed job did not come back.
    """
    path = folder / "recovery.json"
    command = [sys.executable, "-m", "tests.chaos.recovery", "--seed", "1", "--json", str(path)]
    command += ["--kills", str(KILLS), "--stock-kills", str(STOCK_KILLS)]
    code = subprocess.run(command).returncode
    if code:
        raise Failed(f"The recovery of killed workers could not be measured: exit code {code}.")
    return runs_of(json.loads(path.read_text())["kills"])


def runs_of(kills: Sequence[dict[str, Any]]) -> list[Run]:
    """A run for each kill that there was something to time at."""
    return [
        Run(
            "recovery",
            LANES[kill["lane"]],
            f"{kill['lane']}, threads, 3 x 16",
            kill["shape"],
            "SIGKILL",
            len(kill["seconds"]),
            kill["figure"],
            {"seconds": kill["figure"]},
        )
        for kill in kills
        if kill["figure"] is not None
    ]
