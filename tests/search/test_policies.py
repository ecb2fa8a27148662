"""Every search policy fulfills the contract. Add a new one to `POLICIES`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from pydantic import TypeAdapter

from kedro_aat.search import Policy
from kedro_aat.search.policy import SearchPolicy, SearchState
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease
from kedro_aat.testing.policies import PolicyContract, laws
from kedro_aat.testing.simulated_search import Course, World, search
from kedro_aat.testing.strategies import worlds

POLICIES: list[Policy] = [
    EarlyExit(maximal_total_epochs=12),
    UniformDecrease(maximal_total_epochs=20),
    UniformDecrease(
        maximal_total_epochs=25,
        initial_training_phase_epochs=2,
        patience_epochs=1,
        compression_rate_step_reduction_factor=1.0,
    ),
    UniformDecrease(maximal_total_epochs=15, initial_training_phase_epochs=0, patience_epochs=0),
    UniformDecrease(maximal_total_epochs=0),
    Interpolate(maximal_total_epochs=15),
    Interpolate(
        maximal_total_epochs=20,
        initial_training_phase_epochs=1,
        patience_epochs=1,
        minimal_compression_rate_step=0.001,
    ),
    Interpolate(maximal_total_epochs=10, initial_training_phase_epochs=0, patience_epochs=0),
]


def _name(policy: Policy) -> str:
    changed = {key: value for key, value in policy if key in policy.model_fields_set}
    return f"{policy.kind}({', '.join(f'{key}={value:g}' for key, value in changed.items())})"


@pytest.mark.parametrize("policy", POLICIES, ids=_name)
class TestEveryPolicy(PolicyContract):
    pass


@pytest.mark.parametrize(
    "policy",
    [policy for policy in POLICIES if policy.kind in ("early_exit", "uniform_decrease", "interpolate")],
    ids=_name,
)
@laws
@given(world=worlds)
def test_best_of_a_compatible_policy_is_the_highest_rate_within_budget(policy: Policy, world: World) -> None:
    def look(state: SearchState, course: Course) -> None:
        within = [result.achieved_rate for result in course.results if result.fully_compressed and result.margin >= 0]
        assert (state.best.achieved_rate if state.best else None) == max(within, default=None)

    search(policy, world, look=look)


SAVED = sorted((Path(__file__).parents[1] / "saved_by").glob("*/search/*.json"))


def saved(path: Path) -> tuple[SearchPolicy[Any], dict[str, Any]]:
    """Returns a policy and the whole file, which has a state within a search, the best, and the next epoch as well."""
    content = json.loads(path.read_text())
    adapter: TypeAdapter[Policy] = TypeAdapter(Policy)
    return adapter.validate_python(content["policy"]), content


@pytest.mark.parametrize(
    "path",
    [path for path in SAVED if not path.stem.startswith("frontier")],
    ids=lambda path: f"{path.parents[1].name}-{path.stem}",
)
def test_a_search_saved_by_an_older_version_continues_as_it_would_have(path: Path) -> None:
    policy, content = saved(path)
    state = policy.load(json.dumps(content["state"]))
    assert json.loads(state.model_dump_json(exclude_unset=True)) == content["state"]
    following = policy.ask(state)
    assert following == type(following).model_validate(content["next"])
    assert (state.best and state.best.model_dump()) == content["best"]


@pytest.mark.parametrize(
    "path", [path for path in SAVED if path.stem.startswith("frontier")], ids=lambda path: path.stem
)
def test_the_default_search_of_version_0_1_leaves_its_settings_but_not_its_state(path: Path) -> None:
    """Its strategy was another one. Whoever reads the state catches a `ValueError`, and says what to do."""
    policy, content = saved(path)
    assert policy.maximal_total_epochs == content["policy"]["maximal_total_epochs"]
    with pytest.raises(ValueError, match="trials"):
        policy.load(json.dumps(content["state"]))
