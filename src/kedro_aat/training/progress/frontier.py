"""The frontier of a search as HTML with an SVG picture, without scripts or other files.

Text and lines have the color of the page, so that the picture suits light and dark themes.
"""

from __future__ import annotations

import math
from html import escape

from kedro_aat.training.progress.so_far import SoFar
from kedro_aat.training.records import EpochRecord

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 14, 44  # room for the axes
BLUE, GREEN, RED = "#4a86e8", "#2ca373", "#d9534f"
# Tolerated drops that are shown below the lowest tolerated metric; a single bad epoch would flatten all others.
SHOWN_DROPS = 3
TICKS = (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
SHARES = {0.0: "0%", 0.25: "25%", 0.5: "50%", 0.75: "75%", 1.0: "100%"}


def frontier_html(so_far: SoFar) -> str:
    """The frontier of a search, what is best so far, and how far the search is.

    Args:
        so_far: The search.
    """
    return (
        '<div style="font: 13px system-ui, sans-serif; max-width: 660px">'
        f"<div><b>{escape(so_far.title)}</b>: {escape(so_far.epochs_in_words)}</div>"
        f"<div>Best within budget: {escape(so_far.best_in_words)}</div>"
        f"{_picture(so_far)}</div>"
    )


def _picture(so_far: SoFar) -> str:
    axes = _Axes(so_far)
    budget = so_far.budget
    lines = [
        *axes.ticks(),
        axes.level(budget.baseline, "baseline", "currentColor", "2 4"),
        axes.level(budget.lowest_tolerated, budget.limit_in_words, RED, "7 4"),
    ]
    front = so_far.front
    if len(front) > 1:
        points = " ".join(f"{axes.x(row):.1f},{axes.y(row.metric or 0.0):.1f}" for row in front)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>')
    best = so_far.best
    lines += [_point(row, axes, so_far, is_best=row is best) for row in so_far.history if not row.failed]
    names = [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{'times smaller, 1 / (1 - rate)' if so_far.is_size else 'share of the weights in 8 bits'}</text>",
        f'<text transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "metric, validation</text>",
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" font-size="12" fill="currentColor" '
        f'aria-label="Frontier: {escape(so_far.best_in_words)}">{"".join(lines)}{"".join(names)}</svg>'
    )


def _point(row: EpochRecord, axes: _Axes, so_far: SoFar, *, is_best: bool) -> str:
    is_within = row.keeps(so_far.budget)
    color = GREEN if is_within else RED
    words = f"epoch {row.epoch}: rate {row.achieved_rate:.4f}, metric {row.metric:.4f}"
    radius, fill = (6 if is_best else 3.5), (color if is_within else "none")
    return (
        f'<circle cx="{axes.x(row):.1f}" cy="{axes.y(row.metric or 0.0):.1f}" r="{radius}" fill="{fill}" '
        f'stroke="{color}" stroke-width="1.5"><title>{words}</title></circle>'
    )


class _Axes:
    """Places of rates and metrics in the picture; the axis of rates is logarithmic in what is left.

    Args:
        so_far: The search.
    """

    def __init__(self, so_far: SoFar) -> None:
        budget = so_far.budget
        rows = [row for row in so_far.history if not row.failed]
        self._is_size = so_far.is_size
        self._highest_size = max([2.0, *(_size(row) for row in rows)]) * 1.1
        near = [row for row in rows if row.margin >= -SHOWN_DROPS * budget.drop]
        metrics = [budget.baseline, budget.lowest_tolerated, *(row.metric or 0.0 for row in near)]
        low, high = min(metrics), max(metrics)
        space = 0.08 * (high - low) or 0.01 * max(abs(high), 1.0)
        self._low, self._high = low - space, high + space

    def x(self, row: EpochRecord) -> float:
        """Place of an epoch's rate."""
        return self._x_of(_size(row) if self._is_size else row.achieved_rate)

    def _x_of(self, value: float) -> float:
        share = math.log(min(value, self._highest_size)) / math.log(self._highest_size) if self._is_size else value
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, metric: float) -> float:
        """Place of a metric; those that are far off are at the edge."""
        share = (min(max(metric, self._low), self._high) - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def level(self, metric: float, name: str, color: str, dashes: str) -> str:
        """A horizontal line with its name."""
        y = self.y(metric)
        return (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}" '
            f'stroke-dasharray="{dashes}"/>'
            f'<text x="{LEFT + 6}" y="{y - 4:.1f}" fill="{color}">{name} {metric:.4g}</text>'
        )

    def ticks(self) -> list[str]:
        """The frame, and the numbers beside it."""
        bottom = HEIGHT - BOTTOM
        parts = [
            f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" stroke-opacity=".5"/>'
        ]
        sizes = {tick: f"{tick:g}x" for tick in TICKS if tick <= self._highest_size}
        last = -math.inf
        for tick, text in (sizes if self._is_size else SHARES).items():
            x = self._x_of(tick)
            if x - last >= 34:  # else they would overlap
                parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
                last = x
        for metric in _round_numbers(self._low, self._high):
            y = self.y(metric)
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{metric:.6g}</text>')
        return parts


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to eight round numbers between two others."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = max((power * factor for factor in (1, 2, 5) if power * factor <= rough), default=power)  # a rounded power
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _size(row: EpochRecord) -> float:
    return 1 / max(1 - row.achieved_rate, 1e-3)
