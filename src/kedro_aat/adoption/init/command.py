"""The command `kedro aat init`; its docstring is the help text.

Kedro imports this module for every command of a project, so whatever takes long to import is imported in the functions.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedro_aat.adoption.init.tasks import DATA, TASKS, Choices
from kedro_aat.adoption.selection import conf_source_option
from kedro_aat.errors import ConfigurationError
from kedro_aat.storage import local_path

if TYPE_CHECKING:
    from kedro.framework.startup import ProjectMetadata
    from kedro.pipeline import Pipeline

    from kedro_aat.adoption.init.write import Place


def _arguments(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, Any]:
    from kedro_aat.adoption.init.questions import mapping_of

    try:
        return {} if text is None else mapping_of(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _size(_: click.Context, __: click.Parameter, size: tuple[int, ...]) -> tuple[int, int] | None:
    if len(size) > 2:
        raise click.BadParameter("give it once for height and width, or twice: the height, then the width")
    return (size[0], size[-1]) if size else None


@click.command()
@click.option("--env", "-e", default="base", show_default=True, help="Environment whose folder is written to.")
@conf_source_option
@click.option("--namespace", help="Prefix of datasets and parameters, if a project compresses several models.")
@click.option("--model", help="Class of the model: its import path, or its name in the project's package.")
@click.option("--init-args", callback=_arguments, help="Arguments of the class, as a mapping in YAML or JSON.")
@click.option("--weights", help="File with the model's weights: .safetensors, .pt, .pth or .ckpt.")
@click.option("--data", type=click.Choice(list(DATA)), help="Kind of the data.")
@click.option("--target", help="Target column of a table.")
@click.option("--size", type=click.IntRange(min=1), multiple=True, callback=_size, help="Size of images, in pixels.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Channels of images.")
@click.option("--task", type=click.Choice(list(TASKS)), help="What the model is for: sets loss, metric and budget.")
@click.option("--outputs", type=click.IntRange(min=1), help="Number of classes or labels.")
@click.option("--ignore-index", type=int, help="Label of pixels that have no class.")
@click.option("--ask/--no-ask", default=None, help="Whether to ask for the rest.  [default: in a terminal]")
@click.option("--use-existing", is_flag=True, help="Use what the project has of the same names, and write no others.")
@click.option("--upgrade", is_flag=True, help="Bring the files of an earlier version up to date; show what changes.")
@click.option("--force", "-f", is_flag=True, help="Overwrite existing files.")
@click.pass_obj
def init(
    project: ProjectMetadata,
    /,
    env: str,
    conf_source: str | None,
    namespace: str | None,
    channels: str | None,
    ask: bool | None,
    use_existing: bool,
    upgrade: bool,
    force: bool,
    **chosen: Any,
) -> None:
    """Write commented parameters and catalog entries into this project, for a model, its data and its task.

    In a terminal, it asks for what the options leave open; otherwise that stays as in the template, to be edited.
    """
    from kedro_aat.adoption.init.questions import ask as ask_for
    from kedro_aat.adoption.init.write import Place, write

    package = Path(project.source_dir) / project.package_name
    place = Place(Path(project.project_path), package, conf_folder(project, conf_source), env, namespace)
    asks = sys.stdin.isatty() if ask is None else ask
    if upgrade:
        for line in _upgrade(place, asks=asks):
            click.echo(line)
        return
    choices = Choices(channels=None if channels is None else int(channels), **chosen)
    if choices.model is not None:
        choices = _found(choices, place)
    if asks:
        choices = ask_for(choices, place.package)
    choices, notes = _with_weights(choices, place)

    def confirm(taken: str) -> bool:
        return use_existing or (asks and click.confirm(f"{taken} already. Use these, and write no others?"))

    for line in write(place, choices, _registered(), confirm, force=force):
        click.echo(line)
    for line in (*notes, *_next_steps(place, choices, conf_source)):
        click.echo(line)


def _found(choices: Choices, place: Place) -> Choices:
    """The choices with the model's import path, if its class is there and takes its arguments."""
    from kedro_aat.adoption.init.models import find_model, model_mistakes

    path = find_model(choices.model or "", place.package)
    if mistakes := model_mistakes(path, choices.init_args):
        raise ConfigurationError("Nothing was written", mistakes)
    return replace(choices, model=path)


def _with_weights(choices: Choices, place: Place) -> tuple[Choices, list[str]]:
    """The choices with the path of the weights below the project and their key, and a note if there is one."""
    if choices.weights is None:
        return choices, []
    given = Path(choices.weights).expanduser()
    found = next((path for path in (place.project / given, given.absolute()) if path.is_file()), None)
    path = (place.project / given if found is None else found).resolve()
    root = place.project.resolve()
    shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    if found is None:
        return replace(choices, weights=shown), [f"Note: {shown} does not exist yet; put the weights there."]
    from kedro_aat.datasets.imported import key_of_weights

    key = key_of_weights(found)
    notes = [] if key is None else [f"Note: {shown} holds the weights under the key {key}, as the catalog says now."]
    return replace(choices, weights=shown, weights_key=key), notes


def _next_steps(place: Place, choices: Choices, conf_source: str | None) -> Iterator[str]:
    from kedro_aat.adoption.makers import listed

    yield ("If the registry sums all pipelines, as Kedro's template does, a plain `kedro run` now includes this one.")
    left = [
        name
        for name, value in (("your model", choices.model), ("your data", choices.data), ("your metric", choices.task))
        if value is None
    ]
    if choices.data == "node":
        prefix = "" if place.namespace is None else f"{place.namespace}."
        splits = listed([f"{prefix}{split}_data" for split in ("train", "validation", "test")])
        yield (
            f"A node of yours returns {splits}, such as torch datasets of pairs. Its pipeline is called `data` below."
        )
    if (task := choices.fitting) is not None:
        outputs = choices.outputs or 0
        yield f"Targets of {choices.task}: {task.targets.format(outputs=outputs, last=outputs - 1)}."
    if left:
        yield f"Name {listed(left)} in {place.shown(place.conf / place.env)}. Then run:"
    else:
        yield "Now run:"
    same = "" if conf_source is None else f" --conf-source {shlex.quote(conf_source)}"
    yield f"  kedro aat validate{'' if place.namespace is None else f' --pipeline {place.pipeline}'}{same}"
    yield f"  kedro run --pipelines {'data,' if choices.data == 'node' else ''}{place.pipeline}{same}"


def _upgrade(place: Place, *, asks: bool) -> Iterator[str]:
    from kedro_aat.adoption.init.upgrade import changes_in_words, upgraded
    from kedro_aat.adoption.init.write import dependency_lines

    texts = upgraded(place)
    yield from changes_in_words(place, texts)
    if texts and asks and not click.confirm("Write these changes?", default=True):
        yield "Nothing was changed."
        return
    for name, text in texts.items():
        place.file(name).write_text(text, encoding="utf-8")
        yield f"Changed {place.shown(place.file(name))}"
    yield from dependency_lines(place, Choices())


def conf_folder(project: ProjectMetadata, conf_source: str | None) -> Path:
    """The folder of configuration that a command writes to.

    Args:
        project: The project.
        conf_source: What the command was given; None for the project's own folder.

    Raises:
        StorageError: If it is not on this machine.
        ConfigurationError: If it is not a folder.
    """
    from kedro.framework.project import settings

    if conf_source is None:
        return Path(project.project_path) / str(settings.CONF_SOURCE)
    folder = local_path(conf_source)
    if not folder.is_dir():
        raise ConfigurationError("--conf-source", [f"must be a folder to be written to, but {folder} is none"])
    return folder


def _registered() -> Mapping[str, Pipeline]:
    """The registered pipelines; none if they cannot be created, which has nothing to do with this command."""
    from kedro.framework.project import pipelines

    try:
        return dict(pipelines)
    except Exception:  # of the project's own modules
        return {}
