"""What a model must be before anything is done with it: not wrapped, complete, and possible to copy."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedParameter

from kedro_aat.compression.computed_weights import hooked_weights, listed_reasons
from kedro_aat.errors import ModelError
from kedro_aat.wrapped import unwrapped


def compressible(model: nn.Module) -> nn.Module:
    """Returns a model without what is put around it and around its submodules, which is removed in place.

    Raises:
        ModelError: It is TorchScript, has parameters without a shape, or weights that a hook computes.
    """
    model = unwrapped(model, inside=True)
    lazy = [name for name, each in model.named_parameters() if isinstance(each, UninitializedParameter)]
    if lazy:
        raise ModelError(
            f"{len(lazy)} parameters of {type(model).__name__} have no shape yet ({', '.join(lazy[:5])}): call it once "
            "with an example input, in the function that builds it."
        )
    if hooked := hooked_weights(model):
        raise ModelError(
            f"Hooks compute {len(hooked)} of the weights of {type(model).__name__}, and torch cannot copy such a model:"
            f"{listed_reasons(hooked)}\nOr use torch.nn.utils.parametrizations instead: such weights stay as they are."
        )
    return model
