"""Every search policy keeps the contract. A new one is added to `POLICIES`."""

from __future__ import annotations

import pytest

from kedro_aat.search.choice import Policy
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease
from tests.search.policy_contract import PolicyContract

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
    given = {key: value for key, value in policy if key in policy.model_fields_set}
    return f"{policy.kind}({', '.join(f'{key}={value:g}' for key, value in given.items())})"


@pytest.mark.parametrize("policy", POLICIES, ids=_name)
class TestEveryPolicy(PolicyContract):
    pass
