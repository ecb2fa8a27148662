"""The default training and validation functions, for users who write no training code."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kedro_aat.budget import GuardSettings
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.filters.compact import CompactModel
from kedro_aat.errors import ModelError
from kedro_aat.messages import counted
from kedro_aat.model_inputs import ModelInputs, call_model, map_tensors, precision_of
from kedro_aat.modes import evaluating, evaluating_with_gradients
from kedro_aat.numerics import autocast, fast_training
from kedro_aat.ranks.shards import is_divided
from kedro_aat.training.batch_norms import adapt_batch_norms
from kedro_aat.training.callables import with_batches
from kedro_aat.training.compiling import compiled, lasting
from kedro_aat.training.data import Data, as_dataset, require_all_seen
from kedro_aat.training.device import pick_device
from kedro_aat.training.loading.form import BatchForm
from kedro_aat.training.loading.loaders import Loaders, require_batches, warn_of_chance
from kedro_aat.training.loading.on_device import copied_ahead
from kedro_aat.training.loading.parts import BatchParts
from kedro_aat.training.loading.pieces import InPieces
from kedro_aat.training.loading.placement import Placement
from kedro_aat.training.optimizing import Optimizing
from kedro_aat.training.outputs import Outputs
from kedro_aat.training.ranks.data_parallel import DataParallel
from kedro_aat.training.ranks.sharding import Shard
from kedro_aat.training.runner import Callables, Evaluation, bind_known, listed
from kedro_aat.training.scoring.groups import groups_of, with_groups
from kedro_aat.training.scoring.validation import See, Validation
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.training.target_forms import main_target
from kedro_aat.training.task_loss import TaskLoss
from kedro_aat.training.teacher import Answers, Teacher

# Batches whose gradients rank filters by `taylor`.
NUM_SAMPLED_BATCHES = 8
# What an epoch costs at least, as a share of one of the uncompressed model: with 3 % of its MACs, epochs of the digits
# network take 45 % of the time, and those of a larger network 23 % (docs/decisions/cut-copies.md).
LEAST_EPOCH_COST = 0.4

logger = logging.getLogger(__name__)

Forward = Callable[..., Any]


class DefaultTraining:
    """Trains and validates one model as `TrainingSettings` say.

    The order of the examples depends only on seed and epoch, so a resumed run sees the same order as an uninterrupted
    one; of data that have an order of their own, a warning says so. Loss and metric are summed on the device and read
    once per epoch.

    Args:
        model: The model; moved to the device, and to channels-last if the settings say so.
        settings: Settings of the training.
        train_data: `{"inputs": (N, ...), "targets": (N, ...)}` or other tensors by name, a dataset of examples in any
            structure (`BatchForm` splits it), or a data loader; None if the model is only validated.
        validation_data: Validation split, in the same form; None if the model is not validated.
        seed: Seed of shuffling; `seed_everything` seeds everything else.
        teacher: The baseline, for distillation; moved like the model, and never trained.
        controller: The model's controller, whose cut copy of the model is trained and run in its place.
        guards: Further metrics, which the validation function of `callables` returns too.
        shard: The part of each batch that this rank computes, if several train the model together.

    Raises:
        DataError: If a split is empty, or inputs and targets differ in number.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        train_data: Data | None,
        validation_data: Data | None,
        *,
        seed: int = 0,
        teacher: nn.Module | None = None,
        controller: ModelController | None = None,
        guards: Sequence[GuardSettings] = (),
        shard: Shard | None = None,
    ) -> None:
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self.settings = settings
        self.device = pick_device(settings.device)
        self._place = Placement(self.device, channels_last=settings.channels_last, precision=precision_of(model))
        self.model = self._place.model(model)
        self._ranks = DataParallel(shard, self.device)
        self._ranks.synchronize(self.model)
        self._forward = compiled(model, controller, settings.compile_mode) if settings.compile else model
        # Each cut would be compiled anew, and a model that is divided among devices is not cut.
        self._controller = None if settings.compile or is_divided(model) else controller
        self._compact: CompactModel | None = None
        self._epoch_cost = 1.0
        self._loss = settings.loss.make_function()
        if isinstance(self._loss, nn.Module):
            self._loss.to(self.device)
        self._task_loss = TaskLoss(self._loss, is_compiled=settings.compile)
        self._autocast = partial(autocast, self.device, settings.precision)
        self._fast = partial(fast_training, self.device, tf32=settings.tf32, cudnn_benchmark=settings.cudnn_benchmark)
        self._ahead = partial(copied_ahead, device=self.device, timeout=settings.step_timeout_seconds)
        self._outputs = Outputs(settings.output)
        self._loaders = Loaders(settings, self.device, seed, shard)
        self._whole_loaders = Loaders(settings, self.device, seed, plain=True)  # for functions of the user's
        without = () if settings.group is None else (settings.group,)
        self._forms = {split: BatchForm(settings.batch, model, split, without) for split in ("training", "validation")}
        self._optimizing = Optimizing(settings, self.device)
        self._parts, self._pieces = BatchParts(settings.batch_size), InPieces(settings.batch_size)
        self.observe: Callable[[Tensor, Tensor], object] | None = None  # sees outputs and targets of a validation
        self._train_data = None if train_data is None else as_dataset(train_data, "training", settings.batch)
        if self._train_data is not None:
            warn_of_chance(self._train_data)
        self._validation_data, self._groups = cast(Any, ()), None
        if validation_data is not None:
            self._validation_data = as_dataset(validation_data, "validation", settings.batch)
            self._groups = groups_of(validation_data, settings.group)
        self._validation = Validation(settings, len(self._validation_data), self._groups, guards, self.device)
        self._teacher: Teacher | None = None
        self._distills, self._is_taught = True, False
        if teacher is not None and settings.distillation is not None and self._train_data is not None:
            self._teacher = Teacher(
                self._place.model(teacher),
                settings.distillation,
                self._loss,
                self._autocast,
                self._outputs,
                partial(torch.compile, mode=settings.compile_mode) if settings.compile else None,
            )

    def _ask_teacher(self) -> None:
        """Adds the teacher's answers to the training data, if they stay the same, when they are first needed."""
        if self._teacher is not None and self._distills and not self._is_taught:
            assert self._train_data is not None
            size = max(self.settings.batch_size, 256)
            self._train_data = self._teacher.with_answers(
                self._train_data, lambda batch: self._place.inputs(self._forms["training"](batch)[0]), size
            )
            self._is_taught = True

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self.train_batches(0))

    @property
    def num_train_examples(self) -> int:
        """Training examples in an epoch."""
        if self.settings.loader.steps_per_epoch is None:
            return len(self._train_data or ())
        return self.steps_per_epoch * self.settings.batch_size

    @property
    def validation_batch_size(self) -> int:
        """Examples in a validation batch, except for a loader of the user's."""
        return self._loaders.validation_batch_size

    def train_batches(self, epoch: int) -> Any:
        """The shuffled batches of one epoch, as the data give them; a loader of the user's is used as it is."""
        return self._loaders.training(self._train_data, epoch)

    def validation_batches(self) -> Any:
        """The batches of the validation split, in its own order."""
        return self._loaders.validation(self._validation_data)

    def calibration_batches(self, number: int) -> Iterator[tuple[ModelInputs, Any]]:
        """Inputs and targets of the first training batches, in a fixed order."""
        return map(self._forms["training"], itertools.islice(self.train_batches(0), number))

    def configure_optimizers(self) -> tuple[Any, Any]:
        """A new optimizer of all parameters that are not frozen, its scheduler, and a loss scaler."""
        return self._optimizing.configure(self.model)

    def train_epoch(
        self, compression_controller: Any, model: nn.Module, *, epoch: int, optimizer: Any, lr_scheduler: Any
    ) -> float:
        """Trains for one pass over the training data.

        Args:
            compression_controller: Controller of the model.
            model: The model.
            epoch: Number of epochs trained so far; selects the order of the examples.
            optimizer: One optimizer, or a list.
            lr_scheduler: One learning-rate scheduler, a list, or None.

        Returns:
            The mean loss.
        """
        model.train()
        optimizers = listed(optimizer)
        compact = self._compact_model(to_train=True)
        self._epoch_cost = 1.0
        if compact is None or not compact.can_be_trained_by(optimizers):
            forward = self._ranks.wrapped(self._forward)
            return self._train(forward, compression_controller, epoch, optimizers, listed(lr_scheduler))
        self._epoch_cost = max(compression_controller.macs_share, LEAST_EPOCH_COST)
        with compact.trained_by(optimizers):
            forward = self._ranks.wrapped(compact.model.train())
            return self._train(forward, compression_controller, epoch, optimizers, listed(lr_scheduler))

    def _train(
        self, forward: Forward, controller: Any, epoch: int, optimizers: list[Any], lr_schedulers: list[Any]
    ) -> float:
        total, num_batches = torch.zeros((), device=self.device), 0
        with self._fast():
            self._ask_teacher()
        with self._fast(), self._ranks.at_work(self.model):
            for batch in self._ahead(self.train_batches(epoch)):
                num_batches += 1
                controller.scheduler.step()
                for each in optimizers:
                    each.zero_grad(set_to_none=True)
                parts = self._parts(batch, self._forms["training"].weighted)
                for number, (part, share) in enumerate(parts, 1):
                    with self._ranks.part(batch, forward, is_last=number == len(parts)):
                        loss = self._loss_of(forward, *part) + controller.loss()
                        if share < 1:
                            loss = loss * share
                        self._optimizing.backward(self._ranks.scaled(loss))
                    total += loss.detach()
                forward = self._ranks.after_backward(forward)
                self._optimizing.step(optimizers)
                if self.settings.scheduler_interval == "step":
                    for scheduler in lr_schedulers:
                        scheduler.step()
        require_batches(num_batches)
        return float(self._ranks.total(total)) / num_batches

    def _compact_model(self, *, to_train: bool = False) -> CompactModel | None:
        """A cut copy of the model in its present state; None if the model itself must run."""
        if self._controller is None:
            return None
        try:
            compact = self._controller.compact(self._compact, to_train=to_train)
        except ModelError as error:
            logger.warning("An epoch costs the same at every rate. %s", error)
            self._controller = None
            return None
        if compact is not None and compact is not self._compact:
            self._place.model(compact.model)
        self._compact = compact
        return compact

    def _loss_of(self, forward: Forward, inputs: ModelInputs, labels: Any, answers: Answers | None = None) -> Tensor:
        moved, targets = self._place.inputs(inputs), self._place.targets(labels)

        def in_evaluation() -> Any:
            with evaluating(self.model), torch.no_grad():
                return call_model(self.model, moved)

        with self._autocast():
            outputs = call_model(forward, moved)
            loss = self._outputs.loss(self._task_loss, outputs, targets, in_evaluation)
            if self._teacher is None or not self._distills:
                return loss
            answers = self._teacher.answer(moved, in_step=True) if answers is None else self._place.targets(answers)
            return self._teacher.loss(loss, outputs, answers, in_evaluation)

    def halve_batch(self) -> bool:
        """Computes each training batch in twice as many parts from now on, with the same optimizer steps.

        Returns:
            False if a part is a single example already.
        """
        return self._parts.halve()

    def sample_gradients(self, observe: Callable[[], object]) -> None:
        """Computes the gradients of the first training batches, in a fixed order, and calls `observe` after each."""
        # Nothing is dropped, and statistics of BatchNorms stay as they are.
        with self._fast():  # as in a step that asks first
            self._ask_teacher()
        with evaluating_with_gradients(self.model):
            for batch in itertools.islice(self.train_batches(0), NUM_SAMPLED_BATCHES):
                self.model.zero_grad(set_to_none=True)
                for part, share in self._parts(batch, self._forms["training"].weighted):
                    loss = self._loss_of(self._forward, *part)
                    (loss if share == 1 else loss * share).backward()
                self._ranks.sum_gradients(self.model)
                observe()
        self.model.zero_grad(set_to_none=True)

    def distill(self, is_on: bool) -> None:
        """Switches distillation on, if there is a teacher, or off."""
        self._distills = is_on

    def adapt(self, model: nn.Module) -> None:
        """Recomputes the statistics of BatchNorms from the first training batches, in a fixed order."""
        batches = itertools.islice(self.train_batches(0), self.settings.batch_norm_adaptation_batches)
        compact = self._compact_model()
        with self._ranks.at_work(model):
            adapt_batch_norms(compact.model if compact else model, self._inputs_of(batches))
        if compact:
            compact.write()

    def _inputs_of(self, batches: Iterable[Any]) -> Iterator[ModelInputs]:
        for batch in batches:
            for part, _ in self._parts(batch, self._forms["training"]):
                with self._ranks.part(batch):
                    yield self._place.inputs(part[0])

    def validate(self, model: nn.Module, epoch: int | None = None) -> Evaluation:
        """Validates the model.

        Returns:
            The metric over the validation split, with one score per example if the metric is their mean or can be
            linearized, else with its values on variants of the split.
        """
        model.eval()
        compact = self._compact_model()
        forward = compact.model.eval() if compact else self._forward

        def run(see: See) -> None:
            num_seen = 0
            with torch.no_grad(), self._ranks.at_work(model, in_evaluation=True):
                for batch in counted(self._ahead(self.validation_batches())):
                    for outputs, targets in self._ranks.in_order(partial(self._answered, forward), batch):
                        num_seen += len(outputs)
                        see(outputs, targets)
            self._require_all_seen(num_seen)

        return self._validation.evaluate(run)

    def _answered(self, forward: Forward, batch: Any) -> Iterator[tuple[Tensor, Any]]:
        """Outputs and targets of each part of a batch."""

        def outputs_of(part: ModelInputs) -> Tensor:
            # As the delivered file computes: without autocast.
            outputs = self._outputs.main(call_model(forward, part)).float()
            return lasting(outputs, self.settings.compile_mode)

        for (inputs, labels), _ in self._parts(batch, self._forms["validation"]):
            moved = self._place.inputs(inputs)
            # Several ranks call the model equally often, since they may exchange tensors in it.
            outputs = self._pieces(outputs_of, moved) if self._ranks.shard is None else outputs_of(moved)
            if self.observe is not None:
                self.observe(outputs, main_target(map_tensors(Tensor.cpu, labels)))
            yield outputs, main_target(self._place.targets(labels))

    def _require_all_seen(self, number: int) -> None:
        require_all_seen(number, self._validation_data, self.settings.num_workers)

    def callables(self) -> Callables:
        """The functions for a training loop: these, or the user's own instead."""
        own = self.settings.function
        train, validate, configure = own("train_epoch"), own("validate_"), own("configure_optimizers")
        evaluate = with_groups(self._ranks.by_rank_0(validate) if validate else self.validate, self._groups)
        cannot_sample = train or self._train_data is None or self._ranks.is_divided
        in_parts = ("train_epoch", "sample_gradients", "adapt", *(() if validate else ("validate",)))
        return Callables(
            train_epoch=with_batches(train, partial(self._whole_loaders.training, self._train_data))
            if train
            else self.train_epoch,
            validate=bind_known(evaluate, data=self._whole_loaders.validation(self._validation_data))
            if validate
            else self._validation.guards.added_to(evaluate),
            configure_optimizers=bind_known(configure, model=self.model) if configure else self.configure_optimizers,
            early_stopping=own("early_stopping"),
            adapt=self.adapt if self._train_data is not None and self.settings.batch_norm_adaptation_batches else None,
            # A scheduler that steps with the optimizer needs no step at the end of an epoch.
            update_learning_rate=own("update_learning_rate")
            or (_do_nothing if self.settings.scheduler_interval == "step" else None),
            halve_batch=None if self.settings.on_out_of_memory == "error" else self.halve_batch,
            sample_gradients=None if cannot_sample else self.sample_gradients,
            distill=None if train or self._teacher is None else self.distill,
            cost=None if train else lambda: self._epoch_cost,
            state=self,
            batch_size=self.settings.batch_size,
            # With a training function of the user's, the settings do not allow it.
            in_parts=() if train else in_parts,
        )

    def state_dict(self) -> dict[str, Any]:
        """The loss scaler's state, and in how many parts a batch is computed."""
        state = {"scaler": self._optimizing.scaler.state_dict(), "num_parts": self._parts.number}
        return state if self._distills else state | {"distills": False}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._optimizing.scaler.load_state_dict(state["scaler"])
        self._distills = state.get("distills", True)
        # What did not fit into memory does not fit after the return to an earlier checkpoint either.
        self._parts.number = max(self._parts.number, state.get("num_parts", 1))


def _do_nothing(lr_scheduler: Any, epoch: int, metric: float, loss: float | None) -> None:
    pass
