"""Whether all ranks have computed the same masks."""

from __future__ import annotations

from torch import nn

from kedro_aat.compression.own_buffers import mask_hash
from kedro_aat.compression.quantization.fake import RANGES
from kedro_aat.errors import RankError
from kedro_aat.ranks import group
from kedro_aat.tensors import hash_tensors


def require_same_masks(model: nn.Module, epoch: int) -> None:
    """Makes sure that masks and ranges of activations are the same on all ranks; all of them must call it.

    Of masks that are divided among the ranks, there is one of each row only.

    Args:
        model: The model under compression.
        epoch: Number of the epoch, for the error.

    Raises:
        RankError: If they differ.
    """
    ranges = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith(RANGES)]
    hashes = group.gathered((mask_hash(model, with_divided=False), hash_tensors(ranges)))
    different = [str(rank) for rank, found in enumerate(hashes) if found != hashes[0]]
    if different:
        raise RankError(
            f"After epoch {epoch}, {len(different)} of {len(hashes)} ranks (rank {', '.join(different)}) have other "
            "masks than rank 0, so they no longer train the same model. Use devices of one kind, with the same "
            "versions of torch; the same command continues after the last checkpoint."
        )
