"""The usual mistakes: losses and metrics of torch and torchmetrics that do not fit outputs and targets of this form.

Each is known by its form alone, so that the message can name what to write instead. What is not known here is tried, in
`targets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from kedro_aat.training.settings import TrainingSettings

LOSSES_OF_LABELS = nn.CrossEntropyLoss | nn.NLLLoss | nn.MultiMarginLoss
_LOSSES_OF_EACH_OUTPUT = nn.BCEWithLogitsLoss | nn.BCELoss | nn.MultiLabelSoftMarginLoss


def usual_mistakes(outputs: Tensor, targets: Tensor, settings: TrainingSettings) -> list[str]:
    """Says which of the usual mistakes the settings have.

    Args:
        outputs: Outputs of the model for a batch, (B, ...).
        targets: Its targets, (B, ...).
        settings: Settings of the training, which name metric and loss.

    Returns:
        At most one text about the loss, and one about the metric.
    """
    found: list[str] = []
    if settings.train_epoch is None:
        loss = settings.loss.make_function()
        name = f"the loss {type(loss).__name__}"
        checks = (_one_output_for_labels, _several_labels_for_one, _labels_for_each_output, _wrong_number_of_weights)
        found += _first(checks, outputs, targets, loss, name)
    if settings.metric is not None:
        metric = settings.metric.make()
        name = f"the metric {type(metric).__name__}"
        found += _first((_numbers_for_classes, _class_numbers_for_one_hot), outputs, targets, metric, name)
    return found


_Check = Callable[[Tensor, Tensor, object, str], Iterator[str]]


def _first(checks: tuple[_Check, ...], outputs: Tensor, targets: Tensor, reader: object, name: str) -> list[str]:
    return [text for check in checks for text in check(outputs, targets, reader, name)][:1]


def shape_of(tensor: Tensor) -> str:
    """The shape with N for the number of examples."""
    return f"(N{''.join(f', {size}' for size in tensor.shape[1:])}{',' * (tensor.dim() == 1)})"


def _one_output_for_labels(outputs: Tensor, targets: Tensor, loss: object, name: str) -> Iterator[str]:
    if outputs.shape[1:2] in ((), (1,)) and isinstance(loss, LOSSES_OF_LABELS):
        yield (
            f"Outputs of shape {shape_of(outputs)}: {name} needs one output per class. For two classes and one output, "
            "set training.loss to torch.nn.BCEWithLogitsLoss, which takes targets as floats; for numbers, to "
            "torch.nn.L1Loss or another loss of regression."
        )


def _several_labels_for_one(outputs: Tensor, targets: Tensor, loss: object, name: str) -> Iterator[str]:
    """Cross-entropy reads a row of zeros and ones as probabilities, and trains something else without an error."""
    if not isinstance(loss, nn.CrossEntropyLoss) or targets.shape != outputs.shape or targets.shape[1:2] <= (1,):
        return
    if _are_zeros_and_ones(targets) and bool((num_labels := targets.sum(1)).ne(1).any()):
        lowest, highest = int(num_labels.min()), int(num_labels.max())
        yield (
            f"{lowest} to {highest} labels per example in targets of shape {shape_of(targets)}: {name} takes one label "
            "per example. For several, set training.loss to torch.nn.BCEWithLogitsLoss, and training.metric to "
            "torchmetrics.classification.MultilabelF1Score with "
            f"init_args: {{ num_labels: {targets.shape[1]} }} or another multilabel metric."
        )


def _labels_for_each_output(outputs: Tensor, targets: Tensor, loss: object, name: str) -> Iterator[str]:
    shape = outputs.shape[:1] + outputs.shape[2:]
    is_whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    if isinstance(loss, _LOSSES_OF_EACH_OUTPUT) and outputs.shape[1:2] > (1,) and targets.shape == shape and is_whole:
        yield (
            f"Targets of shape {shape_of(targets)} for outputs of shape {shape_of(outputs)}: {name} takes a 0 or 1 for "
            f"each output. For labels from 0 to {outputs.shape[1] - 1}, set training.loss to "
            "torch.nn.CrossEntropyLoss; for several labels per example, give floats of shape "
            f"{shape_of(outputs)} that are 0 or 1."
        )


def _wrong_number_of_weights(outputs: Tensor, targets: Tensor, loss: object, name: str) -> Iterator[str]:
    num_classes = outputs.shape[1] if outputs.dim() > 1 else 1
    of_each = isinstance(loss, nn.BCEWithLogitsLoss)
    key = "pos_weight" if of_each else "weight"
    weights = getattr(loss, key, None) if of_each or isinstance(loss, LOSSES_OF_LABELS) else None
    # What torch broadcasts, such as one number for all outputs, is right.
    if isinstance(weights, Tensor) and weights.dim() == 1 and len(weights) not in (num_classes, 1 if of_each else 0):
        yield (
            f"{len(weights)} numbers under {key} of {name}, for outputs of shape {shape_of(outputs)}: give "
            f"{num_classes}, one per {'output' if of_each else 'class'}, as a list."
        )


def _numbers_for_classes(outputs: Tensor, targets: Tensor, metric: object, name: str) -> Iterator[str]:
    """Metrics of `torchmetrics.classification` compare classes."""
    is_of_classes = type(metric).__module__.startswith("torchmetrics.classification")
    if not is_of_classes or not targets.is_floating_point() or outputs.shape[1:2] > (1,):
        return
    if bool((targets != targets.round()).any()):
        yield (
            f"Targets of shape {shape_of(targets)} from {float(targets.min()):.4g} to {float(targets.max()):.4g} are "
            f"no classes: {name} is one of classification. Set training.metric to "
            "torchmetrics.regression.MeanAbsoluteError or another one of torchmetrics.regression; for classes, give "
            "their numbers as integers."
        )


def _class_numbers_for_one_hot(outputs: Tensor, targets: Tensor, metric: object, name: str) -> Iterator[str]:
    """Metrics of `torchmetrics.segmentation` read one-hot targets unless they are told otherwise."""
    wanted = getattr(metric, "input_format", None)
    if wanted not in ("one-hot", "index") or targets.is_floating_point():
        return
    if outputs.shape[1:2] > (1,) and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
        num_classes = outputs.shape[1]
        mixed = "set input_format: mixed in its init_args, or "
        if bool(((targets < 0) | (targets >= num_classes)).any()):  # such a metric has no ignore_index
            mixed = ""
        yield (
            f"Targets of shape {shape_of(targets)} for outputs of shape {shape_of(outputs)}: {name} with input_format: "
            f"{wanted} takes both in one form, but the targets are numbers of classes and the outputs one score per "
            f"class: {mixed}set training.metric to torchmetrics.classification.MulticlassJaccardIndex with init_args: "
            f"{{ num_classes: {num_classes} }}, the mean IoU of all pixels, which takes an ignore_index, too."
        )


def _are_zeros_and_ones(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())
