from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.k8s.manifests import Manifests, name_of, references, tag_of
from tests.k8s.rendering import COMPONENTS, OVERLAYS, ROOT, Combination, Rendered, Tools, as_shipped
from tests.k8s.rules_links import MADE_BEFOREHAND
from worker.settings import Settings


def rendered_from(tools: Tools, overlay: Path) -> Manifests:
    """What an overlay of the test's own comes to."""
    done = subprocess.run([tools.kubectl, "kustomize", overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (overlay / "out").mkdir()
    (overlay / "out" / "out.yaml").write_text(done.stdout)
    tools.judge(overlay / "out")
    return Manifests(json.loads((overlay / "out" / "out.json").read_text()))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """`k8s/`, to change."""
    return Path(shutil.copytree(ROOT / "k8s", tmp_path / "k8s"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_runs_this_version(overlay: str, rendered: dict[Combination, Rendered]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    manifests = rendered[as_shipped(overlay)].manifests

    assert {tag_of(c["image"]) for w in manifests.workloads for c in w.ours} == {version}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_new_tag_is_a_new_migration_and_the_same_tag_is_the_same(
    overlay: str, copy: Path, tools: Tools, rendered: dict[Combination, Rendered]
) -> None:
    before = rendered[as_shipped(overlay)].manifests
    file = copy / "overlays" / overlay / "kustomization.yaml"
    # Given another version and another setting,
    file.write_text(file.read_text().replace("newTag: 0.1.0", "newTag: 7d2ab1f"))
    settings = copy / "base" / "settings.env"
    settings.write_text(settings.read_text() + "WORKER_LOST_LIMIT=4\n")

    after = rendered_from(tools, file.parent)

    # then its migration is a Job of its own, and the settings' pods are rolled.
    names = {name_of(job) for job in after.of("Job")}
    assert "migrate-7d2ab1f" in names and not names & {name_of(j) for j in before.of("Job")}
    assert set(references(before.workload("worker").pod)) != set(
        references(after.workload("worker").pod)
    )


def test_a_setting_and_a_password_change_no_job_and_roll_no_postgres(
    copy: Path, tools: Tools, rendered: dict[Combination, Rendered]
) -> None:
    before = rendered[as_shipped("dev")].manifests
    settings = copy / "base" / "settings.env"
    settings.write_text(settings.read_text() + "WORKER_LOST_LIMIT=4\n")
    file = copy / "overlays" / "dev" / "kustomization.yaml"
    file.write_text(file.read_text().replace("development", "changed"))

    after = rendered_from(tools, file.parent)

    assert after.of("Job") == before.of("Job")
    assert after.workload("postgres").object == before.workload("postgres").object
    assert after.workload("redis").object != before.workload("redis").object
    assert after.workload("worker").object != before.workload("worker").object


def test_names_are_followed_into_keda_s_objects(copy: Path, tools: Tools) -> None:
    overlay = copy / "overlays" / "dev"
    file = overlay / "kustomization.yaml"
    # Given a prefix for every name, and a Secret whose name ends with a hash,
    file.write_text(
        file.read_text() + "namePrefix: shop-\ncomponents:\n  - ../../components/keda\n"
    )

    manifests = rendered_from(tools, overlay)

    (scaled,) = manifests.of("ScaledObject")
    (authentication,) = manifests.of("TriggerAuthentication")
    assert scaled["spec"]["scaleTargetRef"]["name"] == "shop-worker"
    assert {t["authenticationRef"]["name"] for t in scaled["spec"]["triggers"]} == {
        name_of(authentication)
    }
    (secret,) = {target["name"] for target in authentication["spec"]["secretTargetRef"]}
    assert re.fullmatch(r"shop-ledger-reader-[0-9a-z]{10}", secret)
    assert manifests.has("Secret", secret)


def test_the_passwords_of_development_fit_each_other(
    rendered: dict[Combination, Rendered],
) -> None:
    secrets = {
        re.sub(r"-[0-9a-z]{10}$", "", name_of(each)): {
            key: base64.b64decode(value).decode() for key, value in each["data"].items()
        }
        for each in rendered[as_shipped("dev")].manifests.of("Secret")
    }

    assert secrets["postgres"]["POSTGRES_PASSWORD"] in secrets["stores"]["DATABASE_URL"]
    assert secrets["postgres"]["DATABASE_URL"] == secrets["stores"]["DATABASE_URL"]
    assert secrets["redis"]["REDIS_PASSWORD"] in secrets["stores"]["REDIS_URL"]
    assert secrets["postgres"]["POSTGRES_PASSWORD"] == secrets["ledger-reader"]["password"]


def test_only_development_has_passwords_in_the_repository(
    rendered: dict[Combination, Rendered],
) -> None:
    for overlay in OVERLAYS:
        found = rendered[as_shipped(overlay)].manifests.of("Secret")
        assert bool(found) == (overlay == "dev")


def test_the_first_workers_consume_the_queue_of_jobs_that_name_none(
    rendered: dict[Combination, Rendered],
) -> None:
    labels = rendered[as_shipped("dev")].manifests.workload("worker").labels

    assert labels["celery-ledger/queue"] == Settings.model_fields["queue"].default


def test_the_page_names_each_component_overlay_and_secret() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()

    assert not [name for name in COMPONENTS if f"`components/{name}`" not in page]
    assert not [name for name in OVERLAYS if f"`overlays/{name}`" not in page]
    assert not [
        f"{secret}: {key}"
        for secrets in MADE_BEFOREHAND.values()
        for secret, keys in secrets.items()
        for key in keys
        if f"`{secret}`" not in page or f"`{key}`" not in page
    ]


def test_no_component_is_forgotten() -> None:
    assert {path.name for path in (ROOT / "k8s" / "components").iterdir()} == set(COMPONENTS)
