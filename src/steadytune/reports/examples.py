"""What the single examples say: which classes are mixed up, which rows change sides, how sure the model is."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from steadytune.reports.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from steadytune.reports.predictions import Answers, Predictions

_TSNE_ROWS = 500
_TSNE_SEED = 0


class Flip(NamedTuple):
    """A row that one recipe gets right in most seeds and the other wrong in most.

    Attributes:
        id: of the row.
        label: the right answer, as in `Answers`.
        baseline: answer that the baseline gives most often.
        recipe: answer that the recipe gives most often.
        baseline_right: share of the baseline's seeds that are right.
        recipe_right: share of the recipe's seeds that are right.
    """

    id: str
    label: Any
    baseline: Any
    recipe: Any
    baseline_right: float
    recipe_right: float


class Calibrated(NamedTuple):
    """How sure a recipe is, and how often it is right.

    Attributes:
        before: expected calibration error by seed, as the model gave them.
        after: the same with the temperature of dev; empty where dev has no rows.
        temperatures: by seed.
        bins_before: over the rows of all seeds.
        bins_after: over the rows of all seeds; empty without temperatures.
    """

    before: list[float]
    after: list[float]
    temperatures: list[float]
    bins_before: tuple[ReliabilityBin, ...]
    bins_after: tuple[ReliabilityBin, ...]


def confusion_counts(runs: Sequence[Predictions], classes: int) -> Int[np.ndarray, "classes classes"]:
    """Rows by true class (down) and predicted class (across), summed over runs.

    Args:
        runs: predictions of one recipe.
        classes: how many there are.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    for run in runs:
        np.add.at(counts, (run.labels, run.logits.argmax(axis=1)), 1)
    return counts


def flips(baseline: Sequence[Answers], recipe: Sequence[Answers]) -> tuple[list[Flip], list[Flip]]:
    """Rows that changed sides between two recipes: those won, and those lost.

    A row counts where more than half of the runs of one recipe are right and more than half of the other's are wrong.

    Args:
        baseline: its runs.
        recipe: its runs.
    Returns:
        Won and lost, the clearest first, then by id.
    """
    before, after = _answers(baseline), _answers(recipe)
    won, lost = [], []
    for row_id in before.keys() & after.keys():
        label, answers = before[row_id]
        _, others = after[row_id]
        shares = [_share(label, given) for given in (answers, others)]
        flip = Flip(row_id, label, _commonest(answers), _commonest(others), *shares)
        if shares[0] < 0.5 < shares[1]:
            won.append(flip)
        elif shares[1] < 0.5 < shares[0]:
            lost.append(flip)
    clearest = [sorted(found, key=lambda f: (-abs(f.recipe_right - f.baseline_right), f.id)) for found in (won, lost)]
    return clearest[0], clearest[1]


def right_shares(runs: Sequence[Answers]) -> dict[str, float]:
    """Of each row by its id, the share of the runs that are right.

    Args:
        runs: of one recipe.
    """
    return {row_id: _share(label, given) for row_id, (label, given) in _answers(runs).items()}


def calibrated(pairs: Sequence[tuple[Predictions | None, Predictions]]) -> Calibrated | None:
    """Calibration of one recipe over its seeds, before and after temperature scaling.

    Args:
        pairs: rows of dev, from which the temperature comes, and rows of test, by seed.
    Returns:
        None without a run.
    """
    if not pairs:
        return None
    labels = np.concatenate([test.labels for _, test in pairs])
    raw = [softmax(test.logits, axis=1) for _, test in pairs]
    before = [expected_calibration_error(shares, test.labels) for shares, (_, test) in zip(raw, pairs, strict=True)]
    temperatures, after, scaled = [], [], []
    for dev, test in pairs:
        if dev is not None and dev.finite:
            temperatures.append(fit_temperature(dev.logits, dev.labels))
            scaled.append((softmax(test.logits / temperatures[-1], axis=1), test.labels))
            after.append(expected_calibration_error(*scaled[-1]))
    bins_after: tuple[ReliabilityBin, ...] = ()
    if scaled:
        bins_after = reliability(np.concatenate([s for s, _ in scaled]), np.concatenate([rows for _, rows in scaled]))
    return Calibrated(before, after, temperatures, reliability(np.concatenate(raw), labels), bins_after)


def plane(vectors: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows 2"] | None:
    """t-SNE of at most 500 vectors, the same on every call.

    Args:
        vectors: one per row; evenly chosen where there are more than 500 rows, see `chosen_rows`.
    Returns:
        None for fewer than five rows, equal rows, or numbers that are not finite.
    """
    vectors = vectors[chosen_rows(len(vectors))].astype(np.float64)
    if len(vectors) < 5 or not np.isfinite(vectors).all() or (np.ptp(vectors, axis=0) == 0).all():
        return None
    with threadpool_limits(1):  # sums of several threads end in another order, and so in another figure
        start = PCA(2, svd_solver="full").fit_transform(vectors) if vectors.shape[1] > 1 else np.repeat(vectors, 2, 1)
        start = start / max(float(np.std(start[:, 0])), 1e-12) * 1e-4
        made = TSNE(
            perplexity=min(30.0, (len(vectors) - 1) / 3),
            init=start.astype(np.float32),
            random_state=_TSNE_SEED,
            max_iter=750,
        ).fit_transform(vectors)
    return np.asarray(made, dtype=np.float64)


def chosen_rows(rows: int, most: int = _TSNE_ROWS) -> Int[np.ndarray, " chosen"]:
    """Evenly spaced rows, all of them where there are few.

    Args:
        rows: how many there are.
        most: how many to choose.
    """
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).round().astype(np.int64)


def quintiles(values: Num[np.ndarray, " rows"]) -> tuple[Int[np.ndarray, " rows"], list[str]]:
    """Numbers in five classes of about equal size, with the names of the classes.

    Args:
        values: labels of a regression.
    """
    edges = np.unique(np.quantile(values, [0.2, 0.4, 0.6, 0.8]))
    bounds = [float(values.min()), *edges.tolist(), float(values.max())]
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(bounds)]
    return np.searchsorted(edges, values, side="left"), names


def _answers(runs: Sequence[Answers]) -> dict[str, tuple[Any, list[Any]]]:
    """Label of each row, and what the runs answered."""
    found: dict[str, tuple[Any, list[Any]]] = {}
    for run in runs:
        for row_id, label, answer in zip(*run, strict=True):
            found.setdefault(row_id, (label, []))[1].append(answer)
    return found


def _share(label: Any, answers: Sequence[Any]) -> float:
    return answers.count(label) / len(answers)


def _commonest(answers: Sequence[Any]) -> Any:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))
