"""Runs of other versions: which run is the same but for kedro-aat, and whether it is continued or started anew.

`run.json` in the folder of a run has the ingredients of the run's identity, with all settings, and under `kedro_aat`
the version that writes the run and the format of its files. Version 0.1.0 did not write that key, and hashed the source
of kedro-aat's own functions, so that the names of its runs cannot be computed any more. Before `identity_version` 2,
the baseline and the source of model, loss and metric were not recorded. Another version of an installed package whose
objects a run uses is treated like another version of kedro-aat.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kedro_aat import __version__
from kedro_aat.disk import new_file
from kedro_aat.errors import CheckpointError
from kedro_aat.training.checkpoints.files import FORMAT_VERSION, numbers_in, path_in, require_known_format

logger = logging.getLogger(__name__)

AfterUpgrade = Literal["continue", "start_anew"]

_KEY = "kedro_aat"
_FIRST = {"version": "0.1.0", "format_version": 1}
_IDENTITY_VERSION = 2  # of what the ingredients are; raise it when some are added that every run has
_ADDED = {"baseline", "sources"}  # in 2
_HASHED_WITH_OUR_SOURCE = {"functions", "network"}  # in format 1


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says about a run.

    Attributes:
        folder: Folder of the run.
        ingredients: What identifies the run, with all settings.
        about: Version and format of its files, and the name that it continues if its folder has another one.
    """

    folder: Path
    ingredients: dict[str, Any]
    about: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Reads the record of a run; None if there is none, or a torn one."""
        try:
            ingredients = json.loads((folder / "run.json").read_text())
            return cls(folder, ingredients, dict(ingredients.pop(_KEY, None) or _FIRST))
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            logger.warning("%s is damaged (%s), and is written anew if this run continues.", folder / "run.json", error)
            return None

    def write(self) -> None:
        """Writes the record, with this version."""
        about = self.about | {
            "version": __version__,
            "format_version": FORMAT_VERSION,
            "identity_version": _IDENTITY_VERSION,
        }
        with new_file(self.folder / "run.json") as new:
            new.write_text(json.dumps(self.ingredients | {_KEY: about}, sort_keys=True, indent=2))

    @property
    def version(self) -> str:
        """Version of kedro-aat that wrote the run last."""
        return str(self.about.get("version"))

    @property
    def records_less(self) -> bool:
        """Whether the version that wrote the run left out some of the ingredients."""
        return self.about.get("identity_version") != _IDENTITY_VERSION

    def is_of_this_version(self, ingredients: Mapping[str, Any]) -> bool:
        """Whether this version of kedro-aat wrote the record, with the same packages as far as both use them."""
        old, new = (each.get("packages") or {} for each in (self.ingredients, ingredients))
        are_same = all(old[name] == new[name] for name in old.keys() & new.keys())
        return self.version == __version__ and not self.records_less and are_same

    def is_of_another_version(self, ingredients: Mapping[str, Any]) -> bool:
        """Whether another version of kedro-aat or of a package trained epochs of the run."""
        return not self.is_of_this_version(ingredients) and bool(numbers_in(self.folder))

    def is_named(self, name: str) -> bool:
        """Whether the run has this name, or a number after it, or continues it in another folder."""
        return re.fullmatch(rf"{name}(-\d+)?", self.folder.name) is not None or self.about.get("name") == name

    def is_same_as(self, ingredients: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
        """Whether the run differs only in the version of kedro-aat and of packages, as far as it was recorded.

        Args:
            ingredients: What identifies the other run, with all settings.
            identity: The same with those settings only that are not the defaults.
        """
        unlike = {"packages"} | (_ADDED if self.records_less else set())
        old, new = (
            {key: value for key, value in each.items() if key not in unlike} for each in (self.ingredients, ingredients)
        )
        if self.records_less:
            old |= {key: new[key] for key in ("train_data", "validation_data") if _is_hashed_further(old, new, key)}
        if self.about.get("format_version") == 1:
            old, new = (
                {key: value for key, value in each.items() if key not in _HASHED_WITH_OUR_SOURCE}
                for each in (_with_stated_search(old, identity), new)
            )
        return _is_same(old, new, identity)

    def summary(self, ingredients: Mapping[str, Any]) -> str:
        """Version, epochs and folder in words, and the settings whose defaults have changed since.

        Args:
            ingredients: What identifies the run that would continue this one, with all settings.
        """
        changed = {
            "defaults": differences(self.ingredients.get("settings"), ingredients.get("settings"), ""),
            "packages": differences(self.ingredients.get("packages"), ingredients.get("packages"), ""),
        }
        since = [
            f"; {name} that have changed since: {', '.join(each)}"
            for name, found in changed.items()
            if (each := list(found))
        ]
        numbers = numbers_in(self.folder)
        state = "finished" if (self.folder / "finished").exists() else "not finished"
        return (
            f"{epochs_of(self.folder, numbers)} epochs of kedro-aat {self.version} ({state}, in {self.folder})"
            + ("; not recorded: the baseline, and the source of model, loss and metric" if self.records_less else "")
            + "".join(since)
        )


def alike(records: Iterable[RunRecord], ingredients: Mapping[str, Any], may_differ: Collection[str]) -> list[RunRecord]:
    """The runs of this version with the same ingredients but for some; those with the most epochs come first.

    Args:
        records: Records of runs.
        ingredients: What identifies the run, with all settings.
        may_differ: Names of ingredients, at any depth, in which they may differ.
    """
    same = _without(ingredients, {"packages", *may_differ})
    found = [
        record
        for record in records
        if record.is_of_this_version(ingredients)
        and numbers_in(record.folder)
        and _without(record.ingredients, {"packages", *may_differ}) == same
    ]
    return sorted(found, key=lambda record: -max(numbers_in(record.folder)))


def choose_run(
    same: list[RunRecord], ingredients: Mapping[str, Any], after_upgrade: AfterUpgrade | None
) -> RunRecord | None:
    """The run of another version that is to be continued; None to start anew.

    Args:
        same: Runs of other versions that differ only in the version; at least one.
        ingredients: What identifies the run, with all settings.
        after_upgrade: The user's choice.

    Raises:
        CheckpointError: If the user has not chosen, or the files of the run cannot be read by this version.
    """
    found = max(same, key=lambda record: ((record.folder / "finished").exists(), numbers_in(record.folder)))
    if after_upgrade is None:
        raise CheckpointError(
            f"{found.summary(ingredients)} were trained with the same settings, model and data. This is kedro-aat "
            f"{__version__}, and other versions may train differently. To go on with these epochs, set "
            "`after_upgrade: continue` (in the pipeline's settings under `training`); to train anew beside them, set "
            "`after_upgrade: start_anew`."
        )
    if after_upgrade == "start_anew":
        logger.warning("Starting anew. Not continued: %s.", found.summary(ingredients))
        return None
    require_known_format(found.about.get("format_version"), found.folder)
    logger.warning("Continuing, with kedro-aat %s, after %s.", __version__, found.summary(ingredients))
    return found


def epochs_of(folder: Path, numbers: list[int]) -> int:
    """Epochs that a run has trained; 0 if that is unknown.

    Args:
        folder: Folder of the run.
        numbers: Numbers of its checkpoints.
    """
    for number in reversed(numbers):
        try:
            return int(json.loads((path_in(folder, number) / "state.json").read_text())["cumulative_epoch_count"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return 0


def _without(data: Any, names: Collection[str]) -> Any:
    """Leaves out keys of nested data."""
    if isinstance(data, Mapping):
        return {key: _without(value, names) for key, value in data.items() if key not in names}
    return [_without(value, names) for value in data] if isinstance(data, list) else data


def _with_stated_search(ingredients: dict[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what the user does not state of the search: `frontier` of 0.1.0 had other settings and defaults."""
    settings, stated = ingredients.get("settings"), identity.get("settings")
    if not (isinstance(settings, Mapping) and isinstance(stated, Mapping)):
        return ingredients
    search, of_user = settings.get("search"), stated.get("search", {})
    if not isinstance(search, Mapping) or search.get("kind") != "frontier":
        return ingredients
    kept = {key: value for key, value in search.items() if key == "kind" or key in of_user}
    return ingredients | {"settings": {**settings, "search": kept}}


def _is_same(old: object, new: object, stated: object) -> bool:
    """Whether old data say the same as new ones, of which only `stated` are not defaults.

    A setting that the old version did not have must have its default.
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return old == new
    stated = stated if isinstance(stated, Mapping) else {}
    return old.keys() <= new.keys() and all(
        _is_same(old[key], value, stated.get(key)) if key in old else key not in stated for key, value in new.items()
    )


def _is_hashed_further(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    """Whether a hash of data begins with the old one, which was that of a few examples."""
    return key in old and str(new.get(key)).startswith(f"{old[key]}-")


def differences(old: object, new: object, key: str, *, is_complete: bool = False) -> Iterator[str]:
    """Names values that differ in nested data, with both.

    Args:
        old: The old data.
        new: The new data.
        key: Key of the data, which may be empty.
        is_complete: Whether what only one of them has is named, too.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys() if is_complete else old.keys() & new.keys()):
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(old.get(name), new.get(name), inner, is_complete=is_complete)
    elif old != new and key:
        yield f"{key} ({old!r}, now {new!r})"


def as_json(identity: Mapping[str, Any]) -> str:
    """What identifies a run as text; its values may be paths, and numbers of NumPy or torch.

    Raises:
        CheckpointError: If it holds anything else.
    """
    return json.dumps(identity, sort_keys=True, indent=2, default=_as_plain)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of NumPy's or torch's
        return value.tolist()
    raise CheckpointError(f"the configuration holds {value!r}, which cannot identify a run")
