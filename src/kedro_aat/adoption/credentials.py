"""Finds the entries of a catalog that name credentials which the environment does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kedro.config import AbstractConfigLoader, MissingConfigException

from kedro_aat.errors import ConfigurationError, first_of

_MAX_LISTED = 5
_KEY = "credentials"


def credentials_mistakes(
    catalog: Mapping[str, Any], known: Mapping[str, Any], loader: AbstractConfigLoader
) -> list[str]:
    """One mistake for each name of credentials that is not there.

    Kedro's own error names no entry, and creates no catalog at all.

    Args:
        catalog: Configuration of the catalog, with its dataset factories.
        known: The credentials by name.
        loader: What both come from.
    """
    missing: dict[str, list[str]] = {}
    for entry in sorted(catalog, key=lambda name: ("{" in name, name)):  # factories last: Kedro's order is by chance
        for name in dict.fromkeys(_named(catalog[entry])):
            if name not in known:
                missing.setdefault(name, []).append(entry)
    base = getattr(loader, "base_env", None) or "base"
    used = loader.env or getattr(loader, "default_run_env", None) or base
    files = " and ".join(f"conf/{each}/credentials.yml" for each in dict.fromkeys((base, used)))
    return [
        f"{entries[0]}: its `credentials: {name}` are missing; they were looked for in {files}. Add the key {name} "
        f"there, or name the environment that has it with --env{_as_well(entries[1:])}"
        for name, entries in missing.items()
    ]


def require_credentials(loader: AbstractConfigLoader) -> None:
    """Refuses a catalog whose entries name credentials that are not there; other errors are left to Kedro.

    Args:
        loader: The project's loader of configuration.

    Raises:
        ConfigurationError: Lists them.
    """
    try:
        catalog = loader["catalog"]
        known = _credentials(loader)
    except Exception:  # Kedro says so when it creates the catalog
        return
    if mistakes := credentials_mistakes(catalog, known, loader):
        raise ConfigurationError("Catalog", mistakes)


def _credentials(loader: AbstractConfigLoader) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = loader[_KEY]
    except MissingConfigException:
        return {}
    return found


def _named(config: Any) -> Iterator[str]:
    """Names of credentials in an entry, at any depth, as Kedro looks for them."""
    if not isinstance(config, Mapping):
        return
    for key, value in config.items():
        if key == _KEY and isinstance(value, str):
            yield value
        else:
            yield from _named(value)


def _as_well(entries: list[str]) -> str:
    return f". {len(entries)} more entries name it: {first_of(entries, _MAX_LISTED)}" if entries else ""
