"""ExecuTorch's programs compute what the model computes, in integers where it was trained so. Needs `executorch`."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.export.verify import Agreement, verify_file
from kedro_aat.pipelines.digits.model import ResidualCNN
from tests.compression.filters.pruned import pruned
from tests.compression.quantization.quantized import Branching, Separable, Sequence, quantized, settled
from tests.documents import ROOT, blocks
from tests.export.nets import DEAD, Recurrent, dead
from tests.export.structured import CASES
from tests.nets import Perceptron

pytest.importorskip("executorch")

# Fraction of the largest output: a second rounding to 8 bits, and sums that differ in their last bits.
ROUNDING = 0.03
PAGE = ROOT / "docs/targets/executorch.md"
IMAGES = torch.randn(19, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SHAPES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "cnn": (ResidualCNN((8, 16)), (1, 8, 8)),
    "perceptron": (Perceptron([20, 256, 256, 4]), (20,)),
    "separable": (Separable(), (3, 16, 16)),
    "branching": (Branching(), (3, 16, 16)),
    "sequence": (Sequence(), (6, 32)),
    "series": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)), (3, 8)),
    "gru": (Recurrent(nn.GRU(8, 16, batch_first=True)), (5, 8)),
}


def settings(**executorch: Any) -> ExportSettings:
    return ExportSettings.model_validate({"executorch": executorch})


def write(model: nn.Module, inputs: Any, chosen: ExportSettings | None = None) -> TargetFile:
    return target_of("executorch").write(model, inputs, chosen or settings(), None)  # type: ignore[arg-type]  # unread


def verify(file: TargetFile, model: nn.Module, inputs: Any, tolerance: float) -> Agreement:
    return verify_file("ExecuTorch", target_of("executorch").read_back(file), model, inputs, tolerance=tolerance)


def int8(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A copy of a model, the same quantized, and inputs."""
    torch.manual_seed(0)
    model, shape = SHAPES[name]
    inputs = torch.randn(32, *shape)
    model = settled(copy.deepcopy(model), inputs)
    return model, quantized(copy.deepcopy(model), inputs).strip().eval(), inputs


def test_any_batch_size_is_run(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, inputs = settled(Perceptron([20, 32, 4]), torch.randn(8, 20)), torch.randn(19, 20)
    file = write(model, inputs, settings(batch_size=8))
    assert verify(file, model, inputs, 1e-5).batch_sizes == (19, 1)
    assert (file.inputs, file.outputs, file.batch_size) == (("input",), ("output",), None)
    assert file.details.operators == ("XnnpackBackend",)
    assert file.details.arena_bytes is not None
    assert file.details.arena_bytes >= 8 * (20 + 4) * 4
    assert capfd.readouterr().err == ""


def test_a_batch_larger_than_onednn_would_allow() -> None:
    torch.manual_seed(0)
    model, inputs = (
        settled(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), torch.randn(4, 1, 8, 8)),
        torch.randn(40, 1, 8, 8),
    )
    file = write(model, inputs)
    run = target_of("executorch").bind(file, [inputs.numpy()], 1)
    run()
    verify(file, model, inputs, 1e-5)


def test_one_batch_size_needs_less_memory() -> None:
    torch.manual_seed(0)
    model, inputs = settled(Perceptron([20, 32, 4]), torch.randn(8, 20)), torch.randn(5, 20)
    file = write(model, inputs, settings(dynamic_batch=False))
    assert file.batch_size == 1
    verify(file, model, inputs, 1e-5)
    larger = write(model, inputs, settings(dynamic_batch=False, batch_size=4))
    assert larger.batch_size == 4
    verify(larger, model, inputs, 1e-5)
    assert file.details.arena_bytes is not None
    assert larger.details.arena_bytes is not None
    assert file.details.arena_bytes < larger.details.arena_bytes


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "int8"])
def test_portable_operators_are_listed(quantize: bool) -> None:
    model, small, inputs = int8("series")
    model = small if quantize else model
    file = write(model, inputs, settings(backend="portable"))
    assert "aten::convolution.out" in file.details.operators
    assert not any("Backend" in name or "quantized" in name for name in file.details.operators)
    verify(file, model, inputs, ROUNDING if quantize else 1e-5)
    assert (b"Xnnpack" in file.parts[".pte"]) is False


def test_a_gru_gets_a_file_for_a_batch_of_one() -> None:
    torch.manual_seed(0)
    model, inputs = copy.deepcopy(SHAPES["gru"][0]).eval(), torch.randn(5, 5, 8)
    file = write(model, inputs, settings(batch_size=4))
    assert file.batch_size == 1
    verify(file, model, inputs, 1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_int8_models_compute_what_was_trained(name: str) -> None:
    _, small, inputs = int8(name)
    file = write(small, inputs)
    verify(file, small, inputs, ROUNDING)
    # Integers are computed with by XNNPACK, or multiplied by their scales by portable operators.
    assert not any("quantized" in operator for operator in file.details.operators)


def test_an_int8_model_is_written_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
    """torch 2.13 warns of its own classes when it copies a program."""
    _, small, inputs = int8("series")
    recwarn.clear()
    write(small, inputs)
    assert [str(each.message) for each in recwarn] == []


def test_layers_with_rounded_outputs_agree_to_the_integer() -> None:
    """The last layer is computed in the dynamic form; without it, all but a few numbers are the same integers."""
    torch.manual_seed(0)
    inputs = torch.randn(32, 3, 16, 16)
    small = quantized(settled(Separable(), inputs), inputs).strip().eval()
    small.head = nn.Identity()
    with torch.no_grad():
        expected = small(inputs)
        got = target_of("executorch").read_back(write(small, inputs))(inputs)
    steps = ((got - expected) / (expected[expected > 0].min())).abs()
    assert float((steps < 0.5).double().mean()) > 0.95


def test_int8_weights_take_a_quarter() -> None:
    model, small, inputs = int8("perceptron")
    assert write(small, inputs).num_bytes < 0.3 * write(model, inputs).num_bytes


@pytest.mark.parametrize("name", CASES)
def test_any_tensors_are_taken_and_returned(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs, names, _ = CASES[name]
    model = kind().eval()
    file = write(model, inputs, settings(batch_size=8))
    assert list(file.inputs) == names
    verify(file, model, inputs, 1e-5)


def test_states_are_joined_along_their_own_axis() -> None:
    """A file for a batch of 1, whose states have the batch as their second axis."""
    torch.manual_seed(0)
    kind, inputs, _, _ = CASES["states"]
    model = kind().eval()
    file = write(model, inputs, settings(dynamic_batch=False))
    assert file.batch_axes == (0, 1, 1)
    verify(file, model, inputs, 1e-5)


def test_latency_is_measured_in_turns_with_onnxruntime() -> None:
    torch.manual_seed(0)
    model, inputs = settled(Perceptron([20, 32, 4]), torch.randn(8, 20)), torch.randn(19, 20)
    file = write(model, inputs, settings(batch_size=8))
    latencies = measure_latency([to_onnx(model, inputs), file], inputs, batch_sizes=(1, 16), seconds=0.1)
    assert [list(latency) for latency in latencies] == [[1, 16], [1, 16]]


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "int8"])
def test_other_files_still_run_after_the_number_of_threads_changed(quantize: bool) -> None:
    model, small, inputs = int8("cnn")
    file, target = write(small if quantize else model, inputs), target_of("executorch")
    loaded = target.read_back(file)
    before = loaded(inputs)
    runs = [target.bind(file, [inputs.numpy()], number) for number in (1, 2, 1)]
    for run in runs:
        run()
    assert torch.equal(loaded(inputs), before)


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()  # type: ignore[no-any-return]


def test_an_operator_without_a_kernel_is_named() -> None:
    with pytest.raises(ExportError, match="Spectrum cannot be written for ExecuTorch because of the operator aten"):
        write(Spectrum(), torch.randn(4, 8))


def test_what_is_no_program_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    file = TargetFile("executorch", {".pte": b"neither a program nor anything else" * 10}, ("input",), ("output",))
    with pytest.raises(ExportError, match="ExecuTorch cannot load the file"):
        target_of("executorch").read_back(file)
    assert capfd.readouterr().err == ""


def test_wrong_inputs_are_an_error() -> None:
    model, inputs = settled(Perceptron([20, 32, 4]), torch.randn(8, 20)), torch.randn(5, 20)
    loaded = target_of("executorch").read_back(write(model, inputs))
    with pytest.raises(ExportError, match=r"input must be of shape \(batch, 20\), but got \(2, 21\)"):
        loaded(torch.from_numpy(np.zeros((2, 21), np.float32)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_program_of_the_page_runs_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)), IMAGES)
    (tmp_path / "compressed_model.pte").write_bytes(write(model, IMAGES).parts[".pte"])
    (source,) = (text for _, text in blocks(PAGE, "cpp"))
    (build,) = (text for _, text in blocks(PAGE, "text") if "g++" in text)
    (tmp_path / "main.cpp").write_text(source)
    build = build.replace("python -c", f"{sys.executable} -c")
    subprocess.run(["bash", "-c", build], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(["./run"], cwd=tmp_path, check=True, capture_output=True, text=True)
    printed = torch.tensor([float(line.split()[1]) for line in done.stdout.splitlines()])
    with torch.no_grad():
        torch.testing.assert_close(printed, model(torch.zeros(1, 1, 8, 8))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DEAD)
def test_layers_around_what_was_always_zero_in_training_are_int8(name: str) -> None:
    model, inputs = dead(name)
    small = quantized(model, inputs).strip().eval()
    verify(write(small, inputs), small, inputs, ROUNDING)


@pytest.mark.parametrize("channels", [1, 3, 5, 7])
def test_pruned_convolutions_have_any_number_of_channels(channels: int) -> None:
    torch.manual_seed(0)
    signals = torch.randn(32, 2, 16)
    first, second = nn.Conv1d(2, 24, 5, padding=2), nn.Conv1d(24, 24, 3, padding=1)
    layers = first, nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(192, 3)
    controller = pruned(nn.Sequential(*layers), signals, minimal_channels=channels)
    controller.compression_rate = controller.maximal_compression_rate
    model = controller.strip().eval()
    assert model.get_submodule("0").out_channels == channels
    with torch.no_grad():
        model.get_submodule("4").get_parameter("weight")[0] = 0
    small = quantized(model, signals).strip().eval()
    verify(write(small, signals), small, signals, ROUNDING)


class Mixed(nn.Module):
    """Layers of all kinds over series or images, (B, 3, 12) or (B, 3, 12, 12), each of which may stay float."""

    def __init__(self, num_axes: int) -> None:
        super().__init__()
        conv, transposed, norm = {
            1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d),
            2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
        }[num_axes]
        self.first_norm, self.first = norm(3), conv(3, 8, 3, padding=1)
        self.depthwise, self.pointwise, self.norm = conv(8, 8, 3, groups=8), conv(8, 8, 1), norm(8)
        self.wider, self.last, self.head = transposed(8, 6, 2, 2), conv(6, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.first_norm(x)).relu()
        x = self.norm(self.pointwise(self.depthwise(x))).relu()
        out: Tensor = self.head(self.last(self.wider(x).relu()).flatten(2).mean(-1))
        return out


@pytest.mark.parametrize("floats", ["pointwise", "wider", "first last"])
@pytest.mark.parametrize("num_axes", [1, 2], ids=["series", "images"])
def test_float_layers_between_int8_ones(floats: str, num_axes: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 3, *[12] * num_axes)
    model = settled(Mixed(num_axes), inputs)
    small = quantized(model, inputs, ignored_scopes=floats.split()).strip().eval()
    verify(write(small, inputs), small, inputs, ROUNDING)


class Gated(nn.Module):
    """Scales every channel by a function of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1), nn.ReLU(), nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.scale(x.mean((2, 3), keepdim=True))
        return out


def gated() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), Gated(after)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)).eval()
    return quantized(model, IMAGES).strip().eval(), IMAGES


def test_means_of_a_file_for_any_batch_size_are_left_to_portable_operators() -> None:
    """XNNPACK's write to freed memory when the batch grows, which ends the process."""
    small, images = gated()
    file = write(small, images)
    assert "aten::mean.out" in file.details.operators
    loaded = target_of("executorch").read_back(file)
    with torch.no_grad():
        for size in (1, 2, 19, 1, 19):
            torch.testing.assert_close(loaded(images[:size]), small(images[:size]), atol=0.02, rtol=0.02)


def test_means_of_a_file_for_one_batch_size_are_given_to_xnnpack() -> None:
    small, images = gated()
    file = write(small, images, settings(dynamic_batch=False))
    assert file.details.operators == ("XnnpackBackend",)
    verify(file, small, images, ROUNDING)
