"""Settings of the ExecuTorch target."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedro_aat.validated import Settings


class ExecutorchSettings(Settings):
    """How ExecuTorch's file is lowered.

    Attributes:
        backend: `xnnpack` computes what it can with XNNPACK, whose kernels are for Arm and x86 processors, and the rest
            with ExecuTorch's portable operators; `portable` leaves XNNPACK out, as a microcontroller needs it.
        dynamic_batch: Whether the file takes any batch size up to the largest. A model that ExecuTorch lowers for one
            batch size only, such as a GRU, gets a file for a batch of 1.
        batch_size: The largest batch size, for which memory is planned, or without `dynamic_batch` the only one. By
            default the largest of `export.batch_sizes`, or without `dynamic_batch` the first.
    """

    backend: Literal["xnnpack", "portable"] = "xnnpack"
    dynamic_batch: bool = True
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
