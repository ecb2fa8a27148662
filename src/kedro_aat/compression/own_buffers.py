"""The buffers that compression adds to a model: which they are, whether all ranks agree on them, and who sends them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from kedro_aat.compression.filters.importance import TAYLOR
from kedro_aat.compression.filters.normalization import KEPT
from kedro_aat.compression.masks import MASKS, SHADOW
from kedro_aat.compression.quantization.fake import ACTIVE
from kedro_aat.ranks.shards import is_sharded, whole

# Where DistributedDataParallel looks up the names of parameters and buffers that it leaves alone.
_IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"
_ADDED = "_aat_ignored_by_ddp"  # those of them that are ours


def mask_hash(model: nn.Module, *, with_divided: bool = True) -> str:
    """Hash of all masks of a model, of filters, single weights, channels of normalizations and quantized layers.

    It is the same on every device and in every precision of the weights, and also if these are divided among ranks,
    which then must call it together. 100 million weights take some 0.1 s on a CPU.

    Args:
        model: The model of a controller; without compression, the hash is that of nothing.
        with_divided: Whether masks that are divided among ranks are part of it; they are gathered one by one.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, buffer in _own(model):
        if not name.endswith((SHADOW, TAYLOR)) and (with_divided or not is_sharded(buffer)):
            digest.update(f"{name} {tuple(buffer.shape)}".encode())
            digest.update(np.packbits(whole(buffer).bool().flatten().cpu().numpy()).tobytes())
    return digest.hexdigest()


def exclude_from_ddp(model: nn.Module) -> None:
    """Lets DistributedDataParallel send none of these buffers, if it wraps the model from now on.

    It would send all buffers of rank 0 before each forward pass, and twice as many bytes as gradients. Every rank works
    them out from the same weights and gradients instead. The ranges of activations are still sent, since every rank
    sees other batches. Names that the user ignores stay ignored; after `strip`, ours are no longer there.

    Args:
        model: The model of a controller.
    """
    own = [name for name, _ in _own(model)]
    before: list[str] = vars(model).pop(_ADDED, [])
    others = [name for name in getattr(model, _IGNORED_BY_DDP, ()) if name not in before]
    if added := [name for name in own if name not in others]:
        vars(model)[_ADDED] = added
    if added or others:
        vars(model)[_IGNORED_BY_DDP] = [*others, *added]
    else:
        vars(model).pop(_IGNORED_BY_DDP, None)


def state_with_shadows(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields names and tensors of a model's state as they were when masks were numbers and all shadows were full.

    So runs keep the names that earlier versions gave them.
    """
    state = model.state_dict()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {name for name, _ in _own(model)}
    for name, tensor in state.items():
        suffix = next((each for each in (*MASKS[1:], SHADOW, MASKS[0]) if name.endswith(each)), None)
        weight = parameters.get(name.removesuffix(suffix)) if suffix is not None and name in own else None
        if weight is None:
            yield name, tensor
        else:
            yield name, weight if suffix == SHADOW and not tensor.numel() else tensor.to(weight.dtype)


def _own(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields name and buffer."""
    for prefix, module in model.named_modules():
        found = module._buffers
        # By its shadow: a model's own buffer may be called attn_mask.
        masked = [name.removesuffix(SHADOW) for name in found if name.endswith(SHADOW)]
        ours = {name + suffix for name in masked for suffix in (*MASKS, SHADOW)}
        for name, buffer in found.items():
            is_taylor = name.endswith(TAYLOR) and name.removesuffix(TAYLOR) in masked
            if buffer is not None and (name in ours or is_taylor or name in (KEPT, ACTIVE)):
                yield f"{prefix}.{name}" if prefix else name, buffer
