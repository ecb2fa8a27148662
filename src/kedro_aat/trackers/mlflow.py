"""Runs in MLflow: parameters, live curves, the delivered model's numbers, and the ONNX model with its signature.

The run that is active when a node begins is used, as kedro-mlflow starts one. Without one, the tracker has a run of its
own, which the tag `kedro_aat.run` finds again in the next node, whatever process runs it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kedro_aat.budget import Outcome
from kedro_aat.errors import ConfigurationError
from kedro_aat.training.progress.tracker import Delivered, Parameter, TrackedSearch, Tracker

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from kedro_aat.training.records import EpochRecord, FineTuned

RUN_TAG = "kedro_aat.run"
_MAX_PARAMETERS, _MAX_METRICS = 100, 1000  # in one request, by MLflow's limits
_MAX_TEXT = 6000  # characters of a parameter
_NOT_IN_NAMES = re.compile(r"[^\w\-./ :]")


class MlflowTracker(Tracker):
    """Logs a run to MLflow.

    The curves of a stage are `stage_1/rate/achieved` and so on, with the epoch as step. A run that goes on, or that is
    only read again, has the whole curves, since those of earlier processes are logged, too. The delivered model's
    numbers have no `compressed.` before them: `latency_ms.1` is beside `baseline.latency_ms.1`.

    Args:
        experiment: Name of the experiment, which is created if there is none; None for MLflow's own choice. An active
            run has its experiment already.
        run_name: Name of the run; None for that of its folder in the checkpoint store.
        model_name: Name of the logged ONNX model in the run; None logs no model.
        registered_model_name: Name under which the model becomes a version in the registry; None does not register it.
        tracking_uri: Where MLflow keeps its runs; None for what is set there already.

    Raises:
        ConfigurationError: If MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str | None = None,
        run_name: str | None = None,
        model_name: str | None = "model",
        registered_model_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        if find_spec("mlflow") is None:
            raise ConfigurationError("MlflowTracker", ["MLflow is not installed: `pip install mlflow`"])
        self._experiment, self._run_name, self._uri = experiment, run_name, tracking_uri
        self._model_name, self._registered_name = model_name, registered_model_name
        # Whoever has started a run has imported MLflow, which takes seconds. Processes that train do not see the run.
        mlflow = sys.modules.get("mlflow")
        active = mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None
        self._run_id: str | None = None if active is None else active.info.run_id
        self._is_own = active is None
        self._search: TrackedSearch | None = None
        self._has_begun = False
        self._waiting: list[EpochRecord] = []  # epochs that could not be logged yet

    def start(self, search: TrackedSearch) -> None:
        self._search, self._waiting = search, list(search.history)
        self._log_epochs()

    def epoch(self, record: EpochRecord) -> None:
        self._waiting.append(record)
        self._log_epochs()

    def finish(self, result: FineTuned | None) -> None:
        if self._waiting:
            self._log_epochs()
        if self._run_id is not None and self._is_own and (result is None or result.outcome is Outcome.INTERRUPTED):
            self._client.set_terminated(self._run_id, "KILLED")

    def deliver(self, delivered: Delivered) -> None:
        run_id = self._open(delivered.run, delivered.parameters)
        # MLflow's table of runs cuts names after 14 letters, and all would be `compressed.lat` and the like.
        self._log({name.removeprefix("compressed."): value for name, value in delivered.metrics.items()}, step=0)
        for name, text in delivered.tags.items():
            self._client.set_tag(run_id, name, text)
        if delivered.onnx is not None and self._model_name is not None:
            self._log_model(delivered.onnx)
        if self._is_own:
            self._client.set_terminated(run_id, "FINISHED")

    @property
    def _client(self) -> Any:
        """MLflow's client; its own types are Any where MLflow is not installed."""
        import mlflow

        return mlflow.MlflowClient(self._uri)

    def _open(self, run: str, parameters: Mapping[str, Parameter]) -> str:
        """Finds or creates the run, and logs its parameters once; returns its identity."""
        from mlflow.entities import Param

        client = self._client
        texts = {_NOT_IN_NAMES.sub("_", name): str(value)[:_MAX_TEXT] for name, value in parameters.items()}
        if self._run_id is None:
            self._run_id = self._unfinished(run, texts) or self._created(run)
        client.set_tag(self._run_id, RUN_TAG, run)
        known = client.get_run(self._run_id).data.params
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for first in range(0, len(new), _MAX_PARAMETERS):
            client.log_batch(self._run_id, params=new[first : first + _MAX_PARAMETERS])
        return self._run_id

    def _unfinished(self, run: str, parameters: Mapping[str, str]) -> str | None:
        """The run of this tracker that has not ended, and has the same parameters; None if there is none.

        A finished one stays as it is: the same search with other settings of the export is a run beside it.
        """
        client = self._client
        found = client.search_runs(
            [self._experiment_id()], f"tags.`{RUN_TAG}` = '{run}'", order_by=["attributes.start_time DESC"]
        )
        for each in found:
            same = all(each.data.params.get(name, text) == text for name, text in parameters.items())
            if same and each.info.status != "FINISHED":
                client.update_run(each.info.run_id, status="RUNNING")
                return str(each.info.run_id)
        return None

    def _created(self, run: str) -> str:
        # MLflow makes names up with Python's generator, which has the seed of the settings: all would have one name.
        name = self._run_name or run
        return str(self._client.create_run(self._experiment_id(), run_name=name).info.run_id)

    def _experiment_id(self) -> str:
        client = self._client
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if name is None:
            return os.environ.get("MLFLOW_EXPERIMENT_ID", "0")  # 0 is the one called Default
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else client.create_experiment(name))

    def _log_epochs(self) -> None:
        """Logs the epochs that wait; they go on to wait if MLflow cannot be reached."""
        search = self._search
        assert search is not None  # a search begins before its epochs
        curves = f"stage_{search.stage}/"
        if not self._has_begun:
            run_id = self._open(search.first_run, search.parameters)
            known = {point.step for point in self._client.get_metric_history(run_id, f"{curves}rate/achieved")}
            self._waiting = [record for record in self._waiting if record.epoch not in known]
            self._has_begun = True
        while self._waiting:
            record = self._waiting[0]
            self._log({f"{curves}{name}": value for name, value in record.scalars.items()}, step=record.epoch)
            del self._waiting[0]

    def _log(self, values: Mapping[str, float], *, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(_NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in values.items()]
        for first in range(0, len(points), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=points[first : first + _MAX_METRICS])

    def _log_model(self, model: ModelProto) -> None:
        import mlflow
        import mlflow.onnx

        if self._uri is not None:
            mlflow.set_tracking_uri(self._uri)  # models can be logged to the active run alone
        active = mlflow.active_run()
        is_active = active is not None and active.info.run_id == self._run_id
        with nullcontext() if is_active else mlflow.start_run(run_id=self._run_id, nested=True):
            mlflow.onnx.log_model(
                model,
                name=self._model_name,
                signature=_signature(model),
                registered_model_name=self._registered_name,
                # Otherwise MLflow finds them out in a process of its own, which takes half a minute.
                pip_requirements=[f"{name}=={version(name)}" for name in ("onnx", "onnxruntime")],
            )


def _signature(model: ModelProto) -> Any:
    """Names, types and shapes of inputs and outputs; -1 stands for a size that is free."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in weights]
    return ModelSignature(Schema(inputs), Schema([_tensor(value) for value in model.graph.output]))


def _tensor(value: ValueInfoProto) -> Any:
    from mlflow.types import TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name)
