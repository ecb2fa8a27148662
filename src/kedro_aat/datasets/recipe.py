"""How a module is built again without pickle: the import path of its class, its arguments, and what was done to it."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from torch import nn

from kedro_aat.compression.filters.cutting import CUT_PLAN, Cut, apply_cut_plan
from kedro_aat.compression.quantization.layers import QuantizedModelSpec, make_quantized, quantized_spec
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.imports import Imported

_RECIPE = "_aat_recipe"


class Recipe(Imported):
    """How a module is made.

    Attributes:
        class_path: A class of modules, or a function that is annotated to return a module.
        init_args: Keyword arguments.
        plan: The channels that are cut once it is built; empty for a whole module.
        quantized: The layers that hold int8 after that; None for a module in full precision.
    """

    plan: tuple[Cut, ...] = ()
    quantized: QuantizedModelSpec | None = None


def build_module(recipe: Imported) -> nn.Module:
    """Builds a module, cuts and quantizes it as the recipe says, and notes how that was done, so that it can be saved.

    Args:
        recipe: Names a class of modules, or a function that is annotated to return a module. Anything else
            is refused, since a recipe may come from a file.

    Raises:
        ConfigurationError: For a path or arguments that do not fit.
        ModelError: If the path names no class of modules, or the plan is one for another module.
    """
    if mistakes := recipe.lookup_mistakes("model"):
        raise ConfigurationError("model", mistakes)
    target = recipe.load()
    if not _makes_modules(target):
        raise ModelError(
            f"{recipe.class_path} makes no torch.nn.Module: name a class of modules, or annotate the function "
            "with the class that it returns."
        )
    module: nn.Module = recipe.build()
    object.__setattr__(module, _RECIPE, Imported(class_path=recipe.class_path, init_args=recipe.init_args))
    if isinstance(recipe, Recipe):
        module = apply_cut_plan(module, recipe.plan)
        if recipe.quantized is not None:
            make_quantized(module, recipe.quantized)
    return module


def recipe_of(module: nn.Module, built: Imported | None = None) -> Imported:
    """How the module was built; a `Recipe` if it was cut or quantized since.

    Args:
        module: Cut or not.
        built: How it was built, where that is known; by default what `build_module` noted.

    Raises:
        ModelError: If it was not built by `build_module`; its arguments cannot be guessed.
    """
    recipe = built or getattr(module, _RECIPE, None)
    if isinstance(recipe, Imported):
        plan = tuple(Cut.model_validate(step) for step in getattr(module, CUT_PLAN, []))
        quantized = quantized_spec(module)
        if not plan and quantized is None:
            return recipe
        return Recipe(class_path=recipe.class_path, init_args=recipe.init_args, plan=plan, quantized=quantized)
    kind = type(module)
    path = f"{kind.__module__}.{kind.__qualname__}"
    required = [
        parameter.name
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    raise ModelError(
        f"It is not known with which arguments this {kind.__name__} was made, so it cannot be saved without "
        f"pickle. Build it with kedro_aat.datasets.recipe.build_module(Imported(class_path='{path}', "
        f"init_args={{{', '.join(f'{name!r}: ...' for name in required)}}})), or name class_path and init_args "
        "under `recipe` in its catalog entry."
    )


def _makes_modules(target: Any) -> bool:
    if not inspect.isclass(target):
        try:
            target = typing.get_type_hints(target).get("return")
        except (NameError, TypeError):  # no function, or an annotation that only type checkers can read
            return False
    return inspect.isclass(target) and issubclass(target, nn.Module)
