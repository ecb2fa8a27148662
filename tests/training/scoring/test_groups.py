"""Groups of examples: how they are named, read, validated and resampled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io.core import DatasetError
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchmetrics.classification import BinaryAUROC, BinaryF1Score

from kedro_aat.certificate import bootstrap_standard_error, paired_standard_error
from kedro_aat.config import AatSettings
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.delivery.finished import MetricValues
from kedro_aat.errors import ConfigurationError, DataError, MetricError
from kedro_aat.training.callables import Evaluation
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.runner import evaluate
from kedro_aat.training.scoring.groups import groups_of, identity_of_groups
from kedro_aat.training.scoring.resampling import Bootstrap, Jackknife
from kedro_aat.training.scoring.scores import standard_error_of
from tests.nets import SmallNet, images
from tests.training.training_run import settings

SPLIT: Any = images(40)
PATIENTS = torch.arange(40) // 8 + 100


class Frames(Dataset[Any]):
    """A dataset of pairs that knows the patient of each, as an attribute and by a method."""

    def __init__(self) -> None:
        self.patient = [f"p{number}" for number in PATIENTS.tolist()]
        self._hidden = 1

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return SPLIT["inputs"][index], SPLIT["targets"][index]

    def patients(self) -> np.ndarray:
        return PATIENTS.double().numpy() / 2


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({**SPLIT, "patient": PATIENTS}, "patient"),
        ({**SPLIT, "patient": PATIENTS.numpy() / 3}, "patient"),
        ({**SPLIT, "patient": [f"p{number}" for number in PATIENTS]}, "patient"),
        ({**SPLIT, "patient": pd.Series(PATIENTS.numpy()).astype(str)}, "patient"),
        (Frames(), "patient"),
        (Frames(), "patients"),
    ],
)
def test_groups_are_numbers_from_zero(data: Any, name: str) -> None:
    groups = groups_of(data, name)
    assert groups is not None
    assert groups.dtype == torch.int64
    assert groups.tolist() == (PATIENTS - 100).tolist()


def test_a_subset_has_the_groups_of_its_examples() -> None:
    groups = groups_of(Subset(Subset(Frames(), range(4, 40)), [30, 0, 4]), "patient")
    assert groups is not None
    assert groups.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SPLIT, "The test split has no patient, which certificate.group .* names: it has inputs, targets"),
        ({**SPLIT, "patient": PATIENTS[:39]}, r"has 40 examples, but patient, which names their groups, .* \(39,\)"),
        ({**SPLIT, "patient": PATIENTS[:, None]}, r"\(40, 1\)"),
        ({**SPLIT, "patient": 0 * PATIENTS}, r"All 40 examples of the test split have the same patient \(0\)"),
        ({**SPLIT, "patient": [None, float("nan"), *PATIENTS.tolist()[2:]]}, "2 of 40 examples .* have no patient"),
        ({**SPLIT, "patient": PATIENTS / torch.where(PATIENTS > 100, 1, float("nan"))}, "8 of 40 examples"),
    ],
)
def test_mistakes_in_groups(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        groups_of(data, "patient", "test")


def test_a_dataset_without_the_attribute_says_which_it_has() -> None:
    with pytest.raises(DataError, match=r"a Frames, has no attribute subject, .* its own attributes: patient"):
        groups_of(Frames(), "subject")


# --- validation ------------------------------------------------------------------------------------------------


def own_validation(model: nn.Module, data: Any) -> Evaluation:
    scores = torch.cat([(model(inputs).argmax(1) == targets).double() for inputs, targets in data])
    return Evaluation(float(scores.mean()), scores)


def shorter_validation(model: nn.Module, data: Any) -> Evaluation:
    return Evaluation(0.5, torch.full((7,), 0.5))


def plain_validation(model: nn.Module) -> float:
    return 0.5


def grouped_validation(model: nn.Module) -> Evaluation:
    return Evaluation(0.5, torch.full((7,), 0.5), groups=torch.arange(7))


def validated(data: Any, **changes: Any) -> Evaluation:
    model = SmallNet()
    training = DefaultTraining(model, settings(**changes), None, data)
    return evaluate(model, training.callables().validate)


@pytest.mark.parametrize("own", [None, f"{__name__}.own_validation"])
@pytest.mark.parametrize("data", [{**SPLIT, "patient": PATIENTS}, Frames()])
def test_evaluations_know_the_groups(data: Any, own: str | None) -> None:
    changes = {"group": "patient"} | ({"validate": own} if own else {})
    evaluation = validated(data, **changes)
    assert evaluation.groups is not None
    assert evaluation.groups.tolist() == (PATIENTS - 100).tolist()
    kept = MetricValues.model_validate_json(MetricValues.of(evaluation).model_dump_json()).evaluation()
    assert kept.groups is not None
    assert torch.equal(kept.groups, evaluation.groups)


def test_what_a_validation_function_says_itself_stays() -> None:
    data = {**SPLIT, "patient": PATIENTS}
    assert validated(data, group="patient", validate=f"{__name__}.plain_validation").groups is None
    evaluation = validated(data, group="patient", validate=f"{__name__}.grouped_validation")
    assert evaluation.groups is not None
    assert evaluation.groups.tolist() == list(range(7))
    with pytest.raises(MetricError, match="returned 7 scores, but the groups of 40 examples"):
        validated(data, group="patient", validate=f"{__name__}.shorter_validation")


def test_groups_without_the_setting_change_nothing() -> None:
    with_key, without = validated({**SPLIT, "patient": PATIENTS}), validated(SPLIT)
    assert with_key.groups is None
    assert with_key.scores is not None
    assert without.scores is not None
    assert with_key.scores.shape == without.scores.shape


def test_a_run_is_identified_by_its_groups_but_not_by_their_names() -> None:
    one = identity_of_groups({**SPLIT, "patient": PATIENTS}, "patient")
    assert identity_of_groups({**SPLIT, "patient": PATIENTS + 5}, "patient") == one
    assert identity_of_groups({**SPLIT, "patient": PATIENTS // 2}, "patient") != one
    assert identity_of_groups({**SPLIT, "patient": PATIENTS}, None) == {}


def test_own_functions_identify_a_run_with_and_without_groups() -> None:
    data = {**SPLIT, "patient": PATIENTS}
    changes = {"validate": f"{__name__}.own_validation"}
    hashes = {
        DefaultTraining(SmallNet(), settings(**changes, **more), None, data).callables().fingerprint
        for more in ({}, {"group": "patient"})
    }
    other = DefaultTraining(SmallNet(), settings(), None, data).callables().fingerprint
    assert len(hashes) == 1
    assert hashes != {other}


# --- standard errors -------------------------------------------------------------------------------------------


def test_standard_error_is_that_of_groups() -> None:
    scores = torch.tensor([1.0, 0.0]).repeat_interleave(20)
    groups = torch.arange(40) // 10
    baseline, worse = Evaluation(1.0, torch.ones(40)), Evaluation(0.5, scores, groups=groups)
    assert standard_error_of(baseline, worse) == pytest.approx(
        paired_standard_error(np.ones(40), scores.numpy(), groups.numpy())
    )


@pytest.mark.parametrize("metric", [BinaryF1Score(), BinaryAUROC()], ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("kind", ["jackknife", "bootstrap"])
def test_repeated_examples_of_one_group_do_not_lower_the_standard_error(metric: Any, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (300,), generator=generator)
    models = [(targets + noise * torch.randn(300, generator=generator)).sigmoid() for noise in (0.5, 1.0)]

    def error(times: int, groups: Tensor | None) -> float:
        values = []
        for outputs in models:
            if kind == "jackknife":
                resampling: Any = Jackknife(metric, 20, 300 * times, groups)
            else:
                resampling = Bootstrap(metric, 20, groups)
            for part in zip(
                outputs.repeat_interleave(times).split(1000), targets.repeat_interleave(times).split(1000), strict=True
            ):
                resampling.update(*part)
            values.append(resampling.compute())
        return bootstrap_standard_error(*values)

    groups = torch.arange(300).repeat_interleave(9)
    once = error(1, torch.arange(300))
    assert once == pytest.approx(error(1, None), rel=0.5)
    assert error(9, groups) == pytest.approx(once, rel=0.02)
    assert error(9, None) < 0.6 * once


def test_metric_with_few_groups_is_resampled_by_group() -> None:
    metric = {"class_path": "torchmetrics.classification.MulticlassCalibrationError", "init_args": {"num_classes": 4}}
    evaluation = validated({**SPLIT, "patient": PATIENTS}, metric=metric, group="patient")
    assert evaluation.resampled is not None
    assert len(evaluation.resampled) == 100
    assert evaluation.resampled.std() > 0


# --- settings and tables ---------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "budget": {"max_drop": 0.01},
    "training": {"metric": "torchmetrics.classification.BinaryF1Score"},
}


def test_group_of_the_certificate_is_that_of_the_training() -> None:
    of_certificate = AatSettings.model_validate({**PLAIN, "certificate": {"group": "patient"}})
    of_training = AatSettings.model_validate({**PLAIN, "training": {**PLAIN["training"], "group": "patient"}})
    assert of_certificate.training.group == of_training.training.group == "patient"
    assert of_certificate.searched() == of_training.searched()
    assert AatSettings(**dict(of_certificate)).training.group == "patient"
    assert AatSettings(**{**dict(of_training), "certificate": of_certificate.certificate}) == of_certificate
    assert AatSettings.model_validate(PLAIN).searched() != of_training.searched()


def test_two_different_groups_are_a_mistake() -> None:
    both = {**PLAIN, "training": {**PLAIN["training"], "group": "clinic"}, "certificate": {"group": "patient"}}
    with pytest.raises(
        ConfigurationError, match=r"certificate: group must be that of training \(clinic\), but got patient"
    ):
        AatSettings.model_validate(both)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(("patients", "expected"), [(["b", "a", "b"], [2, 1, 2]), ([7, 3, 7], [7, 3, 7])])
def test_table_with_groups(tmp_path: Path, suffix: str, patients: list[Any], expected: list[int]) -> None:
    path = tmp_path / f"table.{suffix}"
    frame = pd.DataFrame({"x": [0.5, 1.5, 2.5], "patient": patients, "y": [0, 1, 0]})
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    data = TableDataset(filepath=str(path), target="y", groups="patient").load()
    assert data["inputs"].tolist() == [[0.5], [1.5], [2.5]]
    assert data["targets"].tolist() == [0, 1, 0]
    assert data["patient"].tolist() == expected
    assert data["patient"].dtype == torch.int64


def test_table_without_the_column_of_groups(tmp_path: Path) -> None:
    pd.DataFrame({"x": [0.5, 1.5], "y": [0, 1]}).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(DatasetError, match=re.escape("has no column patient; it has x, y")):
        TableDataset(filepath=str(tmp_path / "table.csv"), target="y", groups="patient").load()
