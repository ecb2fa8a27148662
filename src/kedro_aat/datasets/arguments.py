"""The arguments of a dataset, which Kedro records for `DataCatalog.to_config`."""

from __future__ import annotations

import inspect
from typing import Any

from kedro.io import AbstractDataset


class RecordedArguments:
    """Base of datasets, before Kedro's class, whose subclasses may inherit `__init__`.

    Kedro wraps the `__init__` of each class, and records the arguments by its signature. An inherited one is a wrapper
    already, whose signature is `(self, *args, **kwargs)`, so Kedro would record `args` and `kwargs`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if issubclass(cls, AbstractDataset) and "__init__" not in vars(cls):
            cls.__init__ = inspect.unwrap(cls.__init__)  # type: ignore[method-assign]  # as Kedro does
        super().__init_subclass__(**kwargs)
