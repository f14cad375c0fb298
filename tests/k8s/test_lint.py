from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

from tests.k8s.rendering import OVERLAYS, ROOT, Combination, Rendered, Tools, as_shipped


def test_checkov_has_nothing_against_the_overlays(
    tools: Tools, rendered: dict[Combination, Rendered], tmp_path: Path
) -> None:
    # Offline, whatever a developer's environment says: no key, no download.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BC_", "PRISMA_"))}
    argv = [
        str(tools.python), "-m", "checkov.main",
        "--config-file", str(ROOT / "k8s" / "checkov.yaml"),
        "--skip-download", "--quiet", "--compact", "--output", "json",
    ]  # fmt: skip
    for overlay in OVERLAYS:
        argv += ["--file", str(rendered[as_shipped(overlay)].file)]

    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    assert answer["summary"]["resource_count"] > 80
    assert [
        f"{failed['check_id']} {failed['resource']}: {failed['check_name']}"
        for failed in answer["results"]["failed_checks"]
    ] == []


def test_each_waived_rule_has_its_reason() -> None:
    lines = (ROOT / "k8s" / "checkov.yaml").read_text().splitlines()

    for above, line in itertools.pairwise(lines):
        if line.startswith("  - CKV"):
            assert above.startswith("  # "), line
