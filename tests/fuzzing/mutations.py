"""Changes that make valid data odd: to plain data, to their JSON text, and to the bytes of any file."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

_TEXTS = (
    *("", " ", "\0", "\ud800", "\n", "Ü", "日本", "a" * 10_000, "NaN", "null", "1e400", "0x10", "true", "-0"),
    *("${seed}", "${oc.env:HOME}", "${", "}", r"\${x}", "$${x}", "{re}(", "{re}(a|aa)+$", "*", "[", "**/x"),
    *("../..", "/dev/null", "s3://bucket/key", "~", ".", "torch", "torch.nn", "torch.nn.", ".nn", "a..b", "os.path"),
    *("torch.nn.Linear", "torch.nn.ReLU", "builtins.print", "kedro_aat.config.AatSettings", "cuda:99", "meta", "2:4"),
    *("filter_pruning", "quantization", "frontier", "interpolate", "step", "auto", "within_budget", "certified"),
)
_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 100, 2**31, 2**63, 2**64, 10**30, 10**400, -(2**63) - 1),
    *(0.0, -0.0, 0.5, 1.0, 0.999999, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)


def nested(levels: int, inner: Any = None) -> Any:
    """Lists in mappings in lists."""
    for level in range(levels):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


def _containers(rng: random.Random) -> Any:
    return rng.choice(
        (
            lambda: [],
            lambda: {},
            lambda: [[]],
            lambda: [None],
            lambda: {"": 0},
            lambda: {"\0": {"\ud800": 1}},
            lambda: nested(rng.choice((90, 120, 254, 255, 256))),
            lambda: [rng.choice(_NUMBERS)] * rng.choice((2, 30, 1000)),
            lambda: {"class_path": rng.choice(_TEXTS), "init_args": {rng.choice(_TEXTS): rng.choice(_NUMBERS)}},
            lambda: {"kind": rng.choice(_TEXTS)},
            lambda: {"algorithm": rng.choice(_TEXTS)},
        )
    )()


def odd_value(rng: random.Random) -> Any:
    """A value that somebody could have written, though nobody should have."""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice((None, True, False))
    if kind < 0.5:
        return rng.choice(_NUMBERS)
    if kind < 0.8:
        return rng.choice(_TEXTS)
    return _containers(rng)


def mutated(data: Any, rng: random.Random, *, odd: Callable[[random.Random], Any] = odd_value) -> Any:
    """Copies plain data, and changes the copy in one to four places.

    Args:
        data: Mappings, lists, numbers, texts and None.
        rng: Chooses the changes.
        odd: Makes a new value.
    """
    holder: dict[str, Any] = {"": copy.deepcopy(data)}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        whole, *inner = _places(holder)
        container, key = rng.choice(inner) if inner and rng.random() > 0.02 else whole
        _change(container, key, rng, odd)
        holder = {"": next(iter(holder.values()), None)}  # the whole may have been removed or renamed
    return holder[""]


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key in range(len(data)) if isinstance(data, list) else list(data):
        yield data, key
        if isinstance(data[key], dict | list) and data[key]:
            yield from _places(data[key])


def _change(container: Any, key: Any, rng: random.Random, odd: Callable[[random.Random], Any]) -> None:
    value = container[key]
    changes = ("replace", "replace", "adjust", "adjust", "adjust", "remove", "rename", "add", "wrap", "repeat")
    change = rng.choice(changes)
    if change == "adjust" and isinstance(value, int | float):
        extreme = rng.choice((-1, 10**9, 10**30, 10**400) if isinstance(value, int) else (1e300, -1e300, 1e-300))
        container[key] = rng.choice((0, -value, value + 1, value * 1000, value // 2, "7", extreme, extreme))
    elif change == "adjust" and isinstance(value, str) and value:
        container[key] = rng.choice((value.upper(), value[:-1], f" {value}", value + rng.choice(_TEXTS), value * 2))
    elif change == "remove":
        del container[key]
    elif change == "rename" and isinstance(container, dict) and isinstance(key, str):
        container[rng.choice((key.upper(), key[:-1], key + "s", f"{key} ", rng.choice(_TEXTS)))] = container.pop(key)
    elif change == "add" and isinstance(value, dict):
        value[rng.choice(_TEXTS)] = odd(rng)
    elif change == "add" and isinstance(value, list):
        value.insert(rng.randint(0, len(value)), odd(rng))
    elif change == "wrap":
        container[key] = rng.choice(([value], {"": value}, [value, value]))
    elif change == "repeat" and isinstance(value, list):
        container[key] = value * rng.choice((2, 100))
    else:
        container[key] = odd(rng)


def odd_key_or_value(rng: random.Random) -> Any:
    """As `odd_value`, and what Python code and YAML can contain but JSON cannot."""
    others = (lambda: 10**5000, lambda: {1: 2}, lambda: {None: 1}, lambda: {(1, 2): 3}, lambda: [0] * 16_000, object)
    return rng.choice(others)() if rng.random() < 0.1 else odd_value(rng)


def json_text(data: Any, rng: random.Random, *, levels: int = 100_000) -> bytes:
    """Data as JSON with up to one mistake in the text, such as a key that occurs twice.

    Args:
        data: Plain data.
        rng: Chooses the mistake.
        levels: Number of brackets, for the mistake of too many.
    """
    text = json.dumps(data, indent=rng.choice((None, 1)))
    mistake = rng.random()
    if mistake < 0.1:
        markers = ("1" + 5000 * "0", "1e400", levels * "[" + levels * "]")
        numbers = list(re.finditer(r"(?<=[:\[ ])-?\d[\d.e+-]*(?=[,\n\]}])", text))
        if numbers:
            number = rng.choice(numbers)
            text = text[: number.start()] + rng.choice(markers) + text[number.end() :]
    elif mistake < 0.2:
        lines = text.splitlines(keepends=True)
        where = rng.randrange(len(lines))
        text = "".join([*lines[:where], lines[where], *lines[where:]])
    elif mistake < 0.25:
        text = rng.choice(("\ufeff", "[", "// comment\n")) + text
    elif mistake < 0.3:
        return text.encode(rng.choice(("utf-16", "utf-8-sig")))
    return text.encode()


def damaged(contents: bytes, rng: random.Random) -> bytes:
    """Changes the bytes of a file, as a full disk, a bad download or a bad disk would."""
    if not contents:
        return rng.randbytes(8)
    start = rng.randrange(len(contents))
    stop = min(len(contents), start + rng.choice((1, 8, 100, 4096)))
    kind = rng.choice(("truncate", "flip", "flip", "zero", "cut", "insert", "repeat", "empty", "noise"))
    if kind == "flip":
        changed = bytearray(contents)
        for _ in range(rng.choice((1, 1, 8))):
            # Headers, where most formats say how long everything is, are at one of the ends.
            end = min(len(contents), rng.choice((16, 256, len(contents))))
            changed[rng.choice((1, -1)) * rng.randrange(end)] ^= 1 << rng.randrange(8)
        return bytes(changed)
    parts = {
        "truncate": (contents[:start],),
        "zero": (contents[:start], bytes(stop - start), contents[stop:]),
        "cut": (contents[:start], contents[stop:]),
        "insert": (contents[:start], rng.randbytes(stop - start), contents[start:]),
        "repeat": (contents[:stop], contents[start:]),
        "noise": (rng.randbytes(rng.choice((1, 100, 10_000))),),
    }
    return b"".join(parts.get(kind, ()))
