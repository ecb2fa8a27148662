"""The digits are split, and bad data is reported with all its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.pipelines.digits.nodes import LABEL_COLUMN, PIXEL_COLUMNS, SplitSettings, split_digits

DIGITS_CSV = Path(__file__).parents[3] / "data/01_raw/digits.csv"

Split = dict[str, Tensor]


@pytest.fixture(scope="module")
def shipped() -> pd.DataFrame:
    return pd.read_csv(DIGITS_CSV)


@pytest.fixture
def digits(shipped: pd.DataFrame) -> pd.DataFrame:
    return shipped.copy()


def mistakes_of(digits: pd.DataFrame, **settings: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        split_digits(digits, SplitSettings(**settings))
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines() if line.startswith("  - ")]


def images(split: Split) -> list[tuple[float, ...]]:
    return [tuple(row) for row in split["inputs"].flatten(1).tolist()]


class TestSplits:
    def test_shapes_types_and_range(self, digits: pd.DataFrame) -> None:
        splits = split_digits(digits, SplitSettings())
        assert [len(split["targets"]) for split in splits] == [1078, 359, 360]
        for split in splits:
            assert split["inputs"].shape == (len(split["targets"]), 1, 8, 8)
            assert split["inputs"].dtype == torch.float32
            assert split["targets"].dtype == torch.int64
            assert split["inputs"].min() == 0
            assert split["inputs"].max() == 1

    def test_pixels_lie_row_by_row_and_keep_their_label(self, digits: pd.DataFrame) -> None:
        label_of = {
            tuple(value / 16 for value in row[:-1]): row[-1]
            for row in digits[[*PIXEL_COLUMNS, LABEL_COLUMN]].to_numpy().tolist()
        }
        for split in split_digits(digits, SplitSettings()):
            assert [label_of[image] for image in images(split)] == split["targets"].tolist()

    def test_every_example_is_in_one_split(self, digits: pd.DataFrame) -> None:
        everything = sorted(image for split in split_digits(digits, SplitSettings()) for image in images(split))
        assert everything == sorted(
            tuple(value / 16 for value in row) for row in digits[PIXEL_COLUMNS].to_numpy().tolist()
        )

    def test_labels_have_equal_shares(self, digits: pd.DataFrame) -> None:
        whole = torch.bincount(torch.tensor(digits[LABEL_COLUMN].to_numpy())) / len(digits)
        for split in split_digits(digits, SplitSettings()):
            share = torch.bincount(split["targets"]) / len(split["targets"])
            assert torch.allclose(share, whole, atol=0.005)

    def test_the_seed_determines_the_splits(self, digits: pd.DataFrame) -> None:
        def training_targets(seed: int) -> list[int]:
            targets: list[int] = split_digits(digits, SplitSettings(seed=seed))[0]["targets"].tolist()
            return targets

        assert training_targets(3) == training_targets(3)
        assert training_targets(3) != training_targets(4)

    def test_order_of_columns_and_further_columns_do_not_matter(self, digits: pd.DataFrame) -> None:
        shuffled = digits[digits.columns[::-1]].assign(writer=7)
        for ours, theirs in zip(
            split_digits(digits, SplitSettings()), split_digits(shuffled, SplitSettings()), strict=True
        ):
            assert torch.equal(ours["inputs"], theirs["inputs"])

    def test_smallest_table_that_every_split_can_share(self, digits: pd.DataFrame) -> None:
        five_of_each = digits.groupby(LABEL_COLUMN).head(5)
        splits = split_digits(five_of_each, SplitSettings(num_examples=50))
        assert [len(split["targets"]) for split in splits] == [30, 10, 10]
        assert all(len(split["targets"].unique()) == 10 for split in splits)

    def test_table_is_left_as_it_was(self, digits: pd.DataFrame) -> None:
        before = digits.copy()
        split_digits(digits, SplitSettings())
        pd.testing.assert_frame_equal(digits, before)


class TestBadData:
    def test_cut_short(self, digits: pd.DataFrame) -> None:
        (mistake,) = mistakes_of(digits.head(1000))
        assert "at least 1797 rows" in mistake
        assert "got 1000" in mistake
        assert "cut short" in mistake

    def test_cut_in_the_middle_of_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "digits.csv"
        path.write_bytes(DIGITS_CSV.read_bytes()[:50_000])
        mistakes = mistakes_of(pd.read_csv(path))
        assert "cut short" in mistakes[0]
        assert any(LABEL_COLUMN in mistake and "no value" in mistake for mistake in mistakes)

    def test_header_only(self, digits: pd.DataFrame) -> None:
        (mistake,) = mistakes_of(digits.head(0))
        assert "got 0" in mistake

    def test_misspelled_column(self, digits: pd.DataFrame) -> None:
        (mistake,) = mistakes_of(digits.rename(columns={"pixel_0_0": "pixel_00", "label": "digit"}))
        for name in ("pixel_0_0", "label", "pixel_00", "digit"):
            assert name in mistake

    def test_many_missing_columns_are_summed_up(self, digits: pd.DataFrame) -> None:
        (mistake,) = mistakes_of(digits[["label"]])
        assert "pixel_0_0, pixel_0_1, pixel_0_2 and 61 more" in mistake

    @pytest.mark.parametrize("value", [17, -1, 2.5, "x", float("inf")])
    def test_impossible_pixel(self, digits: pd.DataFrame, value: object) -> None:
        pixels: list[object] = digits["pixel_3_4"].tolist()
        pixels[10] = value
        digits["pixel_3_4"] = pd.Series(pixels, dtype=object)
        (mistake,) = mistakes_of(digits)
        assert "pixel_3_4" in mistake
        assert "from 0 to 16" in mistake
        assert str(value) in mistake
        assert "line 12" in mistake

    def test_five_mistakes_give_one_error_that_lists_five(self, digits: pd.DataFrame) -> None:
        digits = digits.head(1790).astype({"pixel_2_2": float, "label": float})
        digits.loc[0, "pixel_1_1"] = 99
        digits.loc[5, "pixel_2_2"] = float("nan")
        digits.loc[7, "label"] = float("nan")
        digits.loc[9, "label"] = 10
        mistakes = mistakes_of(digits)
        assert len(mistakes) == 5
        for mistake, expected in zip(
            mistakes, ["1790", "`pixel_1_1`", "`pixel_2_2`", "`label`", "`label`"], strict=True
        ):
            assert expected in mistake

    def test_names_the_file_and_how_to_restore_it(self, digits: pd.DataFrame) -> None:
        with pytest.raises(DataError, match=r"data/01_raw/digits\.csv") as caught:
            split_digits(digits.head(3), SplitSettings())
        assert "git checkout" in str(caught.value)

    def test_empty_split(self, digits: pd.DataFrame) -> None:
        (mistake,) = mistakes_of(digits.head(2), num_examples=2)
        assert "would be empty" in mistake

    def test_label_too_rare_for_every_split(self, digits: pd.DataFrame) -> None:
        threes = digits.index[digits[LABEL_COLUMN] == 3]
        (mistake,) = mistakes_of(digits.drop(threes[4:]), num_examples=1)
        assert "the digit 3" in mistake


class TestSettings:
    def test_no_examples_are_left_for_a_test_split(self) -> None:
        with pytest.raises(ValidationError, match="sum to less than 1"):
            SplitSettings(train_fraction=0.8, validation_fraction=0.2)

    @pytest.mark.parametrize("key", ["train_fraction", "validation_fraction"])
    @pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 60, float("nan")])
    def test_fraction_out_of_range(self, key: str, value: float) -> None:
        with pytest.raises(ConfigurationError, match=key):
            SplitSettings.model_validate({key: value})

    def test_mistyped_key_is_named_with_the_intended_one(self) -> None:
        with pytest.raises(ConfigurationError, match="Did you mean 'train_fraction'"):
            SplitSettings.model_validate({"train_fracton": 0.6})

    def test_kedro_can_resolve_the_hints(self) -> None:
        # Otherwise, Kedro would pass a plain dict without validation.
        assert get_type_hints(split_digits)["settings"] is SplitSettings
