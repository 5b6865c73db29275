"""Which rows of several splits belong together, where the data set does not say it: an original and its revisions."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from steadytune.data.examples import Examples
from steadytune.data.sampling import contents
from steadytune.data.tables import DataError

IN_ORDER = 0.95  # share of the rows that keep one of the two texts of the row in their place
CLEARLY = 1.25  # times the common words of the second-nearest row


def paired_rows(splits: Sequence[Examples], names: Sequence[str], where: str) -> list[list[int | None]]:
    """For every split, the row of the first split that each of its rows was made from.

    Rows of pairs of texts that keep one text of the row in their place are paired by order; several revisions of a row
    follow each other. Other rows go to the row with which they share the largest part of their words.

    Args:
        splits: originals first.
        names: of the splits, for messages.
        where: what they are splits of, for messages.
    Returns:
        One list per split; None for an original that has no revision in one of the other splits.
    Raises:
        DataError: the rows of a split cannot be told apart in this way.
    """
    originals = splits[0]
    found = [_by_order(originals, rows) or _by_words(originals, rows) for rows in splits[1:]]
    for name, places in zip(names[1:], found, strict=True):
        if places is None:
            raise DataError(
                f"{where}: it is not clear which row of {name!r} belongs to which of {names[0]!r}; name the splits one "
                "by one, or a column that says it as `sets` of the robustness set in a plan."
            )
    everywhere = set(range(len(originals))).intersection(*(places for places in found if places is not None))
    all_places = [list(range(len(originals))), *(places or [] for places in found)]
    return [[place if place in everywhere else None for place in places] for places in all_places]


def _by_order(originals: Examples, rows: Examples) -> list[int] | None:
    times, rest = divmod(len(rows), len(originals))
    if rest or not times or originals.pairs is None or rows.pairs is None:
        return None
    places = [row // times for row in range(len(rows))]
    kept = [
        _same(text, originals.texts[place]) or _same(pair, originals.pairs[place])
        for place, text, pair in zip(places, rows.texts, rows.pairs, strict=True)
    ]
    return places if np.mean(kept) >= IN_ORDER else None


def _same(one: str, other: str) -> bool:
    return one.split() == other.split()


def _by_words(originals: Examples, rows: Examples) -> list[int] | None:
    """The nearest original of each row, by shared words over all words; None if some row has no clearly nearest one."""
    texts = [" ".join(both) for both in (*contents(originals), *contents(rows))]
    words = CountVectorizer(analyzer=_words, binary=True, dtype=np.int64).fit_transform(texts)
    ours, theirs = words[: len(originals)], words[len(originals) :]
    shared = (theirs @ ours.T).toarray()
    sizes = [np.asarray(part.sum(axis=1)) for part in (theirs, ours)]
    either = sizes[0].reshape(-1, 1) + sizes[1].reshape(1, -1) - shared
    share = np.asarray(shared / np.maximum(either, 1))
    nearest = share.argmax(axis=1)
    best = share.max(axis=1)
    share[np.arange(len(share)), nearest] = 0.0
    clear = (best > 0) & (best >= CLEARLY * share.max(axis=1))
    return [int(place) for place in nearest] if clear.all() else None


def _words(text: str) -> list[str]:
    return text.lower().split()
