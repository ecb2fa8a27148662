"""The computed tables of the page about memory, disk and time are up to date."""

from __future__ import annotations

from scripts import scale_page


def test_page_is_up_to_date() -> None:
    text = scale_page.PAGE.read_text(encoding="utf-8")
    assert scale_page.page(text) == text, "run python -m scripts.scale_page"


def test_tables_are_replaced() -> None:
    text = "before\n<!-- computed: kept -->old<!-- end: kept -->\nafter\n"
    new = scale_page.page(text)
    assert "old" not in new
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "| checkpoints at its end, about | 4 | 6 | 8 | 9 | 11 | 13 |" in new
