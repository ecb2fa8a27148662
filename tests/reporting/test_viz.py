"""Kedro-Viz shows the pipeline of a finished run: every data set, the loop, and how the run went."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, open_in_browser
from tests.conftest import Once
from tests.projects import Project

# Kedro-Viz asks for more than a built site has where it is opened as localhost.
HOST = "viz.test"

# What is to be found in the panel of each of these.
SHOWN = {
    "frontier_figure": ".pipeline-plotly__preview svg.main-svg .scatterlayer path",
    "finetune_adaptively": ".pipeline-mermaid-renderer svg .node",
    "compressed_model": ".preview-table td",
}

# Each node in a frame of its own, and in one more the workflow; as in the report's test, what is found is written into
# the outer page.
FRAMES = """<!doctype html><link rel="icon" href="data:,"><body>
<script>
const shown = {shown};
const frames = [...Object.keys(shown), ""].map((name) => {{
  const frame = document.createElement("iframe");
  frame.style = "width: {width}px; height: {height}px; border: 0";
  frame.src = "/?pid=__default__" + (name && "&sn=" + name);
  document.body.append(frame);
  return [name, frame];
}});
const timer = setInterval(() => {{
  const found = {{ nodes: [], previews: {{}}, outside: [], workflow: "" }};
  for (const [name, frame] of frames) {{
    const page = frame.contentDocument;
    found.nodes.push(page.querySelectorAll(".pipeline-node").length);
    if (name) {{
      const parts = [...page.querySelectorAll(shown[name])];
      found.previews[name] = parts.length;
      if (parts.some((part) => part.getBoundingClientRect().left >= {width})) found.outside.push(name);
    }} else {{
      const notice = page.querySelector(".run-status-notification");
      found.workflow = notice?.textContent ?? "";
      if (!notice) page.querySelector("[data-test=global-toolbar-workflow-btn]")?.click();
    }}
  }}
  document.body.dataset.found = JSON.stringify(found);
  if (found.workflow && Math.min(...found.nodes, ...Object.values(found.previews)) > 0) {{
    clearInterval(timer);
    for (const [_, frame] of frames) frame.remove();  // the browser works on while there is something to animate
  }}
}}, 100);
</script>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def site(finished: Project, once: Once) -> Path:
    """The built site of a finished run."""

    def make(folder: Path) -> None:
        command = finished.copy(folder).kedro("viz", "build", "--include-previews")
        assert command.wait() == 0, command.output
        assert "could not be previewed" not in command.output

    return once("site", make) / "build"


@pytest.fixture(scope="module")
def port(site: Path) -> Iterator[int]:
    """Where the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def test_layers_are_in_order(site: Path) -> None:
    # An empty list would mean that the layers run in a circle and were switched off.
    stages = ["fine_tuning", "second_stage", "third_stage"]
    steps = ["raw", "model_input", "baseline", *stages, "export", "certificate", "reporting"]
    assert _read(site / "api/main")["layers"] == steps


def test_every_data_set_has_a_preview(site: Path) -> None:
    nodes = _read(site / "api/main")["nodes"]
    shown = {node["name"]: _read(site / f"api/nodes/{node['id']}") for node in nodes if node["type"] != "parameters"}
    data = {node["name"] for node in nodes if node["type"] == "data"}
    # What was not asked for has no file.
    unasked = {f"compressed_{name}" for name in ("openvino", "executorch", "litert", "onnx_raw")}
    assert {name for name in data if not shown[name]["preview"]} == unasked
    assert {"checkpoint_store", "layer_statistics", "aat_report"} <= data
    assert shown["frontier_figure"]["preview_type"] == shown["trajectory_figure"]["preview_type"] == "PlotlyPreview"
    layout = shown["frontier_figure"]["preview"]["layout"]
    assert "height" not in layout  # it fits the pane, which is lower than the report's figure
    assert "yaxis2" not in layout
    assert shown["finetune_adaptively"]["preview"]["kind"] == "mermaid"


def test_sizes_and_rows_are_shown(site: Path) -> None:
    nodes = {node["name"]: _read(site / f"api/nodes/{node['id']}") for node in _read(site / "api/main")["nodes"]}
    assert nodes["train_data"]["stats"].keys() == {"rows", "columns", "file_size"}
    assert nodes["trajectory"]["stats"]["rows"] > 0
    for name in ("compressed_onnx", "compressed_model", "checkpoint_store", "frontier_figure", "aat_summary"):
        assert nodes[name]["stats"]["file_size"] > 100, name


def test_workflow_status_is_recorded(site: Path) -> None:
    status = _read(site / "api/run-status")
    assert status["pipeline"]["status"] == "success"
    tasks = [node for node in _read(site / "api/main")["nodes"] if node["type"] == "task"]
    assert {status["nodes"][task["id"]]["status"] for task in tasks} == {"success"}


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium (.ci/run does it)")
@pytest.mark.parametrize(
    ("width", "height", "names"),
    [(1280, 900, list(SHOWN)), pytest.param(390, 844, ["frontier_figure"], marks=pytest.mark.slow)],
)
def test_site_is_drawn(site: Path, port: int, tmp_path: Path, width: int, height: int, names: list[str]) -> None:
    shown = {name: SHOWN[name] for name in names}
    page = FRAMES.format(shown=json.dumps(shown), width=width, height=height)
    (site / f"frames-{width}.html").write_text(page)
    url = f"http://{HOST}:{port}/frames-{width}.html"
    document, console = open_in_browser(url, tmp_path, f"--host-resolver-rules=MAP {HOST} 127.0.0.1")
    (text,) = re.findall(r'data-found="([^"]*)"', document)
    found = json.loads(unescape(text))
    assert min(found["nodes"]) > 0, found
    assert [name for name, number in found["previews"].items() if number == 0] == []
    assert found["outside"] == []
    assert "completed successfully" in found["workflow"]
    # Its font comes from the network, which need not be there.
    assert [line for line in console if "Experimental features" not in line and "fonts.g" not in line] == []
