"""Run by the Python of `requirements-k8s.lock`: rendered YAML becomes JSON, and schemas judge it.

    python judge.py FOLDER VERSION…

Each *.yaml of FOLDER gets a *.json beside it, a list of its objects. Prints one JSON object: by
file, what the schemas of each Kubernetes VERSION, and of `schemas/` for kinds that are not built
in, have against it.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

# mypy runs in the developers' environment, which has none of these.
import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-not-found]
import yaml  # type: ignore[import-untyped]
from kubernetes_validate import utils

SCHEMAS = Path(__file__).with_name("schemas")


def main(folder: Path, versions: list[str]) -> dict[str, list[str]]:
    """Judge every file; the faults by file name."""
    # It reads two megabytes of definitions for each object, which are always the same.
    utils.schema_contents = functools.cache(utils.schema_contents)
    known: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.yaml")):
        with file.open() as stream:
            objects = [o for o in yaml.load_all(stream, yaml.CSafeLoader) if o is not None]
        file.with_suffix(".json").write_text(json.dumps(objects))
        found[file.name] = []
        for each in objects:
            text = json.dumps(each, sort_keys=True)
            if text not in known:
                known[text] = list(judge(each, versions))
            found[file.name] += known[text]
    return found


def judge(each: dict[str, Any], versions: list[str]) -> list[str]:
    """What is wrong with one object."""
    name = f"{each['kind']}/{each['metadata']['name']}"
    own = SCHEMAS / f"{each['kind'].lower()}.json"
    if own.exists():
        validator = jsonschema.Draft202012Validator(json.loads(own.read_text()))
        return [f"{name}: {e.json_path}: {e.message}" for e in validator.iter_errors(each)]
    faults = []
    for version in versions:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except utils.SchemaNotFoundError as exc:
            faults.append(f"{name}: {exc.message}")
        except kubernetes_validate.ValidationError as exc:
            faults.append(f"{name} ({version}): {exc.json_path}: {exc.message}")
    return faults


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
