"""The templates with a user's choices in them; everything else, comments too, stays as in the template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from kedro_aat.adoption.init.tasks import Choices

_LOSS = "    loss: torch.nn.CrossEntropyLoss\n"
_METRIC = re.compile(r"(    metric:[^\n]*\n)      class_path: [^\n]*\n      init_args: [^\n]*\n")
_BUDGET = re.compile(r"    max_drop: [^\n]*\n")
_RELATIVE = "    max_relative_drop: 0.05 # a fraction of the baseline's metric; or max_drop, in units of the metric\n"
_ALTERNATIVES = {"table": "# As tables", "images": "# As images", "node": "# As a torch dataset"}
_FIRST_OF_DATA, _AFTER_DATA = "# As tensors", "# Models and files that the pipeline writes"
_SPLITS = {"train_data": "train", "validation_data": "validation", "test_data": "test"}
_LAYER = "  metadata: { kedro-viz: { layer: model_input } }"


def parameters_with(text: str, choices: Choices) -> str:
    """The template of the parameters with loss, metric and budget of a task."""
    if (task := choices.fitting) is None:
        return text
    outputs = choices.outputs or 0
    targets = task.targets.format(outputs=outputs, last=outputs - 1)
    ignored = {} if choices.ignore_index is None else {"ignore_index": choices.ignore_index}
    number = {task.number_key: outputs} if task.number_key else {}
    loss = _imported("loss", task.loss, ignored, f"takes targets {targets}")
    metric = f"      class_path: torchmetrics.{task.metric}\n"
    metric += f"      init_args: {_flow({**number, **task.metric_args, **ignored})}\n"
    text = _replaced(text, _LOSS, loss)
    text = _METRIC.sub(lambda found: found[1] + metric, text)
    return _BUDGET.sub(_RELATIVE, text) if task.is_relative else text


def catalog_with(text: str, choices: Choices) -> str:
    """The template of the catalog with the model but for its weights, and one form of the data in place of all."""
    if choices.model is not None:
        text = text.replace("my_project.models.MyModel", choices.model)
        text = re.sub(r"(?m)^(  class_path: \S+) #.*$", r"\1", text, count=1)
        arguments = _flow(choices.init_args)
        text = text.replace("init_args: {}", f"init_args: {arguments}")
    if choices.weights_key is not None:
        text = re.sub(r"(?m)^  # key: .*$", f"  key: {_plain(choices.weights_key)}", text, count=1)
    if choices.data is None:
        return text
    start, end = text.index(_FIRST_OF_DATA), text.index(_AFTER_DATA)
    return text[:start] + _data(text[start:end], choices) + text[end:]


def with_weights(text: str, weights: str | None) -> str:
    """A catalog with the file of the model's weights, which a namespace must not move to a folder of its own."""
    if weights is None:
        return text
    line = f"  filepath: {_plain(weights)}"
    return re.sub(r"(?m)^  filepath: data/06_models/\S*my_model\.safetensors$", lambda _: line, text)


def without_entries(text: str, names: Mapping[str, str]) -> str:
    """A catalog without some entries.

    Args:
        text: The catalog.
        names: The entries to leave out, and where they are instead.
    """
    for name, place in names.items():
        text = re.sub(rf'(?m)^"?{re.escape(name)}"?:\n(?:  .*\n)+', f"# {name} is in {place}.\n", text)
    return text


def _data(section: str, choices: Choices) -> str:
    """The entries of three splits in one form."""
    blocks = section.split("\n\n")
    heading = _ALTERNATIVES.get(str(choices.data))
    if heading is None:
        return "\n\n".join(block for block in blocks if not block.startswith(tuple(_ALTERNATIVES.values())))
    comment, *commented = next(block for block in blocks if block.startswith(heading)).splitlines()
    lines = [line.removeprefix("# ") for line in commented]
    entry = "\n".join(_chosen(line, choices) for line in lines) + f"\n{_LAYER}"
    entries = [
        entry.replace("train_data:", f"{name}:").replace("05_model_input/train", f"05_model_input/{split}")
        for name, split in _SPLITS.items()
    ]
    return "\n\n".join([f"{comment}\n{entries[0]}", *entries[1:], ""])


def _chosen(line: str, choices: Choices) -> str:
    key = line.strip().partition(":")[0]
    size = None if choices.size is None else list(choices.size)
    value = {"target": choices.target, "size": size, "channels": choices.channels}.get(key)
    if value is None:
        return line
    return f"  {key}: {_plain(value) if isinstance(value, str) else value}"


def _imported(key: str, class_path: str, arguments: Mapping[str, Any], comment: str) -> str:
    if not arguments:
        return f"    {key}: {class_path} # {comment}\n"
    return f"    {key}: # {comment}\n      class_path: {class_path}\n      init_args: {_flow(arguments)}\n"


def _flow(values: Mapping[str, Any]) -> str:
    """A mapping on one line of YAML, as the templates write it."""
    if not values:
        return "{}"
    text: str = yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=10_000).strip()
    return f"{{ {text[1:-1]} }}"


def _plain(value: str) -> str:
    """A text as a value in YAML, with quotes if it needs any."""
    text: str = yaml.safe_dump(value, width=10_000)
    return text.removesuffix("...\n").strip()


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, old  # the templates are ours
    return text.replace(old, new)
