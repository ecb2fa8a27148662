"""The software bill of materials (SBOM): the packages that run the delivered files, with versions and licenses."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal, TypedDict
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kedro_aat.delivery.results import Summary
from kedro_aat.export.targets.registry import TARGETS

# A longer text in the field for the license is the license itself, not its name.
_LONGEST_LICENSE_NAME = 60


class NamedLicense(TypedDict):
    """A license by its name, if the package states no SPDX expression."""

    name: str


class License(TypedDict, total=False):
    """An SPDX expression or a named license."""

    expression: str
    license: NamedLicense


Component = TypedDict(
    "Component",
    {"type": str, "bom-ref": str, "name": str, "version": str, "purl": str, "licenses": list[License]},
    total=False,
)


class Dependency(TypedDict):
    """What one component needs, by references."""

    ref: str
    dependsOn: list[str]


class Bom(TypedDict):
    """A bill of materials, with CycloneDX's own keys."""

    bomFormat: Literal["CycloneDX"]
    specVersion: Literal["1.6"]
    version: int
    components: list[Component]
    dependencies: list[Dependency]


def bill_of_materials(summary: Summary) -> Bom:
    """What the delivered files need in order to run, in CycloneDX's JSON format 1.6.

    Versions are those of this environment, in which the files were judged and measured.

    Args:
        summary: Summary of the run; without a delivered file the bill is empty.
    """
    files = {}  # name -> the package that runs it
    if (delivered := summary.delivered_candidate) is not None:
        files["compressed_model.onnx"] = "onnxruntime"
        if delivered.validation_program is not None:
            files["compressed_model.pt2"] = "torch"
        for target in delivered.validations:
            files[f"compressed_model{TARGETS[target].suffixes[0]}"] = TARGETS[target].runtime
    requirements = _closure(files.values())
    references = {name: f"pkg:pypi/{name}@{quote(distribution(name).version)}" for name in requirements}
    components: list[Component] = [{"type": "machine-learning-model", "bom-ref": file, "name": file} for file in files]
    dependencies: list[Dependency] = [
        {"ref": file, "dependsOn": [references[runtime]]} for file, runtime in files.items()
    ]
    for name, others in requirements.items():
        components.append(_component(name, references[name]))
        dependencies.append({"ref": references[name], "dependsOn": [references[other] for other in others]})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": components,
        "dependencies": dependencies,
    }


def _closure(roots: Iterable[str]) -> dict[str, list[str]]:
    """Installed package -> the installed packages that it requires, for `roots` and all that they need."""
    requirements: dict[str, list[str]] = {}
    waiting = sorted(set(roots))
    while waiting:
        name = waiting.pop(0)
        if name not in requirements:
            requirements[name] = _required_by(name)
            waiting += requirements[name]
    return requirements


def _required_by(name: str) -> list[str]:
    required = set()
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required.add(canonicalize_name(requirement.name))
    return sorted(other for other in required if _is_installed(other))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:  # torch's CPU build does without the CUDA packages that its metadata may name
        return False
    return True


def _component(name: str, reference: str) -> Component:
    component: Component = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": distribution(name).version,
        "purl": reference,
    }
    license_of_package = _license_of(name)
    if license_of_package is not None:
        component["licenses"] = [license_of_package]
    return component


def _license_of(name: str) -> License | None:
    """The SPDX expression if the package has one, else the name in its metadata; None if there is none."""
    metadata = distribution(name).metadata
    if "License-Expression" in metadata:
        return {"expression": metadata["License-Expression"]}
    classifiers = metadata.get_all("Classifier") or []
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")]
    if not names and "License" in metadata and len(metadata["License"]) <= _LONGEST_LICENSE_NAME:
        names = [metadata["License"]]
    return {"license": {"name": " or ".join(names)}} if names else None
