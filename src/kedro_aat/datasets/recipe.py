"""Build a module again without pickle: from the import path of its class, its arguments, and later changes to it."""

from __future__ import annotations

import inspect

from torch import nn

from kedro_aat.compression.filters.cutting import CUT_PLAN, AttributeChange, Cut, apply_cut_plan, read_plan
from kedro_aat.compression.quantization.layers import QuantizedModelSpec, make_quantized, quantized_spec
from kedro_aat.datasets.promises import Stated, promises_module
from kedro_aat.errors import AatError, ConfigurationError, ModelError
from kedro_aat.imports import Imported
from kedro_aat.reading import describe
from kedro_aat.wrapped import unwrapped

_RECIPE = "_aat_recipe"


class Recipe(Imported):
    """Instructions to build a module.

    Attributes:
        class_path: Import path of a module class, or of a class method or function that is annotated to return a
            module.
        init_args: Keyword arguments of the class, class method or function.
        plan: The cut plan that is applied to the new module; empty if nothing was cut.
        quantized: The layers that hold int8 after the cut; None for a module in full precision.
    """

    plan: tuple[Cut | AttributeChange, ...] = ()
    quantized: QuantizedModelSpec | None = None


def build_module(recipe: Imported, *, stated: Stated = "package") -> nn.Module:
    """Builds a module, cuts and quantizes it as the recipe says, and stores the recipe in it, so that it can be saved.

    Args:
        recipe: Names a module class, or a class method or function that is annotated to return a module. It is
            imported and called, so a recipe from a file must be trusted: load the file with a `ModelDataset`.
        stated: How much of the recipe the user's own configuration states. With its `name`, a class method or function
            needs no annotation, like `from_pretrained` of many libraries. With the whole `call`, arguments may name
            what is to be built; see `Imported.make`.

    Raises:
        ConfigurationError: The import path does not exist, or the arguments do not match.
        ModelError: The path does not name what returns a module, it refuses the arguments, or the cut plan belongs to
            another module.
    """
    if mistakes := recipe.lookup_mistakes("model", nested=stated == "call"):
        raise ConfigurationError("model", mistakes)
    target = recipe.load()
    promise = promises_module(target)
    if promise is False or (promise is None and stated == "package"):
        raise ModelError(
            f"{recipe.class_path} does not return a torch.nn.Module, as far as it says: name a module class, or "
            "annotate the class method or function with the module class that it returns."
        )
    try:
        module = recipe.make() if stated == "call" else recipe.build()
    except AatError:
        raise
    except Exception as error:
        arguments = ", ".join(f"{name}={value!r:.60}" for name, value in recipe.init_args.items())
        raise ModelError(
            f"{recipe.class_path} refused its init_args ({arguments}): {describe(error)}. Correct them where the model "
            "is described: in its catalog entry, or in the recipe.json of its folder."
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{recipe.class_path} returned a {type(module).__name__}, not a torch.nn.Module: name a module class, or a "
            "class method or function that returns a module."
        )
    module = unwrapped(module, inside=True)
    object.__setattr__(module, _RECIPE, Imported(class_path=recipe.class_path, init_args=recipe.init_args))
    if isinstance(recipe, Recipe):
        module = apply_cut_plan(module, recipe.plan)
        if recipe.quantized is not None:
            make_quantized(module, recipe.quantized)
    return module


def recipe_of(module: nn.Module, built: Imported | None = None) -> Imported:
    """Returns how a module was built; a `Recipe` if it has been cut or quantized since.

    Args:
        module: The module, cut or not.
        built: How it was built, if known; by default, the recipe that `build_module` stored.

    Raises:
        ModelError: The module was not built by `build_module`, so its arguments are unknown.
    """
    recipe = built or getattr(module, _RECIPE, None)
    if isinstance(recipe, Imported):
        plan = tuple(read_plan(getattr(module, CUT_PLAN, [])))
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
        f"The arguments that created this {kind.__name__} are unknown, so it cannot be saved without pickle. "
        f"Build it with kedro_aat.datasets.recipe.build_module(Imported(class_path='{path}', "
        f"init_args={{{', '.join(f'{name!r}: ...' for name in required)}}})), or give class_path and init_args "
        "under `recipe` in its catalog entry."
    )
