"""Controllers of models with several inputs are saved with made-up inputs of the same structure."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from kedro.io import DataCatalog
from torch import Tensor, nn

from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.datasets.structure import described, restored
from kedro_aat.errors import ModelError
from kedro_aat.export.program import to_program
from kedro_aat.model_inputs import named_tensors, tensors_in
from kedro_aat.training.data import synthetic_input
from kedro_aat.training.settings import TrainingSettings
from tests.datasets.saved import built
from tests.export.structured import Answer, mask, words


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        ("TwoInputs", (torch.randn(4, 6), torch.randn(4, 4))),
        ("TwoInputs", {"numbers": torch.randn(4, 4), "image": torch.randn(4, 6), "scale": 2.0}),
        ("Encoder", {"input_ids": words(), "attention_mask": mask(), "labels": None}),
    ],
)
def test_an_example_input_of_any_structure_is_made_up_and_loaded(kind: str, example: Any, catalog: DataCatalog) -> None:
    catalog.save(
        "controller",
        MagnitudeSparsityController(built(f"tests.export.structured.{kind}"), example_input=example),
    )
    loaded = catalog.load("controller").example_input
    assert type(loaded) is type(example)
    assert [name for name, _ in named_tensors(loaded)] == [name for name, _ in named_tensors(example)]
    for mine, yours in zip(tensors_in(loaded), tensors_in(example), strict=True):
        assert (mine.shape, mine.dtype) == (yours.shape, yours.dtype)
        assert not (yours.is_floating_point() and torch.isin(mine, yours).any())
    if isinstance(example, dict):
        assert {key: value for key, value in loaded.items() if not torch.is_tensor(value)} == {
            key: value for key, value in example.items() if not torch.is_tensor(value)
        }


def test_structures_are_written_without_the_names_of_classes() -> None:
    text, tensors = described([Answer(words(), None), {"scale": 1.5, "kind": "text"}])
    assert "Answer" not in str(text)
    assert restored(text, tensors) == [
        {"logits": tensors["input.0.logits"], "hidden": None},
        {"scale": 1.5, "kind": "text"},
    ]


def test_what_is_no_plain_value_is_not_saved() -> None:
    with pytest.raises(ModelError, match=r"input\.1 .* is a object, which is not saved"):
        described((words(), object()))


@pytest.mark.parametrize("text", [{}, {"tensor": "missing"}, {"class": "os.system"}, {"mapping": 3}, {"list": None}])
def test_a_damaged_structure_is_one_clear_error(text: Any) -> None:
    with pytest.raises(ModelError, match="structure of the saved example input"):
        restored(text, {})


class WithTable(nn.Module):
    """Reads rows, a table that is no part of any row, and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, table: Tensor, level: Tensor) -> Tensor:
        return self.head(x @ table + level)  # type: ignore[no-any-return]


OWN = torch.Generator().manual_seed(5)
TABLE, LEVEL = torch.randn(4, 5, generator=OWN), torch.tensor(12.3456)


def with_table(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([each[key] for each in examples]) for key in examples[0]} | {
        "table": TABLE,
        "level": LEVEL,
    }


@pytest.mark.parametrize("num_rows", [6, 100])
def test_no_number_of_the_users_is_saved(num_rows: int, catalog: DataCatalog, tmp_path: Path) -> None:
    data = {"x": torch.randn(num_rows, 4, generator=OWN), "labels": torch.zeros(num_rows, dtype=torch.int64)}
    settings = {
        "metric": None,
        "validate": f"{__name__}.with_table",
        "loader": {"collate_fn": f"{__name__}.with_table"},
    }
    model = built(f"{__name__}.WithTable")
    inputs = synthetic_input(data, 2, TrainingSettings.model_validate(settings), model)
    assert {key: tuple(part.shape) for key, part in inputs.items()} == {"x": (2, 4), "table": (4, 5), "level": ()}
    catalog.save("controller", MagnitudeSparsityController(model, example_input=inputs))
    program = tmp_path / "model.pt2"
    torch.export.save(to_program(model, inputs), program)
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(program) as archive:
        archive.extractall(folder)
    saved = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != program]
    assert any(b"safetensors" in str(path).encode() for path in tmp_path.rglob("*"))
    for number in torch.cat([data["x"].flatten(), TABLE.flatten(), LEVEL[None]]):
        assert not any(number.numpy().tobytes() in content for content in saved)
