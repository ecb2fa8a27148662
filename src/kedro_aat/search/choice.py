"""All search policies, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kedro_aat.search.frontier import Frontier
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease

AdaptivePolicy = Annotated[UniformDecrease | Interpolate | Frontier, Field(discriminator="kind")]
Policy = EarlyExit | UniformDecrease | Interpolate | Frontier
