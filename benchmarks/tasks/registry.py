"""All tasks of the zoo: every module beside this one that has `TASKS` adds to them."""

from __future__ import annotations

import importlib
import pkgutil

import benchmarks.tasks
from benchmarks.tasks.task import Task


def all_tasks() -> dict[str, Task]:
    """The tasks by name, in the order of their modules."""
    tasks: dict[str, Task] = {}
    for module in pkgutil.iter_modules(benchmarks.tasks.__path__, "benchmarks.tasks."):
        if not module.ispkg and not module.name.endswith(".__main__"):
            for task in getattr(importlib.import_module(module.name), "TASKS", ()):
                assert task.name not in tasks, f"two tasks are named {task.name}"
                tasks[task.name] = task
    return tasks
