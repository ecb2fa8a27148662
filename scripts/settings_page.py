"""Writes docs/reference/settings.md: every setting with its allowed values, its default and its meaning.

Types come from the JSON Schema of the settings, defaults from their classes, and meanings from the docstrings.

    python -m scripts.settings_page
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from griffe import Docstring, DocstringSectionAttributes, DocstringSectionText
from pydantic.fields import FieldInfo

from kedro_aat.config import AatSettings
from kedro_aat.imports import Imported
from kedro_aat.validated import Settings

PAGE = Path(__file__).parents[1] / "docs/reference/settings.md"
HEAD = """# Settings

<!-- Written by `python -m scripts.settings_page`, which `make docs` runs. Change the docstrings of the settings. -->

These are the parameters below `aat`, in `conf/base/parameters_aat.yml` of a project. A key that is left out has its
default. An unknown key or a value that is not allowed is an error before anything is trained, which lists all mistakes.
`kedro aat schema FILE` writes the same as JSON Schema, for editors. [Scopes](scopes.md) name layers.

A default of *(required)* has to be written. *the defaults below* are those of the section that the allowed values
lead to. An *import path*, such as `torch.nn.L1Loss`, may name a class or function of your own; with arguments, it is
`{ class_path: ..., init_args: { ... } }`, as [below](#import-paths-with-arguments).
"""
_Schema = Mapping[str, Any]


def page() -> str:
    """Returns the text of the page."""
    definitions = {"AatSettings": AatSettings.model_json_schema()}
    definitions |= definitions["AatSettings"]["$defs"]
    places = _places()
    parts = [_section(model, paths, definitions[model.__name__], places) for model, paths in places.items()]
    return "\n".join([HEAD, *parts])


def _places() -> dict[type[Settings], list[str]]:
    """All classes of settings, each with the keys below which it stands, and what a class holds after the class."""
    places: dict[type[Settings], list[str]] = {}

    def visit(model: type[Settings], path: str) -> None:
        if model in places:
            if path not in places[model]:
                places[model].append(path)
            return
        places[model] = [path]
        for key, field in _fields(model).items():
            for nested in _models_in(field.annotation):
                visit(nested, f"{path}.{key}")

    visit(AatSettings, "aat")
    imported = places.pop(Imported)  # it stands below many keys, and comes last
    return places | {Imported: imported}


def _fields(model: type[Settings]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _section(
    model: type[Settings], paths: list[str], schema: _Schema, places: Mapping[type[Settings], list[str]]
) -> str:
    """Heading, introduction and table of one class."""
    lines = [f"## {_heading(model, paths[0])}", ""]
    introduction, meanings = _described(model)
    lines += [introduction, ""]
    if len(paths) > 1 and model is not Imported:
        lines += [f"Also below {', '.join(f'`{path}`' for path in paths[1:])}.", ""]
    lines += ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in _fields(model).items():
        allowed = _allowed(schema["properties"][key], places)
        meaning = "Chooses this section." if _is_tag(field) else meanings.get(key) or meanings.get(f"{key}_")
        if meaning is None:
            raise ValueError(f"{model.__name__}.{key} has no entry below `Attributes:` in a docstring")
        path = key if model is Imported else f"{paths[0]}.{key}"
        lines.append(f"| `{path}` | {allowed} | {_default(field)} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _heading(model: type[Settings], path: str) -> str:
    if model is Imported:
        return "Import paths with arguments"
    tag = next((f" with `{key}: {field.default}`" for key, field in _fields(model).items() if _is_tag(field)), "")
    return f"`{path}`{tag}"


def _link(text: str, model: type[Settings], places: Mapping[type[Settings], list[str]]) -> str:
    """A link to the section of a class, by the id that MkDocs and others make of its heading."""
    anchor = re.sub(r"[^\w -]", "", _heading(model, places[model][0])).lower().replace(" ", "-")
    return f"[{text}](#{anchor})"


def _described(model: type[Settings]) -> tuple[str, dict[str, str]]:
    """What the docstring says of a class, and of its fields, those of its base classes included."""
    introduction = ""
    meanings: dict[str, str] = {}
    for base in reversed([each for each in model.__mro__ if issubclass(each, Settings) and each is not Settings]):
        for section in Docstring(inspect.cleandoc(base.__doc__ or "")).parse("google", warnings=False):
            if isinstance(section, DocstringSectionAttributes):
                meanings |= {attribute.name: attribute.description for attribute in section.value}
            elif isinstance(section, DocstringSectionText):
                introduction = section.value
    return _as_yaml_says(introduction), {name: _as_yaml_says(text) for name, text in meanings.items()}


def _as_yaml_says(text: str) -> str:
    return re.sub(r"\bNone\b", "`null`", text)


def _cell(text: str) -> str:
    """Paragraphs and lists in one cell of a table."""
    paragraphs = re.split(r"\n\n|\n(?=- )", text.strip())
    return (
        "<br>".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        .replace("|", "\\|")
        .replace("<br>- ", "<br>• ")
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*(required)*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Imported):
        value = value.model_dump(exclude_defaults=True) if value.init_args else value.class_path
    if isinstance(value, Settings):
        value = value.identity()
        if not value:
            return "*the defaults below*"
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=1000, sort_keys=False)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _allowed(schema: _Schema, places: Mapping[type[Settings], list[str]]) -> str:
    """The allowed values of a key, in words."""
    if "$ref" in schema:
        return _linked(schema["$ref"].rpartition("/")[2], places)
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        words = [_allowed(each, places) for each in alternatives]
        return (
            " or ".join(words)
            if len(words) == 2 and "," not in words[0]
            else f"{', '.join(words[:-1])}, or {words[-1]}"
        )
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "null":
            return "`null`"
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number" as kind:
            return f"{'a whole number' if kind == 'integer' else 'a number'}{_range(schema)}"
        case "string":
            return "text"
        case "array":
            if items := schema.get("prefixItems"):
                return f"a list of {len(items)}: {', '.join(_allowed(item, places) for item in items)}"
            least = f" of at least {schema['minItems']}" if schema.get("minItems") else ""
            return f"a list{least}, each {_allowed(schema['items'], places)}"
        case "object":
            values = schema.get("additionalProperties")
            return "a mapping" + (f" to {_allowed(values, places)}" if isinstance(values, Mapping) else "")
    return "anything"


def _range(schema: _Schema) -> str:
    """The limits of a number: an interval if there are two."""
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    opening, closing = "[" if low is None else "(", "]" if high is None else ")"
    low, high = schema.get("minimum", low), schema.get("maximum", high)
    if low is not None and high is not None:
        return f" in {opening}{_number(low)}, {_number(high)}{closing}"
    if low is None:
        return ""
    return f" {'of at least' if opening == '[' else 'above'} {_number(low)}"


def _number(limit: float) -> str:
    if limit == 2**63:
        return "2^63"
    return f"{limit:,.0f}" if limit < 1e15 and limit == round(limit) else f"{limit:g}"


def _linked(name: str, places: Mapping[type[Settings], list[str]]) -> str:
    model = next(each for each in places if each.__name__ == name)
    if model is Imported:
        return f"an {_link('import path', model, places)}"
    tag = next((f"`{field.default}`" for field in _fields(model).values() if _is_tag(field)), "keys")
    return _link(tag, model, places)


def _is_tag(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is typing.Literal and len(typing.get_args(field.annotation)) == 1


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
