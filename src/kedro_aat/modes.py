"""Evaluation mode and quiet libraries while a model is traced, run or exported."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from kedro_aat.numerics import exact_float32

_CHATTY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode and computes in exact float32; then restores the mode of every module.

    Whoever compares two models, or a model with its file, would otherwise find what TF32 or bfloat16 round away.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with exact_float32():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def evaluating_with_gradients(model: nn.Module) -> Iterator[None]:
    """Does as `evaluating`, so that backward passes work, too: cuDNN has none of recurrent layers in this mode."""
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    without_cudnn = torch.backends.cudnn.flags(enabled=False) if is_recurrent else contextlib.nullcontext()
    with evaluating(model), without_cudnn:
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings of PyTorch and the ONNX libraries that are meant for their own developers.

    These warnings (deprecated internals, operators of packages that are not installed) leave nothing for a user to
    do. Errors are raised and logged as usual.
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
    """Returns the message of the first error in a chain, without the advice for developers of the exporter below it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n\n")[0]
