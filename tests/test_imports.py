"""What an import path names, and mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedro_aat.errors import ConfigurationError
from kedro_aat.imports import Imported, import_path


@pytest.mark.parametrize("path", ["", ".", "a", ".nn", "torch..nn", "torch.nn.", "\0.x", "\ud800.x", "torch.nn.\ud800"])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(ConfigurationError):
        import_path(path)


@pytest.mark.parametrize("start", ["a", "torch.nn.Linear"])
def test_a_path_of_very_many_names(start: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names, but may have at most 32$") as caught:
        import_path(start + ".a" * 900)
    assert len(str(caught.value)) < 250


def test_a_module_that_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be imported: ZeroDivisionError") as caught:
        import_path("broken_on_import.x")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)  # its traceback shows the user's line


def test_what_cannot_be_called_is_a_mistake() -> None:
    (mistake,) = Imported(class_path="math.pi").lookup_mistakes("loss")
    assert mistake == "loss.class_path: must name a class or a function, but math.pi is 3.141592653589793"
