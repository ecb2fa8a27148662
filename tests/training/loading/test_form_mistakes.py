"""Data of which it is not clear how they are read are one clear error; what a resumed run may not repeat is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler

from kedro_aat.errors import AatError
from kedro_aat.training.loading import datasets
from tests.training.loading import cases
from tests.training.loading.cases import RAGGED, TENSORS, Examples, X, Y, loader
from tests.training.loading.test_forms import Run, settings

F1 = {"class_path": "torchmetrics.classification.MulticlassF1Score", "init_args": {"num_classes": 3, "average": "none"}}


@pytest.mark.parametrize(
    ("model", "data", "changes", "message"),
    [
        (
            cases.Plain,
            Examples(lambda i: (X[i], Y[i], 1.0)),
            {},
            r"training split is a list of 0: \(8, 6\) .*2: .*training.batch: \{inputs: 0, targets: 1\}",
        ),
        (cases.Plain, Examples(lambda i: {"a": X[i], "b": Y[i], "path": "x"}), {}, r"\{inputs: a, targets: b\}"),
        (cases.Plain, Examples(lambda i: {"x": X[i], "y": Y[i], "label": Y[i]}), {}, "not known which parts"),
        (cases.TwoInputs, Examples(lambda i: {"a": X[i], "b": X[i], "y": Y[i]}), {}, r"\{inputs: \[a, b\], targets: y"),
        (cases.Plain, Examples(lambda i: X[i]), {}, r"a Tensor of \(8, 6\).* Let each example be a pair"),
        (
            cases.Plain,
            Examples(lambda i: {"x": X[i], "y": Y[i]}),
            {"batch": {"inputs": "imag", "targets": "y"}},
            "no part imag, which training.batch names: it has x: ",
        ),
        (cases.Plain, TENSORS, {"batch": {"inputs": 0, "targets": 2}}, "no part 2, which"),
        (cases.Plain, {"a": X, "b": Y}, {}, "needs inputs and targets, but has a, b. Name both under training.batch"),
        (cases.Plain, {"x": ["a"], "y": [1]}, {}, r"neither tensors nor .* but x \(list\), y \(list\)\. Give one"),
        (cases.Plain, {"x": X, "y": Y[:-2]}, {}, "has 32 x, 30 y: give as many"),
        (cases.Recurrent, RAGGED, {}, r"8 examples cannot .* are .*\(5, 4\)\. Name .*loader.collate_fn"),
        (cases.Pair, TENSORS, {}, r"returns 2 tensors.* one of these paths: 0 \(\d, 3\), 1 \(\d, 6\)"),
        (cases.TwoHeads, TENSORS, {"output": "knd"}, r"no output knd; its 2 outputs are kind \(\d, 3\), size"),
        (cases.Plain, loader(shuffle=True), {}, "validation split reads its 32 examples in another order"),
        (cases.Plain, loader(batch_size=5, drop_last=True), {}, "drops the last 2 of 32 examples"),
        (cases.Plain, loader(sampler=cases.OwnSampler()), {}, "another order each time"),
        (cases.Plain, cases.ShuffledStream(), {}, r"validation split \(ShuffledStream\) differ when"),
        (cases.Plain, loader(cases.ShuffledStream()), {}, "differ when they are read twice"),
        (cases.Plain, cases.EndlessStream(), {}, "of EndlessStream were .* in 0.05 seconds .*steps_per_epoch will do"),
        (cases.Plain, Examples(lambda i: (X[i], Y[i]), 0), {}, "The training split has 0 examples"),
        (cases.Plain, TENSORS, {"metric": F1}, r"MulticlassF1Score computes an array of shape \(3,\).* Set an average"),
    ],
)  # fmt: skip
def test_unclear_data_are_one_error(
    model: Any, data: Any, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "COUNTING_SECONDS", 0.05)

    def used() -> None:
        run = Run(model, data, **changes)
        run.train(0)
        run.training.validate(run.model)

    with pytest.raises(AatError, match=message):
        used()


@pytest.mark.parametrize("stream", [cases.SizedStream(), cases.Stream()])
def test_validation_reads_no_example_twice(stream: Any) -> None:
    run = Run(cases.Plain, TENSORS, stream, num_workers=2)
    with pytest.raises(AatError, match=r"read 64 examples, but the split has 32. With 2 worker processes"):
        run.training.validate(run.model)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (loader(sampler=cases.OwnSampler()), "OwnSampler gives"),
        (cases.ShuffledStream(), "ShuffledStream gives"),
        (cases.EpochStream(), ""),
        (cases.SizedStream(), ""),
        (loader(shuffle=True), ""),
        (loader(), ""),
        (loader(sampler=DistributedSampler(TENSORS, 2, 0)), ""),
        (TENSORS, ""),
    ],
)
def test_an_order_that_no_resumed_run_repeats_is_told(data: Any, told: str, caplog: pytest.LogCaptureFixture) -> None:
    Run(cases.Plain, data, TENSORS)
    assert (told in caplog.text) if told else ("order" not in caplog.text)


@pytest.mark.parametrize(
    "data",
    [
        loader(shuffle=True),
        loader(shuffle=True, generator=torch.Generator().manual_seed(5)),
        loader(sampler=DistributedSampler(TENSORS, 2, 0)),
        loader(num_workers=1, shuffle=True),
        cases.EpochStream(),
    ],
)
def test_the_order_of_the_users_loader_depends_on_seed_and_epoch(data: Any) -> None:
    def orders(epochs: list[int]) -> list[list[int]]:
        training = Run(cases.Plain, data, TENSORS).training
        return [torch.cat([y for _, y in training.train_batches(epoch)]).tolist() for epoch in epochs]

    first, second, third = orders([0, 1, 2])
    torch.manual_seed(77)
    assert orders([1, 2]) == [second, third]
    assert first != second


def test_workers_may_stay() -> None:
    options = {"persistent_workers": True, "worker_init_fn": "tests.training.loading.cases.init_worker"}
    stay, leave = (Run(cases.Plain, TENSORS, num_workers=1, loader=each) for each in (options, {}))
    assert [stay.train(epoch) for epoch in range(3)] == [leave.train(epoch) for epoch in range(3)]
    assert stay.training.validate(stay.model).metric == leave.training.validate(leave.model).metric


def test_a_stream_without_an_end_trains_by_steps() -> None:
    run = Run(cases.Plain, cases.EndlessStream(), TENSORS, loader={"steps_per_epoch": 3})
    assert run.training.steps_per_epoch == 3
    assert run.training.num_train_examples == 24
    assert run.train(0) > 0


@pytest.mark.parametrize(
    ("mistaken", "message"),
    [
        ({"batch": {"inputs": []}}, r"batch.inputs: must be a name, a position, or a list .*, but got \[\]"),
        ({"batch": {"inputs": ["a", 1]}}, r"batch.inputs: must be .* but got \['a', 1\]"),
        ({"loader": {"colate_fn": "a.b"}}, "loader.colate_fn: unknown key .*Did you mean 'collate_fn'"),
        ({"output": []}, "output: must be the path of an output"),
        ({"output": {"a": float("inf")}}, "output: must be the path of an output"),
        ({"loader": {"collate_fn": "tests.training.loading.cases.no"}}, "loader.collate_fn.class_path: .* has no 'no'"),
        (
            {"loader": {"sampler": "torch.utils.data.RandomSampler", "batch_sampler": "torch.utils.data.BatchSampler"}},
            "loader.batch_sampler: chooses the examples, so that sampler must be left out",
        ),
    ],
)
def test_mistaken_settings(mistaken: dict[str, Any], message: str) -> None:
    with pytest.raises(AatError, match=message):
        settings(**mistaken).check()
