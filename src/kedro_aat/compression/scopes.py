"""Finds the weights of a model that can be compressed, and selects those that the user's scopes name."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from kedro_aat.compression.computed_weights import computed_weights, listed_reasons
from kedro_aat.compression.operations import (
    EXPRESSION,
    is_leaf,
    names_operation,
    nncf_operation,
    nncf_scope,
    split_operation,
)
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.validated import closest

logger = logging.getLogger(__name__)


@dataclass
class PrunableWeight:
    """One weight tensor of one layer.

    Attributes:
        layer: The layer's name in the model, e.g. `blocks.0.conv1`.
        scope: The layer's name in NNCF's spelling, e.g. `Net/Sequential[blocks]/Block[0]/Conv2d[conv1]`.
        module: The layer.
        parameter_name: The weight's name in the layer, e.g. `weight`.
        also: The names in both spellings of other layers that share the weight.
    """

    layer: str
    scope: str
    module: nn.Module
    parameter_name: str
    also: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The weight's name in the model, as in `named_parameters()`."""
        return f"{self.layer}.{self.parameter_name}" if self.layer else self.parameter_name

    @property
    def parameter(self) -> Tensor:
        """The weight itself; looked up at each access, since `model.to()` may replace it."""
        parameter = self.module._parameters[self.parameter_name]
        assert parameter is not None
        return parameter

    @property
    def layers(self) -> list[tuple[str, str]]:
        """The names in both spellings of all layers that have the weight."""
        return [(self.layer, self.scope), *self.also]


W = TypeVar("W", bound=PrunableWeight)


def prunable_weights(
    model: nn.Module, *, ignored_scopes: Sequence[str] = (), target_scopes: Sequence[str] | None = None
) -> list[PrunableWeight]:
    """Returns the weights of convolutions, linear, recurrent and attention layers that the scopes select.

    A scope is a layer's name (which includes the layers inside it), a pattern with `*`, a name in NNCF's spelling
    (`Net/NNCFConv2d[conv1]/conv2d_0`), or `{re}` and a regular expression, which is searched for in NNCF's names, and
    in the other two spellings if it is in none of these. NNCF's name of an operation without weights (`Net/__add___0`)
    leaves out no layer, and a warning says so.

    Args:
        model: Any model; a weight shared by several layers is returned once.
        ignored_scopes: Layers to leave out.
        target_scopes: The only layers to include; None for all.

    Raises:
        ConfigurationError: If scopes match no layer; the message lists them.
        ModelError: If no weight is selected.
    """
    found = all_layer_weights(model)
    computed = {name: reason for name, reason in computed_weights(model).items() if not name.endswith("bias")}
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be pruned: none of its modules is a convolution, "
            f"a linear, a recurrent or an attention layer with its own weight.{listed_reasons(computed)}"
        )
    if computed:
        logger.warning("Weights that stay as they are:%s", listed_reasons(computed))
    return select_weights(model, found, ignored_scopes=ignored_scopes, target_scopes=target_scopes)


def select_weights(
    model: nn.Module,
    found: Sequence[W],
    *,
    ignored_scopes: Sequence[str] = (),
    target_scopes: Sequence[str] | None = None,
) -> list[W]:
    """Returns those of some weights that the scopes select; see `prunable_weights`.

    The name of a weight is a scope, too, and so is the name of each layer that shares it.

    Args:
        model: The model, which says whether a scope names an operation.
        found: The weights.
        ignored_scopes: Layers to leave out.
        target_scopes: The only layers to include; None for all.

    Raises:
        ConfigurationError: If scopes match neither a layer nor an operation; the message lists them.
        ModelError: If no weight is selected.
    """
    named = [("ignored_scopes", scope) for scope in ignored_scopes]
    named += [("target_scopes", scope) for scope in target_scopes or ()]
    mistakes = [f"{key}: '{scope}' is not a regular expression" for key, scope in named if not _is_valid(scope)]
    without_layer = [] if mistakes else [(key, scope) for key, scope in named if not matching(found, scope)]
    operations = [(key, scope) for key, scope in without_layer if names_operation(model, scope)]
    mistakes += [
        f"{key}: '{scope}' matches no layer.{closest(scope, [weight.layer for weight in found])}"
        for key, scope in without_layer
        if (key, scope) not in operations
    ]
    if mistakes:
        layers = ", ".join(weight.layer or weight.name for weight in found[:20])
        raise ConfigurationError(f"compression (the layers are {layers})", mistakes)
    for key, scope in operations:
        does = "leaves out" if key == "ignored_scopes" else "selects"
        logger.warning("%s: '%s' names no layer with weights, but operations, and %s no layer.", key, scope, does)
    selected = selected_by(found, ignored_scopes, target_scopes)
    if not selected:
        raise ModelError(
            f"The scopes select none of the {len(found)} prunable weights: shorten ignored_scopes, or extend "
            "target_scopes."
        )
    return selected


def selected_by(found: Sequence[W], ignored: Sequence[str], targets: Sequence[str] | None) -> list[W]:
    """Those of some weights that scopes select, without a check of the scopes.

    Args:
        found: The weights.
        ignored: Scopes to leave out.
        targets: The only scopes to include; None for all.
    """
    left_out = {id(weight) for scope in ignored for weight in matching(found, scope)}
    selected = [weight for weight in found if id(weight) not in left_out]
    if targets is None:
        return selected
    included = {id(weight) for scope in targets for weight in matching(found, scope)}
    return [weight for weight in selected if id(weight) in included]


def all_layer_weights(model: nn.Module) -> list[PrunableWeight]:
    """Returns the weights of a model's convolutions, linear, recurrent and attention layers, whatever the scopes."""
    found: dict[int, PrunableWeight] = {}
    for layer, module in model.named_modules():
        if parametrize.is_parametrized(module):
            continue
        for name in _weight_names(module):
            parameter = module._parameters.get(name)
            if parameter is not None and id(parameter) in found:
                found[id(parameter)].also.append((layer, nncf_scope(model, layer)))
            elif parameter is not None:
                found[id(parameter)] = PrunableWeight(layer, nncf_scope(model, layer), module, name)
    return list(found.values())


def _weight_names(module: nn.Module) -> Iterable[str]:
    if isinstance(module, _ConvNd | nn.Linear | nn.Bilinear):
        return ("weight",)
    if isinstance(module, nn.RNNBase):
        return (name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight_"))
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return ()


def matching(found: Sequence[W], scope: str) -> list[W]:
    """Returns those of some weights that a scope names."""
    if EXPRESSION not in scope:
        return [weight for weight in found if _matches(weight, scope)]
    pattern = re.compile(scope.replace(EXPRESSION, ""))
    as_nncf = [weight for weight in found if any(pattern.search(nncf_operation(name)) for _, name in weight.layers)]
    # An expression that is found in NNCF's names means what it means in NNCF, also if it says what is not in a name.
    return as_nncf or [weight for weight in found if any(map(pattern.search, chain.from_iterable(weight.layers)))]


def _matches(weight: PrunableWeight, scope: str) -> bool:
    return any(_matches_layer(weight, *names, scope) for names in weight.layers) or fnmatch.fnmatch(weight.name, scope)


def _matches_layer(weight: PrunableWeight, layer: str, nncf_name: str, scope: str) -> bool:
    if "/" in scope:
        module, operation = split_operation(scope)
        if operation:  # it is that of the layer, or one without weights in a module that contains layers
            return nncf_name == module and is_leaf(weight.module)
        return nncf_name == module or nncf_name.startswith(module + "/")
    return layer == scope or layer.startswith(scope + ".") or fnmatch.fnmatch(layer, scope)


def _is_valid(scope: str) -> bool:
    try:
        re.compile(scope.replace(EXPRESSION, "") if EXPRESSION in scope else "")
    except re.error:
        return False
    return True
