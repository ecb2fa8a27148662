"""From the table of digits to the three splits."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from kedro_aat.errors import DataError
from kedro_aat.imports import Imported
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from torch import Tensor
    from torch.nn import Module

    from kedro_aat.training.checkpoints import CheckpointStore
else:
    # Kedro reads a node's type hints to find the settings class that it validates parameters with. One
    # hint that it cannot resolve switches that check off, and importing these takes seconds.
    DataFrame = Series = Tensor = Module = CheckpointStore = Any

logger = logging.getLogger(__name__)

SIDE = 8  # pixels
MAX_PIXEL = 16
NUM_CLASSES = 10
PIXEL_COLUMNS = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
LABEL_COLUMN = "label"

_SOURCE = "data/01_raw/digits.csv"
_HEADER_LINES = 1  # above the first example in the file

Fraction = Annotated[float, Field(gt=0, lt=1)]


class SplitSettings(Settings):
    """How the digits are split; what training and validation leave is the test split.

    Attributes:
        train_fraction: Fraction of the examples to train on, in (0, 1).
        validation_fraction: Fraction that judges every epoch, in (0, 1).
        seed: Seed of the shuffle. The same seed gives the same splits.
        num_examples: Rows that the table has at least; fewer mean that it was cut short.
    """

    train_fraction: Fraction = 0.6
    validation_fraction: Fraction = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_examples: PositiveInt = 1797

    @model_validator(mode="after")
    def _leaves_a_test_split(self) -> Self:
        if self.train_fraction + self.validation_fraction >= 1:
            raise ValueError(
                "`train_fraction` and `validation_fraction` must sum to less than 1, so that a test split is "
                f"left, but got {self.train_fraction} and {self.validation_fraction}. Usual are 0.6 and 0.2."
            )
        return self

    def sizes(self, num_examples: int) -> dict[str, int]:
        """Number of examples in each split of a table with `num_examples` rows."""
        train = round(self.train_fraction * num_examples)
        validation = round(self.validation_fraction * num_examples)
        return {"train": train, "validation": validation, "test": num_examples - train - validation}


def split_digits(
    digits: DataFrame, settings: SplitSettings
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Splits the digits into training, validation and test data, each with the labels in equal shares.

    Args:
        digits: One row per image: 64 pixels from 0 to 16, row by row, and the label.
        settings: Sizes and seed of the splits.

    Returns:
        Train, validation and test split, each with `inputs`, float32 in [0, 1], and `targets`, int64.

    Raises:
        DataError: The table is cut short, or has missing or impossible values; lists every mistake.
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
            + f"\nRestore the file that is shipped (`git checkout -- {_SOURCE}`), or mend these in your own."
        )


def _wrong_columns(digits: DataFrame) -> list[str]:
    expected = [*PIXEL_COLUMNS, LABEL_COLUMN]
    missing = [name for name in expected if name not in digits.columns]
    if not missing:
        return []
    unknown = [str(name) for name in digits.columns if name not in expected]
    found = f" It has {_few(unknown)} instead." if unknown else ""
    return [f"the header lacks {_few(missing)}.{found}"]


def _wrong_values(digits: DataFrame) -> list[str]:
    wrong = (
        _wrong_in_column(digits[name], MAX_PIXEL if name in PIXEL_COLUMNS else NUM_CLASSES - 1)
        for name in [*PIXEL_COLUMNS, LABEL_COLUMN]
    )
    return [mistake for mistakes in wrong for mistake in mistakes]


def _wrong_in_column(column: Series[Any], highest: int) -> list[str]:
    import pandas as pd

    missing = column.isna()
    values = pd.to_numeric(column, errors="coerce")  # what is no number becomes missing
    impossible = ~missing & ~(values.between(0, highest) & (values % 1 == 0))
    mistakes = []
    if missing.any():
        mistakes.append(f"`{column.name}` has no value in {_lines(missing)}")
    if impossible.any():
        first = column[impossible].iloc[0]
        mistakes.append(
            f"`{column.name}` must be a whole number from 0 to {highest}, but got {first} in {_lines(impossible)}"
        )
    return mistakes


def _too_small_splits(digits: DataFrame, settings: SplitSettings) -> list[str]:
    import pandas as pd

    if digits.empty:
        return []  # `num_examples` is at least 1, so that is reported as cut short
    sizes = settings.sizes(len(digits))
    smallest = min(sizes, key=lambda name: sizes[name])
    if sizes[smallest] == 0:
        return [f"the {smallest} split of {len(digits)} examples would be empty; give it a larger share"]
    # A share of at least one example of each label in the smallest split is what stratification needs.
    needed = math.ceil(len(digits) / sizes[smallest])
    counts = pd.to_numeric(digits[LABEL_COLUMN], errors="coerce").value_counts()
    scarce = [str(label) for label in range(NUM_CLASSES) if counts.get(label, 0) < needed]
    if not scarce:
        return []
    return [
        f"every label must have at least {needed} examples to be in all splits, but fewer show the digit {_few(scarce)}"
    ]


def _lines(wrong: Series[bool]) -> str:
    lines = [position + 1 + _HEADER_LINES for position, is_wrong in enumerate(wrong) if is_wrong]
    return f"line{'s' if len(lines) > 1 else ''} {_few([str(line) for line in lines])}"


def _few(names: list[str], limit: int = 3) -> str:
    """The first names of a list that may be long."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class BaselineSettings(Settings):
    """The network and its training.

    Attributes:
        seed: Of the initial weights and the shuffling.
        num_epochs: Epochs of training.
        model: `class_path` and `init_args` of the network.
        training: How it is trained and judged.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    num_epochs: PositiveInt = 30
    model: Imported
    training: TrainingSettings


def train_baseline(
    train_data: Mapping[str, Tensor],
    validation_data: Mapping[str, Tensor],
    checkpoint_store: CheckpointStore,
    settings: BaselineSettings,
) -> Module:
    """Trains the network; one that is trained already is taken from the store.

    Args:
        train_data: `inputs` and `targets`.
        validation_data: Likewise.
        checkpoint_store: Keeps the epochs, so that a killed training goes on.
        settings: The network and its training.

    Returns:
        The trained network, on the CPU.
    """
    from kedro_aat.datasets.recipe import build_module
    from kedro_aat.pipelines.digits.baseline import Uncompressed, fit
    from kedro_aat.training.data import data_fingerprint
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.random_state import seed_everything
    from kedro_aat.training.runner import TrainingRunner, hash_sources

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
        "settings": settings.model_dump(mode="json"),
        "train_data": data_fingerprint(train_data),
        "validation_data": data_fingerprint(validation_data),
    }
    with checkpoint_store.open(identity) as checkpoints:
        metric = fit(runner, settings.num_epochs, checkpoints)
    logger.info("The baseline's metric after %d epochs is %.4f", settings.num_epochs, metric)
    return model.cpu()
