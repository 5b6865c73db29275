"""Learning curves, telemetry, vectors and layers: what happened inside the runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steadytune.reports.examples import chosen_rows, plane, quintiles
from steadytune.reports.figures import Curve, attention_figure, curve_figure, vector_figure
from steadytune.reports.page import Block, Drawing, Drawings, Section, Words, looks
from steadytune.reports.sections.places import Row, by_place, figure_key
from steadytune.reports.study import Arm, Place, Study
from steadytune.reports.svg import Look, class_look

_TOKENS = 40  # of an attention map
_EXAMPLES = 2  # attention maps per recipe
_SUMMARY = ("epoch", "step", "total_flos")  # and train_*: of the whole run, or no value at all


def curves_section(study: Study) -> Section:
    """Every loss term along the steps.

    Args:
        study: what to read.
    """
    lead = "Losses as logged during training: mean over the seeds, with a band of one sd; controls dashed."
    return _histories(study, "curves", "Learning curves", lead, losses=True)


def telemetry_section(study: Study) -> Section:
    """What the methods said they did along the steps.

    Args:
        study: what to read.
    """
    lead = "What each method measured of its own effect: mean over the seeds, with a band of one sd; controls dashed."
    return _histories(study, "telemetry", "Telemetry", lead, losses=False)


def vectors_section(study: Study) -> Section:
    """Pooled vectors of test rows in a plane, one figure per recipe.

    Args:
        study: what to read.
    """

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        runs = {row.arm: study.done(place, row.arm) for row in rows}
        having = {arm: [s for s, run in own.items() if study.pooled(run) is not None] for arm, own in runs.items()}
        seeds = [seed for own in having.values() for seed in own]
        if not seeds:
            return [Words(["No run here left vectors."])]
        seed = max(sorted(set(seeds)), key=seeds.count)  # the first of those that most recipes have
        figures, legend = [], []
        for index, arm in enumerate(runs):
            pooled = study.pooled(runs[arm][seed]) if seed in having[arm] else None
            if pooled is None or (points := plane(pooled.vectors)) is None:
                continue
            labels = pooled.labels[chosen_rows(len(pooled.labels))]
            names = runs[arm][seed].record.label_names
            classes, names = (labels, names) if names else quintiles(labels)
            legend = [(name, class_look(number)) for number, name in enumerate(names)]
            key = figure_key("vectors", study, place, index)
            figures.append(Drawing(vector_figure(points, classes, key=key, title=arm.title), f"seed {seed}"))
        return [Drawings(figures, legend)] if figures else [Words(["The vectors here are too few or not finite."])]

    lead = (
        "t-SNE of the vectors that the head reads, for at most 500 test rows of one seed. Groups that lie apart are "
        "apart; how far, and how large a group is, says nothing."
    )
    return by_place(study, "vectors", "Vectors", lead, blocks)


def layers_section(study: Study, *, publish: bool = False) -> Section | None:
    """Stability, probing and attention by layer; None where no run has them.

    Args:
        study: what to read.
        publish: without the tokens of any row.
    """
    styles = looks(study.arms)
    found = {cell: layers for cell, run in study.runs.items() if (layers := study.layers(run))}
    for cell, layers in found.items():
        tokens = {} if publish else study.tokens(study.runs[cell])
        layers["attention"] = [{**one, "tokens": tokens.get(one["id"])} for one in layers.get("attention") or ()]
    if not found:
        return None

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        own = {row.arm: [found[cell] for cell in found if (cell.place, cell.arm) == (place, row.arm)] for row in rows}
        figures = []
        for index, (title, read) in enumerate(
            (("noise ratio by layer", _stability), ("probing accuracy by layer", _probing))
        ):
            curves = [
                curve
                for arm, layers in own.items()
                if (curve := _mean_curve(styles[arm], [read(one) for one in layers])) is not None
            ]
            if curves:
                key = figure_key("layers", study, place, index)
                figures.append(Drawing(curve_figure(curves, "layer", key=key, title=title)))
        made: list[Block] = [Drawings(figures, [(arm.recipe, styles[arm]) for arm in own])] if figures else []
        maps = [
            drawing
            for number, (arm, layers) in enumerate(own.items())
            for drawing in _maps(layers[:1], arm, figure_key("attention", study, place, number))
        ]
        return [*made, *([Drawings(maps, title="Attention, mean over the heads of one layer")] if maps else [])] or [
            Words(["No run here was looked at by layer."])
        ]

    lead = "How each layer passes on noise, what can be read from it, and where attention goes."
    return by_place(study, "layers", "Layers", lead, blocks)


def mean_history(histories: Sequence[Sequence[Mapping[str, float | None]]], name: str) -> tuple[np.ndarray, ...] | None:
    """Steps, mean and sd over runs of one logged value; sd is NaN where one run has it.

    Args:
        histories: of the runs of one recipe.
        name: of the value.
    Returns:
        None where no run has it.
    """
    by_step: dict[float, list[float]] = {}
    for history in histories:
        for entry in history:
            value, step = entry.get(name), entry.get("step")
            if value is not None and step is not None and np.isfinite(value):
                by_step.setdefault(step, []).append(value)
    if not by_step:
        return None
    steps = sorted(by_step)
    means = np.array([np.mean(by_step[step]) for step in steps])
    spread = [np.std(by_step[step], ddof=1) if len(by_step[step]) > 1 else np.nan for step in steps]
    return np.array(steps), means, np.array(spread)


def _histories(study: Study, id: str, title: str, lead: str, *, losses: bool) -> Section:
    styles = looks(study.arms)

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        histories = {row.arm: [run.record.history for run in study.done(place, row.arm).values()] for row in rows}
        names = {name for own in histories.values() for one in own for entry in one for name in entry}
        groups: dict[str, list[Drawing]] = {}
        shown: dict[str, set[Look]] = {}
        for number, name in enumerate(sorted(filter(lambda name: _is_loss(name) == losses, names), key=_order)):
            curves = [
                Curve(styles[arm], *found)
                for arm, own in histories.items()
                if (found := mean_history(own, name)) is not None
            ]
            if curves and name not in _SUMMARY and not name.startswith("train_"):
                key = figure_key(id, study, place, number)
                group = "" if losses else name.partition("/")[0] if "/" in name else "optimizer"
                svg = curve_figure(curves, "step", key=key, title=name.removeprefix(f"{group}/") if group else name)
                groups.setdefault(group, []).append(Drawing(svg))
                shown.setdefault(group, set()).update(curve.look for curve in curves)
        return [
            Drawings(figures, [(arm.recipe, styles[arm]) for arm in histories if styles[arm] in shown[group]], group)
            for group, figures in groups.items()
        ] or [Words(["No run here logged any."])]

    return by_place(study, id, title, lead, blocks)


def _is_loss(name: str) -> bool:
    return name in ("loss", "task_loss") or name.endswith("/term")


def _order(name: str) -> tuple[int, str]:
    return {"loss": 0, "task_loss": 1}.get(name, 2 if "/" in name else 3), name


def _stability(layers: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    values = [np.nan if value is None else value for value in layers.get("stability") or ()]
    return list(range(1, len(values) + 1)), values


def _probing(layers: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    probing = layers.get("probing") or {}
    values = [np.nan if value is None else value for value in probing.get("accuracy") or ()]
    return list(probing.get("layers") or ())[: len(values)], values


def _mean_curve(look: Look, read: Sequence[tuple[list[float], list[float]]]) -> Curve | None:
    entries = [[{"step": at, "value": value} for at, value in zip(*one, strict=False)] for one in read]
    found = mean_history(entries, "value")
    return None if found is None else Curve(look, *found)


def _maps(layers: Sequence[Mapping[str, Any]], arm: Arm, key: str) -> list[Drawing]:
    made = []
    for number, one in enumerate(layers[0]["attention"][:_EXAMPLES] if layers else ()):
        weights = np.array(one["weights"], dtype=np.float64)[:_TOKENS, :_TOKENS]
        keep = None if one.get("keep") is None else np.array(one["keep"], dtype=np.float64)[:_TOKENS, :_TOKENS]
        tokens = (one["tokens"] or [str(index) for index in range(len(weights))])[: len(weights)]
        title = f"{arm.title}, row {one['id']}, layer {one['layer']}, first {len(weights)} tokens"
        svg = attention_figure(np.nan_to_num(weights), tokens, keep, key=f"{key}-{number}", title=title)
        made.append(Drawing(svg, title))
    return made
