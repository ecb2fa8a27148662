"""A page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def open_in_browser(url: str, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page's document once it is drawn, and what was written to the console."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",  # containers run as root; the page is our own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        "--window-size=1280,3000",
        *options,
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
