"""What NNCF checks before it compresses: whether scopes name anything, and whether layers are frozen."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from kedro_aat.compression.matrices import find_matrices, matrices_of
from kedro_aat.compression.operations import names_operation
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.scopes import all_layer_weights, matching, selected_by
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.errors import ModelError
from kedro_aat.nncf.config import NNCFFile
from kedro_aat.nncf.quantization_section import QuantizationAlgorithm
from kedro_aat.nncf.section import AlgorithmSection
from kedro_aat.nncf.sections import ConstSparsityAlgorithm, KnowledgeDistillationAlgorithm

logger = logging.getLogger(__name__)


A = TypeVar("A", bound=AlgorithmSection)
ScopeNames = tuple[str, ...]


def with_checked_scopes(section: A, file: NNCFFile, model: nn.Module) -> tuple[A, ScopeNames, ScopeNames | None]:
    """Returns a section and the scopes at the root of its file, as compression shall check and use them.

    With `validate_scopes: false`, these are only the scopes that name anything in the model.

    Args:
        section: The section of an algorithm.
        file: The file that it is in.
        model: The model, not called.

    Raises:
        ModelError: If layers that the algorithm would compress are frozen; see `refuse_frozen`.
    """
    ignored, targets = file.ignored_scopes, file.target_scopes
    if not section.validate_scopes:
        own = {
            "ignored_scopes": _naming_anything(section, model, section.ignored_scopes),
            "target_scopes": _naming_anything(section, model, section.target_scopes),
        }
        section = section.model_copy(update=own)
        ignored = _naming_anything(section, model, ignored) or ()
        targets = _naming_anything(section, model, targets)
    if isinstance(section, KnowledgeDistillationAlgorithm):
        return section, ignored, targets
    merged = section.merge_scopes(ignored, targets)
    refuse_frozen(section, model, merged["ignored_scopes"], merged["target_scopes"])
    return section, ignored, targets


def keeping_present_zeros(settings: MagnitudeSparsity, model: nn.Module) -> MagnitudeSparsity:
    """Returns the settings with the rate that masks exactly the weights that are zero now.

    Args:
        settings: Settings that rank all weights by their magnitude, so that zeros come first.
        model: The model.
    """
    matrices = find_matrices(model, ignored_scopes=settings.ignored_scopes, target_scopes=settings.target_scopes)
    zeros = sum(int((weight.parameter == 0).sum()) for weight in matrices.weights)
    if not zeros:
        logger.warning("const_sparsity keeps 0 zeros: load sparse weights before create_compressed_model.")
    schedule = ScheduleSettings(initial_rate=min(zeros / matrices.num_weights, math.nextafter(1, 0)))
    return settings.model_copy(update={"schedule": schedule})


def _naming_anything(section: AlgorithmSection, model: nn.Module, scopes: ScopeNames | None) -> ScopeNames | None:
    if not scopes:
        return scopes
    found = [*all_layer_weights(model), *matrices_of(model)]
    named = tuple(scope for scope in scopes if matching(found, scope) or names_operation(model, scope))
    if left := [scope for scope in scopes if scope not in named]:
        logger.info("%s: %d scopes name nothing in the model: %s", section.algorithm, len(left), ", ".join(left))
    return named


def refuse_frozen(
    section: AlgorithmSection, model: nn.Module, ignored: Sequence[str], targets: Sequence[str] | None
) -> None:
    """Refuses frozen layers that an algorithm would compress, as NNCF does; quantization only warns.

    Args:
        section: The section of the algorithm.
        model: The model.
        ignored: All scopes to leave out.
        targets: The only scopes to compress; None for all.

    Raises:
        ModelError: If a convolution, a linear, a recurrent or an attention layer is frozen, and the algorithm needs
            to train it.
    """
    selected = selected_by(all_layer_weights(model), ignored, targets)
    frozen = [weight for weight in selected if not weight.parameter.requires_grad]
    names = list(dict.fromkeys(weight.layer or weight.name for weight in frozen))
    if not names:
        return
    layers = f"{', '.join(names[:10])}{' and others' if len(names) > 10 else ''}"
    if isinstance(section, QuantizationAlgorithm | ConstSparsityAlgorithm):
        logger.warning("%d layers are frozen and are compressed without training: %s", len(names), layers)
        return
    raise ModelError(
        f"{len(names)} of the layers that {section.algorithm} would compress are frozen (requires_grad=False): "
        f"{layers}. Unfreeze them, or name them in ignored_scopes."
    )
