"""Valid files of every kind that kedro-aat reads, most of them from a run, for `files` to change."""

from __future__ import annotations

import json
import random
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
import torch
from onnx import ModelProto, TensorProto
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fuzzing import job
from tests.fuzzing.mutations import damaged, json_text, mutated
from tests.nncf.files import FILES

OPENVINO = (
    '<net name="a"><layers><layer id="0" name="w" type="Const"><data offset="0" size="8" shape="2"/></layer>'
    '<layer id="1" name="v0" type="MatMul"/></layers><edges/></net>'
)


def make_corpus(project: Path, folder: Path) -> None:
    """Copies files of a finished run, and writes those that a run does not have.

    Args:
        project: A project in which the job has run.
        folder: A new folder.
    """
    data = project / "data"
    models, results, reporting = data / "06_models", data / "07_model_output", data / "08_reporting"
    for name, source in {
        "baseline": models / "baseline_model",
        "model": models / "compressed_model",
        "controller": models / "fine_tuned_controller",
        "quantized": models / "second_stage_controller",
        "results": results,
    }.items():
        shutil.copytree(source, folder / name)
    run = json.loads((results / "search_result.json").read_text())["run"]
    shutil.copytree(models / "checkpoints" / run, folder / "store" / run)
    for surplus in sorted((folder / "store" / run).glob("checkpoint-*"))[1:-1]:
        shutil.rmtree(surplus)
    shutil.copytree(reporting, folder / "reporting", ignore=shutil.ignore_patterns("tensorboard"))
    for suffix in ("onnx", "pt2", "md"):
        shutil.copy(models / f"compressed_model.{suffix}", folder / f"model.{suffix}")
    job.run_job(job.SMALL, folder / "search", job.FIRST_SEARCH)
    for finished in (folder / "search").rglob("finished"):
        finished.unlink()
    (folder / "model.xml").write_text(OPENVINO)
    (folder / "model.bin").write_bytes(bytes(8))
    save_file({"inputs": torch.zeros(4, 2), "targets": torch.zeros(4, dtype=torch.int64)}, folder / "split.safetensors")
    table = pd.DataFrame({"size": [1, 2, 3], "weight": [0.5, 1.5, 2.5], "label": ["a", "b", "a"]})
    table.to_csv(folder / "table.csv", index=False)
    table.to_parquet(folder / "table.parquet")
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save({"state": state, "epoch": 3}, folder / "weights.pt")
    save_file(state, folder / "weights.safetensors")
    for number, name in enumerate(("a", "b")):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 100 * number).save(folder / "images" / name / f"0.{('png', 'jpg')[number]}")
    (folder / "nncf").mkdir()
    # The others are not for an accuracy-aware loop, and are refused as they are.
    for number, config in enumerate(file for file in FILES.values() if "accuracy_aware_training" in file):
        (folder / "nncf" / f"{number}.json").write_text(json.dumps(config))


def mutate(path: Path, rng: random.Random) -> None:
    """Changes what a file says; it stays readable, or nearly so."""
    {
        ".json": _mutate_json,
        ".safetensors": _mutate_tensors,
        ".pt": _mutate_pickle,
        ".parquet": _mutate_table,
        ".csv": _mutate_table,
        ".onnx": _mutate_onnx,
        ".pt2": _mutate_program,
        ".xml": _mutate_xml,
    }[path.suffix](path, rng)
    _forget_checksums(path.parent)


def _forget_checksums(folder: Path) -> None:
    """Writes new checksums, and removes those that may be absent, so that what they protect is read."""
    manifest, recipe = folder / "manifest.json", folder / "recipe.json"
    if manifest.exists() and (folder / "state.json").exists():
        try:
            written = json.loads(manifest.read_bytes())
            sums = written["files"]
            for name in sums.keys() & {path.name for path in folder.iterdir()}:
                contents = (folder / name).read_bytes()
                sums[name] = f"crc32:{zlib.crc32(contents):08x}:{len(contents)}"
            manifest.write_text(json.dumps(written))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # the manifest itself was changed
            pass
    if recipe.exists():
        recipe.write_bytes(re.sub(rb'"sha256": \{[^}]*\}', b'"sha256": {}', recipe.read_bytes()))


def _mutate_json(path: Path, rng: random.Random) -> None:
    contents = path.read_bytes()
    try:
        data = json.loads(contents)
    except ValueError:  # JSON after its checksum
        path.write_bytes(damaged(contents, rng))
    else:
        path.write_bytes(json_text(mutated(data, rng), rng))


def _mutate_state(tensors: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Changes types, shapes, names and values of tensors."""
    changed = dict(tensors)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(list(changed) or ["none"])
        tensor = changed.pop(name, torch.zeros(1))
        if not isinstance(tensor, torch.Tensor):
            continue
        dtype = rng.choice((torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool))
        flat = tensor.flatten()
        new = rng.choice(
            (
                *(tensor.to(dtype), flat, tensor[None], tensor[..., None], flat[:0], torch.cat([flat, flat])),
                flat[0] if len(flat) else flat,
                torch.full_like(tensor, rng.choice((0, 1, 100))),
                tensor * rng.choice((float("nan"), float("inf"), 1e38, -1.0)),
            )
        ).contiguous()
        names = (name, name, name, name.upper(), f"{name}.x", f"x.{name}", "", "日本")
        if rng.random() > 0.1:
            changed[rng.choice(names)] = new.clone()
    return changed


def _mutate_tensors(path: Path, rng: random.Random) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        metadata = file.metadata() or {}
    if rng.random() < 0.1:
        metadata = {**metadata, rng.choice((*tensors, "x")): rng.choice((*tensors, "x"))}
    save_file(_mutate_state(tensors, rng), path, metadata or None)


def _mutate_pickle(path: Path, rng: random.Random) -> None:
    contents = torch.load(path, weights_only=True)
    if rng.random() < 0.5 and "state" in contents:
        contents["state"] = _mutate_state(contents["state"], rng)
    else:
        contents = mutated(contents, rng)
    torch.save(contents, path)


def _mutate_table(path: Path, rng: random.Random) -> None:
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    for _ in range(rng.choice((1, 1, 3))):
        column = rng.choice([*map(str, frame.columns)] or ["none"])
        frame = frame.reset_index(drop=True)
        if rng.random() < 0.5 and column in frame and len(frame):
            frame[column] = frame[column].astype("object")
            rows = range(len(frame)) if rng.random() < 0.5 else [rng.randrange(len(frame))]
            new = rng.choice((None, "x", "", -1, 0.5, 2**62, float("nan"), float("inf"), True, 1e308))
            frame.loc[list(rows), column] = new
            if path.suffix == ".parquet" and len(rows) == 1:
                frame[column] = frame[column].astype(rng.choice(("str", "object")))
        else:
            frame = rng.choice(
                (
                    frame.drop(columns=column, errors="ignore"),
                    frame.rename(columns={column: rng.choice((column.upper(), "x", ""))}),
                    frame.iloc[: rng.choice((0, 1))],
                    pd.concat([frame] * 3),
                    frame.assign(**{rng.choice(("new", "stage", "日本")): "x"}),
                    frame[list(reversed(frame.columns))],
                )
            )
    try:
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    except (ValueError, TypeError):  # Arrow refuses columns of mixed types, so texts have to do
        frame.astype("str").to_parquet(path)


def _mutate_onnx(path: Path, rng: random.Random) -> None:
    model = onnx.load(path)
    graph = model.graph
    for _ in range(rng.choice((1, 2))):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        text = rng.choice(("", "x", "\0", "日本", tensor.name, node.op_type * 1000))
        change = rng.choice(("type", "input", "dims", "dtype", "external", "nested", "name", "remove", "clear"))
        if change == "type":
            node.op_type = text
        elif change == "input" and node.input:
            node.input[0] = text
        elif change == "dims":
            tensor.dims[:] = rng.choice(([], [-1], [2**62, 2**62], [0], [1] * 1000))
        elif change == "dtype":
            tensor.data_type = rng.choice((0, 8, 99, 16))
        elif change == "external":
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=rng.choice(("../../x", "/dev/zero", text)))
        elif change == "nested":
            _nest(model, 90)
        elif change == "name":
            tensor.name = text
        elif change == "remove":
            del graph.node[: rng.choice((1, len(graph.node)))]
            break
        else:
            model.ClearField(rng.choice(("graph", "opset_import", "ir_version")))
            break
    path.write_bytes(model.SerializeToString())


def _nest(model: ModelProto, levels: int) -> None:
    """Puts graphs into graphs; protobuf's readers accept 100 levels."""
    for _ in range(levels // 3):
        inner = ModelProto()
        inner.CopyFrom(model)
        del model.graph.node[:]
        node = model.graph.node.add(op_type="If")
        node.attribute.add(name="then_branch").g.CopyFrom(inner.graph)


def _mutate_program(path: Path, rng: random.Random) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in parts.items():
            if not name.endswith("/models/model.json"):
                archive.writestr(name, contents)
                continue
            change = rng.random()
            if change < 0.05:  # unpacks to 200 MB
                archive.writestr(name, b"[" + 200_000_000 * b" " + b"]")
            elif change < 0.9:
                archive.writestr(name, json_text(mutated(json.loads(contents), rng), rng))
            if change > 0.95:
                archive.writestr(f"other{name}", contents)


def _mutate_xml(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    places = [*re.finditer(r'"[^"]*"|<\w+|</\w+>', text)]
    place = rng.choice(places)
    entities = '<!DOCTYPE n [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {new} "{10 * f"&{old};"}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    path.write_text(
        rng.choice(
            (
                text[: place.start()] + rng.choice(('"x"', "", "&i;", "<layer>", "\1")) + text[place.end() :],
                f"{entities}]>" + text.replace('name="w"', 'name="&i;"'),
                f'<?xml version="1.0" encoding="{rng.choice(("utf-16", "x", "cp037"))}"?>{text}',
                20_000 * "<layers>" + text,
                f"<net><layers>{10_000 * '<layer/>'}</layers></net>",
            )
        ),
        encoding="utf-8",
    )
