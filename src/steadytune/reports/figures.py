"""The figures of a report: plain numbers in, SVG out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from steadytune.reports.calibration import ReliabilityBin
from steadytune.reports.statistics import Interval
from steadytune.reports.svg import INK, LINES, MARKERS, PALETTE, Look, class_look, drawn, short

_SHADES = 8  # of a heat map
_DARKEST = 0.65  # so that numbers in a cell stay readable
_POINTS = 60  # of one curve, at most
NUMBERED = 12  # rows of a matrix that have room for numbers in its cells
_NAMED = 40  # ... and for the names of its rows


class Dots(NamedTuple):
    """One row of points.

    Attributes:
        name: of the row.
        look: of its points.
        values: by seed.
    """

    name: str
    look: Look
    values: Mapping[int, float]


class Span(NamedTuple):
    """A mean with its interval.

    Attributes:
        name: of the row.
        look: of its point.
        mean: the point.
        interval: around it; None where it is not known.
    """

    name: str
    look: Look
    mean: float
    interval: Interval | None


class Priced(NamedTuple):
    """A score with what it cost.

    Attributes:
        look: of its point.
        cost: pass units.
        mean: of the scores.
        sd: of the scores; None for one seed.
    """

    look: Look
    cost: float
    mean: float
    sd: float | None


class Curve(NamedTuple):
    """A value along steps or layers.

    Attributes:
        look: of the line.
        at: where.
        mean: over the seeds.
        sd: over the seeds; NaN where there is one.
    """

    look: Look
    at: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


def seed_figure(rows: Sequence[Dots], unit: str, *, key: str, title: str) -> str:
    """Every seed as a point, its recipe's mean as a stroke.

    Args:
        rows: top to bottom.
        unit: of the values.
        key: see `drawn`.
        title: see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        seeds = sorted({seed for row in rows for seed in row.values})
        for index, row in enumerate(rows):
            shifts = [0.5 * (seeds.index(seed) + 0.5) / len(seeds) - 0.25 for seed in row.values]
            values = list(row.values.values())
            heights = [index + shift for shift in shifts]
            marker = MARKERS[row.look.marker]
            axes[0].plot(values, heights, marker, color=row.look.ink, markersize=4.5, alpha=0.8, markeredgewidth=0)
            if values:
                axes[0].plot([np.mean(values)] * 2, [index - 0.36, index + 0.36], color=INK, linewidth=1.6)
        _named_rows(axes[0], [row.name for row in rows], unit)

    said = "; ".join(f"{row.name}: {', '.join(f'{v:.1f}' for v in row.values.values())}" for row in rows)
    return drawn(draw, key=key, title=title, description=f"One point per seed. {said}", height=_tall(rows))


def difference_figure(rows: Sequence[Span], unit: str, *, key: str, title: str) -> str:
    """Mean difference to the baseline with its interval, one row per recipe, and a line at no difference.

    Args:
        rows: top to bottom.
        unit: of the differences.
        key: see `drawn`.
        title: see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        axes[0].axvline(0, color=INK, linewidth=1, alpha=0.7)
        for index, row in enumerate(rows):
            if row.interval is not None:
                axes[0].plot(row.interval, [index, index], color=row.look.ink, linewidth=2, solid_capstyle="butt")
            axes[0].plot([row.mean], [index], MARKERS[row.look.marker], color=row.look.ink, markersize=6)
        _named_rows(axes[0], [row.name for row in rows], unit)

    parts = []
    for row in rows:
        ends = "" if row.interval is None else f" ({row.interval.low:+.1f} to {row.interval.high:+.1f})"
        parts.append(f"{row.name}: {row.mean:+.1f}{ends}")
    return drawn(draw, key=key, title=title, description="; ".join(parts), height=_tall(rows))


def cost_figure(points: Sequence[Priced], unit: str, *, key: str, title: str) -> str:
    """Score against pass units.

    Args:
        points: one per recipe.
        unit: of the scores.
        key: see `drawn`.
        title: see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        for point in points:
            ink = point.look.ink
            axes[0].errorbar([point.cost], [point.mean], yerr=point.sd, color=ink, elinewidth=1.2)
            axes[0].plot([point.cost], [point.mean], MARKERS[point.look.marker], color=ink, markersize=6)
        axes[0].set_xlabel("pass units of one run")
        axes[0].set_ylabel(short(unit, 60))
        axes[0].margins(0.12)

    return drawn(draw, key=key, title=title, description="Mean ± sd of each recipe; the table has the numbers.")


def curve_figure(curves: Sequence[Curve], across: str, *, key: str, title: str) -> str:
    """A small panel: means along steps or layers, with a band of one sd.

    Args:
        curves: one per recipe.
        across: what the horizontal axis counts.
        key: see `drawn`.
        title: shown above, and see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        for curve in curves:
            chosen = np.unique(np.linspace(0, len(curve.at) - 1, min(_POINTS, len(curve.at))).round().astype(int))
            at, mean, sd = (np.asarray(part)[chosen] for part in (curve.at, curve.mean, curve.sd))
            if np.isfinite(sd).any():
                axes[0].fill_between(at, mean - sd, mean + sd, color=curve.look.ink, alpha=0.18, linewidth=0)
            dot = "o" if len(at) == 1 else ""
            axes[0].plot(at, mean, LINES[curve.look.line], color=curve.look.ink, marker=dot, markersize=4)
        axes[0].set_title(short(title, 34), loc="left")
        axes[0].set_xlabel(across)
        axes[0].locator_params(axis="x", nbins=5, integer=True)
        axes[0].locator_params(axis="y", nbins=5)

    return drawn(draw, key=key, title=title, description=f"Mean over seeds by {across}.", width=2.7, height=1.9)


def confusion_figure(counts: np.ndarray, names: Sequence[str], *, key: str, title: str) -> str:
    """Rows by true class (down) and predicted class (across), shaded by the share of the true class.

    Args:
        counts: (true, predicted).
        names: of the classes.
        key: see `drawn`.
        title: see `drawn`.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(2.2 + 0.16 * len(names), 5.2)

    def draw(axes: Sequence[Axes]) -> None:
        _heat(axes[0], share)
        if len(names) <= NUMBERED:
            for row, column in np.argwhere(counts > 0):
                axes[0].text(column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=7.5)
        _class_axes(axes[0], names)
        axes[0].set_xlabel("predicted")
        axes[0].set_ylabel("true")

    return drawn(
        draw, key=key, title=title, description="Shade: share of the rows of a true class.", width=side, height=side
    )


def reliability_figure(
    before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], look: Look, *, key: str, title: str
) -> str:
    """Accuracy against confidence, before and after temperature scaling, beside the line where they agree.

    Args:
        before: as the model gave them.
        after: after scaling; empty where there was none.
        look: of the recipe.
        key: see `drawn`.
        title: shown above, and see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        axes[0].plot([0, 1], [0, 1], ":", color=INK, linewidth=1, alpha=0.7)
        for bins, line, face in ((before, "o-", look.ink), (after, "o--", "none")):
            points = np.array([(one.confidence, one.accuracy) for one in bins if one.rows]).reshape(-1, 2)
            axes[0].plot(*points.T, line, color=look.ink, markersize=4, linewidth=1.3, markerfacecolor=face)
        axes[0].set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
        axes[0].set_title(short(title, 34), loc="left")

    said = "Filled points: as the model gave them; open points: after temperature scaling."
    return drawn(draw, key=key, title=title, description=said, width=2.7, height=2.6)


def vector_figure(points: np.ndarray, classes: np.ndarray, *, key: str, title: str) -> str:
    """Rows in a plane, one color and marker per class.

    Args:
        points: (rows, 2).
        classes: class of each row.
        key: see `drawn`.
        title: shown above, and see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        for index in np.unique(classes):
            inside, look = classes == index, class_look(int(index))
            axes[0].plot(
                *points[inside].T, MARKERS[look.marker], color=look.ink, markersize=3.4, alpha=0.8, markeredgewidth=0
            )
        axes[0].set(xticks=[], yticks=[])
        axes[0].spines[:].set(visible=True, alpha=0.25)
        axes[0].margins(0.04)
        axes[0].set_title(short(title, 34), loc="left")

    said = f"t-SNE of {len(points)} rows; distances between far groups mean nothing."
    return drawn(draw, key=key, title=title, description=said, width=3.4, height=3.0)


def agreement_figure(true: np.ndarray, predicted: np.ndarray, look: Look, *, key: str, title: str) -> str:
    """Predicted against true values, with the line where they agree.

    Args:
        true: of each row.
        predicted: of each row.
        look: of the recipe.
        key: see `drawn`.
        title: shown above, and see `drawn`.
    """

    def draw(axes: Sequence[Axes]) -> None:
        ends = [float(true.min()), float(true.max())]
        axes[0].plot(ends, ends, ":", color=INK, linewidth=1, alpha=0.7)
        axes[0].plot(true, predicted, "o", color=look.ink, markersize=3, alpha=0.5, markeredgewidth=0)
        axes[0].set(xlabel="true", ylabel="predicted")
        axes[0].set_title(short(title, 34), loc="left")

    return drawn(draw, key=key, title=title, description=f"{len(true)} rows.", width=2.7, height=2.6)


def attention_figure(
    weights: np.ndarray, tokens: Sequence[str], keep: np.ndarray | None, *, key: str, title: str
) -> str:
    """Attention of each token (down) on each token (across), and what a mask kept of it.

    Args:
        weights: (tokens, tokens).
        tokens: their names.
        keep: 1 where attention was allowed; None without a mask.
        key: see `drawn`.
        title: see `drawn`.
    """
    side = min(2.0 + 0.13 * len(tokens), 5.2)

    def draw(axes: Sequence[Axes]) -> None:
        _heat(axes[0], weights / max(float(weights.max(initial=0)), 1e-12))
        _class_axes(axes[0], tokens)
        axes[0].set_title("attention", loc="left")
        if keep is not None:
            _heat(axes[1], keep)
            _class_axes(axes[1], tokens)
            axes[1].set_title("kept by the mask", loc="left")

    said = f"{len(tokens)} tokens; darker is more, relative to the largest weight."
    panels = 1 if keep is None else 2
    return drawn(draw, key=key, title=title, description=said, width=side * panels, height=side, panels=panels)


def _tall(rows: Sequence[object]) -> float:
    return 0.75 + 0.34 * max(len(rows), 1)


def _named_rows(axes: Axes, names: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(short(unit, 60))


def _class_axes(axes: Axes, names: Sequence[str]) -> None:
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    axes.grid(False)
    if len(names) <= _NAMED:
        size = 7.5 if len(names) <= 20 else 5.5
        shown = [short(name, 16) for name in names]
        axes.set_yticks(range(len(names)), shown, fontsize=size)
        axes.set_xticks(range(len(names)), shown, fontsize=size, rotation=90)


def _heat(axes: Axes, shares: np.ndarray) -> None:
    """Squares in a few shades, one path per shade, so that a large matrix stays a small file."""
    level = np.ceil(np.clip(shares, 0, 1) * _SHADES).astype(int)
    for shade in range(1, _SHADES + 1):
        cells = np.argwhere(level == shade)
        if not len(cells):
            continue
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
        vertices = (cells[:, None, ::-1] + corners[None]).reshape(-1, 2)
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(cells)
        alpha = _DARKEST * shade / _SHADES
        axes.add_artist(PathPatch(Path(vertices, codes), facecolor=PALETTE[0], alpha=alpha, linewidth=0))
