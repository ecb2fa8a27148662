"""The `aat` pipeline's settings: one tree, whose parts are defined by the packages that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kedro_aat.budget import BudgetSettings, DropSettings
from kedro_aat.certificate import CertificateSettings
from kedro_aat.compression.settings import (
    CompressionSettings,
    MagnitudeSparsity,
    Quantization,
    algorithms_of,
    distillation_of,
)
from kedro_aat.errors import ConfigurationError
from kedro_aat.export.settings import ExportSettings, Limits
from kedro_aat.imports import Imported, ImportedOrPath
from kedro_aat.profiles import PROFILES, rounded_for_kernels, with_profile
from kedro_aat.search import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Goal, Rate, require_at_least
from kedro_aat.training.divided_settings import refused
from kedro_aat.training.settings import TrainingSettings
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from kedro_aat.training.progress import Tracker

Target = Literal["cpu", "arm", "microcontroller"]

_WITH_GROUP = ("certificate", "training")  # sections in which a user may name the groups of examples


class LaterStage(Settings):
    """A second or third compression, applied to the model that the search before it returns, as it would be exported.

    Filters stay cut, and weights that `magnitude_sparsity` has set to zero stay zero.

    Attributes:
        compression: The algorithm or algorithms, and their settings.
        search: The policy that chooses the rates; its epochs are in addition to those of the other searches.
        learning_rate_factor: Factor on all learning rates of `training`, whatever optimizer and scheduler make them,
            above 0; a quantized model tolerates less.
        minimal_rate: Lowest rate worth returning, in [0, 1).
        skip_without_gain: Whether the stage is skipped if its file, made without training at the highest rate, would
            not be better by `export.objective` than the file of the stage before: at least 5% faster if the objective
            is latency, else at least 2% smaller.
    """

    WITHOUT_EFFECT: ClassVar = frozenset({"skip_without_gain"})  # on the result of a search

    compression: CompressionSettings = Quantization()
    search: Annotated[Policy, Field(discriminator="kind")] = Frontier(maximal_total_epochs=8)
    learning_rate_factor: Annotated[float, Field(gt=0, le=1000)] = 0.25
    minimal_rate: Rate = 0.0
    skip_without_gain: bool = True


class AatSettings(Settings):
    """All settings of the `aat` pipeline.

    Attributes:
        target: What the delivered file is for. It sets `compression`, `second_stage` and `export.objective`, each only
            if you have not written it (and `second_stage` only if you have not written `third_stage` or a `compression`
            with quantization either). For every target, filters are cut, and then weights and activations become int8:
            `second_stage: { compression: { algorithm: quantization } }`.

            - `cpu`: the fastest file on this machine. `compression: { algorithm: filter_pruning, round_to: 8 }`,
              `export: { objective: latency }`.
            - `arm`: fewer MACs, then bytes; nothing is measured on such a processor.
              `compression: { algorithm: filter_pruning, rate_of: macs }`, `export: { objective: bytes }`.
            - `microcontroller`: the smallest file. `compression: { algorithm: filter_pruning }`,
              `export: { objective: bytes }`.

            None sets nothing.
        seed: Seed of shuffling, dropout and augmentation, at least 0.
        budget: The tolerated drop in accuracy.
        minimal_rate: Lowest compression rate worth returning, in [0, 1).
        maximal_rate: Highest rate to try, in [0, 1).
        compression: The algorithm or algorithms, and their settings.
        search: The policy that chooses the rates.
        second_stage: A second compression of the model that the search returns; None for none.
        third_stage: A third one, of the model that the second stage returns; None for none.
        training: How the model is trained and evaluated.
        time_limit_minutes: Wall time for all search stages together, in minutes, everything between the begin and the
            end of each included; then the best model so far is returned. None for no limit.
        certificate: How the returned model is certified; None withholds the certificate and leaves the test split
            unread, until `kedro aat certify`.
        export: How the exported files are checked and measured, and which one is delivered.
        goal: `size` looks for the smallest model within budget, `accuracy` for the most accurate one that keeps
            `export.limits`; the budget then is the largest drop that is worth delivering.
        on_infeasible: Whether a run that finds no model within budget keeps the baseline or raises an error.
        rehearsal: Whether everything that the run will do is done once in small before the search, and by
            `kedro aat validate`: a batch through model, loss and metric, each stage's compression, two training steps,
            a checkpoint, and the files. What fails is one error within seconds instead of one after the search. What
            has passed is not repeated.
        best_so_far: Whether nothing is trained: each stage ends with the best model that its search has found so far,
            and the test split stays unread. `kedro aat deliver` sets it, and `kedro aat choose` until its choice is
            confirmed.
        choose: Another tolerated drop, for which one of the models that the searches kept is delivered without
            training; the guards stay those of `budget.also`. `kedro aat choose` sets it.
        trackers: Who is told of each epoch and of what was delivered, such as `kedro_aat.trackers.MlflowTracker`:
            subclasses of `kedro_aat.trackers.Tracker`. An error of a tracker is a warning. TensorBoard needs no entry.
    """

    # The settings that the result of a search depends on; they identify a run.
    SEARCHED: ClassVar = {"seed", "budget", "minimal_rate", "maximal_rate", "compression", "search", "training", "goal"}

    target: Target | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    budget: BudgetSettings
    minimal_rate: Rate = 0.0
    maximal_rate: Annotated[Rate, Field(validate_default=True)] = 0.998
    compression: CompressionSettings = MagnitudeSparsity()
    search: Annotated[Policy, Field(discriminator="kind")] = Frontier()
    second_stage: LaterStage | None = None
    third_stage: LaterStage | None = None
    training: TrainingSettings
    time_limit_minutes: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    certificate: CertificateSettings | None = CertificateSettings()
    export: ExportSettings = ExportSettings()
    goal: Goal = "size"
    on_infeasible: Literal["keep_baseline", "error"] = "keep_baseline"
    rehearsal: bool = True
    best_so_far: bool = False
    choose: DropSettings | None = None
    trackers: tuple[ImportedOrPath, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _set_by_target(cls, data: Any) -> Any:
        """Adds what `target`, and the target that the objective names, set and the user has not written."""
        return rounded_for_kernels(with_profile(data))

    def overruled_target(self) -> str | None:
        """What the target would set and the settings say otherwise, in words; None if they agree, or there is none."""
        if self.target is None:
            return None
        profile = PROFILES[self.target]
        wanted = {f"compression.{key}": value for key, value in profile["compression"].items()}
        wanted["export.objective"] = profile["objective"]
        written = {f"compression.{key}": value for key, value in self.compression.model_dump().items()}
        kind = self.export.objective_kind
        written["export.objective"] = kind if kind == profile["objective"] else self.export.objective_words
        differing = [key for key, value in wanted.items() if written.get(key) != value]
        if not differing:
            return None
        has = " and ".join(f"{key}: {written.get(key, 'nothing')}" for key in differing)
        would = " and ".join(f"{key}: {wanted[key]}" for key in differing)
        return (
            f"target: {self.target} would set {would}, but {has} is written, which counts. Remove it to let the target "
            "decide."
        )

    @model_validator(mode="before")
    @classmethod
    def _set_group(cls, data: Any) -> Any:
        """Copies `certificate.group` to `training.group`, where the standard errors of the search need it too."""
        certificate, training = (data.get(name) if isinstance(data, Mapping) else None for name in _WITH_GROUP)
        group = certificate.get("group") if isinstance(certificate, Mapping) else getattr(certificate, "group", None)
        if not isinstance(group, str):
            return data
        if isinstance(training, TrainingSettings) and training.group is None:
            return {**data, "training": training.model_copy(update={"group": group})}
        if isinstance(training, Mapping) and training.get("group") is None:
            return {**data, "training": {**training, "group": group}}
        return data

    @field_validator("certificate")
    @classmethod
    def _check_group(cls, certificate: CertificateSettings, info: ValidationInfo) -> CertificateSettings:
        group = getattr(certificate, "group", None)
        if group is not None and "training" in info.data and group != info.data["training"].group:
            raise ValueError(
                f"group must be that of training ({info.data['training'].group}), but got {group}; remove one of them"
            )
        return certificate

    @field_validator("maximal_rate")
    @classmethod
    def _check_rates(cls, rate: float, info: ValidationInfo) -> float:
        return require_at_least(rate, info.data.get("minimal_rate"))

    @field_validator("second_stage", "third_stage")
    @classmethod
    def _check_order_of_stages(cls, stage: LaterStage | None, info: ValidationInfo) -> LaterStage | None:
        known = info.data.keys()
        is_third = info.field_name == "third_stage"
        if stage is None or "compression" not in known or (is_third and "second_stage" not in known):
            return stage  # a mistake in an earlier stage is reported on its own
        if is_third and info.data["second_stage"] is None:
            raise ValueError("a third stage needs a second one, but second_stage is null; name this one second_stage")
        earlier = algorithms_of(info.data["compression"])
        if is_third:
            earlier = [*earlier, *algorithms_of(info.data["second_stage"].compression)]
        names = algorithms_of(stage.compression)
        if "quantization" in earlier:
            others = " and ".join(name for name in names if name != "quantization") or "another algorithm"
            raise ValueError(
                "quantization must be the last stage, since its model holds integers, but is followed by "
                f"{' and '.join(names)}; make {others} an earlier stage and quantization the last"
            )
        if "filter_pruning" in names and "magnitude_sparsity" in earlier:
            raise ValueError("filters must be cut before single weights are removed; swap the two stages")
        if both := [name for name in earlier if name in names]:
            raise ValueError(f"must be an algorithm that no earlier stage uses, but got {' and '.join(both)}")
        return stage

    @field_validator("training")
    @classmethod
    def _check_single_distillation(cls, training: TrainingSettings, info: ValidationInfo) -> TrainingSettings:
        later = [getattr(info.data.get(name), "compression", None) for name in ("second_stage", "third_stage")]
        stages = [info.data.get("compression"), *later]
        if training.teaching is not None and any(map(distillation_of, filter(None, stages))):
            raise ValueError(
                "only one distillation is allowed, but got knowledge_distillation in the list of algorithms and "
                "distillation here: set distillation to null, or remove knowledge_distillation"
            )
        return training

    @field_validator("training")
    @classmethod
    def _can_be_divided(cls, training: TrainingSettings, info: ValidationInfo) -> TrainingSettings:
        if training.sharding == "none":
            return training
        if mistakes := _refused_parts(info.data):
            raise ValueError("; ".join(mistakes))
        return training

    @field_validator("training")
    @classmethod
    def _check_guards(cls, training: TrainingSettings, info: ValidationInfo) -> TrainingSettings:
        has_own = training.validate_ is not None
        for guard in info.data["budget"].also if "budget" in info.data else ():
            if has_own and guard.metric is not None:
                raise ValueError(
                    f"validate computes no metric of budget.also, but got {guard.label} there: give that guard a name "
                    "alone, and let validate return Evaluation(metric, also={name: value})"
                )
            if not has_own and guard.metric is None:
                raise ValueError(f"without validate, nothing computes the guard {guard.label}: give it a metric")
        return training

    @field_validator("goal")
    @classmethod
    def _check_goal(cls, goal: Goal, info: ValidationInfo) -> Goal:
        if goal == "size":
            return goal
        known = info.data
        if "training" in known and known["training"].sharding != "none":
            raise ValueError(f"must be size with training.sharding: {known['training'].sharding}, but got accuracy")
        if "export" in known and known["export"].limits == Limits():
            raise ValueError("accuracy needs a limit in export.limits: onnx_bytes, parameters, macs, latency_ms, ...")
        if "search" in known and known["search"].kind != "frontier":
            raise ValueError(f"accuracy needs the search frontier, but got {known['search'].kind}")
        if "search" in known and known["search"].num_path_steps > 1:  # the limits hold for rates that are set at once
            raise ValueError("accuracy needs search.num_path_steps to be 1")
        if "compression" in known and algorithms_of(known["compression"])[0] == "magnitude_sparsity":
            raise ValueError(
                "accuracy needs filter_pruning or quantization: magnitude_sparsity makes single weights zero, which "
                "changes no bytes, parameters, MACs or latency"
            )
        later = [known.get(name) for name in ("second_stage", "third_stage")]
        names = [name for stage in later if stage is not None for name in algorithms_of(stage.compression)]
        if names not in ([], ["quantization"]):
            raise ValueError("accuracy allows no later stage but one of quantization alone; set the others to null")
        return goal

    def searched(self, *more: str, defaults: bool = False) -> dict[str, Any]:
        """What identifies a run, as JSON data.

        Args:
            *more: Further settings that its result depends on.
            defaults: Whether settings at their defaults are included too.
        """
        if self.goal == "size":
            return self.identity(self.SEARCHED | {*more}, defaults=defaults)
        # The limits, which may be those of a second stage's file, say how far the model is compressed.
        searched = self.identity(self.SEARCHED | {"second_stage", *more}, defaults=defaults)
        return searched | {"limits": self.export.limits.model_dump(mode="json")}

    def not_sharded(self) -> list[str]:
        """Settings that do not allow `training.sharding: fully_shard`, each with what it must be, and is."""
        goal = [] if self.goal == "size" else [f"goal must be size, but got {self.goal}"]
        return goal + self.training.not_divided() + _refused_parts(vars(self))

    @property
    def trains(self) -> bool:
        """Whether the searches may train."""
        return not self.best_so_far and self.choose is None

    @property
    def reads_test_split(self) -> bool:
        """Whether the run certifies what it delivers."""
        return self.certificate is not None and not self.best_so_far

    @property
    def later_stages(self) -> dict[int, LaterStage]:
        """The stages after the first by their numbers."""
        stages = {2: self.second_stage, 3: self.third_stage}
        return {number: stage for number, stage in stages.items() if stage is not None}

    @property
    def teaching(self) -> dict[str, Any] | None:
        """The distillation of either the compression or the training, as plain data; None if there is none."""
        stages = [self.compression, *(stage.compression for stage in self.later_stages.values())]
        if (found := next(filter(None, map(distillation_of, stages)), None)) is not None:
            return {"kind": found.type, "temperature": found.temperature, "weight": found.scale}
        return self.training.teaching

    def lookup_mistakes(self, key: str) -> list[str]:
        """Mistakes in what the settings name, and trackers that refuse their arguments or are none."""
        mistakes = super().lookup_mistakes(key)
        for number, imported in enumerate(self.trackers):
            name = f"{key}.trackers.{number}"
            found = imported.lookup_mistakes(name)
            if not found:
                try:
                    self._tracker(imported)
                except Exception as error:  # a user's class may raise anything
                    found = [f"{name}: {imported.class_path} refuses its init_args: {error}"]
            mistakes += found
        return mistakes

    def make_trackers(self) -> list[Tracker]:
        """Makes the trackers, each as if it were new.

        Raises:
            TypeError: If one is not a `Tracker`.
        """
        return [self._tracker(imported) for imported in self.trackers]

    @staticmethod
    def _tracker(imported: Imported) -> Tracker:
        from kedro_aat.training.progress import Tracker

        made = imported.make()
        if not isinstance(made, Tracker):
            raise TypeError(f"must be a kedro_aat.trackers.Tracker, but is {made!r:.60}")
        return made

    def check(self) -> None:
        """Looks up everything that the settings name, before anything is trained.

        Raises:
            ConfigurationError: Lists every mistake that `lookup_mistakes` finds.
        """
        if mistakes := self.lookup_mistakes("aat"):
            raise ConfigurationError("aat", mistakes)

    @property
    def time_limit(self) -> float | None:
        """Wall time for all search stages together, in seconds; None for no limit."""
        return None if self.time_limit_minutes is None else 60 * self.time_limit_minutes


def _refused_parts(known: Mapping[str, Any]) -> list[str]:
    """Mistakes in the compression of the known stages for weights that are divided among devices."""
    mistakes = refused(known["compression"]) if "compression" in known else []
    for name in ("second_stage", "third_stage"):
        if (stage := known.get(name)) is not None:
            mistakes += [f"{name}.{mistake}, or {name}: null" for mistake in refused(stage.compression)]
    return mistakes
