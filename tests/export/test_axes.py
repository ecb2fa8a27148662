"""Axes of any size: found by trying, asked for, and never at the price of what a file computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.axes import axes_of
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.settings import FileSettings
from kedro_aat.export.verify import read_back, verify_program
from kedro_aat.model_inputs import tensors_in
from tests.export.structured import Encoder, mask, words


def sizes(model: nn.Module, inputs: object, settings: FileSettings | None = None) -> list[list[str | int]]:
    graph = to_onnx(model, inputs, settings).graph
    return [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input]


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2)).eval()


class Attention(nn.Module):
    """A transformer's layer over features, whose reshapes copy the length."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(2, 3)).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Positions(nn.Module):
    """Adds a table of positions, which needs the length as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.table(torch.arange(x.shape[1])))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Computes along another path for a batch of 1."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if len(x) > 1 else self.head(x) * 2  # type: ignore[no-any-return]


class Categories(nn.Module):
    """Each column of whole numbers chooses rows of an embedding of its own size."""

    def __init__(self, sizes_of_columns: tuple[int, ...]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(size, 3) for size in sizes_of_columns])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([embed(x[:, column]) for column, embed in enumerate(self.embeddings)], dim=1)


class Constant(nn.Module):
    """Runs at any length, but divides by the length that it was traced with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / int(x.shape[1])


def test_a_convolutional_network_takes_images_of_any_size() -> None:
    model, images = convolutional(), torch.randn(4, 3, 8, 8)
    assert sizes(model, images) == [["batch", 3, "height", "width"]]
    larger = torch.randn(1, 3, 12, 20)
    for runner in (OnnxModel(to_onnx(model, images)), read_back(to_program(model, images))):
        torch.testing.assert_close(runner(larger), model(larger), rtol=1e-4, atol=1e-5)


def test_a_transformer_takes_any_length_without_computing_shapes() -> None:
    torch.manual_seed(0)
    model, features = Attention().eval(), torch.randn(4, 6, 8)
    file = to_onnx(model, features)
    assert sizes(model, features) == [["batch", "length", 8]]
    assert "Shape" not in {node.op_type for node in file.graph.node}
    longer = torch.randn(2, 11, 8)
    torch.testing.assert_close(OnnxModel(file)(longer), model(longer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [(words(), mask()), {"input_ids": words(), "attention_mask": mask()}])
def test_text_has_any_length_in_all_inputs_that_share_it(inputs: object) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    assert sizes(model, inputs) == [["batch", "length"]] * 2
    got = OnnxModel(to_onnx(model, inputs))(words(2, 9), mask(2, 9))
    torch.testing.assert_close(got.logits, model(words(2, 9), mask(2, 9)).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes_of_columns", [(50, 3), (6, 4, 8, 4)])
def test_a_table_of_categories_has_as_many_columns_as_the_model_reads(sizes_of_columns: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Categories(sizes_of_columns).eval()
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randint(size, (64,), generator=generator) for size in sizes_of_columns], dim=1)
    assert sizes(model, rows[:2]) == [["batch", len(sizes_of_columns)]]
    torch.testing.assert_close(OnnxModel(to_onnx(model, rows[:2]))(rows), model(rows))


def test_a_model_that_needs_its_size_keeps_it() -> None:
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    assert sizes(flat, torch.randn(4, 1, 8, 8)) == [["batch", 1, 8, 8]]
    (shape,) = sizes(Constant(), torch.randn(4, 6))
    got = OnnxModel(to_onnx(Constant(), torch.randn(4, 6)))(torch.ones(2, 6))
    torch.testing.assert_close(got, torch.ones(2))
    if shape[1] != 6:
        torch.testing.assert_close(OnnxModel(to_onnx(Constant(), torch.randn(4, 6)))(torch.ones(2, 12)), torch.ones(2))


def test_sizes_that_a_file_does_not_take_are_tried_silently(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3), nn.ReLU()).eval()
    assert sizes(pooled, torch.randn(4, 1, 8, 8)) == [["batch", 1, 8, 8]]
    assert capfd.readouterr().err == ""


def test_an_axis_whose_size_is_computed_with_is_free_only_if_it_is_asked_for() -> None:
    torch.manual_seed(0)
    model, features = Positions().eval(), torch.randn(4, 6, 8)
    assert sizes(model, features) == [["batch", 6, 8]]
    asked = FileSettings(dynamic_axes={"input": {1: "words"}})
    assert sizes(model, features, asked) == [["batch", "words", 8]]
    longer = torch.randn(2, 20, 8)
    torch.testing.assert_close(OnnxModel(to_onnx(model, features, asked))(longer), model(longer), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read_back(to_program(model, features, asked))(longer), model(longer))


def test_axes_that_were_asked_for_are_the_only_ones() -> None:
    model, images = convolutional(), torch.randn(4, 3, 8, 8)
    assert sizes(model, images, FileSettings(dynamic_axes={})) == [["batch", 3, 8, 8]]
    settings = FileSettings(dynamic_axes={"input": {0: "N", -1: "W"}})
    assert sizes(model, images, settings) == [["N", 3, 8, "W"]]


def test_an_axis_that_cannot_have_any_size_is_refused() -> None:
    settings = FileSettings(dynamic_axes={"input": (1,)})
    with pytest.raises(ExportError, match=r"any size of axis 1 of input \(export\.dynamic_axes\)"):
        to_onnx(nn.Linear(6, 3), torch.randn(4, 6), settings)


def test_no_example_is_in_the_program_of_a_structure() -> None:
    program = to_program(Encoder(), {"input_ids": words(40), "attention_mask": mask(40)})
    kept = program.example_inputs
    assert kept is not None
    assert [tuple(tensor.shape) for tensor in tensors_in(kept[0])] == [(2, 6), (2, 6)]


def test_an_axis_that_costs_the_batch_of_1_is_fixed() -> None:
    model = nn.Sequential(nn.EmbeddingBag(100, 24, mode="mean"), nn.Linear(24, 3)).eval()
    inputs = torch.randint(100, (8, 5))
    program = to_program(model, inputs)
    assert verify_program(program, model, inputs).batch_sizes == (8, 1)
    (axes,) = axes_of(program, ["input"]).values()
    assert isinstance(axes[0], str)
    assert axes[1] == 5


@pytest.mark.parametrize("head", [nn.ReLU(), nn.Linear(5, 2)], ids=["free length", "fixed length"])
def test_a_model_that_branches_on_the_batch_size_is_refused(head: nn.Module) -> None:
    with pytest.raises(ExportError, match="Branching cannot be exported for any batch size"):
        to_program(Branching(head).eval(), torch.randn(8, 5))
