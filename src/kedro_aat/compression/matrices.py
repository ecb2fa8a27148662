"""Finds the weights of a model that sparsity can set to zero: its matrices, in whatever layer they are.

A matrix is a floating-point parameter with at least two dimensions that are longer than 1: of a convolution, a linear,
a recurrent, an attention or an embedding layer, of a layer that the user wrote, or a parameter of its own. What only
shifts or scales (biases, normalizations, position embeddings) has few numbers, and each of them acts on every example,
so it stays dense.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from kedro_aat.compression.computed_weights import (
    computed_weights,
    computing_modules,
    listed_reasons,
    source_parameters,
)
from kedro_aat.compression.operations import nncf_scope
from kedro_aat.compression.scopes import PrunableWeight, all_layer_weights, select_weights
from kedro_aat.errors import ModelError, first_of

# Share of a model's parameters below which a rate says little about the model.
SMALL_SHARE = 0.5

_FROZEN = "is frozen (requires_grad=False), so it would not train back; set requires_grad to compress it, too"
_BY_NAME = "add its name to target_scopes (beside '*') to compress it, too"
# Words of a name, as in `relative_position_bias_table` or `posEmbed`. Zero has no special meaning for a logarithm.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_POSITIONS = {"pe", "pos", "position", "positions", "positional", "wpe", "relpos"}
_NORMALIZATION = re.compile(r"Norm(\d+d)?$")


@dataclass(frozen=True)
class Matrices:
    """The weights of a model that can be sparse, and what is left out.

    Attributes:
        weights: The weights whose share of zeros is the rate; one that several layers share is there once.
        left_out: Name of each other matrix that no scope excludes -> why it stays dense.
        num_excluded: Number of parameters in matrices that the scopes exclude.
        num_parameters: Number of all parameters of the model.
    """

    weights: list[PrunableWeight]
    left_out: dict[str, str]
    num_excluded: int
    num_parameters: int

    @property
    def num_weights(self) -> int:
        """Number of parameters in `weights`."""
        return sum(weight.parameter.numel() for weight in self.weights)

    def small_share(self, model: nn.Module) -> str | None:
        """Says how little of the model the rate counts and why; None if it counts at least `SMALL_SHARE` of it."""
        share = self.num_weights / max(self.num_parameters, 1)
        if share >= SMALL_SHARE:
            return None
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(name)
        parts = [(sum(_size(model, name) for name in names), names, reason) for reason, names in by_reason.items()]
        texts = [
            f"{size:,} in {first_of(names, 3)}, which "
            f"{reason.replace('is frozen', 'are frozen') if len(names) > 1 else reason}"
            for size, names, reason in sorted(parts, reverse=True)
        ]
        if self.num_excluded:
            texts.append(f"{self.num_excluded:,} in layers that ignored_scopes or target_scopes exclude")
        rest = self.num_parameters - self.num_weights - self.num_excluded - sum(size for size, _, _ in parts)
        if rest > 0:
            texts.append(f"{rest:,} in biases, normalizations and other vectors")
        return (
            f"{share:.2%} of the parameters ({self.num_weights:,} of {self.num_parameters:,}) are all that the rate of "
            f"magnitude_sparsity counts. The others stay dense: {'; '.join(texts)}."
        )


def find_matrices(
    model: nn.Module,
    *,
    ignored_scopes: Sequence[str] = (),
    target_scopes: Sequence[str] | None = None,
    only_layers: bool = False,
) -> Matrices:
    """Returns the weights of a model that can be sparse and that the scopes select.

    Args:
        model: Any model.
        ignored_scopes: Layers or parameters to leave out; see `scopes.select_weights`.
        target_scopes: The only ones to include; None for all. A name that stands here exactly is included even if it
            looks like a bias, a normalization or a position embedding.
        only_layers: Whether to include only layers of torch whose input dimension is known, which patterns need.

    Raises:
        ConfigurationError: If scopes match no layer; the message lists them.
        ModelError: If no weight is selected, or all of them are frozen.
    """
    found = list(_all_matrices(model))
    if only_layers:
        known = {id(weight.parameter) for weight in all_layer_weights(model)}
        reason = "is in no layer whose input dimension is known, as a pattern asks"
        found = [(weight, why or (None if id(weight.parameter) in known else reason)) for weight, why in found]
    computed = computed_weights(model)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be pruned: none of its parameters is a matrix."
            f"{listed_reasons(computed)}"
        )
    weights = [weight for weight, _ in found]
    chosen = select_weights(model, weights, ignored_scopes=ignored_scopes, target_scopes=target_scopes)
    selected = {id(weight) for weight in chosen}
    weights = []
    left_out: dict[str, str] = {}
    num_excluded = 0
    for weight, why in found:
        if id(weight) not in selected:
            num_excluded += weight.parameter.numel()
        elif why is None or (why.endswith(_BY_NAME) and {weight.layer, weight.name} & {*(target_scopes or ())}):
            weights.append(weight)
        else:
            left_out[weight.name] = why
    if not weights:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be pruned:{listed_reasons({**left_out, **computed})}"
        )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Matrices(weights, left_out | computed, num_excluded, num_parameters)


def matrices_of(model: nn.Module) -> list[PrunableWeight]:
    """Returns all weights of a model that `find_matrices` finds without scopes; there may be none."""
    return [weight for weight, reason in _all_matrices(model) if reason is None]


def layers_with_matrices(model: nn.Module) -> set[str]:
    """Names of the layers whose weights scopes of sparsity can name, also of those that stay dense without a scope."""
    return {layer for weight, _ in _all_matrices(model) for layer, _ in weight.layers}


def _all_matrices(model: nn.Module) -> Iterator[tuple[PrunableWeight, str | None]]:
    """Yields each matrix once, with the reason to leave it dense, if there is one."""
    inside = computing_modules(model)
    layers = {(weight.layer, weight.parameter_name) for weight in all_layer_weights(model)}
    found: dict[int, tuple[PrunableWeight, str | None]] = {}
    for layer, module in model.named_modules(remove_duplicate=False):
        if layer in inside:
            continue
        sources = source_parameters(module)
        for name, parameter in module.named_parameters(recurse=False):
            if name in sources:
                continue
            if id(parameter) in found:
                found[id(parameter)][0].also.append((layer, nncf_scope(model, layer)))
                continue
            if sum(size > 1 for size in parameter.shape) < 2 and (layer, name) not in layers:
                continue
            weight = PrunableWeight(layer, nncf_scope(model, layer), module, name)
            found[id(parameter)] = weight, _reason_to_leave(weight, is_layer=(layer, name) in layers)
    yield from found.values()


def _reason_to_leave(weight: PrunableWeight, *, is_layer: bool) -> str | None:
    parameter, module = weight.parameter, weight.module
    if not parameter.is_floating_point():
        return f"holds {str(parameter.dtype).removeprefix('torch.')} numbers, which have no magnitude to rank by"
    if not is_layer:
        is_table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        own = weight.layer.rpartition(".")[2] if is_table or weight.parameter_name.isdigit() else ""
        words = {word.lower() for word in _WORD.findall(f"{own} {weight.parameter_name}")}
        words |= {word.lower() for word in _WORD.findall(type(module).__name__)} if is_table else set()
        if words & _POSITIONS:
            return f"looks like a position embedding by its name; {_BY_NAME}"
        if words & {"bias", "biases"}:
            return f"looks like a bias by its name; {_BY_NAME}"
        if "log" in words:
            return f"looks like a logarithm by its name, where zero is no absence; {_BY_NAME}"
        if _NORMALIZATION.search(type(module).__name__):
            return f"looks like a normalization's by the name of its class; {_BY_NAME}"
        if not is_table and parameter.shape[0] == 1:
            return f"is broadcast over a batch, as its first dimension of 1 says; {_BY_NAME}"
    return None if parameter.requires_grad else _FROZEN


def _size(model: nn.Module, name: str) -> int:
    """Number of parameters behind a matrix: its own, or those that it is computed from."""
    layer, _, tensor = name.rpartition(".")
    path = f"{layer}." if layer else ""
    beginnings = (f"{path}parametrizations.{tensor}.", f"{path}{tensor}_")
    own = [parameter for each, parameter in model.named_parameters() if each == name]
    sources = [parameter for each, parameter in model.named_parameters() if each.startswith(beginnings)]
    return sum(parameter.numel() for parameter in own or sources)
