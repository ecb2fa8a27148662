"""Brings the files of an earlier version up to date: lines are added or changed one by one, and none is lost.

The user's values and comments stay, since the text is edited and never written anew.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kedro_aat import __version__
from kedro_aat.adoption import templates
from kedro_aat.adoption.factories import FILE, covered_by, factory_of
from kedro_aat.adoption.init.names import taken_names
from kedro_aat.adoption.init.write import CATALOG, PARAMETERS, Place
from kedro_aat.errors import ConfigurationError
from kedro_aat.search.frontier import OBSOLETE

_TENSORS = (
    "type: kedro_datasets_experimental.safetensors.SafetensorsDataset",
    "type: kedro_aat.datasets.tensors.TensorsDataset",
)
_FIGURE = ("type: plotly.JSONDataset", "type: kedro_aat.datasets.documents.FigureDataset")
# What earlier templates wrote in an entry -> what it is called now. A value of the user's own is another text.
RENAMED: dict[str, tuple[str, str]] = {
    "train_data": _TENSORS,
    "validation_data": _TENSORS,
    "test_data": _TENSORS,
    "frontier_figure": _FIGURE,
    "trajectory_figure": _FIGURE,
    "checkpoint_store": ("layer: fine_tuning", "layer: baseline"),
    "certificate_ledger": ("layer: certificate", "layer: baseline"),
    "trajectory": ("layer: second_stage", "layer: third_stage"),
}
# An entry with other keys, such as `versioned`, is the user's own, and its dataset may be the only one that takes them.
_KEYS = {"type", "filepath", "backend", "metadata"}


def upgraded(place: Place) -> dict[str, str]:
    """The files that change, by their template, with their new texts; nothing is written.

    Raises:
        ConfigurationError: A file is missing or cannot be read, or the change would alter something else.
    """
    texts = {name: _read(place, name) for name in (PARAMETERS, CATALOG)}
    new = {PARAMETERS: _without_obsolete(texts[PARAMETERS]), CATALOG: _catalog(texts[CATALOG], place)}
    if place.namespace is not None and place.file(FILE).exists():
        texts[FILE] = _read(place, FILE)
        new[FILE] = _renamed(texts[FILE], factory_of(""))
    for name, text in new.items():
        _require_kept(place, name, texts[name], text)
    return {name: text for name, text in new.items() if text != texts[name]}


def difference(place: Place, name: str, new: str) -> str:
    """What changes in a file, as `diff -u` shows it.

    Args:
        place: Where the file is.
        name: The template that it came from.
        new: Its new text.
    """
    shown = place.shown(place.file(name))
    old = _read(place, name).splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new.splitlines(keepends=True), shown, shown, n=1))


def _read(place: Place, name: str) -> str:
    path = place.file(name)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        mistake = f"{place.shown(path)} is missing; `kedro aat init` writes it"
    except (OSError, UnicodeDecodeError) as error:
        mistake = f"{place.shown(path)} cannot be read: {error}"
    raise ConfigurationError("Nothing was changed", [mistake])


def _without_obsolete(text: str) -> str:
    """Settings without an effect become comments, so that the run's warning about them ends."""
    names = "|".join(OBSOLETE)
    return re.sub(rf"(?m)^(\s*)((?:{names}):.*)$", r"\1# \2 # no effect since 0.2.0", text)


def _catalog(text: str, place: Place) -> str:
    prefix = "" if place.namespace is None else f"{place.namespace}."
    present = _loaded(text)
    text = _renamed(text, prefix)
    template = templates.template(CATALOG, place.namespace)
    entries = list(_loaded(template))
    own = [place.file(CATALOG)]
    elsewhere = taken_names(place.conf, ["base", place.env], own, entries, []).entries
    shared = covered_by(_read(place, FILE)) if prefix and place.file(FILE).exists() else set()
    made = {prefix + name for name in shared}
    missing = [name for name in entries if name not in present and name not in elsewhere and name not in made]
    if not missing:
        return text
    blocks = [next(block for block in template.split("\n\n") if f"\n{name}:\n" in f"\n{block}\n") for name in missing]
    blocks = [re.sub(r"(?s)^# (?:Results|Reporting)\n\n", "", block.strip("\n")) for block in blocks]
    heading = f"# Added by `kedro aat init --upgrade` of kedro-aat {__version__}"
    return "\n\n".join([text.rstrip("\n"), heading, *blocks]) + "\n"


def _renamed(text: str, prefix: str) -> str:
    """A catalog with types and layers as they are called now, in the entries whose names have a prefix."""
    present = _loaded(text)
    for name, (old, new) in RENAMED.items():
        found = re.search(rf'(?m)^"?{re.escape(prefix + name)}"?:[^\n]*\n(?:[ \t][^\n]*\n|\n(?=[ \t]))*', text)
        if found is not None and _has_our_keys(present[prefix + name]):
            text = text[: found.start()] + found[0].replace(old, new) + text[found.end() :]
    return text


def _has_our_keys(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() <= _KEYS


def _require_kept(place: Place, name: str, old: str, new: str) -> None:
    """Makes sure that only what is meant to change has changed."""
    if old == new:
        return
    before, after = _loaded(old), _loaded(new)
    if lost := [key for key in before if _without(before[key], name, key) != _without(after.get(key), name, key)]:
        raise ConfigurationError(
            "Nothing was changed",
            [f"{place.shown(place.file(name))}: {', '.join(lost)} cannot be changed safely; change it by hand"],
        )


def _without(value: Any, name: str, key: str) -> Any:
    """A value without what the upgrade may change in it."""
    if name in (CATALOG, FILE):
        changes = RENAMED.get(key.rpartition(".")[2])
        text = yaml.safe_dump(value, default_flow_style=False)
        return text if changes is None else text.replace(*changes)
    return _without_keys(value)


def _without_keys(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_keys(part) for key, part in value.items() if key not in OBSOLETE}


def _loaded(text: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError("Nothing was changed", [f"the file is no YAML: {error}"]) from error
    if not isinstance(loaded, dict):
        raise ConfigurationError("Nothing was changed", ["the file has no keys at its top level"])
    return {str(key): value for key, value in loaded.items()}


def changes_in_words(place: Place, texts: Mapping[str, str]) -> Iterator[str]:
    """The differences, and a sentence if there is none."""
    for name, text in texts.items():
        yield difference(place, name, text)
    if not texts:
        yield "The files are up to date. Settings that they do not name have defaults."
