"""The base of all settings: frozen, strict about keys, and one error that lists every mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
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
        # Settings overrides `model_validate`, so pydantic's own is reached through its base class.
        return BaseModel.model_validate.__func__(model, data, **options)  # type: ignore[attr-defined, no-any-return]
    except ValidationError as error:
        mistakes = [_describe(model, detail) for detail in error.errors(include_url=False)]
        raise ConfigurationError(where or model.__name__, mistakes) from None


def closest(name: str, known: Iterator[str] | list[str]) -> str:
    """`" Did you mean 'x'?"` for the known name most like `name`, or an empty string."""
    likely = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{likely[0]}'?" if likely else ""


def _describe(model: type[BaseModel], detail: ErrorDetails) -> str:
    path, siblings = _locate(model, detail)
    key = ".".join(path) or "(the whole)"
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key.{closest(path[-1], siblings)}"
    if kind == "missing":
        return f"{key}: this key is required"
    if kind in ("union_tag_invalid", "literal_error"):
        context = detail.get("ctx", {})
        expected = str(context.get("expected_tags") or context.get("expected", ""))
        names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
        if kind == "union_tag_invalid":
            tag_key = str(context["discriminator"]).strip("'")
            key, value = f"{key}.{tag_key}", context["tag"]
        return f"{key}: must be one of {', '.join(names)}, but got {value!r}.{closest(str(value), names)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error":  # written by our own validators, which name the value themselves
        return f"{key}: {message}" if path else message
    return f"{key}: {message}, but got {_short(value)}"


def _locate(model: type[BaseModel], detail: ErrorDetails) -> tuple[list[str], list[str]]:
    """The keys that lead to a mistake, and all keys that are accepted beside the last of them.

    Pydantic's location also names the branch taken in a union, which the user never wrote.
    """
    path: list[str] = []
    members, siblings = [model], list[str]()
    *parents, last = detail["loc"] or ("",)
    for part in parents:
        nested: list[type[BaseModel]] = []
        known = False
        for member in members:
            if (field := _field(member, str(part))) is not None:
                known = True
                nested += _models_in(field.annotation)
        if known or isinstance(part, int):
            path.append(str(part))
        elif tagged := [member for member in members if _has_tag(member, str(part))]:
            members = tagged
        members = nested if known else members
    for member in members:
        siblings += [field.alias or name for name, field in member.model_fields.items()]
    return [*path, str(last)] if detail["loc"] else [], siblings


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
