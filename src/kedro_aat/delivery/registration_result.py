"""The baseline in the ledger, as it is passed from node to node; without torch."""

from __future__ import annotations

from kedro_aat.delivery.measurements import Result


class Registration(Result):
    """The baseline in the ledger of the test splits that were read, in which it is registered before the search.

    Attributes:
        baseline: Hash of the baseline and of the validation split.
        number: The number that it has in this ledger alone.
        ledger: Where the ledger is.
    """

    baseline: str
    number: str
    ledger: str
