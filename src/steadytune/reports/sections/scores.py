"""Seeds, differences and cost: what the scores of the runs look like."""

import numpy as np

from steadytune.records import Cost
from steadytune.reports.figures import Dots, Priced, Span, cost_figure, difference_figure, seed_figure
from steadytune.reports.page import Block, Drawing, Drawings, Section, Words, looks
from steadytune.reports.sections.places import POINTS, Row, by_place, figure_key, standings, unit
from steadytune.reports.statistics import Interval, mean_and_sd
from steadytune.reports.study import Place, Study
from steadytune.reports.tables import Column, Sheet, Value, columns


def seeds_section(study: Study) -> Section:
    """Every seed of every recipe.

    Args:
        study: what to read.
    """
    styles = looks(study.arms)

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        scores = {row.arm: row.scores for row in rows}
        if not any(scores.values()):
            return [Words(["No run here has a test score."])]
        title = f"Test score of every seed, {place.title}"
        figure = seed_figure(
            [Dots(arm.recipe, styles[arm], found) for arm, found in scores.items()],
            unit(study, place),
            key=figure_key("seeds", study, place),
            title=title,
        )
        seeds = sorted({seed for arm in scores for seed in study.seeds(place, arm)})
        cells: list[list[Value]] = [[seed, *(found.get(seed) for found in scores.values())] for seed in seeds]
        heads = columns("seed", *(arm.recipe for arm in scores))
        sheet = Sheet("seeds", unit(study, place), heads, cells, place, filed=False)
        caption = "A point is one seed, at the same height in each row; a stroke is the mean."
        return [Drawings([Drawing(figure, caption)]), sheet]

    lead = "The test score of every run; no seed is chosen or left out, and a failed run is a gap."
    return by_place(study, "seeds", "Seeds", lead, blocks)


def seed_sheet(study: Study) -> Sheet:
    """One row per planned run, for a file.

    Args:
        study: what to read.
    """
    cells: list[list[Value]] = []
    for place, rows in standings(study).items():
        for row in rows:
            for seed, run in sorted(study.seeds(place, row.arm).items()):
                state = "missing" if run is None else run.record.status
                cells.append([*place, row.arm.recipe, row.arm.role, seed, state, row.scores.get(seed)])
    heads = columns("task", "protocol", "budget", "recipe", "role", "seed", "status", "test score, points")
    return Sheet("seeds", "Every planned run", heads, cells)


def differences_section(study: Study) -> Section:
    """Paired differences to the baseline.

    Args:
        study: what to read.
    """
    styles = looks(study.arms)

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        spans = []
        for row in rows:
            paired = row.standing.comparison if row.standing else None
            if paired is not None and paired.mean is not None:
                ends = paired.interval
                scaled = None if ends is None else Interval(POINTS * ends.low, POINTS * ends.high)
                spans.append(Span(row.arm.recipe, styles[row.arm], POINTS * paired.mean, scaled))
        if not spans:
            return [Words(["No recipe here shares a finished seed with the baseline."])]
        key, title = figure_key("differences", study, place), f"Mean difference to the baseline, {place.title}"
        figure = difference_figure(spans, f"difference, {unit(study, place)}", key=key, title=title)
        return [Drawings([Drawing(figure, "Mean of the differences seed by seed, with its 95 % t interval.")])]

    lead = "Each recipe minus the baseline, paired by seed, so that what a seed does to both cancels."
    return by_place(study, "differences", "Differences", lead, blocks)


def cost_section(study: Study) -> Section:
    """Score against cost.

    Args:
        study: what to read.
    """
    styles = looks(study.arms)

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        points: list[Priced] = []
        cells: list[list[Value]] = []
        for row in rows:
            runs = study.done(place, row.arm).values()
            costs = [run.record.cost for run in runs if run.record.cost is not None]
            if costs:
                mean, sd = mean_and_sd(row.scores)
                cells.append([row.arm.title, mean, *_means(costs)])
                if mean is not None:
                    units = float(np.mean([cost.pass_units for cost in costs]))
                    points.append(Priced(styles[row.arm], units, mean, sd))
        if not points:
            return [Words(["No run here has both a score and a cost."])]
        heads = [
            *columns("recipe", "score, points"),
            *columns("pass units", "steps", "forward passes", "tokens", digits=0),
            *columns("seconds", "sd of seconds"),
            Column("peak MiB", 0),
        ]
        key, title = figure_key("cost", study, place), f"Score against pass units, {place.title}"
        figure = cost_figure(points, unit(study, place), key=key, title=title)
        legend = [(row.arm.recipe, styles[row.arm]) for row in rows]
        sheet = Sheet("cost", "Cost of one run, mean over its seeds", heads, cells, place)
        return [Drawings([Drawing(figure, "Mean ± sd over the seeds.")], legend), sheet]

    lead = (
        "Pass units count forward passes, activation gradients and weight gradients alike; plain fine-tuning takes 3 "
        "per batch. Seconds depend on the machine and on what else it did."
    )
    return by_place(study, "cost", "Cost", lead, blocks)


def _means(costs: list[Cost]) -> list[Value]:
    names = ("pass_units", "optimizer_steps", "forward_passes", "tokens", "train_seconds")
    means: list[Value] = [float(np.mean([getattr(cost, name) for cost in costs])) for name in names]
    _, spread = mean_and_sd([cost.train_seconds for cost in costs])
    return [*means, spread, max(cost.peak_memory_bytes for cost in costs) / 2**20]
