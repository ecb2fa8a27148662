"""What an environment of Kedro's, such as `conf/prod`, takes away from the parameters in `conf/base`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kedro.config import AbstractConfigLoader, OmegaConfigLoader

from kedro_aat.adoption.checks import look_up
from kedro_aat.errors import first_of

_MAX_LISTED = 5


def notes_on_environment(
    loader: AbstractConfigLoader, keys: Iterable[str], parameters: Mapping[str, Any]
) -> Iterator[str]:
    """Says which settings an environment leaves out, because Kedro replaces a top-level key as a whole.

    Args:
        loader: The project's loader of configuration; only Kedro's own is asked.
        keys: Dotted keys of settings.
        parameters: The parameters in the environment.
    """
    if not isinstance(loader, OmegaConfigLoader):
        return
    environment = loader.env or loader.default_run_env
    base = _base_parameters(loader)
    for key in keys:
        before, now = look_up(base, key), look_up(parameters, key) or {}
        if not isinstance(before, Mapping) or not isinstance(now, Mapping):
            continue
        if lost := [name for name in before if name not in now]:
            yield (
                f"conf/{environment} replaces {key}, without {len(lost)} of the {len(before)} keys in "
                f"conf/{loader.base_env}: {first_of(lost, _MAX_LISTED)}. Kedro replaces a top-level key as a "
                'whole. The entry "merge_strategy": {"parameters": "soft"}, added to CONFIG_LOADER_ARGS in settings.py'
                ", keeps them"
            )


def _base_parameters(loader: OmegaConfigLoader) -> Mapping[str, Any]:
    """The parameters without the environment; empty if they cannot be read alone."""
    environment = loader.env
    loader.env = loader.base_env  # a second loader would replace the resolvers of this one
    try:
        found: Mapping[str, Any] = loader["parameters"]
    except Exception:  # of Kedro, PyYAML and OmegaConf; such as an interpolation of a value in the environment
        return {}
    finally:
        loader.env = environment
    return found
