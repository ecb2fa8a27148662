"""Nodes of the user's that write the data and the model, in one run with ours."""

from __future__ import annotations

from tests.adoption.demo import Demo
from tests.documents import TUTORIAL, titled_blocks

MODEL = titled_blocks(TUTORIAL, "python")["src/demo/models.py"]

# The output of `split` for the training data is filled in.
PREPARE = """
import pandas as pd
import torch
from demo.models import WineNet
from kedro.pipeline import Node, Pipeline


def _rows(seed):
    inputs = torch.randn(32, 13, generator=torch.Generator().manual_seed(seed))
    return {"inputs": inputs, "targets": inputs[:, :3].argmax(1)}


def split():
    rows = _rows(0)
    if "OUTPUT" == "train_table":
        return pd.DataFrame(rows["inputs"].numpy()).assign(kind=rows["targets"])
    return rows


def hold_out():
    return _rows(1), _rows(2)


def train(validation):
    model = WineNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(validation["inputs"]), validation["targets"]).backward()
        optimizer.step()
    return model


def create_pipeline(**_):
    return Pipeline(
        [
            Node(split, None, "OUTPUT", name="split"),
            Node(hold_out, None, ["validation_data", "test_data"]),
            Node(train, "validation_data", "baseline_model"),
        ]
    )
"""

CATALOG = """
baseline_model:
  type: kedro_aat.datasets.imported.ImportedModelDataset
  class_path: demo.models.WineNet
  filepath: data/06_models/wine.pt
train_data:
  type: kedro_aat.datasets.tabular.TableDataset
  filepath: data/05_model_input/train.csv
  target: kind
validation_data:
  type: kedro_aat.datasets.tabular.TableDataset
  filepath: data/05_model_input/validation.parquet
  target: kind
"""
TABLE = """
train_table:
  type: pandas.CSVDataset
  filepath: data/05_model_input/train.csv
  save_args: { index: false }
"""
OLD = "width,kind\n,\n"  # reading it would be an error
SHORT = "aat.search.maximal_total_epochs=2"


def _prepare(demo: Demo, output: str) -> None:
    demo.kedro("aat", "init")
    demo.write("src/demo/models.py", MODEL)
    demo.write("src/demo/pipelines/prepare/__init__.py", PREPARE.replace("OUTPUT", output))
    demo.edit("parameters_aat.yml", ("num_classes: 10", "num_classes: 3"))
    for name in ("baseline_model", "train_data", "validation_data"):  # the template's entries become comments
        text = (demo.base / "catalog_aat.yml").read_text()
        start = text.index(f"\n{name}:\n")
        end = text.index("\n\n", start)
        (demo.base / "catalog_aat.yml").write_text(text[:start] + text[end:])
    demo.write("conf/base/catalog_mine.yml", CATALOG + (TABLE if output == "train_table" else ""))
    demo.write("data/05_model_input/train.csv", OLD)


def _words(output: str) -> str:
    return " ".join(output.split())


def _letters(output: str) -> str:
    """The output without spaces: a long path is broken in the middle of a name."""
    return "".join(output.split())


def test_a_run_trains_on_what_its_own_nodes_have_just_written(demo: Demo) -> None:
    _prepare(demo, "train_data")
    (demo.folder / "data/05_model_input/train.csv").unlink()
    noted = _words(demo.kedro("aat", "validate", "--no-run-nodes"))
    assert "of the pipeline prepare make baseline_model, train_data and validation_data" in noted
    assert "run `kedro run --pipelines prepare,aat`, not aat alone" in noted
    assert "rehearse: not done, because the run makes baseline_model" in noted
    demo.write("data/05_model_input/train.csv", OLD)
    output = demo.kedro("run", "--to-nodes", "finetune_adaptively", "--params", SHORT)
    for name in ("split", "train"):
        assert output.index(f"Running node: {name}") < output.index("Running node: evaluate_baseline")
    assert (demo.folder / "data/05_model_input/train.csv").read_text() != OLD
    assert "no mistakes" in demo.kedro("aat", "validate")


def test_a_file_of_ours_that_another_entry_writes_ends_the_run_before_it_begins(demo: Demo) -> None:
    _prepare(demo, "train_table")
    words = "train.csv is also train_table, which the node split writes in the same run"
    failed = _words(demo.kedro("run", code=1))
    assert _letters(words) in _letters(failed)
    assert "Let split write train_data itself, or run the pipelines one after another" in failed
    assert "Running node" not in failed
    assert "Traceback" not in failed
    assert (demo.folder / "data/05_model_input/train.csv").read_text() == OLD
    assert _letters(words) in _letters(demo.kedro("aat", "validate", "--pipeline", "__default__", code=1))

    demo.kedro("run", "--pipelines", "prepare")  # one after another
    noted = _words(demo.kedro("aat", "validate"))
    assert "Note: `kedro run` would not start. train_data: " in noted
    assert "no mistakes" in noted
    demo.kedro("run", "--pipelines", "aat", "--to-nodes", "evaluate_baseline")
