"""Tactics: how a trial trains, beside its rate. The search tries several, since no tactic is best for every model."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kedro_aat.errors import ConfigurationError
from kedro_aat.validated import Settings

# Half a decade: the factor between neighboring learning rates.
LR_RATIO = 10**0.5
# Limits of the factors, in half decades: 0.01 and 1,000.
LOWEST, HIGHEST = -4, 6


class Ranking(Settings):
    """How a controller ranks what it removes.

    Attributes:
        importance: Name of an importance of the algorithm; None for its own way.
        ranking: `local` or `global`; None for its own way.
    """

    importance: str | None = None
    ranking: str | None = None


class Tactic(Settings):
    """How a trial trains.

    Attributes:
        ranking: How the controller ranks what it removes.
        lr_factor: Factor on the configured learning rates, above 0.
        distill: Whether the baseline teaches, if the training knows how to distill.
    """

    ranking: Ranking = Ranking()
    lr_factor: Annotated[float, Field(gt=0)] = 1.0
    distill: bool = True

    def describe(self, lr_factor: float, can_distill: bool) -> str:
        """Describes it in words.

        Args:
            lr_factor: The highest factor on the learning rate with which the model was trained in it.
            can_distill: Whether the training knows how to distill.
        """
        words = [f"up to {lr_factor:.3g} times the learning rate"]
        if self.ranking.importance is not None:
            how = "" if self.ranking.ranking is None else f" ({self.ranking.ranking})"
            words.append(f"ranked by {self.ranking.importance}{how}")
        if can_distill:
            words.append("with the baseline as teacher" if self.distill else "without a teacher")
        return ", ".join(words)


def _listed(value: object) -> object:
    if isinstance(value, list | tuple) and not value:
        raise ValueError("name at least one, or null to leave the choice to the search")
    return value if value is None or isinstance(value, list | tuple) else (value,)


Names = Annotated[tuple[str, ...] | None, BeforeValidator(_listed)]


class Tactics(Settings):
    """The tactics that a search may try. A single value fixes one; None leaves the choice to the search.

    Attributes:
        importance: Importances to rank by, in the order in which they are tried.
        ranking: `local`, `global`, or both.
        learning_rate_factor: Factors on the configured learning rate, above 0. None allows every factor from 0.01 to
            1,000, in half decades from 3 on.
        distillation: Whether the baseline teaches, or both.
    """

    importance: Names = None
    ranking: Annotated[tuple[Literal["local", "global"], ...] | None, BeforeValidator(_listed)] = None
    learning_rate_factor: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1e6)], ...] | None, BeforeValidator(_listed)
    ] = None
    distillation: Annotated[tuple[bool, ...] | None, BeforeValidator(_listed)] = None

    def rankings(self, offered: tuple[Ranking, ...]) -> tuple[Ranking, ...]:
        """Returns those of the controller's rankings that these settings allow, in the order of the importances.

        Raises:
            ConfigurationError: If the controller offers rankings, but these settings allow none of them, or name an
                importance that is not among them.
        """
        known = {each.importance for each in offered}
        unknown = [name for name in self.importance or () if name not in known]
        allowed = [
            each
            for each in offered
            if (self.importance is None or each.importance in self.importance)
            and (self.ranking is None or each.ranking in self.ranking)
        ]
        if self.importance is not None:
            order = self.importance
            allowed.sort(key=lambda each: order.index(each.importance or ""))
        if offered and (unknown or not allowed):
            choices = ", ".join(sorted({f"{each.importance} ({each.ranking})" for each in offered}))
            what = f"{', '.join(unknown)} is not" if unknown else "importance and ranking allow none of"
            raise ConfigurationError("search", [f"tactics: {what} what this model can be ranked by: {choices}"])
        return tuple(allowed) or (Ranking(),)

    def first_lr_factor(self, usual: float) -> float:
        """Returns the allowed factor that is nearest to the usual one."""
        return min(self.learning_rate_factor or (usual,), key=lambda factor: abs(math.log(factor / usual)))

    def lr_neighbor(self, factor: float, direction: int) -> float | None:
        """Returns the next allowed factor above (1) or below (-1) a factor; None if there is none."""
        if self.learning_rate_factor is None:
            # By whole numbers of half decades, so that a step up and a step down lead back to the same number.
            number = round(2 * math.log10(factor)) + direction
            return 10 ** (number / 2) if LOWEST <= number <= HIGHEST else None
        beyond = [each for each in self.learning_rate_factor if (each - factor) * direction > 1e-9]
        return min(beyond, key=lambda each: abs(each - factor), default=None)
