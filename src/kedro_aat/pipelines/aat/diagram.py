"""What goes on inside the loop node, as Kedro-Viz draws it when the node is clicked."""

from __future__ import annotations

from kedro.pipeline.preview_contract import MermaidPreview, Meta

_LOOP = """
flowchart TB
    policy("Search policy:<br>which rate next?")
    train("Train an epoch")
    judge("Validate: is it<br>within the budget?")
    store[("Checkpoint store")]
    best("The best model<br>within the budget")
    policy -- "rate, learning rate,<br>where to start from" --> train
    train --> judge
    judge -- "save" --> store
    store -- "margin" --> policy
    policy -- "no more" --> best
    store -. "load" .-> best
"""
# Kedro-Viz pads texts after their boxes were measured, which breaks them at odd places.
_STYLE: Meta = {"textStyle": {"padding": "0", "whiteSpace": "nowrap"}}


def loop_diagram() -> MermaidPreview:
    """The loop of `finetune_adaptively`."""
    return MermaidPreview(_LOOP.strip(), meta=_STYLE)
