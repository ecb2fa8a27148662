"""The base class of all settings: frozen, strict about keys, and with one error that lists every mistake."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kedro_aat.errors import ConfigurationError

# A similarity of difflib, in [0, 1]; its usual threshold for a likely match.
_LIKELY_MATCH = 0.6
# Characters of a value, and keys of a mapping, that a message shows.
_MAX_SHOWN = 60
_MAX_KEYS_SHOWN = 20
# Levels of mappings and lists in settings. With more, `repr`, Python's JSON encoder and (at 255) pydantic's serializer
# give up, each with another error.
_MAX_DEPTH = 100

T = TypeVar("T", bound=BaseModel)
Item = TypeVar("Item")


class Settings(BaseModel):
    """Settings that cannot change, reject unknown keys, and hold only finite numbers."""

    # `protected_namespaces` is emptied because `model` is a natural key for us.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    # Fields on which no result depends, so that they identify no run.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Reads settings from plain data; see `parse`."""
        return parse(cls, obj, **options)

    def identity(self, include: Collection[str] | None = None, *, defaults: bool = False) -> dict[str, Any]:
        """Returns what identifies these settings, as JSON data.

        Settings at their defaults are left out, so that a setting that a later version adds changes nothing. The tag
        of a union (`kind`, `algorithm`) is always there.

        Args:
            include: Names of the fields; None for all.
            defaults: Whether settings at their defaults are included too.
        """
        dumped = self.model_dump(mode="json", include=None if include is None else set(include))
        return {
            name: _identity_of(getattr(self, name), dumped[name], defaults)
            for name, field in type(self).model_fields.items()
            if name in dumped
            and name not in self.WITHOUT_EFFECT
            and (defaults or _is_tag(field) or getattr(self, name) != field.get_default(call_default_factory=True))
        }

    def lookup_mistakes(self, key: str) -> list[str]:
        """Lists mistakes that show only when what the settings name is looked up, such as a wrong import path.

        Args:
            key: Key of these settings, for example `aat.training`.
        """
        nested = ((name, getattr(self, name)) for name in type(self).model_fields)
        return [
            mistake
            for name, value in nested
            if isinstance(value, Settings)
            for mistake in value.lookup_mistakes(f"{key}.{name}")
        ]


def _identity_of(value: Any, dumped: Any, defaults: bool) -> Any:
    if isinstance(value, Settings):
        return value.identity(defaults=defaults)
    if isinstance(value, list | tuple):
        return [_identity_of(item, plain, defaults) for item, plain in zip(value, dumped, strict=True)]
    return dumped


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def parse(model: type[T], data: Any, *, where: str | None = None, **options: Any) -> T:
    """Builds `model` from `data`, or lists every mistake in one error.

    Args:
        model: The settings class.
        data: Plain data (a mapping read from YAML or JSON), or an instance of `model`.
        where: What the user calls this piece of configuration; the class name by default.
        **options: Passed on to pydantic.

    Raises:
        ConfigurationError: One line per mistake, with its key, the rule, the value and, for an unknown
            key, the likely intended name.
    """
    where = where or model.__name__
    if _nests_too_deeply(data):
        raise ConfigurationError(where, [f"mappings and lists must be nested at most {_MAX_DEPTH} levels deep"])
    try:
        return _validate(model, data, options)
    except ValidationError as error:
        raise ConfigurationError(where, _all_mistakes(model, data, options, error)) from None
    except UnicodeEncodeError as error:  # pydantic takes no message of a validator with a lone surrogate
        raise ConfigurationError(where, [str(error.object)]) from None


def _nests_too_deeply(data: Any) -> bool:
    """Whether plain data have more than `_MAX_DEPTH` levels; walks them level by level, without recursion."""
    level = [data]
    for _ in range(_MAX_DEPTH):
        containers = [value for value in level if isinstance(value, Mapping | list | tuple)]
        level = [part for value in containers for part in (value.values() if isinstance(value, Mapping) else value)]
        if not level:
            return False
    return any(isinstance(value, Mapping | list | tuple) for value in level)


def _validate(model: type[T], data: Any, options: dict[str, Any]) -> T:
    # Settings overrides `model_validate`, so pydantic's own is reached through its base class.
    return BaseModel.model_validate.__func__(model, data, **options)  # type: ignore[attr-defined, no-any-return]


def _all_mistakes(model: type[BaseModel], data: Any, options: dict[str, Any], error: ValidationError) -> list[str]:
    """Describes the mistakes in `data`, including broken rules that combine several keys.

    Pydantic checks such a rule (a model validator) only if each key is valid by itself. So the valid keys are
    validated again without the others, once per level of nested rules.
    """
    mistakes: dict[str, None] = {}  # a set that keeps the order
    wrong: set[tuple[str, ...]] = set()  # paths of the keys that are left out
    doubtful: set[str] = set()  # keys whose intended value is unknown: a rule that names one says nothing
    while True:
        num_wrong = len(wrong)
        for detail in error.errors(include_url=False):
            # What is missing now was left out, and wrong items of lists are still there.
            if num_wrong and (detail["type"] != "value_error" or doubtful & set(re.findall(r"\w+", detail["msg"]))):
                continue
            location = _locate(model, detail, data)
            mistakes[_describe(detail, location)] = None
            wrong.add(tuple(location.keys))
            doubtful |= location.doubtful
        if len(wrong) == num_wrong:
            return list(mistakes)
        try:
            _validate(model, _without(wrong, data), options)
        except ValidationError as next_error:
            error = next_error
        else:
            return list(mistakes)


def _without(wrong: set[tuple[str, ...]], data: Any, path: tuple[str, ...] = ()) -> Any:
    """Copies `data` without the keys at the paths in `wrong`; wrong items of lists stay, since others would move."""
    if isinstance(data, Mapping):
        items = ((key, value, (*path, str(key))) for key, value in data.items())
        return {key: _without(wrong, value, below) for key, value, below in items if below not in wrong}
    if isinstance(data, list | tuple):
        return [_without(wrong, value, (*path, str(index))) for index, value in enumerate(data)]
    return data


def closest(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` with the known name most like `name`, or an empty string."""
    likely = _closest_name(name, known)
    return f" Did you mean '{likely}'?" if likely else ""


def each_once(values: Sequence[Item] | None) -> Sequence[Item] | None:
    """Returns what a list names, if it names nothing several times.

    Raises:
        ValueError: If it does.
    """
    for value in values or ():
        if (count := sum(other == value for other in values or ())) > 1:
            raise ValueError(f"names {value} {count} times; name it once")
    return values


def _closest_name(name: str, known: Iterable[str]) -> str | None:
    names = list(known)
    likely = difflib.get_close_matches(name, names, n=1, cutoff=_LIKELY_MATCH)
    likely = likely or [longer for longer in names if len(name) > 3 and longer.startswith(name)]
    return likely[0] if likely else None


@dataclass
class _Location:
    """Where a mistake is.

    Attributes:
        keys: The path that the user wrote.
        siblings: All keys accepted beside the last one of the path.
        doubtful: Keys whose intended value the mistake leaves unknown.
    """

    keys: list[str]
    siblings: list[str]
    doubtful: set[str]


def _describe(detail: ErrorDetails, location: _Location) -> str:
    key = ".".join(map(_printable, location.keys)) or "(the whole)"
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key (its value is {_short(value)}).{closest(location.keys[-1], location.siblings)}"
    if kind == "missing":
        return f"{key}: this key is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag_key = f"{key}.{str(context['discriminator']).strip(chr(39))}"
        if kind == "union_tag_invalid":
            return _not_one_of(tag_key, context["tag"], str(context["expected_tags"]))
        if isinstance(value, Mapping):
            return f"{tag_key}: this key is required"
        return f"{key}: should be a mapping of keys to values, but got {_short(value)}"
    if kind == "literal_error":
        return _not_one_of(key, value, str(context["expected"]))
    if kind in ("tuple_type", "list_type"):
        return f"{key}: should be a list, but got {_short(value)}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"{key}: should be a mapping of keys to values, but got {_short(value)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error":  # raised by our own validators, whose messages include the value
        return f"{key}: {message}" if location.keys else message
    return f"{key}: {message}, but got {_short(value)}"


def _not_one_of(key: str, value: Any, expected: str) -> str:
    names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
    likely = closest(value, names) if isinstance(value, str) else ""
    return f"{key}: must be one of {', '.join(names)}, but got {_short(value)}.{likely}"


def _locate(model: type[BaseModel], detail: ErrorDetails, data: Any) -> _Location:
    """Translates pydantic's location, which includes parts that the user never wrote.

    These are the branch taken in a union, the index in a list that was made of a single value, and the key under
    which a list was put.
    """
    keys: list[str] = []
    members: list[type[BaseModel]] = [model]
    branches: set[str] = set()  # of the last field, if it is a union with named ones
    *parents, last = detail["loc"] or ("",)
    for part in parents:
        if isinstance(part, int):
            if isinstance(data, list | tuple):
                keys.append(str(part))
                data = data[part]
            continue
        fields = [field for member in members if (field := _fields(member).get(part)) is not None]
        if fields:
            members = [nested for field in fields for nested in _models_in(field.annotation)]
            branches = {branch for field in fields for branch in _branches_of(field.annotation)}
            if not isinstance(data, list | tuple):  # else a mapping was made of the user's list
                keys.append(part)
                data = data.get(part) if isinstance(data, Mapping) else None
        else:
            members = [member for member in members if part in _tags(member)] or members
    siblings = [name for member in members for name in _field_names(member)]
    is_unknown = detail["type"] == "extra_forbidden"
    is_index = isinstance(last, int) and not isinstance(data, list | tuple)
    is_tag = last not in siblings and any(str(last) in names for names in (branches, *map(_tags, members)))
    if detail["loc"] and not is_index and (is_unknown or not is_tag):
        keys.append(str(last))
    likely = _closest_name(str(last), siblings) if is_unknown else None
    is_free = not (isinstance(data, Mapping) and likely in data)
    doubtful = {name for name in (last, likely if is_free else None) if isinstance(name, str)}
    return _Location(keys, siblings, doubtful)


# What follows is cached, because thousands of items of one list can be wrong.
@functools.cache
def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by their names and aliases."""
    fields = model.model_fields.items()
    return {key: field for name, field in fields for key in (name, field.alias) if key is not None}


@functools.cache
def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


@functools.cache
def _tags(model: type[BaseModel]) -> set[str]:
    return {str(tag) for field in model.model_fields.values() for tag in get_args(field.annotation)}


def _branches_of(annotation: Any) -> Iterator[str]:
    """Names that a union gives its branches by `Tag`."""
    for argument in get_args(annotation):
        if isinstance(argument, Tag):
            yield argument.tag
        yield from _branches_of(argument)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _short(value: Any) -> str:
    """Shows a value in a message, however large it is."""
    if isinstance(value, Mapping):
        keys = [*map(_printable, map(str, itertools.islice(value, _MAX_KEYS_SHOWN)))]
        return f"a mapping with the keys {', '.join(keys + ['...'] * (len(value) > len(keys))) or '(none)'}"
    try:
        text = _BOUNDED.repr(value)
    except ValueError:  # Python writes no numbers of more than 4300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return _cut(text)


def _printable(key: str) -> str:
    """Shows a key in a message; others' keys may contain anything, and what is no text in UTF-8 cannot be printed."""
    return _cut(key if key.isprintable() else repr(key))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


# `repr` of a list of 16,000 wrong items, once for each of them, would take minutes.
_BOUNDED = reprlib.Repr()
_BOUNDED.maxlevel = _MAX_DEPTH
_BOUNDED.maxlist = _BOUNDED.maxtuple = _BOUNDED.maxset = _BOUNDED.maxdict = _MAX_SHOWN
_BOUNDED.maxstring = _BOUNDED.maxlong = _BOUNDED.maxother = 4 * _MAX_SHOWN
