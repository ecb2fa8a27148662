"""How float32 is computed: fast in training steps, and exact wherever a model is judged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# What multiplies in float32, as torch names backend and operation: https://docs.pytorch.org/docs/stable/notes/cuda.html
_OPERATIONS = tuple((backend, kind) for backend in ("cuda", "mkldnn") for kind in ("matmul", "conv", "rnn"))

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of forward passes in training, which does nothing in `fp32`."""
    return torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision != "fp32")


@contextmanager
def fast_training(device: torch.device, *, tf32: bool, cudnn_benchmark: bool) -> Iterator[None]:
    """Training steps compute in TF32 and choose convolutions by trial, if the device is a CUDA GPU.

    Args:
        device: Device of the training.
        tf32: Whether products round their factors to TF32, which has the range of float32 and 10 bits of mantissa.
        cudnn_benchmark: Whether cuDNN tries its algorithms for each new shape.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = cudnn_benchmark
    try:
        with _products("tf32" if tf32 else "ieee"):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products in float32 are computed in float32 on every device, whatever the user has set.

    Convolutions on a CUDA GPU are in TF32 by torch's default. cuDNN chooses without trial, since another choice would
    round otherwise at the next validation of the same model.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with _products("ieee"):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Products are computed in `tf32` or `ieee`; the settings before are restored, also those for each operation."""
    cudnn, fast = torch.backends.cudnn, precision == "tf32"
    operations = [(_settings_of(*names), "ieee" if names[0] == "mkldnn" else precision) for names in _OPERATIONS]
    with contextlib.ExitStack() as stack:
        for settings, _ in operations:
            stack.callback(setattr, settings, "fp32_precision", settings.fp32_precision)
        # The older interface too, so that both agree for whoever reads them, such as the compiler. It refuses to be
        # read where the user has set operations one by one.
        with contextlib.suppress(RuntimeError):
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        with contextlib.suppress(RuntimeError):
            stack.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
        torch.set_float32_matmul_precision("high" if fast else "highest")
        cudnn.allow_tf32 = fast
        for settings, wanted in operations:
            settings.fp32_precision = wanted
        yield


def _settings_of(backend: str, kind: str) -> Any:
    if backend == "mkldnn":
        return getattr(torch.backends.mkldnn, kind)
    return torch.backends.cuda.matmul if kind == "matmul" else getattr(torch.backends.cudnn, kind)
