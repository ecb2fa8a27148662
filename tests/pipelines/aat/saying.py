"""A node that says something. This module imports nothing slow, since another process imports it."""

from __future__ import annotations

import logging

from kedro_aat.pipelines.aat.as_json import JsonNode


def say_something(number: int) -> int:
    logging.getLogger("kedro_aat.training").info("a line of the node")
    return number


node = JsonNode(say_something)
