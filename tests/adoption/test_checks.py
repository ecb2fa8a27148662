"""What is shown to the user: messages about datasets that cannot be read, and progress."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import AbstractDataset, DataCatalog, MemoryDataset
from kedro_datasets_experimental.safetensors import SafetensorsDataset

from kedro_aat.adoption.checks import allow_absent, data_mistakes, replace_dataset
from kedro_aat.adoption.validation import load_config
from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError
from kedro_aat.pipelines.aat.pipeline import create_pipeline
from kedro_aat.plugin import hooks

REQUIRED = ("baseline_model", "train_data", "validation_data", "test_data")


class WithoutExists(AbstractDataset[Any, Any]):
    """A dataset without `_exists`, which Kedro allows."""

    def load(self) -> Any:
        return {}

    def save(self, data: Any) -> None:
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        return {}


def mistakes(**changed: Any) -> list[str]:
    datasets = {name: WithoutExists() for name in REQUIRED} | changed
    catalog = DataCatalog({name: each for name, each in datasets.items() if each is not None})
    return [mistake for mistake in data_mistakes(create_pipeline(), catalog) if mistake.startswith(REQUIRED)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("aat: {seed: '${nowhere}'}", "parameters: InterpolationKeyError: Interpolation key 'nowhere' not found"),
        ("aat: {seed: '${'}", "parameters: GrammarParseError: "),
        ("aat: [", "parameters: ParserError: "),
        (f"aat: {500 * '['}{500 * ']'}", "parameters: RecursionError: "),
        ("aat: {seed: 1, seed: 2}", "parameters: ConstructorError: "),
        ("aat: \x00", "parameters: ReaderError: "),
    ],
)
def test_files_that_cannot_be_read_are_one_mistake(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/parameters.yml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(OmegaConfigLoader(str(tmp_path), base_env="base", default_run_env="base"), "parameters")
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(words)


@pytest.mark.parametrize("text", ["key: *absent\n", "key: 1\nkey: 2\n", "key: \x07\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    for env, content in (("base", "other: 1\n"), ("prod", text)):
        (tmp_path / env).mkdir()
        (tmp_path / env / "parameters_aat.yml").write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load_config(OmegaConfigLoader(str(tmp_path), env="prod", base_env="base"), "parameters")
    assert caught.value.mistakes[0].endswith(f" (in {tmp_path}/prod/parameters_aat.yml)")


def test_a_dataset_without_exists_is_assumed_to_exist() -> None:
    assert mistakes() == []


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (None, "train_data: is not in the catalog; add an entry"),
        (MemoryDataset(), "train_data: its MemoryDataset is empty; run the nodes"),
        (SafetensorsDataset(filepath="no/such/file", backend="torch"), "no/such/file is missing; put the file there"),
    ],
)
def test_a_missing_dataset_is_reported_with_a_remedy(dataset: Any, words: str) -> None:
    (mistake,) = mistakes(train_data=dataset)
    assert words in mistake


def test_a_dataset_that_a_node_makes_names_the_node() -> None:
    catalog = DataCatalog({name: WithoutExists() for name in REQUIRED} | {"train_data": MemoryDataset()})
    maker_of = {"train_data": "the node split makes it: `kedro run --pipelines data,aat`"}.get
    (mistake,) = (each for each in data_mistakes(create_pipeline(), catalog, maker_of=maker_of) if "train_data" in each)
    assert mistake.endswith("its MemoryDataset is empty; the node split makes it: `kedro run --pipelines data,aat`")


def output_mistakes(entry: dict[str, Any]) -> list[str]:
    catalog = DataCatalog.from_config({"compressed_model": {"type": "kedro_aat.datasets.model.ModelDataset", **entry}})
    mistakes = data_mistakes(create_pipeline(), catalog)
    return [mistake for mistake in mistakes if mistake.startswith("compressed_model")]


def test_output_that_could_not_be_saved_is_found_before_the_run(tmp_path: Path) -> None:
    assert output_mistakes({"filepath": str(tmp_path)}) == []
    (tmp_path / "mine.pt").touch()
    (mistake,) = output_mistakes({"filepath": str(tmp_path)})
    assert mistake.startswith(f"compressed_model: 1 other entry in {tmp_path}: mine.pt. It may hold only")


def test_output_with_an_address_that_is_none_is_found_before_the_run() -> None:
    (mistake,) = output_mistakes({"filepath": "dbfs:/model"})
    assert mistake == (
        "compressed_model: its catalog entry is wrong: dbfs:/model cannot be used: give a path on this machine, or an "
        "address with two slashes and one protocol, such as s3://bucket/folder/name."
    )


@pytest.mark.parametrize(("level", "expected"), [(logging.NOTSET, logging.INFO), (logging.ERROR, logging.ERROR)])
def test_progress_is_shown_unless_the_project_sets_a_level(
    level: int, expected: int, request: pytest.FixtureRequest
) -> None:
    package = logging.getLogger("kedro_aat")
    request.addfinalizer(partial(package.setLevel, package.level))
    package.setLevel(level)
    hooks.after_context_created(SimpleNamespace(config_loader={}))  # type: ignore[arg-type]
    assert package.level == expected


def test_a_dataset_is_replaced_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    catalog = DataCatalog({"test_data": MemoryDataset(1)})
    replace_dataset(catalog, "test_data", MemoryDataset(2))
    assert catalog.load("test_data") == 2
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    catalog["test_data"] = MemoryDataset(3)
    assert "Replacing" in caplog.text  # the user's own code is still told


@pytest.mark.parametrize("entry", [None, {"type": "MemoryDataset"}])
def test_a_run_without_a_tensorboard_log_has_no_mistake(entry: dict[str, Any] | None) -> None:
    name = "small.tensorboard_log"
    pipeline, catalog = create_pipeline(namespace="small"), DataCatalog.from_config({name: entry} if entry else {})
    assert f"{name}: " in " ".join(data_mistakes(pipeline, catalog))
    allow_absent(pipeline, catalog)
    assert catalog[name].load() is None
    assert f"{name}: " not in " ".join(data_mistakes(pipeline, catalog))


def test_a_catalog_that_is_older_than_a_target_needs_no_entry_for_its_file() -> None:
    catalog, part = DataCatalog(), create_pipeline().only_nodes("certify_model")
    allow_absent(part, catalog)
    assert catalog.load("compressed_litert") is None
    assert "compressed_litert: " not in " ".join(data_mistakes(part, catalog))
    allow_absent(create_pipeline(), whole := DataCatalog())
    assert "compressed_litert" not in whole  # the run makes it


def test_a_catalog_that_is_older_than_the_third_stage_needs_no_entry_without_one() -> None:
    part = create_pipeline().only_nodes("summarize_run")
    plain = {"budget": {"max_drop": 0.01}, "training": {"optimizer": "torch.optim.SGD"}}
    algorithms = ("filter_pruning", "magnitude_sparsity", "quantization")
    filters, sparsity, int8 = ({"compression": {"algorithm": algorithm}} for algorithm in algorithms)
    third = {**filters, "second_stage": sparsity, "third_stage": int8}
    AatSettings.model_validate({**plain, **third})
    for settings, is_missing in ((plain, False), ({**plain, **third}, True), ({"training": "a mistake"}, True)):
        catalog = DataCatalog({"params:aat": MemoryDataset(settings)})
        allow_absent(part, catalog)
        assert ("third_stage_result: " in " ".join(data_mistakes(part, catalog))) is is_missing
        assert is_missing or catalog.load("third_stage_result") is None


def test_a_tensorboard_log_that_there_is_stays_and_a_wrong_entry_is_told() -> None:
    log = {"type": "kedro_aat.datasets.handles.TensorBoardDataset", "filepath": "log"}
    catalog = DataCatalog.from_config({"tensorboard_log": log})
    allow_absent(create_pipeline(), catalog)
    assert catalog["tensorboard_log"].load().folder.name == "log"
    for mistake in ({"folders": 2}, {"type": "nowhere.Dataset"}):
        wrong = DataCatalog.from_config({"tensorboard_log": log | mistake})
        allow_absent(create_pipeline(), wrong)
        assert "tensorboard_log: its catalog entry is wrong: " in " ".join(data_mistakes(create_pipeline(), wrong))
