"""The errors that a user can meet. Each says what is wrong, where, and how to mend it."""

from __future__ import annotations


class AatError(Exception):
    """Root of all errors raised on purpose by kedro-aat."""


class ConfigurationError(AatError, ValueError):
    """Settings that cannot be used.

    Attributes:
        mistakes: Every mistake found, one line each. One error lists them all.
    """

    def __init__(self, where: str, mistakes: list[str]) -> None:
        self.where = where
        self.mistakes = mistakes
        super().__init__(where, mistakes)

    def __str__(self) -> str:
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        return f"{self.where}: {count}" + "".join(f"\n  - {mistake}" for mistake in self.mistakes)


class DataError(AatError, ValueError):
    """Data that is missing, cut short or of the wrong form."""


class ModelError(AatError, ValueError):
    """A model that cannot be compressed, saved or rebuilt as asked."""


class MetricError(AatError, ValueError):
    """A metric that is not a finite number; names the epoch it was measured in."""


class CheckpointError(AatError):
    """A checkpoint that cannot be written, or none that can be read."""


class ExportError(AatError):
    """An exported file that does not do what its model does."""


class InfeasibleError(AatError):
    """No compressed model kept the budget, and the settings ask for an error then."""


class InterruptedRunError(AatError):
    """The run was stopped from outside; the same command goes on where it stood."""
