"""Random data that are valid by a JSON Schema of pydantic."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

_TEXTS = ("a", "head", "stem.0", "{re}.*conv.*", "*", "torch.optim.SGD", "", "日本", "${x}")
# The share of optional keys that are given.
_GIVEN = 0.4


def example_of(schema: Mapping[str, Any], rng: random.Random, known: Mapping[str, Any] | None = None) -> Any:
    """Draws an example.

    Args:
        schema: The schema, or a part of it.
        rng: Chooses the example.
        known: What `$ref` may name; by default, the definitions in `schema`.
    """
    known = schema.get("$defs", {}) if known is None else known
    if "$ref" in schema:
        return example_of(known[schema["$ref"].rpartition("/")[2]], rng, known)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if (options := schema.get("anyOf") or schema.get("oneOf")) is not None:
        return example_of(rng.choice(options), rng, known)
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, rng, known)
    if kind == "array":
        items = schema.get("items", {})
        if prefix := schema.get("prefixItems"):
            return [example_of(item, rng, known) for item in prefix]
        number = rng.choice((0, 1, 1, 2, 3))
        number = min(max(number, schema.get("minItems", 0)), schema.get("maxItems", number + 1))
        return [example_of(items, rng, known) for _ in range(number)]
    if kind in ("integer", "number"):
        return _number(schema, rng)
    plain: dict[str | None, tuple[Any, ...]] = {
        "string": _TEXTS,
        "boolean": (True, False),
        "null": (None,),
        None: (1, "a", None, [], {}),
    }
    return copy.deepcopy(rng.choice(plain[kind]))


def _object(schema: Mapping[str, Any], rng: random.Random, known: Mapping[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    # Pydantic gives the tag of a union a default, but a user has to write it.
    made = {
        key: example_of(part, rng, known)
        for key, part in schema.get("properties", {}).items()
        if key in required or "const" in part or rng.random() < _GIVEN
    }
    if isinstance(others := schema.get("additionalProperties"), Mapping):
        made |= {rng.choice(("1", "8", "lr")): example_of(others, rng, known) for _ in range(rng.choice((0, 0, 1, 2)))}
    return made


def _number(schema: Mapping[str, Any], rng: random.Random) -> float:
    is_whole = schema["type"] == "integer"
    smallest = 1 if is_whole else 1e-9  # distance to an exclusive limit
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", -1000) + smallest)
    highest = schema.get("maximum", schema.get("exclusiveMaximum", max(1000, lowest + 1000)) - smallest)
    value = rng.choice((lowest, highest, rng.uniform(lowest, highest), rng.uniform(lowest, min(highest, lowest + 5))))
    return round(value) if is_whole else value
