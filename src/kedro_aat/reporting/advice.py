"""What a run tells about itself beside its numbers, worked out from its trajectory, its results and its layers.

Pure functions from tables and results to statements with numbers, which terminal, report and summary show alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kedro_aat.compression.settings import CompressionSettings, FilterPruning
from kedro_aat.delivery.costs import cost_by
from kedro_aat.delivery.findings import Findings, Limited, NextStep, Tried
from kedro_aat.delivery.measurements import CandidateResult
from kedro_aat.delivery.on_device import failure_among, fallback_words, objective_among
from kedro_aat.delivery.results import BaselineEvaluation, ExportResult, SearchResult
from kedro_aat.export.settings import ExportSettings
from kedro_aat.messages import rounded
from kedro_aat.reporting.limiting import Course, limits_of
from kedro_aat.reporting.numbers import metric_words
from kedro_aat.search import Policy
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Goal

if TYPE_CHECKING:
    import pandas as pd

MAX_STEPS = 5
LARGEST_CHOICE = 5.0  # a larger budget that is worth a word, in tolerated drops
NEARLY_ALL = 0.99  # a highest rate that is not worth raising
USUAL_INT8_EPOCHS = 8  # of a second stage that the user has not asked for


@dataclass(frozen=True)
class Asked:
    """What the settings asked for, as far as advice depends on it.

    Attributes:
        export: Objective and limits of the file.
        searches: Number of each stage -> its search policy.
        teaches: Whether the baseline may teach.
        trains: Whether the run trained, or only took what there was.
        goal: Whether the smallest model is wanted, or the most accurate one.
        divides: Whether weights are divided among devices, which allows one stage.
        maximal_rate: Highest rate that the first stage might try, in [0, 1); a model's own limit may be lower.
        compression: Settings of the first stage's algorithm; None if they do not matter.
    """

    export: ExportSettings
    searches: Mapping[int, Policy]
    teaches: bool
    trains: bool = True
    goal: Goal = "size"
    divides: bool = False
    maximal_rate: float = 0.998
    compression: CompressionSettings | None = None


def find(
    trajectory: pd.DataFrame,
    layers: pd.DataFrame,
    evaluation: BaselineEvaluation,
    stages: Mapping[int, SearchResult],
    export: ExportResult,
    asked: Asked,
) -> Findings:
    """Works out what was tried, what limited the result, why this file was chosen, and what to try next.

    Args:
        trajectory: Trajectory of all stages, with the column `stage`.
        layers: Layer table of the run; may be empty.
        evaluation: The baseline on the validation split.
        stages: Number of each stage that was searched -> its result.
        export: Result of the export.
        asked: What the settings asked for.
    """
    courses = [
        Course(number, result, trajectory[trajectory["stage"] == number], layers[layers["stage"] == number])
        for number, result in stages.items()
    ]
    limits = [limit for course in courses for limit in limits_of(course, may_go_on=not asked.trains)]
    return Findings(
        tried=[each for course in courses for each in _tried(course)],
        limits=limits,
        chosen=[*map(_within, courses), *_why(export, evaluation, asked)],
        next_steps=_next_steps(courses, limits, evaluation, asked, export),
    )


def _tried(course: Course) -> list[Tried]:
    """The ways of ranking and training that a search tried, in order."""
    found: list[Tried] = []
    for tactic in dict.fromkeys(row.tactic for row in course.trained):
        rows = [row for row in course.trained if row.tactic == tactic]
        highest = max((row.rate for row in course.within if row.tactic == tactic), default=None)
        factors = min(row.lr_scale for row in rows), max(row.lr_scale for row in rows)
        importance, ranking, distilled = tactic
        words = [f"Stage {course.number}: {len(rows)} epoch{'s' * (len(rows) != 1)}"]
        if importance is not None:
            words.append(f"ranked by {importance}" + ("" if ranking is None else f" ({ranking})"))
        if distilled is not None:
            words.append("with the baseline as teacher" if distilled else "without a teacher")
        lowest, highest_factor = map(rounded, factors)
        between = lowest if lowest == highest_factor else f"{lowest} to {highest_factor}"
        words.append(f"at {between} times the learning rate")
        words.append("none within budget" if highest is None else f"within budget up to a rate of {highest:.4f}")
        found.append(
            Tried(
                stage=course.number,
                importance=importance,
                ranking=ranking,
                distilled=distilled,
                learning_rate_factors=factors,
                epochs=len(rows),
                highest_rate=highest,
                words=", ".join(words) + ".",
            )
        )
    return found


def _within(course: Course) -> str:
    """How many epochs of a stage were within budget, and which one it returned."""
    within = course.within
    words = f"Stage {course.number}: {len(within)} of {course.num_trained} epochs were within budget"
    if not within:
        nearest = course.nearest_margin
        return words + ("." if nearest is None else f"; the nearest compressed model has a margin of {nearest:.4g}.")
    words += f", at rates up to {max(row.rate for row in within):.4f}"
    if course.rate and course.margin is not None:
        words += f"; the search returned {course.rate:.4f}, with a margin of {course.margin:.4g}"
    return words + "."


def _why(export: ExportResult, evaluation: BaselineEvaluation, asked: Asked) -> list[str]:
    """Why the delivered file was chosen among the files that were measured."""
    if (delivered := export.compressed) is None:
        return [f"No file is delivered. {export.reason}"]
    others = [each for each in export.candidates if each.id != delivered.id and each.name not in export.rejected]
    if not others:
        words = f"{delivered.name} is delivered: the only file that was measured within budget and limits."
        return [f"{words} Rejected: {', '.join(export.rejected)}." if export.rejected else words]

    compared = [delivered, *others]
    decides = objective_among(asked.export, compared)

    def value(file: CandidateResult) -> str:
        if asked.goal == "accuracy":
            return metric_words(file.shipped_validation)
        return _value(cost_by(decides, file))

    by = evaluation.metric.name if asked.goal == "accuracy" else f"export.objective {decides.objective_words}"
    shown = ", ".join(f"{each.name} {value(each)}" for each in others)
    best = f"{delivered.name} is delivered: the best of {len(others) + 1} files by {by} ({value(delivered)})"
    statements = [f"{best}; the others: {shown}."]
    if asked.goal == "size" and (failure := failure_among(asked.export, compared)) is not None:
        statements.append(fallback_words(asked.export, failure))
    return statements


def _value(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.4g}"


def _next_steps(
    courses: list[Course],
    limits: list[Limited],
    evaluation: BaselineEvaluation,
    asked: Asked,
    export: ExportResult,
) -> list[NextStep]:
    """What to try next, the cheapest first."""
    steps: list[NextStep] = []
    for course in courses:
        kinds: set[str] = {limit.kind for limit in limits if limit.stage == course.number}
        # For the most accurate model, a larger budget changes nothing; who has just chosen has seen the others; and
        # what a later stage made of a model usually costs less than a higher rate of the stage before.
        is_delivered = export.compressed is None or export.compressed.stage in (None, course.number)
        if asked.goal == "size" and asked.trains and is_delivered:
            steps += _without_training(course, evaluation)
        steps += _with_training(course, kinds, asked)
    first = courses[0]
    if not asked.teaches and not first.has_tried_teacher and first.result.algorithms != ["quantization"]:
        words = "the baseline teaches, which often allows a higher rate; the search begins anew"
        steps.append(first.step("training.distillation: {}", words, first.result.epochs.allowed))
    if len(asked.searches) == 1 and not asked.divides and "quantization" not in first.result.algorithms:
        words = "int8 makes each number a quarter as large, after the search that there is"
        steps.append(first.step("second_stage: { compression: { algorithm: quantization } }", words, USUAL_INT8_EPOCHS))
    unique = {step.change: step for step in steps}
    return sorted(unique.values(), key=lambda step: step.epochs)[:MAX_STEPS]


def _without_training(course: Course, evaluation: BaselineEvaluation) -> list[NextStep]:
    """Models that were measured, for a larger budget or without the reserve of this one."""
    budget, steps = evaluation.budget_of(course.result.budget), []
    if (row := course.higher_within) is not None:
        words = f"a rate of {row.rate:.4f} instead of {course.rate:.4f}, measured within the same budget"
        steps.append(_choice(budget.drop, words))
    if (row := course.nearest_beyond) is not None:
        drop = budget.degradation(row.metric)
        if budget.drop < drop <= LARGEST_CHOICE * budget.drop:
            words = f"a rate of {row.rate:.4f} instead of {course.rate:.4f}, for a drop of {drop:.4g}"
            steps.append(_choice(drop, words))
    return steps


def _choice(drop: float, words: str) -> NextStep:
    """A choice for another budget, which is written with six digits, rounded up so that it is enough."""
    step = 10.0 ** (math.floor(math.log10(drop)) - 5) if drop > 0 else 1.0
    enough = f"{math.ceil(drop / step - 1e-6) * step:.6g}"
    in_python = f"from Python, `result.choose(max_drop={enough})`"
    return NextStep(change=f"kedro aat choose --max-drop {enough}", words=f"{words}; {in_python}")


def _with_training(course: Course, kinds: set[str], asked: Asked) -> list[NextStep]:
    """Settings that would lift what limited a stage."""
    prefix = {1: "", 2: "second_stage.", 3: "third_stage."}[course.number]
    epochs, policy = course.result.epochs, asked.searches.get(course.number)
    steps: list[NextStep] = []
    left = epochs.allowed - epochs.used
    if not asked.trains and left > 0 and "nothing" not in kinds:
        words = f"the search goes on, with {epochs.used} of {epochs.allowed} epochs used"
        steps.append(course.step("kedro run", f"{words}; from Python, the same call without `best_so_far`", left))
    elif kinds & {"epochs", "budget"}:
        words = f"the search goes on after {epochs.used} epochs, which are not trained again"
        change = f"{prefix}search.maximal_total_epochs: {2 * epochs.allowed}"
        steps.append(course.step(change, words, epochs.allowed))
    if "time" in kinds:
        words = f"the search goes on for the {left} epochs that are left"
        steps.append(course.step("time_limit_minutes: more", words, left))
    if "noise" in kinds and course.standard_error is not None and (times := course.examples_needed) > 1:
        words = "a standard error of a third of the budget; the search begins anew"
        steps.append(course.step(f"{rounded(times)} times as many validation examples", words, epochs.allowed))
    if "layer" in kinds and (layer := course.narrowest) is not None:
        words = "this layer, perhaps the cliff, keeps its size, and others may lose more; the search begins anew"
        steps.append(course.step(f"{prefix}compression.ignored_scopes: [{layer.name}]", words, epochs.allowed))
    highest = course.result.highest_rate or 1.0
    if kinds & {"nothing", "highest_rate"} and course.number == 1 and highest < NEARLY_ALL:
        steps += _with_higher_rates(course, highest, asked)
    if isinstance(policy, Frontier) and course.number == 1 and len(policy.tactics.importance or ()) == 1:
        words = "the search may rank by others, too; it begins anew"
        steps.append(course.step(f"{prefix}search.tactics.importance: null", words, epochs.allowed))
    return steps


def _with_higher_rates(course: Course, highest: float, asked: Asked) -> list[NextStep]:
    """What allows higher rates than the highest one: `maximal_rate`, or the channels that every layer keeps."""
    filters, allowed = asked.compression, course.result.epochs.allowed
    if asked.maximal_rate <= highest + 1e-6:
        words = "higher rates may be tried; the search begins anew"
        return [course.step(f"maximal_rate: above {highest:.4g}", words, allowed)]
    if not isinstance(filters, FilterPruning) or (least := max(filters.round_to, filters.minimal_channels)) == 1:
        return []
    key = "round_to" if filters.round_to == least else "minimal_channels"
    words = f"layers may have fewer than {least} channels, for rates above {highest:.4g}; the search begins anew"
    return [course.step(f"compression.{key}: {least // 2}", words, allowed)]
