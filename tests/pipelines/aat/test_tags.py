"""Tags by which schedulers and `kedro run --tags` select nodes."""

from __future__ import annotations

import re
from pathlib import Path

from kedro.pipeline import Pipeline

from kedro_aat.pipelines.aat import create_pipeline
from tests.projects import Project

KINDS = {"training", "export", "reporting"}


def _functions(pipeline: Pipeline, tag: str) -> set[str]:
    return {node.func.__name__ for node in pipeline.only_nodes_with_tags(tag).nodes}


def test_each_node_has_one_kind_and_those_that_train_may_need_a_gpu() -> None:
    pipeline = create_pipeline()
    assert all(len(node.tags & KINDS) == 1 for node in pipeline.nodes)
    searches = {"finetune_adaptively", "finetune_later_stage"}
    assert _functions(pipeline, "training") == {"rehearse", "evaluate_baseline", "build_controller"} | searches
    assert _functions(pipeline, "gpu") == _functions(pipeline, "training")
    assert _functions(pipeline, "export") == {"export_for_targets", "add_preprocessing", "certify_model"}


def test_kinds_one_after_the_other_are_the_whole() -> None:
    """No node needs what a later kind makes, so that three jobs of a scheduler are enough."""
    pipeline = create_pipeline()
    made: set[str] = set()
    for kind in ("training", "export", "reporting"):
        part = pipeline.only_nodes_with_tags(kind)
        assert part.inputs() & pipeline.all_outputs() <= made
        made |= part.all_outputs()
    assert made == pipeline.all_outputs()


def test_tags_stay_in_pipelines_of_the_users() -> None:
    own = Pipeline(create_pipeline(), namespace="mine", tags=["nightly"]) + create_pipeline(namespace="small")
    for node in own.nodes:
        assert len(node.tags & KINDS) == 1
        assert ("nightly" in node.tags) == (node.namespace == "mine")
    selected = own.filter(tags=["gpu"], node_namespaces=["small"])
    assert {node.name.partition(".")[0] for node in selected.nodes} == {"small"}
    assert len(selected.nodes) == 6


def test_tags_select_the_nodes_of_a_run(finished: Project, tmp_path: Path) -> None:
    output = finished.copy(tmp_path).run("--pipelines", "aat", "--tags", "reporting")
    ran = set(re.findall(r"Completed node: (\w+)", output))
    assert ran == {node.name for node in create_pipeline().only_nodes_with_tags("reporting").nodes}
