"""Names that a project uses already: entries of the catalog, keys of the parameters, and a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

_SUFFIXES = (".yml", ".yaml", ".json")


@dataclass(frozen=True)
class Taken:
    """What exists elsewhere in a project.

    Attributes:
        entries: Entries of the catalog, and the file that each is in, relative to the project.
        parameters: Top-level keys of the parameters, likewise.
        pipeline: Name of a pipeline that is not ours; empty if there is none.
    """

    entries: Mapping[str, str]
    parameters: Mapping[str, str]
    pipeline: str = ""

    def __bool__(self) -> bool:
        return bool(self.entries or self.parameters or self.pipeline)

    def in_words(self) -> list[str]:
        """One line for each file, and for the pipeline."""
        lines = [f"the pipeline registry has a pipeline {self.pipeline}"] if self.pipeline else []
        for kind, names in (("catalog entries", self.entries), ("parameters", self.parameters)):
            for place in dict.fromkeys(names.values()):
                here = [name for name in names if names[name] == place]
                lines.append(f"{place} has {kind} named {', '.join(here)}")
        return lines


def taken_names(
    conf: Path, envs: Iterable[str], own: Iterable[Path], entries: Iterable[str], parameters: Iterable[str]
) -> Taken:
    """Finds entries and keys in other files than our own.

    Args:
        conf: The folder of configuration, below the project.
        envs: Environments to look into.
        own: Our own files, which do not count.
        entries: Names of entries to look for.
        parameters: Top-level keys to look for.
    """
    others = [path for env in dict.fromkeys(envs) for path in _files(conf / env) if path not in set(own)]

    def found(kind: str, names: Iterable[str]) -> dict[str, str]:
        wanted = set(names)
        places: dict[str, str] = {}
        for path in others:
            if any(part.startswith(kind) for part in path.relative_to(conf).parts):
                for name in wanted.intersection(top_level(path)):
                    places.setdefault(name, str(path.relative_to(conf.parent)))
        return {name: places[name] for name in sorted(places)}

    return Taken(found("catalog", entries), found("parameters", parameters))


def is_ours(pipeline: Pipeline) -> bool:
    """Whether a pipeline has a node of ours, as the one has that an earlier `kedro aat init` wrote."""
    return any(node.func.__module__.startswith("kedro_aat.") for node in pipeline.nodes)


def top_level(path: Path) -> list[str]:
    """The top-level keys of a file; none if it cannot be read, which `kedro aat validate` tells."""
    try:
        loaded: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return [str(key) for key in loaded] if isinstance(loaded, dict) else []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES and path.is_file())
