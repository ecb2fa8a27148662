"""Which source counts: what the user's objects call, in whatever module of theirs, and no comment."""

from __future__ import annotations

import functools
import importlib
import linecache
import pickle
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.training.fingerprints.sources import sources_of

NET = """
import torch
from torch import nn

class Base(nn.Module):
    def forward(self, x):
        return torch.relu(x)

class Net(Base):
    pass
"""
LOSS = """
from torch import nn
from mine import settings
from mine.helpers import smooth as smoothed

class Loss(nn.Module):
    def forward(self, outputs, targets):
        return smoothed(outputs, targets) * settings.FACTOR

def unrelated():
    return 1
"""
HELPERS = """
import torch
from .constants import *

SCALES = {"small": 0.1}
REGISTRY = {}

def register(name):
    def added(function):
        REGISTRY[name] = function
        return function
    return added

@register("square")
def by_square(x):
    return x ** 2

def smooth(outputs, targets):
    from mine import lazy
    return REGISTRY["square"](outputs) * EPSILON * SCALES["small"] * lazy.late(targets)
"""
FILES = {
    "__init__": "from mine.net import Net\n",
    "net": NET,
    "loss": LOSS,
    "helpers": HELPERS,
    "constants": "EPSILON = 1e-3\n",
    "settings": "import random\nFACTOR = 2\nif random.random() < 2:\n    FACTOR = 3\n",
    "lazy": "def late(x):\n    return x\n",
}

Package = Callable[..., dict[str, str]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Writes the package `mine` with changes, imports it, and returns the hashes of its loss and network."""

    def hashes(**changed: str) -> dict[str, str]:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}" / "mine"
        folder.mkdir(parents=True)
        for name, text in (FILES | changed).items():
            (folder / f"{name}.py").write_text(text)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder.parent)
            net, loss = importlib.import_module("mine.net").Net, importlib.import_module("mine.loss").Loss
            return sources_of([net, loss]).hashes

    yield hashes
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


CHANGES = {
    "base class": ("net", "relu", "sigmoid", "mine.net.Base"),
    "loss": ("loss", "smoothed(", "-smoothed(", "mine.loss.Loss"),
    "constant of a module": ("settings", "FACTOR = 3", "FACTOR = 4", "mine.settings.FACTOR"),
    "helper": ("helpers", "* EPSILON", "+ EPSILON", "mine.helpers.smooth"),
    "registered": ("helpers", "x ** 2", "x ** 3", "mine.helpers.by_square"),
    "decorator": ("helpers", "REGISTRY[name] =", "REGISTRY[name + ''] =", "mine.helpers.register"),
    "dictionary": ("helpers", "0.1", "0.2", "mine.helpers.SCALES"),
    "star": ("constants", "1e-3", "1e-4", "mine.constants.EPSILON"),
    "imported when it is called": ("lazy", "return x", "return -x", "mine.lazy.late"),
    "attribute of a class": ("loss", "def unrelated", "Loss.more = 2\ndef unrelated", "mine.loss.Loss"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_called_counts_in_whatever_module(change: str, package: Package) -> None:
    module, old, new, expected = CHANGES[change]
    before, after = package(), package(**{module: FILES[module].replace(old, new)})
    assert [key for key in before if before[key] != after.get(key)] == [expected]


SAME = {
    "comment": ("helpers", "x ** 2", "x ** 2  # so"),
    "docstring": ("helpers", "def smooth(outputs, targets):", 'def smooth(outputs, targets):\n    """Smooths."""'),
    "layout": ("loss", "(outputs, targets) *", "(\n            outputs, targets\n        ) *"),
    "order": ("helpers", "import torch\n", "import torch\n\n\n\n"),
    "what nothing mentions": ("loss", "return 1", "return 2"),
}


@pytest.mark.parametrize("change", SAME)
def test_what_changes_nothing_does_not_count(change: str, package: Package) -> None:
    module, old, new = SAME[change]
    assert FILES[module].replace(old, new) != FILES[module]
    assert package() == package(**{module: FILES[module].replace(old, new)})


def test_other_packages_count_by_version_and_ours_not_at_all(package: Package) -> None:
    package()
    found = sources_of([MagnitudeSparsityController, nn.Linear, sys.modules["mine.loss"].Loss])
    assert found.packages == {"torch": torch.__version__.partition("+")[0]}
    assert all(path.startswith("mine.") for path in found.hashes)
    assert not sources_of([MagnitudeSparsityController, len, 3, None, nn.Linear(1, 1)]).hashes


def test_a_package_in_site_packages_is_not_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "theirs.py").write_text("__version__ = '1.5+local'\ndef loss(x):\n    return x\n")
    monkeypatch.syspath_prepend(folder)
    found = sources_of([importlib.import_module("theirs").loss])
    assert (found.hashes, found.packages) == ({}, {"theirs": "1.5"})


# --- what has no file -------------------------------------------------------------------------------------------


def cell(number: int, source: str, scope: dict[str, Any], *, has_lines: bool = True) -> None:
    """Runs a cell of a notebook, or with no lines, what was typed into a console."""
    name = f"<cell {number} of {id(scope)}>"
    source = textwrap.dedent(source)
    if has_lines:
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), scope)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    def hashes(*cells: str, has_lines: bool = True) -> dict[str, str]:
        module = ModuleType("a_notebook")
        monkeypatch.setitem(sys.modules, "a_notebook", module)
        for number, source in enumerate(cells):
            cell(number, source, vars(module), has_lines=has_lines)
        return sources_of([vars(module)["Net"], vars(module)["loss"]]).hashes

    return hashes


CELLS = (
    "ALPHA = 0.5",
    "def helper(x):\n    return x * 2",
    "class Net:\n    width = 3\n    def forward(self, x):\n        return helper(x)",
    "def loss(x):\n    return x * ALPHA",
)


@pytest.mark.parametrize("has_lines", [True, False], ids=["notebook", "console"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("0.5", "0.6"), ("x * 2", "x * 3"), ("width = 3", "width = 4"), ("return helper", "return -helper")],
)
def test_notebooks_and_consoles_count(
    has_lines: bool, old: str, new: str, notebook: Callable[..., dict[str, str]]
) -> None:
    before = notebook(*CELLS, has_lines=has_lines)
    assert before == notebook(*CELLS, has_lines=has_lines)
    assert before != notebook(*(each.replace(old, new) for each in CELLS), has_lines=has_lines)


def test_a_comment_in_a_notebook_does_not_count(notebook: Callable[..., dict[str, str]]) -> None:
    assert notebook(*CELLS) == notebook(*CELLS[:3], CELLS[3] + "  # so")


# --- callables of all kinds -------------------------------------------------------------------------------------


def scaled(x: float, factor: float = 1) -> float:
    return x * factor


def make(factor: object) -> Callable[..., Any]:
    return lambda x: x * factor


def counting() -> Callable[[], int]:
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return count

    return step


class Called:
    def __call__(self, x: float) -> float:
        return scaled(x)

    def method(self, x: float) -> float:
        return x


@functools.cache
def cached(x: float) -> float:
    return scaled(x)


HERE = __name__
KINDS: dict[str, tuple[Any, str]] = {
    "function": (scaled, "scaled"),
    "partial": (functools.partial(scaled, factor=2), "scaled(...)"),
    "lambda": (lambda x: x, "<lambda>"),
    "closure": (make(2), "make.<locals>.<lambda>(...)"),
    "closure over a function": (make(scaled), "scaled"),
    "closure over an object": (make(Called()), "Called"),
    "callable object": (Called(), "Called"),
    "what it calls": (Called(), "scaled"),
    "method": (Called().method, "Called"),
    "decorated": (cached, "scaled"),
    "pickled": (pickle.loads(pickle.dumps(scaled)), "scaled"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_callables_of_all_kinds(kind: str) -> None:
    thing, expected = KINDS[kind]
    assert f"{HERE}.{expected}" in sources_of([thing]).hashes


def test_values_that_a_function_is_given_count() -> None:
    given = [functools.partial(scaled, factor=2), functools.partial(scaled, factor=3), make(2), make(3)]
    assert len({str(sources_of([each]).hashes) for each in given}) == 4


def test_values_that_change_while_a_function_runs_do_not_count() -> None:
    step = counting()
    before = sources_of([step])
    step()
    assert sources_of([step]) == before


class Odd:
    """Says that it has every attribute."""

    def __getattr__(self, name: str) -> Odd:
        return self

    def __call__(self) -> None: ...


class Lazy(dict[str, Any]):
    """Loads what it names when it is asked for its values, as the registries of Hugging Face do."""

    def values(self) -> Any:
        raise ValueError("could not be found")


def test_odd_objects_are_no_error() -> None:
    recursive: list[Any] = []
    recursive.append(recursive)
    made = type("Made", (nn.Module,), {"width": 3, "forward": lambda self, x: x})
    empty: Any = None

    def unbound() -> Any:
        return later

    hashes = sources_of(
        [Odd(), recursive, Lazy(scaled=scaled), made, print, "".join, empty, torch.jit.script(nn.Linear(1, 1)), unbound]
    ).hashes
    assert {f"{HERE}.Made", f"{HERE}.scaled"} <= hashes.keys()
    later = 1
    assert later


def test_a_project_of_thousands_of_lines_takes_milliseconds(package: Package) -> None:
    many = "".join(
        f"def function_{i}(x):\n    y = x + {i}\n    return function_{i - 1 if i else 0}(y)\n\n" for i in range(500)
    )
    package(helpers=HELPERS.replace("def smooth", f"{many}\ndef smooth").replace('REGISTRY["square"]', "function_499"))
    loss = sys.modules["mine.loss"].Loss
    assert len(sources_of([loss]).hashes) > 500
    started = time.perf_counter()
    sources_of([loss])
    assert time.perf_counter() - started < 0.5  # 0.01 s on an idle machine


class _Attributes:
    """An object whose missing attributes are no AttributeError, such as a namespace of settings."""

    def __getattr__(self, name: str) -> object:
        raise KeyError(name)

    def __call__(self, value: float) -> float:
        return value


def test_an_object_with_attributes_of_its_own_kind_is_followed() -> None:
    assert any("_Attributes" in path for path in sources_of([_Attributes()]).hashes)
