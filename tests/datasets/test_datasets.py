from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from kedro.io import DataCatalog, DatasetError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    Composite,
    FilterPruning,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.handles import TensorBoardLog
from kedro_aat.datasets.recipe import Recipe, build_module, recipe_of
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export import NotExported
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.openvino_file import OpenvinoFiles
from kedro_aat.export.program import to_program
from kedro_aat.export.session import open_session, run_session
from kedro_aat.imports import Imported
from kedro_aat.training.checkpoints import CheckpointStore
from tests import nets
from tests.compression.training import BATCH, assert_same_bits, sgd, train
from tests.export.nets import TiedLanguageModel
from tests.nets import NeedsArguments, SmallNet
from tests.training.store_contract import checkpoint

INPUTS = BATCH["inputs"]


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    """One entry of each dataset, written as they are in a catalog.yml."""
    types = {
        "model": "kedro_aat.datasets.model.ModelDataset",
        "controller": "kedro_aat.datasets.model.ControllerDataset",
        "store": "kedro_aat.datasets.handles.CheckpointStoreDataset",
        "tensorboard": "kedro_aat.datasets.handles.TensorBoardDataset",
        "onnx": "kedro_aat.datasets.exported.OnnxDataset",
        "program": "kedro_aat.datasets.exported.ExportedProgramDataset",
        "openvino": "kedro_aat.datasets.exported.OpenvinoDataset",
    }
    suffixes = {"onnx": ".onnx", "program": ".pt2", "openvino": ".xml"}
    entries: dict[str, Any] = {
        name: {
            "type": kind,
            "filepath": str(tmp_path / "models" / f"{name}{suffixes.get(name, '')}"),
            "metadata": {"kedro-viz": {"layer": "models"}},
        }
        for name, kind in types.items()
    }
    recipe = {
        "class_path": "tests.nets.NeedsArguments",
        "init_args": {"num_inputs": 3, "num_outputs": 2, "bias": False},
    }
    entries["with_recipe"] = {
        "type": types["model"],
        "filepath": str(tmp_path / "models" / "with_recipe"),
        "recipe": recipe,
    }
    return DataCatalog.from_config(entries)


@pytest.fixture(autouse=True)
def called() -> Iterator[list[str]]:
    """Names of the functions in `tests.nets` that note being called."""
    nets.CALLED.clear()
    yield nets.CALLED
    nets.CALLED.clear()


def built(class_path: str = "tests.nets.SmallNet", seed: int = 0, **init_args: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_module(Imported(class_path=class_path, init_args=init_args))


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(INPUTS)
    return logits


def listed(folder: Path) -> list[str]:
    """All files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- modules ---------------------------------------------------------------------------------------------------


def test_module_is_saved_and_a_module_is_loaded(catalog: DataCatalog) -> None:
    model = built(num_classes=7, width=5)
    model.train()(INPUTS)  # BatchNorm has statistics now
    catalog.save("model", model)
    loaded = catalog.load("model")
    assert isinstance(loaded, SmallNet)
    assert loaded is not model
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(model))
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_what_was_loaded_can_be_saved_again(catalog: DataCatalog) -> None:
    catalog.save("model", built(num_classes=7))
    catalog.save("model", catalog.load("model"))
    assert outputs(catalog.load("model")).shape == (16, 7)


def test_folder_holds_a_recipe_for_people_and_no_pickle(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("model", built(num_classes=7))
    folder = tmp_path / "models" / "model"
    assert listed(folder) == ["model.safetensors", "recipe.json"]
    assert json.loads((folder / "recipe.json").read_text()) == {
        "class_path": "tests.nets.SmallNet",
        "init_args": {"num_classes": 7},
    }
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in folder.iterdir())


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda model: model.half(), lambda model: model.to(memory_format=torch.channels_last)]
)
def test_module_that_was_copied_or_converted_can_be_saved(
    catalog: DataCatalog, make: Callable[[nn.Module], nn.Module]
) -> None:
    model = make(built())
    catalog.save("model", model)
    torch.testing.assert_close(
        catalog.load("model").state_dict(), model.state_dict(), rtol=0, atol=0, check_dtype=False
    )


def test_tied_weights_stay_tied(catalog: DataCatalog) -> None:
    model = built("tests.export.nets.TiedLanguageModel")
    catalog.save("model", model)
    loaded = catalog.load("model")
    assert isinstance(loaded, TiedLanguageModel)
    assert loaded.embedding.weight is loaded.output.weight
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_module_of_unknown_arguments_cannot_be_saved(catalog: DataCatalog, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        catalog.save("model", NeedsArguments(3, 2))
    message = str(caught.value)
    for part in ("NeedsArguments", "'num_inputs': ...", "'num_outputs': ...", "build_module", "`recipe`", "catalog"):
        assert part in message
    assert "bias" not in message  # it has a default
    assert not catalog.exists("model")
    assert not (tmp_path / "models" / "model").exists()


def test_recipe_in_the_catalog_entry(catalog: DataCatalog) -> None:
    model = NeedsArguments(3, 2, bias=False)
    catalog.save("with_recipe", model)
    loaded = catalog.load("with_recipe")
    assert isinstance(loaded, NeedsArguments)
    assert torch.equal(loaded.linear.weight, model.linear.weight)
    assert loaded.linear.bias is None


def test_function_that_says_that_it_makes_a_module_is_a_recipe(catalog: DataCatalog) -> None:
    model = built("tests.nets.make_small_net", num_classes=3)
    catalog.save("model", model)
    assert torch.equal(outputs(catalog.load("model")), outputs(model))


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("os.system", {"command": "touch {trap}"}),
        ("os.mkdir", {"path": "{trap}"}),
        ("builtins.exec", {}),
        ("subprocess.check_call", {"args": ["touch", "{trap}"]}),
        ("subprocess.Popen", {"args": ["touch", "{trap}"]}),
        ("pathlib.Path", {}),
        ("tests.nets.make_something", {"path": "{trap}"}),
        ("tests.nets.make_list", {"path": "{trap}"}),
        ("tests.nets.make_what_cannot_be_resolved", {"path": "{trap}"}),
        ("torch.load", {"f": "{trap}"}),
        ("torch.relu", {}),
        ("math.pi", {}),
        ("tests.nets", {}),
    ],
)
def test_recipe_that_makes_no_module_is_refused_and_not_called(
    catalog: DataCatalog, tmp_path: Path, called: list[str], class_path: str, init_args: dict[str, Any]
) -> None:
    trap = tmp_path / "trap"
    text = json.dumps({"class_path": class_path, "init_args": init_args}).replace("{trap}", str(trap))
    with pytest.raises(ModelError, match=r"makes no torch\.nn\.Module"):
        build_module(Imported.model_validate_json(text))

    catalog.save("model", built())
    (tmp_path / "models" / "model" / "recipe.json").write_text(text)
    with pytest.raises(DatasetError, match=r"makes no torch\.nn\.Module"):
        catalog.load("model")
    assert not trap.exists()
    assert called == []


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"class_path": "tests.nets.SmalNet"}, "Did you mean 'SmallNet'"),
        ({"class_path": "no_such_module.Net"}, "cannot be imported"),
        ({"class_path": "tests.nets.SmallNet", "init_args": {"num_clases": 3}}, "Did you mean 'num_classes'"),
    ],
)
def test_recipe_with_a_mistake_is_an_error(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_module(Imported.model_validate(recipe))


def test_recipe_is_kept_by_the_module() -> None:
    recipe = Imported(class_path="tests.nets.SmallNet", init_args={"num_classes": 3})
    assert recipe_of(copy.deepcopy(build_module(recipe))) == recipe


def test_failing_save_keeps_the_model_before(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("model", built(num_classes=3))
    before = listed(tmp_path / "models")
    with pytest.raises(DatasetError):
        catalog.save("model", built("tests.nets.HoldsMoreThanTensors"))
    assert outputs(catalog.load("model")).shape == (16, 3)
    assert listed(tmp_path / "models") == before


def test_nothing_exported_removes_the_model(catalog: DataCatalog) -> None:
    catalog.save("model", built())
    assert catalog.exists("model")
    for _ in range(2):
        catalog.save("model", NotExported("no rate was within budget"))
        assert not catalog.exists("model")


# --- cut modules -----------------------------------------------------------------------------------------------


def filters(rate: float, class_path: str = "tests.nets.SmallNet", batch: Tensor = INPUTS) -> FilterPruningController:
    made = FilterPruningController(built(class_path), FilterPruning(), example_input=batch)
    made.disable_scheduler()
    made.compression_rate = rate
    return made


def test_cut_module_comes_back_cut_and_whole(catalog: DataCatalog, tmp_path: Path) -> None:
    cut = filters(0.6).strip()
    catalog.save("model", cut)
    loaded = catalog.load("model")
    assert isinstance(loaded, SmallNet)
    assert loaded.conv.out_channels < SmallNet().conv.out_channels
    assert torch.equal(outputs(loaded), outputs(cut))
    assert_same_bits(loaded.state_dict(), cut.state_dict())
    assert listed(tmp_path / "models" / "model") == ["model.safetensors", "recipe.json"]
    recipe = json.loads((tmp_path / "models" / "model" / "recipe.json").read_text())
    assert recipe["class_path"] == "tests.nets.SmallNet"
    assert recipe["plan"][0].keys() == {"layer", "kind", "size", "kept"}
    catalog.save("model", loaded)  # and again
    assert torch.equal(outputs(catalog.load("model")), outputs(cut))


def test_cut_attention_comes_back_without_the_controller(catalog: DataCatalog) -> None:
    batch = torch.randint(30, (4, 9))
    cut = filters(0.5, "tests.compression.architectures.TextTransformer", batch).strip().eval()
    catalog.save("model", cut)
    with torch.no_grad():
        assert torch.equal(catalog.load("model")(batch), cut(batch))


def test_plan_is_kept_beside_a_recipe_of_the_catalog(catalog: DataCatalog) -> None:
    recipe = Imported(class_path="tests.nets.SmallNet", init_args={})
    assert isinstance(known := recipe_of(filters(0.6).strip(), recipe), Recipe)
    assert known.plan
    assert recipe_of(SmallNet(), recipe) == recipe


def test_plan_of_another_module_is_refused(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("model", filters(0.6).strip())
    path = tmp_path / "models" / "model" / "recipe.json"
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps(recipe | {"init_args": {"width": 5}}))
    with pytest.raises(DatasetError, match="built with other arguments"):
        catalog.load("model")


def quantized_controller() -> QuantizationController:
    made = QuantizationController(built(num_classes=3))
    made.disable_scheduler()
    train(made.model, sgd(made.model), batch={**BATCH, "targets": BATCH["targets"].clamp_max(2)})
    return made


def test_quantized_model_is_saved_as_integers(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = quantized_controller().strip()
    catalog.save("model", saved)
    loaded = catalog.load("model")
    assert torch.equal(outputs(loaded), outputs(saved))
    assert_same_bits(loaded.state_dict(), saved.state_dict())
    recipe = json.loads((tmp_path / "models" / "model" / "recipe.json").read_text())
    assert [layer["layer"] for layer in recipe["quantized"]["layers"]] == ["stem.0", "conv", "classifier"]
    catalog.save("model", loaded)
    assert torch.equal(outputs(catalog.load("model")), outputs(saved))


def test_quantized_model_takes_a_quarter_of_the_disk(catalog: DataCatalog, tmp_path: Path) -> None:
    sizes = []
    for rate in (0.0, 0.999):
        controller = QuantizationController(built(width=64))
        controller.compression_rate = rate
        outputs(controller.model)
        catalog.save("model", controller.strip())
        sizes.append((tmp_path / "models" / "model" / "model.safetensors").stat().st_size)
    assert sizes[0] / sizes[1] > 3.5


# --- controllers -----------------------------------------------------------------------------------------------


def controller(rate: float, **settings: Any) -> MagnitudeSparsityController:
    made = MagnitudeSparsityController(built(num_classes=3), MagnitudeSparsity(**settings))
    made.disable_scheduler()
    made.compression_rate = rate
    return made


def test_controller_comes_back_with_its_model(catalog: DataCatalog) -> None:
    saved = controller(0.7, importance="normed_abs", ranking="local", ignored_scopes=("stem",))
    train(saved.model, sgd(saved.model), batch={**BATCH, "targets": BATCH["targets"].clamp_max(2)})
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, MagnitudeSparsityController)
    assert loaded.report() == saved.report()
    assert loaded.report().requested_rate == 0.7
    assert loaded.settings == saved.settings
    assert loaded.compression_stage() == saved.compression_stage()
    assert torch.equal(outputs(loaded.model), outputs(saved.model))
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())


def test_controller_of_filters_comes_back_with_what_traces_it(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = filters(0.5)
    train(saved.model, sgd(saved.model))
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, FilterPruningController)
    assert loaded.report() == saved.report()
    assert loaded.cut_plan() == saved.cut_plan()
    assert torch.equal(outputs(loaded.strip()), outputs(saved.strip()))
    for controller in (saved, loaded):
        controller.compression_rate = 0.0
    assert_same_bits(loaded.strip().state_dict(), saved.strip().state_dict())


def test_quantization_controller_comes_back_ready_to_strip(catalog: DataCatalog) -> None:
    saved = quantized_controller()
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, QuantizationController)
    assert loaded.report() == saved.report()
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())
    assert torch.equal(outputs(loaded.strip()), outputs(saved.strip()))


def composite(*others: Any) -> CompositeController:
    settings = Composite(algorithms=(FilterPruning(), Quantization(), *others))
    made = CompositeController(built("tests.nets.SmallNet"), settings, example_input=INPUTS)
    made.disable_scheduler()
    made.compression_rate = 0.5
    train(made.model, sgd(made.model))
    return made


@pytest.mark.parametrize("others", [(), (KnowledgeDistillation(type="mse"),), (MagnitudeSparsity(),)], ids=str)
def test_composite_controller_comes_back_with_all_its_algorithms(catalog: DataCatalog, others: Any) -> None:
    saved = composite(*others)
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    assert isinstance(loaded, CompositeController)
    assert loaded.settings == saved.settings
    assert loaded.get_state() == saved.get_state()
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())
    assert torch.equal(outputs(loaded.model), outputs(saved.model))
    assert torch.equal(outputs(loaded.strip()), outputs(saved.strip()))
    for each in (saved, loaded):
        train(each.model, torch.optim.SGD(each.model.parameters(), lr=0.05))
        each.compression_rate = 0.2
    assert_same_bits(loaded.model.state_dict(), saved.model.state_dict())


def test_cut_and_quantized_model_is_saved_without_its_controller(catalog: DataCatalog, tmp_path: Path) -> None:
    saved = composite().strip()
    catalog.save("model", saved)
    loaded = catalog.load("model")
    assert isinstance(loaded, SmallNet)
    assert loaded.get_parameter("conv.weight").dtype == torch.int8
    assert loaded.get_parameter("conv.weight").numel() < 576
    assert torch.equal(outputs(loaded), outputs(saved))
    assert_same_bits(loaded.state_dict(), saved.state_dict())
    folder = tmp_path / "models" / "model"
    assert listed(folder) == ["model.safetensors", "recipe.json"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["plan"]
    assert recipe["quantized"]
    assert "composite" not in (folder / "recipe.json").read_text()
    catalog.save("model", loaded)
    assert torch.equal(outputs(catalog.load("model")), outputs(saved))


def test_rate_of_a_loaded_controller_can_fall_to_0(catalog: DataCatalog) -> None:
    catalog.save("controller", controller(0.9))
    loaded = catalog.load("controller")
    loaded.compression_rate = 0.0
    assert_same_bits(loaded.strip().state_dict(), built(num_classes=3).state_dict())


def test_masks_of_a_loaded_controller_hold_in_training(catalog: DataCatalog) -> None:
    catalog.save("controller", controller(0.5))
    loaded = catalog.load("controller")
    before = loaded.report()
    train(loaded.model, sgd(loaded.model), batch={**BATCH, "targets": BATCH["targets"].clamp_max(2)})
    assert loaded.report() == before


def test_schedule_of_a_loaded_controller_goes_on(catalog: DataCatalog) -> None:
    schedule = ScheduleSettings(kind="polynomial", target_rate=0.4, target_epoch=4, power=1.0)
    saved = MagnitudeSparsityController(built(), MagnitudeSparsity(schedule=schedule))
    for _ in range(2):
        saved.scheduler.epoch_step()
    catalog.save("controller", saved)
    loaded = catalog.load("controller")
    loaded.scheduler.epoch_step()
    assert loaded.report().requested_rate == pytest.approx(0.2)


def test_stripped_model_of_a_loaded_controller_can_be_saved(catalog: DataCatalog) -> None:
    catalog.save("controller", controller(0.5))
    stripped = catalog.load("controller").strip()
    catalog.save("model", stripped)
    assert torch.equal(outputs(catalog.load("model")), outputs(stripped))


def test_folder_of_a_controller_holds_no_pickle(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("controller", controller(0.5))
    folder = tmp_path / "models" / "controller"
    assert listed(folder) == ["compression.json", "model.safetensors", "recipe.json"]
    compression = json.loads((folder / "compression.json").read_text())
    assert compression["settings"]["algorithm"] == "magnitude_sparsity"
    assert compression["state"]["requested_rate"] == 0.5


def test_controller_of_a_module_of_unknown_arguments_cannot_be_saved(catalog: DataCatalog) -> None:
    with pytest.raises(DatasetError, match=r"'num_inputs': .*'num_outputs': "):
        catalog.save("controller", MagnitudeSparsityController(NeedsArguments(3, 2)))
    assert not catalog.exists("controller")


def test_failing_save_keeps_the_controller_before(catalog: DataCatalog, tmp_path: Path) -> None:
    catalog.save("controller", controller(0.5))
    before = listed(tmp_path / "models")
    with pytest.raises(DatasetError):
        catalog.save("controller", MagnitudeSparsityController(built("tests.nets.HoldsMoreThanTensors")))
    assert catalog.load("controller").report().requested_rate == 0.5
    assert listed(tmp_path / "models") == before


# --- handles ---------------------------------------------------------------------------------------------------


def test_store_is_loaded_and_writes_by_itself(catalog: DataCatalog, tmp_path: Path) -> None:
    store = catalog.load("store")
    assert isinstance(store, CheckpointStore)
    assert catalog.exists("store")
    with store.open({"seed": 0}) as run:
        run.save(checkpoint(3))
        assert run.folder.is_relative_to(tmp_path / "models" / "store")
    with catalog.load("store").open({"seed": 0}) as run:
        assert run.numbers == [3]


def test_store_is_not_saved_as_a_whole(catalog: DataCatalog) -> None:
    with pytest.raises(DatasetError, match=r"store\.open\(identity\)\.save\(checkpoint\)"):
        catalog.save("store", catalog.load("store"))


def test_log_is_not_saved_as_a_whole(catalog: DataCatalog) -> None:
    with pytest.raises(DatasetError, match=r"log\.writer\(run\)"):
        catalog.save("tensorboard", catalog.load("tensorboard"))


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("metric")]


def test_log_goes_on_where_a_killed_run_stood(catalog: DataCatalog, tmp_path: Path) -> None:
    log = catalog.load("tensorboard")
    assert isinstance(log, TensorBoardLog)
    assert catalog.exists("tensorboard")
    writer = log.writer("run-a")
    for epoch in range(5):
        writer.add_scalar("metric", epoch / 8, epoch)
    writer.flush()
    folder = tmp_path / "models" / "tensorboard" / "run-a"
    assert scalars(folder) == [(epoch, epoch / 8) for epoch in range(5)]

    writer = log.writer("run-a", next_epoch=3)
    writer.add_scalar("metric", 1.0, 3)
    writer.close()
    assert scalars(folder) == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 1.0)]


# --- exported files --------------------------------------------------------------------------------------------


def test_onnx_model_comes_back(catalog: DataCatalog) -> None:
    model = built()
    catalog.save("onnx", to_onnx(model, INPUTS))
    loaded = catalog.load("onnx")
    assert isinstance(loaded, onnx.ModelProto)
    session = open_session(loaded.SerializeToString())
    torch.testing.assert_close(run_session(session, INPUTS), outputs(model))


def test_exported_program_comes_back(catalog: DataCatalog) -> None:
    model = built()
    catalog.save("program", to_program(model, INPUTS))
    loaded = catalog.load("program").module()
    assert torch.equal(loaded(INPUTS), outputs(model))


@pytest.mark.parametrize("name", ["onnx", "program"])
def test_file_is_replaced_removed_or_kept_as_a_whole(catalog: DataCatalog, tmp_path: Path, name: str) -> None:
    make: Callable[[nn.Module, Tensor], Any] = to_onnx if name == "onnx" else to_program
    assert not catalog.exists(name)
    first, second = (make(built(num_classes=number), INPUTS) for number in (3, 5))
    catalog.save(name, first)
    assert catalog.exists(name)
    folder = tmp_path / "models"
    (path,) = folder.iterdir()
    before = path.read_bytes()

    with pytest.raises(DatasetError):
        catalog.save(name, "neither a model nor a program")
    assert path.read_bytes() == before
    assert listed(folder) == [path.name]

    catalog.save(name, second)
    assert path.read_bytes() != before
    assert listed(folder) == [path.name]

    for _ in range(2):
        catalog.save(name, NotExported("no rate was within budget"))
        assert not path.exists()
        assert catalog.load(name) == NotExported("no rate was within budget")
    assert listed(folder) == [f"{path.name}.not_exported.txt"]

    catalog.save(name, first)
    assert listed(folder) == [path.name]


def test_openvino_files_come_and_go_together(catalog: DataCatalog, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    first, second = (OpenvinoFiles(b"<net/>" + more, b"weights" + more) for more in (b"", b"2"))
    for files in (first, second):
        catalog.save("openvino", files)
        assert catalog.load("openvino") == files
        assert listed(folder) == ["openvino.bin", "openvino.xml"]
    catalog.save("openvino", NotExported("not asked for"))
    assert listed(folder) == ["openvino.xml.not_exported.txt"]
    assert catalog.load("openvino") == NotExported("not asked for")


def test_a_crash_leaves_no_graph_with_the_weights_of_another(
    catalog: DataCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("the disk is full")

    catalog.save("openvino", OpenvinoFiles(b"<net/>", b"weights"))
    with monkeypatch.context() as broken:
        broken.setattr("kedro_aat.datasets.exported.os.replace", crash)
        with pytest.raises(DatasetError, match="the disk is full"):
            catalog.save("openvino", OpenvinoFiles(b"<other/>", b"others"))
    assert not catalog.exists("openvino")


@pytest.mark.parametrize("name", ["model", "controller", "onnx", "program", "openvino"])
def test_what_is_not_there_cannot_be_loaded(catalog: DataCatalog, name: str) -> None:
    assert not catalog.exists(name)
    with pytest.raises(DatasetError, match=name):
        catalog.load(name)
