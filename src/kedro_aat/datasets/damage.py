"""Datasets whose files may be damaged, or come from anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kedro.io import DatasetError

from kedro_aat.reading import reading


class ReportsDamage:
    """Base of datasets, before Kedro's class: `load` and `preview` of its subclasses raise only our errors and Kedro's.

    A parser may raise anything about a damaged file. Without this, Kedro-Viz and `kedro aat choose` would end in its
    traceback, which names no file.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        for name in vars(cls).keys() & {"load", "preview"}:
            setattr(cls, name, _reporting_damage(vars(cls)[name]))
        super().__init_subclass__(**kwargs)  # Kedro wraps `load` once more, to name the dataset


def _reporting_damage(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with reading(getattr(self, "where", type(self).__name__), but=DatasetError):
            return method(self, *args, **kwargs)

    return wrapper
