"""What the `aat` pipeline's settings accept of stages, targets and goals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kedro_aat.config import AatSettings
from tests.mistakes import key_of
from tests.test_config import mistakes, parameters

FILTERS, SPARSITY, INT8 = ({"algorithm": name} for name in ("filter_pruning", "magnitude_sparsity", "quantization"))
DISTILLATION = {"algorithm": "knowledge_distillation", "type": "mse", "scale": 0.5}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            INT8,
            FILTERS,
            "quantization must be the last stage.* followed by filter_pruning; make filter_pruning an earlier",
        ),
        ([FILTERS, INT8], INT8, "quantization must be the last stage"),
        ([INT8, SPARSITY], FILTERS, "quantization must be the last stage"),
        (SPARSITY, FILTERS, "filters must be cut before single weights are removed"),
        (SPARSITY, [INT8, FILTERS], "filters must be cut before single weights are removed"),
        (FILTERS, FILTERS, "an algorithm that no earlier stage uses, but got filter_pruning"),
        ([FILTERS, SPARSITY], [SPARSITY, INT8], "but got magnitude_sparsity"),
    ],
)
def test_stages_in_an_order_that_does_not_work(first: Any, second: Any, words: str) -> None:
    (mistake,) = mistakes(compression=first, second_stage={"compression": second})
    assert re.match(f"second_stage: .*{words}", mistake)


@pytest.mark.parametrize("second", [INT8, SPARSITY, [SPARSITY, INT8]])
def test_stages_in_an_order_that_works(second: Any) -> None:
    AatSettings.model_validate(parameters(compression=FILTERS, second_stage={"compression": second}))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((FILTERS, INT8, SPARSITY), "quantization must be the last stage.*make magnitude_sparsity an earlier stage"),
        ((INT8, SPARSITY, DISTILLATION), None),
        ((SPARSITY, INT8, INT8), "quantization must be the last stage.*make another algorithm an earlier stage"),
        ((FILTERS, SPARSITY, FILTERS), "filters must be cut before single weights are removed"),
        ((FILTERS, SPARSITY, SPARSITY), "an algorithm that no earlier stage uses, but got magnitude_sparsity"),
        ((FILTERS, None, INT8), "a third stage needs a second one, but second_stage is null"),
    ],
)
def test_three_stages_in_an_order_that_does_not_work(stages: tuple[Any, Any, Any], words: str | None) -> None:
    first, second, third = stages
    later = {"second_stage": second and {"compression": second}, "third_stage": {"compression": third}}
    found = mistakes(compression=first, **later)
    if words is None:  # a mistake in an earlier stage is told once
        assert len([mistake for mistake in found if "must be the last stage" in mistake]) == 1
    else:
        (mistake,) = found
        assert re.match(f"third_stage: .*{words}", mistake)


def test_filters_then_sparsity_then_int8_works() -> None:
    later = {"second_stage": {"compression": SPARSITY}, "third_stage": {"compression": INT8}}
    settings = AatSettings.model_validate(parameters(compression=FILTERS, **later))
    assert list(settings.later_stages) == [2, 3]
    assert all(stage.skip_without_gain for stage in settings.later_stages.values())


# What a target sets, as the docstring of AatSettings says it.
TARGETS = {
    "cpu": ({"algorithm": "filter_pruning", "round_to": 8}, "latency"),
    "arm": ({"algorithm": "filter_pruning", "rate_of": "macs"}, "bytes"),
    "microcontroller": ({"algorithm": "filter_pruning"}, "bytes"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_short_for_what_it_sets(target: str) -> None:
    compression, objective = TARGETS[target]
    written = parameters(compression=compression, second_stage={"compression": INT8}, export={"objective": objective})
    settings = AatSettings.model_validate(parameters(target=target))
    assert settings.model_copy(update={"target": None}) == AatSettings.model_validate(written)
    assert settings.identity(settings.SEARCHED) == AatSettings.model_validate(written).identity(settings.SEARCHED)
    assert AatSettings.model_validate(settings.model_dump(mode="json", by_alias=True)) == settings


@pytest.mark.parametrize(
    "written",
    [
        {"compression": SPARSITY, "second_stage": None, "export": {"objective": "rate", "batch_sizes": [4]}},
        {"compression": INT8, "export": {"objective": "macs"}},
        {"compression": [SPARSITY, INT8], "export": {"objective": "macs"}},
        {"compression": {"algorithm": "composite", "algorithms": [FILTERS, INT8]}, "export": {"objective": "macs"}},
    ],
)
def test_what_the_user_wrote_wins(written: dict[str, Any]) -> None:
    settings = AatSettings.model_validate(parameters(target="microcontroller", **written))
    assert settings.model_copy(update={"target": None}) == AatSettings.model_validate(parameters(**written))


def test_a_target_sets_only_what_the_user_did_not_write() -> None:
    settings = AatSettings.model_validate(parameters(target="cpu", compression=FILTERS, export={"batch_sizes": [4]}))
    assert settings.compression == AatSettings.model_validate(parameters(compression=FILTERS)).compression
    assert settings.second_stage is not None
    assert (settings.export.objective, settings.export.batch_sizes) == ("latency", (4,))
    assert AatSettings.model_validate(parameters()).second_stage is None


@pytest.mark.parametrize("target", ["gpu", ["cpu"], 3])
def test_an_unknown_target_is_a_mistake(target: Any) -> None:
    (mistake,) = mistakes(target=target)
    assert mistake.startswith("target: must be one of cpu, arm, microcontroller, but got ")


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": [FILTERS, DISTILLATION]},
        {"compression": FILTERS, "second_stage": {"compression": [INT8, DISTILLATION]}},
    ],
)
def test_a_second_distillation_is_refused(changes: dict[str, Any]) -> None:
    (mistake,) = mistakes(**changes)
    assert mistake.startswith("training: only one distillation is allowed, but got knowledge_distillation in the list")
    training = parameters()["training"]
    settings = AatSettings.model_validate(parameters(**changes, training=training | {"distillation": None}))
    assert settings.teaching == {"kind": "mse", "temperature": 1.0, "weight": 0.5}
    own = training | {"train_epoch": "package.module.train_epoch"}  # it decides whether to add the compression's loss
    AatSettings.model_validate(parameters(**changes, training=own))


def test_the_distillation_of_the_training_is_used_if_the_compression_has_none() -> None:
    settings = AatSettings.model_validate(parameters(compression=[FILTERS, INT8]))
    assert settings.teaching == {"kind": "auto", "temperature": 3.0, "weight": 0.7}


SPARSE = {"compression": {"algorithm": "magnitude_sparsity"}}
ACCURACY = {"goal": "accuracy", "export": {"limits": {"macs": 1000}}, "compression": {"algorithm": "filter_pruning"}}


def test_goal_of_accuracy() -> None:
    assert AatSettings.model_validate(parameters()).goal == "size"
    assert AatSettings.model_validate(parameters(**ACCURACY)).goal == "accuracy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"export": {}}, "needs a limit in export.limits"),
        ({"search": {"kind": "interpolate"}}, "needs the search frontier, but got interpolate"),
        ({"search": {"kind": "frontier", "num_path_steps": 2}}, "needs search.num_path_steps to be 1"),
        ({"compression": {}}, "magnitude_sparsity makes single weights zero, which changes no bytes"),
        ({"second_stage": SPARSE}, "allows no later stage but one of quantization alone"),
        ({"second_stage": SPARSE, "third_stage": {}}, "allows no later stage but one of quantization alone"),
    ],
)
def test_goal_of_accuracy_needs_what_a_limit_can_change(changes: dict[str, Any], words: str) -> None:
    (mistake,) = mistakes(**(ACCURACY | changes))
    assert key_of(mistake) == "goal"
    assert words in mistake


def test_limits_identify_a_run_only_if_accuracy_is_the_goal() -> None:
    def identity(limit: int, **changes: Any) -> dict[str, Any]:
        settings = ACCURACY | {"export": {"limits": {"macs": limit}}} | changes
        return AatSettings.model_validate(parameters(**settings)).searched()

    assert identity(1, goal="size") == identity(2, goal="size")
    assert "goal" not in identity(1, goal="size")
    assert identity(1) != identity(2)
    assert identity(1) != identity(1, second_stage={})


@pytest.mark.parametrize(("target", "multiple"), [("litert", 4), ("executorch", 8)])
def test_filters_are_left_in_multiples_that_suit_the_target_of_the_objective(target: str, multiple: int) -> None:
    tree = parameters(compression={"algorithm": "filter_pruning"}, export={"objective": {"target": target}})
    settings = AatSettings.model_validate({**tree, "second_stage": {"compression": {"algorithm": "quantization"}}})
    assert settings.compression.model_dump()["round_to"] == multiple
    written = AatSettings.model_validate({**tree, "compression": {"algorithm": "filter_pruning", "round_to": 3}})
    assert written.compression.model_dump()["round_to"] == 3
    other = AatSettings.model_validate({**tree, "export": {"targets": ["onnx", target]}})
    assert other.compression.model_dump()["round_to"] == 1
