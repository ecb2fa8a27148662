"""Writes a model to ONNX, `torch.export` and OpenVINO files, verifies each against the model, and measures them.

Start with `onnx_file.py`, then `verify.py`; OpenVINO's files are converted from the ONNX model. How a file is measured
can be changed safely; a change to the bytes of a file needs a reason, because users compare and deploy these files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NotExported:
    """Takes the place of an exported model or file if nothing was exported; a dataset that saves it removes its file.

    Attributes:
        reason: Why nothing was exported, for the user.
        is_asked: Whether the user asked for it; otherwise no file says why there is none.
    """

    reason: str
    is_asked: bool = True
