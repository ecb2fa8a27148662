"""A script for NNCF 2.x runs with only its imports changed, and gives the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from kedro_aat import (
    AdaptiveCompressionTrainingLoop,
    EarlyExitCompressionTrainingLoop,
    NNCFConfig,
    Outcome,
    create_accuracy_aware_training_loop,
    create_compressed_model,
)
from kedro_aat.export.session import open_session, run_session
from kedro_aat.testing.training import BATCH, assert_same_bits
from tests.nets import SmallNet
from tests.nncf import user_script
from tests.nncf.scripts import (
    ADAPTIVE,
    DISTILLATION,
    EARLY_EXIT,
    PRUNING,
    QUANTIZATION,
    contents,
    outputs,
    write,
)

WEIGHTS = ["stem.0.weight", "conv.weight", "classifier.weight"]


class Finished:
    """A finished run of the script; tests only read its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.onnx_path = folder / "model.onnx"
        self.loop, self.controller, self.accuracy = user_script.main(write(folder), str(self.onnx_path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("script"))


def test_script_finds_a_rate_within_its_budget(finished: Finished) -> None:
    statistics = finished.loop.statistics
    assert finished.loop.outcome is Outcome.WITHIN_BUDGET
    assert statistics.accuracy_budget >= 0
    assert statistics.compressed_accuracy >= 0.95 * statistics.uncompressed_accuracy
    assert statistics.compressed_accuracy == finished.accuracy
    assert statistics.compression_rate == finished.controller.compression_rate > 0.4
    assert statistics.relative_accuracy_degradation == pytest.approx(
        100 * (1 - statistics.compressed_accuracy / statistics.uncompressed_accuracy)
    )


def test_script_runs_under_the_configured_schedule_first(finished: Finished) -> None:
    rates = [row.requested_rate for row in finished.loop.history]
    assert rates[0] == 0.1
    first_epochs = [row for row in finished.loop.history if row.trained and row.epoch <= 3]
    halfway = 0.1 + 0.2 * (1 - 0.5**0.9)
    assert [row.requested_rate for row in first_epochs] == pytest.approx([0.1, halfway, 0.3][: len(first_epochs)])
    assert first_epochs[-1].fully_compressed
    assert len(finished.loop.history) > len(first_epochs) + 2


def test_ignored_layer_of_the_script_stays_dense(finished: Finished) -> None:
    assert finished.controller.weight_names == WEIGHTS[:2]
    model = finished.controller.strip()
    assert (model.get_parameter("classifier.weight") != 0).all()
    kept = [model.get_parameter(name) for name in WEIGHTS[:2]]
    zeros, total = sum(int((weight == 0).sum()) for weight in kept), sum(weight.numel() for weight in kept)
    assert zeros / total == finished.loop.statistics.compression_rate


def test_exported_file_runs_in_onnxruntime_and_is_sparse(finished: Finished) -> None:
    model = finished.controller.strip()
    session = open_session(finished.onnx_path.read_bytes())
    for batch in (BATCH["inputs"], BATCH["inputs"][:1]):
        with torch.no_grad():
            torch.testing.assert_close(run_session(session, batch), model.eval()(batch), rtol=1e-4, atol=1e-4)
    stored = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(finished.onnx_path)).graph.initializer
    }
    zeros = sum(int((stored[name] == 0).sum()) for name in WEIGHTS[:2])
    assert zeros / sum(stored[name].size for name in WEIGHTS[:2]) == finished.loop.statistics.compression_rate


def test_saved_state_is_loaded_into_a_new_model(finished: Finished) -> None:
    saved = torch.load(finished.folder / "model.pth", weights_only=True)
    config = NNCFConfig.from_json(finished.folder / "config.json")
    state = json.loads(json.dumps(saved["compression_state"]))
    controller, model = create_compressed_model(SmallNet(width=8), config, compression_state=state)
    model.load_state_dict(saved["state_dict"])
    assert torch.equal(outputs(model), outputs(finished.controller.model))
    assert controller.report() == finished.controller.report()
    assert controller.settings == finished.controller.settings


def test_second_run_of_the_script_gives_the_same_results_and_keeps_the_files_of_the_first(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in (finished.folder / "logs").rglob("*") if path.is_file()}
    again = Finished(finished.folder)
    assert again.loop.statistics == finished.loop.statistics
    assert_same_bits(again.controller.model.state_dict(), finished.controller.model.state_dict())
    for path, contents_before in before.items():
        assert path.read_bytes() == contents_before
    assert len(list((finished.folder / "logs").iterdir())) == 2


# --- early exit ------------------------------------------------------------------------------------------------


def test_early_exit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, training=EARLY_EXIT)
    loop, controller, accuracy = user_script.main(config, str(tmp_path / "model.onnx"))
    assert loop.outcome is Outcome.WITHIN_BUDGET
    # The schedule ends in the third epoch; from then on, training stops after the first epoch within budget.
    assert loop.history[-1].epoch >= 3
    assert loop.history[-1].fully_compressed
    assert all(not row.fully_compressed or row.margin < 0 for row in loop.history[:-1])
    assert controller.report().requested_rate == pytest.approx(0.3)
    assert loop.statistics.compressed_accuracy == accuracy
    # What the script prints and where it writes.
    printed = capsys.readouterr().out
    assert loop.statistics.to_str() in printed
    assert all(part in printed for part in ("Uncompressed accuracy", "Compression rate", "conv.weight"))
    assert len(list((tmp_path / "logs").iterdir())) == 1


@pytest.mark.parametrize(
    ("training", "kind"), [(ADAPTIVE, AdaptiveCompressionTrainingLoop), (EARLY_EXIT, EarlyExitCompressionTrainingLoop)]
)
def test_mode_of_the_file_picks_the_loop(tmp_path: Path, training: dict[str, Any], kind: type) -> None:
    config = contents(tmp_path, training)  # a plain dict works, too
    controller, _ = create_compressed_model(SmallNet(), config)
    loop = create_accuracy_aware_training_loop(
        config, controller, uncompressed_model_accuracy=90.0, verbose=False, dump_checkpoints=False
    )
    assert type(loop) is kind
    assert (loop.verbose, loop.dump_checkpoints) == (False, False)


def test_early_exit_over_quantization_ends_within_budget_and_exports_integers(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    config = write(tmp_path, training=EARLY_EXIT, compression=QUANTIZATION)
    loop, controller, accuracy = user_script.main(config, str(path))
    assert type(loop) is EarlyExitCompressionTrainingLoop
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.compressed_accuracy == accuracy
    assert loop.statistics.compression_rate == controller.compression_rate == 1
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
    assert list(stored.values()).count(onnx.TensorProto.INT8) >= 3
    session = open_session(path.read_bytes())
    labels = outputs(controller.strip()).argmax(1)
    assert torch.equal(run_session(session, BATCH["inputs"]).argmax(1), labels)


def test_adaptive_search_over_pruning_quantization_and_distillation(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    compression = [PRUNING, QUANTIZATION, DISTILLATION]
    config = contents(tmp_path, compression=compression)
    config["model_params"]["width"] = 24  # a multiple of 8 filters remains in each layer
    config_path = tmp_path / "config.json"
    config_path.write_text(json.dumps(config))
    loop, controller, _ = user_script.main(str(config_path), str(path))
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.compression_rate == controller.compression_rate > 0
    model = controller.strip()
    assert len(model.get_parameter("conv.weight")) in (8, 16)
    assert model.state_dict()["conv.weight"].dtype == torch.int8
    assert torch.equal(
        run_session(open_session(path.read_bytes()), BATCH["inputs"]).argmax(1), outputs(model).argmax(1)
    )
