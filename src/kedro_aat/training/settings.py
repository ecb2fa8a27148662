"""Settings of the default training; what they name by import path is imported only when it is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kedro_aat.errors import ConfigurationError
from kedro_aat.export.settings import NumThreads
from kedro_aat.imports import Imported, ImportedOrPath, import_path
from kedro_aat.training.learning_rates import build_scheduler
from kedro_aat.training.loading.settings import BatchSettings, LoaderSettings
from kedro_aat.validated import Settings

# Settings that are import paths of the user's own functions.
_CALLABLES = ("train_epoch", "validate_", "configure_optimizers", "early_stopping", "update_learning_rate", "on_epoch")


class Distillation(Settings):
    """How the compressed model learns from the outputs of the baseline.

    Attributes:
        kind: `softmax` compares class probabilities, `mse` the outputs themselves; `auto` takes `softmax` if the loss
            is a cross-entropy over classes, or a module that contains one.
        temperature: Divisor of the logits before the softmax, above 0; a higher one gives more weight to the wrong
            classes.
        weight: Weight of the teacher's part in the loss, in (0, 1]; the rest is the loss on the targets.
    """

    kind: Literal["auto", "softmax", "mse"] = "auto"
    temperature: Annotated[float, Field(gt=0)] = 3.0
    weight: Annotated[float, Field(gt=0, le=1)] = 0.7


class TrainingSettings(Settings):
    """How a model is trained and validated, for users who write no training code.

    Attributes:
        batch_size: Examples in a training step.
        validation_batch_size: Examples in a validation batch. None takes four times `batch_size` on a CUDA GPU, because
            gradients need no memory, and `batch_size` elsewhere, with a `collate_fn`, or with several ranks. In one
            process, outputs of a batch that needs too much memory are computed in pieces of `batch_size`.
        batch: Which parts of a batch are inputs and targets, where their names or positions do not say it.
        loader: How batches are loaded.
        output: Which output loss and metric read, of a model that returns several: its path, such as `logits` or `0`,
            as `named_tensors` names it; several in a list, all of which the loss takes; or their weights by path, by
            which the loss of each is multiplied. The metric reads the first. None takes the only one, the one named
            `logits` or `out`, or the first of a model that returns only one in evaluation mode.
        optimizer: Optimizer, called with the model's parameters. torch's Adam, AdamW and SGD are fused, which is the
            fastest, unless `init_args` say `fused` or `foreach`.
        scheduler: Learning-rate scheduler, called with the optimizer; None keeps the learning rate.
        scheduler_interval: Whether the scheduler steps after each epoch or after each optimizer step.
        loss: Loss, called as `loss(outputs, targets)`: a class, whose objects are called, or a function.
        metric: A torchmetrics metric; required unless `validate` is given.
        higher_is_better: Direction of the metric; None takes the metric's own.
        group: What groups validation and test examples of which some depend on each other, such as `patient`: a key of
            the splits beside `inputs` and `targets`, or an attribute of the datasets. `certificate.group` is the same.
        num_bootstrap_resamples: Effort for the standard error of a metric that is not a mean over examples; 0 for none,
            and then there is no certificate either. Metrics that are functions of sums over examples or of ranks (F1,
            IoU, AUROC, RMSE, R2 and so on) are linearized, whatever the number: this takes no resamples and hardly any
            time. Any other one is computed without each of at most so many groups of validation examples (never more
            than 20). A metric that does not follow from that of groups, and one of fewer than 100 examples, is computed
            on so many bootstrap resamples, which takes much longer.
        distillation: How the compressed model learns from the baseline, besides the targets: every output that `output`
            names, with its weight there. None for not at all.
        batch_norm_adaptation_batches: Training batches from which BatchNorms recompute their statistics after an epoch
            in which the rate changed; 0 for none.
        device: `auto` takes a GPU if there is one; or any device name that torch knows.
        devices: Number of devices that train the model together, each in a process of its own: GPUs of this machine, or
            processes on the CPU. The batch size is that of all together. Where `torchrun` or a cluster has started
            several processes, these train, and this setting is not read.
        sharding: Whether each of several devices holds the whole model (`none`), or only a part of every weight, with
            its gradients and the optimizer's state (`fully_shard`), for models that one device cannot hold. Weights
            are then gathered block by block while they are needed, which takes more time. A single process does not
            read it.
        startup_timeout_seconds: Seconds after which processes that train together must have found each other.
        collective_timeout_seconds: Seconds after which processes that train together wait no longer for one that is
            behind, in a training step for instance.
        precision: Precision of the training: `fp32`, or autocast to `bf16` or `fp16` (the latter with loss scaling).
            Every model is validated in `fp32`, in which the delivered file computes.
        tf32: Whether training steps on a CUDA GPU multiply in TF32, which rounds to 10 bits of mantissa. No validation
            does, whatever torch is set to.
        cudnn_benchmark: Whether cuDNN tries its algorithms for each shape of a training batch, and takes the fastest.
            Switch it off if the shapes change all the time.
        channels_last: Whether images have the channels-last memory format.
        compile: Whether the model is compiled for training, with the teacher where it answers each step, and losses of
            large outputs. With filter pruning, an epoch then costs the same at every rate.
        compile_mode: Mode of `torch.compile`: `reduce-overhead` saves the time between kernels of small models on a
            GPU, `max-autotune` looks for faster kernels for minutes. None for torch's default.
        gradient_clip_norm: Largest norm of all gradients together; None does not clip.
        num_workers: Number of processes that load data.
        num_threads: Threads of torch on the CPU, set for the whole process; None leaves it to torch. Only runs with
            the same number agree bit for bit, and a small network is faster with one.
        train_epoch: Import path of a function to use instead of the default one. It is called like the loops'
            `train_epoch_fn`, with `data=` (the training batches) if it has that parameter.
        validate_: Import path of a validation function, called like `validate_fn`, with `data=` (the validation
            batches) if it has that parameter; spelled `validate` in YAML.
        configure_optimizers: Import path of a function called like `configure_optimizers_fn`, with `model=` if it has
            that parameter.
        early_stopping: Import path of a function called like the loops' `early_stopping_fn`.
        update_learning_rate: Import path of a function called like the loops' `update_learning_rate_fn`.
        on_epoch: Import path of a function that is called with the `EpochRecord` of each epoch when it is saved, to
            report it elsewhere. It must not change the model. An error in it ends the run, which the same command
            continues.
        after_upgrade: Whether a run that another version of kedro-aat began is continued (`continue`), or a new one
            begins beside it (`start_anew`). Without a choice, a run that meets one ends with an error that names it.
        on_out_of_memory: Whether an epoch that needs too much memory is an error, or starts again with half batches:
            `halve_batch` computes each batch in two parts, then four and so on, and adds up their gradients, so that
            the optimizer's steps stay the same. BatchNorms see the parts. For the default `train_epoch` only.
        step_timeout_seconds: Seconds after which a training or validation step that has not ended, with the loading of
            its batch, ends the process with the stacks of all threads; None for no limit.
        baseline_check: What happens before training if the baseline's metric means nothing: if it is not better than
            that of a constant answer by a standard error, or is 0 where higher is better, if all outputs are the same
            or some are NaN, or if metric or loss misread the targets. `error` ends the run, `warn` goes on, `off` does
            not look. With a `validate` function of your own, only a metric of 0 is seen.
    """

    # They do not change what a search finds, so they may change before a run is continued.
    WITHOUT_EFFECT: ClassVar = frozenset(
        {
            *("after_upgrade", "baseline_check", "on_epoch", "on_out_of_memory", "step_timeout_seconds"),
            *("devices", "sharding", "startup_timeout_seconds", "collective_timeout_seconds"),
        }
    )

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    validation_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    batch: BatchSettings = BatchSettings()
    loader: LoaderSettings = LoaderSettings()
    output: str | list[str] | dict[str, float] | None = None
    optimizer: ImportedOrPath = Imported(
        class_path="torch.optim.SGD", init_args={"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    )
    scheduler: ImportedOrPath | None = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    loss: ImportedOrPath = Imported(class_path="torch.nn.CrossEntropyLoss")
    metric: ImportedOrPath | None = None
    higher_is_better: bool | None = None
    group: Annotated[str, Field(min_length=1)] | None = None
    num_bootstrap_resamples: Annotated[int, Field(ge=0, le=100_000)] = 100
    distillation: Distillation | None = Distillation()
    batch_norm_adaptation_batches: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    device: str = "auto"
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    sharding: Literal["none", "fully_shard"] = "none"
    startup_timeout_seconds: Annotated[float, Field(gt=0, le=1_000_000)] = 600.0
    collective_timeout_seconds: Annotated[float, Field(gt=0, le=1_000_000)] = 1800.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = True
    cudnn_benchmark: bool = True
    channels_last: bool = False
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    gradient_clip_norm: Annotated[float, Field(gt=0)] | None = None
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    num_threads: NumThreads | None = None
    on_out_of_memory: Literal["error", "halve_batch"] = "error"
    step_timeout_seconds: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    train_epoch: str | None = None
    validate_: Annotated[str | None, Field(alias="validate")] = None
    configure_optimizers: str | None = None
    early_stopping: str | None = None
    update_learning_rate: str | None = None
    on_epoch: str | None = None
    after_upgrade: Literal["continue", "start_anew"] | None = None
    baseline_check: Literal["error", "warn", "off"] = "error"

    @field_validator("output", mode="before")
    @classmethod
    def _paths_of_outputs(cls, output: object) -> object:
        paths = list(output) if isinstance(output, list | tuple | dict) else [output]
        weights = list(output.values()) if isinstance(output, dict) else [1.0]
        are_finite = all(type(weight) in (int, float) and math.isfinite(weight) for weight in weights)
        if output is not None and not (paths and all(type(path) in (str, int) for path in paths) and are_finite):
            raise ValueError(
                "must be the path of an output, such as logits or 0, a list of paths, or a mapping of paths to their "
                f"finite weights in the loss, but got {output!r:.60}"
            )
        # YAML reads the path of the first of a tuple as a number.
        if isinstance(output, dict):
            return {str(path): weight for path, weight in output.items()}
        return str(output) if isinstance(output, int) else [*map(str, paths)] if paths != [output] else output

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        import torch

        if device != "auto":
            try:
                torch.device(device)
            except RuntimeError:
                raise ValueError(f"must be auto, cpu, cuda, cuda:1 ..., but got '{device}'") from None
            named = torch.device(device)
            numbers = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
            numbers["xpu"] = torch.xpu.device_count()
            if numbers.get(named.type, 0) == 0:
                found = " or ".join(["auto", *(kind for kind, number in numbers.items() if number)])
                raise ValueError(f"must be {found} on this machine, but got '{device}'")
            if (named.index or 0) >= numbers[named.type]:
                raise ValueError(
                    f"must be below {named.type}:{numbers[named.type]} on this machine, but got '{device}'"
                )
        return device

    @field_validator("devices")
    @classmethod
    def _are_there(cls, number: int, info: ValidationInfo) -> int:
        import torch

        named = torch.device("cuda" if (name := info.data.get("device", "cpu")) == "auto" else name)
        found = torch.cuda.device_count() if named.type == "cuda" else 0
        if number > 1 and named.index is not None:
            raise ValueError(f"must be 1 with device: {name}, which is a single one; but got {number}")
        if number > 1 and named.type not in ("cpu", "cuda"):
            raise ValueError(f"must be 1 with device: {name}, on which processes cannot train together; got {number}")
        if number > found > 0:
            raise ValueError(f"must be at most {found}, the GPUs of this machine, but got {number}")
        return number

    @field_validator("train_epoch")
    @classmethod
    def _can_be_shared(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("devices", 1) > 1:
            raise ValueError(
                f"must be left out with devices: {info.data['devices']}, which needs the default, but got {path}"
            )
        return path

    @field_validator("train_epoch")
    @classmethod
    def _can_halve_batches(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("on_out_of_memory") == "halve_batch":
            raise ValueError(
                f"must be left out with on_out_of_memory: halve_batch, which needs the default, but got {path}"
            )
        return path

    @model_validator(mode="after")
    def _can_be_divided(self) -> TrainingSettings:
        if self.sharding != "none" and (mistakes := self.not_divided()):
            raise ValueError(f"with sharding: fully_shard, {'; '.join(mistakes)}. Or set sharding: none")
        return self

    def not_divided(self) -> list[str]:
        """Settings that do not allow to divide the weights among devices, each with what it must be, and is."""
        # Before each step or call, weights are parts; user functions would meet these, or be called on one rank alone.
        wanted = {"channels_last": False, "compile": False, "on_out_of_memory": "error"}
        wanted |= dict.fromkeys(("train_epoch", "validate_", "configure_optimizers"))
        mistakes = [
            f"{key.rstrip('_')} must be {'null' if value is None else str(value).lower()}, but got {getattr(self, key)}"
            for key, value in wanted.items()
            if getattr(self, key) != value
        ]
        if self.precision == "fp16":
            mistakes.append("precision must be fp32 or bf16, but got fp16")
        return mistakes

    @field_validator("num_bootstrap_resamples")
    @classmethod
    def _more_than_one_resample(cls, number: int) -> int:
        if number == 1:
            raise ValueError("must be 0, for none, or at least 2, but got 1; 100 are usual")
        return number

    def lookup_mistakes(self, key: str) -> list[str]:
        """Paths that cannot be imported, unknown arguments, and a metric without a direction."""
        mistakes = super().lookup_mistakes(key)
        for function in _CALLABLES:
            path = getattr(self, function)
            name = f"{key}.{function.rstrip('_')}"
            mistakes += Imported(class_path=path).lookup_mistakes(name) if path else []
        mistakes = mistakes or self._refused(key)
        if self.metric is None and self.validate_ is None:
            mistakes.append(f"{key}.metric: this key is required unless a validate function is given")
        elif not mistakes and self.direction() is None:
            metric = self.metric.class_path if self.metric else "a validate function"
            mistakes.append(f"{key}.higher_is_better: {metric} does not say which direction is better; set it here")
        return mistakes

    def _refused(self, key: str) -> list[str]:
        """Objects that refuse their arguments, found by building them."""
        import torch

        mistakes: list[str] = []

        def build(name: str, imported: Imported | None, *args: Any) -> Any:
            if imported is None:
                return None
            try:
                if name == "loss":
                    return imported.make_function()
                return build_scheduler(imported, *args) if name == "scheduler" else imported.make(*args)
            except Exception as error:  # a user's class may raise anything
                refused = f"{key}.{name}: {imported.class_path} refuses its init_args: {error}"
                mistakes.append(refused + _on_lists(imported))
                return None

        optimizer = build("optimizer", self.optimizer, [torch.nn.Parameter(torch.zeros(1))])
        if optimizer is not None:
            if any(group.get("lr") is None for group in optimizer.param_groups):
                mistakes.append(
                    f"{key}.optimizer: {self.optimizer.class_path} has no learning rate, which the search changes: its "
                    "parameter groups need a number under 'lr'"
                )
            build("scheduler", self.scheduler, optimizer)
        build("loss", self.loss)
        build("metric", self.metric)
        return mistakes

    def check(self) -> None:
        """Imports everything that the settings name, before anything is trained.

        Raises:
            ConfigurationError: Lists everything that `lookup_mistakes` finds.
        """
        if mistakes := self.lookup_mistakes("training"):
            raise ConfigurationError("training", mistakes)

    def direction(self) -> bool | None:
        """Whether a higher metric is better; None if neither the settings nor the metric say."""
        if self.higher_is_better is not None:
            return self.higher_is_better
        return getattr(self.metric.make(), "higher_is_better", None) if self.metric else None

    @property
    def teaching(self) -> dict[str, Any] | None:
        """How the baseline teaches, as plain data; None if it does not, as with the user's own `train_epoch`."""
        if self.distillation is None or self.train_epoch is not None:
            return None
        return self.distillation.model_dump()

    @property
    def named_objects(self) -> list[Any]:
        """The classes or functions of loss, metric, optimizer, scheduler and loader."""
        own = [named for _, named in self.loader.imported]
        named = (self.loss, self.metric, self.optimizer, self.scheduler, *own)
        return [each.load() for each in named if each is not None]

    @property
    def metric_name(self) -> str:
        """Name of the metric: the last part of its import path."""
        path = self.validate_ or (self.metric.class_path if self.metric else "")
        return path.rpartition(".")[2]

    def function(self, key: str) -> Callable[..., Any] | None:
        """The user's own function for `key`; None if there is none."""
        path = getattr(self, key)
        return import_path(path) if path else None


def _on_lists(imported: Imported) -> str:
    """How a list of numbers becomes a tensor, if there is one that did not."""
    lists = [name for name, value in imported.init_args.items() if isinstance(value, list | tuple)]
    if not (lists := [name for name in lists if not imported.annotates_tensor(name)]):
        return ""
    return (
        f". If {' and '.join(lists)} should be a tensor: a list of numbers becomes one where the class annotates "
        f"{lists[0]} as torch.Tensor; or write {{ class_path: torch.tensor, init_args: {{ data: [...] }} }}"
    )
