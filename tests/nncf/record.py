"""Records what NNCF 2.19 does in the situations that the tests compare with.

In an environment with NNCF, it runs from the root of the repository:

    python -m venv build/nncf
    build/nncf/bin/pip install torch torchvision tensorboard nncf==2.19.0
    build/nncf/bin/python -m tests.nncf.record            # how many recorded values NNCF returns again
    build/nncf/bin/python -m tests.nncf.record --write    # records them anew

The inputs are those in the files, so a new situation is written there first, without its values. `statistics` names the
figures that it wants, with null for each.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NNCF_TORCH_LEGACY_TRACING"] = "1"  # `create_compressed_model` needs it
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # its kernels are compiled once, which takes minutes

import torch
from torch import nn

from tests.nncf.conformance.example_nets import filled
from tests.nncf.conformance.recorded import ManyOutputs, Res, TextModel, fill, ramps, with_zeros

Situation = dict[str, Any]
HERE = Path(__file__).parent
TOLERANCE = 1e-6  # relative, for what kernels of torch may round differently


def compressed(model: nn.Module, contents: Situation) -> tuple[Any, Any]:
    """What NNCF's `create_compressed_model` returns."""
    from nncf import NNCFConfig
    from nncf.torch import create_compressed_model

    config = NNCFConfig.from_dict(json.loads(json.dumps(contents)))
    created: tuple[Any, Any] = create_compressed_model(model, config, dump_graphs=False)
    return created


def layer(scope: Any) -> str:
    """Name of a layer in torch: `b1.p` of `Res/Block[b1]/NNCFConv2d[p]/conv2d_0`."""
    return ".".join(re.findall(r"\[([^\]]+)\]", str(scope)))


def rates(given: Situation) -> Situation:
    model, shape = filled(given["net"])
    section = {"algorithm": "filter_pruning", "params": given["params"]}
    controller, _ = compressed(model, {"input_info": {"sample_size": shape}, "compression": section})
    groups = sorted(
        sorted(layer(each.module_scope) for each in cluster.elements)
        for cluster in controller.pruned_module_groups_info.get_all_clusters()
    )
    return {
        "groups": groups,
        "maximal": controller.maximal_compression_rate,
        "whole": [controller.full_flops // 2, controller.full_params_num, controller.full_filters_num],
        "situations": [at_rate(controller, groups, each["rate"]) for each in given["situations"]],
    }


def at_rate(controller: Any, groups: list[list[str]], rate: float) -> Situation:
    try:
        controller.compression_rate = rate
    except Exception as error:
        return {"rate": rate, "error": type(error).__name__}
    left = {
        layer(each.module_scope): int(each.operand.binary_filter_pruning_mask.sum())
        for each in controller.pruned_module_groups_info.get_all_nodes()
    }
    controller.statistics()
    return {
        "rate": rate,
        "left": [left[group[0]] for group in groups],
        "macs": controller.current_flops // 2,
        "parameters": controller.current_params_num,
        "filters": controller.current_filters_num,
        "compression_rate": controller.compression_rate,
    }


def schedules(given: Situation) -> Situation:
    section, num_steps = given["section"], given.get("steps", 0)
    layers = (nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    controller, _ = compressed(nn.Sequential(*layers), {"input_info": {"sample_size": [1, 1, 8, 8]}} | sectioned(given))
    scheduler, prunes = controller.scheduler, section["algorithm"] == "filter_pruning"

    def level() -> float:
        return round(float(scheduler.current_pruning_level if prunes else scheduler.current_sparsity_level), 9)

    found: Situation = {
        "solved": is_solved(scheduler),
        "before": round(float(controller.pruning_level if prunes else section["sparsity_init"]), 12),
        "stage_before": controller.compression_stage().name[0],
        "rates": [],
        "stages": "",
    }
    for _ in range(len(given["rates"]) // (num_steps or 1)):
        scheduler.epoch_step()
        if not num_steps:
            found["rates"].append(level())
        for _ in range(num_steps):
            scheduler.step()
            found["rates"].append(level())
        found["stages"] += controller.compression_stage().name[0]
    return found


def sectioned(given: Situation) -> Situation:
    return {"compression": given["section"]}


def is_solved(scheduler: Any) -> bool:
    """Whether the curve of `exponential_with_bias` meets its conditions; NNCF solves them numerically."""
    if not hasattr(scheduler, "k"):
        return True
    at_last = scheduler.a * math.exp(-scheduler.k * (scheduler.num_pruning_epochs - 1) / 8) + scheduler.b
    is_right_at_last = abs(at_last - 0.75 * scheduler.target_level) < 1e-6
    return bool(is_right_at_last and abs(scheduler.a + scheduler.b - scheduler.initial_level) < 1e-6)


def sparsity(given: Situation) -> Situation:
    described = {"sample_size": [2, 4], "type": "long", "filler": "zeros"}
    section = {"algorithm": "magnitude_sparsity", "params": given["params"]}
    controller, _ = compressed(fill(TextModel()), {"input_info": described, "compression": section})
    controller.compression_rate = given["rate"]
    zeros = {
        layer(each.module_node_name): int((each.operand.binary_mask == 0).sum())
        for each in controller.sparsified_module_info
    }
    return {"zeros": zeros, "model_sparsity": round(controller.compression_rate, 9)}


def distillation(given: Situation) -> Situation:
    sparse = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
    contents = {"input_info": {"sample_size": [5, 6]}, "compression": [sparse, given["section"]]}
    controller, model = compressed(fill(ManyOutputs(given["kind"])), contents)
    model.train()
    model(torch.sin(torch.arange(30.0)).reshape(5, 6))
    loss = controller.loss()
    loss.sum().backward()
    norms = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {
        "loss": round(float(loss), 7),
        "grad": {name: round(float(gradient.double().norm()), 7) for name, gradient in norms.items()},
        "zeros": [
            round(float((each.operand.apply_binary_mask(each.module.weight) == 0).float().mean()), 6)
            for each in controller.child_ctrls[0].sparsified_module_info
        ],
    }


def statistics(given: Situation) -> Situation:
    sections = given["compression"] if isinstance(given["compression"], list) else [given["compression"]]
    model = ramps(Res())
    if any(section["algorithm"] == "const_sparsity" for section in sections):
        with_zeros(model)
    contents = {"input_info": {"sample_size": [1, 3, 8, 8]}, "compression": given["compression"]}
    found = compressed(model, contents)[0].statistics()
    return {"names": [name for name, _ in found], "values": {path: figure(found, path) for path in given["values"]}}


def figure(found: Any, path: str) -> Any:
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else found


def scopes(given: Situation) -> Situation:
    contents = {"input_info": {"sample_size": [1, 3, 8, 8]}} | given["file"]
    try:
        controller, _ = compressed(Res(), contents)
    except Exception:
        return {"nncf": "error"}
    if contents["compression"]["algorithm"] == "quantization":
        return {"nncf": sorted(layer(key.target_node_name) for key in controller.weight_quantizers)}
    return {"nncf": sorted(layer(each.module_node_name) for each in controller.sparsified_module_info)}


def keys(given: Situation) -> Situation:
    """Nothing to record, but NNCF must accept the file."""
    from nncf import NNCFConfig

    NNCFConfig.from_dict({"input_info": {"sample_size": [1, 3, 8, 8]}} | given["file"])
    return {}


def traces(given: Situation) -> Situation:
    from tests.nncf.record_traces import trace

    return {"trace": trace(given["scenario"])}


# File, key of the list in it if it has others, and what records one situation.
FILES: list[tuple[str, str, Callable[[Situation], Situation]]] = [
    *((f"conformance/{each.__name__}.json", "", each) for each in (rates, schedules, sparsity, distillation)),
    ("nncf_statistics.json", "statistics", statistics),
    ("nncf_scopes.json", "scopes", scopes),
    ("nncf_files.json", "keys", keys),
    ("nncf_traces.json", "traces", traces),
]


def is_equal(before: Any, now: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(is_equal(before[key], now[key]) for key in before)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(is_equal, before, now))
    if isinstance(before, float) or isinstance(now, float):
        is_number = isinstance(before, float | int) and isinstance(now, float | int)
        return is_number and math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=1e-9)
    return bool(before == now)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="replace the recorded values")
    parser.add_argument("files", nargs="*", help="parts of the names of files; all if there are none")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import nncf

    logging.getLogger("nncf").setLevel(logging.CRITICAL)
    print(f"NNCF {nncf.__version__}, torch {torch.__version__}")
    for name, key, record in FILES:
        if options.files and not any(part in name for part in options.files):
            continue
        path = HERE / name
        contents = json.loads(path.read_text(encoding="utf-8"))
        situations = contents[key] if key else contents
        now = [given | record(given) for given in situations]
        differing = [before for before, after in zip(situations, now, strict=True) if not is_equal(before, after)]
        print(f"{name}: {len(now) - len(differing)} of {len(now)} situations are equal", flush=True)
        for before in differing:
            print(f"  differs: {json.dumps(before)[:200]}")
        if options.write:
            separators = None if name in {"nncf_statistics.json", "nncf_scopes.json", "nncf_files.json"} else (",", ":")
            lines = ",\n".join(f"{'  ' * bool(key)}{json.dumps(each, separators=separators)}" for each in now)
            text = f'{{\n "nncf": "{nncf.__version__}",\n "{key}": [\n{lines}\n ]\n}}\n' if key else f"[\n{lines}\n]\n"
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
