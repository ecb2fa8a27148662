"""Finds targets that metric or loss misread.

What a metric or a loss of the user's expects is not written down anywhere. So it is tried: if it computes something
else from the targets in another form, or only then computes anything, the targets are in the wrong form.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kedro_aat.training.checks.usual import LOSSES_OF_LABELS, shape_of, usual_mistakes
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.target_forms import TargetForm

_Key = tuple[str, str]  # "metric" or "loss", and its name


@dataclass(frozen=True)
class _Form:
    """Another form of the targets of a batch.

    `misreading` names what may compute a number, but a wrong one, from the form at hand; anything else fails with it.
    """

    targets: Tensor
    advice: str
    misreading: tuple[str, ...] = ("metric", "loss")


def target_mistakes(outputs: Tensor, targets: Tensor, settings: TrainingSettings) -> list[str]:
    """Says which of metric and loss misread the targets of a batch, and how to mend them.

    Args:
        outputs: Outputs of the model, (B, ...).
        targets: Targets, (B, ...).
        settings: Settings of the training, which name metric and loss.

    Returns:
        At most one text.
    """
    outputs, targets = outputs.detach().cpu(), targets.cpu()
    if len(outputs) > 2 and outputs.shape[:1] == outputs.shape[1:2]:  # as many examples as classes: shapes say nothing
        outputs, targets = outputs[:-1], targets[:-1]
    if len(outputs) < 2 or outputs.shape[:1] == outputs.shape[1:2]:
        return []
    if usual := usual_mistakes(outputs, targets, settings):
        return [" ".join(usual)]
    if not (forms := [*_other_forms(outputs, targets)]):
        return []
    functions = _functions(settings)
    now = {key: _try(compute, outputs, targets) for key, compute in functions.items()}
    for form in forms:
        then = {key: _try(compute, outputs, form.targets) for key, compute in functions.items()}
        if effects := [*_effects(form, now, then)]:
            refusing = [key for key in functions if now[key] is not None and then[key] is None]
            but = "".join(f" The {kind} {name} does not take these: wrap one of the two." for kind, name in refusing)
            shapes = f"Targets of shape {shape_of(targets)} and type {str(targets.dtype)[6:]}"
            return [
                f"{shapes}, for outputs of shape {shape_of(outputs)}: {' and '.join(effects)} on the first batch. "
                f"{form.advice}{but}"
            ]
    return []


def _effects(form: _Form, now: Mapping[_Key, float | None], then: Mapping[_Key, float | None]) -> Iterator[str]:
    for (kind, name), other in then.items():
        value = now[kind, name]
        if other is not None and value is None:
            yield f"the {kind} {name} fails"
        elif other is not None and value is not None and kind in form.misreading and not _is_same(value, other):
            yield f"the {kind} {name} is {value:.4g} instead of {other:.4g}"


def _functions(settings: TrainingSettings) -> dict[_Key, Callable[[Tensor, Tensor], float]]:
    """What computes a number from outputs and targets, by its kind and name."""
    functions: dict[_Key, Callable[[Tensor, Tensor], float]] = {}
    if settings.metric is not None:
        metric = settings.metric.make()
        metric_form = TargetForm(metric)

        def compute(outputs: Tensor, targets: Tensor) -> float:
            metric.reset()
            metric.update(*metric_form(outputs, targets))
            return float(metric.compute())

        functions["metric", settings.metric_name] = compute
    if settings.train_epoch is None:
        loss = settings.loss.make_function()
        loss_form = TargetForm(loss)
        functions["loss", settings.loss.class_path.rpartition(".")[2]] = lambda *batch: float(loss(*loss_form(*batch)))
    return functions


def _try(compute: Callable[[Tensor, Tensor], float], outputs: Tensor, targets: Tensor) -> float | None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compute(outputs.clone(), targets.clone())
    except Exception:  # whatever the user's class or torch raises
        return None


def _is_same(value: float, other: float) -> bool:
    both_nan = math.isnan(value) and math.isnan(other)
    return both_nan or abs(value - other) <= 1e-5 * max(abs(value), abs(other))


def _other_forms(outputs: Tensor, targets: Tensor) -> Iterator[_Form]:
    is_whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    if outputs.dim() > 1 and outputs.shape[1] > 1:
        shape = outputs.shape[:1] + outputs.shape[2:]
        if targets.shape == outputs.shape and _is_one_hot(targets):
            # torch's cross-entropy takes them, and has another mean with class weights.
            yield _Form(
                targets.argmax(1), "They are one-hot, but should be labels: give targets.argmax(1).", ("metric",)
            )
        elif targets.shape == outputs.shape and _are_probabilities(targets):
            advice = (
                "They are probabilities of the classes, but the metric takes labels: give targets.argmax(1), or wrap "
                "the metric."
            )
            yield _Form(targets.argmax(1), advice, ("metric",))
        elif targets.numel() == shape.numel() and is_whole:
            labels = targets.reshape(shape).long()
            if targets.shape != shape:
                yield _Form(labels, f"They should be labels: give integers of shape {shape_of(labels)}.")
            elif targets.dtype != torch.int64:
                yield _Form(labels, "They should be labels: give targets.long().", ())
    if targets.numel() == outputs.numel():
        if targets.shape != outputs.shape:
            advice = "Each output would be compared with each target: give targets the shape of the outputs."
            yield _Form(targets.reshape(outputs.shape).to(outputs.dtype), advice)
        elif not targets.is_floating_point():
            yield _Form(targets.to(outputs.dtype), "They should be floats: give targets.float().", ())
        elif is_whole:
            yield _Form(targets.long(), "They should be integers: give targets.long().", ())


def _is_one_hot(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all())


def _are_probabilities(targets: Tensor) -> bool:
    return bool(((targets >= 0) & (targets <= 1)).all() and ((targets.double().sum(1) - 1).abs() < 1e-3).all())


def label_mistakes(
    outputs: Tensor, targets: Tensor, takers: Mapping[str, object], split: str = "validation"
) -> list[str]:
    """Says how many labels of a batch lie outside 0 to C - 1.

    Args:
        outputs: Outputs of the model, (B, C, ...).
        targets: Targets, (B, ...).
        takers: What `takers_of_labels` found.
        split: Name of the split, for the text.

    Returns:
        At most one text.
    """
    if outputs.dim() < 2 or outputs.shape[:1] + outputs.shape[2:] != targets.shape or targets.is_floating_point():
        return []
    num_classes = outputs.shape[1]
    takers = {name: each for name, each in takers.items() if getattr(each, "num_classes", num_classes) == num_classes}
    for ignored in dict.fromkeys(getattr(taker, "ignore_index", None) for taker in takers.values()):
        labels = targets if ignored is None else targets[targets != ignored]
        if num_outside := int(((labels < 0) | (labels >= num_classes)).sum()):
            names = [name for name, taker in takers.items() if getattr(taker, "ignore_index", None) == ignored]
            lowest, highest = int(labels.min()), int(labels.max())
            outside = labels[(labels < 0) | (labels >= num_classes)]
            advice = "correct them, or set ignore_index in its init_args"
            if lowest >= 1 and highest == num_classes:
                advice = "subtract 1 from them"
            elif bool((outside == outside[0]).all()):  # such as the 255 of a mask's border
                advice = (
                    f"correct them, or, if {int(outside[0])} marks what has no class, set ignore_index: "
                    f"{int(outside[0])} in the init_args of loss and metric"
                )
            return [
                f"{num_outside:,} of {labels.numel():,} labels in a {split} batch lie outside 0 to "
                f"{num_classes - 1}, which {' and '.join(names)} needs for outputs of {num_classes} classes; they run "
                f"from {lowest} to {highest}: {advice}."
            ]
    return []


def takers_of_labels(settings: TrainingSettings) -> dict[str, object]:
    """Metric and loss, as far as it is known that they take labels from 0 to C - 1, by their names."""
    takers: dict[str, object] = {}
    if settings.metric is not None and getattr(metric := settings.metric.make(), "num_classes", None):
        takers[f"the metric {type(metric).__name__}"] = metric
    if settings.train_epoch is None and isinstance(loss := settings.loss.make_function(), LOSSES_OF_LABELS):
        takers[f"the loss {type(loss).__name__}"] = loss
    return takers
