"""The lifecycles are consistent in themselves and with what they name."""

import pytest

from deployerp.domain.operations.lifecycles import DELETED, FAILED, Action, Lifecycle
from deployerp.domain.permissions import PERMISSIONS
from deployerp.domain.tables import lifecycles
from deployerp.worker import WORKFLOWS

ACTIONS = [
    pytest.param(lifecycle, action, id=f"{lifecycle.resource_type}.{action.name}")
    for lifecycle in lifecycles().values()
    for action in lifecycle.actions.values()
]


@pytest.mark.parametrize(("lifecycle", "action"), ACTIONS)
def test_an_action_names_what_there_is(lifecycle: Lifecycle, action: Action) -> None:
    assert {*action.from_states, action.transitional, action.end} <= set(lifecycle.states)
    assert action.permission in PERMISSIONS
    assert action.workflow in {workflow.__name__ for workflow in WORKFLOWS}
    assert action.event.startswith(f"{lifecycle.resource_type}.")


@pytest.mark.parametrize(("lifecycle", "action"), ACTIONS)
def test_no_action_begins_where_another_is_under_way(lifecycle: Lifecycle, action: Action) -> None:
    under_way = {each.transitional for each in lifecycle.actions.values()}
    assert under_way.isdisjoint(action.from_states)
    assert DELETED not in action.from_states


@pytest.mark.parametrize("lifecycle", lifecycles().values(), ids=lifecycles())
def test_whatever_is_not_under_way_can_be_deleted(lifecycle: Lifecycle) -> None:
    ends = {each.end for each in lifecycle.actions.values()} | {lifecycle.first.from_states[0], FAILED}
    assert ends - {DELETED} <= set(lifecycle.actions["delete"].from_states)
