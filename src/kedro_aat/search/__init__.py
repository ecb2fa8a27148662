"""Search policies: they choose the rate to train next, the checkpoint to start from, and when to stop. Pure Python.

Start with `policy.py`, the protocol that the training loop follows; `frontier.py` is the default strategy, with its
state in `attempts.py`, what it may try in `tactics.py` and its second half in `polish.py`; `stepping.py` has those of
NNCF 2.x. A new policy is a settings class with the methods of `SearchPolicy`, added to `Policy` below; names and
defaults of settings are read from users' files, so they cannot change.
"""

from typing import Annotated

from pydantic import Field

from kedro_aat.search.frontier import Frontier
from kedro_aat.search.stepping import EarlyExit, Interpolate, UniformDecrease

# Every policy, and those that an NNCF file can choose; `kind` distinguishes them.
Policy = EarlyExit | UniformDecrease | Interpolate | Frontier
AdaptivePolicy = Annotated[UniformDecrease | Interpolate | Frontier, Field(discriminator="kind")]

__all__ = ["AdaptivePolicy", "EarlyExit", "Frontier", "Interpolate", "Policy", "UniformDecrease"]
