"""How a model is held, and what libraries say, while it is traced, run or exported."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch import nn

_CHATTY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode; then every module has its own former mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what PyTorch and the ONNX libraries say to their own developers during an export.

    Their warnings (deprecated internals, operators of packages that are not installed) leave a user nothing
    to do. Errors are raised and logged as ever.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_cause(error: BaseException) -> str:
    """What began a chain of errors, without the pages of advice to exporter developers below it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n\n")[0]
