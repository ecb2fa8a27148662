"""Which outputs loss, metric, teacher and gradients read, of models that return several."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.errors import ConfigurationError
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.outputs import Outputs
from kedro_aat.training.teacher import Answers
from tests.training.loading import cases
from tests.training.loading.cases import IDS, MASK, X, Y
from tests.training.loading.test_forms import Run

LOGITS, OTHER = torch.randn(6, 3), torch.randn(6, 3)
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
WORDS = {"input_ids": IDS, "attention_mask": MASK, "labels": Y}


@pytest.mark.parametrize(
    ("setting", "outputs"),
    [
        (None, LOGITS),
        (None, (LOGITS,)),
        (None, {"anything": [LOGITS]}),
        (None, cases.Answer(torch.tensor(1.0), LOGITS, (OTHER, OTHER))),
        (None, {"out": LOGITS, "aux": OTHER}),
        ("1", (OTHER, LOGITS)),
        ("hidden.0", cases.Answer(None, OTHER, (LOGITS,))),
        ("first", LOGITS),
        (["a", "b"], {"b": OTHER, "a": LOGITS}),
        ({"b": 0.5, "a": 1.0}, {"b": LOGITS, "a": OTHER}),
    ],
)
def test_the_metric_reads_one_output(setting: Any, outputs: Any) -> None:
    assert Outputs(setting).main(outputs) is LOGITS


@pytest.mark.parametrize("outputs", [(LOGITS, OTHER), {"a": LOGITS, "b": OTHER}, ()])
def test_several_outputs_need_the_setting(outputs: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"returns {len(outputs)} tensors, and it is not known which"):
        Outputs(None).main(outputs, lambda: outputs)


def test_an_auxiliary_output_of_another_shape_is_not_the_main_one() -> None:
    with pytest.raises(ConfigurationError, match="returns 2 tensors"):
        Outputs(None).main((OTHER[:, :2], LOGITS), lambda: LOGITS)
    assert Outputs(None).main((OTHER, LOGITS[:, :2]), lambda: LOGITS) is OTHER


def test_weights_multiply_the_losses() -> None:
    loss = nn.CrossEntropyLoss()
    found = Outputs({"0": 1.0, "1": 0.4}).loss(loss, (LOGITS, OTHER), TARGETS)
    torch.testing.assert_close(found, loss(LOGITS, TARGETS) + 0.4 * loss(OTHER, TARGETS))
    torch.testing.assert_close(Outputs({"0": 1.0, "1": 0.4}).loss(loss, LOGITS, TARGETS), loss(LOGITS, TARGETS))


def test_a_list_gives_the_loss_several() -> None:
    def loss(outputs: list[Tensor], targets: Tensor) -> Tensor:
        return outputs[0].sum() - outputs[1].sum()

    found = Outputs(["1", "0"]).loss(loss, (LOGITS, OTHER), TARGETS)
    torch.testing.assert_close(found, OTHER.sum() - LOGITS.sum())


@pytest.mark.parametrize(
    ("make", "data"),
    [(cases.Words, WORDS), (cases.TakesDict, {"inputs": {"left": X[:, :2], "right": X[:, 2:]}, "targets": Y})],
)
def test_parts_of_a_batch_have_the_same_gradients(make: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = (Run(make, data) for _ in range(2))
    assert parts.training.halve_batch()
    for run in (whole, parts):
        for module in run.model.modules():  # whose statistics would be those of the parts
            if isinstance(module, nn.BatchNorm1d):
                monkeypatch.setattr(module, "train", lambda mode=True, module=module: module)
                module.training = False
        run.train(0)
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict())


def test_the_teacher_answers_once_for_tensors_of_any_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(cases.Words, WORDS)
    assert run.training._teacher is not None
    calls: list[int] = []
    answer = run.training._teacher.answer

    def counted(inputs: Any) -> Answers:
        calls.append(1)
        return answer(inputs)

    monkeypatch.setattr(run.training._teacher, "answer", counted)
    for epoch in range(3):
        run.train(epoch)
    assert len(calls) == 2  # one example shows the shape of the outputs


def test_the_model_is_compiled_and_called_by_name() -> None:
    plain, compiled = (Run(cases.Words, WORDS, compile=each) for each in (False, True))
    assert compiled.training.validate(compiled.model).metric == plain.training.validate(plain.model).metric


def test_calibration_sees_inputs_alone() -> None:
    run = Run(cases.Plain, {"x": X, "y": Y})
    batches = list(run.training.calibration_batches(2))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(8, 6)] * 2
    controller = QuantizationController(copy.deepcopy(run.model))
    controller.calibrate(batches)


def test_observers_see_the_main_output_and_target() -> None:
    data = {"x": X, "kind": Y, "size": X[:, 0]}
    changes = {
        "batch": {"inputs": "x", "targets": ["kind", "size"]},
        "output": ["kind", "size"],
        "loss": "tests.training.loading.cases.TwoLosses",
    }
    run = Run(cases.TwoHeads, data, **changes)
    seen: list[Tensor] = []
    run.training.observe = lambda outputs, targets: seen.append(targets)
    run.training.validate(run.model)
    assert_same_bits({"targets": torch.cat(seen)}, {"targets": Y})
