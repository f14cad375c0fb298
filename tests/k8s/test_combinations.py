from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.k8s import (
    rules_keda,
    rules_links,
    rules_network,
    rules_numbers,
    rules_pods,
    rules_program,
)
from tests.k8s.manifests import Manifests
from tests.k8s.rendering import Combination, Rendered, as_shipped, combinations

Rule = Callable[[Manifests, Combination], Iterator[str]]
RULES: tuple[Rule, ...] = (
    rules_pods.resources_are_set_and_fit,
    rules_pods.pods_are_restricted,
    rules_links.references_lead_somewhere,
    rules_links.selectors_find_their_pods,
    rules_numbers.disruptions_are_bounded,
    rules_numbers.jobs_can_be_applied_again,
    rules_pods.postgres_keeps_its_own,
    rules_numbers.autoscalers_own_the_number,
    rules_pods.images_are_the_same,
    rules_numbers.production_is_for_more_than_one,
    rules_program.settings_are_known,
    rules_program.config_maps_hold_settings_only,
    rules_program.commands_exist,
    rules_program.workers_consume_their_label,
    rules_program.probes_are_real,
    rules_program.health_ports_agree,
    rules_program.drains_fit_the_grace,
    rules_network.needed_ways_are_open_and_no_others,
    rules_network.everybody_finds_names,
    rules_network.tasks_call_the_world_and_nobody_else_does,
    rules_network.nobody_is_forgotten,
    rules_keda.scaled_objects_fit_their_workers,
    rules_keda.keda_knows_whom_to_ask,
)


@pytest.mark.parametrize("combination", list(combinations()), ids=str)
def test_a_combination_is_valid_and_holds_every_rule(
    combination: Combination, rendered: dict[Combination, Rendered]
) -> None:
    found = rendered[combination]
    broken = [f for rule in RULES for f in rule(found.manifests, combination)]

    assert not [*found.faults, *broken]


@pytest.mark.parametrize("overlay", ["dev", "staging", "production"])
def test_an_overlay_is_tried_as_it_is(overlay: str) -> None:
    assert as_shipped(overlay) in set(combinations())
