"""The page of all settings is complete and up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from kedro_aat.config import AatSettings

settings_page = pytest.importorskip("scripts.settings_page", reason="the extra `docs` is not installed")
SCHEMA = AatSettings.model_json_schema()


def rows() -> Iterator[list[str]]:
    """Key, allowed values, default and meaning of each row."""
    for line in settings_page.PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def keys_of(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """The keys of a schema, and all that stand below them in mappings and lists, whatever the branch of a union."""
    schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for key, below in schema.get("properties", {}).items():
        yield f"{path}.{key}"
        yield from keys_of(below, f"{path}.{key}")
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), schema.get("items", {})):
        yield from keys_of(branch, path) if branch else ()


def is_shared(key: str) -> bool:
    """Whether a key stands in a section that is shown once for several places."""
    return bool(
        re.match(r"aat\.(second|third)_stage\.(compression|search)\.", key)
        or re.match(r"aat\.third_stage\.", key)
        or re.match(r"aat\.compression\.algorithms\.(?!(algorithm|type|scale|temperature)$)", key)
        or key.endswith((".class_path", ".init_args"))
    )


def test_page_is_up_to_date() -> None:
    assert settings_page.page() == settings_page.PAGE.read_text(encoding="utf-8"), "run python -m scripts.settings_page"


def test_every_key_has_a_row() -> None:
    keys = set(keys_of(SCHEMA, "aat"))
    assert len(keys) > 150
    assert {key for key in keys if not is_shared(key)} - {row[0].strip("`") for row in rows()} == set()


def test_every_cell_is_filled() -> None:
    assert not [row for row in rows() if len(row) != 4 or not all(row)]


@pytest.mark.parametrize(
    ("key", "allowed", "default"),
    [
        ("aat.maximal_rate", "a number in [0, 1)", "`0.998`"),
        ("aat.training.validate", "text or `null`", "`null`"),  # by its name in YAML
        ("aat.budget.also.max_drop", "a number in [0, 1e+100], or `null`", "`null`"),  # inherited
        ("aat.search.patience_epochs", "a whole number in [0, 1,000,000]", "`3`"),  # inherited twice
        ("aat.goal", "`size`, `accuracy`", "`size`"),
        ("aat.training.loss", "an [import path](#import-paths-with-arguments)", "`torch.nn.CrossEntropyLoss`"),
        ("aat.export.batch_sizes", "a list of at least 1, each a whole number in [1, 65,536]", "`[1, 64]`"),
        ("aat.second_stage.search", None, "`{kind: frontier, maximal_total_epochs: 8}`"),
    ],
)
def test_allowed_values_and_defaults(key: str, allowed: str | None, default: str) -> None:
    row = next(row for row in rows() if row[0] == f"`{key}`")
    assert allowed in (None, row[1])
    assert row[2] == default


def test_a_setting_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AatSettings, "__doc__", "All settings.")
    with pytest.raises(ValueError, match=r"AatSettings.target has no entry"):
        settings_page.page()


def test_links_lead_to_sections() -> None:
    text = settings_page.PAGE.read_text(encoding="utf-8")
    slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= slugs
