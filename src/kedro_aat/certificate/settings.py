"""Settings of the certificate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kedro_aat.validated import Settings


class CertificateSettings(Settings):
    """How the returned model is certified, and what is assumed when the power is told before training.

    Attributes:
        alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).
        test_examples: Size of the test split, with which the power is told before training; the split itself is not
            read then. None tells how many examples it takes, alone.
        expected_drop: Assumed true drop, as a share of the tolerated one, in [0, 1).
        expected_discordance: Assumed share of examples that only one of the two models gets right, in tolerated drops.
    """

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    test_examples: Annotated[int, Field(ge=1)] | None = None
    expected_drop: Annotated[float, Field(ge=0, lt=1)] = 0.3
    expected_discordance: Annotated[float, Field(ge=1)] = 2.0
