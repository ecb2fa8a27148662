"""Which layers of a model are frozen (`requires_grad=False`): compression leaves these as they are, or names them."""

from __future__ import annotations

from torch import nn

from kedro_aat.errors import ModelError


def frozen_layers(model: nn.Module) -> list[str]:
    """Returns the names of the layers that have parameters of their own, all of them frozen."""
    own = {name: list(module.parameters(recurse=False)) for name, module in model.named_modules()}
    return [
        name
        for name, parameters in own.items()
        if parameters and not any(parameter.requires_grad for parameter in parameters)
    ]


def frozen_parameters(model: nn.Module) -> list[str]:
    """Returns the names of a model's floating-point parameters that are frozen; integers never train."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not parameter.requires_grad
    ]


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that training can change.

    Raises:
        ModelError: All parameters are frozen, or there is none.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        number = sum(parameter.numel() for parameter in model.parameters())
        raise ModelError(
            f"0 of the {number:,} parameters of {type(model).__name__} can be trained: all of them are frozen "
            "(requires_grad=False), so nothing could make up for what compression removes. Call requires_grad_(True) "
            "on the layers to train and compress, in the function that builds the model."
        )
    return found
