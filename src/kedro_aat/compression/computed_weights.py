"""Weights that a layer computes anew in every forward pass, and how a user makes them plain parameters.

Weight norm, spectral norm, orthogonal and other parametrizations compute a layer's weight from other tensors, and so
do the older functions of the same names and `torch.nn.utils.prune`, by a hook. A mask on such a weight has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# Hook -> name of its tensor's attribute, what it is called, and the function that removes it.
_HOOKS: tuple[tuple[type, str, str, str], ...] = (
    (WeightNorm, "name", "weight norm", "torch.nn.utils.remove_weight_norm"),
    (SpectralNorm, "name", "spectral norm", "torch.nn.utils.remove_spectral_norm"),
    (BasePruningMethod, "_tensor_name", "torch.nn.utils.prune", "torch.nn.utils.prune.remove"),
)


def computed_weights(model: nn.Module) -> dict[str, str]:
    """Returns the tensors that a model's layers compute, by their names, and why and how to make them parameters."""
    return {
        f"{layer}.{name}" if layer else name: reason
        for layer, module in model.named_modules()
        for name, reason in _computed_by(module, layer)
    }


def hooked_weights(model: nn.Module) -> dict[str, str]:
    """Returns those of the computed weights that a hook computes: a model with them cannot be copied."""
    return {
        f"{layer}.{name}" if layer else name: reason
        for layer, module in model.named_modules()
        for name, reason in _computed_by_hooks(module, layer)
    }


def computing_modules(model: nn.Module) -> set[str]:
    """Returns the names of the modules inside parametrizations, whose parameters are no weights of a layer."""
    lists = [name for name, module in model.named_modules() if isinstance(module, ParametrizationList)]
    return {name for name, _ in model.named_modules() if any(f"{name}.".startswith(f"{each}.") for each in lists)}


def source_parameters(module: nn.Module) -> set[str]:
    """Returns the names of a module's own parameters from which a hook computes another, such as `weight_v`."""
    hooked = [name for name, _, _ in _hooked(module)]
    return {
        name
        for name, _ in module.named_parameters(recurse=False)
        for tensor in hooked
        if name.startswith(f"{tensor}_") and name not in hooked
    }


def listed_reasons(reasons: Mapping[str, str], most: int = 10) -> str:
    """Returns one line per weight with its reason, for a message; of many weights, the first."""
    lines = [f"\n  - {name} {reason}" for name, reason in list(reasons.items())[:most]]
    return "".join(lines) + (f"\n  - ... and {len(reasons) - most} more" if len(reasons) > most else "")


def _computed_by(module: nn.Module, layer: str) -> Iterator[tuple[str, str]]:
    owner = f"model.get_submodule({layer!r})" if layer else "model"
    if parametrize.is_parametrized(module):
        lists = module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        for name, steps in lists.items():
            kinds = " and ".join(type(step).__name__.lstrip("_") for step in _steps(steps))
            yield name, _reason(kinds, f"torch.nn.utils.parametrize.remove_parametrizations({owner}, {name!r})")
    yield from _computed_by_hooks(module, layer)


def _computed_by_hooks(module: nn.Module, layer: str) -> Iterator[tuple[str, str]]:
    owner = f"model.get_submodule({layer!r})" if layer else "model"
    for name, kind, function in _hooked(module):
        yield name, _reason(kind, f"{function}({owner}, {name!r})")


def _steps(steps: nn.Module) -> Iterator[nn.Module]:
    assert isinstance(steps, ParametrizationList)
    return iter(steps)


def _hooked(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    for hook in module._forward_pre_hooks.values():
        for kind, attribute, words, function in _HOOKS:
            if isinstance(hook, kind):
                yield getattr(hook, attribute), words, function


def _reason(kind: str, call: str) -> str:
    return f"is computed by {kind} in every forward pass: call {call} before the compression"
