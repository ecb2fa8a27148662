"""Finds the axes of a model's inputs that may have any size, by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import Dim, ExportedProgram

from kedro_aat.errors import ExportError
from kedro_aat.export.axes import all_axes, batch_symbol, free_symbols
from kedro_aat.export.difference import largest_difference
from kedro_aat.export.subject import Operators, Subject, Trial
from kedro_aat.modes import first_cause

# An axis that is wrongly taken for free changes outputs by more. int8 rounds differently in different runtimes.
TOLERANCE, QUANTIZED_TOLERANCE = 1e-3, 0.1


@dataclass(frozen=True)
class Traced:
    """A program in which every axis beside the batch that the model is indifferent to has any size.

    Attributes:
        subject: The model.
        program: Its program.
        trials: What the model returns where these axes have another size, and for a batch of 1.
    """

    subject: Subject
    program: ExportedProgram
    trials: tuple[Trial, ...] = ()

    def disagreement(self, run: Callable[[Sequence[Tensor]], Mapping[str, Tensor]], tolerance: float) -> str | None:
        """Why a file does not compute what its model computes in the trials; None if it does.

        Args:
            run: Runs the file.
            tolerance: Largest difference that is accepted.
        """
        for trial in self.trials:
            try:
                found = largest_difference(run(list(trial.inputs.values())), trial.outputs)
            except Exception as error:  # each runtime has its own classes of errors
                return f"it fails: {first_cause(error)}"
            if not found <= tolerance:
                return f"the outputs differ by {found:.2g} of the largest one."
        return None


def trace(subject: Subject, *, operators: Operators = "plain", search: bool = True) -> Traced:
    """Traces a model; axes that it is indifferent to, or those that the settings ask for, have any size.

    Args:
        subject: The model.
        operators: How integers are rounded and converted.
        search: Whether to search for axes; if not, only the batch has any size. Axes asked for always have.

    Raises:
        ExportError: If the model works for one batch size only, or needs a fixed size where the settings ask for any.
    """
    if subject.asked is not None:
        try:
            program = subject.trace(free=subject.asked, kind=Dim.DYNAMIC, operators=operators)
        except ExportError as error:
            if any(subject.asked.values()):
                raise refused(subject, str(error)) from error
            raise
        trials = subject.trials(program)
        if any(isinstance(each, str) for each in trials):
            raise refused(subject, "The model takes no other size there.")
        return Traced(subject, program, tuple(each for each in trials if isinstance(each, Trial)))
    if search:
        free: Mapping[str, Iterable[int]] = all_axes(subject.inputs)
        for _ in range(2):  # again without the axes whose size matters, which torch does not always see
            try:
                program = subject.trace(free=free, kind=Dim.AUTO, operators=operators)
            except ExportError:
                break
            axes = subject.axes(program)
            if isinstance(batch_symbol(axes, subject.batched), int):
                break  # the strict attempt below tells why
            trials = subject.trials(program)
            kept = tuple(each for each in trials if isinstance(each, Trial))
            if len(kept) == len(trials):
                return Traced(subject, program, (*kept, *subject.trials_of_one(program)) if kept else ())
            symbols = free_symbols(axes, subject.batched)
            free = {name: [] for name in subject.inputs}
            for trial in kept:
                for name, places in symbols[trial.symbol].items():
                    free[name] = [*free[name], *places]
            if not kept:
                break
    return Traced(subject, subject.trace(free={}, kind=Dim.DYNAMIC, operators=operators))


def refused(subject: Subject, reason: str) -> ExportError:
    """The error for axes that the settings ask for, and that cannot have any size."""
    asked = ", ".join(f"{axis} of {name}" for name, axes in (subject.asked or {}).items() for axis in axes)
    return ExportError(
        f"{subject.name} cannot be exported with any size of axis {asked} (export.dynamic_axes). {reason}"
    )
