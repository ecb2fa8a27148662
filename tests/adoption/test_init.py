"""What `kedro aat init` writes for a user's choices, and what it leaves as it is."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.checks import parameter_mistakes
from kedro_aat.adoption.factories import FILE
from kedro_aat.adoption.init.dependency import add_dependency
from kedro_aat.adoption.init.models import find_model, model_mistakes
from kedro_aat.adoption.init.names import Taken, taken_names
from kedro_aat.adoption.init.questions import ask
from kedro_aat.adoption.init.tasks import DATA, TASKS, Choices
from kedro_aat.adoption.init.texts import catalog_with, parameters_with
from kedro_aat.adoption.init.upgrade import difference, upgraded
from kedro_aat.adoption.init.write import CATALOG, PARAMETERS, Place, write
from kedro_aat.adoption.templates import template
from kedro_aat.datasets.imported import key_of_weights
from kedro_aat.errors import ConfigurationError
from kedro_aat.pipelines.aat import create_pipeline

OLD = Path(__file__).parents[1] / "saved_by" / "0.1.0" / "templates"
CONF = Path("conf/base")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty project with a registry that finds pipelines."""
    package = tmp_path / "src" / "demo"
    package.mkdir(parents=True)
    (package / "pipeline_registry.py").write_text("pipelines = find_pipelines()\n")
    (tmp_path / CONF).mkdir(parents=True)
    return Place(tmp_path, package, tmp_path / "conf", "base", None)


def written(place: Place, choices: Choices | None = None, *, yes: bool = False, **registered: Pipeline) -> list[str]:
    return list(write(place, choices or Choices(), registered, lambda _: yes))


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.mark.parametrize(("task", "data"), [(task, data) for task in TASKS for data in DATA])
def test_each_choice_gives_valid_settings_and_entries_or_says_what_to_choose(task: str, data: str) -> None:
    choices = Choices(task=task, data=data, outputs=3 if TASKS[task].counted else None)
    if data not in TASKS[task].data:
        with pytest.raises(ConfigurationError, match=f"--data: {data} has one .* use tensors"):
            choices.check()
        return
    choices.check()
    parameters = yaml.safe_load(parameters_with(template(PARAMETERS), choices))
    assert parameter_mistakes(create_pipeline(), parameters) == []
    entries = yaml.safe_load(catalog_with(template(CATALOG), choices))
    assert entries.keys() == yaml.safe_load(template(CATALOG)).keys()
    splits = {name: entries[name] for name in ("train_data", "validation_data", "test_data")}
    assert len({entry["type"] for entry in splits.values()}) == 1
    assert len({entry.get("filepath", name) for name, entry in splits.items()}) == 3
    assert len(list(DataCatalog.from_config(splits))) == 3


def test_no_choice_leaves_the_templates_as_they_are(place: Place) -> None:
    lines = written(place)
    assert (place.project / CONF / PARAMETERS).read_text() == template(PARAMETERS)
    assert (place.project / CONF / CATALOG).read_text() == template(CATALOG)
    files = (CONF / PARAMETERS, CONF / CATALOG, "src/demo/pipelines/aat/__init__.py")
    assert lines[:3] == [f"Wrote {path}" for path in files]


def test_the_model_is_written_with_its_arguments(place: Place) -> None:
    written(place, Choices(model="demo.Net", init_args={"sizes": [1, 2], "name": "a: b"}, weights="data/net.pt"))
    entry = read(place.project / CONF / CATALOG)["baseline_model"]
    assert (entry["class_path"], entry["filepath"]) == ("demo.Net", "data/net.pt")
    assert entry["init_args"] == {"sizes": [1, 2], "name": "a: b"}


def test_the_key_of_the_weights_is_written(place: Place) -> None:
    state = {"weight": torch.zeros(1, 2)}
    torch.save({"epoch": 3, "model_state_dict": state, "lr": 0.1}, place.project / "last.pt")
    assert key_of_weights(place.project / "last.pt") == "model_state_dict"
    torch.save(state, place.project / "plain.pt")
    assert key_of_weights(place.project / "plain.pt") is None
    written(place, Choices(weights="last.pt", weights_key="model_state_dict"))
    assert read(place.project / CONF / CATALOG)["baseline_model"]["key"] == "model_state_dict"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (Choices(outputs=3), "--outputs: needs --task"),
        (Choices(task="multilabel"), "--outputs: multilabel needs the number of labels"),
        (Choices(task="classification", outputs=1), "at least 2 classes, not 1; for one logit, use --task binary"),
        (Choices(task="binary", ignore_index=255), "--ignore-index: only segmentation"),
        (Choices(target="price"), "--target: only --data table"),
        (Choices(size=(8, 8), data="table"), "--size and --channels: only --data images"),
    ],
)
def test_choices_that_do_not_fit(choices: Choices, words: str, place: Place) -> None:
    with pytest.raises(ConfigurationError, match=words):
        written(place, choices)
    assert not list((place.project / CONF).iterdir())


def test_a_class_is_found_by_its_name(place: Place) -> None:
    (place.package / "models.py").write_text("class Net: pass\nclass Other: pass\n")
    (place.package / "broken.py").write_text("class")
    assert find_model("Net", place.package) == "demo.models.Net"
    assert find_model("torch.nn.Linear", place.package) == "torch.nn.Linear"
    with pytest.raises(ConfigurationError, match="no class Nett in demo, which has Net, Other"):
        find_model("Nett", place.package)
    (place.package / "more.py").write_text("class Net: pass\n")
    with pytest.raises(ConfigurationError, match=r"demo\.models\.Net, demo\.more\.Net have that name"):
        find_model("Net", place.package)
    assert model_mistakes("torch.nn.Linear", {"in_features": 2, "out_features": 2}) == []
    assert "--init-args: torch.nn.Linear needs in_features" in model_mistakes("torch.nn.Linear", {})[0]
    assert "--init-args: width: torch.nn.Linear takes no such" in model_mistakes("torch.nn.Linear", {"width": 1})[0]
    assert "Did you mean 'Linear'" in model_mistakes("torch.nn.Linearr", {})[0]


def _asked(package: Path, *answers: str, **given: Any) -> tuple[Choices, str]:
    found: list[Choices] = []

    @click.command()
    def command() -> None:
        found.append(ask(Choices(**given), package))

    result = CliRunner().invoke(command, input="\n".join(answers) + "\n", catch_exceptions=False)
    return found[0], result.output


def test_questions(place: Place) -> None:
    answers = (
        "segmentation",
        "3",
        "x",
        "255",
        "node",
        "Net",
        "torch.nn.Linearr",
        "torch.nn.Linear",
        "7",
        "{in_features: 2,",
    )
    more = ("{in_features: 2, out_features: 3}", "net.pt")
    choices, output = _asked(place.package, *answers, *more)
    assert choices == Choices(
        model="torch.nn.Linear",
        init_args={"in_features": 2, "out_features": 3},
        weights="net.pt",
        data="node",
        task="segmentation",
        outputs=3,
        ignore_index=255,
    )
    for words in ("x is no whole number", "no class Net in demo", "Did you mean 'Linear'", "must be a mapping in YAML"):
        assert words in output
    assert "images" not in output  # no data for this task


def test_empty_answers_leave_everything_for_later(place: Place) -> None:
    assert _asked(place.package, "", "", "")[0] == Choices()
    chosen, output = _asked(place.package, "price", "", task="regression", data="table")
    assert chosen == Choices(task="regression", data="table", target="price")
    assert "Task" not in output


PYPROJECTS = {
    "several lines": 'dependencies = [\n    "kedro[x]~=1.0",\n    "torch", # why\n]\n',
    "no comma at the end": 'dependencies = [\n  "kedro"\n]\n',
    "one line": 'dependencies = ["kedro[a]", "torch"]\n',
    "empty": "dependencies = []\n",
}


@pytest.mark.parametrize("name", PYPROJECTS)
def test_the_dependency_is_added_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    rest = '[tool.x]\ndependencies = ["y"]\n'
    path, text = tmp_path / "pyproject.toml", f'[project]\nname = "demo"\n{PYPROJECTS[name]}# end\n{rest}'
    path.write_text(text)
    assert add_dependency(tmp_path, ("images",)) == ([path], [])
    before, after = tomllib.loads(text), tomllib.loads(path.read_text())
    assert after["project"].pop("dependencies") == [*before["project"].pop("dependencies"), "kedro-aat[images]"]
    assert after == before
    assert set(text.split()) - {'"kedro"', '"torch"]', "[]"} <= set(path.read_text().split())
    assert add_dependency(tmp_path) == ([], [])  # it is there


def test_requirements_in_other_places(tmp_path: Path) -> None:
    assert add_dependency(tmp_path) == ([], ["Add kedro-aat to the requirements of your project."])
    (tmp_path / "pyproject.toml").write_text('[tool.poetry.dependencies]\nkedro = "*"\n')
    assert add_dependency(tmp_path) == ([], ["Add kedro-aat to the requirements of your project."])
    (tmp_path / "pyproject.toml").write_text('[tool.poetry.dependencies]\nkedro-aat = "*"\n')
    assert add_dependency(tmp_path) == ([], [])
    (tmp_path / "pyproject.toml").unlink()
    (tmp_path / "requirements.txt").write_text("kedro")
    assert add_dependency(tmp_path) == ([tmp_path / "requirements.txt"], [])
    assert (tmp_path / "requirements.txt").read_text() == "kedro\nkedro-aat\n"
    (tmp_path / "requirements.txt").write_text("Kedro_AAT >= 0.1 # ours\n")
    assert add_dependency(tmp_path) == ([], [])
    (tmp_path / "pyproject.toml").write_text('project = { name = "demo", dependencies = ["kedro"] }\n')
    assert add_dependency(tmp_path)[1] == ['Add "kedro-aat" to the dependencies in pyproject.toml.']


def _other(name: str = "train_data") -> Pipeline:
    return Pipeline([Node(lambda: 0, None, name, name="other")])


def test_names_of_the_project_are_not_shadowed(place: Place) -> None:
    (place.conf / "local").mkdir()
    (place.conf / "base/catalog.yml").write_text("train_data: { type: MemoryDataset }\nmine: { type: MemoryDataset }\n")
    (place.conf / "local/parameters.yml").write_text("aat: { seed: 1 }\n")
    (place.conf / "local/broken_catalog.yml").write_text("[")
    with pytest.raises(ConfigurationError) as caught:
        written(place, aat=_other())
    assert caught.value.mistakes == [
        "the pipeline registry has a pipeline aat already",
        "conf/base/catalog.yml has catalog entries named train_data already",
        "conf/local/parameters.yml has parameters named aat already",
        "use these with --use-existing, which writes no others; or give ours a prefix with --namespace NAME",
    ]
    assert [path.name for path in (place.project / CONF).iterdir()] == ["catalog.yml"]
    assert written(place, yes=True, aat=_other())[0] == f"Wrote {CONF / CATALOG}"
    entries = read(place.project / CONF / CATALOG)
    assert "train_data" not in entries
    assert "validation_data" in entries
    assert not (place.project / CONF / PARAMETERS).exists()
    assert not (place.package / "pipelines").exists()


def test_what_init_itself_has_written_is_not_in_the_way(place: Place) -> None:
    written(place)
    assert list(write(place, Choices(), {"aat": create_pipeline()}, lambda _: False, force=True))
    other = Place(place.project, place.package, place.conf, "base", "small")
    assert list(write(other, Choices(), {"aat": create_pipeline()}, lambda _: False))
    local = Place(place.project, place.package, place.conf, "local", None)
    assert list(write(local, Choices(), {"aat": create_pipeline()}, lambda _: False, force=True))
    assert not taken_names(place.conf, ["nowhere"], [], ["train_data"], ["aat"])
    assert Taken({}, {}) == taken_names(place.conf, ["base"], [place.project / CONF / CATALOG], ["train_data"], [])


def _old(place: Place, **changes: tuple[str, str]) -> dict[str, str]:
    """Copies the files of 0.1.0, with changes by the user, and returns their texts."""
    for name in (PARAMETERS, CATALOG):
        shutil.copy(OLD / name, place.file(name))
    for name, (old, new) in changes.items():
        path = place.file(f"{name}_aat.yml")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return {name: place.file(name).read_text() for name in (PARAMETERS, CATALOG)}


def _apply(place: Place, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        place.file(name).write_text(text)


def test_a_catalog_of_an_earlier_version_becomes_one_of_this(place: Place) -> None:
    old = _old(
        place,
        catalog=("my_project.models.MyModel # a class", "demo.Net # mine: plotly.JSONDataset, a class"),
        parameters=("    kind: frontier #", "    first_step: 0.3 # mine\n    kind: frontier #"),
    )
    new = upgraded(place)
    entries = yaml.safe_load(new[CATALOG])
    assert entries.keys() == yaml.safe_load(template(CATALOG)).keys()
    assert entries["baseline_model"]["class_path"] == "demo.Net"
    wanted = yaml.safe_load(template(CATALOG)) | {"baseline_model": entries["baseline_model"]}
    assert entries == wanted
    assert "    # first_step: 0.3 # mine # no effect since 0.2.0\n" in new[PARAMETERS]
    for name, text in old.items():  # no line is lost but those that are renamed
        lost = set(text.splitlines()) - set(new[name].splitlines())
        assert all("JSONDataset" in line or "layer" in line or "first_step" in line for line in lost), lost
    shown = difference(place, CATALOG, new[CATALOG])
    assert "+rehearsal:\n" in shown
    assert "-  type: plotly.JSONDataset\n+  type: kedro_aat.datasets.documents.FigureDataset\n" in shown
    _apply(place, new)
    assert upgraded(place) == {}
    assert parameter_mistakes(create_pipeline(), read(place.file(PARAMETERS))) == []


def test_what_the_user_has_moved_or_changed_stays(place: Place) -> None:
    _old(place, catalog=("  type: plotly.JSONDataset\n", "  type: plotly.JSONDataset\n  versioned: true\n"))
    (place.conf / "base/catalog_more.yml").write_text("rehearsal: { type: MemoryDataset }\n")
    new = yaml.safe_load(upgraded(place)[CATALOG])
    assert "rehearsal" not in new
    assert new["frontier_figure"]["type"] == "plotly.JSONDataset"


def test_only_the_ledger_is_missing(place: Place) -> None:
    written(place)
    path = place.file(CATALOG)
    entry = path.read_text()[path.read_text().index("certificate_ledger:") : path.read_text().index("certificate:\n")]
    path.write_text(path.read_text().replace(entry, ""))
    new = upgraded(place)
    assert list(new) == [CATALOG]
    assert new[CATALOG].startswith(path.read_text().rstrip())
    assert entry.strip() in new[CATALOG]


def test_a_namespace_has_its_own_files(place: Place) -> None:
    other = Place(place.project, place.package, place.conf, "base", "small")
    with pytest.raises(ConfigurationError, match=r"conf/base/parameters_aat_small.yml is missing; `kedro aat init`"):
        upgraded(other)
    list(write(other, Choices(), {}, lambda _: False))
    path = other.file(FILE)
    path.write_text(path.read_text().replace('"{namespace}.model_sbom":', "small.other:"))
    assert "\nsmall.model_sbom:\n  type: json.JSONDataset\n" in upgraded(other)[CATALOG]


def test_weights_stay_where_they_are_in_a_namespace(place: Place) -> None:
    other = replace(place, namespace="small")
    written(other, Choices(weights="data/06_models/net: 1.safetensors"))
    entries = read(other.file(CATALOG))
    assert entries["small.baseline_model"]["filepath"] == "data/06_models/net: 1.safetensors"
    assert entries["small.train_data"]["filepath"] == "data/05_model_input/small/train.safetensors"


def test_a_file_that_cannot_be_read_is_left(place: Place) -> None:
    _old(place)
    place.file(CATALOG).write_text("[")
    with pytest.raises(ConfigurationError, match="no YAML"):
        upgraded(place)
