"""Which parts of a batch are the model's inputs, and which are the targets."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from kedro_aat.errors import DataError
from kedro_aat.model_inputs import ModelInputs, describe_inputs, named_tensors, tensors_in
from kedro_aat.training.loading.settings import BatchSettings, Key
from kedro_aat.training.task_loss import Weighted

# Names that say by themselves what a part of a batch is.
TARGET_NAMES = ("targets", "target", "labels", "label", "y")
INPUT_NAMES = ("inputs", "input", "x", "images", "image", "features", "data")


class BatchForm:
    """Splits batches into inputs and targets, as the settings say or, without them, as follows.

    A pair is (inputs, targets). Of a mapping, named tuple or dataclass, the part with one of the names in
    `TARGET_NAMES` is the target, and all others that parameters of the model's `forward` are named like are inputs,
    as in Hugging Face's data; if there are none, the part with one of the names in `INPUT_NAMES` is the input.

    Args:
        settings: What the user says.
        model: The model, whose signature counts; None if it is unknown.
        split: Name of the split, for errors.
        without: Names of parts that are neither, such as the groups of the examples.
    """

    def __init__(
        self, settings: BatchSettings, model: nn.Module | None, split: str = "training", without: Collection[str] = ()
    ) -> None:
        self._settings, self._split, self._without = settings, split, {*without, *_roots(settings.weights)}
        self._parameters, self._takes_any = _parameters_of(model)

    def __call__(self, batch: Any) -> tuple[ModelInputs, Any]:
        """The inputs and the targets of a batch, or of one example.

        Raises:
            DataError: If it is not known which they are; the message shows what the batch holds.
        """
        inputs, targets = self._settings.inputs, self._settings.targets
        if inputs is not None and targets is not None:
            return self._chosen(batch, inputs), self._chosen(batch, targets)
        if isinstance(batch, tuple | list) and len(batch) == 2 and not _is_usual(batch):
            first = batch[0] if inputs is None else self._chosen(batch, inputs)
            return first, batch[1] if targets is None else self._chosen(batch, targets)
        parts = _named_parts(batch)
        target = None if parts is None or targets is not None else self._only(batch, parts, TARGET_NAMES)
        if parts is None or (targets is None and target is None):
            self._refuse(batch)
        given = parts[target] if target is not None else self._chosen(batch, targets)
        left = {name: part for name, part in parts.items() if name not in self._without | _roots(targets) | {target}}
        return self._usual_inputs(batch, left) if inputs is None else self._chosen(batch, inputs), given

    def weighted(self, batch: Any) -> tuple[ModelInputs, Any]:
        """The inputs and the targets of a batch of training, `Weighted` if the settings name weights of the examples.

        Raises:
            DataError: As for a call, and if there are no such weights.
        """
        inputs, targets = self(batch)
        if self._settings.weights is None:
            return inputs, targets
        return inputs, Weighted(targets, self._part(batch, self._settings.weights))

    def _usual_inputs(self, batch: Any, parts: Mapping[str, Any]) -> ModelInputs:
        named = [name for name in self._parameters if name in parts]
        if named:
            is_first = named == self._parameters[:1]
            return parts[named[0]] if is_first else {name: parts[name] for name in named}
        if (name := self._only(batch, parts, INPUT_NAMES)) is not None:
            return parts[name]
        if not self._takes_any or not (tensors := {key: part for key, part in parts.items() if [*tensors_in(part)]}):
            self._refuse(batch)
        return tensors

    def _only(self, batch: Any, parts: Mapping[str, Any], usual: Collection[str]) -> str | None:
        found = [name for name in usual if name in parts]
        if len(found) > 1:
            self._refuse(batch)
        return found[0] if found else None

    def _chosen(self, batch: Any, keys: Key | list[Key] | None) -> Any:
        if not isinstance(keys, list):
            return self._part(batch, keys)
        if isinstance(keys[0], str):
            return {str(key).rpartition(".")[2]: self._part(batch, key) for key in keys}
        return tuple(self._part(batch, key) for key in keys)

    def _part(self, batch: Any, key: Key | None) -> Any:
        part = batch
        for name in [key] if isinstance(key, int) else str(key).split("."):
            parts = _named_parts(part) or {}
            if name in parts:
                part = parts[name]
                continue
            try:
                part = tuple(part if isinstance(part, tuple | list) else ())[int(name)]
            except (ValueError, LookupError):
                raise DataError(
                    f"A batch of the {self._split} split has no part {key}, which training.batch names: it has "
                    f"{_described(batch)}."
                ) from None
        return part

    def _refuse(self, batch: Any) -> NoReturn:
        named = _named_parts(batch) or dict(enumerate(batch if isinstance(batch, tuple | list) else ()))
        keys = [key for key, part in named.items() if [*tensors_in(part)]]
        target = next((key for key in keys if key in TARGET_NAMES), keys[1] if len(keys) > 1 else None)
        others = [str(key) for key in keys if key != target]
        chosen = others if target in TARGET_NAMES else others[:1]
        inputs = f"[{', '.join(chosen)}]" if len(chosen) > 1 else "".join(chosen)
        advice = f"Name them in the settings, such as training.batch: {{inputs: {inputs}, targets: {target}}}."
        raise DataError(
            f"A batch of the {self._split} split is a {type(batch).__name__} of {_described(batch)}: it is not known "
            "which parts are inputs of the model, and which are targets. "
            + (advice if others and target is not None else "Let each example be a pair (input, target).")
        )


def _parameters_of(model: nn.Module | None) -> tuple[list[str], bool]:
    """Names of the parameters of a model's `forward`, and whether it takes others, too."""
    if model is None:
        return [], True
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a scripted module has no signature
        return [], True
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    # What runs an exported file tells the names of the inputs by an attribute.
    named = list(getattr(model, "input_names", None) or named)
    return named, any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in parameters)


def _named_parts(batch: Any) -> dict[Any, Any] | None:
    """The parts of a mapping, named tuple or dataclass; None for anything else."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def _is_usual(batch: Any) -> bool:
    """Whether the names of a named tuple say which part is the target, in whatever order."""
    return any(name in TARGET_NAMES for name in getattr(batch, "_fields", ()))


def _roots(keys: Key | list[Key] | None) -> set[Any]:
    listed = keys if isinstance(keys, list) else [keys]
    return {key.partition(".")[0] if isinstance(key, str) else key for key in listed}


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return describe_inputs(batch)
    others = [
        f"{name}: {type(part).__name__}"
        for name, part in (_named_parts(batch) or {}).items()
        if not [*named_tensors(part)]
    ]
    return ", ".join([describe_inputs(batch), *others])
