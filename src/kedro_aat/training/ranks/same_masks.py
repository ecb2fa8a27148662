"""Whether all ranks have computed the same masks."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from kedro_aat.compression.masks import MASK, SPARSITY_MASK, ZEROS_MASK
from kedro_aat.compression.quantization.fake import ACTIVE, RANGES
from kedro_aat.errors import RankError
from kedro_aat.ranks import group

_MASKS = (MASK, SPARSITY_MASK, ZEROS_MASK, ACTIVE)


def hash_of_masks(model: nn.Module, *others: str) -> str:
    """A hash of the masks of a model, and of its buffers whose names end in one of `others`."""
    found = hashlib.blake2b(digest_size=16)
    for name, buffer in model.named_buffers():
        if name.endswith((*_MASKS, *others)):
            found.update(buffer.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()


def require_same_masks(model: nn.Module, epoch: int) -> None:
    """Makes sure that masks and ranges of activations are the same on all ranks; all of them must call it.

    Args:
        model: The model under compression.
        epoch: Number of the epoch, for the error.

    Raises:
        RankError: If they differ.
    """
    hashes = group.gathered(hash_of_masks(model, RANGES))
    different = [str(rank) for rank, found in enumerate(hashes) if found != hashes[0]]
    if different:
        raise RankError(
            f"After epoch {epoch}, {len(different)} of {len(hashes)} ranks (rank {', '.join(different)}) have other "
            "masks than rank 0, so they no longer train the same model. Use devices of one kind, with the same "
            "versions of torch; the same command continues after the last checkpoint."
        )
