"""Nodes of the digits pipeline: split the table into training, validation and test data, and train the baseline."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from kedro_aat.errors import DataError, first_of
from kedro_aat.imports import Imported
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from torch import Tensor
    from torch.nn import Module

    from kedro_aat.training.checkpoints import CheckpointStore
else:
    # Kedro reads the type hints of a node to find the settings class that validates its parameters. A single hint that
    # it cannot resolve disables this check, and importing these classes takes seconds.
    DataFrame = Series = Tensor = Module = CheckpointStore = Any

logger = logging.getLogger(__name__)

SIDE = 8  # height and width in pixels
MAX_PIXEL = 16  # brightest value in the table
NUM_CLASSES = 10
PIXEL_COLUMNS = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
LABEL_COLUMN = "label"

_SOURCE = "data/01_raw/digits.csv"
_HEADER_LINES = 1  # above the first example in the file

Fraction = Annotated[float, Field(gt=0, lt=1)]


class SplitSettings(Settings):
    """How the digits are split; the examples outside the training and validation splits are the test split.

    Attributes:
        train_fraction: Fraction of the examples for training, in (0, 1).
        validation_fraction: Fraction of the examples that judge every epoch, in (0, 1).
        seed: Seed of the shuffle. The same seed gives the same splits.
        num_examples: Minimal number of rows; a table with fewer rows is reported as cut short.
    """

    train_fraction: Fraction = 0.6
    validation_fraction: Fraction = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_examples: PositiveInt = 1797

    @model_validator(mode="after")
    def _leaves_a_test_split(self) -> Self:
        if self.train_fraction + self.validation_fraction >= 1:
            raise ValueError(
                "`train_fraction` and `validation_fraction` must sum to less than 1, to leave a test split, "
                f"but got {self.train_fraction} and {self.validation_fraction}. Usual values are 0.6 and 0.2."
            )
        return self

    def sizes(self, num_examples: int) -> dict[str, int]:
        """Returns the number of examples in each split of a table with `num_examples` rows."""
        train = round(self.train_fraction * num_examples)
        validation = round(self.validation_fraction * num_examples)
        return {"train": train, "validation": validation, "test": num_examples - train - validation}


def split_digits(
    digits: DataFrame, settings: SplitSettings
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Splits the digits into training, validation and test data with the same distribution of labels.

    Args:
        digits: One row per image: 64 pixels from 0 to 16, row by row, and the label.
        settings: Sizes and seed of the splits.

    Returns:
        Training, validation and test split, each with `inputs` (N, 1, 8, 8), float32 in [0, 1], and `targets` (N,),
        int64.

    Raises:
        DataError: The table is cut short, or has missing or impossible values; the message lists every mistake.
    """
    import torch
    from sklearn.model_selection import train_test_split

    _check(digits, settings)
    inputs = torch.tensor(digits[PIXEL_COLUMNS].to_numpy("float32") / MAX_PIXEL)
    inputs = inputs.reshape(-1, 1, SIDE, SIDE)  # (N, 1, 8, 8)
    targets = torch.tensor(digits[LABEL_COLUMN].to_numpy("int64"))  # (N,)

    sizes = settings.sizes(len(digits))
    train, rest = train_test_split(
        list(range(len(digits))), train_size=sizes["train"], stratify=targets, random_state=settings.seed
    )
    validation, test = train_test_split(
        rest, train_size=sizes["validation"], stratify=targets[rest], random_state=settings.seed
    )

    def select(rows: list[int]) -> dict[str, Tensor]:
        return {"inputs": inputs[rows], "targets": targets[rows]}

    return select(train), select(validation), select(test)


def _check(digits: DataFrame, settings: SplitSettings) -> None:
    mistakes = []
    if len(digits) < settings.num_examples:
        mistakes.append(
            f"the table must have at least {settings.num_examples} rows (`num_examples`), but got "
            f"{len(digits)}. Was the file cut short?"
        )
    mistakes += _wrong_columns(digits) or [*_wrong_values(digits), *_too_small_splits(digits, settings)]
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise DataError(
            f"The digits, which the catalog reads from {_SOURCE}, have {count}:"
            + "".join(f"\n  - {mistake}" for mistake in mistakes)
            + f"\nRestore the original file (`git checkout -- {_SOURCE}`), or correct these mistakes in your own file."
        )


def _wrong_columns(digits: DataFrame) -> list[str]:
    expected = [*PIXEL_COLUMNS, LABEL_COLUMN]
    missing = [name for name in expected if name not in digits.columns]
    if not missing:
        return []
    unknown = [str(name) for name in digits.columns if name not in expected]
    instead = f" It has {first_of(unknown, 3)} instead." if unknown else ""
    return [f"the header lacks {first_of(missing, 3)}.{instead}"]


def _wrong_values(digits: DataFrame) -> list[str]:
    wrong = (
        _wrong_in_column(digits[name], MAX_PIXEL if name in PIXEL_COLUMNS else NUM_CLASSES - 1)
        for name in [*PIXEL_COLUMNS, LABEL_COLUMN]
    )
    return [mistake for mistakes in wrong for mistake in mistakes]


def _wrong_in_column(column: Series[Any], highest: int) -> list[str]:
    import pandas as pd

    missing = column.isna()
    values = pd.to_numeric(column, errors="coerce")  # a value that is not a number becomes missing
    impossible = ~missing & ~(values.between(0, highest) & (values % 1 == 0))
    mistakes = []
    if missing.any():
        mistakes.append(f"`{column.name}` has no value in {_lines(missing)}")
    if impossible.any():
        first = column[impossible].iloc[0]
        mistakes.append(
            f"`{column.name}` must be an integer from 0 to {highest}, but got {first} in {_lines(impossible)}"
        )
    return mistakes


def _too_small_splits(digits: DataFrame, settings: SplitSettings) -> list[str]:
    import pandas as pd

    if digits.empty:
        return []  # `num_examples` is at least 1, so an empty table is reported as cut short
    sizes = settings.sizes(len(digits))
    smallest = min(sizes, key=lambda name: sizes[name])
    if sizes[smallest] == 0:
        return [f"the {smallest} split of {len(digits)} examples would be empty; give it a larger fraction"]
    # Stratification needs at least one example of each label in the smallest split.
    needed = math.ceil(len(digits) / sizes[smallest])
    counts = pd.to_numeric(digits[LABEL_COLUMN], errors="coerce").value_counts()
    scarce = [str(label) for label in range(NUM_CLASSES) if counts.get(label, 0) < needed]
    if not scarce:
        return []
    return [
        f"every label must have at least {needed} examples to be in all splits, but fewer show the digit "
        f"{first_of(scarce, 3)}"
    ]


def _lines(wrong: Series[bool]) -> str:
    lines = [position + 1 + _HEADER_LINES for position, is_wrong in enumerate(wrong) if is_wrong]
    return f"line{'s' if len(lines) > 1 else ''} {first_of([str(line) for line in lines], 3)}"


class BaselineSettings(Settings):
    """The baseline's network and its training.

    Attributes:
        seed: Seed of the initial weights and of the shuffling.
        num_epochs: Number of epochs.
        model: `class_path` and `init_args` of the network.
        training: How the network is trained and judged.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    num_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    model: Imported
    training: TrainingSettings


def train_baseline(
    train_data: Mapping[str, Tensor],
    validation_data: Mapping[str, Tensor],
    checkpoint_store: CheckpointStore,
    settings: BaselineSettings,
) -> Module:
    """Trains the network, or loads it from the store if it is already trained.

    Args:
        train_data: `inputs` and `targets` of the training split.
        validation_data: `inputs` and `targets` of the validation split.
        checkpoint_store: Store of the epochs, from which a killed training resumes.
        settings: The network and its training.

    Returns:
        The trained network, on the CPU.
    """
    from kedro_aat.datasets.recipe import build_module
    from kedro_aat.pipelines.digits.baseline import Uncompressed, fit
    from kedro_aat.training.data import data_fingerprint
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.fingerprints.identity import hash_sources
    from kedro_aat.training.fingerprints.sources import sources_of
    from kedro_aat.training.random_state import seed_everything
    from kedro_aat.training.runner import TrainingRunner

    settings.training.check()
    seed_everything(settings.seed)
    model = build_module(settings.model)
    training = DefaultTraining(model, settings.training, train_data, validation_data, seed=settings.seed)
    callables = training.callables()
    runner = TrainingRunner(
        model,
        Uncompressed(model),
        callables,
        higher_is_better=settings.training.direction() is not False,
    )
    identity = {
        "functions": callables.fingerprint,
        "network": hash_sources([type(model)]),
        "settings": settings.identity(),
        "train_data": data_fingerprint(train_data, batch=settings.training.batch),
        "validation_data": data_fingerprint(validation_data, batch=settings.training.batch),
    }
    classes = {type(module) for module in model.modules()}
    found = sources_of([*vars(callables).values(), *settings.training.named_objects, *classes])
    identity |= {"sources": found.hashes} if found.hashes else {}
    opened = checkpoint_store.open(
        identity,
        ingredients=identity | {"settings": settings.identity(defaults=True), "packages": found.packages},
        after_upgrade=settings.training.after_upgrade,
    )
    with opened as checkpoints:
        metric = fit(runner, settings.num_epochs, checkpoints)
    logger.info("The baseline's metric after %d epochs is %.4f", settings.num_epochs, metric)
    return model.cpu()
