"""What a user chooses, and the loss, the metric and the form of the targets that fit each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kedro_aat.errors import ConfigurationError

DATA = {
    "tensors": "files with `inputs` and `targets`",
    "table": "CSV or Parquet files, with one column as the target",
    "images": "folders of images, one subfolder per class",
    "node": "a torch dataset, or anything else, that a node of yours returns",
}


@dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
        title: What it is, in words.
        counted: What the number of outputs counts, such as `classes`; empty if no setting needs it.
        loss: Import path of the loss.
        metric: Name of the metric in torchmetrics.
        metric_args: Its arguments besides the number of outputs.
        number_key: Its argument for the number of outputs; empty if it has none.
        targets: Shape and type of the targets, for a comment.
        data: Kinds of data that can hold such targets.
        is_relative: Whether the budget is a fraction, since the metric has the unit of the data.
        fewest: Smallest number of outputs.
    """

    title: str
    loss: str
    metric: str
    targets: str
    counted: str = ""
    number_key: str = ""
    metric_args: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ("tensors", "node")
    is_relative: bool = False
    fewest: int = 2


TASKS = {
    "classification": Task(
        "one of several classes",
        "torch.nn.CrossEntropyLoss",
        "classification.MulticlassAccuracy",
        "(N,), integers from 0 to {last}, for outputs (N, {outputs})",
        "classes",
        "num_classes",
        {"average": "micro"},
        tuple(DATA),
    ),
    "binary": Task(
        "yes or no, as one logit",
        "torch.nn.BCEWithLogitsLoss",
        "classification.BinaryAccuracy",
        "(N,), each 0 or 1, for outputs (N, 1) or (N,)",
        data=tuple(DATA),
    ),
    "multilabel": Task(
        "any number of labels",
        "torch.nn.BCEWithLogitsLoss",
        "classification.MultilabelF1Score",
        "(N, {outputs}), each 0 or 1, for outputs (N, {outputs})",
        "labels",
        "num_labels",
        {"average": "micro"},
    ),
    "regression": Task(
        "numbers",
        "torch.nn.MSELoss",
        "regression.MeanAbsoluteError",
        "(N,) for outputs (N, 1) or (N,), or in the shape of the outputs; floats",
        data=("tensors", "table", "node"),
        is_relative=True,
    ),
    "segmentation": Task(
        "a class for each pixel; 1 class is a mask of one logit",
        "torch.nn.CrossEntropyLoss",
        "classification.MulticlassJaccardIndex",
        "(N, H, W), integers from 0 to {last}, for outputs (N, {outputs}, H, W)",
        "classes",
        "num_classes",
        fewest=1,
    ),
    "forecasting": Task(
        "the next values of a series",
        "torch.nn.MSELoss",
        "regression.MeanAbsoluteError",
        "(N, steps) or (N, steps, series), in the shape of the outputs; floats",
        is_relative=True,
    ),
}
MASK = Task(
    "a mask of one logit",
    "torch.nn.BCEWithLogitsLoss",
    "classification.BinaryJaccardIndex",
    "(N, H, W), each 0 or 1, for outputs (N, 1, H, W)",
)


@dataclass(frozen=True)
class Choices:
    """What a user has chosen; None is left as the templates have it.

    Attributes:
        model: Import path of the model's class.
        init_args: Its arguments.
        weights: Its weights, a path below the project, or an absolute one.
        weights_key: Key of the file under which they are; None if they are all of it.
        data: A key of `DATA`.
        target: Target column of a table.
        size: Height and width of images, in pixels.
        channels: Channels of images, 1 or 3.
        task: A key of `TASKS`.
        outputs: Number of classes or labels.
        ignore_index: Label of pixels that have no class.
    """

    model: str | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_key: str | None = None
    data: str | None = None
    target: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    task: str | None = None
    outputs: int | None = None
    ignore_index: int | None = None

    def check(self) -> None:
        """Checks what fits together.

        Raises:
            ConfigurationError: Lists what does not, with the options to change.
        """
        if mistakes := [*self._task_mistakes(), *self._data_mistakes()]:
            raise ConfigurationError("Nothing was written", mistakes)

    def _task_mistakes(self) -> list[str]:
        if self.task is None:
            given = {"--outputs": self.outputs, "--ignore-index": self.ignore_index}
            return [f"{key}: needs --task, too" for key, value in given.items() if value is not None]
        task, mistakes = TASKS[self.task], []
        if task.counted and self.outputs is None:
            mistakes.append(f"--outputs: {self.task} needs the number of {task.counted} here")
        elif task.counted and (self.outputs or 0) < task.fewest:
            hint = "; for one logit, use --task binary" if self.task == "classification" else ""
            mistakes.append(
                f"--outputs: {self.task} has at least {task.fewest} {task.counted}, not {self.outputs}{hint}"
            )
        if self.ignore_index is not None and (self.task != "segmentation" or self.outputs == 1):
            mistakes.append("--ignore-index: only segmentation with several classes has such a label")
        return mistakes

    def _data_mistakes(self) -> list[str]:
        mistakes = []
        if self.task is not None and self.data is not None and self.data not in (fitting := TASKS[self.task].data):
            holds = "one target column" if self.data == "table" else "one class per image"
            mistakes.append(
                f"--data: {self.data} has {holds}, which {self.task} cannot be learned from; use {' or '.join(fitting)}"
            )
        if self.target is not None and self.data != "table":
            mistakes.append("--target: only --data table has a target column")
        if (self.size or self.channels) and self.data != "images":
            mistakes.append("--size and --channels: only --data images has these")
        if self.model is None and self.init_args:
            mistakes.append("--init-args: needs --model, too")
        return mistakes

    @property
    def fitting(self) -> Task | None:
        """The task with its loss and metric."""
        if self.task is None:
            return None
        return MASK if (self.task, self.outputs) == ("segmentation", 1) else TASKS[self.task]
