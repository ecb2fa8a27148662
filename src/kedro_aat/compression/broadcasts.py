"""What torch's DistributedDataParallel need not send to all processes before each forward pass."""

from __future__ import annotations

from torch import nn

from kedro_aat.compression.masks import MASK, SHADOW, SPARSITY_MASK, ZEROS_MASK

IGNORED = "_ddp_params_and_buffers_to_ignore"  # where torch looks for names

# As large as the weights, and computed alike from weights that are alike.
_COMPUTED_ALIKE = (MASK, SPARSITY_MASK, ZEROS_MASK, SHADOW)


def keep_from_broadcasts(model: nn.Module) -> None:
    """Lets DistributedDataParallel leave out masks and what is behind them, if it is put around a model later.

    Args:
        model: The model under compression; a list of names is added to it.
    """
    known = set(getattr(model, IGNORED, ()))
    found = {name for name, _ in model.named_buffers() if name.endswith(_COMPUTED_ALIKE)}
    if found - known:
        setattr(model, IGNORED, sorted(known | found))
