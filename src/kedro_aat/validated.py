"""The base of all settings: frozen, strict about keys, and one error that lists every mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kedro_aat.errors import ConfigurationError

T = TypeVar("T", bound=BaseModel)


class Settings(BaseModel):
    """Settings that cannot change, know every key they accept, and hold only finite numbers."""

    # `protected_namespaces` is emptied because `model` is a natural key of ours.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Reads settings from plain data; see `parse`."""
        return parse(cls, obj, **options)

    def lookup_mistakes(self, key: str) -> list[str]:
        """Mistakes that show only when what the settings name is looked up, such as a wrong import path.

        Args:
            key: Where these settings stand, for example `aat.training`.
        """
        nested = ((name, getattr(self, name)) for name in type(self).model_fields)
        return [
            mistake
            for name, value in nested
            if isinstance(value, Settings)
            for mistake in value.lookup_mistakes(f"{key}.{name}")
        ]


def parse(model: type[T], data: Any, *, where: str | None = None, **options: Any) -> T:
    """Builds `model` from `data`, or lists every mistake in one error.

    Args:
        model: The settings class.
        data: Plain data (a mapping read from YAML or JSON), or an instance of `model`.
        where: What the user calls this piece of configuration; the class name by default.
        **options: Passed on to pydantic.

    Raises:
        ConfigurationError: One line a mistake, with its key, the rule, the value and, for an unknown
            key, the likely intended name.
    """
    try:
        return _validate(model, data, options)
    except ValidationError as error:
        raise ConfigurationError(where or model.__name__, _all_mistakes(model, data, options, error)) from None


def _validate(model: type[T], data: Any, options: dict[str, Any]) -> T:
    # Settings overrides `model_validate`, so pydantic's own is reached through its base class.
    return BaseModel.model_validate.__func__(model, data, **options)  # type: ignore[attr-defined, no-any-return]


def _all_mistakes(model: type[BaseModel], data: Any, options: dict[str, Any], error: ValidationError) -> list[str]:
    """The mistakes in `data`, also those in rules on several keys.

    Pydantic tests such a rule only when each of its keys is right. So what is wrong is taken out, and the rest is
    tried again, until nothing new is found.
    """
    found: list[str] = []
    removed: set[str] = set()
    unsettled: set[str] = set()  # names whose right value is not known, so that rules on them say nothing
    rest = _copied(data)
    while True:
        is_changed = False
        for detail in error.errors(include_url=False):
            location = _locate(model, detail, rest)
            key = ".".join(location.keys)
            if detail["type"] == "missing" and key in removed:
                continue
            if detail["type"] == "value_error" and unsettled & set(re.findall(r"\w+", detail["msg"])):
                continue
            mistake = _describe(detail, location)
            found += [] if mistake in found else [mistake]
            if _take_out(rest, location.keys):
                removed.add(key)
                is_changed = True
                intended = [name for name in location.siblings if f"'{name}'" in mistake.rpartition("Did you mean")[2]]
                unsettled |= {location.keys[-1], *intended} - _keys_at(rest, location.keys[:-1])
        if not is_changed:
            return found
        try:
            _validate(model, rest, options)
        except ValidationError as next_error:
            error = next_error
        else:
            return found


def _copied(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list | tuple) else data


def _keys_at(data: Any, path: list[str]) -> set[str]:
    for key in path:
        data = data[int(key)] if isinstance(data, list) else data.get(key) if isinstance(data, dict) else None
    return set(data) if isinstance(data, dict) else set()


def _take_out(data: Any, keys: list[str]) -> bool:
    """Removes the value at `keys`; whether it was there. One of a list stays, since others would move."""
    for key in keys[:-1]:
        data = data[int(key)] if isinstance(data, list) else data.get(key) if isinstance(data, dict) else None
    return bool(keys) and isinstance(data, dict) and data.pop(keys[-1], None) is not None


def closest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the known name most like `name`, or an empty string."""
    names = list(known)
    likely = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    likely = likely or [longer for longer in names if len(name) > 3 and longer.startswith(name)]
    return f" Did you mean '{likely[0]}'?" if likely else ""


@dataclass
class _Location:
    """Where a mistake is: the keys that the user wrote, and all keys accepted beside the last of them."""

    keys: list[str]
    siblings: list[str]


def _describe(detail: ErrorDetails, location: _Location) -> str:
    key = ".".join(location.keys) or "(the whole)"
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key (its value is {_short(value)}).{closest(location.keys[-1], location.siblings)}"
    if kind == "missing":
        return f"{key}: this key is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag_key = f"{key}.{str(context['discriminator']).strip(chr(39))}"
        if kind == "union_tag_not_found":
            return f"{tag_key}: this key is required" if isinstance(value, Mapping) else _wrong_form(key, value)
        return _not_one_of(tag_key, context["tag"], str(context["expected_tags"]))
    if kind == "literal_error":
        return _not_one_of(key, value, str(context["expected"]))
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error":  # written by our own validators, which name the value themselves
        return f"{key}: {message}" if location.keys else message
    return f"{key}: {message}, but got {_short(value)}"


def _not_one_of(key: str, value: Any, expected: str) -> str:
    names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
    return f"{key}: must be one of {', '.join(names)}, but got {value!r}.{closest(str(value), names)}"


def _wrong_form(key: str, value: Any) -> str:
    return f"{key}: should be a mapping of keys to values, but got {_short(value)}"


def _locate(model: type[BaseModel], detail: ErrorDetails, data: Any) -> _Location:
    """Translates pydantic's location, which also names what the user never wrote.

    That is the branch taken in a union, the index in a list that was made of a single value, and the key under
    which a list was put.
    """
    keys: list[str] = []
    members: list[type[BaseModel]] = [model]
    *parents, last = detail["loc"] or ("",)
    for part in parents:
        if isinstance(part, int):
            if isinstance(data, list | tuple):
                keys.append(str(part))
                data = data[part]
            continue
        fields = [field for member in members if (field := _field(member, part)) is not None]
        if fields:
            members = [nested for field in fields for nested in _models_in(field.annotation)]
            if not isinstance(data, list | tuple):  # else a mapping was made of the user's list
                keys.append(part)
                data = data.get(part) if isinstance(data, Mapping) else None
        else:
            members = [member for member in members if _has_tag(member, part)] or members
    siblings = [field.alias or name for member in members for name, field in member.model_fields.items()]
    is_written = detail["loc"] and not (isinstance(last, int) and not isinstance(data, list | tuple))
    is_tag = isinstance(last, str) and last not in siblings and any(_has_tag(member, last) for member in members)
    if is_written and not (is_tag and detail["type"] != "extra_forbidden"):
        keys.append(str(last))
    return _Location(keys, siblings)


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    fields = model.model_fields.items()
    return next((field for name, field in fields if key in (name, field.alias)), None)


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(tag in map(str, get_args(field.annotation)) for field in model.model_fields.values())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(str, value)) or '(none)'}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
