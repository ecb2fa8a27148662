"""What is different between runs, in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kedro_aat.training.checkpoints.files import numbers_in
from kedro_aat.training.checkpoints.upgrades import RunRecord, differences

logger = logging.getLogger(__name__)

_MAX_NAMED = 4
_WORDS = {
    "functions": "a training function",
    "network": "the source of the model",
    "model": "the initial model",
    "teacher": "the teacher",
    "train_data": "the training data",
    "validation_data": "the validation data",
}
_VALUES = "(...)"


def log_changes(name: str, ingredients: Mapping[str, Any], records: Sequence[RunRecord]) -> None:
    """Says which of the store's runs is nearest to a new one, and what has changed since.

    Nothing is said if no run is of the same kind, or if one has the same ingredients.

    Args:
        name: Name of the new run.
        ingredients: What identifies it, with all settings.
        records: The other runs.
    """
    found = [
        (record, changes)
        for record in records
        if _kind(record.ingredients) == _kind(ingredients) and numbers_in(record.folder)
        for changes in [_changes_since(record, ingredients)]
    ]
    if not found:
        return
    record, (code_and_data, settings) = min(
        found, key=lambda each: (len(each[1][0]) + len(each[1][1]), -each[0].folder.stat().st_mtime)
    )
    if changes := code_and_data + settings:
        level = logging.WARNING if code_and_data else logging.INFO
        logger.log(level, "New run %s: %s changed since run %s.", name, _joined(changes), record.folder.name)


def changes_between(old: RunRecord, new: RunRecord) -> list[str]:
    """What is different between two runs, in words: code and data first, then each setting with both values."""
    code_and_data, settings = _changes_since(old, new.ingredients)
    return code_and_data + settings


def _kind(ingredients: Mapping[str, Any]) -> object:
    """What runs that can be compared have in common; the stages of a search have different settings."""
    settings = ingredients.get("settings")
    return {*settings} if isinstance(settings, Mapping) else "config" in ingredients


def _changes_since(record: RunRecord, new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What has changed of code and data, and which settings have."""
    old = record.ingredients
    keys = {key for key in {*old, *new} if old.get(key) != new.get(key) and (key in old or not record.records_less)}
    keys -= {"packages"}
    changes: list[str] = []
    settings: list[str] = []
    if "sources" in keys:
        keys.discard("functions")
        changes += _sources(old.get("sources") or {}, new.get("sources") or {})
    if "model" in keys:  # of which the baseline and the teacher are copies, in the first stage
        keys.discard("teacher")
    changes += [words for key, words in _WORDS.items() if key in keys]
    for key in sorted(keys - {"sources", *_WORDS}):
        named = list(differences(old.get(key), new.get(key), "" if key == "settings" else key, is_complete=True))
        if key != "baseline":
            settings += named
        elif "model" not in keys:
            changes += ["the baseline" if "baseline.model" in " ".join(named) else "the baseline's metric"]
    return changes, settings


def _sources(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    changed = sorted(key for key in old.keys() & new.keys() if old[key] != new[key]) or sorted({*old} ^ {*new})
    if names := [key for key in changed if not key.endswith(_VALUES)]:
        yield f"the source of {_joined(names)}"
    if names := [key.removesuffix(_VALUES) for key in changed if key.endswith(_VALUES)]:
        yield f"the values that {_joined(names)} is given"


def _joined(names: Sequence[str]) -> str:
    shown = [*names[:_MAX_NAMED], *([f"{len(names) - _MAX_NAMED} more"] if len(names) > _MAX_NAMED else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
