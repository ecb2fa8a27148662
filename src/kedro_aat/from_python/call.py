"""`compress`: the whole pipeline as one call."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import nn

from kedro_aat.adoption.withheld import UNREAD
from kedro_aat.budget import BudgetSettings, Outcome
from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import Summary
from kedro_aat.errors import ConfigurationError, InterruptedRunError
from kedro_aat.export import NotExported
from kedro_aat.from_python.data import as_data
from kedro_aat.from_python.described import as_settings
from kedro_aat.from_python.guessed import with_loss_and_metric
from kedro_aat.from_python.places import datasets_in, delivered_files, run_nodes
from kedro_aat.from_python.result import CompressionResult, Files
from kedro_aat.imports import Imported
from kedro_aat.messages import shown
from kedro_aat.pipelines.aat import create_pipeline
from kedro_aat.training.data import Data
from kedro_aat.validated import parse

logger = logging.getLogger(__name__)

STATE_DICT = "compressed_model.safetensors"
SETTINGS = "parameters_aat.yml"
CHOSEN = "chosen"

# As `kedro aat init` writes it. The default of the settings, SGD at 0.05, makes a regression diverge.
OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}

_WITHOUT_RECIPE = (
    f"The model is delivered as ONNX and as a state dict ({STATE_DICT}), because nothing says how to build it again: "
    "recipe=MyModel, or functools.partial(MyModel, width=32), makes it a folder that kedro_aat loads."
)
_WITHOUT_TEST = (
    "Nothing was read of a test split. When this is the model that you want, the same call with test=... certifies it. "
    "A test split does so once."
)


@dataclass(frozen=True)
class _Call:
    """What a call is about.

    Attributes:
        given: Name of the dataset -> what the caller gave.
        settings: Settings of the pipeline.
        folder: Folder of files and checkpoints.
        recipe: How to build the model; None if the caller did not say it.
    """

    given: Mapping[str, Any]
    settings: AatSettings
    folder: Path
    recipe: Mapping[str, Any] | None


def compress(
    model: nn.Module,
    train: Any,
    validation: Any,
    *,
    test: Any = None,
    budget: float | Mapping[str, Any] | BudgetSettings,
    metric: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    epochs: int | None = None,
    recipe: Any = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> CompressionResult:
    """Compresses a trained model as far as an accuracy budget allows; the whole `aat` pipeline in one call.

    The same call with the same `folder` goes on where it was interrupted, or returns what is finished; with
    `best_so_far=True` it trains nothing and returns the best so far, as `kedro aat deliver` does. Wherever a
    setting names an import path, a class, a function, `functools.partial` of one, or an object such as
    `nn.CrossEntropyLoss()` may stand; a function of a notebook, too.

    Args:
        model: The trained model; it stays as it is.
        train: Training split: a pair (inputs, targets) of tensors, arrays or tables, a mapping of tensors, a dataset or
            a data loader.
        validation: Validation split, in the same form; it chooses the model.
        test: Test split, in the same form; it certifies the delivered model, and can do so once. None leaves it out.
        budget: Largest tolerated drop in units of the metric, or `{"max_relative_drop": 0.01}` and all else that
            `aat.budget` takes.
        metric: A torchmetrics metric. None takes the accuracy if the targets are classes.
        loss: Loss, called as `loss(outputs, targets)`. None takes what fits the targets.
        optimizer: Optimizer, as `functools.partial(torch.optim.Adam, lr=1e-4)`; 0.1 to 0.5 times the learning rate with
            which the model was trained is right. None takes AdamW with 1e-3, which suits most models.
        epochs: Largest number of epochs of the first search; later stages have their own. None takes that of the
            settings.
        recipe: How to build the model: its class, `functools.partial` of it, or `class_path` and `init_args`. Without
            it the delivered files are ONNX and a state dict.
        folder: Folder for files and checkpoints. None takes a temporary one, whose path the result has.
        **settings: All else that the parameters `aat` take: `compression`, `search`, `training`, `export`, `seed` and
            so on. Without `target` and `compression`, `target` is `cpu`.

    Returns:
        The delivered model, its files, and the evidence.

    Raises:
        AatError: In words what to do: `ConfigurationError` for arguments, `RehearsalError` for what would fail later,
            `InterruptedRunError` after Ctrl-C.
    """
    splits = {"train_data": train, "validation_data": validation}
    data = {name: as_data(given, name.removesuffix("_data")) for name, given in splits.items()}
    tree = _tree(model, data["train_data"], budget, metric, loss, optimizer, epochs, settings)
    if test is None and tree.get("certificate") is not None:
        raise ConfigurationError("certificate", ["needs the test split: give test=, or leave certificate out"])
    if test is None:
        tree["certificate"] = None
    test_data = UNREAD if test is None else as_data(test, "test")
    parsed = parse(AatSettings, tree, where="compress")
    place = Path(tempfile.mkdtemp(prefix="kedro-aat-")) if folder is None else Path(folder)
    described = None if recipe is None else _described(recipe)
    call = _Call({"baseline_model": model, **data, "test_data": test_data}, parsed, place, described)
    with shown():
        if folder is not None:
            return _run(call)
        logger.info("Files and checkpoints go to %s; folder=... keeps them where you want them.", place)
        try:
            return _run(call)
        except InterruptedRunError as error:
            advice = (
                f"The same call with folder={str(place)!r} continues; with best_so_far=True, it delivers what is found."
            )
            raise InterruptedRunError(f"{error} {advice}") from error


def _tree(
    model: nn.Module,
    train: Data,
    budget: float | Mapping[str, Any] | BudgetSettings,
    metric: Any,
    loss: Any,
    optimizer: Any,
    epochs: int | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments as the tree of settings."""
    tree: dict[str, Any] = as_settings(settings, "settings")
    if not {"target", "compression"} & tree.keys():
        tree["target"] = "cpu"
    is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
    tree["budget"] = {"max_drop": budget} if is_number else as_settings(budget, "budget")
    if epochs is not None:
        tree["search"] = {"kind": "frontier", **tree.get("search", {}), "maximal_total_epochs": epochs}
    training = dict(tree.get("training") or {})
    for name, given in {"metric": metric, "loss": loss, "optimizer": optimizer}.items():
        if given is not None:
            training[name] = as_settings(given, name)
    if "configure_optimizers" not in training:
        training.setdefault("optimizer", OPTIMIZER)
    return {**tree, "training": with_loss_and_metric(training, model, train)}


def _described(recipe: Any) -> dict[str, Any]:
    described = as_settings(recipe, "recipe")
    return Imported.model_validate({"class_path": described} if isinstance(described, str) else described).model_dump()


def _run(call: _Call, results: Path | None = None) -> CompressionResult:
    """Runs the pipeline.

    Args:
        call: What to run.
        results: Folder of the results, if it is not that of the checkpoints.
    """
    pipeline = create_pipeline()
    place = results or call.folder
    place.mkdir(parents=True, exist_ok=True)
    written = call.settings.model_dump(mode="json", by_alias=True, exclude_unset=True)
    (place / SETTINGS).write_text(yaml.safe_dump({"aat": written}, sort_keys=False), encoding="utf-8")
    given = {**call.given, "params:aat": call.settings}
    datasets = datasets_in(call.folder, pipeline, given, call.recipe, results)
    run_nodes(pipeline, datasets)
    summary = Summary.model_validate(datasets["aat_summary"].load())
    delivered = summary.outcome is not Outcome.INFEASIBLE and summary.delivered is not None
    model = datasets["compressed_model"].load() if delivered else None
    files = delivered_files(place)
    if call.recipe is None:  # then such a folder is of an earlier call with a recipe
        files.pop("compressed_model", None)
    notes: tuple[str, ...] = ()
    if call.settings.certificate is None and delivered:
        notes += (_WITHOUT_TEST,)
    state_dict = place / STATE_DICT
    state_dict.unlink(missing_ok=True)
    if isinstance(model, nn.Module) and call.recipe is None:
        save_file(
            {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}, state_dict
        )
        files["state_dict"] = state_dict
        notes += (_WITHOUT_RECIPE,)
    return CompressionResult(
        outcome=summary.outcome,
        model=None if isinstance(model, NotExported) else model,
        files=Files({**files, "settings": place / SETTINGS}, summary.reason),
        summary=summary,
        trajectory=datasets["trajectory"].load(),
        layers=datasets["layer_statistics"].load(),
        settings=call.settings,
        folder=place,
        notes=notes,
        _choose=lambda drop, relative: _chosen(call, drop, relative),
    )


def _chosen(call: _Call, max_drop: float | None, max_relative_drop: float | None) -> CompressionResult:
    drops = {"max_drop": max_drop, "max_relative_drop": max_relative_drop}
    given = {name: drop for name, drop in drops.items() if drop is not None}
    tree = call.settings.model_dump(by_alias=True, exclude_unset=True) | {"choose": given, "best_so_far": True}
    settings = parse(AatSettings, tree, where="choose")
    (name, drop), *_ = given.items()
    with shown():
        return _run(replace(call, settings=settings), call.folder / CHOSEN / f"{name}_{drop:g}")
