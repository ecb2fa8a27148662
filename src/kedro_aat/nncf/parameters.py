"""An NNCF 2.x JSON file as the parameters of the `aat` pipeline."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kedro_aat.nncf.algorithms import FilterPruningAlgorithm
from kedro_aat.nncf.config import AccuracyAwareSettings, NNCFConfig, NNCFFile, without_meaning
from kedro_aat.validated import Settings

# The loops' own default for the highest rate, which their users know.
_NNCF_MAXIMAL_RATE = 0.95


def parameters_from_nncf(path: Path, template: str) -> tuple[str, list[str]]:
    """The text of a `parameters_aat.yml`, and what of the file has no counterpart here.

    Budget, search and compression are the file's; what it does not speak of (optimizer, loss, metric, export) is
    the template's, to be filled in.

    Args:
        path: The JSON file.
        template: The text of the `parameters_aat.yml` whose sections are replaced.

    Raises:
        ConfigurationError: If the file cannot be read, and for every mistake in it, in one error.
    """
    config = NNCFConfig.from_json(path, warn=False)
    aware = AccuracyAwareSettings.from_config(config)
    file = config.parsed
    search = aware.early_exit if aware.mode == "early_exit" else aware.search
    parts = [algorithm.settings(file.ignored_scopes, file.target_scopes) for algorithm in file.compression]
    compression = [_plain(part, "algorithm") for part in parts]
    sections = {
        "budget": aware.budget.model_dump(exclude_none=True),
        "minimal_rate": 0.0,
        "maximal_rate": _NNCF_MAXIMAL_RATE,
        "compression": compression[0] if len(compression) == 1 else compression,
        "search": _plain(search, "kind"),
        "second_stage": None,
    }
    notes = [*without_meaning(file), *_to_be_told(file)]
    text = template
    for key, value in sections.items():
        text = _with_section(text, key, value)
    # NNCF's files name their distillation under `compression`.
    text = re.sub(r"(?m)^    distillation: .*$", "    distillation: null", text)
    if not aware.higher_is_better:
        text = re.sub(r"(?m)^    distillation: ", "    higher_is_better: false\n\\g<0>", text)
    return _comment(f"Made from {path.name}, a configuration of NNCF 2.x.", notes) + text, notes


def _plain(settings: Settings, tag: str) -> dict[str, Any]:
    """What differs from the defaults, as plain data, with the name that tells it from others."""
    return {tag: getattr(settings, tag), **settings.model_dump(mode="json", exclude_defaults=True)}


def _to_be_told(file: NNCFFile) -> list[str]:
    """What depends on the model or the data, which the parameters do not know."""
    notes = []
    for algorithm in file.compression:
        if isinstance(algorithm, FilterPruningAlgorithm):
            kept = {
                "prune_first_conv": "the first convolutions",
                "prune_downsample_convs": "convolutions with a stride above 1",
            }
            for key, words in kept.items():
                if not getattr(algorithm.params, key):
                    notes.append(
                        f"filter_pruning.params.{key} is false: name {words} of your model under "
                        "compression.ignored_scopes to leave them whole"
                    )
        if algorithm.algorithm == "quantization" and algorithm.initializer is not None:
            notes.append(
                "quantization.initializer has no counterpart: ranges are taken while the model trains, and for a "
                "second stage from its first batches"
            )
    return notes


def _with_section(text: str, key: str, value: Any) -> str:
    """The template with one of the keys below `aat` replaced, and its lines' comments with it."""
    dumped = textwrap.indent(OmegaConf.to_yaml(OmegaConf.create({key: value})), "  ")
    changed, count = re.subn(rf"(?m)^  {key}:.*\n(?:    .*\n)*", lambda _: dumped, text)
    assert count == 1
    return changed


def _comment(title: str, notes: list[str]) -> str:
    lines = [title, "The file says nothing of optimizer, loss and metric: fill these in under `training`."]
    if notes:
        lines.append("What has no counterpart here, or means something else:")
    wrapped = [textwrap.fill(line, 116) for line in lines]
    wrapped += [textwrap.fill(note, 116, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return textwrap.indent("\n".join(wrapped) + "\n", "# ", lambda _: True) + "\n"
