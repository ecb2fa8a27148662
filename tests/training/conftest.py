"""Fixture that the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.training import user_functions
from tests.training.user_functions import Call


@pytest.fixture
def calls() -> Iterator[list[Call]]:
    """Calls of the functions in `user_functions`, recorded during the test."""
    user_functions.CALLS.clear()
    yield user_functions.CALLS
    user_functions.CALLS.clear()
