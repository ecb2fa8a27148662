"""What `kedro aat plan` does: loads models and data as the rehearsal does, measures a few steps, prints the plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kedro_aat.adoption.makers import listed
from kedro_aat.adoption.rehearsals import rehearsals_of
from kedro_aat.errors import ConfigurationError
from kedro_aat.planning.formulas import Plan, plan
from kedro_aat.planning.job import computed_job

if TYPE_CHECKING:
    from kedro_aat.planning.job import Job


@dataclass(frozen=True)
class Planning:
    """The options of the command.

    Attributes:
        devices: Devices that train together; None for the number in the settings.
        sharded: Whether weights, gradients and optimizers are divided among them, whatever the settings say.
        file: Where the numbers go as JSON; None for nowhere.
    """

    devices: int | None
    sharded: bool
    file: Path | None

    def computed(self, parameters: float) -> None:
        """Prints the plan for a number of parameters, without a model.

        Args:
            parameters: The number, at least 1.
        """
        from kedro_aat.planning.shown import shown

        planned = plan(computed_job(parameters, devices=self.devices or 1, sharded=self.sharded))
        click.echo(shown(planned, "Computed"))
        self._write({"computed": planned})

    def measured(
        self, pipeline: Pipeline, catalog: DataCatalog, value_of: Callable[[str], Any], made: Collection[str] = ()
    ) -> Iterator[str]:
        """Plans each model of a pipeline whose datasets can be loaded.

        Args:
            pipeline: A pipeline with nodes that rehearse.
            catalog: Its datasets.
            value_of: Looks up a parameter by its dotted key, as plain data.
            made: Datasets that nodes outside the pipeline make.

        Yields:
            For each model, its plan in tables.

        Raises:
            ConfigurationError: If data cannot be loaded, or the settings do not allow to divide the weights.
        """
        from kedro_aat.planning.measuring import measure
        from kedro_aat.planning.shown import shown

        plans: dict[str, Plan] = {}
        for rehearsal in rehearsals_of(pipeline, catalog, value_of, made):
            prefix = rehearsal.node.name.removesuffix("rehearse").rstrip(".")
            if rehearsal.later:
                yield f"{prefix or 'aat'}: not planned, because the run makes {listed(rehearsal.later)}."
                continue
            if self.sharded and (mistakes := rehearsal.settings.not_sharded()):
                raise ConfigurationError("--sharded", mistakes)
            inputs = rehearsal.loaded(catalog)
            store = inputs.pop("checkpoint_store", None)
            job = measure(**inputs, settings=rehearsal.settings, store=None if store is None else store.root)
            plans[prefix or "aat"] = planned = plan(self._changed(job))
            yield shown(planned, f"Plan of {prefix}" if prefix else "Plan")
        self._write(plans)

    def _changed(self, job: Job) -> Job:
        machine = job.machine
        devices, sharded = self.devices or machine.devices, self.sharded or machine.sharded
        return replace(job, machine=replace(machine, devices=devices, sharded=sharded))

    def _write(self, plans: dict[str, Plan]) -> None:
        from kedro_aat.planning.shown import as_json

        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({name: as_json(each) for name, each in plans.items()}, indent=2)
            self.file.write_text(text + "\n", encoding="utf-8")
