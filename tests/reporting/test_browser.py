"""The report in a real browser: it draws without errors, and fits a desktop and a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kedro_aat.pipelines.aat.reporting import report_run
from tests.browser import CHROMIUM, open_in_browser
from tests.reporting.runs import exported, layers, settings, summary_of, trajectory_of

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium to open the report in: apt-get install chromium (.ci/run does it)"
)

# The report in a frame, since a browser's window does not get as narrow as a phone; what is found is written into
# the outer page once the figures are drawn.
FRAME = """<!doctype html><link rel="icon" href="data:,"><body>
<iframe src="report.html" style="width: {width}px; height: 3000px; border: 0"></iframe>
<script>
const timer = setInterval(() => {{
  const page = document.querySelector("iframe").contentDocument;
  if (!page?.documentElement?.dataset.drawn) return;  // while it loads there is no element yet
  clearInterval(timer);
  const wide = page.documentElement.scrollWidth;
  const svgs = [...page.querySelectorAll(".figure")].map((figure) => figure.querySelectorAll("svg.main-svg").length);
  const right = [...page.querySelectorAll(".figure svg.main-svg")].map((svg) => svg.getBoundingClientRect().right);
  // A shadow that stays at the edge, and a cover that moves with the table.
  const scrolling = [...page.querySelectorAll(".wide")].filter((table) => table.scrollWidth > table.clientWidth);
  const shaded = scrolling.map((table) => page.defaultView.getComputedStyle(table).backgroundAttachment);
  document.body.dataset.found = JSON.stringify({{ wide, svgs, right: Math.max(...right), shaded }});
}}, 50);
</script>"""


def open_report(page: Path, profile: Path, *, is_dark: bool) -> tuple[str, list[str]]:
    """The page's document once it is drawn, and what was written to the console."""
    return open_in_browser(
        page.as_uri(),
        profile,
        "--allow-file-access-from-files",  # so that the frame can be looked into
        f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
    )


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize(("outcome", "num_figures"), [("certified", 4), ("infeasible", 2)])
def test_report_is_drawn_and_fits(tmp_path: Path, outcome: str, num_figures: int, width: int) -> None:
    summary = summary_of(outcome)
    report, *_ = report_run(summary, trajectory_of(summary), layers(), exported(summary), settings())
    (tmp_path / "report.html").write_text(report)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    document, console = open_report(tmp_path / "frame.html", tmp_path / "profile", is_dark=False)
    assert console == []
    (found,) = re.findall(r'data-found="([^"]*)"', document)
    drawn = json.loads(found.replace("&quot;", '"'))
    assert len(drawn["svgs"]) == num_figures
    assert min(drawn["svgs"]) >= 1
    assert drawn["wide"] <= width
    assert drawn["right"] <= width
    assert (width > 390) == (drawn["shaded"] == [])
    assert set(drawn["shaded"]) <= {"local, local, scroll, scroll"}


def test_figures_follow_the_dark_theme(tmp_path: Path) -> None:
    summary = summary_of("certified")
    report, *_ = report_run(summary, trajectory_of(summary), layers(), exported(summary), settings())
    (tmp_path / "report.html").write_text(report)
    inks = {}
    for is_dark in (False, True):
        document, console = open_report(tmp_path / "report.html", tmp_path / "profile", is_dark=is_dark)
        assert console == []
        (inks[is_dark],) = set(
            re.findall(r'class="gtitle".*?fill: (rgb\([^)]*\))|class="xtitle".*?fill: (rgb\([^)]*\))', document)
        )
    assert inks[False] != inks[True]


def test_an_error_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<script>missing()</script>")
    _, console = open_report(page, tmp_path / "profile", is_dark=False)
    assert any("missing is not defined" in line for line in console)
