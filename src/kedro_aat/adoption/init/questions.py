"""Asks for what the options have left open; an empty answer leaves it as the templates have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

from kedro_aat.adoption.init.models import find_model, model_mistakes, required_arguments
from kedro_aat.adoption.init.tasks import DATA, TASKS, Choices
from kedro_aat.errors import ConfigurationError


def ask(choices: Choices, package: Path) -> Choices:
    """Asks in a terminal.

    Args:
        choices: What the options say; it is not asked again.
        package: Folder of the project's package, for the model's class.
    """
    if None in (choices.task, choices.data, choices.model, choices.weights):
        click.echo("An empty answer leaves a setting for later.")
    choices = _ask_task(choices)
    choices = _ask_data(choices)
    return _ask_model(choices, package)


def _ask_task(choices: Choices) -> Choices:
    if choices.task is None:
        fitting = {name: task for name, task in TASKS.items() if choices.data is None or choices.data in task.data}
        choices = replace(choices, task=_one_of("Task", {name: task.title for name, task in fitting.items()}))
    if choices.task is None:
        return choices
    task = TASKS[choices.task]
    if task.counted and choices.outputs is None:
        # Without their number there is no metric, so this has no empty answer.
        outputs = click.prompt(f"Number of {task.counted}", type=click.IntRange(min=task.fewest))
        choices = replace(choices, outputs=outputs)
    if choices.task == "segmentation" and choices.outputs != 1 and choices.ignore_index is None:
        ignored = _text("Label of pixels without a class, such as 255, if there is one")
        choices = replace(choices, ignore_index=_whole(ignored))
    return choices


def _ask_data(choices: Choices) -> Choices:
    if choices.data is None:
        fitting = DATA if choices.task is None else {kind: DATA[kind] for kind in TASKS[choices.task].data}
        choices = replace(choices, data=_one_of("Data", fitting))
    if choices.data == "table" and choices.target is None:
        choices = replace(choices, target=_text("Target column"))
    if choices.data == "images" and choices.size is None:
        height = _whole(_text("Height of the images in pixels"))
        width = None if height is None else _whole(_text("Width, if it is another"))
        size = None if height is None else (height, width or height)
        choices = replace(choices, size=size)
    return choices


def _ask_model(choices: Choices, package: Path) -> Choices:
    while choices.model is None and (named := _text("Class of the model, such as MyNet or my_package.models.MyNet")):
        try:
            path = find_model(named, package)
        except ConfigurationError as error:
            click.echo(str(error))
            continue
        arguments: dict[str, Any] = {}
        if not _imports(path):
            continue
        if needed := required_arguments(path):
            arguments = _mapping(f"Arguments of {path} as YAML; it needs {', '.join(needed)}")
        if mistakes := model_mistakes(path, arguments):
            click.echo("\n".join(mistakes))
            continue
        choices = replace(choices, model=path, init_args=arguments)
    if choices.model is not None and choices.weights is None:
        choices = replace(choices, weights=_text("File with its weights"))
    return choices


def _imports(path: str) -> bool:
    mistakes = [each for each in model_mistakes(path, {}) if each.startswith("--model")]
    if mistakes:
        click.echo("\n".join(mistakes))
    return not mistakes


def _one_of(question: str, answers: dict[str, str]) -> str | None:
    width = max(map(len, answers))
    for name, meaning in answers.items():
        click.echo(f"  {name:{width}}  {meaning}")
    known = click.Choice(["", *answers])
    return click.prompt(question, type=known, default="", show_choices=False, show_default=False) or None


def _text(question: str) -> str | None:
    return str(click.prompt(question, default="", show_default=False)).strip() or None


def _whole(text: str | None) -> int | None:
    while text is not None:
        try:
            return int(text)
        except ValueError:
            text = _text(f"{text} is no whole number; again")
    return None


def _mapping(question: str) -> dict[str, Any]:
    while True:
        try:
            return mapping_of(_text(question) or "{}")
        except ValueError as error:
            click.echo(str(error))


def mapping_of(text: str) -> dict[str, Any]:
    """Arguments that are written as a mapping in YAML or JSON.

    Raises:
        ValueError: It is no mapping.
    """
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        loaded = None
    if not isinstance(loaded, dict):
        raise ValueError(f"must be a mapping in YAML, such as '{{ width: 48 }}', but got {text!r}")
    return {str(key): value for key, value in loaded.items()}
