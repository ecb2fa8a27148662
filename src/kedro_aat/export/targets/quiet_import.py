"""Imports the packages of a target without what they print."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import Any


def quiet_import(name: str) -> Any:
    """Imports a module of a runtime, without warnings for its own developers and without its changes to logging.

    Returns:
        The module; the runtimes ship no types that mypy reads.
    """
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    finally:
        logging.disable(disabled)
        root.handlers[:], root.level = handlers, level
