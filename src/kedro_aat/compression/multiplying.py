"""Multiplies tensors by boolean masks, in place; also where a graph is recorded, which runs again later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Numbers in a chunk, so that a CPU keeps it in its cache while it converts the mask.
_CHUNK = 1 << 17


def multiply(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Multiplies tensors by boolean masks of their shapes, in place."""
    if torch.compiler.is_compiling():  # compiled, truth values cost nothing, and torch 2.11 cannot compile their view
        for tensor, mask in zip(tensors, masks, strict=True):
            tensor.mul_(mask)
        return
    # As numbers, since a multiplication by truth values takes twice as long.
    parts, numbers = [], []
    for tensor, mask in zip(tensors, masks, strict=True):
        flat, flat_mask = _flat_if_large(tensor), _flat_if_large(mask)
        if flat is None or flat_mask is None or tensor.stride() != mask.stride():
            parts.append(tensor)
            numbers.append(mask.view(torch.uint8))
        else:
            parts += flat.split(_CHUNK)
            numbers += flat_mask.view(torch.uint8).split(_CHUNK)
    torch._foreach_mul_(parts, numbers)


def records_graph() -> bool:
    """Whether what is computed now becomes a graph, of the compiler or of CUDA, that runs again when masks change.

    Such a graph multiplies at rate 0 too: a CUDA graph would otherwise leave out the masks for ever.
    """
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _flat_if_large(tensor: Tensor) -> Tensor | None:
    """A view in the order of the memory, if a CPU multiplies the tensor faster in chunks, since it converts masks."""
    if tensor.numel() <= _CHUNK or tensor.device.type != "cpu":
        return None
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).flatten()
    return tensor.view(-1) if tensor.is_contiguous() else None
