"""The README's picture: the epochs of the last `make run` by rate and metric, drawn by a headless browser.

python benchmarks/picture.py [docs/frontier.png]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from kedro_aat.delivery.results import Summary
from kedro_aat.reporting.figures import frontier_figure

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 920, 440


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "frontier.png"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium draws the figure, but is not on the PATH: install it.")
    reporting = ROOT / "data" / "08_reporting"
    trajectory = pd.read_parquet(reporting / "trajectory.parquet")
    summary = Summary.model_validate_json((reporting / "aat_summary.json").read_text(encoding="utf-8"))
    # Only the first stage: the second changes only the weights' bits, and would take half of the picture.
    first_stage = summary.model_copy(update={"stages": summary.stages[:1]})
    figure = frontier_figure(trajectory[trajectory["stage"] == 1], first_stage)
    figure.update_layout(template="plotly_white", width=WIDTH - 20, height=HEIGHT - 20)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "figure.html")
        figure.write_html(page, config={"staticPlot": True})
        command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2"]
        command += [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=5000", f"--screenshot={target}"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True)
    print(f"Wrote {target}")


if __name__ == "__main__":
    main()
