"""The bill of materials names what runs each delivered file, and everything that this needs."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from kedro_aat.reporting.sbom import Bom, bill_of_materials
from tests.reporting.runs import changed, summary_of


def bom_of(openvino: float | None = None) -> Bom:
    summary = summary_of("within_budget")
    known = {} if openvino is None else {"openvino": openvino}
    update = {"validation_program": 0.9, "validation_openvino": openvino, "validations": known}
    candidates = [candidate.model_copy(update=update) for candidate in summary.candidates]
    return bill_of_materials(changed(summary, candidates=candidates))


@pytest.fixture(scope="module")
def bom() -> Bom:
    return bom_of()


def test_packages_have_the_installed_version_and_a_license(bom: Bom) -> None:
    components = {component["name"]: component for component in bom["components"]}
    assert components["onnxruntime"]["version"] == version("onnxruntime")
    libraries = [component for component in components.values() if component["type"] == "library"]
    assert {"numpy", "torch", "sympy"} <= {library["name"] for library in libraries}
    # NVIDIA's collection of packages, which a CUDA build of torch needs, states no license.
    assert all(library["licenses"] for library in libraries if library["name"] != "cuda-toolkit")


def test_references_are_unique_and_resolve(bom: Bom) -> None:
    references = [component["bom-ref"] for component in bom["components"]]
    assert len(set(references)) == len(references)
    assert {dependency["ref"] for dependency in bom["dependencies"]} == set(references)
    assert {other for dependency in bom["dependencies"] for other in dependency["dependsOn"]} <= set(references)


@pytest.mark.parametrize(("openvino", "more"), [(None, {}), (0.9, {"compressed_model.xml": "pkg:pypi/openvino"})])
def test_each_delivered_file_depends_on_its_runtime(openvino: float | None, more: dict[str, str]) -> None:
    runtimes = {
        dependency["ref"]: dependency["dependsOn"][0].split("@")[0]
        for dependency in bom_of(openvino)["dependencies"]
        if dependency["ref"].startswith("compressed_model")
    }
    assert (
        runtimes == {"compressed_model.onnx": "pkg:pypi/onnxruntime", "compressed_model.pt2": "pkg:pypi/torch"} | more
    )


def test_nothing_delivered_needs_nothing() -> None:
    bom = bill_of_materials(summary_of("infeasible"))
    assert (bom["components"], bom["dependencies"]) == ([], [])
