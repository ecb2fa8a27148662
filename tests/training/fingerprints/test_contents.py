"""The hash of values of any kind."""

from __future__ import annotations

import logging
import uuid

import pytest
from torch import nn

from kedro_aat.training.fingerprints.contents import ContentHash


class Logging(nn.Module):
    """A model with a logger of its own, as many have."""

    def __init__(self, name: str = "a.model") -> None:
        super().__init__()
        self.log = logging.getLogger(name)


def content_of(value: object, *, private: bool) -> str:
    content = ContentHash(private=private)
    content.add(value)
    return content.hexdigest()


@pytest.mark.parametrize("private", [False, True])
def test_other_loggers_of_the_process_do_not_count(private: bool) -> None:
    """A logger knows all others, and which ones there are depends on what was imported so far."""
    before = content_of(Logging(), private=private)
    logging.getLogger(f"imported.later.{uuid.uuid4()}").debug("now known")
    assert content_of(Logging(), private=private) == before
    assert content_of(Logging("another"), private=private) != before
