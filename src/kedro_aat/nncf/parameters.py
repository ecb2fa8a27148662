"""Translates an NNCF 2.x JSON file to the parameters of the `aat` pipeline."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.config import AccuracyAwareSettings, NNCFConfig, NNCFFile, read_object
from kedro_aat.nncf.quantization_section import QuantizationAlgorithm
from kedro_aat.nncf.replaced import with_replacements
from kedro_aat.nncf.sections import ConstSparsityAlgorithm, FilterPruningAlgorithm, MagnitudeSparsityAlgorithm
from kedro_aat.validated import Settings

# What a file needs to be converted, for the message if it is missing.
_SECTION = '{"mode": "adaptive_compression_level", "params": {"maximal_relative_accuracy_degradation": 1.0}}'
# Which convolutions each of these keys excludes from pruning unless it is true.
_EXCLUDED_CONVOLUTIONS = {
    "prune_first_conv": "the first convolutions",
    "prune_downsample_convs": "the convolutions with a stride above 1",
}


def parameters_from_nncf(path: Path, template: str) -> tuple[str, list[str]]:
    """Makes the text of a `parameters_aat.yml`, and notes on the keys that have no counterpart here.

    Budget, search and compression come from the file. The rest (optimizer, loss, metric, export), which such a file
    does not have, stays as in the template.

    Args:
        path: Path of the JSON file.
        template: Text of the `parameters_aat.yml` whose sections are replaced.

    Raises:
        ConfigurationError: If the file cannot be read or names no budget; otherwise lists every mistake in it.
    """
    contents, notes = with_replacements(read_object(path))
    config = NNCFConfig.from_dict(contents, where=str(path), warn=False)
    if config.parsed.accuracy_aware_training is None:
        raise ConfigurationError(
            str(path),
            [
                "accuracy_aware_training: this section is required, since it holds the accuracy budget. Add it, for "
                f'example for a drop of 1% of the metric: "accuracy_aware_training": {_SECTION}'
            ],
        )
    aware = AccuracyAwareSettings.from_config(config)
    file = config.parsed
    search = aware.early_exit if aware.mode == "early_exit" else aware.search
    algorithms = [
        file.adapted(algorithm.to_settings(file.ignored_scopes, file.target_scopes), algorithm)
        for algorithm in file.compression
        if not isinstance(algorithm, ConstSparsityAlgorithm)  # whose rate depends on the model
    ]
    compression = [_dump(algorithm, "algorithm") for algorithm in algorithms]
    sections = {
        "budget": aware.budget.model_dump(mode="json", exclude_defaults=True),
        "minimal_rate": 0.0,
        "maximal_rate": aware.maximal_rate,
        "search": _dump(search, "kind"),
        "second_stage": None,
    }
    notes += [*file.explain_differences(), *_note_model_dependent_keys(file)]
    if file.adaptive is None:
        notes.append("compression names no algorithm that has a rate: the section below is the default of this package")
        compression = [_default_compression(template), *compression] if compression else []
    if compression:
        sections["compression"] = compression[0] if len(compression) == 1 else compression
    text = template
    for key, value in sections.items():
        text = _replace_section(text, key, value)
    # NNCF's files name their distillation under `compression`.
    text = re.sub(r"(?m)^    distillation: .*$", "    distillation: null", text)
    if not aware.higher_is_better:
        text = re.sub(r"(?m)^    distillation: ", "    higher_is_better: false\n\\g<0>", text)
    return _format_comment(f"Translated from {path.name}, a configuration of NNCF 2.x.", notes) + text, notes


def _default_compression(template: str) -> dict[str, Any]:
    """The section `compression` of a template, as plain data."""
    from omegaconf import OmegaConf  # installed with Kedro, which the loops do not need

    section = OmegaConf.to_container(OmegaConf.select(OmegaConf.create(template), "aat.compression"))
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}


def _dump(settings: Settings, tag: str) -> dict[str, Any]:
    """The values that differ from the defaults, as plain data, preceded by the key `tag`, which names the class."""
    return {tag: getattr(settings, tag), **settings.model_dump(mode="json", exclude_defaults=True)}


def _note_model_dependent_keys(file: NNCFFile) -> Iterator[str]:
    """Notes on keys whose translation would need the model or the data."""
    for algorithm in file.compression:
        name, initializer = algorithm.algorithm, algorithm.initializer
        if not algorithm.validate_scopes:
            yield (
                f"{name}.validate_scopes is false, which has no counterpart: a scope that names nothing in the model "
                "is an error, so remove it"
            )
        if initializer is not None and initializer.batchnorm_adaptation is not None:
            yield (
                f"{name}.initializer.batchnorm_adaptation is not translated: training.batch_norm_adaptation_batches "
                "says from how many batches BatchNorms are adapted, after each epoch"
            )
        if isinstance(algorithm, ConstSparsityAlgorithm):
            yield (
                "const_sparsity is keep_zeros of quantization here"
                if file.quantizes
                else "const_sparsity has no counterpart without quantization: zeros of the baseline are not kept"
            )
        if isinstance(algorithm, MagnitudeSparsityAlgorithm):
            yield (
                "magnitude_sparsity compresses recurrent layers, attention and parameters outside of layers, too, "
                "which stay dense in NNCF: to exclude them, name them under compression.ignored_scopes"
            )
        if isinstance(algorithm, FilterPruningAlgorithm):
            yield (
                "filter_pruning cuts grouped convolutions, recurrent layers, attention, and linear layers with outputs "
                "of more than two dimensions, too, which NNCF leaves alone: to exclude them, name them under "
                "compression.ignored_scopes"
            )
            for key, convolutions in _EXCLUDED_CONVOLUTIONS.items():
                if not getattr(algorithm.params, key):
                    yield (
                        f"filter_pruning.params.{key} is false: to exclude {convolutions} of your model from pruning, "
                        "name them under compression.ignored_scopes"
                    )
        if isinstance(algorithm, QuantizationAlgorithm) and initializer is not None and initializer.range is not None:
            yield (
                "quantization.initializer.range has no counterpart: ranges are measured during training, and for a "
                "second stage on its first batches"
            )


def _replace_section(text: str, key: str, value: Any) -> str:
    """Replaces a key below `aat` in a template, including the comments on its lines."""
    from omegaconf import OmegaConf  # installed with Kedro, which the loops do not need

    section = textwrap.indent(OmegaConf.to_yaml(OmegaConf.create({key: _escaped(value)})), "  ")
    changed, count = re.subn(rf"(?m)^  {key}:.*\n(?:    .*\n)*", lambda _: section, text)
    assert count == 1
    return changed


def _escaped(value: Any) -> Any:
    """Escapes `${` in texts, which Kedro would read as an interpolation, and the backslashes before it."""
    if isinstance(value, dict):
        return {key: _escaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _format_comment(title: str, notes: list[str]) -> str:
    lines = [title, "The file does not name an optimizer, a loss or a metric: fill them in under `training`."]
    if notes:
        lines.append("Keys that have no counterpart here, or a different meaning:")
    wrapped = [textwrap.fill(line, 116) for line in lines]
    wrapped += [textwrap.fill(note, 116, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return textwrap.indent("\n".join(wrapped) + "\n", "# ", lambda _: True) + "\n"
